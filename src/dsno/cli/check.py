"""`dsno check-teacher`: a teacher, verified before hours are spent on it; of a bridge, where its start should end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import Positional

from dsno.checkpoint import write_json
from dsno.cli.bridges import SamplerName, check_starts, is_bridge
from dsno.cli.console import say, show_verdict
from dsno.cli.options import AsRead, Device, Reading, TeacherRef, Variant, device_of, new_file
from dsno.cli.words import command, refuse_others
from dsno.nets.backbone import check_null
from dsno.teachers.check.run import check_teacher
from dsno.teachers.load import load_teacher

__all__ = ["CheckTeacher"]


@dataclass(frozen=True)
class CheckTeacher:
    """Verify a teacher before hours are spent on it; exit code 1 if it fails. Of a bridge, find where its stochastic
    start should end for so many --calls, from the degraded pictures in --data.

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
    reading: AsRead = field(default_factory=Reading)
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
    calls: int | None = None
    """Of a bridge, the network calls of a sample; 13 by default."""
    sampler: SamplerName | None = None
    """Of a bridge, how it is solved; dbim2 by default."""
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
        if is_bridge(self.teacher):
            return self._bridge()
        for name in ("calls", "sampler"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"--{name} is of bridges, and {self.teacher} is none: give a bridge's folder, or leave it out"
                )
        teacher = load_teacher(self.teacher, self.dtype, device_of(self.device), variant=self.variant)
        if self.null is not None:
            check_null(teacher, self.null, self.teacher)
        samples = None if self.data is None else self.reading.load(self.data)
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
            say(f"checked in {time.perf_counter() - began:.0f} s", command("generate", teacher=self.teacher))
            return 0
        data = {} if self.data is None else self.reading.options(self.data)
        again = command("check-teacher", self.teacher, variant=self.variant, **data, null=self.null, dtype=self.dtype)
        say("", again, "once that is mended")
        return 1

    def _bridge(self) -> int:
        """Try where the start of a bridge may end."""
        refuse_others(self, {"variant", "null", "dtype"}, "does not go with a bridge")
        if self.data is None:
            raise ValueError("a bridge starts from pictures: give some degraded ones, --data FOLDER")
        rows, name = self.rows or 8, self.sampler or "dbim2"
        start = self.reading.load(self.data).x[:rows]
        calls = 13 if self.calls is None else self.calls
        verdict = check_starts(Path(self.teacher), start, calls, name, self.seed, device_of(self.device))
        if self.out is not None:
            write_json(self.out, verdict.to_dict())
        show_verdict(verdict)
        say(f"checked {name} with {calls} calls", command("sample", bridge=self.teacher, input=self.data))
        return 0
