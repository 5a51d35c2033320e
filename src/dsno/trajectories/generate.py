r"""Trajectories on disk: generated in parallel by seed range, sharded, resumable, self-describing.

A set of trajectories is a function of its manifest. With $z_i$ the noise of seed $i$, rounded to the storage dtype
*before* it is solved,

$$ i \mapsto \big( z_i, \; \{ D(x_{t_m}, t_m) \text{ or } x_{t_m} \}_{m = 1 \dots M} \big), \qquad x_1 = \sigma_1 z_i, $$

so the stored noise is exactly the noise of the stored trajectory. The format is `dsno.trajectories.format`', reading `dsno.trajectories.sets`', sets
that lie elsewhere `dsno.trajectories.share`'s.

Which rows make a batch depends on the manifest alone, never on the rank, so one process and many, interrupted or not,
write the same bytes on the same kind of machine. A file appears by atomic rename or not at all. While one shard is
written, by a thread, the next one is solved; on a GPU a batch is copied to the host while the next one is solved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsno.checkpoint import digest, prepare_folder, version_of
from dsno.condition import Cond, flat, map_cond
from dsno.cost import Meter
from dsno.denoise import Denoiser, Guided, Prediction, evaluating, modules_of, tensors_of
from dsno.grids import check_grid, find_times
from dsno.seeds import noise, seed_range
from dsno.solvers.run import SolverSampler
from dsno.trajectories.describe import describe
from dsno.trajectories.flights import Writer, flights, landed
from dsno.trajectories.format import check_foreign, check_shard, rows_of, shard_count, shard_path, write_file
from dsno.trajectories.labels import Label, checked_labels
from dsno.trajectories.manifest import (
    MANIFEST,
    NAMED,
    TARGETS,
    Manifest,
    differences,
    dtype_names,
    fingerprint,
    join,
    read_manifest,
)
from dsno.trajectories.sets import TrajectorySet

__all__ = ["generate"]

log = logging.getLogger(__name__)

Choose = Callable[[SolverSampler, Tensor, Cond | None], str]

STORABLE = (torch.float16, torch.bfloat16, torch.float32)


def generate(
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
    teacher: Mapping[str, object] | None = None,
    grids: Mapping[str, Tensor] | None = None,
    choose: Choose | None = None,
    autocast: torch.dtype | None = None,
    channels_last: bool = False,
    compile: bool = False,
    accelerator: Any = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
    device: torch.device | str | None = None,
) -> TrajectorySet:
    r"""Solve `count` trajectories from consecutive seeds and store them.

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
        teacher: A description for the manifest, JSON-able. The weights of a module are fingerprinted in any case; a
            plain function is known by this description alone.
        grids: Grids to choose from, by name, the sampler's among them; all pass through its kept times. Trajectories that are
            resumed go on with the one they were begun on.
        choose: Names one of several, given the sampler as it will run and the noise and condition of its first rows, 32 at
            most. Called when all else has been checked.
        autocast: Evaluate the denoiser in mixed precision: `torch.bfloat16` or `torch.float16`. Like the next two, this
            changes the trajectories a little, so it is part of the manifest.
        channels_last: Keep images and the weights of their convolutions channels last, which tensor cores prefer.
        compile: Compile the denoiser's network with `torch.compile`: minutes at the start, faster steps.
        accelerator: An `accelerate.Accelerator`, or None for one process.
        resume: Verify the shards that exist and make the missing ones; starts if there are none.
        overwrite: Throw away the trajectories in `out`.
        progress: Called as `progress(done, total)` after every batch, in rows of this rank.
        device: Where to solve; the accelerator's device, else the denoiser's, else the CPU.

    Returns:
        The set that was stored.

    Raises:
        FileExistsError: if `out` has something in it and neither `resume` nor `overwrite` is set.
        FloatingPointError: if a trajectory is not finite; names seeds and time. Its shard is not written.
        OSError: if `out` cannot be written (before any work) or the disk fills up (complete shards stay).
        ValueError: for bad sizes, targets or times, or if `out` holds other or damaged trajectories: says which field
            or file, what was expected, what was found, and how to mend it.
    """
    if resume and overwrite:
        raise ValueError("resume continues what is there and overwrite throws it away: pass one of them")
    folder = Path(out)
    sampler = dataclasses.replace(sampler, keep=_frames(sampler), keep_x0="x0" in targets)
    if device is None:
        held = next(iter(tensors_of(sampler.denoiser).values()), torch.empty(0))
        device = held.device if accelerator is None else accelerator.device
    device = torch.device(device)
    compute = _compute(sampler.denoiser, autocast, channels_last, compile)
    manifest = _manifest(
        sampler, shape, count, first_seed, targets, batch, shard, dtype, label, teacher, compute, device
    )
    rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    if grids:
        grid = _begun(folder, sampler, grids) if resume else None
        if grid is None and choose is not None and len(grids) > 1:
            if rank == 0:
                _check_out(folder, resume, overwrite)
            seeds = seed_range(first_seed, min(count, 32))
            cond = None if label is None else map_cond(lambda c: c.to(device), checked_labels(label, seeds))
            run = dataclasses.replace(sampler, denoiser=_evaluator(sampler.denoiser, device, autocast))
            # All ranks find the same, so that none waits for another.
            with _evaluating(sampler.denoiser):
                grid = grids[choose(run, noise(seeds, shape).to(device), cond)]
        if grid is not None:
            sampler = dataclasses.replace(sampler, grid=grid)
            manifest["grid"] = grid.tolist()
            manifest["fingerprint"] = fingerprint(manifest)
    if rank == 0:
        _prepare(folder, manifest, resume, overwrite)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    found = _check_manifest(folder, manifest)

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
    with _evaluating(sampler.denoiser, channels_last, compile), Writer(folder, manifest) as writer:
        sampler = dataclasses.replace(sampler, denoiser=_evaluator(sampler.denoiser, device, autocast))
        for flight in landed(flights(manifest, missing, sampler, label, device, channels_last), ahead):
            flight.land()
            done += len(flight.rows["seeds"])
            writer.check()
            if progress is not None:
                progress(done, total)
            if flight.last:
                writer.write(flight.k, flight.shard)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return TrajectorySet(folder)


def _frames(sampler: SolverSampler) -> Tensor:
    """The kept times after the first of the grid, snapped to it: (M,), decreasing float64."""
    grid = check_grid(sampler.grid)
    keep = grid[-1:] if sampler.keep is None else torch.as_tensor(sampler.keep, dtype=torch.float64)
    frames = find_times(grid, keep, "on the grid")
    if not (frames := [n for n in frames if n > 0]):
        raise ValueError("no frame to store: the sampler keeps no time after the first of its grid")
    return grid[frames]


def _begun(folder: Path, sampler: SolverSampler, grids: Mapping[str, Tensor]) -> Tensor | None:
    """The grid that the trajectories in a folder were begun on, if it is one of these, else the sampler's; None if there are none."""
    if not (folder / MANIFEST).is_file():
        return None
    held = torch.tensor(read_manifest(folder)["grid"], dtype=torch.float64)
    # The last digits of a logarithm differ from machine to machine.
    near = (g.shape == held.shape and torch.allclose(g, held, rtol=0, atol=1e-12) for g in grids.values())
    return held if any(near) else sampler.grid


