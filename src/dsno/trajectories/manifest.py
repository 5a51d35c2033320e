"""The manifest: everything that determines the bytes of a set, and its fingerprint.

A set of trajectories is a function of its manifest, a JSON object: the teacher (what it is, how it is clipped and
guided, the checksum of its weights), its schedule, the solver with its grid and the kept times, what is stored of each
frame and in which precision, the seeds, how many rows make a batch and a shard, and the conditions' shapes with the
checksum of the first ones. The `fingerprint` is the sha256 of all that, as JSON with sorted keys and no spaces. What
merely accompanied it (versions, the device, where it was pulled from) is under `made` and left out.

So two sets are the same if their fingerprints are, and where they are not, `differences` says in which fields.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from dsno.checkpoint import digest, read_json, version_of, write_json
from dsno.condition import Cond, flat, nested
from dsno.cost import Metered
from dsno.denoise import Denoiser, Guided, Prediction, Threshold, tensors_of
from dsno.grids import check_grid
from dsno.outside import Length, Within, check
from dsno.solvers.run import SolverSampler
from dsno.steer import Steered

__all__ = [
    "CODES",
    "MANIFEST",
    "NAMED",
    "TARGETS",
    "Contents",
    "Manifest",
    "describe",
    "determines",
    "differences",
    "dtype_names",
    "dtypes",
    "fingerprint",
    "join",
    "manifest_of",
    "parse_manifest",
    "read_manifest",
    "write_manifest",
    "writing",
]

Manifest = dict[str, Any]

MANIFEST, TARGETS = "manifest.json", ("x0", "state")

NAMED = 2  # The format of sets whose condition has names; all others are format 1.

STORABLE = (torch.float16, torch.bfloat16, torch.float32)

CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls the dtypes that may be stored."""

dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in CODES}

dtype_names = {dtype: name for name, dtype in dtypes.items()}


# What determines a set

Size = Annotated[int, Within(1, 2**20)]

Time = Annotated[float, Within(0, 1)]


@dataclass
class _Tensor:
    """What a manifest says of a tensor of the condition: the shape of a row, and its dtype."""

    shape: Annotated[list[Size], Length(0, 8)]
    dtype: str


@dataclass
class _Alone:
    cond: _Tensor | None


@dataclass
class _Named:
    cond: Annotated[dict[str, _Tensor], Length(1, 64)]


@dataclass
class _Pulled:
    count: Annotated[int, Within(1, 2**40)]


@dataclass
class _Made:
    pulled: _Pulled | None = None


@dataclass
class _Form:
    """What a manifest has to be: its fingerprint says that nobody changed it, and not that it makes sense."""

    teacher: dict[str, Any]
    schedule: dict[str, Any]
    solver: dict[str, Any]
    grid: Annotated[list[Time], Length(2, 2**20)]
    times: Annotated[list[Time], Length(1, 2**16)]
    targets: Annotated[list[Literal["x0", "state"]], Length(1, 2)]
    shape: Annotated[list[Size], Length(0, 8)]
    count: Annotated[int, Within(1, 2**40)]
    first_seed: Annotated[int, Within(0, 2**63 - 1)]
    shard: Annotated[int, Within(1, 2**40)]
    batch: Annotated[int, Within(1, 2**40)]
    dtype: Literal["float16", "bfloat16", "float32"]
    made: _Made


MOST_SHARDS = 2**20


@dataclass(frozen=True)
class Contents:
    """What a set holds, but for whose trajectories they are.

    Arguments:
        shape: The shape of one sample.
        count: How many trajectories.
        first_seed: Trajectory $i$ has seed `first_seed` + $i$.
        targets: What is stored of each frame: `x0`, `state`, or both.
        batch: Rows solved at once.
        shard: Rows per file.
        dtype: Storage dtype of noise and targets.

    Raises:
        ValueError: for sizes below 1, seeds outside $[0, 2^{63})$, other targets or another dtype.
    """

    shape: tuple[int, ...]
    count: int
    first_seed: int = 0
    targets: Sequence[str] = ("x0",)
    batch: int = 256
    shard: int = 4096
    dtype: torch.dtype = torch.float16

    def __post_init__(self) -> None:
        least = min(self.shape, default=1)
        sizes = {"count": self.count, "batch": self.batch, "shard": self.shard, "every length in shape": least}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if self.first_seed < 0 or self.first_seed + self.count > 2**63:
            last = self.first_seed + self.count - 1
            raise ValueError(f"seeds must lie in [0, 2^63), got {self.first_seed} to {last}")
        if isinstance(self.targets, str) or not self.targets or not {*self.targets} <= {*TARGETS}:
            raise ValueError(f"targets must be a selection of {TARGETS}, got {self.targets!r}")
        if self.dtype not in STORABLE:
            raise ValueError(f"dtype must be one of {', '.join(map(str, STORABLE))}, got {self.dtype}")


