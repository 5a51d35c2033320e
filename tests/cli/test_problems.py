"""A problem as the options of `dsno restore` state it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dsno.cli.problems import OF_PROBLEM, Measured, ProblemName, read_kernel, read_mask, stated
from dsno.inverse.blur import Blur
from dsno.inverse.operators import Downsample, Grey, Mask
from dsno.inverse.problem import check_problem, noise_of

SHAPE = (3, 8, 12)
SEEN = np.arange(96).reshape(8, 12) % 3 > 0
KERNEL = np.outer([1, 2, 1], [1, 2, 1]) / 16


@pytest.fixture
def files(tmp_path: Path) -> Path:
    Image.fromarray(SEEN).save(tmp_path / "bits.png")
    Image.fromarray(SEEN.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    Image.fromarray(SEEN.astype(np.uint8) * 127).save(tmp_path / "greys.png")
    Image.fromarray(np.eye(8, dtype=np.uint8)[..., None] * np.array([255, 0, 0], np.uint8)).save(tmp_path / "red.png")
    arrays = {
        "mask": SEEN, "ones": SEEN.astype(np.int64), "halves": SEEN / 2, "kernel": KERNEL, "row": KERNEL[0],
        "words": np.array([["a"]]), "none": np.zeros((0, 3)), "black": -KERNEL, "nan": KERNEL * np.nan,
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.savez(tmp_path / "several.npz", KERNEL)
    return tmp_path


@pytest.mark.parametrize("name", ["bits.png", "mask.png", "mask.npy", "ones.npy"])
def test_a_mask_is_read_from_what_has_two_tones(name: str, files: Path) -> None:
    assert torch.equal(read_mask(files / name), torch.from_numpy(SEEN))


@pytest.mark.parametrize(
    "name, message",
    [
        ("greys.png", "greys.png must be black .hidden. and white .seen., and has greys between: save it in two tones"),
        ("red.png", "red.png must be black .* and has colours"),
        ("halves.npy", "halves.npy must be of 0 .hidden. and 1 .seen., and holds other numbers: threshold it first"),
        ("words.npy", "words.npy holds <U1 of shape .1, 1.: expected a mask, real numbers .H, W."),
        ("row.npy", "row.npy holds float64 of shape .3,.: expected a mask"),
    ],
)
def test_what_has_more_than_two_tones_is_no_mask(name: str, message: str, files: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_mask(files / name)
    with pytest.raises(FileNotFoundError, match="no file"):
        read_mask(files / f"no-{name}")


def test_a_kernel_is_an_array_of_two_directions(files: Path) -> None:
    assert torch.equal(read_kernel(files / "kernel.npy"), torch.from_numpy(KERNEL.astype(np.float32)))
    for name, message in (
        ("row.npy", "expected a kernel, real numbers"),
        ("none.npy", "expected a kernel"),
        ("mask.png", "no .npy file: give a kernel as an array"),
        ("several.npz", "no .npy file"),
    ):
        with pytest.raises(ValueError, match=message):
            read_kernel(files / name)


def made(name: ProblemName, files: Path, degrade: bool = False, **given: Any) -> Any:
    given = {k: files / v if isinstance(v, str) and "." in v else v for k, v in given.items()}
    return stated(
        name, 0.05, 3, degrade, {option: None for options in OF_PROBLEM.values() for option in options} | given
    )


@pytest.mark.parametrize(
    "name, options, kind, measured",
    [
        ("inpaint", {"mask": "mask.png"}, Mask, SHAPE),
        ("inpaint", {"box": 0.5}, Mask, SHAPE),
        ("inpaint", {"half": "right"}, Mask, SHAPE),
        ("inpaint", {"half": "bottom"}, Mask, SHAPE),
        ("inpaint", {"random": 0.7}, Mask, SHAPE),
        ("super", {}, Downsample, (3, 2, 3)),
        ("super", {"factor": 2, "resize": "bicubic"}, Downsample, (3, 4, 6)),
        ("deblur", {"kernel": "kernel.npy"}, Blur, SHAPE),
        ("deblur", {"kernel": "kernel.npy", "border": "zero"}, Blur, SHAPE),
        ("blind", {"kernel_size": 5}, Blur, SHAPE),
        ("gray", {}, Grey, (1, 8, 12)),
    ],
)
def test_a_problem_measures_what_it_restores_from(
    name: ProblemName, options: dict[str, Any], kind: type, measured: tuple[int, ...], files: Path
) -> None:
    problem = made(name, files, **options)
    assert isinstance(problem.of(SHAPE), kind) and noise_of(problem.of(SHAPE)) == 0.05
    assert check_problem(problem.of(SHAPE), SHAPE) == measured and problem.whole(measured) == SHAPE


def test_a_mask_hides_what_was_asked_for(files: Path) -> None:
    def keep(**given: Any) -> torch.Tensor:
        return made("inpaint", files, **given).of(SHAPE).keep.expand(8, 12)

    assert torch.equal(keep(mask="mask.npy"), torch.from_numpy(SEEN))
    assert not keep(half="right")[:, 6:].any() and keep(half="right")[:, :6].all()
    assert not keep(half="bottom")[4:].any() and keep(half="bottom")[:4].all()
    assert int(keep(box=0.5).sum()) == 96 - 4 * 6
    assert int(keep(random=0.75).sum()) == 24 and torch.equal(keep(random=0.75), keep(random=0.75))


def test_a_blind_problem_knows_its_kernel_only_where_it_blurs(files: Path) -> None:
    problem = made("blind", files, degrade=True, kernel="kernel.npy")
    assert torch.equal(problem.measure(SHAPE).kernel, torch.from_numpy(KERNEL.astype(np.float32)))
    unknown = problem.of(SHAPE).kernel
    assert problem.of(SHAPE).noise == 0.05 and unknown.shape == (3, 3) and unknown[1, 1] == 1 and unknown.sum() == 1
    assert problem.inputs == (files / "kernel.npy",) and problem.options["kernel_size"] == 3


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("inpaint", {}, "needs one of --mask FILE, --box SHARE, --half right or bottom, and --random SHARE, got none"),
        ("inpaint", {"box": 0.5, "random": 0.5}, "got --box and --random"),
        ("inpaint", {"factor": 4}, "--factor is no option of the problem inpaint, which takes --mask, --box, --half"),
        ("gray", {"box": 0.5}, "--box is no option of the problem gray, which takes none of its own"),
        ("super", {"factor": 1}, "a factor of downsampling is a whole number of 2 or more, got 1"),
        ("deblur", {}, "deblur needs --kernel FILE.npy; where nobody knows the kernel: --problem blind"),
        ("deblur", {"kernel": "black.npy"}, "a kernel must have a positive sum .1 keeps the brightness., got -1"),
        ("deblur", {"kernel": "nan.npy"}, "a kernel must be of finite real numbers"),
        (
            "blind",
            {"kernel": "kernel.npy"},
            "--kernel is what blind does not know: leave it out, or take --problem deb",
        ),
        ("blind", {"kernel_size": 4}, "kernel_size must be an odd number of 3 or more pixels, got 4"),
    ],
)
def test_a_problem_that_cannot_be_stated_is_refused(
    name: ProblemName, options: dict[str, Any], message: str, files: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        made(name, files, **options)


def test_what_only_the_pictures_tell_is_refused_when_they_are_known(files: Path) -> None:
    with pytest.raises(ValueError, match="--degrade blurs pictures by --kernel FILE.npy: give one"):
        made("blind", files, degrade=True)
    with pytest.raises(ValueError, match="kernel_size is 9, and pictures have 8 x 12 pixels: take a smaller one"):
        made("blind", files).of(SHAPE)
    with pytest.raises(
        ValueError, match="mask.png is of 8 x 12 pixels, and a picture of 12 x 8: bring it to that size"
    ):
        made("inpaint", files, mask="mask.png").of((1, 12, 8))
    with pytest.raises(ValueError, match="gray restores the colours of grey pictures"):
        made("gray", files).whole(SHAPE)


def test_what_was_given_is_known_by_its_flags_and_said_again() -> None:
    assert Measured().given() == [] and Measured(factor=2, noise=0.1).given() == ["--factor", "--noise"]
    asked = Measured(problem="inpaint", box=0.5, noise=0.1, features=Path("features"))
    assert asked.options() == {"problem": "inpaint", "box": 0.5, "noise": 0.1}
    assert Measured().options() == {"problem": "super"}
    found, box = asked.stated().of(SHAPE), Mask.box(SHAPE, 0.5, 0.1)
    assert isinstance(found, Mask) and torch.equal(found.keep, box.keep) and found.noise == box.noise
