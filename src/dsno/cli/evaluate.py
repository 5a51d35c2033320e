"""`dsno evaluate` and `dsno demo`: a student beside its teacher's solvers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dsno.cli.console import progress, say, show
from dsno.cli.options import AsRead, Reading, Variant, launched
from dsno.cli.words import command
from dsno.data.samples import Samples
from dsno.nets.features import made_of
from dsno.outputs import claimed, writable
from dsno.report.compare import EVALUATION, compare, parts_of
from dsno.runs.shipped import shipped
from dsno.students.origin import find_teacher, open_student

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
    """Its teacher, as `generate --teacher` takes it; the one that its folder notes by default."""
    variant: Variant = None
    features: Path | None = None
    """Folder of the feature network, which `dsno features` trains; the one beside the student, if it is of --data."""
    data: str = "digits"
    """Image set to compare with."""
    reading: AsRead = field(default_factory=Reading)
    count: int = 2048
    """Held-out noises."""
    passes: tuple[int, ...] = ()
    """Passes to measure the student at, a row each; the fewest it was trained for by default."""
    fresh: bool = False
    """Noise the sample again between passes, instead of going on from the student's own state."""
    out: Path = Path("runs/evaluation")
    """Folder for results.json and report.html."""
    all: bool = False
    """Print all columns, kernel distance and diversity too."""
    overwrite: bool = False
    """Replace the evaluation in --out."""

    def run(self) -> None:
        folder = self.student or shipped() / "student"
        student = open_student(folder, variant=self.variant)
        if student.classes or student.guided:
            told = " and ".join(["a class"] * bool(student.classes) + ["a guidance weight"] * student.guided)
            weight = " --guidance W" * student.guided
            raise ValueError(
                f"{folder} is told {told}, and evaluate measures unconditional students: look at its samples (`dsno "
                f"sample --student {folder}{weight}`), or call dsno.measure.evaluate.evaluate with a condition (`cond`)"
            )
        own = str(shipped() / "teacher") if self.student is None else None
        teacher = self.teacher or own or find_teacher(folder, self.variant)
        accelerator = launched()
        first = accelerator is None or accelerator.is_main_process
        data = self.reading.load(self.data)
        features = self.features or self._features(data)
        # An evaluation that is to be replaced is not given for one that cannot be made.
        parts_of(teacher, folder, features, data, self.variant)
        read = [self.student, teacher, features, self.data]
        with claimed(self.out, EVALUATION, overwrite=self.overwrite, inputs=read), progress() as report:
            results = compare(
                teacher,
                folder,
                features,
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
            show(results, self.all)
            written = f"numbers in {self.out / 'results.json'}, pictures in {self.out / 'report.html'}"
            say(written, command("export", student=self.student))

    def _features(self, data: Samples) -> Path:
        """The feature network beside the student, or the one that ships with the package, of the data.

        Raises:
            FileNotFoundError: if neither is of the data; says how to make one.
        """
        beside = (self.student or shipped() / "student").parent / "features"
        found = [folder for folder in (beside, shipped() / "features") if made_of(folder) == data.name]
        if found:
            return found[0]
        free = beside if not beside.exists() else beside.with_name(f"features_{Path(data.name).stem}")
        raise FileNotFoundError(
            f"there are no features of {data.name} to measure in: train them, "
            f"`{command('features', **self.reading.options(self.data), out=free)}`, and give them, --features"
        )


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
    all: bool = False
    """Print all columns, kernel distance and diversity too."""

    def run(self) -> None:
        weights = shipped()
        parts = weights / "teacher", weights / "student", weights / "features"
        writable(self.out.parent)
        with progress() as report:
            results = compare(*parts, "digits", self.count, report=report, page=self.out)
        show(results, self.all)
        say(
            f"report: {self.out.resolve()}",
            command("reproduce", "digits"),
            "trains all of this from nothing, resumable",
        )
