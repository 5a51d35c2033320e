r"""Linear multistep in the noise ratio: PLMS, Adams-Bashforth rules for the predicted noise.

In the coordinates $\bar x = x / \alpha$ and $r = \sigma / \alpha$ the probability-flow ODE is

$$ \frac{d \bar x}{d r} = \hat\epsilon(x_t, t), \qquad \bar x_s = \bar x_t + \int_{r_t}^{r_s} \hat\epsilon \, dr, $$

and the rule of order $k$ integrates the polynomial through the last $k$ values of $\hat\epsilon$,

$$ \bar x_s = \bar x_t + \sum_{j < k} w_j \, \hat\epsilon_j, \qquad
   w_j = \int_{r_t}^{r_s} \prod_{i \ne j} \frac{r - r_i}{r_j - r_i} \, dr, \qquad \sum_j w_j = r_s - r_t. $$

On an even grid the weights are the known ones, $(1)$, $(3, -1)/2$, $(23, -16, 5)/12$ and $(55, -59, 37, -9)/24$ steps.
Published code takes these on every grid, which on an uneven one leaves order 1; here they follow the grid. The part of
equal noises is DDIM's step, so what is computed is

$$ x_s = \frac{\sigma_s}{\sigma_t} x_t + \Big(\alpha_s - \frac{\sigma_s}{\sigma_t} \alpha_t\Big) D
         + \alpha_s \sum_{j > 0} w_j \, (\hat\epsilon_j - \hat\epsilon_0), $$

finite where $\alpha_t = 0$, too. A past value at $r = \infty$ has the weight 0 in the limit, and the polynomial one
degree less: it is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsno.schedule import Schedule
from dsno.solvers.first_order import affine
from dsno.solvers.step import Eval, Evaluate, Past

__all__ = ["PLMS", "adams_bashforth", "advanced", "noise_ratio"]

NODES = (0.5 - math.sqrt(1 / 12), 0.5 + math.sqrt(1 / 12))
"""Gauss's two points of [0, 1]: exact for the cubics that are integrated."""


def noise_ratio(schedule: Schedule, t: float) -> float:
    r"""$r_t = \sigma_t / \alpha_t$, in float64; infinite where $\alpha_t = 0$."""
    alpha_t, sigma_t = schedule.at(t)
    return sigma_t / alpha_t if alpha_t > 0 else math.inf


def adams_bashforth(r: Sequence[float], r_s: float) -> list[float]:
    r"""The weights $w_j$ of values at the ratios `r`, one to four, newest first, in the step from `r[0]` to `r_s`."""
    h = r_s - r[0]

    def through(j: int, at: float) -> float:
        return math.prod((at - r_i) / (r[j] - r_i) for i, r_i in enumerate(r) if i != j)

    return [sum(h / 2 * through(j, r[0] + h * node) for node in NODES) for j in range(len(r))]


def advanced(schedule: Schedule, past: Past, s: float) -> Tensor:
    """The state at `s` from the evaluations of the past, (B, *shape): as many as they are is the order."""
    newest = past[0]
    a, b, _ = affine(schedule, newest.t, s, eta=0.0)
    x_s = a * newest.x + b * newest.x0
    r = [noise_ratio(schedule, e.t) for e in past]
    known = [j for j in range(1, len(r)) if math.isfinite(r[j])]
    if not known or not math.isfinite(r[0]):
        return x_s
    w = adams_bashforth([r[0], *(r[j] for j in known)], noise_ratio(schedule, s))
    eps_0, alpha_s = _noise(schedule, newest), schedule.at(s)[0]
    change = sum(
        (w_j * (_noise(schedule, past[j]) - eps_0) for w_j, j in zip(w[1:], known, strict=True)), torch.zeros(())
    )
    return x_s + alpha_s * change


def _noise(schedule: Schedule, e: Eval) -> Tensor:
    r"""$\hat\epsilon = (x_t - \alpha_t \hat x_0) / \sigma_t$."""
    alpha_t, sigma_t = schedule.at(e.t)
    return (e.x - alpha_t * e.x0) / sigma_t


def check_order(order: int) -> None:
    """Refuse an order that no rule here has.

    Raises:
        ValueError: unless it is 1, 2, 3 or 4.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"Adams-Bashforth rules have orders 1 to 4 here, got {order}")


@dataclass(frozen=True)
class PLMS:
    r"""PLMS of order 1 (DDIM) to 4, one evaluation a step; the order is lowered while the past is short.

    The first step is DDIM's and its error of second order. From pure noise, where the predicted noise hardly depends on
    r, that is little and order k is what is seen; from a time inside the schedule orders 3 and 4 are ones of 2 to 3.

    Raises:
        ValueError: for another order.

    Source: Liu et al., 2022 (arXiv 2202.09778), eq. 12, which starts with Runge-Kutta steps and has constant weights.
    """

    order: int = 4
    stochastic = False

    def __post_init__(self) -> None:
        check_order(self.order)

    def __call__(
        self, D: Evaluate, schedule: Schedule, x: Tensor, t: float, s: float, past: Past, z: Tensor | None
    ) -> tuple[Tensor, Past]:
        past = (Eval(t, x, D(x, t)), *past)[: self.order]
        return advanced(schedule, past, s), past
