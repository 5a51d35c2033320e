r"""Trajectories on disk: generated in parallel by seed range, sharded, resumable, self-describing.

A set of trajectories is a function of its manifest. With $z_i$ the noise of seed $i$, rounded to the storage dtype
*before* it is solved,

$$ i \mapsto \big( z_i, \; \{ D(x_{t_m}, t_m) \text{ or } x_{t_m} \}_{m = 1 \dots M} \big), \qquad x_1 = \sigma_1 z_i, $$

so the stored noise is exactly the noise of the stored trajectory. A folder holds

- `manifest.json`: teacher, schedule, solver, grid, kept times, targets, seeds and sizes, and their `fingerprint`;
- `shard-00000.safetensors`, ...: `seeds` (N,), `noise` (N, *shape), `x0` and/or `state` (N, M, *shape), and `cond`
  (N, ...) if any; the header carries the manifest's fingerprint, the shard's index and the sha256 of the data.

Which rows make a batch depends on the manifest alone, never on the rank, so one process and many, interrupted or not,
write the same bytes on the same kind of machine. A file appears by atomic rename or not at all.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import Dataset

from dsno.checkpoint import prepare_folder, read_json
from dsno.denoise import Denoiser, Meter, Prediction
from dsno.noise import noise, seed_range
from dsno.schedule import Schedule, check_grid, schedule_from_config
from dsno.solve import SolverSampler

__all__ = ["Rows", "TrajectorySet", "batches", "generate"]

log = logging.getLogger(__name__)
Manifest = dict[str, Any]

FORMAT, MANIFEST, TARGETS = 1, "manifest.json", ("x0", "state")
STORABLE = (torch.float16, torch.bfloat16, torch.float32)
_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _CODES}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


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
    label: Callable[[Tensor], Tensor] | None = None,
    teacher: Mapping[str, object] | None = None,
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
        label: The condition as a function of the seeds, (B,) int64 to (B, ...).
        teacher: A description for the manifest, JSON-able. The weights of a module are fingerprinted in any case; a
            plain function is known by this description alone.
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
        held = next(iter(_tensors(sampler.denoiser).values()), torch.empty(0))
        device = held.device if accelerator is None else accelerator.device
    device = torch.device(device)
    manifest = _manifest(sampler, shape, count, first_seed, targets, batch, shard, dtype, label, teacher, device)
    rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    if rank == 0:
        _prepare(folder, manifest, resume, overwrite)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    found = _check_manifest(folder, manifest)

    mine = range(rank, _shards(manifest), world)
    missing = [k for k in mine if not _path(folder, k).exists()]
    for k in sorted({*mine} - {*missing}):
        _check_shard(folder, manifest, k, verify=True)
    if missing and found["made"] != manifest["made"]:
        log.warning("%s was begun with %s and goes on with %s", folder, found["made"], manifest["made"])
    total = sum(_rows(manifest, k) for k in mine)
    done = total - sum(_rows(manifest, k) for k in missing)
    with _evaluating(sampler.denoiser):
        for k in missing:
            tensors = {n: torch.empty(size, dtype=d) for n, (d, size) in _layout(manifest, k).items()}
            tensors["seeds"].copy_(seed_range(first_seed + k * shard, _rows(manifest, k)))
            for start in range(0, _rows(manifest, k), batch):
                rows = {name: x[start : start + batch] for name, x in tensors.items()}
                _solve_into(rows, sampler, label, device)
                done += len(rows["seeds"])
                if progress is not None:
                    progress(done, total)
            _write_shard(folder, manifest, k, tensors)
            log.info("%s: wrote shard %d of %d", folder, k + 1, _shards(manifest))
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return TrajectorySet(folder)


def _solve_into(
    rows: dict[str, Tensor], sampler: SolverSampler, label: Callable[[Tensor], Tensor] | None, device: torch.device
) -> None:
    """Solve the trajectories of `rows["seeds"]` into the other tensors of `rows`, views of a shard on the host."""
    seeds, cond = rows["seeds"], None
    z = noise(seeds, rows["noise"].shape[1:], device=device).to(rows["noise"].dtype)
    rows["noise"].copy_(z)
    if label is not None:
        rows["cond"].copy_(_labels(label, seeds))
        cond = rows["cond"].to(device)
    made = sampler(z.float(), cond, seeds)
    for name, output in (("x0", made.x0), ("state", made.x)):
        if name not in rows or output is None:
            continue
        held = rows[name]
        if output.shape != held.shape:
            raise ValueError(
                f"expected {name} of shape {tuple(held.shape)} from the sampler, got {tuple(output.shape)}"
            )
        held.copy_(output.to(held.dtype))
        # On the host, after the copy: no synchronisation of its own, and overflow of the storage dtype shows, too.
        if not bool((finite := held.isfinite().reshape(*held.shape[:2], -1).all(-1)).all()):
            _refuse(name, output, finite, seeds, made.t, held.dtype)


def _refuse(name: str, output: Tensor, finite: Tensor, seeds: Tensor, times: Tensor, dtype: torch.dtype) -> None:
    m = int((~finite).any(0).nonzero()[0])
    bad = [str(seed) for seed in seeds[~finite[:, m]].tolist()]
    why = "is not finite: the denoiser or the solver diverged"
    if bool(output.isfinite().all()):
        why = f"(up to {float(output.abs().max()):.3g}) exceeds the range of {dtype}: store it with dtype=torch.float32"
    raise FloatingPointError(
        f"{name} at t = {float(times[m]):g} of seeds {_join(bad, ', ')} {why}; no shard was written"
    )


def _labels(label: Callable[[Tensor], Tensor], seeds: Tensor) -> Tensor:
    cond = torch.as_tensor(label(seeds)).cpu()
    if cond.ndim < 1 or len(cond) != len(seeds) or cond.dtype not in _CODES:
        raise ValueError(
            f"label must return one row per seed, ({len(seeds)}, ...), of {', '.join(_DTYPES)}: "
            f"got {tuple(cond.shape)} of {cond.dtype}"
        )
    return cond


def _frames(sampler: SolverSampler) -> Tensor:
    """The kept times after the first of the grid, snapped to it: (M,), decreasing float64."""
    grid = check_grid(sampler.grid)
    keep = grid[-1:] if sampler.keep is None else torch.as_tensor(sampler.keep, dtype=torch.float64)
    frames = _find(grid, keep, "on the grid")
    if not (frames := [n for n in frames if n > 0]):
        raise ValueError("no frame to store: the sampler keeps no time after the first of its grid")
    return grid[frames]


def _find(times: Tensor, wanted: Sequence[float] | Tensor, where: str) -> list[int]:
    """The indices of `wanted` among `times`, in order."""
    found = set()
    for t in torch.as_tensor(wanted, dtype=torch.float64).reshape(-1).tolist():
        n = int((times - t).abs().argmin())
        if not abs(float(times[n]) - t) <= 1e-9:
            raise ValueError(f"t = {t:g} is not {where}: the nearest of the {len(times)} times is {float(times[n]):g}")
        found.add(n)
    return sorted(found)


def _modules(denoiser: Denoiser) -> dict[str, nn.Module]:
    """The denoiser if it is a module, else the modules among its attributes, under their prefix."""
    if isinstance(denoiser, nn.Module):
        return {"": denoiser}
    return {f"{k}.": v for k, v in getattr(denoiser, "__dict__", {}).items() if isinstance(v, nn.Module)}


def _tensors(denoiser: Denoiser) -> dict[str, Tensor]:
    """The weights of a denoiser: its state dict if it is a module, else those and the tensors among its attributes."""
    state = {} if isinstance(denoiser, nn.Module) else dict(getattr(denoiser, "__dict__", {}))
    for prefix, module in _modules(denoiser).items():
        state |= module.state_dict(prefix=prefix)
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}


@contextlib.contextmanager
def _evaluating(denoiser: Denoiser) -> Iterator[None]:
    modes = [(m, m.training) for part in _modules(denoiser).values() for m in part.modules()]
    try:
        for m, _ in modes:
            m.training = False
        yield
    finally:
        for m, mode in modes:
            m.training = mode


# The manifest: everything that determines the bytes, its fingerprint, and under `made` what merely accompanied them.


def _manifest(
    sampler: SolverSampler,
    shape: Sequence[int],
    count: int,
    first_seed: int,
    targets: Sequence[str],
    batch: int,
    shard: int,
    dtype: torch.dtype,
    label: Callable[[Tensor], Tensor] | None,
    teacher: Mapping[str, object] | None,
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
    cond = None
    if label is not None:
        first = _labels(label, seed_range(first_seed, min(batch, shard, count)))
        cond = {"shape": first.shape[1:], "dtype": _NAMES[first.dtype], "sha256": _digest({"cond": first})}
    determines = {
        "format": FORMAT,
        "teacher": _teacher(sampler.denoiser, teacher or {}),
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
        "dtype": _NAMES[dtype],
        "cond": cond,
    }
    try:
        determines = json.loads(json.dumps(determines, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`teacher` and the fields of schedule and solver must be JSON: {error}") from None
    made = {"dsno": _version(), "torch": torch.__version__, "device": device.type}
    return {**determines, "fingerprint": _fingerprint(determines), "made": made}


def _teacher(denoiser: Denoiser, description: Mapping[str, object]) -> Manifest:
    while isinstance(denoiser, Meter):
        denoiser = denoiser.denoiser
    known: Manifest = {"class": getattr(denoiser, "__name__", type(denoiser).__name__)}
    if isinstance(denoiser, Prediction):
        known |= {"kind": denoiser.kind, "clip": denoiser.clip}
    state = _tensors(denoiser)
    return {**known, "sha256": _digest(state) if state else None, "description": dict(description)}


def _version() -> str:
    try:
        return metadata.version("dsno")
    except metadata.PackageNotFoundError:
        return "not installed"


def _fingerprint(manifest: Manifest) -> str:
    determines = {k: v for k, v in manifest.items() if k not in ("fingerprint", "made")}
    text = json.dumps(determines, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _bytes(x: Tensor) -> memoryview:
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        digest.update(_bytes(x))
    return digest.hexdigest()


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    mend = f"Delete {path} and call generate(..., resume=True) as before: shards that match are kept"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: expected a folder that generate() wrote")
    try:
        manifest = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}. {mend}") from None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise ValueError(f"{path} is not the manifest of a trajectory folder. {mend}")
    if manifest["format"] != FORMAT:
        raise ValueError(f"{path}: format: expected {FORMAT}, found {manifest['format']}. Read it with a matching dsno")
    if manifest.get("fingerprint") != _fingerprint(manifest):
        raise ValueError(f"{path} was changed after it was written: its fingerprint does not match. {mend}")
    return manifest


def _check_manifest(folder: Path, expected: Manifest) -> Manifest:
    found = _read_manifest(folder)
    ignored = {"fingerprint": None, "made": None}
    if differences := _differences(expected | ignored, found | ignored):
        raise ValueError(
            f"{folder} holds other trajectories than asked for: {_join(differences)}. Call generate() as it was called "
            "then, choose another folder, or pass overwrite=True"
        )
    return found


def _differences(expected: Any, found: Any, field: str = "") -> list[str]:
    """Where two JSON values differ, as `field: expected ..., found ...`."""
    if expected == found:
        return []
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        expected, found = dict(enumerate(expected)), dict(enumerate(found))
    if isinstance(expected, dict) and isinstance(found, dict):
        paths = {k: f"{field}.{k}".lstrip(".") for k in sorted({*expected, *found})}
        return [d for k, path in paths.items() for d in _differences(expected.get(k), found.get(k), path)]
    shown = [f"{len(v)} values" if isinstance(v, list) and len(v) > 8 else json.dumps(v) for v in (expected, found)]
    return [f"{field}: expected {shown[0]:.80}, found {shown[1]:.80}"]


def _join(items: Sequence[str], separator: str = "; ") -> str:
    return separator.join(items[:4]) + (f"{separator}and {len(items) - 4} more" if len(items) > 4 else "")


# The files.


def _shards(manifest: Manifest) -> int:
    return -(-manifest["count"] // manifest["shard"])


def _rows(manifest: Manifest, k: int) -> int:
    return min(manifest["shard"], manifest["count"] - k * manifest["shard"])


def _path(folder: Path, k: int) -> Path:
    return folder / f"shard-{k:05d}.safetensors"


def _prepare(folder: Path, manifest: Manifest, resume: bool, overwrite: bool) -> None:
    """Make the folder ready for this manifest, or say why not, before any work; rank 0 alone does this."""
    shards, known = sorted(folder.glob("shard-*.safetensors")), (folder / MANIFEST).is_file()
    if shards and not (resume or overwrite):
        raise FileExistsError(
            f"{folder} holds {len(shards)} shards already: pass resume=True to continue or overwrite=True to start again"
        )
    if resume:
        if known:
            _check_manifest(folder, manifest)
        else:
            for k in range(_shards(manifest)):
                if _path(folder, k).exists():
                    _check_shard(folder, manifest, k, verify=False)
        _check_foreign(folder, manifest)
        if known and len(shards) == _shards(manifest):
            return  # Complete: nothing will be written, so the folder may be read-only.
    # Without a shard, a folder with a manifest in it is as good as new.
    unfinished = [*folder.glob(".shard-*.tmp"), *folder.glob(f".{MANIFEST}*.tmp")]
    ours = {*unfinished} if resume else {*unfinished, *shards, *folder.glob(MANIFEST)}
    if folder.is_dir() and not known and not shards and (others := sorted({*folder.iterdir()} - ours)):
        raise FileExistsError(
            f"{folder} holds other files ({_join([p.name for p in others], ', ')}): choose an empty one"
        )
    prepare_folder(folder, resume=True)
    for path in sorted(ours, reverse=True):
        path.unlink(missing_ok=True)
    if not (resume and known):
        _write(folder / MANIFEST, [json.dumps(manifest, indent=1).encode(), b"\n"])


def _check_foreign(folder: Path, manifest: Manifest) -> None:
    own = {_path(folder, k) for k in range(_shards(manifest))}
    if foreign := sorted(p.name for p in {*folder.glob("shard-*.safetensors")} - own):
        raise ValueError(
            f"{folder}: expected {len(own)} shards, found others, too ({_join(foreign, ', ')}). Remove them"
        )


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write a file that appears whole or not at all, power cuts included."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        mend = "Complete shards are kept: make room and call generate(..., resume=True)"
        raise OSError(error.errno, f"cannot write {path} ({error.strerror}). {mend}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _layout(manifest: Manifest, k: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Dtype and shape of shard `k`'s tensors in the order of the file: widest dtype first, so that all are aligned."""
    n, shape, dtype = _rows(manifest, k), manifest["shape"], _DTYPES[manifest["dtype"]]
    layout = {"seeds": (torch.int64, (n,)), "noise": (dtype, (n, *shape))}
    layout |= {name: (dtype, (n, len(manifest["times"]), *shape)) for name in manifest["targets"]}
    if (cond := manifest["cond"]) is not None:
        layout["cond"] = (_DTYPES[cond["dtype"]], (n, *cond["shape"]))
    return dict(sorted(layout.items(), key=lambda item: (-item[1][0].itemsize, item[0])))


