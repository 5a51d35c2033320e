r"""A teacher's trajectories: its solver, a grid that is measured, and the frames.

A student copies its trajectories with their solver's error, and which grid makes that small depends on the teacher.
By default the grid is therefore the `best` of `dsno.grids.GRIDS`: each, moved through the frames, takes the first
noises (32 at most) to their ends, and the one whose ends have the least RMSE to the fine solution is taken.

The frames are by default those of the paper (Zheng et al., 2023, arXiv 2211.13449), the quadratic ones $(1 - m/M)^2$,
$m = 1 \dots M$, in the phase, which is the time itself on `Cosine`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsno.condition import map_cond
from dsno.denoise import Around, Denoiser, Prediction, innermost
from dsno.grids import GRIDS, check_grid, quadratic, through
from dsno.nets.backbone import sample_shape
from dsno.outputs import check_request
from dsno.schedule import Schedule
from dsno.seeds import noise, seed_range
from dsno.solvers.fine import solver_errors
from dsno.solvers.named import solver_named
from dsno.solvers.run import SolverSampler
from dsno.train import Report, quiet
from dsno.trajectories.compute import PLAIN, Compute
from dsno.trajectories.folder import alone, check_out
from dsno.trajectories.labels import Label, checked_labels
from dsno.trajectories.manifest import MANIFEST, Contents, read_manifest
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectories.store import store

__all__ = ["generate", "quadratic_frames"]


def generate(
    teacher: Prediction | Around,
    out: Path | str,
    count: int,
    *,
    shape: Sequence[int] | None = None,
    times: Sequence[float] | Tensor | None = None,
    solver: str = "unipc3",
    steps: int = 16,
    grid: str = "best",
    targets: Sequence[str] = ("x0",),
    label: Label | None = None,
    first_seed: int = 0,
    batch: int = 256,
    shard: int = 4096,
    dtype: torch.dtype = torch.float16,
    compute: Compute = PLAIN,
    accelerator: Any = None,
    resume: bool = False,
    overwrite: bool = False,
    report: Report = quiet,
) -> TrajectorySet:
    r"""Generate a teacher's trajectories into the folder `out`.

    Arguments:
        teacher: A `Prediction`, or one under guidance, `Guided` or `Steered`. Any other denoiser goes to `store`, with
            a sampler.
        out: The folder.
        count: How many trajectories.
        shape: The shape of one sample; the teacher's where it says.
        times: The frames that are kept, decreasing inside [0, 1); `quadratic_frames` of the schedule, four, by default.
        solver: One of `dsno.solvers.named.SOLVERS`; of a `Steered` teacher of `SPLITTINGS`, too.
        steps: Its steps.
        grid: One of `dsno.grids.GRIDS`, moved through `times`, or `best`: the one that the solver makes the least error
            on, which takes some 4,000 network evaluations at 16 steps. Trajectories that are resumed go on with the one
            they were begun on.
        targets: What is stored of each frame: `x0`, `state`, or both.
        label: The condition as a function of the seeds: (B,) int64 to (B, ...), or to several such by name.
        first_seed: Trajectory $i$ has seed `first_seed` + $i$.
        batch: Rows solved at once.
        shard: Rows per file.
        dtype: Storage dtype of noise and targets: float16, bfloat16 or float32.
        compute: How the network is evaluated, and where.
        accelerator: An `accelerate.Accelerator`, or None for one process; see `store`.
        resume: Verify the shards that exist and make the missing ones; starts if there are none.
        overwrite: Throw away the trajectories in `out`.
        report: Told of the progress, and of what the grids' errors were.

    Returns:
        The set that was stored.

    Raises:
        ValueError: for an unknown solver or grid, times that do not decrease inside [0, 1), too few steps, or a teacher
            that does not say its shape; and whatever `store` raises.
    """
    check_request(resume, overwrite)
    step, prediction = solver_named(solver, teacher), _prediction(teacher)
    if grid not in ("best", *GRIDS):
        raise ValueError(f"unknown grid {grid!r}: expected one of {', '.join(('best', *GRIDS))}")
    if grid == "best" and step.stochastic:
        raise ValueError(f"the grid best is that of a solver of the ODE, and {solver} draws noise: name a grid for it")
    schedule = prediction.schedule
    frames = quadratic_frames(schedule) if times is None else torch.as_tensor(times, dtype=torch.float64)
    keep = check_grid([1.0, *frames.tolist()])
    shape = sample_shape(prediction) if shape is None else tuple(shape)
    found, left = _candidates(schedule, steps, keep[1:], GRIDS if grid == "best" else [grid])
    sampler = SolverSampler(teacher, schedule, next(iter(found.values())), step, keep)

    begun = _begun(Path(out), sampler.grid, found) if resume else None
    if begun is not None:
        sampler = replace(sampler, grid=begun)
    elif len(found) > 1:
        contents = Contents(shape, count, first_seed, targets, batch, shard, dtype)
        compute.noted(teacher)  # refuses what cannot be done before the grids are tried
        if accelerator is None or accelerator.process_index == 0:
            with alone(Path(out)):
                check_out(Path(out), resume, overwrite)
        # All ranks find the same, so that none waits for another.
        errors = _measured(sampler, found, contents, label, compute, accelerator, report)
        report("generate", 0, count, _in_words(errors, steps, left))
        sampler = replace(sampler, grid=found[next(iter(errors))])
    return store(
        sampler,
        shape,
        out,
        count,
        first_seed=first_seed,
        targets=targets,
        batch=batch,
        shard=shard,
        dtype=dtype,
        label=label,
        compute=compute,
        accelerator=accelerator,
        resume=resume,
        overwrite=overwrite,
        progress=lambda done, total: report("generate", done, total, ""),
    )


def quadratic_frames(schedule: Schedule, frames: int = 4) -> Tensor:
    r"""The times whose phases are $(1 - m/M)^2$, $m = 1 \dots M$: (M,), decreasing float64, the last one 0.

    Raises:
        ValueError: for no frames.
    """
    # Rounded, so that they are the same on machines whose tangents differ in the last digit.
    return schedule.from_phase(quadratic(frames))[1:].round(decimals=12)


def _prediction(teacher: Denoiser) -> Prediction:
    inner = innermost(teacher)
    if not isinstance(inner, Prediction):
        raise ValueError(
            f"a {type(inner).__name__} does not say its schedule: give a Prediction (guided or not), or call "
            "dsno.trajectories.store.store() with a SolverSampler of it"
        )
    return inner


def _candidates(
    schedule: Schedule, steps: int, keep: Tensor, names: Iterable[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Grids by name, no two the same, each moved through `keep`; and the names of those that cannot be."""
    found: dict[str, Tensor] = {}
    left: dict[str, ValueError] = {}
    for name in names:
        try:
            grid = through(GRIDS[name](schedule, steps), keep)
        except ValueError as error:
            left[name] = error
            continue
        if not any(torch.allclose(grid, other) for other in found.values()):
            found[name] = grid
    if not found:
        raise next(iter(left.values()))
    return found, [*left]


