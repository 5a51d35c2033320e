r"""Operator splitting: the denoiser by a multistep rule, the guide by steps of its own.

With $\bar x = x / \alpha$ and $r = \sigma / \alpha$ the flow of a steered denoiser (`dsno.steer`) is a sum,

$$ \frac{d \bar x}{d r} = \underbrace{\hat\epsilon(x_t, t)}_A
   \underbrace{{} - \sigma_t \, w \nabla_{x_t} \log p(y \mid x_t)}_B. $$

A guide may be rougher than the score, and a multistep rule of high order that goes through past values of both is
unstable then. Splitting alternates the two flows over a step: Lie's, $B$ and then $A$, and Strang's, half of $B$, $A$
and the other half. $A$ is solved by Adams-Bashforth (`dsno.solvers.adams`), whose past holds nothing of the guide,
$B$ by Euler's rule at a time that stands still, t before and s after $A$.

**The time that is split.** Halving a step means halving it in some time. The paper's is $r$, which runs to infinity
where a schedule's noise does. Here it is the angle

$$ \theta = \arctan r \in [0, \pi / 2], \qquad d \theta = dr / (1 + r^2), $$

in which $B$ over a part $f$ of the step from t to s, at the time $\tau$ that stands still, is

$$ x_\tau \leftarrow x_\tau + f \, (\theta_t - \theta_s) \,
   \frac{\sigma_\tau}{\alpha_\tau} (\alpha_\tau^2 + \sigma_\tau^2) \, w \nabla_{x_\tau} \log p(y \mid x_\tau). $$

It is the paper's to first order, the same towards the data, where $\theta = r$, and bounded towards the noise for every
schedule, since the gradient vanishes there as $\alpha_\tau$ does. Where $\alpha_\tau = 0$ the guide is silent.

| step | order | calls of the denoiser | gradients |
|---|---|---|---|
| `LTSP` | 1 | 1 | 1 |
| `STSP` | 1, as Euler's rule for $B$ has | 1 | 2 |
| `Strang2`, midpoint rules for both | 2 | 2 | 4 |
| `dsno.solvers.adams.PLMS` of the whole | k | 1 | 1 |

So `STSP` of order 4 is of order 4 in $A$ and of order 1 in all: what it gains is stability and a small constant. A
guide that reads $\hat x_0$ costs a call of the denoiser for each gradient.

Source: Wizadwongsa & Suwajanakorn, 2023 (arXiv 2301.11558), algorithms 2 and 3; Strang, 1968.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dsno.schedule import Schedule
from dsno.solvers.adams import advanced, check_order
from dsno.solvers.first_order import affine
from dsno.solvers.step import Eval, Evaluate, Past
from dsno.steer import Halves

__all__ = ["LTSP", "STSP", "Strang2"]


@dataclass(frozen=True)
class LTSP:
    """Lie splitting: the guide's whole step at t, then the denoiser's of `order` 1 to 4.

    Raises:
        ValueError: for another order; when called, for a denoiser without a guide.
    """

    order: int = 4
    stochastic = False

    def __post_init__(self) -> None:
        check_order(self.order)

    def __call__(
        self, D: Evaluate, schedule: Schedule, x: Tensor, t: float, s: float, past: Past, z: Tensor | None
    ) -> tuple[Tensor, Past]:
        halves = _halves(D)
        slope = halves.slope(x, t)
        x_b = _pulled(schedule, x, slope, t, (t, s), 1.0)
        return _denoised(halves, schedule, x_b, slope, t, s, past, self.order)


@dataclass(frozen=True)
class STSP:
    """Strang splitting: half of the guide's step at t, the denoiser's of `order` 1 to 4, the other half at s.

    Raises:
        ValueError: for another order; when called, for a denoiser without a guide.
    """

    order: int = 4
    stochastic = False

    def __post_init__(self) -> None:
        check_order(self.order)

    def __call__(
        self, D: Evaluate, schedule: Schedule, x: Tensor, t: float, s: float, past: Past, z: Tensor | None
    ) -> tuple[Tensor, Past]:
        halves = _halves(D)
        slope = halves.slope(x, t)
        x_b = _pulled(schedule, x, slope, t, (t, s), 0.5)
        x_a, past = _denoised(halves, schedule, x_b, slope, t, s, past, self.order)
        return _pulled(schedule, x_a, halves.slope(x_a, s), s, (t, s), 0.5), past


@dataclass(frozen=True)
class Strang2:
    r"""Strang splitting of order 2: midpoint rules for both halves of the guide and for the denoiser.

    The denoiser's midpoint is that of the angle, too,

    $$ x_m = \mathrm{DDIM}(x_t, D(x_t, t), t \to m), \qquad x_s = \mathrm{DDIM}(x_t, D(x_m, m), t \to s). $$

    Raises:
        ValueError: when called, for a denoiser without a guide.
    """

    stochastic = False

    def __call__(
        self, D: Evaluate, schedule: Schedule, x: Tensor, t: float, s: float, past: Past, z: Tensor | None
    ) -> tuple[Tensor, Past]:
        halves = _halves(D)
        slope = halves.slope(x, t)
        x_b = self._half(halves, schedule, x, slope, t, (t, s))
        m = _middle(schedule, t, s)
        x0_hat = halves.free(x_b, t)
        a, b, _ = affine(schedule, t, m, eta=0.0)
        x0_mid = halves.free(a * x_b + b * x0_hat, m)
        a, b, _ = affine(schedule, t, s, eta=0.0)
        x_a = a * x_b + b * x0_mid
        kept = x0_hat if slope is None else halves.steered.steer(x0_hat, slope, t)
        return self._half(halves, schedule, x_a, halves.slope(x_a, s), s, (t, s)), (Eval(t, x, kept),)

    @staticmethod
    def _half(
        halves: Halves, schedule: Schedule, x: Tensor, slope: Tensor | None, at: float, step: tuple[float, float]
    ) -> Tensor:
        """Half of the guide's step by the midpoint rule, from the slope at its start."""
        middle = _pulled(schedule, x, slope, at, step, 0.25)
        return x if slope is None else _pulled(schedule, x, halves.slope(middle, at), at, step, 0.5)


