r"""What restoring takes and makes, whatever the method: a problem and what was measured in, restorations out.

A restorer guides the reverse process of a teacher, from noise $z$, towards samples with $A x \approx y$. All are frozen
dataclasses of their options and called alike, so what one is compared with, or tiled into large pictures, or driven by
an estimate of the kernel, may be any other. None of them changes the teacher, and none draws from the exact posterior:
`docs/inverse.md` says how far each is from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dsno.condition import Cond
from dsno.cost import Cost
from dsno.denoise import Denoiser
from dsno.inverse.problem import Problem
from dsno.schedule import Schedule
from dsno.trajectory import Trajectory

__all__ = ["Restored", "Restorer", "Revise"]


class Revise(Protocol):
    r"""A method that does not know its problem yet: called in every step with the denoiser's answer $\hat x_0$
    (B, *shape), without a graph, and its time; returns the problem to use from there."""

    def __call__(self, x0_hat: Tensor, t: float, /) -> Problem: ...


@dataclass(frozen=True)
class Restored:
    r"""Restorations, and what they cost.

    Attributes:
        x: The restorations, (B, *shape).
        cost: Rounds, rows, vjps, jvps, seconds.
        residual: $|A x - y| / \sqrt m$, the root of the mean square over what was measured, (B,).
        trajectory: The states on the way, where they were kept.
        kernel: The kernel that was estimated, of a blind method.
    """

    x: Tensor
    cost: Cost
    residual: Tensor
    trajectory: Trajectory | None = None
    kernel: Tensor | None = None


class Restorer(Protocol):
    r"""From a measurement to restorations.

    `denoiser` and `schedule` are the teacher's; `y` is what was measured, (B, *measured), and `z` the standard normal
    noise of the start, (B, *shape); `cond` has first dimension B, and `seeds` (B,) give the noise of stochastic steps,
    streams 1 to N.
    """

    def __call__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        problem: Problem,
        y: Tensor,
        z: Tensor,
        cond: Cond | None = None,
        seeds: Tensor | None = None,
    ) -> Restored: ...
