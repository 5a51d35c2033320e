"""What a distillation method is given, and the stages it makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dsno.denoise import Denoiser
from dsno.schedule import Schedule
from dsno.trajectories.sets import TrajectorySet

__all__ = ["Given", "Stage", "check_guidance"]


@dataclass(frozen=True)
class Given:
    """What a method may draw on.

    Attributes:
        teacher: $D$; where guidance is distilled, a `Guided` that reads its weight from the condition. None for the velocity
            of the data, of a method that can do without (`meanflow`, `shortcut`) or never asks.
        schedule: Its path.
        steps: Optimiser steps of all stages together.
        batch: Rows per step, over all processes.
        seed: With the step, determines every batch.
        x: Clean samples (N, *shape), or None.
        labels: (N,) their labels, or None.
        trajectories: The teacher's trajectories, or None.
        passes: What the student is to make, of a method that is trained for a number of passes.
        guidance: The range [low, high] of guidance weights, of a method that has one.
        derivative: How derivatives of the student are taken (`dsno.distillation.flowmaps`); None is the method's own way.
    """

    teacher: Denoiser | None
    schedule: Schedule
    steps: int
    batch: int = 128
    seed: int = 0
    x: Tensor | None = None
    labels: Tensor | None = None
    trajectories: TrajectorySet | None = None
    passes: int = 1
    guidance: tuple[float, float] = (0.0, 4.0)
    derivative: str | None = None

    @property
    def denoiser(self) -> Denoiser:
        """The teacher.

        Raises:
            ValueError: if there is none.
        """
        if self.teacher is None:
            raise ValueError(
                "this method asks the teacher at every step and there is none: give it (`--teacher`), or take a method that "
                "learns from data alone, such as consistency-training (`dsno methods`)"
            )
        return self.teacher

    @property
    def samples(self) -> Tensor:
        """The clean samples.

        Raises:
            ValueError: if there are none.
        """
        if self.x is None:
            raise ValueError(
                "this method noises clean samples and there are none: give data (`--data digits`, a folder of images), or "
                "trajectories of the teacher, whose ends are samples (`--data runs/trajectories`)"
            )
        return self.x


def check_guidance(low: float, high: float) -> None:
    """Make sure that [low, high] is a range of guidance weights.

    Raises:
        ValueError: unless 0 <= low < high < infinity.
    """
    if not 0 <= low < high < math.inf:
        raise ValueError(
            f"guidance is a range of weights, LOW HIGH with 0 <= LOW < HIGH, got {low:g} {high:g}: the range of the paper is "
            "0 4 (`--guidance 0 4`), where 0 is the conditional model"
        )


@dataclass(frozen=True)
class Stage:
    """A part of a method's training.

    Attributes:
        name: Names its folder.
        steps: Optimiser steps.
        make: From the student as the stages before left it to what is trained (the student itself, or a module that
            holds it) and the objective. Called once, right before the stage; where the objective needs the student as it
            was, it copies it.
        lr: What the run's learning rate is multiplied by; less for fine-tuning.
    """

    name: str
    steps: int
    make: Callable[[nn.Module], tuple[nn.Module, Any]]
    lr: float = 1.0
