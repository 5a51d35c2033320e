"""Samples from files: folders of pictures, npy, npz, zarr and idx.

What is read is bytes or numbers as they are in the file, (N, ...), and labels where there are any; `load` makes samples
of them. Pictures that are brought to one size are samples already. What is damaged is named; nothing is unpickled.
"""

from __future__ import annotations

import gzip
import importlib
import math
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsno.data.arrays import check_zarr_array, check_zarr_files, load_numpy
from dsno.data.samples import to_square
from dsno.outside import check_expansion, must_be_file, one_line

__all__ = [
    "LABEL_NAMES",
    "Background",
    "Read",
    "holds_any",
    "optional_package",
    "over_background",
    "read_folder",
    "read_idx",
    "read_numpy",
    "read_pictures",
    "read_zarr",
]

Background = int | tuple[int, int, int]
"""What shows through transparent pixels: a grey level or (r, g, b), 0..255."""

Read = tuple[np.ndarray | Tensor, Tensor | None]
"""What a file holds: an array (N, ...) as it is there, or samples (N, C, H, W) in [-1, 1]; and labels (N,) or None."""

LABEL_NAMES = ("labels", "label")

_PICTURES = (".png", ".jpg", ".jpeg")


def over_background(rgba: np.ndarray, background: Background) -> np.ndarray:
    """Composite (..., 4) bytes on a background, to (..., 3) bytes."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    mixed = alpha * rgba[..., :3] + (1 - alpha) * np.asarray(background, np.float32)
    return np.rint(mixed).astype(np.uint8)


def holds_any(path: Path, *patterns: str) -> bool:
    """Whether `path` is a folder with a file that matches one of `patterns`."""
    return path.is_dir() and any(next(path.glob(p), None) is not None for p in patterns)


def optional_package(module: str, extra: str) -> Any:
    """Import a module of a package that comes with an extra of this one.

    Raises:
        ModuleNotFoundError: if it is not installed; says how to.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        raise ModuleNotFoundError(
            f"this data needs the package {package!r}: pip install 'dsno[{extra}]'", name=package
        ) from None


def read_folder(path: Path, size: int | None, background: Background) -> Read:
    """The pictures of a folder, or of its sub-folders, which are then classes in alphabetical order.

    Raises:
        ValueError: if there are none, or as `read_pictures`.
    """

    def inside(folder: Path) -> list[Path]:
        return sorted(p for p in folder.iterdir() if p.suffix.lower() in _PICTURES)

    files, labels = inside(path), None
    if not files:
        classes = [found for p in sorted(path.iterdir()) if p.is_dir() and (found := inside(p))]
        files = [file for found in classes for file in found]
        labels = torch.tensor([k for k, found in enumerate(classes) for _ in found])
    if not files:
        raise ValueError(f"{path} has no PNG or JPEG files, and none in its sub-folders")
    optional_package("PIL", "images")
    return read_pictures(((str(file), file) for file in files), size, background), labels


def read_pictures(pictures: Iterable[tuple[str, Any]], size: int | None, background: Background) -> np.ndarray | Tensor:
    """Files or PIL images, by name, as bytes (N, H, W[, 3]); or brought to `size`, (N, C, size, size) in [-1, 1].

    Raises:
        ValueError: if one is damaged or has more than eight bits, or their sizes differ and `size` is None.
    """
    from PIL import Image

    arrays: list[np.ndarray] = []
    first = ""
    for name, picture in pictures:
        with (
            _damaged_picture(name),
            Image.open(must_be_file(picture)) if isinstance(picture, Path) else picture as image,
        ):
            array = _pixels(image, name, background)
        first = first or name
        if size is None and arrays and array.shape[:2] != arrays[0].shape[:2]:
            raise ValueError(
                f"{name} is {array.shape[:2]}, {first} is {arrays[0].shape[:2]}: sizes must agree, or load them with "
                "size="
            )
        arrays.append(array)
    if any(a.ndim == 3 for a in arrays):
        arrays = [a if a.ndim == 3 else np.repeat(a[..., None], 3, -1) for a in arrays]
    if size is None:
        return np.stack(arrays)
    rows = (torch.tensor(np.atleast_3d(a)).permute(2, 0, 1)[None].float() / 127.5 - 1 for a in arrays)
    return torch.cat([to_square(x, size, -1.0) for x in rows])


@contextmanager
def _damaged_picture(name: str) -> Iterator[None]:
    """What goes wrong is the picture's fault; one of very many pixels, of which Pillow warns, is an error."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except _Deep:
            raise
        except Exception as error:
            raise ValueError(f"{name} is damaged or not a picture ({one_line(error)})") from None


class _Deep(ValueError):
    """A picture of more than eight bits, which is whole."""


def _pixels(image: Any, name: str, background: Background) -> np.ndarray:
    """A picture as bytes, (H, W) if it is grey, else (H, W, 3)."""
    if image.mode.startswith(("I", "F")):
        raise _Deep(f"{name} has more than 8 bits per channel: save it with 8, or all images as an .npy array")
    grey = image.mode in ("1", "L", "LA") and isinstance(background, int)
    if image.has_transparency_data:
        array = over_background(np.asarray(image.convert("RGBA")), background)
        return array[..., 0] if grey else array
    return np.asarray(image.convert("L" if grey else "RGB"))


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
    return array, _labels(arrays)


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
        return arrays[name][:], _labels({n: a[:] for n, a in arrays.items() if n in LABEL_NAMES})


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


def _labels(arrays: Mapping[str, np.ndarray]) -> Tensor | None:
    for name in LABEL_NAMES:
        if name in arrays:
            return torch.as_tensor(arrays[name].astype(np.int64))
    if "name" in arrays and arrays["name"].dtype.kind == "U":
        # The paths of pictures: their first folder is the class, as in a folder of folders.
        classes, index = np.unique([path.split("/")[0] for path in arrays["name"]], return_inverse=True)
        return torch.as_tensor(index) if len(classes) < len(index) else None
    return None


def read_idx(path: Path) -> Read:
    """An idx file of bytes, gzipped, and the labels of the file beside it that is named as MNIST's.

    Raises:
        ValueError: if it is damaged.
    """
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    labels = torch.as_tensor(_read_idx(beside).astype(np.int64)) if beside != path and beside.is_file() else None
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
