"""What `dsno sample` draws is written as a picture, as numbers or as a folder, whole or not at all."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsno.cli.pieces import Piece, check_place, check_size, write_pieces
from dsno.runs.shipped import shipped
from dsno.seeds import noise, seed_range
from dsno.students.files import load_student
from shell import dsno


def test_each_form_holds_the_same_samples(tmp_path: Path) -> None:
    for out in ("all.png", "all.npy", "all"):
        ran = dsno("sample", "--count", 3, "--seed", 5, "--device", "cpu", "--out", out, at=tmp_path)
        assert ran.code == 0 and "3 samples in one pass, " in ran.out and ran.out.splitlines()[0].endswith(out)
    held = np.load(tmp_path / "all.npy")
    student = load_student(shipped() / "student")
    expected = student.sample(noise(seed_range(5, 3), (1, 8, 8))).clamp(-1, 1)
    assert held.dtype == np.float32 and np.allclose(held, expected, atol=1e-5)
    pictures = sorted((tmp_path / "all").iterdir())
    assert [path.name for path in pictures] == [f"seed-{seed:08d}.png" for seed in (5, 6, 7)]
    shown = np.asarray(Image.open(pictures[1]))[::12, ::12, 0] / 127.5 - 1
    assert np.abs(shown - held[1, 0]).max() < 0.01
    together = np.asarray(Image.open(tmp_path / "all.png"))
    # The second tile of two columns; below it its seed is written.
    assert np.array_equal(together[:96, 104:200], np.asarray(Image.open(pictures[1])))
    assert together[96:120, 104:200, 3].any() and not together[:96, 97:103, 3].any()


def test_numbers_are_written_while_they_are_drawn(tmp_path: Path) -> None:
    samples = torch.rand(5, 2, 3)
    drawn: list[int] = []

    def pieces():
        for n in (0, 2, 4):
            drawn.append(n)
            yield Piece(samples[n : n + 2], torch.arange(n, min(n + 2, 5)))

    out = tmp_path / "x.npy"
    write_pieces(out, 5, pieces(), False, ())
    assert np.array_equal(np.load(out), samples.numpy()) and drawn == [0, 2, 4]


def test_what_fails_leaves_no_part_of_it(tmp_path: Path) -> None:
    def pieces():
        yield Piece(torch.zeros(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64))
        raise FloatingPointError("not finite")

    for out in ("x.npy", "x.png"):
        with pytest.raises(FloatingPointError):
            write_pieces(tmp_path / out, 2, pieces(), False, ())
    assert [*tmp_path.iterdir()] == []


def test_labels_stand_in_names_and_captions() -> None:
    piece = Piece(torch.zeros(2, 1, 4, 4), torch.tensor([3, 4]), torch.tensor([9, 0]))
    assert piece.names() == ["seed-00000003-label-9.png", "seed-00000004-label-0.png"]
    assert piece.captions() == ["3 · 9", "4 · 0"]


@pytest.mark.parametrize(
    "out, count, shape, message",
    [
        ("z.png", 10**6, (1, 8, 8), "more than 2\\^26: make one of fewer, or write --out samples.npy or a folder"),
        ("z.png", 1, (4, 8, 8), r"samples of shape \(4, 8, 8\) are no pictures: write the numbers, --out samples.npy"),
        ("z", 1, (64,), r"samples of shape \(64,\) are no pictures"),
        ("z.npy", 10**15, (3, 64, 64), "1000000000000000 samples need 4.92e\\+10 GB, and .* GB are free: draw fewer"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_size(
    out: str, count: int, shape: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        check_size(tmp_path / out, count, shape)


def test_a_name_says_what_is_written(tmp_path: Path) -> None:
    for name in ("z.xyz", "z.jpg", "z.pt"):
        with pytest.raises(ValueError, match="is neither .png, a picture, nor .npy, the numbers, nor a folder"):
            check_place(tmp_path / name, False, ())
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "notes.txt").write_text("mine")
    for more in ((), ("--overwrite",)):
        ran = dsno("sample", "--count", 2, "--out", "z", *more, at=tmp_path)
        assert ran.code == 2 and len(ran.err.splitlines()) == 1
    assert [p.name for p in (tmp_path / "z").iterdir()] == ["notes.txt"]
