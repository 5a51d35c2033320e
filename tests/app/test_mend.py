"""A picture is restored as `dsno restore` restores it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import planned
from dsno.app.mend import PROBLEMS, Wish, mend
from dsno.app.models import Ask, Model, open_model
from dsno.app.places import Places
from dsno.data.load import load_data
from dsno.data.originals import Original, as_png, read_original
from dsno.data.samples import to_uint8
from shell import dsno

DIGIT = Original("digit", to_uint8(load_data("digits").x[0]) / 127.5 - 1)
"""As it is read from a picture of bytes."""
HIDDEN = torch.zeros(8, 8, dtype=torch.bool)
HIDDEN[:, 4:] = True


@pytest.fixture(scope="module")
def teacher() -> Model:
    return open_model("digits", Places())


def as_bytes(x: torch.Tensor) -> np.ndarray:
    return to_uint8(x)[0].numpy()


@pytest.mark.parametrize("whole", [False, True])
def test_it_is_what_the_command_line_makes(whole: bool, teacher: Model, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    wish = Wish("inpaint", whole=whole, noise=0.05, steps=4, samples=2)
    made = mend(teacher, DIGIT, wish, Ask(3), HIDDEN, lambda done, total: told.append((done, total)))
    (tmp_path / "digit.png").write_bytes(as_png(DIGIT.x))
    options = ("--half", "right", "--noise", 0.05, "--steps", 4, "--samples", 2, "--seed", 3, "--out", "out")
    assert dsno("restore", "digit.png", *options, *["--degrade"] * whole, at=tmp_path).code == 0
    files = {"seed 3": "digit-seed-3", "seed 4": "digit-seed-4", "mean": "digit-mean", "spread": "digit-spread"}
    files |= {"input": "digit-input"} if whole else {}
    assert {*made.pictures} == {*files}
    for name, file in files.items():
        assert np.array_equal(as_bytes(made.pictures[name]), np.asarray(Image.open(tmp_path / f"out/{file}.png")))
    assert ("psnr" in made.measures) == whole and made.cost["rounds"] == told[-1][0] == told[-1][1] == 4


def test_what_is_seen_stays_and_one_sample_has_no_spread(teacher: Model) -> None:
    made = mend(teacher, DIGIT, Wish(steps=4), Ask(5), HIDDEN)
    assert [*made.pictures] == ["seed 5"]
    assert np.array_equal(as_bytes(made.pictures["seed 5"])[:, :4], as_bytes(DIGIT.x)[:, :4])


@pytest.mark.parametrize("problem", ["super", "deblur", "blind"])
def test_every_problem_of_a_grey_picture_is_stated_by_a_number(problem: str, teacher: Model) -> None:
    made = mend(teacher, DIGIT, Wish(problem, whole=True, factor=2, blur=0.7, steps=2), Ask())
    assert made.pictures["seed 0"].shape == (1, 8, 8)
    assert made.pictures["input"].shape == ((1, 4, 4) if problem == "super" else (1, 8, 8))
    assert ("kernel" in made.pictures) == (problem == "blind")


def test_a_picture_that_was_measured_is_enlarged_or_coloured() -> None:
    small = Original("small", DIGIT.x[:, :2, :2])
    made = mend(Model("grey", planned.teacher()), small, Wish("super", steps=2), Ask())
    assert made.pictures["seed 0"].shape == (1, 4, 4)
    net = planned.shaken(planned.UNet(3, 4, (8,), attention=()))
    colours = Model("colours", planned.Prediction(net, planned.Cosine(), "v", shape=(3, 4, 4)))  # type: ignore[arg-type]
    grey = Original("grey", DIGIT.x[:, :4, :4])
    assert mend(colours, grey, Wish("gray", steps=2), Ask()).pictures["seed 0"].shape == (3, 4, 4)


def test_a_class_that_nobody_said_is_none() -> None:
    small = Original("small", DIGIT.x[:, :4, :4])
    hidden = HIDDEN[2:6, 2:6]
    knows = Model("knows", planned.teacher(classes=3, null=True), null=3)
    unsaid = mend(knows, small, Wish(steps=2), Ask(), hidden).pictures["seed 0"]
    said = mend(knows, small, Wish(steps=2), Ask(label=1, guidance=1.0), hidden).pictures["seed 0"]
    assert not torch.equal(unsaid, said)
    with pytest.raises(ValueError, match="plain is told a class: give that of the picture"):
        mend(Model("plain", planned.teacher(classes=3)), small, Wish(steps=2), Ask(), hidden)


@pytest.mark.parametrize(
    "wish, message",
    [
        (Wish("inpaint"), "nothing is missing: paint over what is to be filled"),
        (Wish("tear"), f"unknown problem 'tear': expected one of {', '.join(PROBLEMS)}"),
        (Wish("deblur", blur=0.0), "blur must be above 0, and its kernel of 0 pixels no larger than the picture"),
        (Wish("deblur", blur=9.0), "its kernel of 37 pixels no larger than the picture, got 9.0"),
        (Wish("blind", blur=float("nan")), "blur must be above 0"),
        (Wish("super", factor=1), "a factor of downsampling is a whole number of 2 or more, got 1"),
        (Wish("super", factor=3, whole=True), "a factor of 3 does not divide samples of 8 x 8"),
        (Wish("super", steps=0), r"steps must be in \[1, 1000\] and samples in \[1, 16\], got 0 and 1"),
        (Wish("super", samples=17), "got 50 and 17"),
        (Wish("super", method="best"), "unknown method 'best'"),
        (Wish("super", method="blind"), "the method blind estimates a kernel, and the problem is super: take another"),
        (Wish("super", noise=-1.0), "noise"),
    ],
)
def test_what_cannot_be_restored_is_refused(wish: Wish, message: str, teacher: Model) -> None:
    with pytest.raises(ValueError, match=message):
        mend(teacher, DIGIT, wish, Ask())


def test_a_picture_that_is_too_small_or_of_other_colours_is_refused(teacher: Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="picture is restored to 4 x 4 pixels, and the teacher makes 8 x 8"):
        mend(teacher, Original("a", DIGIT.x[:, :4, :4]), Wish(steps=2), Ask(), HIDDEN[2:6, 2:6])
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="picture is restored in colour, and the teacher makes pictures in grey"):
        mend(teacher, read_original(tmp_path / "a.png"), Wish(steps=2), Ask(), HIDDEN)
