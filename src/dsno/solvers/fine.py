r"""The fine solution of a teacher's ODE, and the errors of solvers against it.

A solver's error is the distance of its states from the ODE's own, which nobody has. What stands for them is the
solution by third-order DPM-Solver++ in many equal steps of the log-SNR: on mixtures with 300 components of standard
deviation 0.15 in 64 dimensions its RMSE is about 1e-4 in 256 steps, on VP, VE and rectified-flow schedules. Samplers
are held against it, and `solver_errors` ranks grids by it before a set of trajectories is made on one of them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dsno.condition import Cond, map_cond
from dsno.denoise import Denoiser
from dsno.grids import log_snr_uniform, through
from dsno.schedule import Schedule
from dsno.solvers.first_order import DDIM
from dsno.solvers.multistep import DPMSolverPP
from dsno.solvers.run import initial_state, solve
from dsno.solvers.step import Step
from dsno.trajectory import Trajectory

__all__ = ["fine_solution", "solve_batches", "solver_errors"]


def fine_solution(
    denoiser: Denoiser,
    schedule: Schedule,
    z: Tensor,
    steps: int = 256,
    *,
    cond: Cond | None = None,
    keep: Sequence[float] | Tensor | None = None,
    step: Step | None = None,
    keep_x0: bool = False,
    batch: int = 512,
    progress: Callable[[int, int], object] | None = None,
) -> Trajectory:
    r"""The teacher's probability-flow ODE from noise `z`, solved finely: what a path error is measured against.

    Third-order DPM-Solver++ with equal steps of the log-SNR $\ell \in [-14, 14]$, moved through the kept times, and one
    step to t = 0.

    Arguments:
        denoiser: The teacher.
        schedule: Its schedule.
        z: Standard normal noise, (B, *shape), in the dtype to solve in.
        steps: How many steps.
        cond: The condition, first dimension B.
        keep: The times to return, in [0, 1]; 1 and 0 by default.
        step: Another solver.
        keep_x0: Also return $\hat x_0$ at the kept times.
        batch: Samples per network call.
        progress: Called with samples done and B after every batch.

    Returns:
        The trajectory: `.sample` is the fine sample (B, *shape), `.x` the states at the kept times.

    Raises:
        ValueError: for an empty batch, or a grid too coarse for the kept times.
    """
    if len(z) == 0:
        raise ValueError("the noise is empty: nothing to solve")
    # A truncated schedule may end before log-SNR 14; the last step then starts just inside it.
    top = min(14.0, float(schedule.log_snr(torch.zeros((), dtype=torch.float64))) - 1)
    times = [1.0, 0.0] if keep is None else torch.as_tensor(keep, dtype=torch.float64).tolist()
    grid = through(log_snr_uniform(schedule, steps, top, -14.0), times)
    step = DPMSolverPP(3) if step is None else step
    return solve_batches(denoiser, schedule, z, grid, step, cond, batch, keep=times, keep_x0=keep_x0, progress=progress)


def solver_errors(
    denoiser: Denoiser,
    schedule: Schedule,
    z: Tensor,
    grids: Mapping[str, Tensor],
    step: Step | None = None,
    *,
    cond: Cond | None = None,
    fine_steps: int = 64,
    batch: int = 256,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, float]:
    """How far a solver's ends are from the fine solution, on each of some grids: which one suits a teacher.

    Arguments:
        denoiser: The teacher.
        schedule: Its schedule.
        z: Standard normal noise, (B, *shape).
        grids: Decreasing times by name.
        step: The solver; DDIM by default.
        cond: The condition, first dimension B.
        fine_steps: Steps of `fine_solution`.
        batch: Samples per network call.
        progress: Called with the solutions done, of the fine one and all grids, and their number.

    Returns:
        RMSE over all values of all samples, in units of the data, by name, least first; infinite where a sample is.

    Raises:
        ValueError: for an empty batch, or a grid that does not decrease inside [0, 1].
    """
    fine = fine_solution(denoiser, schedule, z, fine_steps, cond=cond, batch=batch).sample
    found = {}
    for n, (name, grid) in enumerate(grids.items(), 1):
        if progress is not None:
            progress(n, len(grids) + 1)
        ends = solve_batches(denoiser, schedule, z, grid, DDIM() if step is None else step, cond, batch).sample
        error = float((ends - fine).square().mean().sqrt())
        found[name] = error if math.isfinite(error) else math.inf
    if progress is not None:
        progress(len(grids) + 1, len(grids) + 1)
    return dict(sorted(found.items(), key=operator.itemgetter(1)))


def solve_batches(
    denoiser: Denoiser,
    schedule: Schedule,
    z: Tensor,
    grid: Tensor,
    step: Step,
    cond: Cond | None,
    batch: int,
    *,
    keep: Sequence[float] | None = None,
    keep_x0: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Trajectory:
    """`solve` from standard normal noise `z` (B, *shape), `batch` samples at a time and without a graph.

    Returns:
        The trajectory of all of them; `nfe` and `rounds` are those of one batch.
    """
    parts = []
    for start in range(0, len(z), batch):
        rows = slice(start, start + batch)
        x, cond_rows = initial_state(schedule, z[rows], float(grid[0])), map_cond(operator.itemgetter(rows), cond)
        with torch.no_grad():
            parts.append(solve(denoiser, schedule, x, grid, step, cond_rows, keep=keep, keep_x0=keep_x0))
        if progress is not None:
            progress(min(start + batch, len(z)), len(z))
    x0s = [part.x0 for part in parts if part.x0 is not None]
    return replace(parts[-1], x=torch.cat([part.x for part in parts]), x0=torch.cat(x0s) if x0s else None, cond=cond)
