r"""Consistency: one map $f(x_t, t) = X_{t \to 0}(x_t)$ that is constant along every path of the probability-flow ODE.

The boundary condition $f(x, 0) = x$ is built into a `FlowMap`, so f is the ODE's solution exactly where neighbours
agree. With $\bar\sigma = \sigma / \alpha$ (the sigma of the papers) and $r < t$,

$$ L = \mathbb E \; \lambda(t, r) \, d\big(f(x_t, t), \; \mathrm{sg} f(x_r, r)\big), \qquad
   d(a, b) = \sqrt{\mathrm{mean}(a - b)^2 + c^2} - c, \quad c = 0.00054, $$

without a moving average of weights in the target, or with another distance d of images, as the papers' perceptual one
(`dsno.distillation.distances.distance`). What differs is where $x_r$ comes from and which $(t, r)$ are drawn:

| method | $x_r$ | $\bar\sigma_t, \bar\sigma_r$ |
|---|---|---|
| `consistency` | the teacher's step from $x_t$ | neighbours on a Karras grid |
| `consistency_training` | $\alpha_r x_0 + \sigma_r \epsilon$, the same data and noise | the same, refined in training |
| `easy_consistency` | the same | $\bar\sigma_r = \bar\sigma_t (1 - n(\bar\sigma_t) q^{-a})_+$, $a$ growing |

| weights | $\lambda$ |
|---|---|
| `angle` | $1 / \sin\theta_t$, $\tan\theta_t = \bar\sigma_t$: of an absolute d a unit gradient in the prediction |
| `gap` | $1 / (\bar\sigma_t - \bar\sigma_r)$, the papers' for training; nearly all of it on the lowest levels |
| `one` | 1, the paper's for distillation |

Both $x_r$ are DDIM's step, from the teacher's $\hat x_0$ or from $x_0$ itself, whose mean given $x_t$ the teacher's is.

`continuous_consistency` is the limit $r \to t$, but for the width of its differences. In the angle $\theta =
\arctan(\sigma_t / (\alpha_t \sigma_d))$ and the state $\hat x = \sigma_d x_t / s_t$, $s_t^2 = \alpha_t^2 \sigma_d^2 +
\sigma_t^2$, every schedule is TrigFlow (Lu & Song, 2024, arXiv 2410.11081; under `Cosine` and $\sigma_d = 1$ it is the
schedule itself, up to the unit of time):

$$ \hat x = \cos\theta \, x_0 + \sin\theta \, \sigma_d \epsilon, \qquad
   f = \cos\theta \, \hat x - \sin\theta \, \sigma_d \hat F, \qquad
   \hat v = \frac{d \hat x}{d\theta} = \cos\theta \, \sigma_d \hat\epsilon - \sin\theta \, \hat x_0, $$

$$ g = \frac{\cos\theta}{\sigma_d} \Big( w \frac{df}{d\theta}
   - (1 - w) \cos\theta \, (\sigma_d \hat F - \hat v) \Big), \qquad
   L = \mathbb E \, \mathrm{mean} \Big( \hat F - \mathrm{sg} \hat F - \frac{g}{\mathrm{rms}(g) + c} \Big)^2, $$

where $df / d\theta = (\partial_t f + \nabla f \cdot \dot x_t) / \dot\theta_t$, $\dot\theta_t = \sigma_d (\dot\sigma_t
\alpha_t - \sigma_t \dot\alpha_t) / s_t^2$, has no graph, and w grows from 0 to 1 at the start of training. The
derivative is taken `upwind` (`dsno.distillation.flowmaps`) unless asked otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from dsno.borrow import unwrapped
from dsno.condition import Cond
from dsno.denoise import Denoiser, expand_like
from dsno.distillation.adaptive import Weighed, adapted
from dsno.distillation.denoising import Denoising, noised
from dsno.distillation.derivatives import WIDTH, Derivative, check_derivative, jvp, same_draws, upwind
from dsno.distillation.distances import Distance, from_folder
from dsno.distillation.distances import distance as named_distance
from dsno.distillation.levels import Gap, Grid, Levels, Pairs
from dsno.distillation.stages import FlowMapOptions, Given, Stage
from dsno.schedule import Schedule
from dsno.solvers.first_order import ddim_step
from dsno.students.flowmap import FlowMap
from dsno.train import Objective

__all__ = [
    "Consistency",
    "ConsistencyOptions",
    "ConsistencyTrainingOptions",
    "ContinuousConsistency",
    "ContinuousConsistencyOptions",
    "EasyConsistencyOptions",
    "Solver",
    "consistency",
    "consistency_training",
    "continuous_consistency",
    "easy_consistency",
    "teacher_step",
]

Solver = Literal["ddim", "heun"]

Weights = Literal["angle", "gap", "one"]

Jump = Callable[[Tensor, Tensor, Tensor, Cond | None], Tensor]


def teacher_step(teacher: Denoiser, schedule: Schedule, solver: Solver = "ddim") -> Jump:
    r"""$(x_t, t, r, \mathrm{cond}) \mapsto x_r$ along the teacher's ODE; t and r (B,).

    DDIM's step, and by `heun` the same from the mean of $\hat x_0$ at both of its ends: second order, twice the calls.

    Raises:
        ValueError: for an unknown solver.
    """
    if solver not in ("ddim", "heun"):
        raise ValueError(f"unknown solver {solver!r}: expected ddim or heun")

    def step(x_t: Tensor, t: Tensor, r: Tensor, cond: Cond | None) -> Tensor:
        x0_hat = teacher(x_t, t, cond)
        x_r = ddim_step(schedule, x0_hat, x_t, t, r)
        if solver == "heun":
            # At r = 0 the mean would run over infinitely many signal-to-noise ratios: there D is its left end's.
            end = torch.where(expand_like(r, x_t) > 0, teacher(x_r, r, cond), x0_hat)
            x_r = ddim_step(schedule, (x0_hat + end) / 2, x_t, t, r)
        return x_r

    return step


_WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "angle": lambda later, earlier: (1 + later**-2).sqrt(),
    "gap": lambda later, earlier: 1 / (later - earlier),
    "one": lambda later, earlier: torch.ones_like(later),
}


class Consistency:
    r"""The objective of a consistency function in discrete steps; formula and table above.

    Arguments:
        x: Clean samples, (N, *shape).
        schedule: The path.
        pairs: From u (B,), uniform, and the step of the training to $\bar\sigma_t$ and $\bar\sigma_r$, (B,).
        jump: $(x_t, t, r, \mathrm{cond}) \mapsto x_r$; None noises the same sample with the same noise.
        weights: $\lambda$ by its name in the table above, scaled to the mean 1 over the pairs of a step.
        labels: (N,) labels of a class-conditional map, or None.
        batch: Rows per step, over all processes.
        seed: With the step, determines the batch, times and noise.
        distance: d of two batches, (B,), or its name; None is the formula above.
        c: Where that d turns from a square to an absolute value, in root mean square.

    Raises:
        ValueError: as `Denoising` does, for an unknown distance, or unless c is positive.
    """

    def __init__(
        self,
        x: Tensor,
        schedule: Schedule,
        pairs: Pairs,
        jump: Jump | None = None,
        weights: Weights = "angle",
        labels: Tensor | None = None,
        batch: int = 128,
        seed: int = 0,
        distance: Distance | str | None = None,
        c: float = 0.00054,
    ) -> None:
        if weights not in _WEIGHTS:
            raise ValueError(f"unknown weights {weights!r}: expected one of {', '.join(_WEIGHTS)}")
        self.noised = Denoising(x, schedule, "x0", labels, batch, seed)
        self.schedule, self.pairs, self.jump, self.weigh = schedule, pairs, jump, _WEIGHTS[weights]
        own, named = _pseudo_huber(c), named_distance(distance) if isinstance(distance, str) else distance
        self.distance = own if named is None else named

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Tensor]]:
        """Batches from step `start` on: x0, eps, cond, and t, r and weight (B,)."""
        every = (torch.arange(1024, dtype=torch.float64) + 0.5) / 1024
        for step, batch in enumerate(self.noised.batches(start, rank, world), start):
            later, earlier = self.pairs(batch["t"], step)
            weight = self.weigh(later, earlier) / self.weigh(*self.pairs(every, step)).mean()
            t, r = (_time(self.schedule, level) for level in (later, earlier))
            yield {**batch, "t": t, "r": r, "weight": weight.float()}

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The loss of one batch, a scalar."""
        x0, eps, t, r, cond = batch["x0"], batch["eps"], batch["t"], batch["r"], batch.get("cond")
        x_t = noised(self.schedule, x0, eps, t)
        with torch.no_grad(), same_draws(x_t):
            x_r = noised(self.schedule, x0, eps, r) if self.jump is None else self.jump(x_t, t, r, cond)
            target = unwrapped(model)(x_r, r, 0.0, cond)
        return (batch["weight"] * self.distance(model(x_t, t, 0.0, cond), target)).mean()


