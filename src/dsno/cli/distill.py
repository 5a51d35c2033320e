"""`dsno distill`: a student by any method, whose options are made from what the method declares."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dsno.cli.bridges import is_bridge
from dsno.cli.console import progress, say
from dsno.cli.options import AsRead, Reading, StudentFolder, Training, Variant
from dsno.cli.words import command, refuse_others
from dsno.distillation.registry import METHODS, method_named
from dsno.outputs import check_apart, check_request
from dsno.teachers.prompts import null_of, under_guidance

if TYPE_CHECKING:
    from dsno.data.samples import Samples
    from dsno.denoise import Guided, Prediction
    from dsno.distillation.registry import Method
    from dsno.distillation.stages import Options
    from dsno.trajectories.sets import TrajectorySet

__all__ = ["Distill", "with_options"]


@dataclass(frozen=True)
class Distill:
    """Distil a teacher into a student of one pass or a few: by --method, which `dsno methods` lists.

    A method has options of its own: `dsno distill --method NAME --help` shows them, `dsno methods NAME` lists them.

    In Python:

        from dsno import TrajectorySet, distill, load_teacher
        distill(load_teacher("runs/teacher"), TrajectorySet("runs/trajectories"), "runs/student")
    """

    teacher: str = "runs/teacher"
    """The teacher the student starts from (by every method, of data alone too), as `generate --teacher` takes it."""
    variant: Variant = None
    student: StudentFolder | None = None
    """Folder of a student to go on from, which stays as it is; one is made from the teacher by default."""
    data: str = "runs/trajectories"
    """Folder of its trajectories, or where they were pushed to (hf://datasets/org/name, ...): fetched as they are
    needed. Of a method that needs samples: their ends, or an image set as `teach --data`."""
    out: Path = Path("runs/student")
    """Folder for the student."""
    method: Literal[tuple(METHODS)] = "operator"  # type: ignore[valid-type]
    """How to train it, and so what it needs and how many passes it makes: `dsno methods`."""
    reading: AsRead = field(default_factory=Reading)
    batch: int | None = None
    """Rows per step; 256 of methods that train on trajectories, 64 of others."""
    train: Training = field(default_factory=lambda: Training(steps=4000, lr=1e-3))
    resume: bool = False
    """Continue from the last checkpoint in --out, as Ctrl-C leaves one; --train.lr and --train.clip may differ."""
    overwrite: bool = False
    """Throw away the student in --out."""
    options: Annotated[object, tyro.conf.Suppress] = None
    """Those of the method; by default its own."""

    def run(self) -> None:
        from dsno.distillation.run import check_batch, distill
        from dsno.students.files import load_student
        from dsno.students.samplers import told_more
        from dsno.teachers.load import load_teacher
        from dsno.trajectories.sets import TrajectorySet

        check_apart(self.out, self.teacher, self.data, self.student)
        check_request(self.resume, self.overwrite)
        check_batch(self.batch)
        method = method_named(self.method)
        options: Options = method.options() if self.options is None else self.options  # type: ignore[assignment]
        student = None if self.student is None else load_student(self.student)
        samples = method.asks(options) != {"teacher"}
        # What cannot be drawn is that of the trajectories.
        reads = samples or (student is not None and told_more(student))
        solved = TrajectorySet(self.data) if reads and holds_trajectories(self.data) else None
        method.check_data(solved is not None, self.data)
        if is_bridge(self.teacher):
            return self._of_bridge(method, options, solved)
        teacher = load_teacher(self.teacher, variant=self.variant)
        data = self._samples(teacher) if samples and solved is None else solved
        if solved is not None and (given := self.reading.given()):
            raise ValueError(f"{given[0]} is of images, and {self.data} holds trajectories: leave it out")
        denoiser = self._guided(method, options, teacher, solved)
        with progress() as report:
            distill(
                denoiser,
                data,
                self.out,
                self.method,
                self.train,
                batch=self.batch,
                student=student,
                resume=self.resume,
                overwrite=self.overwrite,
                report=report,
                sources=self._sources(data is not None),
                **{f.name: getattr(options, f.name) for f in dataclasses.fields(options)},  # type: ignore[arg-type]
            )
        say(f"{method.student} in {self.out}", next_sample(self.out, method, options, solved))

    def _sources(self, reads: bool) -> dict[str, str]:
        """What the student is made of, in words."""
        data = {"data": self.data} if reads else {}
        student = {} if self.student is None else {"student": str(self.student)}
        return {"teacher": self.teacher, **data, **student}

    def _of_bridge(self, method: Method, options: Options, solved: TrajectorySet | None) -> None:
        """A student of a bridge, from its trajectories."""
        from dsno.bridge.files import load_bridge
        from dsno.bridge.student import student_from_bridge
        from dsno.distillation.run import distill

        refuse_others(self, {"student", "variant"}, "does not go with a bridge")
        if given := self.reading.given():
            raise ValueError(f"{given[0]} does not go with a bridge: leave it out")
        if method.asks(options) != {"trajectories"}:
            raise ValueError(
                f"a bridge is distilled by what learns from its trajectories alone, which {method.name} does not: take "
                "--method knowledge"
            )
        if solved is None:
            raise ValueError(
                f"a bridge is distilled from its trajectories, which {self.data} does not hold: "
                f"`dsno generate --teacher {self.teacher} --input PICTURES`"
            )
        bridge = load_bridge(self.teacher)
        solved.check_teacher(bridge)
        with progress() as report:
            distill(
                None,
                solved,
                self.out,
                self.method,
                self.train,
                batch=self.batch,
                student=student_from_bridge(bridge, solved.times.tolist()),
                resume=self.resume,
                overwrite=self.overwrite,
                report=report,
                sources={"teacher": self.teacher, "data": self.data},
                **{f.name: getattr(options, f.name) for f in dataclasses.fields(options)},  # type: ignore[arg-type]
            )
        say(f"{method.student} in {self.out}", next_sample(self.out, method, options, solved, "PICTURES"))

    def _guided(
        self, method: Method, options: Options, teacher: Prediction, solved: TrajectorySet | None
    ) -> Prediction | Guided:
        """The teacher, guided where its trajectories were or the method distils that, by what a diffusers model says of
        none."""
        from torch import Tensor

        from dsno.denoise import Guided
        from dsno.distillation.guided import GuidedOptions, check_guidance
        from dsno.distillation.run import null_of_set

        if isinstance(options, GuidedOptions):
            check_guidance(*options.guidance)
            if not teacher.classes:
                raise ValueError(
                    f"{method.name} needs a class-conditional teacher, and {self.teacher} is told no class: take "
                    "progressive for this one"
                )
            return under_guidance(self.teacher, teacher, options.guidance, null=options.null, variant=self.variant)
        if solved is None or null_of_set(solved) is not None:
            return teacher
        found = solved.manifest["teacher"]
        if found["class"] != "Guided":
            return teacher
        null = null_of(self.teacher, teacher, None, self.variant)
        return Guided(teacher, {"text": null} if isinstance(null, Tensor) else null, found["weight"])

    def _samples(self, teacher: Prediction) -> Samples:
        """Clean samples of an image set.

        Raises:
            ValueError: if they do not fit the teacher.
        """
        from dsno.nets.backbone import sample_shape
        from dsno.teachers.native import check_class_names

        try:
            images = self.reading.load(self.data)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.method} needs clean samples: {error}; or trajectories of the teacher, whose ends are samples "
                f"(`dsno generate --out {self.data}`)"
            ) from None
        if images.shape != sample_shape(teacher):
            raise ValueError(
                f"{self.data} has samples of shape {images.shape}, the teacher makes {sample_shape(teacher)}: resize "
                "the "
                "images (`--size`), or give the data it was trained on"
            )
        if teacher.classes and (images.labels is None or int(images.labels.max()) >= teacher.classes):
            found = "has no labels" if images.labels is None else f"has labels up to {int(images.labels.max())}"
            raise ValueError(
                f"{self.data} {found}, and {self.teacher} is told one of {teacher.classes} classes: give the data it "
                "was "
                "trained on, or its trajectories (`--data runs/trajectories`)"
            )
        if teacher.classes:
            check_class_names(self.teacher, images)
        return images


def with_options(arguments: Sequence[str]) -> type[Distill]:
    """The verb with the options of the method that the arguments name.

    Raises:
        ValueError: for an option of another method.
    """
    named = [b for a, b in pairwise([*arguments, ""]) if a == "--method"]
    named += [a.removeprefix("--method=") for a in arguments if a.startswith("--method=")]
    method = METHODS.get(named[-1] if named else "operator")
    if method is None:
        return Distill
    every = {name for other in METHODS.values() for name in other.names}
    for argument in arguments:
        name = argument.removeprefix("--").removeprefix("no-").partition("=")[0].replace("-", "_")
        if argument.startswith("--") and name in every - {*method.names}:
            if name == "passes":
                method.check_passes()
            takes = ", ".join(f"--{n.replace('_', '-')}" for n in method.names) or "none of its own"
            raise ValueError(f"{argument} is no option of the method {method.name}, which takes {takes}")
    flat: Any = Annotated[method.options, tyro.conf.arg(name="")]
    made = dataclasses.make_dataclass(
        "Distill", [("options", flat, field(default_factory=method.options))], bases=(Distill,), frozen=True
    )
    made.__doc__ = Distill.__doc__
    return made


def holds_trajectories(data: str) -> bool:
    """Whether `data` names trajectories, rather than an image set."""
    from dsno.trajectories.manifest import MANIFEST

    return "://" in data or (Path(data) / MANIFEST).is_file()


def next_sample(
    out: Path, method: Method, options: Options, data: TrajectorySet | None, pictures: str | None = None
) -> str:
    """The command that draws from the student that was made."""
    from dsno.distillation.guided import GuidedOptions
    from dsno.distillation.progressive import ProgressiveOptions
    from dsno.distillation.regression import has_weight

    weight: float | None = None
    if isinstance(options, GuidedOptions):
        weight = sum(options.guidance) / 2
    elif method.student == "operator" and data is not None and has_weight(data):
        weight = float(data[0]["cond"]["weight"])
    passes = options.passes if isinstance(options, ProgressiveOptions) else 1
    guidance = None if weight is None else f"{weight:.3g}"
    return command("sample", student=out, guidance=guidance, passes=passes if passes > 1 else None, input=pictures)
