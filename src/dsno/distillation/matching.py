r"""Distribution matching: fine-tune a one-pass student on what its samples are, not on what each of them should be.

Regression on trajectories averages where the student is unsure, and the average of two sharp images is a blurred one.
Distribution matching (DMD: Yin et al., 2023, arXiv 2311.18828; DMD2: 2024, arXiv 2405.14867) descends the divergence
between the student's samples $x = G(z)$ and the teacher's, both noised to $x_t = \alpha_t x + \sigma_t \epsilon$,

$$ \nabla_\theta \, \mathrm{KL}\big(p^G_t \,\|\, p^D_t\big)
   = \mathbb E \Big[ \tfrac{\alpha_t^2}{\sigma_t^2} \big(D_G(x_t, t) - D(x_t, t)\big) \, \nabla_\theta G(z) \Big], $$

with $D$ the teacher and $D_G$ the denoiser of the student's own samples. That one starts as the teacher's copy and is
trained beside the student, so three losses are added:

| loss | of | trains |
|---|---|---|
| $\tfrac12 \| x - [x - g] \|^2$, with the gradient g | matching | the student |
| $(1 + \mathrm{SNR}_t) \, \| D_G(x_t, t) - [x] \|^2$, or of $x_0$ without the factor | denoising | $D_G$ |
| the regression on the stored trajectories of the same noises | anchor | the student |

$[\cdot]$ passes no gradient, and one pass of each network serves all three. With the exact $D_G$ the first vanishes
where the student's samples are the teacher's, whichever noise they came from; the anchor keeps them on their
trajectories. The gradient is normalised by the noise level, and by one number of a batch (in each process its own),

$$ g = \frac{(D_G - D)(x_t, t)}{S \sin\theta_t}, \qquad \tan\theta_t = \frac{\sigma_t}{\alpha_t}, \qquad
   S = \mathop{\mathrm{mean}}_{\text{batch}} \frac{\lvert x - D(x_t, t) \rvert}{\sin\theta_t}, $$

so that at every level its mean points where the divergence's does. The papers divide each sample by its own mean of
$\lvert x - D \rvert$, which is as large but depends on the sample, and most weight falls to those whose noise happens
to lead D back to them. In few dimensions that can turn the gradient round (on Gaussians in one to eight); in many all
samples have nearly the same.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from dsno.borrow import called_with
from dsno.condition import Cond
from dsno.cost import Metered
from dsno.denoise import Around, Denoiser, Kind, Prediction, expand_like
from dsno.distillation.denoising import noised
from dsno.distillation.distances import from_folder
from dsno.distillation.regression import OperatorOptions, TrajectoryDistillation, operator
from dsno.distillation.stages import Given, Stage
from dsno.engine import Undivided, mean_of_all, share_of
from dsno.schedule import Schedule
from dsno.seeds import generator, strata
from dsno.students.flowmap import FlowMap, flow_map_from_teacher
from dsno.students.heads import ParallelDecoder
from dsno.students.operator import TrajectoryStudent
from dsno.students.samplers import Student

__all__ = [
    "Matching",
    "MatchingOptions",
    "Paced",
    "Pair",
    "at_levels",
    "check_levels",
    "denoising",
    "kind_of",
    "made_by",
    "matched",
    "matching",
    "one_ended",
    "student_denoiser",
]


class Pair(nn.Module):
    """A student and the denoiser of its own samples; no gradient passes from one to the other.

    Arguments:
        student: A `TrajectoryStudent`, or a `FlowMap` as its one-frame case.
        fake: $D_G$, which the pair takes over: its parameters are rescaled.
        pace: The learning rate of $D_G$ over the student's.

    Raises:
        ValueError: for a pace that is not positive.
    """

    def __init__(self, student: nn.Module, fake: nn.Module, pace: float = 1.0) -> None:
        super().__init__()
        self.student: Any = one_ended(student)
        self.fake = Paced(fake, pace)

    def forward(
        self, x: Tensor, cond: Cond | None, start: float, frames: Sequence[int], t: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The student's frames from the state x at `start`, (B, K, *shape), the sample last; that sample noised to t
        (B,) by eps (B, *shape); and what $D_G$ says of it.
        """
        made = made_by(self.student, x, cond, start, frames)
        x_t = noised(self.student.schedule, made[:, -1].detach(), eps, t)
        return made, x_t, self.fake(x_t, t, cond)


