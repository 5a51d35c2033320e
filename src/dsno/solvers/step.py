"""What a step of a solver is: a pure function of a state, two times and the past evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dsno.schedule import Schedule

__all__ = ["Step", "half_log_snr"]

Evaluate = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Eval:
    r"""One evaluation $\hat x_0 = D(x_t, t)$ and the state it stands for, kept for multistep rules."""

    t: float
    x: Tensor
    x0: Tensor


Past = tuple[Eval, ...]


class Step(Protocol):
    r"""One step of a solver from `t` to `s` < `t`.

    `D(x, t)` evaluates the denoiser; `past` holds earlier evaluations, newest first; `z` is this step's standard normal
    noise (None for a deterministic solver). Returns the state at `s` and the past for the next step, whose first entry
    is the evaluation at `t`.
    """

    @property
    def stochastic(self) -> bool: ...

    def __call__(
        self, D: Evaluate, schedule: Schedule, x: Tensor, t: float, s: float, past: Past, z: Tensor | None
    ) -> tuple[Tensor, Past]: ...


def half_log_snr(schedule: Schedule, t: float) -> float:
    # t = 0 is the data whatever tiny sigma a truncated schedule leaves there: extrapolating D across that last,
    # very long step in lambda would amplify errors by its length, so it is taken as infinite (first order).
    alpha_t, sigma_t = schedule.at(t)
    if t == 0 or sigma_t == 0:
        return math.inf
    return math.log(alpha_t / sigma_t) if alpha_t > 0 else -math.inf
