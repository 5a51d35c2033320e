r"""Steps on a bridge, beside those that the library has of diffusions.

Given $x_T$ a bridge is the diffusion of $y_t = x_t - a_t x_T$ on the schedule $(b_t, c_t)$ (`coefficients.Pinned`), so
a step of `solvers` is a step of a bridge. What the literature calls by a name of its own is, on that schedule,

| | step |
|---|---|
| ancestral sampling of I2SB | `Ancestral`, $\eta = 1$ |
| DBIM of order 1 and its $\eta$ | `Ancestral(eta)`; $\eta = 0$ is `DDIM` |
| DBIM of order 2 and 3, which have no $\eta$ | `DPMSolverPP` |
| the Heun steps of ODES3 | `Heun` |
| its second-order step in $x / c$ | `ExponentialHeun` |
| DDBM's hybrid sampler | `Hybrid` |

The probability-flow ODE, its reverse SDE and their common stiff part $\dot c_t / c_t \to -\infty$ are

$$ \dot y = \dot b_t D + \frac{\dot c_t}{c_t} (y - b_t D), \qquad
   dy = \Big( \frac{\dot b_t}{b_t} \, y + 2 \mu_t \, (y - b_t D) \Big) dt + c_t \sqrt{2 \mu_t} \, d\bar w, \qquad
   \mu_t = \frac{\dot c_t}{c_t} - \frac{\dot b_t}{b_t}. $$
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from dsno.schedule import Schedule
from dsno.solvers.first_order import DDIM, affine
from dsno.solvers.heun import Heun, velocity
from dsno.solvers.step import Eval, Evaluate, Past

__all__ = ["Euler", "ExponentialHeun", "Hybrid"]


@dataclass(frozen=True)
class Euler:
    r"""Euler's step on the ODE in the schedule's own time, $y_s = y_t + (s - t) \, \dot y_t$; the step to
    $\sigma_s = 0$ is DDIM's."""

    stochastic = False

    def __call__(
        self, D: Evaluate, schedule: Schedule, x: Tensor, t: float, s: float, past: Past, z: Tensor | None
    ) -> tuple[Tensor, Past]:
        if schedule.at(s)[1] == 0:
            return DDIM()(D, schedule, x, t, s, past, z)
        x0_hat = D(x, t)
        return x + (s - t) * velocity(schedule, x, x0_hat, t), (Eval(t, x, x0_hat),)


@dataclass(frozen=True)
class ExponentialHeun:
    r"""The trapezoidal rule for $d(y / c) = D \, d\kappa$, $\kappa = b / c$: of second order, two evaluations a step.

    $$ \tilde y_s = \frac{c_s}{c_t} y_t + \Big(b_s - \frac{c_s}{c_t} b_t\Big) D_t, \qquad
       y_s = \frac{c_s}{c_t} y_t + \Big(b_s - \frac{c_s}{c_t} b_t\Big) \frac{D_t + D(\tilde y_s, s)}{2} $$

    The stiff part is taken exactly, so that it bears a start near $T$. The step to $c_s = 0$ is $b_s D_t$.

    Source: Wang et al., 2024 (arXiv 2412.19992); Zheng et al., 2024 (arXiv 2405.15885), for the form of the integral.
    """

    stochastic = False

    def __call__(
        self, D: Evaluate, schedule: Schedule, x: Tensor, t: float, s: float, past: Past, z: Tensor | None
    ) -> tuple[Tensor, Past]:
        a, b, _ = affine(schedule, t, s, eta=0.0)
        x0_hat = D(x, t)
        x_s, past = a * x + b * x0_hat, (Eval(t, x, x0_hat),)
        if schedule.at(s)[1] == 0:
            return x_s, past
        return a * x + b * (x0_hat + D(x_s, s)) / 2, past


@dataclass(frozen=True)
class Hybrid:
    r"""DDBM's step: Euler-Maruyama on the reverse SDE over a share of it, Heun on the ODE over the rest.

    $$ \hat t = t + \gamma (s - t), \qquad
       \hat y = y + (\hat t - t) \Big( \frac{\dot b_t}{b_t} y + 2 \mu_t (y - b_t D) \Big)
                + c_t \sqrt{2 \mu_t (t - \hat t)} \, z $$

    Three evaluations a step, two for the one to $c_s = 0$. The authors' code leaves the pull to $x_T$ out of the
    stochastic part; here it is in it, as in their equation, and the step keeps the law of the bridge.

    Attributes:
        churn: $\gamma$, in [0, 1).

    Raises:
        ValueError: for another `churn`.

    Source: Zhou et al., 2023 (arXiv 2309.16948), algorithm 1.
    """

    churn: float = 0.33
    stochastic = True

    def __post_init__(self) -> None:
        if not 0 <= self.churn < 1:
            raise ValueError(f"churn is the share of a step that is stochastic, in [0, 1), got {self.churn}")

    def __call__(
        self, D: Evaluate, schedule: Schedule, x: Tensor, t: float, s: float, past: Past, z: Tensor | None
    ) -> tuple[Tensor, Past]:
        (b_t, c_t), (d_b, d_c) = schedule.at(t), schedule.slope(t)
        mu_t = d_c / c_t - d_b / b_t
        t_hat = t + self.churn * (s - t)
        x0_hat = D(x, t)
        x_hat = x + (t_hat - t) * (d_b / b_t * x + 2 * mu_t * (x - b_t * x0_hat))
        if z is not None:
            x_hat = x_hat + c_t * math.sqrt(2 * mu_t * (t - t_hat)) * z
        x_s, _ = Heun()(D, schedule, x_hat, t_hat, s, (), None)
        return x_s, (Eval(t, x, x0_hat),)
