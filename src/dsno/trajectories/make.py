"""A teacher's trajectories by names: the solver, the grid (measured, if asked for) and the frames."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsno import grids, schedule
from dsno.condition import Cond
from dsno.denoise import Guided, Prediction
from dsno.solvers.fine import solver_errors
from dsno.solvers.named import SOLVERS
from dsno.solvers.run import SolverSampler
from dsno.train import Report, quiet
from dsno.trajectories.generate import generate
from dsno.trajectories.sets import TrajectorySet

__all__ = ["make_trajectories"]


def make_trajectories(
    teacher: Prediction | Guided,
    shape: tuple[int, ...],
    out: Path | str,
    count: int,
    times: Tensor,
    targets: tuple[str, ...] = ("x0",),
    solver: str = "unipc3",
    steps: int = 16,
    resume: bool = False,
    overwrite: bool = False,
    report: Report = quiet,
    grid: str = "best",
    **options: Any,
) -> TrajectorySet:
    """Generate a teacher's trajectories into `out`, keeping `times`; the grid is moved through them.

    A student copies its trajectories with their solver's error, and which grid makes it small depends on the teacher: the
    grid `best` is the one of `grids.GRIDS` whose ends are nearest to the fine solution from the first noises, 32 at most.
    That takes some 4,000 network evaluations at 16 steps; what it found is reported.

    Raises:
        ValueError: for an unknown solver or grid, times that do not decrease inside [0, 1), too few steps, or a folder of
            other trajectories.
    """
    for what, name, known in (("solver", solver, SOLVERS), ("grid", grid, ("best", *grids.GRIDS))):
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}: expected one of {', '.join(known)}")
    step = SOLVERS[solver]()
    if grid == "best" and step.stochastic:
        raise ValueError(f"the grid best is that of a solver of the ODE, and {solver} draws noise: name a grid for it")
    keep = grids.check_grid([1.0, *times.tolist()])
    inner = teacher.denoiser if isinstance(teacher, Guided) else teacher
    assert isinstance(inner, Prediction)
    found, left = _grids(inner.schedule, steps, keep[1:], grids.GRIDS if grid == "best" else [grid])

    def choose(run: SolverSampler, z: Tensor, cond: Cond | None) -> str:
        errors = solver_errors(
            run.denoiser, run.schedule, z, found, run.step, cond=cond, fine_steps=max(64, 2 * steps),
            batch=options.get("batch", 256), progress=lambda done, total: report("grid", done, total, ""),
        )  # fmt: skip
        chosen = next(iter(errors))
        best, *rest = (f"{name} {error:.2g}" for name, error in errors.items())
        text = f"RMSE of {steps} steps to the fine solution by grid: {best}, taken; {', '.join(rest)}"
        if errors[chosen] == math.inf:
            text = f"neither the fine solution nor any grid's ends are finite: {chosen} taken unmeasured"
        report("generate", 0, count, text + (f"; {', '.join(left)} cannot pass through the frames" if left else ""))
        return chosen

    sampler = SolverSampler(teacher, inner.schedule, next(iter(found.values())), step, keep)
    return generate(
        sampler, shape, out, count, targets=targets, grids=found, choose=choose, resume=resume, overwrite=overwrite,
        progress=lambda done, total: report("generate", done, total, ""), **options,
    )  # fmt: skip


def _grids(
    path: schedule.Schedule, steps: int, keep: Tensor, names: Iterable[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Grids by name, no two the same, each moved through `keep`; and the names of those that cannot be."""
    found: dict[str, Tensor] = {}
    left: dict[str, ValueError] = {}
    for name in names:
        try:
            grid = grids.through(grids.GRIDS[name](path, steps), keep)
        except ValueError as error:
            left[name] = error
            continue
        if not any(torch.allclose(grid, other) for other in found.values()):
            found[name] = grid
    if not found:
        raise next(iter(left.values()))
    return found, [*left]