def _pseudo_huber(c: float) -> Distance:
    if not c > 0:
        raise ValueError(f"c of the pseudo-Huber distance must be positive, got {c:g}")

    def d(a: Tensor, b: Tensor) -> Tensor:
        square = (a - b).square().flatten(1).mean(1)
        # sqrt(square + c^2) - c, without the difference of nearly equal numbers.
        return square / ((square + c**2).sqrt() + c)

    return d


class ContinuousConsistency:
    r"""The objective of a consistency function in continuous time; formula above.

    Of a `Weighed` student the paper's adaptive weight is learned, too. Normalised tangents have nearly the same size
    for all t, so it has little to do.

    Arguments:
        x: Clean samples, (N, *shape).
        schedule: The path.
        teacher: $D$, whose velocity the derivative follows; None takes that of the data, whose mean given $x_t$ it is.
        levels: The distribution of $\bar\sigma_t$.
        warmup: Steps until w = 1.
        labels: (N,) labels of a class-conditional map, or None.
        batch: Rows per step, over all processes.
        seed: With the step, determines the batch, times and noise.
        data_std: $\sigma_d$.
        c: As in the formula; large values leave the tangent as it is, scaled by 1 / c.
        derivative: `upwind`, or `forward` or `difference`, which suit networks that are smooth in t.
        width: w of `upwind`, in [0.001, 1].

    Raises:
        ValueError: as `Denoising` does, or unless c is positive, or for another derivative or width.
    """

    def __init__(
        self,
        x: Tensor,
        schedule: Schedule,
        teacher: Denoiser | None,
        levels: Levels,
        warmup: int = 0,
        labels: Tensor | None = None,
        batch: int = 128,
        seed: int = 0,
        data_std: float = 1.0,
        c: float = 0.1,
        derivative: str = "upwind",
        width: float = WIDTH,
    ) -> None:
        if not c > 0:
            raise ValueError(f"c of the tangent's normalisation must be positive, got {c:g}")
        check_derivative(derivative, width, "continuous-consistency")
        self.noised = Denoising(x, schedule, "x0", labels, batch, seed)
        self.schedule, self.teacher, self.levels, self.warmup = schedule, teacher, levels, warmup
        self.data_std, self.c, self.derivative, self.width = data_std, c, derivative, width

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Tensor]]:
        """Batches from step `start` on: x0, eps, cond, t (B,), and w (B,)."""
        for step, batch in enumerate(self.noised.batches(start, rank, world), start):
            t = _time(self.schedule, self.levels(batch["t"]))
            yield {**batch, "t": t, "w": torch.full_like(t, min(1.0, step / self.warmup) if self.warmup else 1.0)}

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The loss of one batch, a scalar: the mean square of the normalised tangent."""
        x0, eps, t, cond = batch["x0"], batch["eps"], batch["t"], batch.get("cond")
        w, std = expand_like(batch["w"], x0), self.data_std
        alpha, sigma = (expand_like(c, x0) for c in self.schedule(t))
        d_alpha, d_sigma = (expand_like(c, x0) for c in self.schedule.derivative(t))
        s = (alpha**2 * std**2 + sigma**2).sqrt()
        cos, sin, d_theta = alpha * std / s, sigma / s, std * (d_sigma * alpha - sigma * d_alpha) / s**2
        x_t = alpha * x0 + sigma * eps
        inner = unwrapped(model)
        inner = inner.student if isinstance(inner, Weighed) else inner
        with torch.no_grad(), same_draws(x_t):
            x0_hat = x0 if self.teacher is None else self.teacher(x_t, t, cond)
            eps_hat = eps if self.teacher is None else (x_t - alpha * x0_hat) / sigma
            # Per sin cos of the angle, the steps in t and x are bounded on every schedule.
            pace = sin * cos / d_theta

            def ends(x: Tensor, t: Tensor) -> Tensor:
                return cast(Tensor, inner(x, t, 0.0, cond))

            if self.derivative == "upwind":
                f, d_f = upwind(ends, self.schedule, x0_hat, x_t, t, torch.zeros_like(t), self.width)
                # The slope is per unit of the angle without data_std.
                d_f = alpha * sigma / (alpha**2 + sigma**2) * d_f
            else:
                along = (pace * (d_alpha * x0_hat + d_sigma * eps_hat), pace.flatten().to(t))
                f, d_f = jvp(ends, (x_t, t), along, self.derivative)
            F, v = (cos * std / s * x_t - f) / (sin * std), cos * std * eps_hat - sin * x0_hat
            g = (w * d_f / sin - (1 - w) * cos**2 * (std * F - v)) / std
            g = g / (expand_like(g.square().flatten(1).mean(1).sqrt(), g) + self.c)
        f = model(x_t, t, 0.0, cond)
        f, *weight = f if isinstance(f, tuple) else (f,)
        rows = ((f - f.detach()) / (sin * std) + g).square().flatten(1).mean(1)
        return adapted(rows, *weight) if weight else rows.mean()


def _time(schedule: Schedule, level: Tensor) -> Tensor:
    return schedule.time(-2 * level.log()).float()


@dataclass(frozen=True)
class _Discrete(FlowMapOptions):
    """What the discrete methods have in common."""

    levels: tuple[float, float] | None = (-1.1, 2.0)
    """Mean and standard deviation of the logarithm of the noise levels sigma / alpha that are trained."""
    weights: Weights = "angle"
    """Weighting of the levels: angle, gap (the papers' for training), one (the paper's for distillation)."""
    distance: str | None = None
    """Distance of the loss: l1, l2, huber, perceptual, or a sum such as l1+perceptual; by default the papers'
    pseudo-Huber."""
    features: Path | None = None
    """Folder of the feature network of a perceptual distance (not the one that quality is measured in)."""
    c: float = 0.00054
    """Where the pseudo-Huber distance turns from a square to an absolute value, in root mean square."""

    def objective(self, given: Given, pairs: Pairs, jump: Jump | None = None) -> Consistency:
        """The loss of a method that differs in its pairs and its jump."""
        named = (
            None
            if self.distance is None and self.features is None
            else from_folder(self.distance or "the default", self.features)
        )
        return Consistency(
            given.samples,
            given.schedule,
            pairs,
            jump,
            self.weights,
            given.labels,
            given.batch,
            given.seed,
            named,
            self.c,
        )

    def drawn(self) -> Levels:
        """The levels, of a method that draws them.

        Raises:
            ValueError: if there are none.
        """
        if self.levels is None:
            raise ValueError(
                "this method draws noise levels: give their mean and standard deviation (levels=(-1.1, 2))"
            )
        return Levels(*self.levels)


@dataclass(frozen=True)
class ConsistencyOptions(_Discrete):
    """Options of `consistency`. Without `levels` all intervals are drawn alike."""

    intervals: int = 40
    """Intervals of the grid."""
    solver: Solver = "ddim"
    """The teacher's step between neighbours: ddim, or heun, of second order at twice the calls."""


