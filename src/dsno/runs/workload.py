"""The workload of a run: what decides its cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dsno.denoise import Prediction
from dsno.solvers.named import SOLVERS
from dsno.train import TrainConfig

__all__ = ["Workload"]

BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}

HOUR = 3600.0


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

    def __post_init__(self) -> None:
        for name in ("batch", "train_batch", "teach_batch", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.count < 0 or not self.times:
            raise ValueError(f"a run has 0 or more trajectories of 1 or more frames, got {self.count} of {self.times}")
        if self.solver not in SOLVERS:
            raise ValueError(f"unknown solver {self.solver!r}: expected one of {', '.join(SOLVERS)}")

    @property
    def evaluations(self) -> int:
        """Rows that the teacher evaluates for one trajectory: 2 n - 1 for Heun's, else n; twice that if guided."""
        return (2 * self.steps - 1 if self.solver == "heun" else self.steps) * (2 if self.guided else 1)

    def trajectory_bytes(self, shape: tuple[int, ...], classes: int | None) -> int:
        """One trajectory on disk: seed, noise, the frames, and a label or weight of 8 and 4 bytes."""
        numbers = math.prod(shape) * (1 + len(self.targets) * len(self.times))
        return 8 + BYTES[self.stored] * numbers + (8 if classes else 0) + (4 if self.guided else 0)
