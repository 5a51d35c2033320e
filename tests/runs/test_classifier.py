"""A classifier that guides is trained on every level of noise, once, and says how well."""

import math
from pathlib import Path

import pytest
import torch

from dsno.checkpoint import read_json
from dsno.data.samples import Samples
from dsno.nets.classifier import load_classifier
from dsno.runs.classifier import _ClassifyNoised, accuracy_at, train_classifier


def stripes() -> Samples:
    """Two classes that differ in their direction."""
    rows = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(2).expand(8, 8)
    labels = torch.arange(64) % 2
    x = torch.stack([rows, rows.T])[labels][:, None]
    return Samples(x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), labels, "stripes.npz")


def test_it_learns_every_level_and_is_what_its_folder_holds(tmp_path: Path) -> None:
    images = stripes()
    net = train_classifier(images, tmp_path, channels=(8, 8), steps=120, batch=64)
    found = read_json(tmp_path / "config.json")["notes"]["training_accuracy"]
    assert [*found] == ["0", "0.25", "0.5", "0.75"] and min([*found.values()][:3]) > 0.9
    assert accuracy_at(net, images.x, images.labels, math.pi / 2) == pytest.approx(0.5, abs=0.01)
    again = load_classifier(tmp_path)
    assert torch.equal(again(images.x, 0.6, 0.8), net(images.x, 0.6, 0.8))
    # What is done is not done again.
    weights = (tmp_path / "model.safetensors").read_bytes()
    train_classifier(images, tmp_path, channels=(8, 8), steps=120, batch=64)
    assert (tmp_path / "model.safetensors").read_bytes() == weights


def test_clean_ones_are_shown_no_noise(tmp_path: Path) -> None:
    net = train_classifier(stripes(), tmp_path, noisy=False, channels=(8, 8), steps=80, batch=32)
    assert not net.noisy and read_json(tmp_path / "config.json")["notes"]["training_accuracy"] == {"0": 1.0}
    batch = next(_ClassifyNoised(stripes().x, stripes().labels, False, 8, 0).batches(0, 0, 1))
    assert bool((batch["alpha"] == 1).all() and (batch["sigma"] == 0).all())


def test_batches_are_noised_by_an_even_angle_and_shared_among_ranks() -> None:
    images = stripes()
    x = torch.zeros_like(images.x)
    objective = _ClassifyNoised(x, images.labels, True, 4096, seed=3)
    whole = next(objective.batches(0, 0, 1))
    theta = torch.atan2(whole["sigma"], whole["alpha"]) / (math.pi / 2)
    torch.testing.assert_close(theta.sort().values, torch.linspace(0, 1, 4096), rtol=0, atol=0.04)
    # Of nothing but noise, each row has the scale of its level.
    torch.testing.assert_close(whole["x"].flatten(1).std(1) / whole["sigma"], torch.ones(4096), rtol=0, atol=0.35)
    ranks = [next(objective.batches(0, rank, 2)) for rank in (0, 1)]
    for name in whole:
        assert torch.equal(torch.cat([r[name] for r in ranks]), whole[name])
    stream = objective.batches(0, 0, 1)
    next(stream)
    assert torch.equal(next(stream)["x"], next(objective.batches(1, 0, 1))["x"])


def test_a_classifier_needs_labels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="here has no labels of two classes to train a classifier on"):
        train_classifier(Samples(torch.rand(4, 1, 8, 8), None, "here"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