def _begun(folder: Path, first: Tensor, grids: Mapping[str, Tensor]) -> Tensor | None:
    """The grid that the trajectories in a folder were begun on, if it is one of these, else the first of them; None if
    there are no trajectories."""
    if not (folder / MANIFEST).is_file():
        return None
    held = torch.tensor(read_manifest(folder)["grid"], dtype=torch.float64)
    # The last digits of a logarithm differ from machine to machine.
    near = (g.shape == held.shape and torch.allclose(g, held, rtol=0, atol=1e-12) for g in grids.values())
    return held if any(near) else first


def _measured(
    sampler: SolverSampler,
    grids: Mapping[str, Tensor],
    contents: Contents,
    label: Label | None,
    compute: Compute,
    accelerator: Any,
    report: Report,
) -> dict[str, float]:
    """The errors of the sampler on each of the grids, from the first noises of a set, least first."""
    device = compute.place(sampler.denoiser, accelerator)
    seeds = seed_range(contents.first_seed, min(contents.count, 32))
    cond = None if label is None else map_cond(lambda c: c.to(device), checked_labels(label, seeds))
    steps = len(sampler.grid) - 1
    # Compiling is not worth its minutes here.
    with Compute(compute.autocast).applied(sampler, device) as running:
        return solver_errors(
            running.denoiser,
            running.schedule,
            noise(seeds, contents.shape).to(device),
            grids,
            running.step,
            cond=cond,
            fine_steps=max(64, 2 * steps),
            batch=contents.batch,
            progress=lambda done, total: report("grid", done, total, ""),
        )


def _in_words(errors: Mapping[str, float], steps: int, left: Sequence[str]) -> str:
    """What was found, in words; `errors` are least first, the grids `left` out could not be tried."""
    chosen, *_ = errors
    best, *rest = (f"{name} {error:.2g}" for name, error in errors.items())
    text = f"RMSE of {steps} steps to the fine solution by grid: {best}, taken; {', '.join(rest)}"
    if errors[chosen] == math.inf:
        text = f"neither the fine solution nor any grid's ends are finite: {chosen} taken unmeasured"
    return text + (f"; {', '.join(left)} cannot pass through the frames" if left else "")
