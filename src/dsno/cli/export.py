"""`dsno export`: the one-pass sampler, taken to where there is no Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dsno.app.export import export_onnx, export_program
from dsno.cli.console import say
from dsno.cli.options import StudentFolder, Variant, new_file
from dsno.cli.words import command
from dsno.runs.shipped import shipped
from dsno.students.origin import open_student

__all__ = ["Export"]

WRITERS = {".onnx": export_onnx, ".pt2": export_program}
"""What writes a file, by the end of its name."""


@dataclass(frozen=True)
class Export:
    """Write the one-pass sampler as ONNX or as a torch.export program, checked against the student.

    In Python:

        from dsno import load_student
        from dsno.app.export import export_onnx, export_program
        student = load_student("runs/student")
        export_onnx(student, "runs/student.onnx")
        export_program(student, "runs/student.pt2")
    """

    student: StudentFolder | None = None
    """Folder of the student; or digits, by default, or digits-classes, which ship with the package."""
    teacher: str | None = None
    """Its teacher, of a student that is an adapter of one; the one that its folder notes by default."""
    variant: Variant = None
    out: Path = Path("student.onnx")
    """The file: .onnx, or .pt2 for torch.export; NAME.onnx.json beside it says what it takes."""
    batch: int = 2
    """Batch to trace with, and the only one allowed if --no-dynamic."""
    dynamic: bool = True
    """Allow any batch."""
    tolerance: float = 1e-3
    """Largest difference from the student, relative to its largest value."""
    overwrite: bool = False
    """Replace --out if it exists."""

    def run(self) -> None:
        if self.out.suffix not in WRITERS:
            raise ValueError(f"{self.out} is neither .onnx nor .pt2: the name says what is written")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        new_file(self.out, self.overwrite, self.student, self.teacher)
        student = open_student(self.student or shipped() / "student", self.teacher, self.variant)
        WRITERS[self.out.suffix](student, self.out, self.batch, dynamic=self.dynamic, tolerance=self.tolerance)
        say(f"sampler in {self.out}, described in {self.out}.json", command("sample", student=self.student))
