r"""Picard iteration in a sliding window: ParaDiGMS (Shih, Belkhale, Ermon, Sadigh, Anari, 2023, arXiv 2305.16317)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsno.condition import Cond
from dsno.parallel.draft import Draft, guess
from dsno.parallel.rounds import Exact, Rounds, System
from dsno.parallel.window import check_first_guess, check_window, first_guess, iterate
from dsno.trajectory import Trajectory

__all__ = ["Picard"]


@dataclass(frozen=True)
class Picard(Exact):
    r"""All steps of the window at once, their increments summed (algorithm 1 of the paper).

    $$ O_l = a_l x_l + b_l D(x_l, t_l) + s_l z_l, \qquad x_{n+1} \leftarrow x_f + \sum_{l=f}^{n} (O_l - x_l), $$

    with $f$ the frontier: the equations of `dsno.parallel.window` with $g = 1$. States that enter the window continue
    the recursion with the last $\hat x_0$ inside it.

    Arguments:
        denoiser: The teacher, $D$.
        chain: The chain; any schedule, any eta.
        window: Steps evaluated in a round; all by default.
        tolerance: Of the sample, RMS over coordinates (`dsno.parallel.window`); None runs to the end.
        draft: A guess to start from.
        repeat_noise: Without a draft, guess that every state is the first one, as published; by default a stochastic
            chain's states get the noise of their steps, too, and a deterministic one's are that anyway.

    Raises:
        ValueError: for a window or tolerance that is not positive, or a draft beside `repeat_noise`; from a call, for a
            draft that does not fit.
    """

    window: int | None = None
    tolerance: float | None = 1e-3
    draft: Draft | None = None
    repeat_noise: bool = False

    def __post_init__(self) -> None:
        check_window(self.window, self.tolerance)
        check_first_guess(self.repeat_noise, self.draft is not None)

    @torch.no_grad()
    def solve(
        self, x: Tensor, tape: Tensor | None = None, cond: Cond | None = None, seeds: Tensor | None = None
    ) -> Trajectory:
        """From the states `x` (B, *shape) with the noise of the steps (N, B, *shape): every state of the chain."""
        system, rounds = System(self.chain, x, tape), Rounds(self.denoiser, self.chain, cond, x)
        one = torch.ones(len(system))
        drafted = guess(self.draft, system, x, cond, seeds, rounds)
        sweep = first_guess(system, x, drafted, one, self.repeat_noise)
        states = iterate(rounds, sweep, lambda sweep, old: sweep.run(old), self.window, self.tolerance)
        return rounds.trajectory(states, self.chain.grid, seeds)
