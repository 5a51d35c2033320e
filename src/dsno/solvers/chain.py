r"""The affine Gaussian chain: the sequential reference of every exact sampler.

The steps of `first_order` on a grid $t_0 > \dots > t_N$ are one object, whose coefficients are known before anything
runs:

$$ x_{n+1} = a_n x_n + b_n D(x_n, t_n) + s_n z_n, \qquad z_n \sim \mathcal N(0, I). $$

The noises $z_n$ are drawn once, as a *tape*; given the tape the chain is a deterministic function of $x_0$, and whoever
solves it otherwise than step by step is held against `Chain.run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dsno.condition import Cond
from dsno.denoise import Denoiser
from dsno.grids import check_grid
from dsno.schedule import Schedule
from dsno.seeds import noise_tape
from dsno.solvers.first_order import DDIM, Ancestral, affine
from dsno.solvers.run import solve
from dsno.trajectory import Trajectory

__all__ = ["Chain"]


@dataclass(frozen=True)
class Chain:
    r"""The affine Gaussian chain every first-order sampler is an instance of.

    With $(\alpha, \sigma)$ at $t_n$ and $(\alpha', \sigma')$ at $t_{n+1}$,

    $$ s_n^2 = \eta^2 \sigma'^2 \Big(1 - \frac{\alpha^2 \sigma'^2}{\alpha'^2 \sigma^2}\Big), \quad
       c_n = \sqrt{\sigma'^2 - s_n^2}, \quad a_n = c_n / \sigma, \quad b_n = \alpha' - c_n \alpha / \sigma, $$

    which are $\nu$, $c$, $a$ and $b$ of `first_order.affine`. $\eta = 0$ is DDIM, $\eta = 1$ DDPM's ancestral sampler.

    Arguments:
        schedule: The noise schedule.
        grid: N + 1 decreasing times.
        eta: The share of fresh noise, in [0, 1].

    Raises:
        ValueError: for a bad grid, or an `eta` that is not in [0, 1].

    Source: Song et al., 2020 (arXiv 2010.02502), eq. 16.
    """

    schedule: Schedule
    grid: Tensor
    eta: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", check_grid(self.grid))
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}")

    def __len__(self) -> int:
        """N, the number of steps."""
        return len(self.grid) - 1

    def coefficients(self) -> Tensor:
        """$(a_n, b_n, s_n)$ for every step, shape (N, 3), float64."""
        times = self.grid.tolist()
        self.schedule.expect(times)
        rows = [affine(self.schedule, t, s, self.eta) for t, s in pairwise(times)]
        return torch.tensor(rows, dtype=torch.float64)

    def tape(self, seeds: Sequence[int] | Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """This chain's noise from per-sample seeds, shape (N, B, *shape)."""
        return noise_tape(seeds, shape, len(self), dtype)

    def run(self, denoiser: Denoiser, x: Tensor, tape: Tensor | None = None, cond: Cond | None = None) -> Trajectory:
        """Run the chain step by step from the state `x` (B, *shape) on a tape (N, B, *shape), keeping every state.

        Raises:
            ValueError: if the chain is stochastic and there is no `tape`.
        """
        step = Ancestral(self.eta) if self.eta > 0 else DDIM()
        return solve(denoiser, self.schedule, x, self.grid, step, cond, keep=self.grid, tape=tape)