def manifest_of(
    sampler: SolverSampler,
    contents: Contents,
    first: Cond | None,
    description: Mapping[str, object],
    compute: Manifest,
    device: torch.device,
) -> Manifest:
    """The manifest of the trajectories of a sampler.

    Arguments:
        sampler: The solver; its `keep` are the M frames.
        contents: What is stored.
        first: The condition of the first rows, or None.
        description: Of the teacher, in words.
        compute: How the denoiser is evaluated, where that is not the default.
        device: Where; recorded under `made`.

    Raises:
        ValueError: if the step is no dataclass, or something is not JSON.
    """
    if not dataclasses.is_dataclass(sampler.step) or isinstance(sampler.step, type):
        raise ValueError(f"the solver {sampler.step!r} must be a dataclass: its fields are what is recorded")
    assert sampler.keep is not None
    cond = {
        name.removeprefix("cond."): {"shape": x.shape[1:], "dtype": dtype_names[x.dtype], "sha256": digest({name: x})}
        for name, x in flat(first).items()
    }
    named = isinstance(first, Mapping)
    everything = {
        "format": NAMED if named else 1,
        "teacher": describe(sampler.denoiser, description),
        "schedule": sampler.schedule.config,
        "solver": {"name": type(sampler.step).__name__, **dataclasses.asdict(sampler.step)},
        "grid": check_grid(sampler.grid).tolist(),
        "times": sampler.keep.tolist(),
        "targets": [t for t in TARGETS if t in contents.targets],
        "shape": list(contents.shape),
        "count": contents.count,
        "first_seed": contents.first_seed,
        "shard": contents.shard,
        "batch": contents.batch,
        "dtype": dtype_names[contents.dtype],
        "cond": cond if named else cond.get("cond"),
        **({"compute": compute} if compute else {}),
    }
    try:
        everything = json.loads(json.dumps(everything, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`description` and the fields of schedule and solver must be JSON: {error}") from None
    made = {"dsno": version_of("dsno"), "torch": torch.__version__, "device": device.type}
    return {**everything, "fingerprint": fingerprint(everything), "made": made}


def describe(denoiser: Denoiser, description: Mapping[str, object]) -> Manifest:
    """What a manifest says of the teacher: what it is, the checksum of its weights, and a `description` in words."""
    return {**_described(denoiser), "description": dict(description)}


def _described(denoiser: Denoiser) -> Manifest:
    """What a denoiser is, as far as it can be told: names, numbers and checksums."""
    while isinstance(denoiser, Metered):
        denoiser = denoiser.denoiser
    known: Manifest = {"class": getattr(denoiser, "__name__", type(denoiser).__name__)}
    if isinstance(denoiser, Guided):
        null = nested({k: _noted(x) for k, x in flat(denoiser.null).items()})["cond"]
        return {**known, "weight": denoiser.weight, "null": null, "denoiser": _described(denoiser.denoiser)}
    if isinstance(denoiser, Steered):
        project = {} if denoiser.project is None else {"project": _part(denoiser.project, {})}
        guide = _part(denoiser.guide, denoiser.guide.config)
        return {**known, "scale": denoiser.scale, "guide": guide, **project, "denoiser": _described(denoiser.denoiser)}
    if isinstance(denoiser, Prediction):
        clip = dataclasses.asdict(denoiser.clip) if isinstance(denoiser.clip, Threshold) else denoiser.clip
        known |= {"kind": denoiser.kind, "clip": clip}
        # Left out where it has no effect: manifests from before it existed stay as they are.
        known |= {"data_std": denoiser.data_std} if denoiser.data_std != 1 else {}
    state = tensors_of(denoiser)
    return {**known, "sha256": digest(state) if state else None}


def _part(part: Any, config: Mapping[str, Any]) -> Manifest:
    """A guide or a projection: its name, what it says of itself, and the checksum of its weights."""
    state = tensors_of(part)
    name = getattr(part, "__name__", type(part).__name__)
    return {"class": name, **config, "sha256": digest(state) if state else None}


def _noted(x: Tensor) -> Any:
    """A number as it is, a larger tensor by its checksum."""
    if x.ndim == 0:
        return x.item()
    return {"shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch."), "sha256": digest({"": x})}


def determines(manifest: Manifest) -> Manifest:
    """The part of a manifest that determines the trajectories."""
    return {k: v for k, v in manifest.items() if k not in ("fingerprint", "made")}


def fingerprint(manifest: Manifest) -> str:
    """sha256 of everything that determines the trajectories."""
    text = json.dumps(determines(manifest), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# Files


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, foreign, edited or of another format; says how to mend it.
    """
    path = folder / MANIFEST
    mend = f"Delete {path} and call generate(..., resume=True) as before: shards that match are kept"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: expected a folder that generate() wrote")
    try:
        manifest = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}. {mend}") from None
    return parse_manifest(manifest, str(path), mend)


def parse_manifest(manifest: Any, source: str, mend: str) -> Manifest:
    """Make sure that a JSON value is an unchanged manifest.

    Raises:
        ValueError: if it is not, or declares what no set has.
    """
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise ValueError(f"{source} is not the manifest of a trajectory folder. {mend}")
    if manifest["format"] not in (1, NAMED):
        raise ValueError(
            f"{source}: format: expected 1 or {NAMED}, found {manifest['format']}. Read it with a matching dsno"
        )
    if manifest.get("fingerprint") != fingerprint(manifest):
        raise ValueError(f"{source} was changed after it was written: its fingerprint does not match. {mend}")
    try:
        _check_form(manifest, source)
    except ValueError as error:
        raise ValueError(f"{error}. {mend}") from None
    return manifest


def _check_form(manifest: Manifest, source: str) -> None:
    check(manifest, _Form, f"{source}: ")
    named, cond, count = manifest["format"] == NAMED, manifest.get("cond"), manifest["count"]
    check({"cond": cond}, _Named if named else _Alone, f"{source}: ")
    for c in (cond or {}).values() if named else [cond] if cond else []:
        if c["dtype"] not in dtypes:
            raise ValueError(f"{source}: cond is of {c['dtype']!r:.40}, expected one of {', '.join(dtypes)}")
    if any(later >= earlier for earlier, later in itertools.pairwise(manifest["times"])):
        raise ValueError(f"{source}: times must decrease")
    if -(-count // manifest["shard"]) > MOST_SHARDS:
        raise ValueError(f"{source}: {count} rows in shards of {manifest['shard']} are more than {MOST_SHARDS} files")
    pulled = manifest["made"].get("pulled")
    if pulled is not None and pulled["count"] > count:
        raise ValueError(f"{source}: {pulled['count']} rows were pulled of {count}")


def write_manifest(folder: Path, manifest: Manifest, again: str = "generate(..., resume=True)") -> None:
    """Write the manifest of a folder; raises as `writing` does."""
    with writing(path := folder / MANIFEST, again):
        write_json(path, manifest)


@contextlib.contextmanager
def writing(path: Path, again: str = "generate(..., resume=True)") -> Iterator[None]:
    """Say of a file that is being written what to do, and `again` what to call, if it cannot be.

    Raises:
        OSError: instead of the one that came.
    """
    try:
        yield
    except OSError as error:
        mend = f"Complete shards are kept: make room and call {again}"
        why = os.strerror(error.errno) if error.errno else error
        raise OSError(error.errno, f"cannot write {path} ({why}). {mend}") from error


# What differs


def differences(expected: Any, found: Any, field: str = "") -> list[str]:
    """Where two JSON values differ, as `field: expected ..., found ...`."""
    if expected == found:
        return []
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        expected, found = dict(enumerate(expected)), dict(enumerate(found))
    if isinstance(expected, dict) and isinstance(found, dict):
        # Lists last: a grid that differs all along must not hide the schedule that makes it differ.
        keys = sorted({*expected, *found}, key=lambda k: (isinstance(expected.get(k), list), k))
        fields = {k: f"{field}.{k}".lstrip(".") for k in keys}
        return [d for k, name in fields.items() for d in differences(expected.get(k), found.get(k), name)]
    shown = [f"{len(v)} values" if isinstance(v, list) and len(v) > 8 else json.dumps(v) for v in (expected, found)]
    return [f"{field}: expected {shown[0]:.80}, found {shown[1]:.80}"]


def join(items: Sequence[str], separator: str = "; ") -> str:
    """The first four items, and how many more there are."""
    return separator.join(items[:4]) + (f"{separator}and {len(items) - 4} more" if len(items) > 4 else "")
