r"""The trajectories of a sampler on disk: solved in parallel by seed range, sharded, resumable, self-describing.

A set of trajectories is a function of its manifest. With $z_i$ the noise of seed $i$, rounded to the storage dtype
*before* it is solved,

$$ i \mapsto \big( z_i, \; \{ D(x_{t_m}, t_m) \text{ or } x_{t_m} \}_{m = 1 \dots M} \big), \qquad
   x_1 = \sigma_1 z_i, $$

so the stored noise is exactly the noise of the stored trajectory. The file format is that of
`dsno.trajectories.format`; sets are read by `dsno.trajectories.sets`, and moved elsewhere by `dsno.trajectories.share`.

Which rows make a batch depends on the manifest alone, never on the rank, so one process and many, interrupted or not,
write the same bytes on the same kind of machine. A file appears by atomic rename or not at all. While one shard is
written, by a thread, the next one is solved; on a GPU a batch is copied to the host while the next one is solved
(`dsno.trajectories.flights`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsno.grids import check_grid, find_times
from dsno.outputs import check_request
from dsno.seeds import seed_range
from dsno.solvers.run import SolverSampler
from dsno.trajectories.compute import PLAIN, Compute
from dsno.trajectories.flights import Writer, flights, landed
from dsno.trajectories.folder import alone, check_manifest, prepare
from dsno.trajectories.format import check_shard, rows_of, shard_count, shard_path, shards_in
from dsno.trajectories.labels import Label, checked_labels
from dsno.trajectories.manifest import MANIFEST, Contents, Manifest, manifest_of
from dsno.trajectories.sets import TrajectorySet

__all__ = ["store"]

log = logging.getLogger(__name__)


def store(
    sampler: SolverSampler,
    shape: Sequence[int],
    out: Path | str,
    count: int,
    *,
    first_seed: int = 0,
    targets: Sequence[str] = ("x0",),
    batch: int = 256,
    shard: int = 4096,
    dtype: torch.dtype = torch.float16,
    label: Label | None = None,
    description: Mapping[str, object] | None = None,
    compute: Compute = PLAIN,
    accelerator: Any = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> TrajectorySet:
    r"""Solve `count` trajectories from consecutive seeds and store them; of any denoiser, by any solver on any grid.

    With an `accelerator` every rank calls this with the same arguments and a folder all of them see; rank $r$ of $w$
    makes the shards $r, r + w, \dots$ (`accelerate launch --multi_gpu --num_processes 2` also starts two processes on
    a CPU). One run at a time per folder.

    Arguments:
        sampler: The solver; the kept times after the first are the M stored frames. A denoiser that is a module is in
            eval mode meanwhile.
        shape: The shape of one sample.
        out: The folder.
        count: How many trajectories.
        first_seed: Trajectory $i$ has seed `first_seed` + $i$.
        targets: What is stored of each frame: `x0` (the denoiser's $\hat x_0$; the sample itself at $t = 0$), `state`
            ($x_t$), or both.
        batch: Rows solved at once.
        shard: Rows per file.
        dtype: Storage dtype of noise and targets: float16, bfloat16 or float32. The solver runs in float32.
        label: The condition as a function of the seeds: (B,) int64 to (B, ...), or to several such by name.
        description: Of the teacher for the manifest, JSON-able. The weights of a module are fingerprinted in any case;
            a plain function is known by this description alone.
        compute: How the denoiser is evaluated, and where.
        accelerator: An `accelerate.Accelerator`, or None for one process.
        resume: Verify the shards that exist and make the missing ones; starts if there are none.
        overwrite: Throw away the trajectories in `out`.
        progress: Called as `progress(done, total)` after every batch, in rows of this rank.

    Returns:
        The set that was stored.

    Raises:
        BlockingIOError: if another run is writing to `out`.
        FileExistsError: if `out` has something in it and neither `resume` nor `overwrite` is set.
        FloatingPointError: if a trajectory is not finite; names seeds and time. Its shard is not written.
        OSError: if `out` cannot be written (before any work) or the disk fills up (complete shards stay).
        ValueError: for bad sizes, targets or times, or if `out` holds other or damaged trajectories: says which field
            or file, what was expected, what was found, and how to mend it.
    """
    check_request(resume, overwrite)
    folder = Path(out)
    sampler = replace(sampler, keep=_frames(sampler), keep_x0="x0" in targets)
    contents = Contents(tuple(shape), count, first_seed, targets, batch, shard, dtype)
    device, noted = compute.place(sampler.denoiser, accelerator), compute.noted(sampler.denoiser)
    first = None if label is None else checked_labels(label, seed_range(first_seed, min(batch, shard, count)))
    manifest = manifest_of(sampler, contents, first, description or {}, noted, device)
    rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    with alone(folder) if rank == 0 else contextlib.nullcontext():
        if rank == 0:
            prepare(folder, manifest, resume, overwrite)
        if accelerator is not None:
            accelerator.wait_for_everyone()
        try:
            _make(folder, manifest, sampler, label, compute, device, rank, world, progress)
        except BaseException:
            # A manifest of nothing would be in the way of the next run.
            if rank == 0 and not shards_in(folder):
                (folder / MANIFEST).unlink(missing_ok=True)
            raise
        if accelerator is not None:
            accelerator.wait_for_everyone()
        return TrajectorySet(folder)


def _make(
    folder: Path,
    manifest: Manifest,
    sampler: SolverSampler,
    label: Label | None,
    compute: Compute,
    device: torch.device,
    rank: int,
    world: int,
    progress: Callable[[int, int], object] | None,
) -> None:
    """Make the shards of process `rank` of `world` that are missing, and verify the others."""
    found = check_manifest(folder, manifest)

    mine = range(rank, shard_count(manifest), world)
    missing = [k for k in mine if not shard_path(folder, k).exists()]
    for k in sorted({*mine} - {*missing}):
        check_shard(folder, manifest, k, verify=True)
    if missing and found["made"] != manifest["made"]:
        log.warning("%s was begun with %s and goes on with %s", folder, found["made"], manifest["made"])
    total = sum(rows_of(manifest, k) for k in mine)
    done = total - sum(rows_of(manifest, k) for k in missing)
    # While the host looks at a batch, a GPU has the next one to do; a CPU would only learn of an error later.
    ahead = 1 if device.type == "cuda" else 0
    with compute.applied(sampler, device) as running, Writer(folder, manifest) as writer:
        for flight in landed(flights(manifest, missing, running, label, device, compute.channels_last), ahead):
            flight.land()
            done += len(flight.rows["seeds"])
            writer.check()
            if progress is not None:
                progress(done, total)
            if flight.last:
                writer.write(flight.k, flight.shard)


def _frames(sampler: SolverSampler) -> Tensor:
    """The kept times after the first of the grid, snapped to it: (M,), decreasing float64."""
    grid = check_grid(sampler.grid)
    keep = grid[-1:] if sampler.keep is None else torch.as_tensor(sampler.keep, dtype=torch.float64)
    frames = find_times(grid, keep, "on the grid")
    if not (frames := [n for n in frames if n > 0]):
        raise ValueError("no frame to store: the sampler keeps no time after the first of its grid")
    return grid[frames]
