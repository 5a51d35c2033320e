"""Samples from files: folders of pictures, npy, npz, zarr and idx."""

from __future__ import annotations

import gzip
import importlib
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsno.data.samples import fitted

__all__ = ["LABELS", "composed", "has", "need", "read_folder", "read_idx", "read_numpy", "read_pictures", "read_zarr"]

_PICTURES = (".png", ".jpg", ".jpeg")

LABELS = ("labels", "label")


def composed(rgba: np.ndarray, background: int | tuple[int, int, int]) -> np.ndarray:
    """Composite (..., 4) bytes on a background, to (..., 3) bytes."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    mixed = alpha * rgba[..., :3] + (1 - alpha) * np.asarray(background, np.float32)
    return np.rint(mixed).astype(np.uint8)


def has(path: Path, *patterns: str) -> bool:
    return path.is_dir() and any(next(path.glob(p), None) is not None for p in patterns)


def need(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        raise ModuleNotFoundError(
            f"this data needs the package {package!r}: pip install 'dsno[{extra}]'", name=package
        ) from None


def read_folder(
    path: Path, size: int | None, background: int | tuple[int, int, int]
) -> tuple[np.ndarray | Tensor, Tensor | None]:
    def inside(folder: Path) -> list[Path]:
        return sorted(p for p in folder.iterdir() if p.suffix.lower() in _PICTURES)

    files, labels = inside(path), None
    if not files:
        classes = [found for p in sorted(path.iterdir()) if p.is_dir() and (found := inside(p))]
        files = [file for found in classes for file in found]
        labels = torch.tensor([k for k, found in enumerate(classes) for _ in found])
    if not files:
        raise ValueError(f"{path} has no PNG or JPEG files, and none in its sub-folders")
    need("PIL", "images")
    return read_pictures(((str(file), file) for file in files), size, background), labels


def read_pictures(
    pictures: Iterable[tuple[str, Any]], size: int | None, background: int | tuple[int, int, int]
) -> np.ndarray | Tensor:
    """Files or PIL images as bytes (N, H, W[, 3]) of one size; or brought to `size`, (N, C, size, size) in [-1, 1]."""
    from PIL import Image

    arrays: list[np.ndarray] = []
    first = ""
    for name, picture in pictures:
        try:
            with Image.open(picture) if isinstance(picture, Path) else picture as image:
                array = _pixels(image, name, background)
        except OSError as error:
            raise ValueError(f"{name} is damaged or not a picture ({error})") from None
        first = first or name
        if size is None and arrays and array.shape[:2] != arrays[0].shape[:2]:
            raise ValueError(
                f"{name} is {array.shape[:2]}, {first} is {arrays[0].shape[:2]}: sizes must agree, or load them with size="
            )
        arrays.append(array)
    if any(a.ndim == 3 for a in arrays):
        arrays = [a if a.ndim == 3 else np.repeat(a[..., None], 3, -1) for a in arrays]
    if size is None:
        return np.stack(arrays)
    rows = (torch.tensor(np.atleast_3d(a)).permute(2, 0, 1)[None].float() / 127.5 - 1 for a in arrays)
    return torch.cat([fitted(x, size, -1.0) for x in rows])


def _pixels(image: Any, name: str, background: int | tuple[int, int, int]) -> np.ndarray:
    """A picture as bytes, (H, W) if it is grey, else (H, W, 3)."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{name} has more than 8 bits per channel: save it with 8, or all images as an .npy array")
    grey = image.mode in ("1", "L", "LA") and isinstance(background, int)
    if image.has_transparency_data:
        array = composed(np.asarray(image.convert("RGBA")), background)
        return array[..., 0] if grey else array
    return np.asarray(image.convert("L" if grey else "RGB"))


@contextmanager
def _damaged(path: Path, expected: str) -> Iterator[None]:
    """What goes wrong while a file is read is the file's fault, and says which it is."""
    try:
        yield
    except (
        EOFError,
        KeyError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        raise ValueError(f"{path} is damaged or not {expected} ({error})") from None


def read_numpy(path: Path, key: str | None, background: int | tuple[int, int, int]) -> tuple[np.ndarray, Tensor | None]:
    with _damaged(path, "an array file"):
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None
        arrays = {n: loaded[n] for n in loaded.files if key not in loaded.files or n == key or n in LABELS}
    name = _choose(arrays, key, path)
    array = composed(arrays[name], background) if name == "rgba" else arrays[name]
    return array, _labels(arrays)


def read_zarr(path: Path, key: str | None) -> tuple[np.ndarray, Tensor | None]:
    zarr = need("zarr", "data")
    with _damaged(path, "a zarr array"):
        found = zarr.open(str(path), mode="r")
        if isinstance(found, zarr.Array):
            return found[:], None
        arrays = dict(found.arrays())
    name = _choose(arrays, key, path)
    with _damaged(path, "a zarr array"):
        return arrays[name][:], _labels({n: a[:] for n, a in arrays.items() if n in LABELS})


def _choose(arrays: Mapping[str, Any], key: str | None, path: Path) -> str:
    if key is not None:
        if key not in arrays:
            raise ValueError(f"{path} has no array {key!r}; it has {', '.join(arrays) or 'nothing'}")
        return key
    names = [n for n, a in arrays.items() if n not in LABELS and a.ndim >= 2 and a.dtype.kind in "buif"]
    if len(names) == 1:
        return names[0]
    if names:
        raise ValueError(f"{path} has several arrays, {', '.join(names)}: say which with key=")
    raise ValueError(f"{path} has no array of samples; it has {', '.join(arrays) or 'nothing'}")


def _labels(arrays: Mapping[str, np.ndarray]) -> Tensor | None:
    for name in LABELS:
        if name in arrays:
            return torch.as_tensor(arrays[name].astype(np.int64))
    if "name" in arrays and arrays["name"].dtype.kind == "U":
        # The paths of pictures: their first folder is the class, as in a folder of folders.
        classes, index = np.unique([path.split("/")[0] for path in arrays["name"]], return_inverse=True)
        return torch.as_tensor(index) if len(classes) < len(index) else None
    return None


def read_idx(path: Path) -> tuple[np.ndarray, Tensor | None]:
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    labels = torch.as_tensor(_read_idx(beside).astype(np.int64)) if beside != path and beside.is_file() else None
    return _read_idx(path), labels


def _read_idx(path: Path) -> np.ndarray:
    with _damaged(path, "an idx file of bytes"):
        with gzip.open(path) as file:
            data = file.read()
        kind, ndim = struct.unpack(">HBB", data[:4])[1:]
        shape = struct.unpack(f">{ndim}I", data[4 : 4 + 4 * ndim])
        if kind != 8:
            raise ValueError(f"its numbers are of type {kind}, expected 8 (unsigned bytes)")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy()
