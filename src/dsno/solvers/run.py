"""The one driver of solvers: it runs a step (`step`) on an explicit grid, and keeps the states that are asked for.

The driver knows no solver. It announces the grid to the schedule, so that all coefficients are worked out once, tells
the denoiser the time in float32 or better, whatever the states are, hands a stochastic step its noise, counts what the
denoiser costs, and reads nothing back from the device inside the loop. A steered denoiser (`dsno.steer`) is handed
over as its `Halves`, which are called like any other and can be had apart.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from dsno.condition import Cond
from dsno.cost import evaluations
from dsno.denoise import Denoiser, Prediction, at_one_time
from dsno.grids import check_grid, find_times
from dsno.schedule import Schedule
from dsno.seeds import check_noise, noise_tape
from dsno.solvers.first_order import DDIM
from dsno.solvers.step import Evaluate, Past, Step
from dsno.steer import Halves, Steered
from dsno.trajectory import Trajectory, sampled

__all__ = ["SolverSampler", "initial_state", "march", "solve"]


def solve(
    denoiser: Denoiser,
    schedule: Schedule,
    x: Tensor,
    grid: Tensor | Sequence[float],
    step: Step | None = None,
    cond: Cond | None = None,
    seeds: Tensor | None = None,
    keep: Sequence[float] | Tensor | None = None,
    keep_x0: bool = False,
    tape: Tensor | None = None,
) -> Trajectory:
    r"""Run a solver from the state `x` at `grid[0]` to `grid[-1]`, one step between neighbouring times.

    Arguments:
        denoiser: $D(x_t, t, \mathrm{cond})$.
        schedule: The schedule it was trained on.
        x: The state at `grid[0]`, shape (B, *shape).
        grid: N + 1 strictly decreasing times in [0, 1], N >= 1.
        step: The solver; DDIM by default.
        cond: The condition, first dimension B.
        seeds: (B,) seeds; a stochastic solver without a `tape` draws its noise from streams 1 to N of them.
        keep: The times whose states are returned (a subset of the grid; the first and last by default).
        keep_x0: Also return $\hat x_0$ at each kept state, at no extra evaluation for inner times.
        tape: The noise of the steps, shape (N, B, *shape).

    Returns:
        A trajectory of the kept states, noise first.

    Raises:
        FloatingPointError: if a gradient of a steered denoiser's guide is not finite; names the first, and its time.
        ValueError: for a bad grid, a kept time that is not on it, or a stochastic solver without seeds or tape; for one
            that splits a guide off a denoiser that has none.
    """
    step = DDIM() if step is None else step
    times = check_grid(grid)
    wanted = _kept(times, keep)
    if step.stochastic and tape is None:
        if seeds is None:
            raise ValueError("a stochastic solver needs `seeds` (one per sample) or a noise `tape`")
        tape = noise_tape(seeds, x.shape[1:], len(times) - 1, x.dtype, x.device)
    D = Halves(denoiser, cond) if isinstance(denoiser, Steered) else _Asked(denoiser, cond)
    states, x0s = march(D, schedule, x, times, step, tape, wanted, keep_x0)
    if isinstance(D, Halves):
        D.check()
    return Trajectory(
        x=torch.stack(states, 1),
        t=times[sorted(wanted)],
        x0=torch.stack(x0s, 1) if keep_x0 else None,
        cond=cond,
        seeds=seeds,
        nfe=D.rounds * evaluations(denoiser),
        rounds=D.rounds,
    )


def march(
    D: Evaluate,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    step: Step,
    tape: Tensor | None,
    wanted: Collection[int],
    keep_x0: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    r"""The loop of `solve`: the states of the `wanted` numbers of the `times`, and $\hat x_0$ there; of the last time,
    which no step asks, where `keep_x0`."""
    grid = times.tolist()
    schedule.expect(grid)
    states, x0s = [], []
    past: Past = ()
    for n, (t, s) in enumerate(pairwise(grid)):
        state = x
        z = tape[n] if tape is not None else None
        x, past = step(D, schedule, state, t, s, past, z)
        if isinstance(D, Halves):
            x = D.projected(x, s)
        if n in wanted:
            states.append(state)
            x0s.append(past[0].x0)
    if len(times) - 1 in wanted:
        states.append(x)
        if keep_x0:
            x0s.append(x if schedule.at(grid[-1])[1] < 1e-4 else D(x, grid[-1]))
    return states, x0s


class _Asked:
    """A denoiser as steps see it, its condition given, and how often it was called."""

    def __init__(self, denoiser: Denoiser, cond: Cond | None) -> None:
        self._ask, self._cond, self.rounds = at_one_time(denoiser), cond, 0

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        self.rounds += 1
        return self._ask(x_t, t, self._cond)


def initial_state(schedule: Schedule, z: Tensor, start: float = 1.0) -> Tensor:
    r"""Standard normal noise (B, *shape) as the state at the start, $x_t = \sigma_t z$ of $t$ = `start`."""
    return schedule.at(start)[1] * z


@dataclass(frozen=True)
class SolverSampler:
    """A solver on a grid as a `Sampler`: from standard normal noise to a trajectory, without a graph.

    Attributes:
        denoiser: What is sampled.
        schedule: The schedule it was trained on.
        grid: N + 1 decreasing times.
        step: The solver.
        keep: The times whose states are returned, as in `solve`.
        keep_x0: Also return the denoiser's answer there.
    """

    denoiser: Denoiser
    schedule: Schedule
    grid: Tensor
    step: Step = field(default_factory=DDIM)
    keep: Tensor | None = None
    keep_x0: bool = False

    @torch.no_grad()
    def __call__(self, z: Tensor, cond: Cond | None = None, seeds: Tensor | None = None) -> Trajectory:
        check_noise(z, self.denoiser.shape if isinstance(self.denoiser, Prediction) else None)
        return sampled(self._run, z, cond, seeds)

    def _run(self, z: Tensor, cond: Cond | None, seeds: Tensor | None) -> Trajectory:
        x = initial_state(self.schedule, z, float(self.grid[0]))
        return solve(
            self.denoiser, self.schedule, x, self.grid, self.step, cond, seeds, keep=self.keep, keep_x0=self.keep_x0
        )


def _kept(times: Tensor, keep: Sequence[float] | Tensor | None) -> set[int]:
    """The numbers of the kept times."""
    if keep is None:
        return {0, len(times) - 1}
    return set(find_times(times, keep, "on the grid, so it cannot be kept"))