@dataclass(frozen=True)
class _Split(Eval):
    r"""An evaluation of the denoiser alone, at the state that the guide has pulled already; `x` and `x0` are those of
    the steered denoiser, as everybody else reads them."""

    free: Eval


def _halves(D: Evaluate) -> Halves:
    if not isinstance(D, Halves):
        raise ValueError(
            "this solver splits a guide off its denoiser and there is none: give Steered(denoiser, guide, scale), with "
            "a meter inside, Steered(Meter(denoiser), ...), or take another solver"
        )
    return D


def _pulled(
    schedule: Schedule, x: Tensor, slope: Tensor | None, at: float, step: tuple[float, float], part: float
) -> Tensor:
    r"""The guide's step of this module's beginning: a part $f$ of the `step` (t, s), at the time $\tau$ = `at`."""
    if slope is None:
        return x
    theta_t, theta_s = (_angle(schedule, time) for time in step)
    alpha, sigma = schedule.at(at)
    return x + part * (theta_t - theta_s) * sigma / alpha * (alpha**2 + sigma**2) * slope


def _angle(schedule: Schedule, t: float) -> float:
    r"""$\theta_t = \arctan(\sigma_t / \alpha_t)$."""
    alpha_t, sigma_t = schedule.at(t)
    return math.atan2(sigma_t, alpha_t)


def _denoised(
    halves: Halves,
    schedule: Schedule,
    x_b: Tensor,
    slope: Tensor | None,
    t: float,
    s: float,
    past: Past,
    order: int,
) -> tuple[Tensor, Past]:
    """The denoiser's step from `x_b` at t, and the past with its evaluation there."""
    x0_hat = halves.free(x_b, t)
    kept = x0_hat if slope is None else halves.steered.steer(x0_hat, slope, t)
    past = (_Split(t, x_b, kept, Eval(t, x_b, x0_hat)), *past)[:order]
    return advanced(schedule, tuple(e.free for e in past if isinstance(e, _Split)), s), past


def _middle(schedule: Schedule, t: float, s: float) -> float:
    """The time between t and s at the middle of their angles, where the nearer end of a truncated schedule stays."""
    p = schedule.phase(torch.tensor([t, s], dtype=torch.float64)).mean()
    return float(schedule.from_phase(p))
