r"""Heun's method in the schedule's own time, EDM's sampler.

The right-hand side of the probability-flow ODE is the `flow` of the denoiser,

$$ \dot x(x_t, t) = \dot\alpha_t D + \frac{\dot\sigma_t}{\sigma_t} (x_t - \alpha_t D), \qquad D = D(x_t, t), $$

and any method for ordinary differential equations solves it as it stands, without the exact linear part that the other
solvers take. How good the steps are then depends on how the schedule runs through t; on the VE schedule, where
$\dot x = (x_t - D) / t$ is nearly constant, they are good.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dsno.schedule import Schedule
from dsno.solvers.first_order import DDIM
from dsno.solvers.step import Eval, Evaluate, Past

__all__ = ["Heun", "velocity"]


@dataclass(frozen=True)
class Heun:
    r"""Second order: the trapezoidal rule, two evaluations a step.

    $$ d_1 = \dot x(x_t, t), \quad d_2 = \dot x(x_t + (s - t) d_1, s), \quad x_s = x_t + (s - t)\tfrac{d_1 + d_2}{2} $$

    The step to $\sigma_s = 0$ is DDIM's, one evaluation. On the VE schedule this is EDM's sampler.

    Source: Karras et al., 2022 (arXiv 2206.00364), algorithm 1.
    """

    stochastic = False

    def __call__(
        self, D: Evaluate, schedule: Schedule, x: Tensor, t: float, s: float, past: Past, z: Tensor | None
    ) -> tuple[Tensor, Past]:
        if schedule.at(s)[1] == 0 or s == 0:
            return DDIM()(D, schedule, x, t, s, past, z)
        x0_hat = D(x, t)
        d_1 = velocity(schedule, x, x0_hat, t)
        x_euler = x + (s - t) * d_1
        d_2 = velocity(schedule, x_euler, D(x_euler, s), s)
        return x + (s - t) * (d_1 + d_2) / 2, (Eval(t, x, x0_hat),)


def velocity(schedule: Schedule, x: Tensor, x0_hat: Tensor, t: float) -> Tensor:
    r"""$\dot x(x_t, t)$ above of a state and the denoiser's answer, (B, *shape), where $\sigma_t > 0$."""
    (alpha_t, sigma_t), (d_alpha, d_sigma) = schedule.at(t), schedule.slope(t)
    return d_alpha * x0_hat + d_sigma / sigma_t * (x - alpha_t * x0_hat)
