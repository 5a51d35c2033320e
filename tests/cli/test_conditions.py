"""What a row is told: a function of its seed, in any batch and of any verb."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from dsno.cli.conditions import condition_by_seed, labels_by_seed
from dsno.denoise import Prediction
from dsno.nets.unet import UNet
from dsno.schedule import Cosine
from dsno.teachers.prompts import under_guidance
from dsno.trajectories.sets import TrajectorySet
from shell import dsno


def test_labels_and_weights_are_drawn_by_seed_and_recorded(classes: Path) -> None:
    rows = TrajectorySet(classes / "runs" / "trajectories").__getitems__(list(range(32)))
    label, weight = rows["cond"]["label"], rows["cond"]["weight"]
    assert label.dtype == torch.int64 and 0 <= int(label.min()) < int(label.max()) <= 9
    assert 0 <= float(weight.min()) < float(weight.max()) <= 3 and len(weight.unique()) == 32
    command = ("generate", "--guidance", 0, 3, "--steps", 6, "--batch", 3)
    assert dsno(*command, "--first-seed", 5, "--count", 7, "--out", "part", at=classes).code == 0
    part = TrajectorySet(classes / "part").__getitems__(list(range(7)))["cond"]
    assert torch.equal(part["label"], label[5:12]) and torch.equal(part["weight"], weight[5:12])


def test_labels_are_one_or_those_of_a_file(classes: Path) -> None:
    (classes / "labels.txt").write_text("3 1 4\n")
    for labels, wanted in (("7", [7, 7, 7, 7]), ("labels.txt", [3, 1, 4, 3])):
        out = f"of-{labels}"
        ran = dsno(
            "generate", "--labels", labels, "--count", 4, "--steps", 6, "--out", out, "--dtype", "bf16", at=classes
        )
        assert ran.code == 0
        data = TrajectorySet(classes / out)
        assert data.__getitems__([0, 1, 2, 3])["cond"].tolist() == wanted
        assert data.manifest["compute"] == {"autocast": "bfloat16"}


@pytest.mark.parametrize(
    "command, message",
    [
        ("--labels 10", "label 10 is outside the classes of runs/teacher: expected 0 to 9"),
        ("--labels -1", "label -1 is outside the classes of runs/teacher: expected 0 to 9"),
        ("--labels none.txt", "--labels none.txt: expected `uniform`, a label, or a file"),
        ("--guidance 1 --null 11", "the null label 11 is outside the labels of runs/teacher: expected 0 to 10"),
    ],
)
def test_a_wrong_condition_is_one_line_and_nothing_is_written(command: str, message: str, classes: Path) -> None:
    ran = dsno("generate", "--out", "new", *shlex.split(command), at=classes)
    assert ran.code == 2 and message in ran.err and not (classes / "new").exists()


# Without a command


def teacher(classes: int | None) -> Prediction:
    return Prediction(UNet(1, 8, (4, 8), attention=(), classes=classes), Cosine(), "v", classes=classes)


def test_a_row_is_told_the_same_in_any_batch() -> None:
    known = condition_by_seed("it", teacher(10), None, None, (0, 3))
    whole, part = known(torch.arange(20)), known(torch.arange(5, 9))
    assert [*whole] == ["label", "weight"]
    assert all(torch.equal(whole[name][5:9], part[name]) for name in whole)
    assert torch.equal(whole["label"], condition_by_seed("it", teacher(10), None, None, (2,))(torch.arange(20)))
    assert condition_by_seed("it", teacher(None), None, None) is None


def test_labels_of_an_array_are_taken_by_turns(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.array([3, 1, 4], np.uint8))
    label = labels_by_seed("it", 10, str(tmp_path / "labels.npy"))(torch.tensor([0, 5, 3]))
    assert label.dtype == torch.int64 and label.tolist() == [3, 4, 3]


@pytest.mark.parametrize(
    "held, message",
    [
        (np.zeros((2, 2), np.int64), r"must hold one integer for each seed, got int64 of shape \(2, 2\)"),
        (np.zeros(2), r"must hold one integer for each seed, got float64 of shape \(2,\)"),
        (np.zeros(0, np.int64), r"must hold one integer for each seed, got int64 of shape \(0,\)"),
        (np.array([3, 10]), "label 10 is outside the classes of it: expected 0 to 9"),
    ],
)
def test_an_array_of_something_else_is_no_labels(held: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", held)
    with pytest.raises(ValueError, match=message):
        labels_by_seed("it", 10, str(tmp_path / "labels.npy"))


def test_words_are_no_labels_and_no_lines_no_prompts(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("seven eight\n")
    with pytest.raises(ValueError, match="words.txt is no file of labels, integers separated by white space"):
        labels_by_seed("it", 10, str(tmp_path / "words.txt"))
    (tmp_path / "none.txt").write_text("\n  \n")
    with pytest.raises(ValueError, match="none.txt holds no prompt: write one a line"):
        condition_by_seed("it", teacher(None), None, tmp_path / "none.txt")


def test_files_are_read_in_utf8_without_their_mark(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(b"\xef\xbb\xbf3 1\r\n4\r\n")
    assert labels_by_seed("it", 10, str(tmp_path / "labels.txt"))(torch.arange(4)).tolist() == [3, 1, 4, 3]
    (tmp_path / "labels.txt").write_bytes("7 \x85".encode("latin-1"))
    with pytest.raises(ValueError, match=r"labels\.txt is no .*text in UTF-8"):
        labels_by_seed("it", 10, str(tmp_path / "labels.txt"))


def test_the_null_label_is_not_drawn_and_known_to_the_network() -> None:
    seeds = torch.arange(200)
    assert set(condition_by_seed("it", teacher(3), None, None, null=2)(seeds).tolist()) == {0, 1}
    # Who asks for it gets it.
    assert set(condition_by_seed("it", teacher(3), "2", None, null=2)(seeds).tolist()) == {2}
    for ask in (
        lambda: condition_by_seed("it", teacher(3), None, None, null=3),
        lambda: under_guidance("it", teacher(3), (1.0,), null=3),
    ):
        with pytest.raises(ValueError, match="the null label 3 is outside the labels of it: expected 0 to 2"):
            ask()
