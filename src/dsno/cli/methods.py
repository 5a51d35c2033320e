"""Verbs about methods: list them, and cite what a run used; and `dsno distill --method` for all but the operator's own."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tyro.conf import Positional

from dsno.cli.console import progress, say, show_methods

if TYPE_CHECKING:
    from torch import Tensor

    from dsno.cli.students import Distill
    from dsno.denoise import Denoiser, Prediction
    from dsno.distillation.registry import Method
    from dsno.trajectories.sets import TrajectorySet

__all__ = ["Cite", "Methods", "distill_method"]

COMMON = ("teacher", "data", "out", "method", "batch", "train", "resume", "overwrite")
LIFT = ("target", "where", "told", "once", "modes", "train_only")
REGRESSION = ("weights", "distance", "features", "others")


@dataclass(frozen=True)
class Methods:
    """List the methods of distillation: what each needs, how many passes it makes, where it is from, when to choose it.

    Every student starts from a teacher's weights; a method that needs no teacher does not ask it afterwards.

    In Python:

        from dsno.distillation.registry import METHODS
        for name, method in METHODS.items():
            print(name, method.needs, method.passes, method.choose)
    """

    def run(self) -> None:
        from dsno.distillation.registry import METHODS
        from dsno.references import REFERENCES

        rows = [
            {
                "method": method.name, "trains": method.student, "needs": " + ".join(method.needs),
                "passes": method.passes, "reference": REFERENCES[method.references[0]].short, "when": method.choose,
            }
            for method in METHODS.values()
        ]  # fmt: skip
        show_methods(rows)
        say(
            "Every student starts from a teacher's weights; a method that needs no teacher does not ask it afterwards.",
            "dsno distill --method NAME",
        )


@dataclass(frozen=True)
class Cite:
    """Print the BibTeX of what a run used: its method, solver, guidance, path, distances and metrics.

    In Python:

        from dsno.references import bibtex, used_by
        print(bibtex(used_by("runs/student")))
    """

    run_folder: Positional[Path] = Path("runs")
    """Folder of a student, a flow map, trajectories, a teacher or an evaluation, or one that holds several of them."""

    def run(self) -> None:
        from dsno.references import bibtex, used_by

        print(bibtex(used_by(self.run_folder)))


def distill_method(options: Distill) -> None:
    """Distil by a method other than `operator` and `knowledge`.

    Raises:
        ValueError: for an option that the method does not take, or anything it needs and is not given.
    """
    from dsno.cli.sets import guided
    from dsno.distillation.registry import METHODS, student_of
    from dsno.distillation.run import distill_by
    from dsno.distillation.stages import Given
    from dsno.nets.features import load_feature_net
    from dsno.teachers.load import load_teacher
    from dsno.trajectories.sets import TrajectorySet

    method = METHODS[options.method]
    check_options(options, method)
    passes = 1 if options.passes is None else options.passes
    weights = (0.0, 4.0) if options.guidance is None else options.guidance
    method.check_options(passes, weights)
    trajectories = TrajectorySet(options.data) if holds_trajectories(options.data) else None
    method.check_data(trajectories is not None, options.data)
    if trajectories is not None:
        trajectories = frames_of(trajectories, options.times)
    teacher = load_teacher(options.teacher)
    if method.name == "guided" and not teacher.classes:
        raise ValueError(
            f"guided needs a class-conditional teacher, and {options.teacher} is told no class: take progressive for this one"
        )
    denoiser: Denoiser = teacher
    if trajectories is not None:
        from dsno.cli.students import as_generated

        denoiser = as_generated(trajectories, teacher, options.teacher)
        trajectories.check_teacher(denoiser)
    x, labels = None, None
    if {"samples", "data"} & {*method.needs}:
        x, labels = _samples(options, teacher, trajectories)
    if method.name == "guided":
        denoiser = guided(options.teacher, teacher, weights, null=options.null)
    known = inspect.signature(method.stages).parameters
    own = (name for name in (*REGRESSION, "stochastic") if name in known and name in given_options(options))
    asked = {name: getattr(options, name) for name in own}
    if options.from_data and "distil" in known:
        asked["distil"] = False
    given = Given(
        None if options.from_data and "distil" not in known else denoiser, teacher.schedule, options.train.steps,
        options.batch or method.batch, options.train.seed, x, labels, trajectories, passes, weights,
        options.derivative,
    )  # fmt: skip
    method.check(given)
    torch.manual_seed(options.train.seed)
    takes = _takes(method)
    lift = {name: getattr(options, name) for name in LIFT if name in takes}
    student = student_of(method, teacher, given, **lift)
    features = None if options.features is None else load_feature_net(options.features)
    with progress() as report:
        distill_by(
            method.name, student, given, options.out, options.train, options.resume, options.overwrite, report,
            {"teacher": options.teacher, "data": options.data}, features, **asked,
        )  # fmt: skip
    weight = sum(weights) / 2 if method.name == "guided" else None if trajectories is None else weight_of(trajectories)
    say(f"{method.student} in {options.out}", next_sample(options.out, weight, passes))


def frames_of(data: TrajectorySet, times: tuple[float, ...]) -> TrajectorySet:
    """The trajectories at some of their times, in the stored order; at all where none is named.

    Raises:
        ValueError: if a time is not stored, or the last stored one, whose frame is the sample, is not among them.
    """
    if not times:
        return data
    chosen = data.at(sorted(times, reverse=True))
    if chosen.times[-1] != data.times[-1]:
        raise ValueError(
            f"a student's last frame is its sample: --times needs {float(data.times[-1]):g}, the last that is stored, "
            f"got {' '.join(f'{t:g}' for t in times)}"
        )
    return chosen


def next_sample(out: Path, weight: float | None = None, passes: int = 1) -> str:
    """The command that draws from a student."""
    guidance = "" if weight is None else f" --guidance {weight:.3g}"
    return f"dsno sample --student {out}{guidance}" + (f" --passes {passes}" if passes > 1 else "")


def weight_of(data: TrajectorySet) -> float | None:
    """The guidance weight of the first trajectory, if they are told one."""
    return float(data[0]["cond"]["weight"]) if "weight" in (data.manifest["cond"] or ()) else None


def given_options(options: Distill) -> list[str]:
    """The options that differ from their defaults."""
    return [field.name for field in fields(options) if getattr(options, field.name) != field.default]


def check_options(options: Distill, method: Method) -> None:
    """Make sure that the method takes the options that are given.

    Raises:
        ValueError: for the first that it does not.
    """
    takes = (*COMMON, *_takes(method))
    for name in given_options(options):
        if name not in takes and name != "passes":
            own = ", ".join(f"--{n.replace('_', '-')}" for n in _takes(method)) or "none of its own"
            raise ValueError(f"--{name.replace('_', '-')} is no option of the method {method.name}, which takes {own}")


def _takes(method: Method) -> tuple[str, ...]:
    """The options of `dsno distill` that are the method's, beside those of all."""
    if method.name == "operator":
        return (*LIFT, "times", *REGRESSION, "inner_starts")
    if method.name == "knowledge":
        return ("target", "distance", "features")
    known = inspect.signature(method.stages).parameters
    if method.student == "operator":
        of_loss = tuple(name for name in REGRESSION if name in known or (name == "features" and "distance" in known))
        return (*LIFT, "times", *of_loss)
    own: tuple[str, ...] = ("size", *(("distance", "features") if "distance" in known else ()))
    # The teacher's velocity, or the data's: a teacher that may be missing, or an option of the method.
    own = (*own, "from_data") if method.needs == ("samples",) or "distil" in known else own
    own = (*own, "stochastic") if "stochastic" in known else own
    own = (*own, "derivative") if method.derivative else own
    if method.name == "guided":
        own = (*own, "guidance", "null")
    return (*own, "passes") if method.passes == "one number, chosen beforehand" else own


