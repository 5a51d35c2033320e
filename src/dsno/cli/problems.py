"""What `dsno restore` restores from, and what others are trained for: a problem as its options state it.

Each problem has options of its own, and an option of another problem is refused, so that nothing is left unread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor
from tyro.conf import arg

from dsno.cli.words import flag
from dsno.data.arrays import load_numpy
from dsno.data.originals import read_original
from dsno.inverse.blur import Blur
from dsno.inverse.kernels import delta
from dsno.inverse.operators import Downsample, Grey, Mask
from dsno.inverse.problem import Problem

__all__ = ["OF_PROBLEM", "AsMeasured", "Measured", "ProblemName", "Stated", "stated"]

ProblemName = Literal["inpaint", "super", "deblur", "blind", "gray"]

Shape = tuple[int, ...]

BEGUN = 0.02
"""The noise that a blind method begins with, if none was stated and it is to be estimated."""

OF_PROBLEM: dict[ProblemName, tuple[str, ...]] = {
    "inpaint": ("mask", "box", "half", "random"),
    "super": ("factor", "resize"),
    "deblur": ("kernel", "border"),
    "blind": ("kernel_size", "kernel"),
    "gray": (),
}
"""The options of each problem."""


@dataclass(frozen=True)
class Stated:
    """A problem for pictures of any size.

    Attributes:
        name: What it is called.
        of: The problem of pictures of a shape (C, H, W).
        whole: The shape of a picture from that of what was measured of it.
        measure: The problem that clean pictures are measured by: another one where `of` does not know all of it.
        options: What was asked for, for the notes.
        inputs: The files that were read.
    """

    name: ProblemName
    of: Callable[[Shape], Problem]
    whole: Callable[[Shape], Shape]
    measure: Callable[[Shape], Problem]
    options: Mapping[str, Any]
    inputs: tuple[Path, ...] = ()


def stated(name: ProblemName, noise: float, seed: int, degrade: bool, given: Mapping[str, Any]) -> Stated:
    """The problem of this name.

    Arguments:
        name: One of `OF_PROBLEM`.
        noise: The standard deviation of what was measured.
        seed: Determines a random mask.
        degrade: Whether clean pictures are to be measured.
        given: The options of all problems by name; those that were not given are None.

    Raises:
        FileNotFoundError: if a file that was named is missing.
        ValueError: for an option of another problem, one that is missing or out of range, or a file that holds
            something else.
    """
    asked = {option: value for option, value in given.items() if value is not None}
    for option in asked:
        if option not in OF_PROBLEM[name]:
            takes = ", ".join(map(flag, OF_PROBLEM[name])) or "none of its own"
            raise ValueError(f"{flag(option)} is no option of the problem {name}, which takes {takes}")
    return _STATED[name](noise, seed, degrade, asked)


def _inpaint(noise: float, seed: int, degrade: bool, asked: Mapping[str, Any]) -> Stated:
    if len(asked) != 1:
        found = "got none" if not asked else f"got {' and '.join(map(flag, asked))}"
        raise ValueError(
            f"inpaint needs one of --mask FILE, --box SHARE, --half right or bottom, and --random SHARE, {found}"
        )
    ((kind, value),) = asked.items()
    if kind == "mask":
        keep = read_mask(value)

        def masked(shape: Shape) -> Mask:
            if keep.shape != shape[1:]:
                sides = [" x ".join(map(str, size)) for size in (keep.shape, shape[1:])]
                raise ValueError(f"{value} is of {sides[0]} pixels, and a picture of {sides[1]}: bring it to that size")
            return Mask(keep, noise)

        return _alike("inpaint", masked, asked, (value,))
    makes: dict[str, Callable[[Shape], Mask]] = {
        "box": lambda shape: Mask.box(shape, value, noise),
        "half": lambda shape: Mask.half(shape, -1 if value == "right" else -2, noise),
        "random": lambda shape: Mask.random(shape, value, seed, noise),
    }
    return _alike("inpaint", makes[kind], asked)


def _super(noise: float, seed: int, degrade: bool, asked: Mapping[str, Any]) -> Stated:
    problem = Downsample(asked.get("factor", 4), asked.get("resize", "average"), noise)

    def whole(measured: Shape) -> Shape:
        return (measured[0], *(n * problem.factor for n in measured[1:]))

    options = {"factor": problem.factor, "resize": problem.kind}
    return Stated("super", lambda shape: problem, whole, lambda shape: problem, options)


def _deblur(noise: float, seed: int, degrade: bool, asked: Mapping[str, Any]) -> Stated:
    if "kernel" not in asked:
        raise ValueError("deblur needs --kernel FILE.npy; where nobody knows the kernel: --problem blind")
    blur = Blur(read_kernel(asked["kernel"]), asked.get("border", "circular") == "circular", noise)
    return _alike("deblur", lambda shape: blur, asked, (asked["kernel"],))


def _blind(noise: float, seed: int, degrade: bool, asked: Mapping[str, Any]) -> Stated:
    if degrade != ("kernel" in asked):
        why = "--degrade blurs pictures by --kernel FILE.npy" if degrade else "--kernel is what blind does not know"
        raise ValueError(f"{why}: {'give one' if degrade else 'leave it out, or take --problem deblur'}")
    kernel = read_kernel(asked["kernel"]) if degrade else None
    size = asked.get("kernel_size", 9 if kernel is None else max(kernel.shape))
    if size < 3 or size % 2 == 0:
        raise ValueError(f"kernel_size must be an odd number of 3 or more pixels, got {size}")

    def unknown(shape: Shape) -> Blur:
        if size > min(shape[1:]):
            raise ValueError(
                f"kernel_size is {size}, and pictures have {shape[1]} x {shape[2]} pixels: take a smaller one"
            )
        return Blur(delta((size, size)).float(), noise=noise or BEGUN)

    files = () if kernel is None else (asked["kernel"],)
    made = _alike("blind", unknown, {**asked, "kernel_size": size}, files)
    true = unknown if kernel is None else lambda shape: Blur(kernel, noise=noise)
    return replace(made, measure=true)


def _gray(noise: float, seed: int, degrade: bool, asked: Mapping[str, Any]) -> Stated:
    def whole(measured: Shape) -> Shape:
        if measured[0] != 1:
            raise ValueError("gray restores the colours of grey pictures, and these have some: to try it, degrade=True")
        return (3, *measured[1:])

    def without(shape: Shape) -> Grey:
        if shape[0] != 3:
            raise ValueError("gray takes the colours of clean pictures away, and these have none: give some in colour")
        return Grey(noise=noise)

    return Stated("gray", without, whole, without, {})


def _alike(
    name: ProblemName, of: Callable[[Shape], Problem], asked: Mapping[str, Any], inputs: tuple[Path, ...] = ()
) -> Stated:
    """A problem that measures pictures of the same shape."""
    options = {option: str(value) if isinstance(value, Path) else value for option, value in asked.items()}
    return Stated(name, of, lambda measured: measured, of, options, inputs)


@dataclass(frozen=True)
class Measured:
    """What was measured of pictures, as a verb that trains for it is told."""

    problem: Literal["inpaint", "super", "deblur", "gray"] | None = None
    """With --start, or --pairs of one clean set, what happened to the pictures: parts are missing, pixels are (super,
    which a start is for by default), they are blurred by a kernel that is known (deblur), or have lost their colour."""
    mask: Path | None = None
    """Of inpaint: a picture, white where they are seen and black where not, or an .npy array of 1 and 0."""
    box: float | None = None
    """Of inpaint: a box in the middle is missing, this share of each side."""
    half: Literal["right", "bottom"] | None = None
    """Of inpaint: this half is missing."""
    random: float | None = None
    """Of inpaint: this share of the pixels is missing, those that `restore --seed 0` misses."""
    factor: int | None = None
    """Of super: how many times more pixels a side is to have; 4 by default."""
    resize: Literal["average", "bicubic"] | None = None
    """Of super: how the pixels were lost, as means of blocks (by default) or by bicubic resizing."""
    kernel: Path | None = None
    """Of deblur: the kernel, an .npy array (h, w)."""
    border: Literal["circular", "zero"] | None = None
    """Of deblur: what was beyond the border, the other side (by default) or a middle grey."""
    noise: float = 0.0
    """With --problem, the standard deviation of the noise in what was measured, of pixels in [-1, 1]."""
    features: Path | None = None
    """With --start, the folder of a feature network: the loss has a perceptual part then."""

    def given(self) -> list[str]:
        """The flags that were given."""
        usual = Measured()
        names = [field.name for field in dataclasses.fields(self)]
        return [flag(name) for name in names if getattr(self, name) != getattr(usual, name)]

    def stated(self) -> Stated:
        """The problem; errors as `stated`."""
        asked = dataclasses.asdict(self)
        name, noise, _ = asked.pop("problem"), asked.pop("noise"), asked.pop("features")
        return stated(name or "super", noise, 0, False, asked)

    def options(self) -> dict[str, Any]:
        """The options that state it, as `command` takes them."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if flag(f.name) in self.given()}
        given.pop("features", None)
        return {"problem": "super", **given}


