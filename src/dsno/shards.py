r"""A folder of trajectories as a file format: one manifest, and shards that say which manifest they belong to.

- `manifest.json` holds everything that determines the bytes of the shards; its `fingerprint` is the sha256 of that, as
  JSON with sorted keys and no spaces. What merely accompanied them (versions, device) is under `made` and left out.
- `shard-00000.safetensors`, ...: N rows each, the last one fewer:

| tensor | shape | what |
|---|---|---|
| `seeds` | (N,) int64 | the seeds |
| `noise` | (N, *shape) | $z$, standard normal |
| `x0`, `state` | (N, M, *shape) | $\hat x_0$ and $x_t$ at the M `times` of the manifest, whichever of them are its `targets` |
| `cond` | (N, ...) | the condition, if it is one tensor (format 1) |
| `cond.label`, `cond.weight`, ... | (N, ...) | the condition, if it is several by name (format 2) |

  The `__metadata__` of a shard's header are the manifest's `fingerprint`, the number of the `shard`, and the `sha256` of
  the data behind the header. So header and size of a shard follow from the manifest and one checksum: a truncated,
  damaged or foreign file is told from a good one, and any reader of safetensors reads both.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from dsno.checkpoint import read_json
from dsno.denoise import Cond

__all__ = [
    "MANIFEST",
    "REMAKE",
    "TARGETS",
    "Manifest",
    "check_foreign",
    "check_shard",
    "differences",
    "digest",
    "dtype_names",
    "dtypes",
    "find_times",
    "fingerprint",
    "flat",
    "header_of",
    "join",
    "layout",
    "map_shard",
    "nested",
    "parse_manifest",
    "place",
    "problem",
    "read_manifest",
    "rows_of",
    "shard_count",
    "shard_path",
    "shard_size",
    "write_file",
    "write_shard",
]

Manifest = dict[str, Any]

MANIFEST, TARGETS = "manifest.json", ("x0", "state")
NAMED = 2  # The format of sets whose condition has names; all others are format 1.
REMAKE = "Delete it and call generate(..., resume=True) to make it again"
_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in _CODES}
dtype_names = {dtype: name for name, dtype in dtypes.items()}


# The manifest.


def fingerprint(manifest: Manifest) -> str:
    """sha256 of everything that determines the trajectories."""
    determines = {k: v for k, v in manifest.items() if k not in ("fingerprint", "made")}
    text = json.dumps(determines, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


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
        ValueError: if it is not.
    """
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise ValueError(f"{source} is not the manifest of a trajectory folder. {mend}")
    if manifest["format"] not in (1, NAMED):
        raise ValueError(
            f"{source}: format: expected 1 or {NAMED}, found {manifest['format']}. Read it with a matching dsno"
        )
    if manifest.get("fingerprint") != fingerprint(manifest):
        raise ValueError(f"{source} was changed after it was written: its fingerprint does not match. {mend}")
    return manifest


def differences(expected: Any, found: Any, field: str = "") -> list[str]:
    """Where two JSON values differ, as `field: expected ..., found ...`."""
    if expected == found:
        return []
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        expected, found = dict(enumerate(expected)), dict(enumerate(found))
    if isinstance(expected, dict) and isinstance(found, dict):
        # Lists last: a grid that differs all along must not hide the schedule that makes it differ.
        keys = sorted({*expected, *found}, key=lambda k: (isinstance(expected.get(k), list), k))
        paths = {k: f"{field}.{k}".lstrip(".") for k in keys}
        return [d for k, path in paths.items() for d in differences(expected.get(k), found.get(k), path)]
    shown = [f"{len(v)} values" if isinstance(v, list) and len(v) > 8 else json.dumps(v) for v in (expected, found)]
    return [f"{field}: expected {shown[0]:.80}, found {shown[1]:.80}"]


def find_times(times: Tensor, wanted: Sequence[float] | Tensor, where: str) -> list[int]:
    """The indices of `wanted` among `times`, in order.

    Raises:
        ValueError: for a time that is not among them, with the nearest.
    """
    found = set()
    for t in torch.as_tensor(wanted, dtype=torch.float64).reshape(-1).tolist():
        n = int((times - t).abs().argmin())
        if not abs(float(times[n]) - t) <= 1e-9:
            raise ValueError(f"t = {t:g} is not {where}: the nearest of the {len(times)} times is {float(times[n]):g}")
        found.add(n)
    return sorted(found)


