r"""A picture that somebody sent, restored: what `dsno restore` does, of one picture.

What happened to it is one of five problems, stated by a number at most: parts that were painted over are missing, a
side has `factor` times fewer pixels, it is blurred by a Gaussian of standard deviation `blur` that is known or not, or
it has lost its colours. A picture that is `whole` is measured first, and what comes out is compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dsno.app.draw import STEPS, Tell
from dsno.app.models import Ask, Model
from dsno.condition import Cond
from dsno.data.originals import Original, read_original
from dsno.inverse.blur import Blur
from dsno.inverse.kernels import delta, gaussian
from dsno.inverse.named import restorer_named, usual
from dsno.inverse.operators import Downsample, Grey, Mask
from dsno.inverse.problem import Problem
from dsno.runs.restore import restore
from dsno.runs.task import Task, Worker

__all__ = ["PROBLEMS", "SAMPLES", "Mended", "Wish", "mend"]

Name = Literal["inpaint", "super", "deblur", "blind", "gray"]

PROBLEMS: tuple[Name, ...] = get_args(Name)
"""What may have happened to a picture."""

SAMPLES = 16
"""The most restorations of a picture."""

BEGUN = 0.02
"""The noise that a blind method begins with where it is estimated."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Wish:
    """How a picture is to be restored.

    Attributes:
        problem: What happened to it.
        whole: Whether it is whole, and is to be measured first.
        factor: Of super, how many times more pixels a side is to have.
        blur: Of deblur and blind, the standard deviation of the kernel in pixels.
        noise: The standard deviation of the noise in what was measured, of pixels in [-1, 1].
        method: A name of `dsno.inverse.named.RESTORERS`; the first to try by default.
        steps: Steps from noise to picture.
        samples: Restorations.
    """

    problem: str = "inpaint"
    whole: bool = False
    factor: int = 2
    blur: float = 1.0
    noise: float = 0.0
    method: str | None = None
    steps: int = 50
    samples: int = 1


@dataclass(frozen=True)
class Mended:
    """Restorations of a picture.

    Attributes:
        pictures: (C, H, W) in [-1, 1], by what each is: `seed 0`, `mean`, `spread`, `input`, `kernel`.
        measures: How good they are, as `restored.json` has it of a picture.
        cost: What they cost, likewise.
    """

    pictures: Mapping[str, Tensor]
    measures: Mapping[str, Any]
    cost: Mapping[str, Any]


def mend(
    model: Model,
    picture: Original,
    wish: Wish,
    ask: Ask,
    hidden: Tensor | None = None,
    tell: Tell = lambda done, total: None,
) -> Mended:
    """Restore a picture.

    Arguments:
        model: A teacher.
        picture: As it was measured, or whole.
        wish: How.
        ask: What the teacher is told, and the first seed.
        hidden: (H, W) bool, what is missing of inpaint.
        tell: Told of the network's calls.

    Raises:
        FloatingPointError, ValueError: as `dsno.runs.restore.restore` does; for a student; for another problem, or
            numbers that it cannot be stated by.
    """
    problem, whole, measure = _stated(wish, hidden, picture.x.shape[-2:])
    if not 1 <= wish.steps <= STEPS or not 1 <= wish.samples <= SAMPLES:
        raise ValueError(
            f"steps must be in [1, {STEPS}] and samples in [1, {SAMPLES}], got {wish.steps} and {wish.samples}"
        )
    denoiser = model.denoiser(ask.guidance)
    method = restorer_named(wish.method or usual(wish.problem, model.latents is not None), wish.problem, wish.noise)
    worker = Worker(denoiser, model.schedule, model.shape, method, wish.steps, model.latents, model.device)
    original = replace(picture, name="picture")
    task = Task(
        [original], problem, whole, measure if wish.whole else None, None, wish.samples, ask.seed, _told(model, ask)
    )
    with TemporaryDirectory() as folder:
        held = restore(worker, task, Path(folder), report=lambda stage, done, total, text: tell(done, total))
        (row,) = held["pictures"]
        files = {_called(file, ask.seed): Path(folder) / file for file in row["files"] if file.endswith(".png")}
        pictures = {name: read_original(path).x for name, path in files.items()}
    return Mended(pictures, row, held["cost"])


def _called(file: str, seed: int) -> str:
    """What a file of `Restoration.files` is."""
    part = Path(file).stem.removeprefix("picture").removeprefix("-").replace("-", " ")
    return part or f"seed {seed}"


def _told(model: Model, ask: Ask) -> Callable[[Tensor], Cond] | None:
    """What the teacher is told of a picture: a class that nobody said is none, and not one that is drawn."""
    if model.classes and ask.label is None:
        if model.null is None:
            raise ValueError(f"{model.name} is told a class: give that of the picture")
        null = model.null
        return lambda numbers: torch.full_like(numbers, null)
    cond = model.told(ask, torch.zeros(1, dtype=torch.int64))
    return None if cond is None else lambda numbers: cond


def _stated(
    wish: Wish, hidden: Tensor | None, size: tuple[int, ...]
) -> tuple[Callable[[Shape], Problem], Callable[[Shape], Shape], Callable[[Shape], Problem]]:
    """The problem of pictures of a shape, the shape of a picture from that of what was measured, and the problem that
    whole ones are measured by."""
    if wish.problem == "inpaint":
        if hidden is None or not bool(hidden.any()):
            raise ValueError("nothing is missing: paint over what is to be filled")
        mask = Mask(~hidden, wish.noise)
        return lambda shape: mask, lambda measured: measured, lambda shape: mask
    if wish.problem == "super":
        small = Downsample(wish.factor, noise=wish.noise)
        larger = lambda measured: (measured[0], *(n * wish.factor for n in measured[1:]))  # noqa: E731
        return lambda shape: small, larger, lambda shape: small
    if wish.problem in ("deblur", "blind"):
        side = 2 * math.ceil(2 * wish.blur) + 1 if 0 < wish.blur < math.inf else 0
        if not 3 <= side <= min(size):
            raise ValueError(
                f"blur must be above 0, and its kernel of {side} pixels no larger than the picture, got {wish.blur}"
            )
        blur = Blur(gaussian((side, side), wish.blur).float(), noise=wish.noise)
        unknown = Blur(delta((side, side)).float(), noise=wish.noise or BEGUN)
        asked = blur if wish.problem == "deblur" else unknown
        return lambda shape: asked, lambda measured: measured, lambda shape: blur
    if wish.problem == "gray":
        grey = Grey(noise=wish.noise)
        return lambda shape: grey, lambda measured: (3, *measured[1:]), lambda shape: grey
    raise ValueError(f"unknown problem {wish.problem!r}: expected one of {', '.join(PROBLEMS)}")
