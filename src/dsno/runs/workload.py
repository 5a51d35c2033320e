"""The workload of a run: what decides its cost, as data.

A run trains a teacher, or is given one; solves trajectories from noise; and trains a student on them. What it costs
follows from the networks, and from how many rows each of them evaluates. A run of a bridge is one (`Crossings`), and so
is the training of a learned start (`Starts`), whose student is what is trained: the predictor before the teacher.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dsno.condition import Cond
from dsno.denoise import Prediction, still
from dsno.inverse.start_loss import Learner, Shares
from dsno.inverse.start_net import PHASES, NoisePredictor
from dsno.nets.backbone import sample_shape
from dsno.solvers.named import SOLVERS, calls_of
from dsno.students.operator import student_from_teacher
from dsno.train import TrainConfig

__all__ = ["Crossings", "Starts", "Workload"]

BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Workload:
    """What a run consists of, as far as its cost goes.

    Attributes:
        name: Of the run.
        teacher: Makes the teacher; its weights do not matter, and it is called under the meta device, too.
        times: The times of the M frames.
        count: Trajectories; 0 where they exist already.
        solver: The solver that makes them, a name of `SOLVERS`.
        steps: Its steps.
        guided: Whether the teacher is guided: two rows for one.
        batch: Trajectories solved at once.
        targets: What is stored of each frame.
        stored: The dtype it is stored in.
        student: Arguments of `student_from_teacher` but for the teacher and the times.
        train: How the student is trained; None where none is.
        train_batch: Trajectories per step.
        others: As in `TrajectoryDistillation`.
        teach: How the teacher is trained; None where it is given.
        teach_batch: Samples per step of that.
        finish: How the student is finished by `identity`, behind that; None where it is not.
        finish_batch: Noises per step of it.
        finish_inner: The share of those that start from samples, noised again.

    Raises:
        ValueError: for batches or steps below 1, no frames, a negative `count`, or an unknown solver.
    """

    name: str
    teacher: Callable[[], Prediction]
    times: tuple[float, ...] = (0.5625, 0.25, 0.0625, 0.0)
    count: int = 20_000
    solver: str = "unipc3"
    steps: int = 16
    guided: bool = False
    batch: int = 256
    targets: tuple[str, ...] = ("x0",)
    stored: Literal["float16", "bfloat16", "float32"] = "float16"
    student: Mapping[str, Any] = field(default_factory=dict)
    train: TrainConfig | None = field(default_factory=TrainConfig)
    train_batch: int = 256
    others: float | None = None
    teach: TrainConfig | None = None
    teach_batch: int = 128
    finish: TrainConfig | None = None
    finish_batch: int = 64
    finish_inner: float = 0.0

    trains: ClassVar[str] = "distill"
    """What the stage is called that trains the student."""

    def __post_init__(self) -> None:
        for name in ("batch", "train_batch", "teach_batch", "finish_batch", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.count < 0 or not self.times:
            raise ValueError(f"a run has 0 or more trajectories of 1 or more frames, got {self.count} of {self.times}")
        if self.solver not in SOLVERS:
            raise ValueError(f"unknown solver {self.solver!r}: expected one of {', '.join(SOLVERS)}")

    @property
    def pairs(self) -> int:
        """Rows of one evaluation of the teacher: with the condition and, if guided, without."""
        return 2 if self.guided else 1

    @property
    def evaluations(self) -> int:
        """Rows that the teacher evaluates for one trajectory: one for each call, twice that if guided."""
        return calls_of(self.solver, self.steps) * self.pairs

    @property
    def supervised(self) -> list[tuple[float, tuple[int, ...]]]:
        """The kinds of a student's training steps: the share of the steps, and the frames that these supervise."""
        M = len(self.times)
        if self.others is None or M == 1:
            return [(1.0, tuple(range(M)))]
        return [(1 - self.others, (M - 1,)), (self.others, (0, M - 1))]

    def trajectory_bytes(self, shape: tuple[int, ...], classes: int | None) -> int:
        """One trajectory on disk: seed, noise, the frames, and a label or weight of 8 and 4 bytes."""
        numbers = math.prod(shape) * (1 + len(self.targets) * len(self.times))
        return 8 + BYTES[self.stored] * numbers + (8 if classes else 0) + (4 if self.guided else 0)

    def written(self, student: nn.Module) -> int:
        """How many numbers of a student stay on disk."""
        return sum(p.numel() for p in student.parameters())

    def own_teacher(self) -> Prediction:
        """A teacher to do with as one likes, with memory, of any weights."""
        return copy.deepcopy(self.teacher())

    def student_of(self, teacher: Prediction) -> nn.Module:
        """The student of a teacher.

        Raises:
            ValueError: if it does not fit the teacher.
        """
        return student_from_teacher(teacher, self.times, **self.student)


@dataclass(frozen=True)
class Crossings(Workload):
    """A run of a bridge: trained on pairs, or given; crossed from pictures; and its one-pass student trained.

    `teacher` makes its network as `dsno.bridge.student.as_teacher` does, which costs the same.

    Attributes:
        calls: Network calls of a trajectory.
    """

    times: tuple[float, ...] = (0.0,)
    calls: int = 20

    @property
    def evaluations(self) -> int:
        """Rows that the bridge evaluates for one trajectory."""
        return self.calls

    def trajectory_bytes(self, shape: tuple[int, ...], classes: int | None) -> int:
        """One trajectory on disk: $x_T$ in float32 beside what all have."""
        return super().trajectory_bytes(shape, classes) + 4 * math.prod(shape)


@dataclass(frozen=True)
class Starts(Workload):
    """The training of a learned start of a teacher, `train` in batches of `train_batch`.

    Attributes:
        channels: Widths of the noise predictor, and of the critic, which is of its size.
    """

    times: tuple[float, ...] = (0.0,)
    count: int = 0
    train_batch: int = 128
    channels: tuple[int, ...] = (32, 64)

    trains: ClassVar[str] = "start"

    def written(self, student: nn.Module) -> int:
        """The predictor's numbers."""
        assert isinstance(student, _Started)
        return super().written(student.learner.net)

    def student_of(self, teacher: Prediction) -> nn.Module:
        C, *spatial = sample_shape(teacher)
        like = next(teacher.parameters(), torch.zeros(()))
        with torch.device(like.device):
            net = NoisePredictor({"in_channels": C, "image_size": spatial, "channels": list(self.channels)})
            return _Started(Learner.of(net, Shares()), copy.deepcopy(teacher).requires_grad_(False))


class _Started(nn.Module):
    """What a training step of a start does, called as a student is: predictor, frozen teacher, and the critic of both
    sides and of the predictor."""

    def __init__(self, learner: Learner, teacher: Prediction) -> None:
        super().__init__()
        self.learner, self.teacher = learner, teacher

    def forward(self, y0: Tensor, cond: Cond | None, start: float, frames: tuple[int, ...]) -> Tensor:
        p, critic = y0.new_full((len(y0),), PHASES[0]), self.learner.critic
        assert critic is not None
        x0_hat = still(self.teacher, self.learner.net.noise(y0, p, y0), p, cond)
        said = critic(torch.cat([y0, x0_hat.detach()]), torch.cat([p, p]))
        return torch.cat([x0_hat, said, still(critic, x0_hat, p)])
