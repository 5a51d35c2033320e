r"""DSNO's objective: regress the whole trajectory of each noise, in one pass (Zheng et al., 2023, arXiv 2211.13449).

$$ L = \sum_m w_m \, \frac1B \sum_b d\big(G_\theta(z_b)(t_m), \; y_{b,m}\big), \qquad
   w_m = \lambda_m \Big/ \sum_{m'} \lambda_{m'} $$

with $y$ the teacher's $\hat x_0$ or state at time $t_m$. The weights are normalised to shares, so that the learning
rate means the same for every choice:

| name | $\lambda_m$ |
|---|---|
| `snr` | $\mathrm{clamp}(\alpha_m / \sigma_m, 1, 10^4)$, the official code's; 99.9 % of the loss is the last frame |
| `snr<c>`, for example `snr5` | $\mathrm{clamp}(\alpha_m / \sigma_m, 1, c)$ |
| `uniform` | 1 |
| `last` | the last frame alone |

With one frame at $t = 0$ this is knowledge distillation (Luhman & Luhman, 2021, arXiv 2101.02388).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dsno.borrow import unwrapped
from dsno.denoise import Prediction
from dsno.distillation.distances import Distance, from_folder
from dsno.distillation.distances import distance as named_distance
from dsno.distillation.stages import Given, Stage
from dsno.schedule import Schedule
from dsno.seeds import generator
from dsno.solvers.run import initial_state
from dsno.steer import as_label
from dsno.students.blocks import Told, Where
from dsno.students.operator import Target, TrajectoryStudent, student_from_teacher
from dsno.students.temporal import Activation, Init
from dsno.trajectories.order import batches
from dsno.trajectories.sets import TrajectorySet

__all__ = [
    "KnowledgeOptions",
    "LiftOptions",
    "LossOptions",
    "OperatorOptions",
    "TrajectoryDistillation",
    "check_told_start",
    "frame_weights",
    "frames_of",
    "has_weight",
    "knowledge",
    "operator",
]


def frame_weights(schedule: Schedule, times: Tensor, name: str = "snr5") -> Tensor:
    r"""Shares $w_m$ of the frames in the loss, (M,), summing to one; names in the table above.

    Raises:
        ValueError: for an unknown name.
    """
    check_weighting(name)
    alpha, sigma = schedule(times.double())
    if name == "uniform":
        weight = torch.ones_like(alpha)
    elif name == "last":
        weight = torch.zeros_like(alpha)
        weight[-1] = 1
    else:
        weight = (alpha / sigma).clamp(1, float(name[3:] or 1e4))
    return (weight / weight.sum()).float()


def check_weighting(name: str) -> None:
    """Refuse a frame weighting that is none.

    Raises:
        ValueError: for an unknown name.
    """
    if name in ("uniform", "last", "snr"):
        return
    try:
        known = name.startswith("snr") and 1 <= float(name[3:]) < math.inf
    except ValueError:
        known = False
    if not known:
        raise ValueError(f"unknown frame weighting {name!r}: expected snr, snr<clamp> (as snr5), uniform or last")


class TrajectoryDistillation:
    r"""The objective of a `TrajectoryStudent` on a `TrajectorySet`.

    Arguments:
        data: Trajectories that hold the student's times and target.
        student: Its times, target and schedule are read.
        weights: Frame weighting, see `frame_weights`.
        distance: $d$, see `distance`.
        batch: Trajectories per step, over all processes.
        seed: With the step, determines the batch.
        others: None to supervise every frame in every step. A number p in (0, 1]: a step supervises the last frame and,
            with probability p, one other, weighted so that the expected loss is the same; the blocks behind the last
            temporal layer then run 1 + p times per sample instead of M times.
        inner_starts: The share of steps, in [0, 1], whose start is not the noise but a stored state $x_{t_j}$, drawn
            per step; the frames up to j are then left out. Needs a network that is told its start: `told="input"` or
            `once`.

    Raises:
        ValueError: if the trajectories do not fit the student.
    """

    def __init__(
        self,
        data: TrajectorySet,
        student: TrajectoryStudent,
        weights: str = "snr5",
        distance: Distance | str = "l1",
        batch: int = 256,
        seed: int = 0,
        others: float | None = None,
        inner_starts: float = 0.0,
    ) -> None:
        if data.schedule != student.schedule:
            raise ValueError(f"the trajectories are of {data.schedule}, the student of {student.schedule}")
        if student.target not in data.targets:
            raise ValueError(f"the trajectories hold {data.targets}, the student needs {student.target!r}: generate it")
        if not torch.equal(data.times, student.times):
            raise ValueError(f"the trajectories have times {data.times.tolist()}, the student {student.times.tolist()}")
        if others is not None and not 0 < others <= 1:
            raise ValueError(f"others is a probability in (0, 1], or None for every frame in every step, got {others}")
        if not 0 <= inner_starts <= 1:
            raise ValueError(
                f"inner_starts is the share of steps that start from an inner state, in [0, 1], got {inner_starts}"
            )
        if inner_starts:
            _check_inner_starts(data, student)
        batches(data, batch, seed)  # Refuses sizes that do not fit now, before any work.
        self.data, self.target, self.schedule = data, student.target, student.schedule
        self.shares = self._shares = frame_weights(student.schedule, student.times, weights)
        self.weights = weights
        self.distance: Distance = named_distance(distance) if isinstance(distance, str) else distance
        self.batch, self.seed, self.others, self.inner_starts = batch, seed, others, inner_starts

    def describe(self) -> str:
        """One line to print at the start: what share of the loss each frame carries."""
        shares = ", ".join(f"t = {t:.4g}: {100 * w:.2f} %" for t, w in zip(self.data.times, self.shares, strict=True))
        return f"loss shares by frame ({self.weights}): {shares}"

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """Batches from step `start` on; each is the share of `rank` in one that is a function of (seed, step)."""
        M = len(self.shares)
        for step, batch in enumerate(batches(self.data, self.batch, self.seed, start, rank, world), start):
            # Frames and starts are drawn per step, the same on every rank: the shapes of all ranks must agree.
            g = generator(self.seed, step)
            first = 0
            if self.inner_starts and float(torch.rand((), generator=g)) < self.inner_starts:
                first = int(torch.randint(1, M, (), generator=g))
            *others, last = [m for m in range(first, M) if self.shares[m] > 0]
            boost = 1.0
            if self.others is not None and others:
                boost = len(others) / self.others
                other = others[int(torch.randint(len(others), (), generator=g))]
                others = [other] if float(torch.rand((), generator=g)) < self.others else []
            if "cond" in batch:
                batch["cond"] = as_label(batch["cond"])
            yield {**batch, "first": first, "frames": (*others, last), "boost": boost}

    def start(self, batch: dict[str, Any]) -> tuple[Tensor, float]:
        """The state a batch starts from, (B, *shape), and its time."""
        first: int = batch["first"]
        if first:
            return batch["state"][:, first - 1], float(self.data.times[first - 1])
        return initial_state(self.schedule, batch["noise"]), 1.0

    def __call__(self, student: nn.Module, batch: dict[str, Any]) -> Tensor:
        r"""The loss of one batch, a scalar; shapes as in `TrajectorySet`."""
        frames: Sequence[int] = batch["frames"]
        x_t, start = self.start(batch)
        output = student(x_t, batch.get("cond"), start, frames)
        if self.target == "state":
            output = unwrapped(student).states(x_t, output, start, frames)
        return self.of_frames(output, batch)

    def of_frames(self, output: Tensor, batch: dict[str, Any]) -> Tensor:
        """The loss of a batch's frames as a student made them, (B, K, *shape)."""
        frames: Sequence[int] = batch["frames"]
        target = torch.stack([batch[self.target][:, m] for m in frames], 1)
        d = self.distance(output.flatten(0, 1).float(), target.flatten(0, 1)).reshape(len(output), -1)
        if self._shares.device != d.device:
            # Once: every copy from the host and every index list makes a GPU wait.
            self._shares = self.shares.to(d)
        w = torch.stack([self._shares[m] for m in frames])
        w = torch.cat([w[:-1] * batch["boost"], w[-1:]])
        return (d.mean(0) * w).sum()


