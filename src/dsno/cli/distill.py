"""`dsno distill`: a student by any method."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from dsno.cli.console import progress, say
from dsno.cli.teachers import null_of
from dsno.train import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

    from dsno.denoise import Denoiser, Prediction
    from dsno.distillation.registry import Method
    from dsno.trajectories.sets import TrajectorySet

__all__ = ["Distill"]

COMMON = ("teacher", "data", "out", "method", "batch", "train", "resume", "overwrite")
LIFT = ("target", "where", "told", "once", "modes", "train_only")
REGRESSION = ("weights", "distance", "features", "others")


@dataclass(frozen=True)
class Distill:
    """Distil a teacher into a student of one pass or a few: by --method, which `dsno methods` lists.

    Options of frames and weights are of the operator; other methods refuse what they do not take.

    In Python:

        from dsno import load_teacher, student_from_teacher
        from dsno.distillation.run import distill
        from dsno.trajectories.sets import TrajectorySet
        data = TrajectorySet("runs/trajectories")
        distill(student_from_teacher(load_teacher("runs/teacher"), data.times), data, "runs/student")
    """

    teacher: str = "runs/teacher"
    """The teacher the student starts from (by every method, of data alone too), as `generate --teacher` takes it."""
    data: str = "runs/trajectories"
    """Folder of its trajectories, or where they were pushed to (hf://datasets/org/name, ...): fetched as they are needed. Of
    a method that needs samples: their ends, or an image set as `teach --data`."""
    out: Path = Path("runs/student")
    """Folder for the student."""
    method: Literal[
        "operator", "knowledge", "matching", "progressive", "guided", "consistency", "consistency-training",
        "easy-consistency", "continuous-consistency", "lagrangian", "eulerian", "progressive-map", "shortcut", "meanflow",
        "direct",
    ] = "operator"  # fmt: skip
    """How to train it, and so what it needs and how many passes it makes: `dsno methods`."""
    target: Literal["x0", "state"] = "x0"
    """What the frames are trained on."""
    times: tuple[float, ...] = ()
    """The student's frames: some of the stored times; all by default. Fewer cost less, and often the sample is as good."""
    weights: str = "snr5"
    """Frame weighting: snr (the paper's), snr<clamp>, uniform, last."""
    distance: str | None = None
    """Distance of the loss: l1, l2, huber, perceptual, or a sum such as l1+perceptual; by default l1, of consistency its own."""
    features: Path | None = None
    """Folder of the feature network of a perceptual distance (not the one that quality is measured in)."""
    where: Literal["every", "low", "mid", "none"] = "mid"
    """Blocks with temporal layers: every one as in the paper, those below the highest resolution, the middle, none."""
    told: Literal["output", "input"] = "input"
    """The time a frame's blocks are told: its own as in the paper, or the noise's, where the student starts as the teacher."""
    once: bool = True
    """Run the blocks before the first temporal layer once per sample."""
    modes: int | None = None
    """Fourier modes in time, at most M // 2 + 1 of M frames; 2 by default."""
    others: float | None = None
    """Supervise the last frame in every step and one other in this share of them, instead of all: cheaper steps."""
    train_only: Literal["all", "temporal"] = "all"
    """Train everything, or only what was added to the teacher's network."""
    inner_starts: float = 0.0
    """Share of steps started from a stored state instead of noise (needs targets x0 and state): for `sample --passes`."""
    size: int | None = None
    """Resize the images of --data to this many pixels a side."""
    passes: int | None = None
    """What the student is to make, of a method that is trained for one number of passes; 1 by default."""
    guidance: tuple[float, float] | None = None
    """Range of guidance weights, LOW HIGH, of the method guided; 0 4 by default."""
    null: int | None = None
    """The label that stands for no class, of the method guided, where the teacher does not say."""
    from_data: bool = False
    """Learn the velocity of the data, not the teacher's: of shortcut, meanflow, continuous-consistency."""
    stochastic: bool = False
    """Train for `dsno.distillation.guided.stochastic_sampler`, too: of progressive, guided."""
    derivative: Literal["forward", "difference", "upwind"] | None = None
    """How a loss takes derivatives of the student: along the flow `upwind` by default, else in forward mode, or by central
    differences where a layer has none."""
    batch: int | None = None
    """Rows per step; 256 of trajectories, else the method's own."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=4000, lr=1e-3))
    resume: bool = False
    """Continue from the last checkpoint in --out."""
    overwrite: bool = False
    """Throw away what is in --out."""

    def run(self) -> None:
        from dsno.distillation.registry import METHODS
        from dsno.distillation.run import distill
        from dsno.nets.features import load_feature_net
        from dsno.students.operator import student_from_teacher
        from dsno.teachers.load import load_teacher
        from dsno.trajectories.sets import TrajectorySet

        if self.method not in ("operator", "knowledge"):
            return distill_method(self)
        method, single = METHODS[self.method], self.method == "knowledge"
        check_options(self, method)
        method.check_options(1 if self.passes is None else self.passes, (0, 1))
        method.check_data(holds_trajectories(self.data), self.data)
        data, teacher = TrajectorySet(self.data), load_teacher(self.teacher)
        data = data.at(data.times[-1:]) if single else frames_of(data, self.times)
        data.check_teacher(as_generated(data, teacher, self.teacher))
        weight = weight_of(data)
        torch.manual_seed(self.train.seed)
        student = student_from_teacher(
            teacher, data.times, self.target, self.modes, "none" if single else self.where, self.once, told=self.told,
            guidance=weight is not None, train_only=self.train_only,
        )  # fmt: skip
        with progress() as report:
            distill(
                student, data, self.out, self.train, self.weights, self.distance or "l1", self.batch or 256, self.others,
                self.inner_starts, None if self.features is None else load_feature_net(self.features), self.resume,
                self.overwrite, report,
            )  # fmt: skip
        say(f"student in {self.out}", next_sample(self.out, weight))


def as_generated(data: TrajectorySet, teacher: Prediction, ref: str) -> Denoiser:
    """The teacher, guided as it was when the set was made."""
    from dsno.denoise import Guided

    found = data.manifest["teacher"]
    if found["class"] != "Guided":
        return teacher
    null = found["null"]
    if isinstance(null, int):
        return Guided(teacher, torch.tensor(null), found["weight"])
    if isinstance(null, dict) and isinstance(null.get("label"), int):
        return Guided(teacher, {"label": torch.tensor(null["label"])}, found["weight"])
    given = null_of(ref, teacher, None)
    return Guided(teacher, {"text": given} if isinstance(given, torch.Tensor) else given, found["weight"])


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
    from dsno.trajectories.sets import samples_of

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