def made_by(student: Any, x: Tensor, cond: Cond | None, start: float, frames: Sequence[int]) -> Tensor:
    """The frames (B, K, *shape) that a student makes of the state x at `start`, as states where it is trained on
    them."""
    made: Tensor = student(x, cond, start, frames)
    return student.states(x, made, start, frames) if student.target == "state" else made


def one_ended(student: nn.Module) -> Any:
    """The student, whose last frame is its sample: of a flow map that is its jump to s = 0, of a decoder its call over
    all heads, as a student of one frame."""
    return _End(student) if isinstance(student, FlowMap | ParallelDecoder) else student


class _End(nn.Module):
    """A flow map's jump to s = 0, or a decoder's call over all heads, as a student of one frame."""

    def __init__(self, map: FlowMap | ParallelDecoder) -> None:
        super().__init__()
        self.map, self.schedule, self.target, self.frames = map, map.schedule, "x0", 1
        self.times = torch.zeros(1, dtype=torch.float64)

    def forward(self, x: Tensor, cond: Cond | None, start: float, frames: Sequence[int]) -> Tensor:
        ends = (0, self.map.count) if isinstance(self.map, ParallelDecoder) else (start, 0.0)
        return cast(Tensor, self.map(x, *ends, cond)).unsqueeze(1)


class Paced(Undivided):
    """A network whose parameters are `pace` times those held: one Adam moves them that much faster than others.

    Raises:
        ValueError: for a pace that is not positive.
    """

    def __init__(self, net: nn.Module, pace: float) -> None:
        super().__init__()
        if not pace > 0:
            raise ValueError(f"pace is the learning rate of the denoiser over the student's, above 0, got {pace:g}")
        self.net, self.pace = net, pace
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.div_(pace)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        scaled = {name: self.pace * parameter for name, parameter in self.net.named_parameters()}
        return cast(Tensor, called_with(scaled, self.net, x_t, t, cond))


class Starts(Protocol):
    """Where a student starts from: noises, with the conditions that go with them."""

    @property
    def batch(self) -> int:
        """Rows per step, over all processes."""

    @property
    def seed(self) -> int:
        """With the step, determines the batch."""

    @property
    def schedule(self) -> Schedule:
        """The student's."""

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """Batches with `noise` and, where the student is told one, `cond`, from step `start` on."""


def check_levels(low: float, high: float) -> None:
    """Make sure that there are noise levels between two phases.

    Raises:
        ValueError: for a range outside (0, 1) or without room.
    """
    if not 0 < low < high < 1:
        raise ValueError(f"noise levels are compared from low to high, 0 < low < high < 1, got {low:g} and {high:g}")


def at_levels(
    starts: Starts, low: float, high: float, start: int, rank: int = 0, world: int = 1
) -> Iterator[dict[str, Any]]:
    """The batches of `starts` from step `start` on, with what their samples are noised by: t (B,), whose phase is
    uniform in [low, high], and eps (B, *shape)."""
    B = starts.batch
    mine = share_of(B, rank, world)
    for step, batch in enumerate(starts.batches(start, rank, world), start):
        g = generator(starts.seed, step, 1)
        # One stratum per sample: the levels of a batch cover the range evenly.
        level = strata(B, g)
        t = starts.schedule.from_phase(low + (high - low) * level)
        eps = torch.randn(B, *batch["noise"].shape[1:], generator=g)
        yield {**batch, "t": t[mine], "eps": eps[mine]}