def check_told_start(student: TrajectoryStudent) -> None:
    """Make sure that a student's network is told where it starts.

    Raises:
        ValueError: if not.
    """
    if not (student.net.once or student.net.told == "input"):
        raise ValueError(
            "inner starts need a student whose network is told its start: make it with told='input' or once=True"
        )


def _check_inner_starts(data: TrajectorySet, student: TrajectoryStudent) -> None:
    if student.frames == 1:
        raise ValueError("inner starts need inner states: a student of one frame has none")
    check_told_start(student)
    if "state" not in data.targets:
        raise ValueError(
            f"inner starts need trajectories that hold the states, these hold {data.targets}: generate them with both, "
            "`generate(..., targets=('x0', 'state'))`"
        )


@dataclass(frozen=True)
class LiftOptions:
    """How a teacher's network is made an operator: what `student_from_teacher` asks."""

    target: Target = "x0"
    """What the frames are trained on: the teacher's predictions along the path, or its states."""
    times: tuple[float, ...] = ()
    """The student's frames: some of the stored times; all by default. Fewer cost less, and often the sample is as
    good."""
    where: Where = "mid"
    """Blocks with temporal layers: every one as in the paper, those below the highest resolution, the middle, none."""
    told: Told = "input"
    """The time a frame's blocks are told: its own as in the paper, or the noise's, where the student starts as the
    teacher."""
    once: bool = True
    """Run the blocks before the first temporal layer once per sample."""
    modes: int | None = None
    """Fourier modes in time, at most M // 2 + 1 of M frames; 2 by default."""
    activation: Activation = "silu"
    """Of the temporal layers; the paper's is leaky_relu."""
    init: Init = "zero"
    """Of the temporal layers: zero starts as the teacher, uniform is the paper's."""
    train_only: Literal["all", "temporal"] = "all"
    """Train everything, or only what was added to the teacher's network."""

    def changed(self) -> list[str]:
        """Which of these differ from their defaults."""
        return [field.name for field in fields(LiftOptions) if getattr(self, field.name) != field.default]

    def student(self, teacher: Prediction, given: Given) -> TrajectoryStudent:
        """An operator of the chosen frames around a copy of the teacher; told a weight if the trajectories are.

        Raises:
            ValueError: if a time is not stored, or the last stored one, whose frame is the sample, is not among them;
                as `student_from_teacher` does.
        """
        data = frames_of(given.solved, self.times)
        lifted = {field.name: getattr(self, field.name) for field in fields(LiftOptions) if field.name != "times"}
        return student_from_teacher(teacher, data.times, guidance=has_weight(data), **lifted)


