r"""Adaptive weights: the loss of every time is divided by what it is, so none drowns the others.

$$ L = \mathbb E \big[ e^{w(t)} \, \ell_t - w(t) \big], $$

whose least w is $w(t) = -\log \mathbb E[\ell_t \mid t]$, where each time weighs 1 and its gradient is that of the
logarithm. w is learned beside the student, as a cosine series in the phase of t, from 0.

Source: Karras et al., 2024 (EDM2, arXiv 2312.02696); Lu & Song, 2024 (sCM, arXiv 2410.11081).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dsno.schedule import Schedule

__all__ = ["Weighed", "adapted"]

TERMS = 16
"""Of the cosine series."""


class Weighed(nn.Module):
    """A student and w: called as the student is, it returns its answer and w (B,).

    Arguments:
        student: Called `student(x_t, t, ...)` with t (B,).
        schedule: Whose phase w is a function of.
    """

    def __init__(self, student: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        self.student, self.schedule = student, schedule
        self.w = nn.Linear(TERMS, 1, bias=False)
        nn.init.zeros_(self.w.weight)

    def forward(self, x_t: Tensor, t: Tensor, *told: Any) -> tuple[Any, Tensor]:
        k = torch.arange(TERMS, device=t.device)
        series = torch.cos(torch.pi * k * self.schedule.phase(t)[:, None]).to(self.w.weight)
        return self.student(x_t, t, *told), self.w(series).squeeze(1)


def adapted(rows: Tensor, w: Tensor) -> Tensor:
    r"""The mean of $e^w \ell - w$ over rows, $\ell$ and w both (B,)."""
    return (w.exp() * rows - w).mean()