def join(items: Sequence[str], separator: str = "; ") -> str:
    """The first four items, and how many more there are."""
    return separator.join(items[:4]) + (f"{separator}and {len(items) - 4} more" if len(items) > 4 else "")


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in the order of the names."""
    total = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        total.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        total.update(_bytes(x))
    return total.hexdigest()


def _bytes(x: Tensor) -> memoryview:
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


# Conditions: one tensor is `cond`, several are `cond.<name>`.


def flat(cond: Cond | None) -> dict[str, Tensor]:
    """The tensors of a condition under the names they have in a shard."""
    if cond is None:
        return {}
    return {"cond": cond} if isinstance(cond, Tensor) else {f"cond.{name}": x for name, x in cond.items()}


def nested(rows: Mapping[str, Tensor]) -> dict[str, Any]:
    """Rows with their named conditions gathered under `cond`, as they were given."""
    named = {name.removeprefix("cond."): x for name, x in rows.items() if name.startswith("cond.")}
    others = {name: x for name, x in rows.items() if not name.startswith("cond.")}
    return {**others, "cond": named} if named else others


# The shards.


def shard_count(manifest: Manifest, count: int | None = None) -> int:
    """How many shards hold the first `count` rows; all by default."""
    return -(-(manifest["count"] if count is None else count) // manifest["shard"])


def rows_of(manifest: Manifest, k: int) -> int:
    """How many rows shard `k` has."""
    return min(manifest["shard"], manifest["count"] - k * manifest["shard"])


def shard_path(folder: Path, k: int) -> Path:
    """The file of shard `k`."""
    return folder / f"shard-{k:05d}.safetensors"


def layout(manifest: Manifest, k: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Dtype and shape of shard `k`'s tensors in the order of the file: widest dtype first, so that all are aligned."""
    n, shape, dtype = rows_of(manifest, k), manifest["shape"], dtypes[manifest["dtype"]]
    held = {"seeds": (torch.int64, (n,)), "noise": (dtype, (n, *shape))}
    held |= {name: (dtype, (n, len(manifest["times"]), *shape)) for name in manifest["targets"]}
    cond = manifest["cond"] or {}
    named = {f"cond.{name}": c for name, c in cond.items()} if manifest["format"] == NAMED else {"cond": cond}
    held |= {name: (dtypes[c["dtype"]], (n, *c["shape"])) for name, c in named.items() if c}
    return dict(sorted(held.items(), key=lambda item: (-item[1][0].itemsize, item[0])))


def _header(manifest: Manifest, k: int, sha256: str) -> tuple[dict[str, Any], int]:
    """The safetensors header of shard `k`, a function of manifest and checksum, and the size of its data in bytes."""
    header: dict[str, Any] = {
        "__metadata__": {"fingerprint": manifest["fingerprint"], "shard": str(k), "sha256": sha256}
    }
    end = 0
    for name, (dtype, shape) in layout(manifest, k).items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    return header, end


def _encoded(header: dict[str, Any]) -> bytes:
    # Written here and not by safetensors, whose order of metadata keys differs from process to process.
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def shard_size(manifest: Manifest, k: int) -> int:
    """The size of shard `k`'s file in bytes."""
    header, data = _header(manifest, k, "0" * 64)
    return len(_encoded(header)) + data


def header_of(path: Path) -> bytes:
    """The bytes of a shard before its data: equal for two files of one size if and only if their checksums are."""
    with path.open("rb") as file:
        length = file.read(8)
        return length + file.read(int.from_bytes(length, "little"))


def write_shard(folder: Path, manifest: Manifest, k: int, tensors: Mapping[str, Tensor]) -> None:
    """Write shard `k`; it appears whole or not at all."""
    data = [_bytes(tensors[name]) for name in layout(manifest, k)]
    total = hashlib.sha256()
    for chunk in data:
        total.update(chunk)
    write_file(shard_path(folder, k), [_encoded(_header(manifest, k, total.hexdigest())[0]), *data])


def problem(path: Path, manifest: Manifest, k: int, verify: bool) -> str:
    """What is wrong with the file `path` as shard `k`, or nothing; `verify` reads the data, too."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, size)))
            sha256 = header["__metadata__"]["sha256"]
        except (ValueError, KeyError, TypeError):
            return "truncated, damaged or foreign: its header cannot be read"
        expected, data = _header(manifest, k, sha256)
        if found := differences(expected, header):
            return f"foreign: {join(found)}"
        if size != 8 + length + data:
            return f"truncated or damaged: expected {8 + length + data} bytes, found {size}"
        if verify and (read := hashlib.file_digest(file, "sha256").hexdigest()) != sha256:
            return f"damaged: sha256: expected {sha256}, found {read}"
    return ""


def check_shard(folder: Path, manifest: Manifest, k: int, verify: bool) -> None:
    """Refuse a shard whose header or size is not what the manifest says; `verify` reads the data, too.

    Raises:
        ValueError: if it is truncated, damaged or foreign.
    """
    path = shard_path(folder, k)
    if wrong := problem(path, manifest, k, verify):
        raise ValueError(f"{path} is {wrong}. {REMAKE}")


def check_foreign(folder: Path, manifest: Manifest) -> None:
    """Refuse shards that the manifest does not know.

    Raises:
        ValueError: if there are any.
    """
    own = {shard_path(folder, k) for k in range(shard_count(manifest))}
    if foreign := sorted(p.name for p in {*folder.glob("shard-*.safetensors")} - own):
        raise ValueError(
            f"{folder}: expected {len(own)} shards, found others, too ({join(foreign, ', ')}). Remove them"
        )


def map_shard(path: Path, manifest: Manifest, k: int) -> dict[str, Tensor]:
    """The tensors of a shard as views of a private memory map, which they keep alive; nothing is read yet."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in layout(manifest, k)}


def write_file(path: Path, chunks: Iterable[bytes | memoryview], again: str = "generate(..., resume=True)") -> None:
    """Write a file that appears whole or not at all, power cuts included; `again` is what to call if it did not.

    Raises:
        OSError: if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(chunks)
        place(temporary, path)
    except OSError as error:
        mend = f"Complete shards are kept: make room and call {again}"
        raise OSError(error.errno, f"cannot write {path} ({error.strerror}). {mend}") from error
    finally:
        temporary.unlink(missing_ok=True)


def place(temporary: Path, path: Path) -> None:
    """Give a complete file its name, once it is on the disk."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