def _header(manifest: Manifest, k: int, sha256: str) -> tuple[dict[str, Any], int]:
    """The safetensors header of shard `k`, a function of manifest and checksum, and the size of its data in bytes."""
    header: dict[str, Any] = {
        "__metadata__": {"fingerprint": manifest["fingerprint"], "shard": str(k), "sha256": sha256}
    }
    end = 0
    for name, (dtype, shape) in _layout(manifest, k).items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    return header, end


def _write_shard(folder: Path, manifest: Manifest, k: int, tensors: dict[str, Tensor]) -> None:
    # Written here and not by safetensors, whose order of metadata keys differs from process to process.
    data = [_bytes(tensors[name]) for name in _layout(manifest, k)]
    digest = hashlib.sha256()
    for chunk in data:
        digest.update(chunk)
    text = json.dumps(_header(manifest, k, digest.hexdigest())[0]).encode()
    text += b" " * (-len(text) % 8)
    _write(_path(folder, k), [len(text).to_bytes(8, "little"), text, *data])


def _check_shard(folder: Path, manifest: Manifest, k: int, verify: bool) -> None:
    """Refuse a shard whose header or size is not what the manifest says; `verify` reads the data, too."""
    path = _path(folder, k)
    size, problem = path.stat().st_size, ""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, size)))
            sha256 = header["__metadata__"]["sha256"]
        except (ValueError, KeyError, TypeError):
            header, sha256 = None, ""
        expected, data = _header(manifest, k, sha256)
        if header is None:
            problem = "truncated, damaged or foreign: its header cannot be read"
        elif differences := _differences(expected, header):
            problem = f"foreign: {_join(differences)}"
        elif size != 8 + length + data:
            problem = f"truncated or damaged: expected {8 + length + data} bytes, found {size}"
        elif verify and (found := hashlib.file_digest(file, "sha256").hexdigest()) != sha256:
            problem = f"damaged: sha256: expected {sha256}, found {found}"
    if problem:
        raise ValueError(f"{path} is {problem}. Delete it and call generate(..., resume=True) to make it again")


