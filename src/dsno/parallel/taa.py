r"""Triangular Anderson acceleration: ParaTAA (Tang et al., 2024, arXiv 2402.09970).

Unrolling the equations of `dsno.parallel.window` over k steps gives one for $x_{n+1}$ in the states
$x_{n+1-k}, \dots, x_n$, with the same solution for every *order* k. With $S$ the recursion from the frontier on
(order N) that is

$$ F^{(k)}_{n+1} = S_{n+1} + \Big( \prod_{j=n+1-k}^{n} g_j \Big) (x_{n+1-k} - S_{n+1-k}), $$

so every order costs one sweep. Anderson's step combines the last m residuals $R = F(x) - x$ so that they cancel, row by
row with no look at cleaner rows (it is triangular, as the chain is),

$$ \gamma_n = \Big( \sum_{j \le n} \Delta R_j^\top \Delta R_j + \lambda I \Big)^{-1}
              \sum_{j \le n} \Delta R_j^\top R_j, \qquad
   x_n \leftarrow x_n + R_n - (\Delta X_n + \Delta R_n) \gamma_n . $$

States up to the frontier take the plain recursion, which is the chain's own: the safeguard that makes N rounds enough.

The published sampler holds the noise and begins with it repeated: `ParaTAA(data_std=1e3, repeat_noise=True)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dsno.condition import Cond
from dsno.parallel.draft import Draft, guess
from dsno.parallel.rounds import Exact, Rounds, System, wide
from dsno.parallel.window import Sweep, check_first_guess, check_window, first_guess, gains, iterate
from dsno.trajectory import Trajectory

__all__ = ["ParaTAA"]


@dataclass(frozen=True)
class ParaTAA(Exact):
    r"""The chain by fixed-point iteration of order k with triangular Anderson acceleration.

    Arguments:
        denoiser: The teacher, $D$.
        chain: The chain; any schedule, any eta.
        order: k, from 1 to N; N by default, which with `memory` 1 is the plain sweep.
        memory: m, how many iterates Anderson combines; 1 is no acceleration. The paper recommends 2 to 5.
        ridge: $\lambda$, relative to the mean of the diagonal.
        data_std: s of the linear part, the data's standard deviation; 0.5 is right for images in [-1, 1], as in EDM.
        window: Steps evaluated in a round; all by default.
        tolerance: Of the sample, RMS over coordinates (`dsno.parallel.window`); None runs to the end.
        draft: A guess to start from.
        repeat_noise: Without a draft, guess that every state is the first one, as published; by default they follow
            the linear part.

    Raises:
        ValueError: for an order outside 1 to N, or a memory, window, ridge, data_std or tolerance that is not positive,
            or a draft beside `repeat_noise`; from a call, for a draft that does not fit.
    """

    order: int | None = None
    memory: int = 2
    ridge: float = 1e-3
    data_std: float = 0.5
    window: int | None = None
    tolerance: float | None = 1e-3
    draft: Draft | None = None
    repeat_noise: bool = False

    def __post_init__(self) -> None:
        check_window(self.window, self.tolerance)
        check_first_guess(self.repeat_noise, self.draft is not None)
        if self.order is not None and not 1 <= self.order <= len(self.chain):
            raise ValueError(f"order must be from 1 to the chain's {len(self.chain)} steps, got {self.order}")
        if self.memory < 1:
            raise ValueError(f"memory must be at least 1 (no acceleration), got {self.memory}")
        for name, value in (("ridge", self.ridge), ("data_std", self.data_std)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value:g}")

    @torch.no_grad()
    def solve(
        self, x: Tensor, tape: Tensor | None = None, cond: Cond | None = None, seeds: Tensor | None = None
    ) -> Trajectory:
        """From the states `x` (B, *shape) with the noise of the steps (N, B, *shape): every state of the chain."""
        system, rounds = System(self.chain, x, tape), Rounds(self.denoiser, self.chain, cond, x)
        gain = gains(self.chain, self.data_std)
        drafted = guess(self.draft, system, x, cond, seeds, rounds)
        sweep = first_guess(system, x, drafted, gain, self.repeat_noise)
        update = _Anderson(system, gain, self.order or len(system), self.memory, self.ridge)
        states = iterate(rounds, sweep, update, self.window, self.tolerance, update.keep)
        return rounds.trajectory(states, self.chain.grid, seeds)


@dataclass
class _Anderson:
    """The update and its memory: the last iterate and residual, and the last m - 1 differences, newest last."""

    system: System
    gain: Tensor
    order: int
    memory: int
    ridge: float
    last: tuple[Tensor, Tensor, Tensor] | None = None
    dX: list[Tensor] = field(default_factory=list)
    dR: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Products of k neighbours in float64 on the host: a prefix product would divide by the zeros at sigma = 0.
        self.products = self.gain.unfold(0, self.order, 1).prod(1).to(self.system.a)

    def keep(self, rows: Tensor) -> None:
        """Forget the samples that are done."""
        self.dX, self.dR = [d[rows] for d in self.dX], [d[rows] for d in self.dR]
        if self.last is not None:
            x, R, end = self.last
            self.last = x[rows], R[rows], end[rows]

    def __call__(self, sweep: Sweep, old: Tensor) -> Tensor:
        S = sweep.run(old)
        if self.order == len(self.system) and self.memory == 1:
            return S
        m = torch.arange(len(self.system) + 1, device=old.device)
        mine = (m > sweep.frontier[:, None]) & (m <= sweep.end[:, None])
        F = self._unrolled(sweep, S, old)
        accelerated = self._accelerated(sweep, F, mine) if self.memory > 1 else F
        x = torch.where(wide(mine, S), accelerated, S)
        # Behind the window the states continue from its last one.
        sweep.x = x
        return sweep.run(sweep.end) if bool((sweep.end < m[-1]).any()) else x

    def _unrolled(self, sweep: Sweep, S: Tensor, old: Tensor) -> Tensor:
        if (k := self.order) == len(self.system):
            return S
        F = S.clone()
        behind = wide(torch.arange(S.shape[1] - k, device=S.device) > old[:, None], S)
        F[:, k:] += torch.where(behind, wide(self.products[None], S) * (sweep.x - S)[:, :-k], 0.0)
        return F

    def _accelerated(self, sweep: Sweep, F: Tensor, mine: Tensor) -> Tensor:
        x, R = sweep.x, torch.where(wide(mine, F), F - sweep.x, 0.0)
        if self.last is not None:
            x_last, R_last, end = self.last
            # A state that has just entered the window has no past.
            both = wide(mine & (torch.arange(mine.shape[1], device=end.device) <= end[:, None]), F)
            self.dX = [*self.dX, torch.where(both, x - x_last, 0.0)][1 - self.memory :]
            self.dR = [*self.dR, torch.where(both, R - R_last, 0.0)][1 - self.memory :]
        self.last = x, R, sweep.end
        if not self.dR:
            return x + R
        rows = wide(mine, F)
        dX, dR = (torch.stack([torch.where(rows, d, 0.0) for d in ds], -1) for ds in (self.dX, self.dR))
        # Half precision overflows in the sums, and has no solver.
        precise = torch.promote_types(R.dtype, torch.float32)
        flat = dR.reshape(*mine.shape, -1, dR.shape[-1]).to(precise)
        gram = (flat.mT @ flat).cumsum(1)
        moment = (flat.mT @ R.reshape(*mine.shape, -1, 1).to(precise)).cumsum(1)
        mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        gamma = torch.linalg.solve(gram + (self.ridge * mean + torch.finfo(gram.dtype).tiny) * eye, moment)
        combined = (dX + dR).reshape(*mine.shape, -1, dR.shape[-1]).to(precise) @ gamma
        return x + R - combined.reshape_as(x).to(x)
