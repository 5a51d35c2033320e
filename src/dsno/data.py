"""Image sets, and the only place that knows pixel ranges: inside the library images are float32 in [-1, 1].

| source | what |
|---|---|
| `digits` | scikit-learn's 1,797 handwritten digits, 8x8 grey, embedded in that package (Alpaydin & Kaynak, 1998) |
| a folder | its PNG and JPEG files, all of one size |
| `*.npy`, `*.npz` | an array (N, H, W), (N, H, W, C) or (N, C, H, W): uint8, or float in [-1, 1]; labels under `labels` |
| `*-ubyte.gz` | an idx file as MNIST and Fashion-MNIST ship them; labels from the matching file beside it |
"""

from __future__ import annotations

import gzip
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["Images", "check_images", "load_images", "to_uint8", "to_unit"]


@dataclass(frozen=True)
class Images:
    """An image set: `x` (N, C, H, W) float32 in [-1, 1], integer `labels` (N,) or None, and where it came from."""

    x: Tensor
    labels: Tensor | None
    name: str

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.x.shape[1:])


def check_images(x: Tensor, name: str = "the image set") -> Tensor:
    """Return `x` if it is a usable image set.

    Raises:
        ValueError: unless it is (N, C, H, W) with N > 0 and C in {1, 3}, finite, inside [-1, 1] and not constant.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"{name} must have shape (N, C, H, W) with 1 or 3 channels, got {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"{name} is empty")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} has values that are not finite")
    low, high = float(x.min()), float(x.max())
    if low < -1.001 or high > 1.001:
        raise ValueError(f"{name} must lie in [-1, 1], got [{low:g}, {high:g}]: rescale it (uint8 arrays are rescaled)")
    if low == high:
        raise ValueError(f"{name} is constant (every pixel is {low:g}): there is nothing to learn")
    return x


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] to 0..255, rounded to nearest and clamped; any shape."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_unit(x: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], clamped; any shape."""
    return (x.clamp(-1, 1) + 1) / 2


def load_images(source: str) -> Images:
    """Load an image set; see the table above.

    Raises:
        FileNotFoundError: if `source` is none of the known forms.
        ValueError: if the images have a wrong shape or range, are empty or constant.
    """
    path = Path(source)
    if source == "digits":
        x, labels = _digits()
    elif path.is_dir():
        x, labels = _folder(path), None
    elif path.suffix in (".npy", ".npz") and path.is_file():
        x, labels = _array(path)
    elif path.name.endswith("ubyte.gz") and path.is_file():
        x, labels = _idx(path)
    else:
        raise FileNotFoundError(
            f"no image set {source!r}: expected 'digits', a folder of PNG or JPEG files, an .npy or .npz array, "
            "or an idx '*-ubyte.gz' file"
        )
    check_images(x, source)
    if labels is not None and labels.shape != (len(x),):
        raise ValueError(
            f"{source} has {len(x)} images but labels of shape {tuple(labels.shape)}: expected one for each"
        )
    return Images(x, labels, source if source == "digits" else path.name)


def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.as_tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    return x, torch.as_tensor(digits.target, dtype=torch.int64)


def _folder(path: Path) -> Tensor:
    from PIL import Image

    files = sorted(p for p in path.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not files:
        raise ValueError(f"{path} has no PNG or JPEG files")
    arrays = []
    for file in files:
        try:
            with Image.open(file) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(
                        f"{file} has more than 8 bits per channel: save it with 8, or all images as an .npy array"
                    )
                arrays.append(np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")))
        except OSError as error:
            raise ValueError(f"{file} is damaged or not a picture ({error})") from None
        if arrays[-1].shape != arrays[0].shape:
            raise ValueError(
                f"{file.name} is {arrays[-1].shape}, {files[0].name} is {arrays[0].shape}: sizes must agree"
            )
    return _scaled(np.stack(arrays))


def _array(path: Path) -> tuple[Tensor, Tensor | None]:
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged or not an array file ({error})") from None
    names = [n for n in arrays if arrays[n].ndim >= 3 or not n]
    if not names:
        raise ValueError(f"{path} has no image array; it has {', '.join(arrays) or 'nothing'}")
    labels = torch.as_tensor(arrays["labels"].astype(np.int64)) if "labels" in arrays else None
    return _scaled(arrays[names[0]]), labels


def _idx(path: Path) -> tuple[Tensor, Tensor | None]:
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    labels = torch.as_tensor(_read_idx(beside).astype(np.int64)) if beside != path and beside.is_file() else None
    return _scaled(_read_idx(path)), labels


def _read_idx(path: Path) -> np.ndarray:
    try:
        with gzip.open(path) as file:
            data = file.read()
        kind, ndim = struct.unpack(">HBB", data[:4])[1:]
        shape = struct.unpack(f">{ndim}I", data[4 : 4 + 4 * ndim])
        if kind != 8:
            raise ValueError(f"its numbers are of type {kind}, expected 8 (unsigned bytes)")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy()
    except (EOFError, OSError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is damaged or not an idx file of bytes ({error})") from None


def _scaled(array: np.ndarray) -> Tensor:
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    x = torch.as_tensor(np.ascontiguousarray(array), dtype=torch.float32)
    if array.dtype == np.uint8:
        return x / 127.5 - 1
    if x.numel() and x.min() >= 0 and x.max() <= 1:
        raise ValueError("these float images lie in [0, 1], expected [-1, 1]: store 2 * x - 1, or uint8")
    return x
