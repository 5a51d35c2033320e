"""`dsno check-teacher`: a teacher, verified before hours are spent on it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from dsno.checkpoint import write_json
from dsno.cli.console import say, show_verdict
from dsno.cli.options import Device, TeacherRef, Variant, device_of, new_file
from dsno.data.load import load_data
from dsno.nets.backbone import check_null
from dsno.teachers.check.run import check_teacher
from dsno.teachers.load import load_teacher

__all__ = ["CheckTeacher"]


@dataclass(frozen=True)
class CheckTeacher:
    """Verify a teacher before hours are spent on it; exit code 1 if it fails.

    In Python:

        from dsno import load_teacher
        from dsno.teachers.check.run import check_teacher
        from dsno.data.load import load_data
        print(check_teacher(load_teacher("runs/teacher"), load_data("digits").x))
    """

    teacher: Positional[TeacherRef] = "runs/teacher"
    variant: Variant = None
    device: Device = None
    data: str | None = None
    """What it was trained on, as `teach --data`; its own samples by default, which is weaker."""
    size: int | None = None
    """Resize the images of --data to this many pixels a side."""
    range: tuple[float, float] | None = None
    """LOW HIGH of the numbers in an array of images, 0 1 say, where they leave it open; -1 1 takes them as they are."""
    null: int | None = None
    """The label that stands for no class, which is not drawn."""
    dtype: str | None = None
    """Load its network in this dtype: float32, bf16, fp16."""
    levels: int = 12
    """Noise levels to denoise at."""
    rows: int | None = None
    """Samples at each level; 64 by default, 16 of a slow teacher."""
    patience: float = 60.0
    """Seconds after which no other convention is tried any more."""
    seed: int = 0
    """Determines the samples and the noise."""
    out: Path | None = None
    """Write the verdict as JSON, too."""
    overwrite: bool = False
    """Replace --out if it exists."""

    def run(self) -> int:
        began = time.perf_counter()
        if self.out is not None:
            new_file(self.out, self.overwrite, self.teacher, self.data)
        teacher = load_teacher(self.teacher, self.dtype, device_of(self.device), variant=self.variant)
        if self.null is not None:
            check_null(teacher, self.null, self.teacher)
        samples = None if self.data is None else load_data(self.data, size=self.size, range=self.range)
        x, labels = (None, None) if samples is None else (samples.x, samples.labels)
        if samples is not None and teacher.shape is not None and samples.shape != teacher.shape:
            raise ValueError(f"{self.data} has samples of shape {samples.shape}, the teacher makes {teacher.shape}")
        if labels is not None and teacher.classes is not None and int(labels.max()) >= teacher.classes:
            raise ValueError(f"{self.data} has labels up to {int(labels.max())}, the teacher {teacher.classes} classes")
        cond = labels if teacher.classes else None
        verdict = check_teacher(teacher, x, cond, self.seed, self.levels, self.rows, self.patience, self.null)
        if self.out is not None:
            write_json(self.out, verdict.to_dict())
        show_verdict(verdict)
        if verdict.ok:
            say(f"checked in {time.perf_counter() - began:.0f} s", f"dsno generate --teacher {self.teacher}")
        return 0 if verdict.ok else 1