def _nets(denoiser: Denoiser) -> list[nn.Module]:
    """The networks of a denoiser, without what is wrapped around them."""
    while isinstance(denoiser, Meter | Guided):
        denoiser = denoiser.denoiser
    return [denoiser.net] if isinstance(denoiser, Prediction) else list(modules_of(denoiser).values())


@contextlib.contextmanager
def _evaluating(denoiser: Denoiser, channels_last: bool = False, compile: bool = False) -> Iterator[None]:
    nets = _nets(denoiser)
    compiled = [net for net in nets if compile and net._compiled_call_impl is None]
    try:
        for net in nets if channels_last else []:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for net in compiled:
            net.compile()
        with evaluating(*modules_of(denoiser).values()):
            yield
    finally:
        for net in nets if channels_last else []:
            net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for net in compiled:
            net._compiled_call_impl = None


def _evaluator(denoiser: Denoiser, device: torch.device, autocast: torch.dtype | None) -> Denoiser:
    """The denoiser in mixed precision; what it returns is in the precision of the state."""
    if autocast is None:
        return denoiser

    def evaluate(x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        with torch.autocast(device.type, dtype=autocast):
            return denoiser(x_t, t, cond).to(x_t.dtype)

    return evaluate


def _manifest(
    sampler: SolverSampler,
    shape: Sequence[int],
    count: int,
    first_seed: int,
    targets: Sequence[str],
    batch: int,
    shard: int,
    dtype: torch.dtype,
    label: Label | None,
    teacher: Mapping[str, object] | None,
    compute: Manifest,
    device: torch.device,
) -> Manifest:
    sizes = {"count": count, "batch": batch, "shard": shard, "every length in shape": min(shape, default=1)}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if first_seed < 0 or first_seed + count > 2**63:
        raise ValueError(f"seeds must lie in [0, 2^63), got {first_seed} to {first_seed + count - 1}")
    if isinstance(targets, str) or not targets or not {*targets} <= {*TARGETS}:
        raise ValueError(f"targets must be a selection of {TARGETS}, got {targets!r}")
    if dtype not in STORABLE:
        raise ValueError(f"dtype must be one of {', '.join(map(str, STORABLE))}, got {dtype}")
    if not dataclasses.is_dataclass(sampler.step) or isinstance(sampler.step, type):
        raise ValueError(f"the solver {sampler.step!r} must be a dataclass: its fields are what is recorded")
    cond, named = None, False
    if label is not None:
        first = checked_labels(label, seed_range(first_seed, min(batch, shard, count)))
        named = not isinstance(first, Tensor)
        noted = {
            name.removeprefix("cond."): {
                "shape": x.shape[1:],
                "dtype": dtype_names[x.dtype],
                "sha256": digest({name: x}),
            }
            for name, x in flat(first).items()
        }
        cond = noted if named else noted["cond"]
    determines = {
        "format": NAMED if named else 1,
        "teacher": describe(sampler.denoiser, teacher or {}),
        "schedule": sampler.schedule.config,
        "solver": {"name": type(sampler.step).__name__, **dataclasses.asdict(sampler.step)},
        "grid": check_grid(sampler.grid).tolist(),
        "times": _frames(sampler).tolist(),
        "targets": [t for t in TARGETS if t in targets],
        "shape": list(shape),
        "count": count,
        "first_seed": first_seed,
        "shard": shard,
        "batch": batch,
        "dtype": dtype_names[dtype],
        "cond": cond,
        **({"compute": compute} if compute else {}),
    }
    try:
        determines = json.loads(json.dumps(determines, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`teacher` and the fields of schedule and solver must be JSON: {error}") from None
    made = {"dsno": version_of("dsno"), "torch": torch.__version__, "device": device.type}
    return {**determines, "fingerprint": fingerprint(determines), "made": made}


def _compute(denoiser: Denoiser, autocast: torch.dtype | None, channels_last: bool, compile: bool) -> Manifest:
    """What is not the default of how the denoiser is evaluated."""
    if autocast not in (None, torch.bfloat16, torch.float16):
        raise ValueError(f"autocast must be torch.bfloat16, torch.float16 or None, got {autocast}")
    if (channels_last or compile) and not _nets(denoiser):
        raise ValueError(
            f"channels_last and compile need a network, a torch module: {type(denoiser).__name__} has none"
        )
    asked = {"autocast": autocast and dtype_names[autocast], "channels_last": channels_last, "compile": compile}
    return {name: value for name, value in asked.items() if value}


def _check_manifest(folder: Path, expected: Manifest) -> Manifest:
    found = read_manifest(folder)
    ignored = {"fingerprint": None, "made": None}
    if wrong := differences(expected | ignored, found | ignored):
        raise ValueError(
            f"{folder} holds other trajectories than asked for: {join(wrong)}. Call generate() as it was called "
            "then, choose another folder, or pass overwrite=True"
        )
    return found


def _check_out(folder: Path, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that trajectories cannot be stored in, whatever they are; makes it where there is none."""
    shards = _shards(folder)
    if shards and not (resume or overwrite):
        raise FileExistsError(
            f"{folder} holds {len(shards)} shards already: pass resume=True to continue or overwrite=True to start again"
        )
    # Without a shard, a folder with a manifest in it is as good as new.
    known = (folder / MANIFEST).is_file()
    if (
        folder.is_dir()
        and not known
        and not shards
        and (others := sorted({*folder.iterdir()} - {*_unfinished(folder)}))
    ):
        raise FileExistsError(
            f"{folder} holds other files ({join([p.name for p in others], ', ')}): choose an empty one"
        )
    prepare_folder(folder, resume=True)


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.safetensors"))


def _unfinished(folder: Path) -> list[Path]:
    return [*folder.glob(".shard-*.tmp"), *folder.glob(f".{MANIFEST}*.tmp")]


def _prepare(folder: Path, manifest: Manifest, resume: bool, overwrite: bool) -> None:
    """Make the folder ready for this manifest, or say why not, before any work; rank 0 alone does this."""
    shards, known = _shards(folder), (folder / MANIFEST).is_file()
    pulled = False
    if resume:
        if known:
            found = _check_manifest(folder, manifest)
            # A part of a set that was pulled becomes the whole.
            pulled = found["made"].pop("pulled", None) is not None
        else:
            for k in range(shard_count(manifest)):
                if shard_path(folder, k).exists():
                    check_shard(folder, manifest, k, verify=False)
        check_foreign(folder, manifest)
        if known and len(shards) == shard_count(manifest) and not pulled:
            return  # Complete: nothing will be written, so the folder may be read-only.
    _check_out(folder, resume, overwrite)
    for path in [*_unfinished(folder), *([] if resume else [*reversed(shards), *folder.glob(MANIFEST)])]:
        path.unlink(missing_ok=True)
    if not (resume and known) or pulled:
        write_file(folder / MANIFEST, [json.dumps(found if pulled else manifest, indent=1).encode(), b"\n"])
