"""Samples from files of arrays: npy, npz, zarr and idx.

What is read is bytes or numbers as they are in the file, (N, ...), and labels where there are any; `load` makes samples
of them. What is damaged is named; nothing is unpickled.
"""

from __future__ import annotations

import gzip
import importlib
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dsno.data.arrays import check_zarr_array, check_zarr_files, load_numpy
from dsno.data.classes import Labels, class_numbers
from dsno.data.pictures import Background, over_background
from dsno.listing import entries
from dsno.outside import check_expansion, one_line

__all__ = [
    "LABEL_NAMES",
    "Read",
    "holds_any",
    "optional_package",
    "read_idx",
    "read_numpy",
    "read_zarr",
]

Read = tuple[np.ndarray | Tensor, Labels | None]
"""What a file holds: an array (N, ...) as it is there, or samples (N, C, H, W) in [-1, 1]; and labels or None."""

LABEL_NAMES = ("labels", "label")


def holds_any(path: Path, *patterns: str) -> bool:
    """Whether `path` is a folder with a file that matches one of `patterns`."""
    return path.is_dir() and any((path / pattern).is_file() or entries(path, pattern) for pattern in patterns)


def optional_package(module: str, extra: str, who: str = "this data") -> Any:
    """Import a module of a package that comes with an extra of this one, and that `who` needs.

    Raises:
        ModuleNotFoundError: if it is not installed; says how to.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        raise ModuleNotFoundError(
            f"{who} needs the package {package!r}: pip install 'dsno[{extra}]'", name=package
        ) from None


@contextmanager
def _damaged(path: Path, expected: str) -> Iterator[None]:
    """What goes wrong while a file is read is the file's fault: say which, and what it should be."""
    try:
        yield
    except Exception as error:  # A damaged file can make its reader raise almost any of them.
        raise ValueError(f"{path} is damaged or not {expected} ({one_line(error)})") from None


def read_numpy(path: Path, key: str | None, background: Background) -> Read:
    """An .npy file, or the array `key` of an .npz file and its labels; an array called `rgba` is composited.

    Raises:
        ValueError: if it is damaged, or does not say which of its arrays is meant.
    """
    with _damaged(path, "an array file"):
        loaded = load_numpy(path)
        if isinstance(loaded, np.ndarray):
            return loaded, None
        arrays = {n: loaded[n] for n in loaded.files if key not in loaded.files or n == key or n in LABEL_NAMES}
    name = _choose(arrays, key, path)
    array = over_background(arrays[name], background) if name == "rgba" else arrays[name]
    return array, _labels(arrays, path)


def read_zarr(path: Path, key: str | None) -> Read:
    """A zarr array, or the array `key` of a group and its labels.

    Raises:
        ModuleNotFoundError: without zarr.
        ValueError: as `read_numpy`.
    """
    zarr = optional_package("zarr", "data")
    with _damaged(path, "a zarr array"):
        check_zarr_files(path)
        found = zarr.open(str(path), mode="r")
        if isinstance(found, zarr.Array):
            check_zarr_array(found, path)
            return found[:], None
        arrays = dict(found.arrays())
    name = _choose(arrays, key, path)
    with _damaged(path, "a zarr array"):
        for n in (name, *LABEL_NAMES):
            if n in arrays:
                check_zarr_array(arrays[n], path)
        return arrays[name][:], _labels({n: a[:] for n, a in arrays.items() if n in LABEL_NAMES}, path)


def _choose(arrays: Mapping[str, Any], key: str | None, path: Path) -> str:
    """The name of the array of samples: `key`, or the only one that may be it."""
    if key is not None:
        if key not in arrays:
            raise ValueError(f"{path} has no array {key!r}; it has {', '.join(arrays) or 'nothing'}")
        return key
    names = [n for n, a in arrays.items() if n not in LABEL_NAMES and a.ndim >= 2 and a.dtype.kind in "buif"]
    if len(names) == 1:
        return names[0]
    if names:
        raise ValueError(f"{path} has several arrays, {', '.join(names)}: say which with key=")
    raise ValueError(f"{path} has no array of samples; it has {', '.join(arrays) or 'nothing'}")


def _labels(arrays: Mapping[str, np.ndarray], path: Path) -> Labels | None:
    for name in LABEL_NAMES:
        if name in arrays:
            return class_numbers(np.asarray(arrays[name]), path)
    if "name" in arrays and arrays["name"].dtype.kind == "U":
        # The paths of pictures: their first folder is the class, as in a folder of folders.
        folders = [name.split("/")[0] for name in arrays["name"].tolist()]
        if len(classes := sorted({*folders})) < len(folders):
            place = {name: k for k, name in enumerate(classes)}
            return class_numbers([place[folder] for folder in folders], path, classes)
    return None


def read_idx(path: Path) -> Read:
    """An idx file of bytes, gzipped, and the labels of the file beside it that is named as MNIST's.

    Raises:
        ValueError: if it is damaged.
    """
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    labels = class_numbers(_read_idx(beside), beside) if beside != path and beside.is_file() else None
    return _read_idx(path), labels


def _read_idx(path: Path) -> np.ndarray:
    with _damaged(path, "an idx file of bytes"), gzip.open(path) as file:
        kind, ndim = struct.unpack(">HBB", file.read(4))[1:]
        shape = struct.unpack(f">{ndim}I", file.read(4 * ndim))
        if kind != 8:
            raise ValueError(f"its numbers are of type {kind}, expected 8 (unsigned bytes)")
        declared = math.prod(shape)
        held = path.stat().st_size
        check_expansion(held, declared, path.name)
        if held > 2 * declared + 2**16:
            raise ValueError(f"it declares shape {shape} in a file of {held} bytes")
        data = file.read(declared + 1)
        if len(data) != declared:
            raise ValueError(
                f"it declares shape {shape} and holds {'more' if len(data) > declared else len(data)} bytes"
            )
        return np.frombuffer(data, np.uint8).reshape(shape).copy()