@dataclass(frozen=True)
class ConsistencyTrainingOptions(_Discrete):
    """Options of `consistency-training`. Without `levels` all intervals are drawn alike."""

    first: int = 10
    """Intervals of the grid at the start."""
    last: int = 1280
    """Intervals of the grid at the end; it is refined by doubling, at equal distances."""


@dataclass(frozen=True)
class EasyConsistencyOptions(_Discrete):
    """Options of `easy-consistency`."""

    stages: int = 8
    """How often the gap shrinks."""
    q: float = 2.0
    """The factor that it shrinks by."""


@dataclass(frozen=True)
class ContinuousConsistencyOptions(FlowMapOptions):
    """Options of `continuous-consistency`."""

    from_data: bool = False
    """Learn along the velocity of the data (sCT), not the teacher's (sCD)."""
    levels: tuple[float, float] = (-1.1, 2.0)
    """Mean and standard deviation of the logarithm of the noise levels sigma / alpha; the paper's -1 1.4 leave the
    noisiest levels, where a single pass starts, to what the network makes of the rest."""
    warmup: float = 0.1
    """Share of the steps in which the tangent grows to its whole."""
    c: float = 0.1
    """In the tangent's normalisation, beside its root mean square; the paper's 0.1 beside the norm of D numbers is
    0.1 / sqrt(D) here, and large values leave the tangent as it is, scaled by 1 / c."""
    adaptive: bool = False
    """Learn what each time weighs, as the paper does."""
    derivative: Derivative = "upwind"
    """How the derivative along the flow is taken: looking back, or exactly (forward), or by central differences."""
    width: float = WIDTH
    """Width of an upwind difference, a share of the path."""

    @property
    def exact(self) -> bool:
        """See `FlowMapOptions`."""
        return self.derivative == "forward"


