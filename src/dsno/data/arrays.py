"""What npy, npz and zarr files declare, compared with what they hold, before anything is read of them.

Such a file says in a few bytes how large its array is, and may say that its numbers are Python objects, to be unpickled
(in npy a dtype, in zarr a codec: numcodecs up to 0.16.5 ran it whatever it was told). Objects are refused, and so is an
array that is larger than its file can make it.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from dsno.outside import check_expansion, must_be_file, parse_json

__all__ = ["check_numpy", "check_zarr_array", "check_zarr_files", "load_numpy"]

METADATA = ("zarr.json", ".zarray", ".zgroup", ".zmetadata")

CODECS = {
    *("bytes", "endian", "transpose", "sharding_indexed", "blosc", "zstd", "gzip", "zlib", "lz4", "bz2", "lzma"),
    *("crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3", "delta", "fixedscaleoffset", "quantize"),
    *("bitround", "packbits", "shuffle", "astype", "vlen-utf8", "vlen-bytes", "zfpy", "pcodec"),
}
"""The codecs of zarr that make numbers of bytes; of others, `pickle` runs code."""

HOLES, FEW = 200, 1000
"""Chunks of nothing but the fill value are left out of a store; so many for each file that is there."""


def load_numpy(path: Path) -> Any:
    """An .npy file's array, or an .npz file, after `check_numpy`."""
    check_numpy(path)
    return np.load(path, allow_pickle=False)


def check_numpy(path: Path) -> None:
    """Refuse an .npy or .npz file that holds objects, or declares more than it holds.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it does, or is damaged.
    """
    size = must_be_file(path).stat().st_size
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            _check_header(file, size, path.name)
            return
    with zipfile.ZipFile(path) as archive:
        check_expansion(size, sum(info.file_size for info in archive.infolist()), path)
        for info in archive.infolist():
            if info.filename.endswith(".npy"):
                with archive.open(info) as member:
                    _check_header(member, info.file_size, info.filename)


def _check_header(file: IO[bytes], size: int, name: str) -> None:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"{name} is of format {version}, which arrays of numbers are not")
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which could run code when they are read: store numbers")
    declared, held = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or declared > held:
        raise ValueError(f"{name} declares shape {shape} of {dtype}, {declared} bytes, and holds {held}")


def check_zarr_files(path: Path) -> None:
    """Refuse a store, a folder or a .zip of one, with a codec that makes objects, or with what is no file.

    Raises:
        ValueError: if it has; names the codec.
    """
    if path.is_dir():
        for file in path.rglob("*"):
            if not file.is_dir() and must_be_file(file).name in METADATA:
                with file.open("rb") as opened:
                    _check_codecs(parse_json(opened.read(2**24 + 1), file), file)
        return
    with zipfile.ZipFile(must_be_file(path)) as archive:
        check_expansion(path.stat().st_size, sum(info.file_size for info in archive.infolist()), path)
        for name in archive.namelist():
            if name.rpartition("/")[2] in METADATA:
                _check_codecs(parse_json(archive.read(name), name), name)


def check_zarr_array(array: Any, path: Path) -> None:
    """Refuse an array that is larger than its store can make it, before its chunks are read.

    Raises:
        ValueError: if it is.
    """
    if path.is_dir():
        sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
    else:
        with zipfile.ZipFile(path) as archive:
            sizes = [info.file_size for info in archive.infolist()]
    check_expansion(sum(sizes), math.prod(array.shape) * array.dtype.itemsize, path)
    edges = getattr(array, "shards", None) or array.chunks
    if min(edges, default=1) < 1:
        raise ValueError(f"its chunks are of shape {edges}")
    chunks = math.prod(-(-n // edge) for n, edge in zip(array.shape, edges, strict=True))
    if chunks > FEW + HOLES * len(sizes):
        raise ValueError(f"its {chunks} chunks are not there: the store has {len(sizes)} files")


def _check_codecs(value: Any, source: object) -> None:
    """Look for codecs in metadata of either version, consolidated or not, wherever they may stand."""
    level = [value]
    while level:
        for node in level:
            if isinstance(node, dict):
                for name in _codecs(node):
                    if name.removeprefix("numcodecs.") not in CODECS:
                        raise ValueError(
                            f"{source} has the codec {name!r:.40}, which is not of numbers and may run code"
                        )
        level = [child for node in level for child in _inside(node)]


def _codecs(node: dict[str, Any]) -> Iterable[str]:
    """The names of the codecs that an object lists."""
    for key in ("compressor", "filters", "codecs", "index_codecs", "compressors", "serializer"):
        held = node.get(key)
        for codec in held if isinstance(held, list) else [held]:
            if isinstance(codec, dict):
                yield str(codec.get("id", codec.get("name")))
            elif isinstance(codec, str):
                yield codec


def _inside(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return [child for key, child in node.items() if key != "attributes"]
    return node if isinstance(node, list) else []
