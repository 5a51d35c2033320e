"""`dsno evaluate` and `dsno demo`: a student beside its teacher's solvers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dsno.cli.console import progress, say, show
from dsno.cli.options import Variant, launched
from dsno.data.load import load_data
from dsno.outputs import claimed, writable
from dsno.report.compare import EVALUATION, compare
from dsno.runs.shipped import shipped
from dsno.students.files import load_student

__all__ = ["Demo", "Evaluate"]


@dataclass(frozen=True)
class Evaluate:
    """Measure a student beside its teacher's solvers, with the protocol stored next to every number.

    In Python:

        from dsno.report.compare import compare
        results = compare("runs/teacher", "runs/student", "runs/features", "digits", count=2048)
    """

    student: Path | None = None
    """Folder of the student; the shipped one by default."""
    teacher: str | None = None
    """Its teacher, as `generate --teacher` takes it; the shipped one by default."""
    variant: Variant = None
    features: Path | None = None
    """Folder of the feature network; the shipped one by default."""
    data: str = "digits"
    """Image set to compare with."""
    size: int | None = None
    """Resize its images to this many pixels a side."""
    range: tuple[float, float] | None = None
    """LOW HIGH of the numbers in an array of images, 0 1 say, where they leave it open; -1 1 takes them as they are."""
    count: int = 2048
    """Held-out noises."""
    passes: tuple[int, ...] = ()
    """Passes to measure the student at, a row each; the fewest it was trained for by default."""
    fresh: bool = False
    """Noise the sample again between passes, instead of going on from the student's own state."""
    out: Path = Path("runs/evaluation")
    """Folder for results.json and report.html."""
    overwrite: bool = False
    """Replace the evaluation in --out."""

    def run(self) -> None:
        folder = self.student or shipped() / "student"
        student = load_student(folder)
        if student.classes or student.guided:
            told = " and ".join(["a class"] * bool(student.classes) + ["a guidance weight"] * student.guided)
            raise ValueError(
                f"{folder} is told {told}, and evaluate measures unconditional students: look at its samples (`dsno "
                f"sample --student {folder}`), or call dsno.measure.evaluate.evaluate with a condition (`cond`)"
            )
        accelerator = launched()
        first = accelerator is None or accelerator.is_main_process
        read = [self.student, self.teacher, self.features, self.data]
        data = load_data(self.data, size=self.size, range=self.range)
        with claimed(self.out, EVALUATION, overwrite=self.overwrite, inputs=read), progress() as report:
            results = compare(
                self.teacher or shipped() / "teacher",
                folder,
                self.features or shipped() / "features",
                data,
                self.count,
                self.out,
                report,
                accelerator=accelerator,
                passes=self.passes,
                fresh=self.fresh,
                variant=self.variant,
            )
        if first:
            show(results)
            print(f"numbers in {self.out / 'results.json'}, pictures in {self.out / 'report.html'}")


@dataclass(frozen=True)
class Demo:
    """The shipped digits student beside its teacher: a table, and report.html to look at.

    In Python:

        from dsno.runs.shipped import shipped
        from dsno.report.compare import compare
        w = shipped("digits")
        compare(w / "teacher", w / "student", w / "features", "digits", count=320, page="report.html")
    """

    out: Path = Path("report.html")
    """The report."""
    count: int = 320
    """Noises."""

    def run(self) -> None:
        weights = shipped()
        parts = weights / "teacher", weights / "student", weights / "features"
        writable(self.out.parent)
        with progress() as report:
            results = compare(*parts, "digits", self.count, report=report, page=self.out)
        show(results)
        say(f"report: {self.out.resolve()}", "dsno reproduce digits   (trains all of this from nothing, resumable)")