class Matching:
    r"""The objective of a `Pair`: matching, denoising and anchor, the table above.

    Arguments:
        regression: What the student was trained by; gives the noises, conditions and stored frames.
        teacher: $D$.
        anchor: What the regression weighs; 0 leaves it out.
        low: With `high`, the range of noise levels the two are compared at: their phase (see `schedule`) is uniform in
            it.
        high: See `low`.

    Raises:
        ValueError: for a negative anchor, or a range outside (0, 1) or without room.
    """

    def __init__(
        self,
        regression: TrajectoryDistillation,
        teacher: Denoiser,
        anchor: float = 1.0,
        low: float = 0.02,
        high: float = 0.98,
    ) -> None:
        if not anchor >= 0:
            raise ValueError(f"anchor is the weight of the regression, at least 0, got {anchor:g}")
        check_levels(low, high)
        self.regression, self.schedule, self.teacher = regression, regression.schedule, teacher
        self.anchor, self.low, self.high, self.kind = anchor, low, high, kind_of(teacher)

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """The regression's batches from step `start` on, with the noise levels t and the noise eps of the
        comparison."""
        return at_levels(self.regression, self.low, self.high, start, rank, world)

    def __call__(self, pair: nn.Module, batch: dict[str, Any]) -> Tensor:
        """The sum of the losses of one batch, a scalar."""
        t, cond = batch["t"], batch.get("cond")
        x_1, start = self.regression.start(batch)
        made, x_t, D_G = pair(x_1, cond, start, batch["frames"], t, batch["eps"])
        x = made[:, -1].to(x_t.dtype)
        alpha_t, sigma_t = (expand_like(c, x) for c in self.schedule(t))
        with torch.no_grad():
            D, sine = self.teacher(x_t, t, cond), sigma_t / (alpha_t**2 + sigma_t**2).sqrt()
            # One scale of all rows, of every process: of a row's own it would be correlated with what it scales.
            g = (D_G - D) / (sine * mean_of_all(((x - D).abs() / sine).mean()))
        match = 0.5 * (x - (x - g).detach()).square().mean()
        denoise = denoising(self.kind, D_G, x.detach(), alpha_t / sigma_t)
        if self.anchor == 0:
            return match + denoise
        return match + denoise + self.anchor * self.regression.of_frames(made, batch)


def kind_of(teacher: Denoiser) -> Kind | None:
    """What a teacher's network says, if it has one."""
    inner = _bare(teacher)
    return inner.kind if isinstance(inner, Prediction) else None


def _bare(teacher: Denoiser) -> Denoiser:
    while isinstance(teacher, Metered | Around):
        teacher = teacher.denoiser
    return teacher


def denoising(kind: Kind | None, D_G: Tensor, x: Tensor, ratio: Tensor) -> Tensor:
    r"""The loss of $D_G$, $(1 + \mathrm{SNR}_t) \| D_G - x \|^2$, or without the factor for a network that says $x_0$.

    The error of a network is the loss that it was trained by: of v, on a variance-preserving path, exactly the former,
    of $x_0$ the latter. Where hardly any noise is left the others read the sample off the state, and one that says
    $x_0$ errs as it does elsewhere, which the factor would make most of its loss.

    Arguments:
        kind: What the network says.
        D_G: What it makes of the state, (B, *shape).
        x: The samples, (B, *shape).
        ratio: $\alpha_t / \sigma_t$ of each row.
    """
    weight = 1.0 if kind == "x0" else 1 + ratio**2
    return (weight * (D_G - x).square()).mean()


