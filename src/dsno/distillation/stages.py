"""What a distillation method is given, the options it declares, and the stages it makes of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from dsno.denoise import Denoiser, Prediction
from dsno.schedule import Schedule
from dsno.students.flowmap import FlowMap, flow_map_from_teacher
from dsno.students.samplers import Student
from dsno.train import Objective
from dsno.trajectories.sets import TrajectorySet

__all__ = ["FlowMapOptions", "Given", "Options", "Stage"]


@dataclass(frozen=True)
class Given:
    """What a method may draw on.

    Attributes:
        teacher: $D$; where guidance is distilled, a `Guided` that reads its weight from the condition. None for the
            velocity of the data, of a method that can do without or never asks.
        schedule: Its schedule.
        steps: Optimiser steps of all stages together.
        batch: Rows per step, over all processes.
        seed: With the step, determines every batch.
        x: Clean samples (N, *shape), or None.
        labels: (N,) their labels, or None.
        trajectories: The teacher's trajectories, or None.
    """

    teacher: Denoiser | None
    schedule: Schedule
    steps: int
    batch: int = 64
    seed: int = 0
    x: Tensor | None = None
    labels: Tensor | None = None
    trajectories: TrajectorySet | None = None

    @property
    def denoiser(self) -> Denoiser:
        """The teacher.

        Raises:
            ValueError: if there is none.
        """
        if self.teacher is None:
            raise ValueError(
                "this method asks the teacher at every step and there is none: give one, or take a method "
                "that learns from data alone, such as consistency-training (`dsno methods`)"
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
                "this method noises clean samples and there are none: give some as data, or trajectories of the "
                "teacher, whose ends are samples"
            )
        return self.x

    @property
    def solved(self) -> TrajectorySet:
        """The trajectories.

        Raises:
            ValueError: if there are none.
        """
        if self.trajectories is None:
            raise ValueError(
                "this method learns from the teacher's trajectories and there are none: make them, "
                "`generate(...)`, and give them as data"
            )
        return self.trajectories


class Options(Protocol):
    """The options of a method: a frozen dataclass whose fields, JSON-able, are documented each by the string below it.

    The command line, the notes of a student and the table in the documentation are made from it.
    """

    def student(self, teacher: Prediction, given: Given) -> Student:
        """What the method trains, before training: around a copy of the teacher.

        Raises:
            ValueError: if the teacher's network cannot be made one.
        """


class FlowMapOptions:
    """What the options of methods that train a `FlowMap` have in common."""

    @property
    def exact(self) -> bool:
        """Whether the loss takes exact derivatives of the student, which its layers then have to have."""
        return False

    def student(self, teacher: Prediction, given: Given) -> FlowMap:
        """A flow map around a copy of the teacher."""
        return flow_map_from_teacher(teacher)


@dataclass(frozen=True)
class Stage:
    """A part of a method's training. Neither making one nor training it changes anything but the weights of the
    student, of which `make` may freeze some for as long as it trains.

    Attributes:
        name: Names its folder.
        steps: Optimiser steps.
        make: From the student as the stages before left it to what is trained (the student itself, or a module that
            holds it) and the objective. Called once, right before the stage; where the objective needs the student as
            it was, it copies it.
        became: What the student is behind the stage: the same network, said to be good for what it was trained for.
        lr: What the run's learning rate is multiplied by; less for fine-tuning.
        says: A line to print at the start.
    """

    name: str
    steps: int
    make: Callable[[Any], tuple[nn.Module, Objective]]
    became: Callable[[Any], Student] = lambda student: student
    lr: float = 1.0
    says: str = ""
