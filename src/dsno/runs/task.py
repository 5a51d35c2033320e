"""Who restores, and what: a teacher with a method, and pictures with a problem.

A picture may be larger than the teacher's samples, or something that its samples have to be decoded to: what the
worker is asked for is a *canvas*, the shape of the samples that are, or decode to, pictures of a given shape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsno.condition import Cond
from dsno.data.originals import Original
from dsno.denoise import Denoiser
from dsno.grids import uniform
from dsno.inverse.colours import ColourFix
from dsno.inverse.decoded import Decoded
from dsno.inverse.operators import Mask
from dsno.inverse.problem import Problem, noise_of
from dsno.inverse.restore import Restorer
from dsno.inverse.tiles import Tiled
from dsno.schedule import Schedule
from dsno.seeds import noise, seed_range
from dsno.teachers.latents import Latents

__all__ = ["ROWS", "Task", "Worker", "shown"]

MEASURED = 2**32 - 1
"""The stream of the noise that clean pictures are measured with: the last, far from those of a chain."""

ROWS = 64
"""Rows of the network at once."""


@dataclass(frozen=True)
class Worker:
    """Who restores: a teacher with a method.

    Attributes:
        denoiser: The teacher, guided or not.
        schedule: The schedule it was trained on.
        shape: The shape of its samples, (C, H, W).
        method: Makes the restorer of a grid: one of `dsno.inverse.named.RESTORERS`, with its options.
        steps: Steps of the uniform grid that it goes through.
        latents: Decodes samples into pictures, if they are latents.
        device: Where it is.
        colour_fix: How the pictures get the colours of what was measured, if they do (`dsno.inverse.colours`).

    Raises:
        ValueError: for less than one step.
    """

    denoiser: Denoiser
    schedule: Schedule
    shape: tuple[int, ...]
    method: Callable[[Tensor], Restorer]
    steps: int
    latents: Latents | None = None
    device: torch.device | str = "cpu"
    colour_fix: ColourFix | None = None

    def __post_init__(self) -> None:
        uniform(self.steps)

    @functools.cached_property
    def picture(self) -> tuple[int, ...]:
        """The shape of the pictures that it makes."""
        if self.latents is None:
            return self.shape
        with torch.no_grad():
            return tuple(self.latents.decode(torch.zeros(1, *self.shape, device=self.device)).shape[1:])

    def canvas(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a sample that is, or decodes to, a picture of `shape`, called `name` in messages.

        Raises:
            ValueError: for another number of channels, or less than the teacher makes; if that are no pictures.
        """
        if len(self.picture) != 3 or self.picture[0] not in (1, 3):
            raise ValueError(f"pictures have 1 or 3 channels, and the teacher makes samples of shape {self.picture}")
        C, *sides = shape
        channels, *least = self.picture
        if channels != C:
            found, makes = ("in grey", "in colour") if C == 1 else ("in colour", "in grey")
            how = "convert it to RGB, or colour it, problem='gray'" if C == 1 else "take one of colours, or convert it"
            raise ValueError(f"{name} is restored {found}, and the teacher makes pictures {makes}: {how}")
        if any(n < w for n, w in zip(sides, least, strict=True)):
            raise ValueError(
                f"{name} is restored to {_size(sides)} pixels, and the teacher makes {_size(least)}: enlarge or pad it "
                "first, or take a teacher of smaller pictures; only larger ones are cut into tiles"
            )
        scales = [w // n for w, n in zip(least, self.shape[1:], strict=True)]
        if any(n % k for n, k in zip(sides, scales, strict=True)):
            raise ValueError(
                f"{name} is restored to {_size(sides)} pixels, and each of the teacher's latents stands for "
                f"{_size(scales)}: crop or pad it to whole ones"
            )
        return (self.shape[0], *(n // k for n, k in zip(sides, scales, strict=True)))

    def on(self, canvas: tuple[int, ...]) -> tuple[Denoiser, int]:
        """The denoiser of samples of a shape, and the network's rows for each of its own: one for each tile, where the
        shape is not the teacher's."""
        if canvas == self.shape:
            return self.denoiser, 1
        tiled = Tiled(self.denoiser, self.shape, canvas, limit=ROWS)
        return tiled, tiled.tiles

    def stated(self, problem: Problem) -> Any:
        """A problem of pictures for its samples: through the decoder, where they are latents."""
        return problem if self.latents is None else Decoded(problem, self.latents)


@dataclass(frozen=True)
class Task:
    """What is restored.

    Attributes:
        pictures: What was measured, or clean ones with `measure`.
        problem: Makes the problem of pictures of a shape (C, H, W).
        whole: The shape of a picture from that of what was measured of it.
        measure: If the pictures are clean, makes the problem that they are measured by first; they are their own
            references then.
        references: What should come out, by name, where it is known.
        samples: Restorations of each picture.
        seed: The first seed.
        condition: What the teacher is told of pictures, a function of their numbers (B,).
        array: Whether the pictures came in an array, and are written as one, too.

    Raises:
        ValueError: for less than one sample.
    """

    pictures: Sequence[Original]
    problem: Callable[[tuple[int, ...]], Problem]
    whole: Callable[[tuple[int, ...]], tuple[int, ...]]
    measure: Callable[[tuple[int, ...]], Problem] | None = None
    references: Mapping[str, Tensor] | None = None
    samples: int = 1
    seed: int = 0
    condition: Callable[[Tensor], Cond] | None = None
    array: bool = False

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")

    @property
    def seeds(self) -> Tensor:
        """Of the samples of each picture, (S,)."""
        return seed_range(self.seed, self.samples)

    def shape(self, picture: Original) -> tuple[int, ...]:
        """The shape of what a picture is restored to."""
        given = tuple(picture.x.shape)
        return self.whole(given) if self.measure is None else given

    def reference(self, picture: Original) -> Tensor | None:
        """What a picture should be restored to, where it is known.

        Raises:
            ValueError: if there are references, and none of this name, or of another shape.
        """
        if self.measure is not None:
            return picture.x
        if self.references is None:
            return None
        if (found := self.references.get(picture.name)) is None:
            raise ValueError(f"there is no reference of {picture.name}: expected a picture of that name, of any suffix")
        if found.shape != self.shape(picture):
            raise ValueError(
                f"the reference of {picture.name} is {shown(found.shape)}, and it is restored to "
                f"{shown(self.shape(picture))}: give the picture that should come out"
            )
        return found

    def measured(self, problem: Problem, numbers: Sequence[int]) -> Tensor:
        """What was measured of pictures of one size, (B, *measured); of clean ones it is measured now.

        What a mask hides is 0, whatever the picture has there.
        """
        y = torch.stack([self.pictures[n].x for n in numbers])
        if self.measure is not None:
            problem = self.measure(tuple(y.shape[1:]))
            y = problem.A(y)
            if (tau := noise_of(problem)) > 0:
                y = y + tau * noise([self.seed + n for n in numbers], y.shape[1:], MEASURED)
        return problem.A(y) if isinstance(problem, Mask) else y


def shown(shape: Sequence[int]) -> str:
    """A picture's shape (C, H, W) for messages: `8 x 12 pixels in grey`."""
    return f"{_size(shape[1:])} pixels {'in grey' if shape[0] == 1 else 'in colour' if shape[0] == 3 else ''}".strip()


def _size(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))
