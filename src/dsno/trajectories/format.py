r"""A folder of trajectories as a file format: one manifest, and shards that say which manifest they belong to.

- `manifest.json` is the `dsno.trajectories.manifest`.
- `shard-00000.safetensors`, ...: N rows each, the last one fewer:

| tensor | shape | what |
|---|---|---|
| `seeds` | (N,) int64 | the seeds |
| `noise` | (N, *shape) | $z$, standard normal |
| `x0`, `state` | (N, M, *shape) | $\hat x_0$ and $x_t$ at the M `times`, as far as they are `targets` |
| `cond` | (N, ...) | the condition, if it is one tensor (format 1) |
| `cond.label`, `cond.weight`, ... | (N, ...) | the condition, if it is several by name (format 2) |

  The `__metadata__` of a shard's header are the manifest's `fingerprint`, the number of the `shard`, and the `sha256`
  of the data behind the header. So header and size of a shard follow from the manifest and one checksum: a truncated,
  damaged or foreign file is told from a good one, and any reader of safetensors reads both.

A file appears by atomic rename or not at all. Until then its name starts with a dot: what is found under such a name
without its writer is of no use to anybody, and is swept away.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from dsno.checkpoint import raw_bytes, write_atomically
from dsno.outside import parse_json
from dsno.trajectories.manifest import CODES, MANIFEST, NAMED, Manifest, differences, dtypes, join, writing

__all__ = [
    "REMAKE",
    "check_foreign",
    "check_shard",
    "header_of",
    "is_shard",
    "layout",
    "map_shard",
    "problem",
    "rows_of",
    "shard_count",
    "shard_number",
    "shard_path",
    "shard_size",
    "shards_in",
    "unfinished",
    "write_shard",
]

MOST_HEADER = 2**20

REMAKE = "Delete it and call generate(..., resume=True) to make it again"


def shard_count(manifest: Manifest, count: int | None = None) -> int:
    """How many shards hold the first `count` rows; all by default."""
    return -(-(manifest["count"] if count is None else count) // manifest["shard"])


def rows_of(manifest: Manifest, k: int) -> int:
    """How many rows shard `k` has."""
    return min(manifest["shard"], manifest["count"] - k * manifest["shard"])


def shard_path(folder: Path, k: int) -> Path:
    """The file of shard `k`."""
    return folder / f"shard-{k:05d}.safetensors"


def shard_number(path: Path) -> int:
    """The k of the file of shard k, or of an unfinished one."""
    return int(path.name.lstrip(".").removeprefix("shard-").partition(".")[0])


def is_shard(name: str) -> bool:
    """Whether a file of this name is a shard, of whatever set."""
    return re.fullmatch(r"shard-\d{5,}\.safetensors", name) is not None


def shards_in(folder: Path) -> list[Path]:
    """The shards that are in a folder, of whatever set."""
    return sorted(p for p in folder.glob("shard-*.safetensors") if is_shard(p.name))


def unfinished(folder: Path) -> list[Path]:
    """What those who were killed left of shards, and of a manifest."""
    left = re.compile(rf"\.(shard-\d{{5,}}|{re.escape(MANIFEST)})(\.\w+)*\.tmp")
    return [p for p in folder.glob(".*.tmp") if left.fullmatch(p.name)]


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
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
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
        return length + file.read(min(int.from_bytes(length, "little"), MOST_HEADER))


def write_shard(folder: Path, manifest: Manifest, k: int, tensors: Mapping[str, Tensor]) -> None:
    """Write shard `k`; it appears whole or not at all, power cuts included.

    Raises:
        OSError: if it cannot be written.
    """
    data = [raw_bytes(tensors[name]) for name in layout(manifest, k)]
    total = hashlib.sha256()
    for chunk in data:
        total.update(chunk)
    header = _encoded(_header(manifest, k, total.hexdigest())[0])

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.writelines([header, *data])

    with writing(path := shard_path(folder, k)):
        write_atomically(path, write)


def problem(path: Path, manifest: Manifest, k: int, verify: bool) -> str:
    """What is wrong with the file `path` as shard `k`, or nothing; `verify` reads the data, too."""
    size = path.stat().st_size
    if not path.is_file():
        return f"{'a folder' if path.is_dir() else 'a pipe or a device'}, and no shard"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = parse_json(file.read(min(length, size, MOST_HEADER)), path.name)
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
    if foreign := [p.name for p in shards_in(folder) if p not in own]:
        raise ValueError(
            f"{folder}: expected {len(own)} shards, found others, too ({join(foreign, ', ')}). Remove them"
        )


def map_shard(path: Path, manifest: Manifest, k: int) -> dict[str, Tensor]:
    """The tensors of a shard as views of a private memory map, which they keep alive; nothing is read here."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in layout(manifest, k)}
