r"""What a step of a solver is: a pure function of a state, two times and the past evaluations.

The probability-flow ODE of a denoiser, $\dot x_t = \dot\alpha_t D + \dot\sigma_t \hat\epsilon$, has an exact linear
part. With $\kappa = \alpha / \sigma$ it reads $d(x / \sigma) = D \, d\kappa$, so between two times

$$ x_s = \frac{\sigma_s}{\sigma_t} x_t + \sigma_s \int_{\kappa_t}^{\kappa_s} D \, d\kappa, $$

and a solver is a rule for the integral: $D$ constant is DDIM (`first_order`), $D$ polynomial in $\lambda = \log
\kappa$ is DPM-Solver++ (`multistep`). The coefficients of a step are Python floats computed from the schedule in
float64, so nothing is looked up by index and nothing is read back from the device. Limits at $\sigma_s = 0$, where
$x_s = \alpha_s D$, and at $\alpha_t = 0$ are analytic: no grid gives a NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dsno.schedule import Schedule

__all__ = ["Eval", "Evaluate", "Past", "Step", "half_log_snr"]

Evaluate = Callable[[Tensor, float], Tensor]
r"""The denoiser as a step sees it, $(x_t, t) \mapsto \hat x_0$: its condition is given."""


@dataclass(frozen=True)
class Eval:
    r"""One evaluation $\hat x_0 = D(x_t, t)$ and the state it stands for, (B, *shape), kept for multistep rules."""

    t: float
    x: Tensor
    x0: Tensor


Past = tuple[Eval, ...]
"""Earlier evaluations, newest first."""


class Step(Protocol):
    r"""One step of a solver from `t` to `s` < `t`."""

    @property
    def stochastic(self) -> bool:
        """Whether it takes noise."""

    def __call__(
        self, D: Evaluate, schedule: Schedule, x: Tensor, t: float, s: float, past: Past, z: Tensor | None
    ) -> tuple[Tensor, Past]:
        r"""The state at `s`, (B, *shape), and the past for the next step, whose first entry is the evaluation at `t`.

        `x` is the state at `t`, (B, *shape), and `z` this step's standard normal noise of its shape, None for a solver
        that is not stochastic.
        """


def half_log_snr(schedule: Schedule, t: float) -> float:
    r"""$\lambda_t = \log(\alpha_t / \sigma_t)$, in float64; infinite at $t = 0$, whatever the schedule leaves there."""
    # Extrapolating D across that last step, very long in lambda where a truncated schedule leaves a tiny sigma, would
    # amplify errors by its length: it is of first order as if it were infinite.
    alpha_t, sigma_t = schedule.at(t)
    if t == 0 or sigma_t == 0:
        return math.inf
    return math.log(alpha_t / sigma_t) if alpha_t > 0 else -math.inf