def holds_trajectories(data: str) -> bool:
    """Whether `data` names trajectories, rather than an image set."""
    from dsno.trajectories.manifest import MANIFEST

    return "://" in data or (Path(data) / MANIFEST).is_file()


def _samples(options: Distill, teacher: Prediction, trajectories: TrajectorySet | None) -> tuple[Tensor, Tensor | None]:
    """Clean samples and their labels: the ends of trajectories, or an image set.

    Raises:
        ValueError: if they do not fit the teacher.
    """
    from dsno.data.load import load_data
    from dsno.teachers.native import sample_shape
    from dsno.trajectories.labels import samples_of

    if trajectories is not None:
        if options.size is not None:
            raise ValueError(f"--size resizes images, and {options.data} holds trajectories: leave it out")
        return samples_of(trajectories)
    try:
        images = load_data(options.data, size=options.size)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{options.method} needs clean samples: {error}; or trajectories of the teacher, whose ends are samples (`dsno "
            f"generate --out {options.data}`)"
        ) from None
    if images.shape != sample_shape(teacher):
        raise ValueError(
            f"{options.data} has samples of shape {images.shape}, the teacher makes {sample_shape(teacher)}: resize the "
            "images (`--size`), or give the data it was trained on"
        )
    if not teacher.classes:
        return images.x, None
    if images.labels is None or int(images.labels.max()) >= teacher.classes:
        found = "has no labels" if images.labels is None else f"has labels up to {int(images.labels.max())}"
        raise ValueError(
            f"{options.data} {found}, and {options.teacher} is told one of {teacher.classes} classes: give the data it was "
            "trained on, or its trajectories (`--data runs/trajectories`)"
        )
    return images.x, images.labels