class TrajectorySet(Dataset[dict[str, Tensor]]):
    r"""The trajectories of a folder, read lazily: files are memory-mapped, and a row is read when it is asked for.

    An item is a dict of float32 `noise` (*shape), `x0` and/or `state` (M, *shape), of `seeds` () int64, and of `cond`
    (...) as stored, if any. `__getitems__` gives the same with a batch dimension in front, gathered at once (which a
    `DataLoader` understands with `collate_fn=dict`). Opening reads headers only.

    Arguments:
        folder: What `generate` wrote.
        times: The frames to read, a subset of the stored times; all by default.
        verify: Read everything once and compare checksums.

    Attributes:
        manifest: What determined the trajectories.
        times: The frames, (M,), decreasing float64.
        shape: The shape of one sample.
        targets: Which of `x0` and `state` are stored.

    Raises:
        FileNotFoundError: if the folder, its manifest or a shard is missing.
        ValueError: if the manifest or a shard is damaged or foreign, or a time is not stored; says how to mend it.
    """

    def __init__(
        self,
        folder: Path | str,
        times: Sequence[float] | Tensor | None = None,
        verify: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        paths = [_path(self.folder, k) for k in range(_shards(self.manifest))]
        if missing := [p.name for p in paths if not p.exists()]:
            raise FileNotFoundError(
                f"{self.folder} is incomplete: {len(missing)} of {len(paths)} shards are missing "
                f"({_join(missing, ', ')}). Call generate(..., resume=True) to make them"
            )
        _check_foreign(self.folder, self.manifest)
        for k in range(len(paths)):
            _check_shard(self.folder, self.manifest, k, verify)
        self.times = torch.tensor(self.manifest["times"], dtype=torch.float64)
        self._frames: Tensor | None = None
        if times is not None:
            self._frames = torch.tensor(_find(self.times, times, f"stored in {self.folder}"), dtype=torch.int64)
            self.times = self.times[self._frames]
        self.shape: tuple[int, ...] = tuple(self.manifest["shape"])
        self.targets: tuple[str, ...] = tuple(self.manifest["targets"])
        self._count = int(self.manifest["count"])
        self._mapped: dict[int, dict[str, Tensor]] = {}

    @property
    def schedule(self) -> Schedule:
        """The schedule the trajectories were solved on.

        Raises:
            ValueError: if it is not one of dsno's own.
        """
        return schedule_from_config(self.manifest["schedule"])

    def check_teacher(self, teacher: Denoiser) -> None:
        """Make sure that these are the trajectories of `teacher`.

        Raises:
            ValueError: if they are another's; names what differs.
        """
        found = self.manifest["teacher"]
        if differences := _differences(_teacher(teacher, found["description"]), found, "teacher"):
            raise ValueError(
                f"{self.folder} holds trajectories of another teacher: {_join(differences)}. Give theirs, or call "
                "generate() with this one"
            )

    def head(self, count: int) -> TrajectorySet:
        """The first `count` trajectories as a set of their own.

        Raises:
            ValueError: if there are not as many.
        """
        if not 1 <= count <= len(self):
            raise ValueError(f"cannot take the first {count} of {len(self)} trajectories")
        first = copy.copy(self)
        first._count = count
        return first

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: rows[0] for name, rows in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The rows `indices`, in any order: `noise` (B, *shape), `x0`/`state` (B, M, *shape), `seeds` (B,), `cond`.

        Raises:
            IndexError: if an index is out of range.
        """
        index = torch.as_tensor(indices, dtype=torch.int64)
        if not len(index) or int(index.min()) < -len(self) or int(index.max()) >= len(self):
            raise IndexError(f"expected indices of {len(self)} trajectories, got {indices!r:.80}")
        index = index % len(self)
        shard, row = index // self.manifest["shard"], index % self.manifest["shard"]
        batch: dict[str, Tensor] = {}
        for k in shard.unique().tolist():
            where = (shard == k).nonzero().squeeze(1)
            for name, stored in self._shard(k).items():
                if name in self.targets and self._frames is not None:
                    found = stored[row[where][:, None], self._frames]
                else:
                    found = stored[row[where]]
                if name not in batch:
                    dtype = torch.float32 if name in ("noise", *self.targets) else stored.dtype
                    batch[name] = torch.empty(len(index), *found.shape[1:], dtype=dtype)
                batch[name][where] = found.to(batch[name].dtype)
        return batch

    def _shard(self, k: int) -> dict[str, Tensor]:
        if k not in self._mapped:
            # Tensors from safe_open are views of a private memory map, which they keep alive; nothing is read yet.
            with safe_open(_path(self.folder, k), framework="pt") as file:
                self._mapped[k] = {name: file.get_tensor(name) for name in _layout(self.manifest, k)}
        return self._mapped[k]

    def __getstate__(self) -> dict[str, Any]:
        # A worker process maps the files itself instead of receiving their contents.
        return {**self.__dict__, "_mapped": {}}


class Rows(Protocol):
    """Anything that gives many rows at once as a dict of tensors."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: list[int], /) -> dict[str, Tensor]: ...


def batches(
    dataset: Rows, batch_size: int, seed: int, start_step: int = 0, rank: int = 0, world: int = 1
) -> Iterator[dict[str, Tensor]]:
    r"""Shuffled batches without end and without state: step $k$'s batch is a function of `seed` and $k$ alone.

    With $S = \lfloor n / B \rfloor$ steps per epoch and $\pi_e$ the permutation of the $n$ rows drawn from `(seed, e)`,

    $$ \mathrm{batch}_k = \pi_e[jB : (j + 1)B], \qquad e = \lfloor k / S \rfloor, \; j = k \bmod S, $$

    of which each rank takes its contiguous share of $B$ / `world` rows. So training resumes exactly at any step, and the
    ranks together see the rows that one process would. The ragged tail of an epoch is dropped.

    Arguments:
        dataset: A `TrajectorySet`, or anything with `__len__` and `__getitems__`.
        batch_size: The global batch size $B$.
        seed: Determines the order; non-negative.
        start_step: The first step.
        rank: Which share.
        world: How many shares.

    Raises:
        ValueError: if there are fewer rows than one batch, or the batch cannot be shared evenly.
    """
    if batch_size < 1 or start_step < 0 or seed < 0 or not 0 <= rank < world:
        raise ValueError(
            "expected batch_size >= 1, start_step >= 0, seed >= 0 and 0 <= rank < world, "
            f"got {batch_size}, {start_step}, {seed}, {rank} and {world}"
        )
    if batch_size % world:
        raise ValueError(f"a batch of {batch_size} cannot be shared evenly by {world} processes: use a multiple")
    if len(dataset) < batch_size:
        raise ValueError(f"{len(dataset)} rows do not fill one batch of {batch_size}: use a smaller batch or more rows")

    def stream() -> Iterator[dict[str, Tensor]]:
        share, steps = batch_size // world, len(dataset) // batch_size
        epoch, j = divmod(start_step, steps)
        while True:
            order = np.random.default_rng((seed, epoch)).permutation(len(dataset))
            for i in range(j, steps):
                first = i * batch_size + rank * share
                yield dataset.__getitems__(order[first : first + share].tolist())
            epoch, j = epoch + 1, 0

    return stream()