AsMeasured = Annotated[Measured, arg(name="")]
"""Options of a verb that trains for a problem, `--problem` and the like."""


_STATED: dict[ProblemName, Callable[[float, int, bool, Mapping[str, Any]], Stated]] = {
    "inpaint": _inpaint,
    "super": _super,
    "deblur": _deblur,
    "blind": _blind,
    "gray": _gray,
}


def read_mask(path: Path) -> Tensor:
    """A mask (H, W) of 0 and 1 from an .npy file of such, or a picture of black, hidden, and white, seen.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything else.
    """
    if path.suffix == ".npy":
        mask = torch.from_numpy(_numbers(path, "a mask"))
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(f"{path} must be of 0 (hidden) and 1 (seen), and holds other numbers: threshold it first")
        return mask == 1
    x = read_original(path).x
    if len(x) > 1 or not bool((x.abs() == 1).all()):
        what = "has colours" if len(x) > 1 else "has greys between"
        raise ValueError(f"{path} must be black (hidden) and white (seen), and {what}: save it in two tones")
    return x[0] == 1


def read_kernel(path: Path) -> Tensor:
    """A kernel (h, w) from an .npy file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is none: of another shape, or of other than real numbers.
    """
    if path.suffix != ".npy":
        raise ValueError(f"{path} is no .npy file: give a kernel as an array of numbers, np.save('kernel.npy', kernel)")
    return torch.from_numpy(_numbers(path, "a kernel"))


def _numbers(path: Path, what: str) -> np.ndarray:
    """The array (H, W) of a file, float32."""
    array = load_numpy(path)
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "buif" or not array.size:
        found = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "several arrays"
        raise ValueError(f"{path} holds {found}: expected {what}, real numbers (H, W)")
    return array.astype(np.float32)