def student_denoiser(teacher: Denoiser, guided: bool = False) -> nn.Module:
    """What $D_G$ starts as: a copy of the teacher that can be trained, without guidance and unclipped.

    The samples of a student that is told a guidance weight depend on it, so their denoiser is told it, too (`guided`).

    Raises:
        ValueError: if the teacher is no network of this library's; or, where a weight is to be told, as
            `flow_map_from_teacher` does.
    """
    teacher = _bare(teacher)
    if not isinstance(teacher, Prediction):
        raise ValueError(
            f"matching trains a copy of the teacher, and a {type(teacher).__name__} is no Prediction that can be "
            "copied: wrap "
            "its network in one"
        )
    if guided:
        return _Told(flow_map_from_teacher(teacher, guidance=True))
    made = copy.deepcopy(teacher).requires_grad_()
    made.clip = None
    return made


class _Told(nn.Module):
    """A flow map as the denoiser that it is at s = t, told a guidance weight."""

    def __init__(self, map: FlowMap) -> None:
        super().__init__()
        self.map = map

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return self.map.x0(x_t, t, t, cond)


@dataclass(frozen=True)
class MatchingOptions(OperatorOptions):
    """Options of `matching`: those of the regression, which is its anchor, too, and of the stage behind it."""

    fine_tuning: float = 0.4
    """The share of the steps behind the regression that match distributions, in (0, 1)."""
    anchor: float = 1.0
    """What the regression weighs beside the matching; 0 leaves it out."""
    pace: float = 10.0
    """The learning rate of the denoiser of the student's samples, over the student's (two time scales of DMD2)."""
    rate: float = 0.1
    """The student's learning rate in this stage, over the run's."""


def matched(student: TrajectoryStudent, given: Given, options: MatchingOptions = MatchingOptions()) -> list[Stage]:
    """The regression of `operator`, and in the share `fine_tuning` of the steps behind it `matching`.

    Raises:
        ValueError: for a share outside (0, 1), or fewer steps than stages; as the two functions do.
    """
    if not 0 < options.fine_tuning < 1 or given.steps < 2:
        raise ValueError(
            "matching is two stages of at least a step, the second of a share in (0, 1): got "
            f"{given.steps} steps and fine_tuning = {options.fine_tuning:g}"
        )
    second = min(max(round(given.steps * options.fine_tuning), 1), given.steps - 1)
    first = operator(student, replace(given, steps=given.steps - second), options)
    return first + matching(student, replace(given, steps=second), options)


def matching(student: Student, given: Given, options: MatchingOptions = MatchingOptions()) -> list[Stage]:
    """Fine-tune a `TrajectoryStudent`, or a `FlowMap` or `ParallelDecoder` at one pass, in one stage.

    The student should have been trained by then: from noise, a copy of the teacher makes no samples whose denoiser is
    worth anything. A step costs about twice one of regression.

    Raises:
        ValueError: if there are no trajectories, or they do not fit the student; for a teacher that cannot be copied,
            or anything that is no student.
    """
    if not isinstance(student, TrajectoryStudent | FlowMap | ParallelDecoder):
        raise ValueError(
            f"matching trains a TrajectoryStudent, FlowMap or ParallelDecoder, got a {type(student).__name__}"
        )
    data = given.solved
    times = student.times if isinstance(student, TrajectoryStudent) else torch.zeros(1, dtype=torch.float64)
    data = data.at(times) if len(times) < len(data.times) else data
    # All now, so that what does not fit is refused before the stages ahead of this one.
    pair = Pair(student, student_denoiser(given.denoiser, student.guided), options.pace)
    frames = pair.student.frames
    regression = TrajectoryDistillation(
        data,
        pair.student,
        options.weights,
        from_folder(options.distance, options.features),
        given.batch,
        given.seed,
        options.others if frames > 1 else None,
        options.inner_starts,
    )
    objective = Matching(regression, given.denoiser, options.anchor)

    def make(student: Student) -> tuple[Pair, Matching]:
        return Pair(student, student_denoiser(given.denoiser, student.guided), options.pace), objective

    def became(student: Student) -> Student:
        return student.trained_for(student.count, student.count) if isinstance(student, ParallelDecoder) else student

    return [Stage("matching", given.steps, make, became, lr=options.rate)]
