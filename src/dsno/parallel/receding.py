r"""A receding draft: the student proposes the rest of the trajectory, the teacher accepts what agrees, and again.

Each round is one pass of the student from the last accepted state and one batched call of the teacher at all the states
it proposes. The difference to a draft that is given once is that what was learned of the sample enters the next
proposal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsno.condition import Cond
from dsno.parallel.draft import guess, x0_of_student
from dsno.parallel.rounds import Exact, Rounds, System
from dsno.parallel.window import Sweep, check_window, first_guess, iterate
from dsno.students.operator import TrajectoryStudent
from dsno.trajectory import Trajectory

__all__ = ["Receding"]


@dataclass(frozen=True)
class Receding(Exact):
    r"""Draft the rest, verify it with one batched call, accept what agrees, draft again from the last state of that.

    With $G_n(x_f)$ the student's $\hat x_0$ for step n, drafted from the state at the frontier, the next proposal takes

    $$ \hat x_0 = D(x_n, t_n) + G_n(x_f^{\text{new}}) - G_n(x_f^{\text{old}}) , $$

    the teacher's answer at the last proposal and how the student says that it changes with the state at the frontier,
    as parareal takes its coarse solution (two rows of one pass); or the student's word alone, $G_n(x_f^{\text{new}})$.
    That differs from draft to draft by the student's own error, so it is accepted no faster than a step a round where
    the tolerance is smaller than this error.

    Arguments:
        denoiser: The teacher, $D$.
        chain: The chain; any schedule, any eta.
        draft: A student that starts from inner states.
        corrected: Whether the teacher's last answers are used.
        window: Steps verified in a round; all by default.
        tolerance: Of the sample, RMS over coordinates (`dsno.parallel.window`); None runs to the end.

    Raises:
        ValueError: for a student that starts from noise alone, or a window or tolerance that is not positive.
    """

    draft: TrajectoryStudent
    corrected: bool = True
    window: int | None = None
    tolerance: float | None = 1e-3

    def __post_init__(self) -> None:
        check_window(self.window, self.tolerance)
        if not isinstance(self.draft, TrajectoryStudent):
            raise ValueError(f"a receding draft needs a student that restarts, got a {type(self.draft).__name__}")
        self.draft.check_restarts()

    @torch.no_grad()
    def solve(
        self, x: Tensor, tape: Tensor | None = None, cond: Cond | None = None, seeds: Tensor | None = None
    ) -> Trajectory:
        """From the states `x` (B, *shape) with the noise of the steps (N, B, *shape): every state of the chain."""
        system, rounds = System(self.chain, x, tape), Rounds(self.denoiser, self.chain, cond, x)
        drafted = guess(self.draft, system, x, cond, seeds, rounds)
        update = _Redraft(self.draft, self.corrected, rounds)
        # The draft's states follow from the chain's recursion with D held: g = a.
        sweep = first_guess(system, x, drafted, system.a)
        states = iterate(rounds, sweep, update, self.window, self.tolerance)
        return rounds.trajectory(states, self.chain.grid, seeds)


@dataclass
class _Redraft:
    """The update."""

    student: TrajectoryStudent
    corrected: bool
    rounds: Rounds

    def __call__(self, sweep: Sweep, old: Tensor) -> Tensor:
        before, sweep.x = sweep.x, sweep.run(old)
        todo = (sweep.frontier < len(sweep.system)).nonzero()[:, 0]
        if not len(todo):
            return sweep.x
        frontier, sample = sweep.frontier[todo], sweep.sample[todo]
        states = [sweep.x[todo, frontier], before[todo, frontier]][: 1 + self.corrected]
        asked = [torch.cat([index] * len(states)) for index in (frontier, sample)]
        drafted = x0_of_student(self.student, sweep.system, torch.cat(states), asked[0], self.rounds.cond, asked[1])
        self.rounds.tally(sample, 1, len(states))
        x0 = sweep.x0.clone()
        if self.corrected:
            new, last = drafted.chunk(2)
            x0[todo] += new - last
        else:
            x0[todo] = drafted
        sweep.x0, sweep.end = x0, sweep.frontier
        return sweep.run(sweep.frontier)