def consistency(student: FlowMap, given: Given, options: ConsistencyOptions = ConsistencyOptions()) -> list[Stage]:
    r"""Consistency distillation (Song et al., 2023, arXiv 2303.01469): a teacher, and any number of passes.

    The paper's choice is `intervals=18, levels=None, weights="one"`. Without its moving average in the target the low
    levels then have too little weight to hold the rest: on `Cosine` paths it diverges.

    Raises:
        ValueError: if there are no clean samples to noise, or for numbers out of range.
    """
    levels = None if options.levels is None else Levels(*options.levels)
    pairs = Grid(_constant("intervals", options.intervals), levels, _end(given.schedule))
    jump = teacher_step(given.denoiser, given.schedule, options.solver)
    return _stages(given, "consistency", options.objective(given, pairs, jump))


def consistency_training(
    student: FlowMap, given: Given, options: ConsistencyTrainingOptions = ConsistencyTrainingOptions()
) -> list[Stage]:
    """Improved consistency training (Song & Dhariwal, 2023, arXiv 2310.14189): data alone, the teacher is not called.

    Raises:
        ValueError: as `consistency`.
    """
    first, last = options.first, options.last
    if not 1 <= first <= last:
        raise ValueError(f"the grid is refined from `first` to `last` intervals, at least 1: got {first} and {last}")
    doublings = int(math.log2(last // first))
    each = max(given.steps // (doublings + 1), 1)
    levels = None if options.levels is None else Levels(*options.levels)
    pairs = Grid(lambda step: min(first * 2 ** min(step // each, doublings), last), levels, _end(given.schedule))
    return _stages(given, "consistency-training", options.objective(given, pairs))


def easy_consistency(
    student: FlowMap, given: Given, options: EasyConsistencyOptions = EasyConsistencyOptions()
) -> list[Stage]:
    """Easy consistency tuning (Geng et al., 2024, arXiv 2406.14548): data alone, from a teacher's weights.

    Raises:
        ValueError: as `consistency`.
    """
    stages, q = options.stages, options.q
    if stages < 1 or not q > 1:
        raise ValueError(
            f"the gap shrinks in at least 1 stage by a factor above 1: got stages = {stages} and q = {q:g}"
        )
    pairs = Gap(lambda step: 1 + min(step * stages // given.steps, stages - 1), options.drawn(), q)
    return _stages(given, "easy-consistency", options.objective(given, pairs))


def continuous_consistency(
    student: FlowMap, given: Given, options: ContinuousConsistencyOptions = ContinuousConsistencyOptions()
) -> list[Stage]:
    """sCM (Lu & Song, 2024, arXiv 2410.11081): sCD along the teacher's velocity, or sCT along the data's.

    Raises:
        ValueError: as `consistency`.
    """
    if not 0 <= options.warmup <= 1:
        raise ValueError(f"the warm-up is a share of the steps, in [0, 1], got {options.warmup:g}")
    objective = ContinuousConsistency(
        given.samples,
        given.schedule,
        None if options.from_data else given.denoiser,
        Levels(*options.levels),
        round(options.warmup * given.steps),
        given.labels,
        given.batch,
        given.seed,
        student.data_std,
        options.c,
        options.derivative,
        options.width,
    )
    (stage,) = _stages(given, "continuous-consistency", objective)
    if not options.adaptive:
        return [stage]
    return [replace(stage, make=lambda X: (Weighed(X, given.schedule), objective))]


def _constant(name: str, value: int) -> Callable[[int], int]:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return lambda step: value


def _end(schedule: Schedule) -> float:
    """The level at t = 1, or where it is infinite, one as good."""
    alpha, sigma = schedule.at(1.0)
    return min(sigma / alpha, 1e4) if alpha > 0 else 1e4


def _stages(given: Given, name: str, objective: Objective) -> list[Stage]:
    return [Stage(name, given.steps, lambda X: (X, objective), lambda X: X.trained_for("end"))]
