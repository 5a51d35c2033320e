"""The feature network is a classifier of what it is given, and made once."""

from pathlib import Path

import pytest
import torch

from dsno.checkpoint import read_json
from dsno.data.samples import Samples
from dsno.nets.features import load_feature_net
from dsno.runs.features import _Classify, train_features, turned


def stripes() -> Samples:
    """Two classes that differ in their direction."""
    rows = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(2).expand(8, 8)
    labels = torch.arange(64) % 2
    x = torch.stack([rows, rows.T])[labels][:, None]
    return Samples(x + 0.1 * torch.randn(x.shape), labels, "folder/stripes.npz")


def test_it_learns_what_it_is_shown_and_is_what_its_folder_holds(tmp_path: Path) -> None:
    images = stripes()
    net = train_features(images, tmp_path, steps=20, width=4)
    notes = read_json(tmp_path / "config.json")["notes"]
    assert notes == {"data": "folder/stripes.npz", "labelled": True, "training_accuracy": 1.0}
    assert net.name == "stripes_cnn" and net.config["classes"] == 2
    again = load_feature_net(tmp_path)
    assert torch.equal(again.features(images.x), net.eval().features(images.x))
    # What is done is not done again.
    weights = (tmp_path / "model.safetensors").read_bytes()
    train_features(images, tmp_path, steps=20, width=4)
    assert (tmp_path / "model.safetensors").read_bytes() == weights


def test_batches_are_the_images_shifted_by_up_to_a_pixel_and_shared_among_ranks() -> None:
    labels = torch.arange(5)
    x = torch.zeros(5, 1, 8, 8)
    x[labels, :, labels, 3] = 1
    whole = _Classify(x, labels, 6, seed=3)
    stream = whole.batches(0, 0, 1)
    first, second = next(stream), next(stream)
    assert all(torch.equal(next(whole.batches(1, 0, 1))[name], second[name]) for name in second)
    moved = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    assert any(torch.equal(first["x"], x[first["label"]].roll(by, (2, 3))) for by in moved)
    ranks = [next(whole.batches(0, rank, 2)) for rank in (0, 1)]
    assert torch.equal(torch.cat([r["label"] for r in ranks]), first["label"])
    assert torch.equal(torch.cat([r["x"] for r in ranks]), first["x"])


def test_features_need_labels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="here has no labels of two classes to train a feature network on"):
        train_features(Samples(torch.rand(4, 1, 8, 8), None, "here"), tmp_path)


@pytest.mark.parametrize("shape", [(8, 8), (8, 12)])
def test_without_labels_it_learns_how_images_are_turned(shape: tuple[int, int], tmp_path: Path) -> None:
    # One corner is bright: where it is tells the turn.
    x = 0.1 * torch.randn(64, 1, *shape)
    x[:, :, :4, :4] += 1
    ways = turned(x[:4], torch.arange(4))
    assert len({tuple((way[0] > 0.5).nonzero().float().mean(0).tolist()) for way in ways}) == 4
    assert torch.equal(ways[0], x[0])
    net = train_features(Samples(x, None, "corner"), tmp_path, steps=40, width=4, labelled=False)
    assert net.name == "corner_turns" and net.config["classes"] == 4
    assert read_json(tmp_path / "config.json")["notes"]["training_accuracy"] > 0.9
    with pytest.raises(ValueError, match="was trained with labelled = False, now True: resume alike"):
        train_features(Samples(x, torch.arange(64) % 4, "corner"), tmp_path, steps=40, width=4)


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.rand(4, 1, 6, 8), r"takes images \(B, 1, H, W\) of 8x8 or more, got \(4, 1, 6, 8\)"),
        (torch.rand(4, 1, 8), r"takes images \(B, 1, H, W\) of 8x8 or more, got \(4, 1, 8\)"),
        (torch.rand(4, 2, 8, 8), "a feature network needs 1 or 3 channels"),
    ],
)
def test_what_has_no_features_is_refused_before_anything_is_written(
    x: torch.Tensor, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train_features(Samples(x, None, "here"), tmp_path / "out", labelled=False)
    assert not (tmp_path / "out").exists()
