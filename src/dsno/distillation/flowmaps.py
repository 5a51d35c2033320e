r"""Flow map matching: losses over flow maps of two times (Boffi, Albergo & Vanden-Eijnden, 2024, arXiv 2406.07507).

$X_{t \to s}$ moves a state along a probability-flow ODE, $\dot x = b_t(x)$, and with its velocity $u(x_t, t, s)$ (see
`students.flowmap`) it is the flow exactly where one of these residuals vanishes for all t and s. Each makes a loss, its
mean square. They are divided by the scale of the state and by the speed of the angle, $\rho = (\alpha^2 +
\sigma^2)^{1/2}$ and $\dot\theta$, $\theta = \arctan(\sigma / \alpha)$; times are drawn, halved and measured by their
phase (see `schedule`); and where a derivative in s is compared with a velocity, both are taken less $(\dot\rho / \rho)
\, x$, what the scale moves. So neither a loss nor its gradient knows how the schedule runs through time, or how it
scales what it noises. Nothing in brackets [ ] has a gradient.

| method | residual | rows |
|---|---|---|
| `lagrangian` | $\partial_s X_{t \to s}(x_t) - [b_s(X_{t \to s}(x_t))]$ | $s < t$ |
| `eulerian` | $E = \partial_t X_{t \to s}(x_t) + \nabla X_{t \to s}(x_t) \, b_t(x_t)$ | $s < t$ |
| `meanflow` | $u - [u + a E]$, $a = \rho_t / \rho_s$; $u - b_t$ where $s = t$ | both |
| `shortcut` | $u - [u^*]$, $u^*$ of two half steps, to $X_{r \to s}(X_{t \to r}(x_t))$; $u - b_t$ at $s = t$ | both |
| `progressive_map` | the same with the map of the stage before, for steps up to $\tau$ | $s < t$ |
| `direct` | $\partial_s X_{t \to s}(x) - \dot x_s$ and $X_{t \to s}(x) - x_s$ at $x = X_{s \to t}(x_s)$ | any t, s |

$b_t(x_t)$ is the teacher's velocity, or $\dot x_t = \dot\alpha_t x_0 + \dot\sigma_t \epsilon$ of the data, whose mean
it is: the residual of `meanflow`, `shortcut` and `direct` are linear in it, so they can be trained without a teacher.

`meanflow` is Geng et al., 2025 (arXiv 2505.13447) for any schedule. Along the flow, with $\kappa_t = \dot\sigma_t
\alpha_t / \sigma_t - \dot\alpha_t$ and c the factor of h in X,

$$ E = \tfrac{\sigma_s}{\sigma_t} \kappa_t (h - D) + c \, \tfrac{d}{dt} h, \qquad
   u = \tfrac{\dot\sigma_t}{\sigma_t} x_t - \kappa_t h, $$

so on a straight path, where $X = x + (s - t) u$, it is $E = b_t - u + (s - t) \tfrac{d}{dt} u$ and the target with $a =
1$ their $b_t - (t - s) \tfrac{d}{dt} u$. The derivative needs no graph, which makes it the cheapest loss with one.
`shortcut` is Frans et al., 2024 (arXiv 2410.12557). Its shortest steps, as those of the first stage of
`progressive_map`, are made of two of DDIM: over an angle $\delta$ at the exact map that leaves, to leading order,

$$ \frac{\delta}{4 \sin\theta_t} \Big| \frac{dD}{d\theta} \Big| = \frac{\delta}{4} \frac{s^2 |z|}{v_t^{3/2}}, \qquad
   v_t = s^2 \cos^2\theta_t + \sin^2\theta_t, $$

the right for Gaussian data of standard deviation s, z standard normal. By default $\delta = \pi / 128$ in 3 rows of 28:
a loss of $4 \cdot 10^{-6}$ for s = 1. How derivatives are taken is said in `dsno.distillation.derivatives`.

The first two residuals bound the distance of the map's samples to the flow's, with L a Lipschitz constant of b,

$$ \mathbb E |X_{1 \to 0} - \mathrm{flow}|^2 \le \int_0^1 \mathbb E |E(x_t, t, 0)|^2 dt, \qquad
   \mathbb E |X_{1 \to 0} - \mathrm{flow}|^2 \le
   e^{1 + 2 L} \int_0^1 \mathbb E |\partial_s X_{1 \to s} - b_s(X_{1 \to s})|^2 ds. $$
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from dsno.borrow import unwrapped
from dsno.condition import Cond, map_cond
from dsno.denoise import NEAREST, Denoiser, convert, expand_like, x0_from
from dsno.distillation.denoising import Denoising, noised
from dsno.distillation.derivatives import WIDTH, Derivative, Local, check_derivative, jvp, slope, upwind
from dsno.distillation.stages import FlowMapOptions, Given, Stage
from dsno.schedule import Schedule
from dsno.seeds import generator
from dsno.solvers.first_order import ddim_step
from dsno.students.flowmap import FlowMap
from dsno.train import Objective

__all__ = [
    "DirectOptions",
    "EulerianOptions",
    "FlowMapMatching",
    "LagrangianOptions",
    "MeanFlowOptions",
    "ProgressiveMapOptions",
    "Residual",
    "ShortcutOptions",
    "direct",
    "eulerian",
    "lagrangian",
    "meanflow",
    "progressive_map",
    "shortcut",
    "velocity",
]

Residual = Literal["lagrangian", "eulerian", "meanflow", "shortcut", "progressive_map", "direct"]


def velocity(teacher: Denoiser, schedule: Schedule, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
    r"""$b_t(x_t) = \dot\alpha_t D + \dot\sigma_t \hat\epsilon$, (B, *shape); t (B,)."""
    return convert("flow", teacher(x_t, t, cond), x_t, t, schedule)


class FlowMapMatching:
    r"""The objective of a `FlowMap`, by one of the residuals above.

    Arguments:
        x: Clean samples, (N, *shape), which are noised to where a map starts.
        teacher: $D$; None takes the velocity of the data, with `meanflow`, `shortcut` and `direct`.
        schedule: The path.
        residual: The table above, by name.
        labels: (N,) labels of a class-conditional map, or None.
        batch: Rows per step, over all processes.
        seed: With the step, determines the batch, times and noise.
        derivative: How derivatives are taken, see above; by default `upwind` where it is along the flow, else
            `forward`.
        width: w of `upwind`, in [0.001, 1].
        rest: The share of rows with $s = t$, of `meanflow` and `shortcut`.
        power: p of the adaptive weight $(m + c)^{-p}$ of a row, m the mean of its squared residual without gradient and
            $c = 10^{-3}$ (Geng et al., 2025, section 4.3); 0 is none.
        span: The longest step, of `progressive_map`; the shortest of `shortcut`, a power of 1/2. Both in phase.
        before: The map of the stage before, of `progressive_map`; None is the teacher's DDIM step.
        first: Steps that stages before this one took: batches go on where theirs ended.
        noise: As `Denoising` has it.
        floor: The least phase at which a slope of the schedule is needed, which may be infinite at 0; by default
            $10^{-4}$, or what differences reach to.

    Raises:
        ValueError: for an unknown residual or derivative, a teacher that is missing, a share, span or width out of
            range, or as `Denoising` does.
    """

    def __init__(
        self,
        x: Tensor,
        teacher: Denoiser | None,
        schedule: Schedule,
        residual: Residual = "lagrangian",
        labels: Tensor | None = None,
        batch: int = 128,
        seed: int = 0,
        derivative: str | None = None,
        width: float = WIDTH,
        rest: float = 0.25,
        power: float = 0.0,
        span: float = 1 / 64,
        before: Callable[..., Tensor] | None = None,
        first: int = 0,
        noise: Tensor | None = None,
        floor: float | None = None,
    ) -> None:
        residuals: dict[str, Callable[..., Tensor]] = {
            "lagrangian": self._lagrangian,
            "eulerian": self._eulerian,
            "meanflow": self._meanflow,
            "shortcut": self._shortcut,
            "progressive_map": self._progressive,
            "direct": self._direct,
        }
        if residual not in residuals:
            raise ValueError(f"unknown residual {residual!r}: expected one of {', '.join(residuals)}")
        if teacher is None and residual in ("lagrangian", "eulerian", "progressive_map"):
            raise ValueError(
                f"{residual} distils a teacher, and there is none: give it, or take meanflow, shortcut or direct"
            )
        if not 0 <= rest < 1:
            raise ValueError(f"rest is the share of rows with s = t, in [0, 1), got {rest:g}")
        if not 0 < span <= 1 or (residual == "shortcut" and (1 / span) not in [2.0**k for k in range(24)]):
            raise ValueError(f"span must be in (0, 1], and of shortcut a power of 1/2, got {span:g}")
        along = residual in ("eulerian", "meanflow")
        derivative = derivative or ("upwind" if along else "forward")
        check_derivative(derivative, width, residual, along)
        self.named, self.residual = residual, residuals[residual]
        self.teacher, self.schedule, self.derivative, self.width = teacher, schedule, derivative, width
        self.rest = rest if residual in ("meanflow", "shortcut") else 0.0
        self.power, self.span, self.first = power, span, first
        self.before: Callable[..., Tensor] = before or self._ddim
        floor = floor if floor is not None else 1e-4 if derivative == "forward" else 2e-3
        # Teachers are not asked below: `dsno.denoise` takes slopes of the schedule no nearer to 0.
        self.floor = max(floor, float(schedule.phase(torch.tensor(NEAREST, dtype=torch.float64))))
        self.noised = Denoising(x, schedule, "x0", labels, batch, seed, noise=noise)

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Tensor]]:
        """Batches from step `start` on, each the share of `rank`; the rows at rest, $s = t$, come last."""
        start, B, moving = start + self.first, self.noised.batch, self._moving(self.noised.batch)
        if B % world or moving % world:
            given = f"a batch of {B}, {B - moving} rows of it at rest,"
            raise ValueError(f"{given} cannot be shared evenly by {world} processes: use a multiple")
        mine = torch.cat([torch.arange(moving)[rank::world], torch.arange(moving, B)[rank::world]])
        # Times are drawn for the whole batch, so that it is the same in any number of processes.
        for step, batch in enumerate(self.noised.batches(start), start):
            g, even = generator(self.noised.seed, step, 1), batch["t"]
            # Even in phase, but in no order: the rows at rest see all times, too.
            even = even[torch.randperm(B, generator=g)]
            share = torch.rand(B, generator=g)
            if self.named == "direct":
                p, q = share, even
            elif self.named == "shortcut":
                # A level of 2^k equal steps, and one of them; as a path has fewer long steps, they come as often.
                levels = round(-torch.tensor(self.span).log2().item())
                steps = 2 ** torch.randint(levels + 1, (B,), generator=g)
                first = (even * steps).ceil().clamp_min(1) / steps
                p, q = first, first - 1 / steps
                p[moving:] = even[moving:]
            elif self.named == "progressive_map":
                # Three quarters of the steps are longer than any that the stage before learned.
                length = self.span * share.sqrt()
                p = length + (1 - length) * even
                q = p - length
            else:
                # Of two uniform phases the later has density 2 p.
                p = even.sqrt()
                q = p * share
            p, q = p.clamp_min(self.floor), q.clamp_min(self.floor if self._sloped else 0.0)
            q[moving:] = p[moving:]
            made = {**batch, "t": self.schedule.from_phase(p), "s": self.schedule.from_phase(q)}
            yield {name: rows[mine] for name, rows in made.items()}

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The loss of one batch, a scalar."""
        x0, eps, t, s = batch["x0"], batch["eps"], batch["t"], batch["s"]
        at = s if self.named == "direct" else t
        x = noised(self.schedule, x0, eps, at)
        cond, b = batch.get("cond"), None
        if self.teacher is None or self.named == "direct":
            d_alpha, d_sigma = (expand_like(c, x0) for c in self.schedule.derivative(at))
            b = d_alpha * x0 + d_sigma * eps
        rows = self.residual(model, x, t, s, cond, b).square().flatten(1).mean(1)
        return (rows / (rows.detach() + 1e-3) ** self.power).mean()

    @property
    def _sloped(self) -> bool:
        return self.named in ("lagrangian", "eulerian", "meanflow", "direct")

    def _moving(self, rows: int) -> int:
        return rows - round(self.rest * rows)

    def _velocity(self, x_t: Tensor, t: Tensor, cond: Cond | None, b: Tensor | None) -> Tensor:
        return b if b is not None else velocity(cast(Denoiser, self.teacher), self.schedule, x_t, t, cond)

    def _speed(self, x: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        """What a derivative at t of a state at s is divided by; of one at t, without s."""
        return expand_like(self._scale(t if s is None else s) / self._pace(t), x)

    def _scale(self, t: Tensor) -> Tensor:
        alpha_t, sigma_t = self.schedule(t)
        return (alpha_t**2 + sigma_t**2).sqrt()

    def _pace(self, t: Tensor) -> Tensor:
        r"""$1 / \dot\theta_t$: derivatives with respect to the angle suit one difference on every schedule."""
        (alpha_t, sigma_t), (d_alpha, d_sigma) = self.schedule(t), self.schedule.derivative(t)
        return (alpha_t**2 + sigma_t**2) / (alpha_t * d_sigma - sigma_t * d_alpha)

    def _lagrangian(
        self, X: nn.Module, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond | None, b: Tensor | None = None
    ) -> Tensor:
        x_s, d_s = self._ahead(X, x_t, t, s, cond)
        with torch.no_grad():
            b_s = self._turning(self._velocity(x_s.detach(), s, cond, None), x_s, s)
        return (d_s - b_s) / self._speed(x_t, s)

    def _eulerian(
        self, X: nn.Module, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond | None, b: Tensor | None = None
    ) -> Tensor:
        with torch.no_grad():
            b = self._velocity(x_t, t, cond, b)
        return self._along(lambda x, t: X(x, t, s, cond), x_t, t, s, b) / self._speed(x_t, t, s)

    def _ahead(self, X: nn.Module, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond | None) -> tuple[Tensor, Tensor]:
        """The map, and its derivative in s, less what the scale moves."""
        pace = self._pace(s)
        x_s, d_s = jvp(lambda s: X(x_t, t, s, cond), (s,), (pace,), self.derivative)
        return x_s, self._turning(d_s / expand_like(pace, d_s), x_s, s)

    def _turning(self, d: Tensor, x: Tensor, t: Tensor) -> Tensor:
        r"""$\dot x - (\dot\rho / \rho) \, x$, what a state moves beside the scale of its path: all of it where that is
        constant."""
        (alpha_t, sigma_t), (d_alpha, d_sigma) = self.schedule(t), self.schedule.derivative(t)
        return d - expand_like((alpha_t * d_alpha + sigma_t * d_sigma) / (alpha_t**2 + sigma_t**2), x) * x

    def _along(self, f: Callable[..., Tensor], x_t: Tensor, t: Tensor, s: Tensor, b: Tensor) -> Tensor:
        """The derivative of f(x_t, t) along the flow, by the velocity b."""
        pace = self._pace(t)
        every = expand_like(pace, x_t)
        if self.derivative == "upwind":
            x0 = x0_from("flow", b, x_t, t, self.schedule)
            return upwind(f, self.schedule, x0, x_t, t, s, self.width)[1] / every
        return slope(f, (x_t, t), (every * b, pace), self.derivative) / every

    def _meanflow(
        self, X: nn.Module, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond | None, b: Tensor | None = None
    ) -> Tensor:
        u, n = X(x_t, t, s, cond, "velocity"), self._moving(len(t))
        with torch.no_grad():
            b = self._velocity(x_t, t, cond, b)
            target, held, told = b.clone(), unwrapped(X), map_cond(lambda c: c[:n], cond)
            # At rest E = b - u, whatever the derivative is.
            E = self._along(lambda x, t: held(x, t, s[:n], told), x_t[:n], t[:n], s[:n], b[:n])
            target[:n] = u[:n] + expand_like(self._scale(t[:n]) / self._scale(s[:n]), E) * E
        return (u - target) / self._speed(x_t, t)

    def _shortcut(
        self, X: nn.Module, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond | None, b: Tensor | None = None
    ) -> Tensor:
        u, n, held = X(x_t, t, s, cond, "velocity"), self._moving(len(t)), unwrapped(X)

        def half(x: Tensor, t: Tensor, s: Tensor, cond: Cond | None) -> Tensor:
            # The shortest steps are made of what is learned at rest: DDIM's.
            short = self.schedule.phase(t) - self.schedule.phase(s) < 0.75 * self.span
            return ddim_step(self.schedule, held.x0(x, t, torch.where(short, t, s), cond), x, t, s)

        with torch.no_grad():
            target = torch.empty_like(u)
            target[:n] = self._twice(half, x_t[:n], t[:n], s[:n], map_cond(lambda c: c[:n], cond))
            if n < len(t):
                rest = slice(n, None)
                target[rest] = self._velocity(
                    x_t[rest], t[rest], map_cond(lambda c: c[rest], cond), None if b is None else b[rest]
                )
        return (u - target) / self._speed(x_t, t)

    def _progressive(
        self, X: nn.Module, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond | None, b: Tensor | None = None
    ) -> Tensor:
        with torch.no_grad():
            target = self._twice(self.before, x_t, t, s, cond)
        return (X(x_t, t, s, cond, "velocity") - target) / self._speed(x_t, t)

    def _direct(
        self, X: nn.Module, x_s: Tensor, t: Tensor, s: Tensor, cond: Cond | None, b: Tensor | None = None
    ) -> Tensor:
        x_t = X(x_s, s, t, cond)
        again, d_s = self._ahead(X, x_t, t, s, cond)
        b = self._turning(self._velocity(x_s, s, cond, b), x_s, s)
        return torch.cat([(d_s - b) / self._speed(x_s, s), (again - x_s) / expand_like(self._scale(s), x_s)], 1)

    def _twice(self, step: Callable[..., Tensor], x_t: Tensor, t: Tensor, s: Tensor, cond: Cond | None) -> Tensor:
        """The velocity whose step from t to s leads where two of half the length do."""
        r = self.schedule.from_phase((self.schedule.phase(s) + self.schedule.phase(t)) / 2)
        x_s = step(step(x_t, t, r, cond), r, s, cond)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = ((expand_like(c, x_t) for c in self.schedule(v)) for v in (t, s))
        d_alpha, d_sigma = (expand_like(c, x_t) for c in self.schedule.derivative(t))
        # h of that step, and u of h: (sigma_t x_s - sigma_s x_t) / (sigma_t c) has c of the size of t - s.
        h = (sigma_t * x_s - sigma_s * x_t) / (sigma_t * alpha_s - sigma_s * alpha_t)
        return d_alpha * h + d_sigma * (x_t - alpha_t * h) / sigma_t

    def _ddim(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond | None) -> Tensor:
        return ddim_step(self.schedule, cast(Denoiser, self.teacher)(x_t, t, cond), x_t, t, s)


@dataclass(frozen=True)
class LagrangianOptions(FlowMapOptions):
    """Options of `lagrangian`."""

    derivative: Local = "forward"
    """How the derivative in s is taken: exactly (forward), or by central differences where a layer has no forward
    mode."""

    @property
    def exact(self) -> bool:
        """See `FlowMapOptions`."""
        return self.derivative == "forward"


@dataclass(frozen=True)
class EulerianOptions(FlowMapOptions):
    """Options of `eulerian`."""

    derivative: Derivative = "upwind"
    """How the derivative along the flow is taken: looking back, or exactly (forward), or by central differences."""
    width: float = WIDTH
    """Width of an upwind difference, a share of the path."""

    @property
    def exact(self) -> bool:
        """See `FlowMapOptions`."""
        return self.derivative == "forward"


@dataclass(frozen=True)
class MeanFlowOptions(EulerianOptions):
    """Options of `meanflow`."""

    from_data: bool = False
    """Learn the velocity of the data, not the teacher's."""
    rest: float | None = None
    """Share of rows with s = t, in [0, 1); the paper's 3/4 of the data's velocities, 1/4 of the teacher's by
    default."""
    power: float | None = None
    """Power of the adaptive weight; the paper's 1 of the data's velocities, 0 of the teacher's by default."""


@dataclass(frozen=True)
class ShortcutOptions(FlowMapOptions):
    """Options of `shortcut`."""

    from_data: bool = False
    """Learn the velocity of the data, not the teacher's."""
    rest: float | None = None
    """Share of rows with s = t, in [0, 1); the paper's 3/4 of the data's velocities, 1/4 of the teacher's by
    default."""
    span: float = 1 / 64
    """The shortest step, a power of 1/2 of the path."""


@dataclass(frozen=True)
class DirectOptions(LagrangianOptions):
    """Options of `direct`."""


@dataclass(frozen=True)
class ProgressiveMapOptions(FlowMapOptions):
    """Options of `progressive-map`."""

    span: float = 1 / 8
    """The longest step of the first stage, a share of the path; the stages double it to 1."""


def lagrangian(student: FlowMap, given: Given, options: LagrangianOptions = LagrangianOptions()) -> list[Stage]:
    """Lagrangian map distillation (Boffi et al., 2024, arXiv 2406.07507), in one stage."""
    return _one(given, "lagrangian", given.teacher, derivative=options.derivative)


def eulerian(student: FlowMap, given: Given, options: EulerianOptions = EulerianOptions()) -> list[Stage]:
    """Eulerian map distillation (Boffi et al., 2024, arXiv 2406.07507), in one stage."""
    return _one(given, "eulerian", given.teacher, derivative=options.derivative, width=options.width)


def meanflow(student: FlowMap, given: Given, options: MeanFlowOptions = MeanFlowOptions()) -> list[Stage]:
    """MeanFlow (Geng et al., 2025, arXiv 2505.13447) in one stage: of the teacher's velocity, or of the data's.

    The paper's `power=1` and its share of rows with s = t, 3/4, are the defaults for the data's velocities, whose noise
    is in every residual. A teacher's leave none where s is near t, and weighing those rows most is to learn nothing:
    there they are 0 and 1/4.
    """
    teacher = None if options.from_data else given.teacher
    return _one(
        given,
        "meanflow",
        teacher,
        derivative=options.derivative,
        width=options.width,
        rest=_rest(teacher) if options.rest is None else options.rest,
        power=(1.0 if teacher is None else 0.0) if options.power is None else options.power,
    )


def shortcut(student: FlowMap, given: Given, options: ShortcutOptions = ShortcutOptions()) -> list[Stage]:
    """Shortcut models (Frans et al., 2024, arXiv 2410.12557) in one stage: of the teacher's velocity, or of the data's.

    Its targets are the student's own, not those of averaged weights; `rest` is the paper's 3/4 where the velocities are
    the data's, 1/4 where a teacher's. At the exact map the loss is the error of its shortest targets (see above).
    """
    teacher = None if options.from_data else given.teacher
    rest = _rest(teacher) if options.rest is None else options.rest
    return _one(given, "shortcut", teacher, rest=rest, span=options.span)


def direct(student: FlowMap, given: Given, options: DirectOptions = DirectOptions()) -> list[Stage]:
    """Direct flow map matching (Boffi et al., 2024, arXiv 2406.07507) of the data alone, in one stage."""
    return _one(given, "direct", None, derivative=options.derivative)


def progressive_map(
    student: FlowMap, given: Given, options: ProgressiveMapOptions = ProgressiveMapOptions()
) -> list[Stage]:
    r"""Progressive flow map matching (Boffi et al., 2024, arXiv 2406.07507): steps of twice the length in every stage.

    The first stage learns steps up to `span` from two of the teacher's DDIM steps; the last, of length 1, has two
    shares.

    Raises:
        ValueError: if there are fewer steps than shares.
    """
    spans = [options.span]
    while spans[-1] < 1:
        spans.append(min(2 * spans[-1], 1.0))
    share = given.steps // (len(spans) + 1)
    if share < 1:
        raise ValueError(
            f"progressive_map doubles its steps from {options.span:g} to 1 in {len(spans)} stages: it takes at least "
            f"{len(spans) + 1} optimiser steps, got {given.steps}"
        )

    def stage(n: int, span: float) -> Stage:
        def make(student: FlowMap) -> tuple[nn.Module, Objective]:
            before = copy.deepcopy(student).eval().requires_grad_(False) if n else None
            objective = _matching(given, "progressive_map", given.teacher, span=span, before=before, first=n * share)
            return student, objective

        own = share if span < 1 else given.steps - share * (len(spans) - 1)
        return Stage(f"span-{span:g}", own, make, lambda X: X.trained_for("any"))

    return [stage(n, span) for n, span in enumerate(spans)]


def _one(given: Given, residual: Residual, teacher: Denoiser | None, **options: Any) -> list[Stage]:
    objective = _matching(given, residual, teacher, **options)
    return [Stage(residual, given.steps, lambda X: (X, objective), lambda X: X.trained_for("any"))]


def _matching(given: Given, residual: Residual, teacher: Denoiser | None, **options: Any) -> FlowMapMatching:
    return FlowMapMatching(
        given.samples, teacher, given.schedule, residual, given.labels, given.batch, given.seed, **options
    )


def _rest(teacher: Denoiser | None) -> float:
    return 0.75 if teacher is None else 0.25
