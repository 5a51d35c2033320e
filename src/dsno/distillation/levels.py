r"""Which noise levels a consistency function is compared at: distributions, and pairs on a grid or a gap apart.

Levels are $\bar\sigma = \sigma / \alpha$, the sigma of the papers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Gap", "Grid", "Levels", "Pairs"]

Pairs = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""From u (B,), uniform in [0, 1], and the step of the training to the levels at t and at r < t, (B,)."""


@dataclass(frozen=True)
class Levels:
    r"""A lognormal distribution of noise levels $\bar\sigma$; what lies beyond an end is put on it.

    $$ \log \bar\sigma = P_{\mathrm{mean}} + P_{\mathrm{std}} \, \Phi^{-1}(u), \qquad u \text{ uniform} $$
    """

    mean: float = -1.1
    std: float = 2.0
    low: float = 1e-3
    high: float = 1e4

    def __call__(self, u: Tensor) -> Tensor:
        """The levels at the quantiles u in [0, 1], float64 of the shape of u."""
        return (self.mean + self.std * torch.special.ndtri(u.double())).exp().clamp(self.low, self.high)


@dataclass(frozen=True)
class Grid:
    """Neighbours on a grid of N intervals: 0, Karras' spacing from `low` to `high` (arXiv 2206.00364, eq. 5), and the
    end.

    Arguments:
        intervals: N at a step of the training.
        levels: An interval is drawn as often as a level falls into it; None draws all alike.
        end: The level at t = 1, which takes the place of `high`.
    """

    intervals: Callable[[int], int]
    levels: Levels | None
    end: float
    low: float = 0.002
    high: float = 80.0
    rho: float = 7.0

    def edges(self, step: int) -> Tensor:
        """The N + 1 levels of the grid at a step of the training, increasing, float64."""
        first, last = (level ** (1 / self.rho) for level in (self.low, min(self.high, self.end)))
        inner = torch.linspace(first, last, self.intervals(step), dtype=torch.float64)[:-1] ** self.rho
        return torch.cat([inner.new_zeros(1), inner, inner.new_tensor([self.end])])

    def __call__(self, u: Tensor, step: int) -> tuple[Tensor, Tensor]:
        edges = self.edges(step)
        if self.levels is None:
            n = (u.double() * (len(edges) - 1)).long()
        else:
            n = torch.searchsorted(edges[1:-1], self.levels(u))
        return edges[n + 1], edges[n]


@dataclass(frozen=True)
class Gap:
    r"""A gap that is a share of the level, and shrinks from stage to stage (Geng et al., 2024, arXiv 2406.14548).

    $$ \bar\sigma_r = \bar\sigma_t \big(1 - n(\bar\sigma_t) q^{-a}\big)_+, \qquad
       n(\bar\sigma) = 1 + k \, \mathrm{sigmoid}(-b \bar\sigma), \quad a = 1, 2, \dots $$
    """

    stage: Callable[[int], int]
    levels: Levels
    q: float = 2.0
    k: float = 8.0
    b: float = 1.0

    def __call__(self, u: Tensor, step: int) -> tuple[Tensor, Tensor]:
        t = self.levels(u)
        n = 1 + self.k * torch.sigmoid(-self.b * t)
        return t, t * (1 - n * self.q ** -self.stage(step)).clamp_min(0)