@dataclass(frozen=True)
class LossOptions:
    """The loss of an operator."""

    weights: str = "snr5"
    """Frame weighting: snr (the paper's), snr<clamp>, uniform, last."""
    distance: str = "l1"
    """Distance of the loss: l1, l2, huber, perceptual, or a sum such as l1+perceptual."""
    features: Path | None = None
    """Folder of the feature network of a perceptual distance (not the one that quality is measured in)."""
    others: float | None = None
    """Supervise the last frame in every step and one other in this share of them, instead of all: cheaper steps."""
    inner_starts: float = 0.0
    """Share of steps started from a stored state instead of noise (needs targets x0 and state): for `sample
    --passes`."""


@dataclass(frozen=True)
class OperatorOptions(LossOptions, LiftOptions):
    """Options of `operator`."""


@dataclass(frozen=True)
class KnowledgeOptions:
    """Options of `knowledge`: one frame, and no temporal layers."""

    target: Target = "x0"
    """What the frame is trained on, alike where it is the sample."""
    distance: str = "l1"
    """Distance of the loss: l1, l2, huber, perceptual, or a sum such as l1+perceptual."""
    features: Path | None = None
    """Folder of the feature network of a perceptual distance (not the one that quality is measured in)."""

    def student(self, teacher: Prediction, given: Given) -> TrajectoryStudent:
        """The teacher's network as an operator of one frame, the last that is stored.

        Raises:
            ValueError: as `student_from_teacher` does.
        """
        data = given.solved
        return student_from_teacher(teacher, data.times[-1:], self.target, where="none", guidance=has_weight(data))


def has_weight(data: TrajectorySet) -> bool:
    """Whether trajectories are told a guidance weight each."""
    return "weight" in (data.manifest["cond"] or ())


def weights_in(data: TrajectorySet) -> list[float]:
    """The range of the guidance weights of trajectories, LOW HIGH: of the first shard, rounded outwards.

    To a hundredth of their largest power of ten, since the ends of the range that they were drawn from are not among
    them, and are what is meant.
    """
    weight = data.told("weight").double()
    low, high = float(weight.min()), float(weight.max())
    unit = 10.0 ** (math.floor(math.log10(high)) - 2) if high > 0 else 1.0
    return [math.floor(low / unit) * unit, math.ceil(high / unit) * unit]


def frames_of(data: TrajectorySet, times: Sequence[float]) -> TrajectorySet:
    """The trajectories at some of their times, in the stored order; at all where none is named.

    Raises:
        ValueError: if a time is not stored, or the last stored one, whose frame is the sample, is not among them.
    """
    if not times:
        return data
    chosen = data.at(sorted(times, reverse=True))
    if chosen.times[-1] != data.times[-1]:
        raise ValueError(
            f"times must end with {float(data.times[-1]):g}, the last that is stored: a student's last frame is its "
            f"sample; got {' '.join(f'{t:g}' for t in times)}"
        )
    return chosen


def operator(student: TrajectoryStudent, given: Given, options: LossOptions = OperatorOptions()) -> list[Stage]:
    """An operator on trajectories (Zheng et al., 2023, arXiv 2211.13449), in one stage.

    A student of fewer frames than are stored learns those it has; one of inner starts restarts from them afterwards.
    """
    data = given.solved
    data = data.at(student.times) if len(student.times) < len(data.times) else data
    objective = TrajectoryDistillation(
        data,
        student,
        options.weights,
        from_folder(options.distance, options.features),
        given.batch,
        given.seed,
        options.others,
        options.inner_starts,
    )
    restarts = options.inner_starts > 0
    return [
        Stage(
            "regression",
            given.steps,
            lambda student: (student, objective),
            lambda student: student.restarting(restarts),
            says=objective.describe(),
        )
    ]


def knowledge(student: TrajectoryStudent, given: Given, options: KnowledgeOptions = KnowledgeOptions()) -> list[Stage]:
    """Knowledge distillation (Luhman & Luhman, 2021, arXiv 2101.02388): the sample alone, in one stage."""
    return operator(student, given, LossOptions(distance=options.distance, features=options.features))
