r"""Score identity distillation: one pass that is held against the teacher's distribution, with no data (SiD).

Matching (`dsno.distillation.matching`) descends the divergence as if the two denoisers did not depend on the sample.
With the sample $x = G(z)$ noised to $x_t = \alpha_t x + \sigma_t \epsilon$, the teacher $D$ and the denoiser $D_G$ of
the student's own samples, the loss here keeps that dependence: gradients reach the student through $D(x_t, t)$ and
$D_G(x_t, t)$, too,

$$ L = \mathbb E \Big[ w \, \big\{ (1 - a) \, \| D - D_G \|^2 + (D - D_G) \cdot (D_G - x) \big\} \Big], \qquad
   w = \frac{1}{S \sin\theta_t}, $$

with $S$ and $\theta_t$ of `dsno.distillation.matching`; w passes no gradient. For the exact $D_G$

$$ \mathbb E [ (D - D_G) \cdot (D_G - x) ] = 0, \qquad
   \mathbb E \| D - D_G \|^2 = \mathbb E [ (D - D_G) \cdot (D - x) ], $$

the score identities: both sides of the second are the Fisher divergence of the two laws, and L is their mixture
$L = w \, \{ (D - D_G) \cdot (D - x) - a \, \| D - D_G \|^2 \}$, which does without the derivative of $D_G$ in the
student's weights that nobody knows. With a = 0 and no gradient through D and $D_G$ it is matching.

As there, $D_G$ starts as the teacher's copy and learns beside the student by denoising its samples, `pace` times as
fast. The rates decide: the student's too high, or $D_G$ too slow to follow, and the distance rises again.

For more passes than one, a share of the rows of every step starts where the passes behind the first do (`MultiPass`,
with `fresh` noise): from the student's own sample, noised again to the time of an inner frame,

$$ x_{t_j} = \alpha_j \, [G(z)] + \sigma_j \epsilon', \qquad x = G(x_{t_j}, t_j), $$

where $[\cdot]$ passes no gradient; L is the same, so that a sample of any number of passes is held against the teacher,
and the student's loss is the mean of that of the first pass and that of those behind it, whatever their share.
The passes behind the first have a $D_G$ of their own. One of all passes would be the denoiser of the mixture of their
laws, and L would leave each of them free to drift where the others make up for it.

Source: Zhou et al., 2024 (arXiv 2404.04057), algorithm 1. The weight there is each sample's own; why it is
one of a batch here says `dsno.distillation.matching`. Starts of more passes: Yin et al., 2024 (DMD2, arXiv 2405.14867),
section 4.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dsno.condition import Cond, map_cond
from dsno.denoise import Denoiser, Prediction, expand_like, still
from dsno.distillation.adversary import DELTA, Judging, Reals, adversarial
from dsno.distillation.denoising import noised
from dsno.distillation.matching import (
    Paced,
    Starts,
    at_levels,
    check_levels,
    denoising,
    kind_of,
    made_by,
    one_ended,
    student_denoiser,
)
from dsno.distillation.regression import check_told_start
from dsno.distillation.stages import Given, Stage
from dsno.engine import mean_of_all, share_of
from dsno.nets.backbone import own_null, tokens_of
from dsno.schedule import Schedule
from dsno.seeds import generator
from dsno.solvers.run import initial_state
from dsno.steer import as_label
from dsno.students.flowmap import FlowMap
from dsno.students.heads import ParallelDecoder
from dsno.students.operator import TrajectoryStudent
from dsno.students.samplers import Student
from dsno.trajectories.labels import uniform_labels
from dsno.trajectories.order import batches
from dsno.trajectories.sets import TrajectorySet

__all__ = ["Adversarial", "Fresh", "Identity", "IdentityOptions", "Judged", "Stored", "Twin", "identity"]


class Twin(nn.Module):
    """A one-pass student and the denoiser of its own samples, which answers twice: to the student, and to learn.

    Arguments:
        student: A `TrajectoryStudent`, a `FlowMap` or a `ParallelDecoder`.
        fake: $D_G$, which the twin takes over: its parameters are rescaled.
        pace: The learning rate of $D_G$ over the student's.
        behind: $D_G$ of the passes behind the first, in the same way, where there are any.

    Raises:
        ValueError: for a pace that is not positive.
    """

    def __init__(self, student: nn.Module, fake: nn.Module, pace: float = 1.0, behind: nn.Module | None = None) -> None:
        super().__init__()
        self.student: Any = one_ended(student)
        self.fake = Paced(fake, pace)
        self.behind = None if behind is None else Paced(behind, pace)

    def forward(
        self,
        x_1: Tensor,
        cond: Cond | None,
        t: Tensor,
        eps: Tensor,
        behind: Tensor | None = None,
        start: float = 1.0,
        again: Tensor | None = None,
        *reals: Any,
    ) -> tuple[Tensor, ...]:
        """The student's sample from the state x_1 of pure noise (B, *shape), or in the rows `behind` (B,) from that
        sample noised to `start` by `again` (B, *shape); the sample noised to t (B,) by eps (B, *shape); and what $D_G$
        says of it: with a gradient to the sample alone, and to the weights of $D_G$ alone.
        """
        if behind is None or again is None:
            return self.of_pass(self.fake, 1.0, x_1, cond, t, eps, *reals)
        first, later = (_at(rows, x_1, cond, t, eps, *reals) for rows in (~behind, behind))
        with torch.no_grad():
            x = made_by(self.student, later[0], later[1], 1.0, (-1,))[:, -1]
            later[0] = noised(self.student.schedule, x, again[behind], x.new_full((len(x),), start))
        said = zip(self.of_pass(self.fake, 1.0, *first), self.of_pass(self.behind, start, *later), strict=True)
        order = torch.cat([(~behind).nonzero(), behind.nonzero()]).flatten().argsort()
        return tuple(torch.cat(both)[order] for both in said)

    def of_pass(
        self, fake: Any, start: float, x_s: Tensor, cond: Cond | None, t: Tensor, eps: Tensor
    ) -> tuple[Tensor, ...]:
        """The same of a pass from the states x_s at `start`, by its own $D_G$."""
        x = made_by(self.student, x_s, cond, start, (-1,))[:, -1]
        x_t = noised(self.student.schedule, x, eps, t)
        return x, x_t, still(fake, x_t, t, cond), fake(x_t.detach(), t, cond)


def _at(rows: Tensor, *given: Cond | None) -> list[Any]:
    return [map_cond(lambda c: c[rows], one) for one in given]


class Judged(Twin):
    """A twin whose denoiser is a `Judging`: it also tells the student's samples from real ones."""

    def of_pass(  # type: ignore[override]
        self,
        fake: Any,
        start: float,
        x_s: Tensor,
        cond: Cond | None,
        t: Tensor,
        eps: Tensor,
        real: Tensor,
        real_cond: Cond | None = None,
        aside: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """What a twin says; and the logits (B,) of the sample, with a gradient to it alone, of the sample, with one to
        the weights alone, and of real samples noised to t (B, *shape), as they are and, where it is given, `aside`."""
        x, x_t, (D_G, judged), (own, made) = super().of_pass(fake, start, x_s, cond, t, eps)
        beside = () if aside is None else (fake(aside, t, real_cond)[1],)
        return (x, x_t, D_G, own, judged, made, fake(real, t, real_cond)[1], *beside)


class Identity:
    r"""The objective of a `Twin`: L above for the student, and that of `matching.denoising` for $D_G$.

    Arguments:
        starts: The noises, with their conditions.
        teacher: $D$.
        a: How much of the Fisher divergence is taken off, in [0, 1.2].
        inner_starts: The share of rows, in [0, 1), that start from the student's samples, noised again.
        times: To which times, one of them in a step.
        low: With `high`, the range of the phase of the noise levels that are compared.
        high: See `low`.

    Raises:
        ValueError: for an `a` outside [0, 1.2], a range outside (0, 1) or without room, a share outside [0, 1), one
            above 0 without times, or one that leaves a pass without a row.
    """

    def __init__(
        self,
        starts: Starts,
        teacher: Denoiser,
        a: float = 1.2,
        inner_starts: float = 0.0,
        times: Sequence[float] = (),
        low: float = 0.02,
        high: float = 0.98,
    ) -> None:
        if not 0 <= a <= 1.2:
            raise ValueError(f"a is the share of the Fisher divergence that is taken off, in [0, 1.2], got {a:g}")
        if not 0 <= inner_starts < 1 or (inner_starts and not times):
            raise ValueError(
                "inner_starts is the share of rows that start from a sample noised to the time of an inner frame, in "
                f"[0, 1), got {inner_starts:g} and {len(times)} inner frames: distil a student of more frames, or "
                "leave it at 0"
            )
        check_levels(low, high)
        self.starts, self.schedule, self.teacher = starts, starts.schedule, teacher
        self.a, self.low, self.high, self.kind = a, low, high, kind_of(teacher)
        self.inner_starts, self.times = inner_starts, tuple(times)
        if inner_starts:
            self._check_rows(starts.batch)

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """Noises and conditions from step `start` on, with the noise levels t and the noise eps of the comparison; and
        where there are inner starts, which rows are `behind`, the `weight` of each, and the time `start` and the noise
        `again` of those behind."""
        B = self.starts.batch
        mine = share_of(B, rank, world)
        if self.inner_starts:
            self._check_rows(B // world)
        for step, batch in enumerate(at_levels(self.starts, self.low, self.high, start, rank, world), start):
            if self.inner_starts:
                g = generator(self.starts.seed, step, 3)
                # Evenly spread, and each row as often as any: the levels of both parts cover the range, and all
                # processes do the same work.
                places = self.inner_starts * torch.arange(B + 1, dtype=torch.float64) + torch.rand((), generator=g)
                behind = batch["behind"] = (places.floor().diff() > 0)[mine]
                # Both passes weigh alike, whatever the share, on every process.
                batch["weight"] = torch.where(behind, 0.5 / self.inner_starts, 0.5 / (1 - self.inner_starts))
                batch["start"] = self.times[int(torch.randint(len(self.times), (), generator=g))]
                batch["again"] = torch.randn(B, *batch["eps"].shape[1:], generator=g)[mine]
            yield batch

    def _check_rows(self, rows: int) -> None:
        if min(self.inner_starts, 1 - self.inner_starts) * rows < 1:
            raise ValueError(
                f"inner_starts={self.inner_starts:g} of the {rows} rows of a process leaves none for one of the "
                "passes: use a larger batch, or leave it at 0"
            )

    def __call__(self, twin: nn.Module, batch: dict[str, Any]) -> Tensor:
        """The sum of both losses of one batch, a scalar."""
        return self.of(twin(*self.told(batch)), batch)

    def told(self, batch: dict[str, Any]) -> tuple[Any, ...]:
        """What a twin is told of a batch."""
        x_1 = initial_state(self.schedule, batch["noise"])
        again = batch.get("behind"), batch.get("start", 1.0), batch.get("again")
        return x_1, batch.get("cond"), batch["t"], batch["eps"], *again

    def of(self, said: tuple[Tensor, ...], batch: dict[str, Any]) -> Tensor:
        """The same of what the twin said."""
        (x, x_t, D_G, own), t, cond = said, batch["t"], batch.get("cond")
        D = still(self.teacher, x_t, t, cond)
        alpha_t, sigma_t = (expand_like(c, x) for c in self.schedule(t))
        with torch.no_grad():
            sine = sigma_t / (alpha_t**2 + sigma_t**2).sqrt()
            w = expand_like(batch.get("weight", torch.ones_like(t)), x)
            w = w / (sine * mean_of_all(((x - D).abs() / sine).mean()))
        match = (w * ((1 - self.a) * (D - D_G).square() + (D - D_G) * (D_G - x))).mean()
        return match + denoising(self.kind, own, x.detach(), alpha_t / sigma_t)


class Adversarial(Identity):
    r"""The objective of a `Judged` twin: that of `Identity`, and `adversary` times that of
    `dsno.distillation.adversary`.

    Arguments:
        starts: As `Identity` has it.
        teacher: $D$.
        reals: Samples of the data.
        adversary: What the adversary weighs.
        r1: What the squared slope of its logit weighs.
        a: As `Identity` has it, and the rest.
        inner_starts: See `a`.
        times: See `a`.

    Raises:
        ValueError: for a weight below 0; as `Identity` does.
    """

    def __init__(
        self,
        starts: Starts,
        teacher: Denoiser,
        reals: Reals,
        adversary: float,
        r1: float = 0.0,
        a: float = 1.2,
        inner_starts: float = 0.0,
        times: Sequence[float] = (),
    ) -> None:
        super().__init__(starts, teacher, a, inner_starts, times)
        for name, weight in (("adversary", adversary), ("r1", r1)):
            if not weight >= 0:
                raise ValueError(f"{name} is the weight of a loss, at least 0, got {weight:g}")
        self.reals, self.adversary, self.r1 = reals, adversary, r1

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """Those of `Identity`, with real samples."""
        mine = share_of(self.starts.batch, rank, world)
        for step, batch in enumerate(super().batches(start, rank, world), start):
            yield {**batch, **self.reals.drawn(step, self.starts.batch, mine)}

    def __call__(self, twin: nn.Module, batch: dict[str, Any]) -> Tensor:
        """The sum of all losses of one batch, a scalar."""
        y_t = noised(self.schedule, batch["real"], batch["real_eps"], batch["t"])
        aside = y_t + DELTA * batch["slope"] if self.r1 else None
        said = twin(*self.told(batch), y_t, batch.get("real_cond"), aside)
        return self.of(said[:4], batch) + self.adversary * adversarial(
            *said[4:], r1=self.r1, weight=batch.get("weight", 1.0)
        )


class Fresh:
    """Noises without end, each with a label drawn evenly, never the one that stands for none.

    Arguments:
        schedule: The student's.
        shape: That of a sample.
        classes: How many the student is told, or None.
        null: The label that stands for none.
        batch: Rows per step, over all processes.
        seed: With the step, determines the batch.

    Raises:
        ValueError: when drawn from, if the batch cannot be shared evenly.
    """

    def __init__(
        self,
        schedule: Schedule,
        shape: tuple[int, ...],
        classes: int | None = None,
        null: int | None = None,
        batch: int = 64,
        seed: int = 0,
    ) -> None:
        self.schedule, self.shape, self.batch, self.seed = schedule, shape, batch, seed
        self.label = uniform_labels(classes, null) if classes else None

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """Batches from step `start` on; each is the share of `rank` in one that is a function of (seed, step)."""
        mine, step = share_of(self.batch, rank, world), start
        while True:
            z = torch.randn(self.batch, *self.shape, generator=generator(self.seed, step))
            batch: dict[str, Any] = {"noise": z[mine]}
            if self.label is not None:
                batch["cond"] = self.label(step * self.batch + torch.arange(self.batch))[mine]
            yield batch
            step += 1


class Stored:
    """The noises of trajectories, with their conditions: texts and guidance weights, too.

    Arguments:
        data: The trajectories.
        schedule: The student's.
        batch: Rows per step, over all processes.
        seed: With the step, determines the batch.

    Raises:
        ValueError: for trajectories of another schedule, or more rows than there are.
    """

    def __init__(self, data: TrajectorySet, schedule: Schedule, batch: int = 64, seed: int = 0) -> None:
        if data.schedule != schedule:
            raise ValueError(f"the trajectories are of {data.schedule}, the student of {schedule}")
        batches(data, batch, seed)  # refuses sizes that do not fit now
        self.data, self.schedule, self.batch, self.seed = data, schedule, batch, seed

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """Batches from step `start` on; each is the share of `rank` in one that is a function of (seed, step)."""
        for batch in batches(self.data, self.batch, self.seed, start, rank, world):
            yield {"noise": batch["noise"], **({"cond": as_label(batch["cond"])} if "cond" in batch else {})}


@dataclass(frozen=True)
class IdentityOptions:
    """Options of `identity`."""

    a: float = 1.0
    """How much of the Fisher divergence is taken off, in [0, 1.2]: 1 leaves the score identity alone."""
    pace: float = 100.0
    """The learning rate of the denoiser of the student's samples, over the student's."""
    rate: float = 0.01
    """The student's learning rate, over the run's."""
    inner_starts: float = 0.0
    """Share of rows started from the student's own samples, noised again to an inner frame's time: for more passes
    than one (`sample --passes`). They have a denoiser of their own, a third network in training."""
    adversary: float = 0.0
    """What an adversary weighs that tells the student's samples from real ones by the denoiser's bottleneck; 0 leaves
    it out, and needs no data."""
    r1: float = 0.0
    """What the squared slope of its logit at real samples weighs (R1)."""
    frozen: bool = False
    """Leave the student's convolutions as they are, and train its linear layers, scales and biases alone."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Samples of the data, for an adversary."""
        return ("data",) if self.adversary else ()

    def student(self, teacher: Prediction, given: Given) -> Student:
        """Refuse to make one: from noise, a copy of the teacher makes no samples whose denoiser is worth anything.

        Raises:
            ValueError: always; says what to give.
        """
        raise ValueError(
            "identity goes on from a student that another method trained: give it, student=load_student(...)"
        )


def identity(student: Student, given: Given, options: IdentityOptions = IdentityOptions()) -> list[Stage]:
    """Go on with a trained student at one pass, in one stage; nothing but the teacher is needed, and trajectories,
    whose noises and conditions are drawn, of a student that is told a text or a guidance weight.

    Of a student of several frames the last one is trained; the others follow as far as they share its network. A step
    costs about twice as much as one of matching.

    Raises:
        ValueError: for options that cannot be, a teacher that cannot be copied, or a student that is told a text or a
            guidance weight and no trajectories.
    """
    if not isinstance(student, TrajectoryStudent | FlowMap | ParallelDecoder):
        raise ValueError(
            f"identity trains a TrajectoryStudent, FlowMap or ParallelDecoder, got a {type(student).__name__}"
        )
    objective = _objective(student, given, options)

    def make(student: Student) -> tuple[Twin, Identity]:
        def fake() -> nn.Module:
            made = student_denoiser(given.denoiser, student.guided)
            return Judging(cast(Prediction, made)) if options.adversary else made

        if options.frozen:
            _freeze_kernels(student)
        twin = Judged if options.adversary else Twin
        return twin(student, fake(), options.pace, fake() if options.inner_starts else None), objective

    def became(student: Student) -> Student:
        if isinstance(student, ParallelDecoder):
            return student.trained_for(student.count, student.count)
        if isinstance(student, FlowMap):
            return student.trained_for("grid", 1)
        return student.restarting(fresh=True) if options.inner_starts else student

    return [Stage("identity", given.steps, make, became, lr=options.rate)]


def _objective(student: Student, given: Given, options: IdentityOptions) -> Identity:
    fake = cast(Prediction, student_denoiser(given.denoiser))  # refuses what cannot be copied
    starts = _starts(student, fake, given)
    inner: tuple[float, ...] = ()
    if isinstance(student, TrajectoryStudent):
        inner = tuple(student.times[:-1].tolist())
        if options.inner_starts:
            check_told_start(student)
    again = options.inner_starts, inner
    if not options.adversary:
        return Identity(starts, given.denoiser, options.a, *again)
    if student.guided:
        raise ValueError("real samples have no guidance weight, which this student is told: leave adversary at 0")
    Judging(fake)  # refuses what has no bottleneck
    if student.classes and given.labels is None:
        raise ValueError(
            f"the student is told one of {student.classes} classes, and the data have no labels: give labelled "
            "data, or leave adversary at 0"
        )
    reals = Reals(given.samples, given.labels, given.seed)
    return Adversarial(starts, given.denoiser, reals, options.adversary, options.r1, options.a, *again)


def _starts(student: Student, fake: Prediction, given: Given) -> Starts:
    """The noises of trajectories, where there are some, or without end."""
    if given.trajectories is not None:
        return Stored(given.trajectories, given.schedule, given.batch, given.seed)
    if student.guided or tokens_of(fake.net):
        told = "a guidance weight" if student.guided else "a text"
        raise ValueError(f"identity draws labels, and this student is told {told}: give its trajectories, too")
    return Fresh(given.schedule, student.shape, student.classes, own_null(fake), given.batch, given.seed)


def _freeze_kernels(student: nn.Module) -> None:
    """Train all but the kernels of a student's convolutions, which are most of its parameters."""
    for module in student.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            module.weight.requires_grad_(False)
