"""`dsno evaluate` and `dsno demo`: a student beside its teacher's solvers; a bridge at several numbers of calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dsno.bridge.student import starts_from_pictures
from dsno.cli.bridges import SamplerName, is_bridge, pairs_for
from dsno.cli.console import progress, say, show, speaks
from dsno.cli.options import AsRead, Reading, StudentFolder, Variant, launched
from dsno.cli.words import command, flag, refuse_others
from dsno.data.samples import Samples
from dsno.measure.results import Result
from dsno.nets.features import made_of
from dsno.outputs import claimed, writable
from dsno.report.compare import EVALUATION, by_class, compare, parts_of, set_apart
from dsno.report.crossings import CALLS, SAMPLERS, compare_calls
from dsno.runs.shipped import shipped
from dsno.students.origin import find_teacher, open_student

__all__ = ["Demo", "Evaluate"]


@dataclass(frozen=True)
class Evaluate:
    """Measure a student beside its teacher's solvers, or with --pairs a bridge at several numbers of calls, with the
    protocol stored next to every number.

    In Python:

        from dsno.report.compare import compare
        results = compare("runs/teacher", "runs/student", "runs/features", "digits", count=2048)
    """

    student: StudentFolder | None = None
    """Folder of the student; or digits, by default, or digits-classes, which ship with the package. With --pairs that
    of the bridge, if it is to be measured."""
    teacher: str | None = None
    """Its teacher, as `generate --teacher` takes it; the one that its folder notes by default."""
    variant: Variant = None
    features: Path | None = None
    """Folder of the feature network, which `dsno features` trains; the one beside the student, if it is of --data.
    With --pairs none by default, and then no distances."""
    data: str = "digits"
    """Image set to compare with: what was trained on."""
    held_out: str | None = None
    """Image set that nothing was trained on, read as --data is, or a share of --data to hold out, 0.1 say: distances to
    it, too, and whether the student copies --data."""
    reading: AsRead = field(default_factory=Reading)
    pairs: tuple[str, ...] = ()
    """Measure --teacher, a bridge, on these: degraded and clean pictures as `teach --pairs`, or clean ones alone if it
    was trained for a --problem. Those that it has not seen say what it has learned."""
    columns: tuple[str, ...] = ()
    """The columns of --pairs, degraded and clean."""
    calls: tuple[int, ...] = ()
    """Of a bridge, the network calls of a sample, each sampler at the most that it has within; 1 5 13 21 by default."""
    sampler: tuple[SamplerName, ...] = ()
    """Of a bridge, how it is solved; dbim2 odes3 ancestral by default."""
    samples: int | None = None
    """Of a bridge, samples of each picture; 4 by default."""
    count: int | None = None
    """Held-out noises, 2048 by default. Of a bridge pictures, 256 by default; with --features at most half of --pairs,
    as the others are what distances are to."""
    passes: tuple[int, ...] = ()
    """Passes to measure the student at, a row each; the fewest it was trained for by default."""
    fresh: bool = False
    """Noise the sample again between passes, which a student does by itself that was trained to."""
    guidance: float | None = None
    """The weight of guidance of a student of classes and its teacher; the least that it was trained for by default."""
    out: Path = Path("runs/evaluation")
    """Folder for results.json and report.html."""
    all: bool = False
    """Print all columns, kernel distance and diversity too."""
    overwrite: bool = False
    """Replace the evaluation in --out."""

    def run(self) -> None:
        if self.pairs:
            return self._bridge()
        for name in ("columns", "calls", "sampler", "samples"):
            if getattr(self, name) not in (None, ()):
                raise ValueError(f"{flag(name)} is of bridges: give --pairs, too, or leave it out")
        if is_bridge(self.teacher):
            raise ValueError(f"{self.teacher} is a bridge, which is measured on pairs: give --pairs DEGRADED CLEAN")
        folder = self.student or shipped() / "student"
        student = open_student(folder, variant=self.variant)
        if starts_from_pictures(student):
            raise ValueError(
                f"what {folder} holds starts from pictures, as a bridge does, and is measured on pairs beside it: give "
                "both, --teacher BRIDGE --pairs DEGRADED CLEAN"
            )
        own = str(shipped() / "teacher") if self.student is None else None
        teacher = self.teacher or own or find_teacher(folder, self.variant)
        accelerator = launched()
        data = self.reading.load(self.data)
        features = self.features or self._features(data)
        data, held_out = set_apart(data, self._held_out())
        # An evaluation that is to be replaced is not given for one that cannot be made.
        parts_of(teacher, folder, features, data, self.variant, self.guidance)
        read = [self.student, teacher, features, self.data, self.held_out]
        with claimed(self.out, EVALUATION, overwrite=self.overwrite, inputs=read), progress() as report:
            results = compare(
                teacher,
                folder,
                features,
                data,
                2048 if self.count is None else self.count,
                self.out,
                report,
                accelerator=accelerator,
                passes=self.passes,
                fresh=self.fresh or None,
                held_out=held_out,
                variant=self.variant,
                guidance=self.guidance,
            )
        self._show(results, command("export", student=self.student))

    def _show(self, results: Sequence[Result], after: str) -> None:
        if speaks():
            show(results, self.all)
            written = f"numbers in {self.out / 'results.json'}, pictures in {self.out / 'report.html'}"
            say(written, after)

    def _bridge(self) -> None:
        """A bridge at several numbers of calls."""
        refuse_others(self, {"data", "held_out", "passes", "fresh", "guidance", "variant"}, "does not go with --pairs")
        if self.teacher is None or not is_bridge(self.teacher):
            found = "" if self.teacher is None else f", and {self.teacher} is none"
            raise ValueError(f"--pairs are what a bridge is measured on{found}: give its folder, --teacher runs/bridge")
        pairs = pairs_for(self.teacher, self.pairs, self.columns, self.reading)
        read = [self.student, self.teacher, self.features, *self.pairs]
        with claimed(self.out, EVALUATION, overwrite=self.overwrite, inputs=read), progress() as report:
            results = compare_calls(
                self.teacher,
                pairs,
                self.out,
                self.calls or CALLS,
                self.sampler or SAMPLERS,
                4 if self.samples is None else self.samples,
                256 if self.count is None else self.count,
                self.student,
                self.features,
                report,
                accelerator=launched(),
            )
        self._show(results, command("generate", teacher=self.teacher, input=self.pairs[0]))

    def _held_out(self) -> Samples | float | None:
        """What --held-out names."""
        if self.held_out is None:
            return None
        try:
            return float(self.held_out)
        except ValueError:
            return self.reading.load(self.held_out)

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
    """The shipped digits student beside its teacher: a table, and report.html to look at, with digits on demand from
    the one that is told which.

    In Python:

        from dsno.runs.shipped import shipped
        from dsno.report.compare import by_class, compare
        w, c = shipped("digits"), shipped("digits-classes")
        told = by_class(c / "teacher", c / "student", (0, 2))
        compare(w / "teacher", w / "student", w / "features", count=320, page="report.html", more=told)
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
        told = shipped("digits-classes")
        with progress() as report:
            more = by_class(told / "teacher", told / "student", (0.0, 2.0))
            results = compare(*parts, "digits", self.count, report=report, page=self.out, more=more)
        show(results, self.all)
        say(
            f"report: {self.out.resolve()}",
            command("reproduce", "digits"),
            "trains all of this from nothing, resumable",
        )
