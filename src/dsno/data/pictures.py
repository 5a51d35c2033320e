"""Pictures as bytes: the only place that opens one, wherever it lies.

A picture is what viewers show: turned as its EXIF orientation says, and on a background where it is transparent.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsno.data.samples import to_square
from dsno.outside import one_line

__all__ = ["PICTURES", "Background", "opened", "over_background", "read_pictures"]

Background = int | tuple[int, int, int]
"""What shows through transparent pixels: a grey level or (r, g, b), 0..255."""

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""How the names of pictures end."""


def over_background(rgba: np.ndarray, background: Background) -> np.ndarray:
    """Composite (..., 4) bytes on a background, to (..., 3) bytes."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    mixed = alpha * rgba[..., :3] + (1 - alpha) * np.asarray(background, np.float32)
    return np.rint(mixed).astype(np.uint8)


def read_pictures(
    pictures: Iterable[tuple[str, Callable[[], bytes]]], size: int | None, background: Background
) -> np.ndarray | Tensor:
    """Pictures, by name, as bytes (N, H, W[, 3]); or brought to `size`, (N, C, size, size) in [-1, 1].

    Arguments:
        pictures: The name of each for messages, and what gives its bytes.
        size: See `dsno.data.samples.resized`.
        background: What shows through transparent pixels.

    Raises:
        ValueError: if one is damaged, has more than eight bits or several pages, or their sizes differ and `size` is
            None.
    """
    arrays: list[np.ndarray] = []
    first = ""
    for name, picture in pictures:
        array = _opened(picture, name, background)
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


def _opened(picture: Callable[[], bytes], name: str, background: Background) -> np.ndarray:
    """A picture as bytes, (H, W) if it is grey, else (H, W, 3), as viewers show it."""
    return _pixels(opened(picture, name), name, background)


def opened(picture: Callable[[], bytes], name: str, most: int | None = None) -> Any:
    """A picture as Pillow's image, turned as its EXIF orientation says.

    Raises:
        ValueError: if it is damaged, has several pages, or more than `most` pixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            # Of a file by name Pillow maps a TIFF into memory, with rows as long as they are once it is turned.
            with Image.open(BytesIO(picture())) as file:
                pages = getattr(file, "n_frames", 1) if file.format == "TIFF" else 1
                width, height = file.size
                fits = most is None or width * height <= most
                image = ImageOps.exif_transpose(file) if fits else None
        except Exception as error:  # A damaged picture can make its reader raise almost any of them.
            said = "of no known format" if isinstance(error, UnidentifiedImageError) else one_line(error)
            raise ValueError(f"{name} is damaged or not a picture ({said})") from None
    if not fits:
        raise ValueError(f"{name} has {width} x {height} pixels, and {most:,} are taken at most: make it smaller")
    if pages > 1:
        raise ValueError(f"{name} has {pages} pages: save each as a picture of its own, or all as an .npy array")
    return image


def _pixels(image: Any, name: str, background: Background) -> np.ndarray:
    """The bytes of an image that is turned already, (H, W) if it is grey, else (H, W, 3)."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{name} has more than 8 bits per channel: save it with 8, or all images as an .npy array")
    grey = image.mode in ("1", "L", "LA") and isinstance(background, int)
    if image.has_transparency_data:
        array = over_background(np.asarray(image.convert("RGBA")), background)
        return array[..., 0] if grey else array
    return np.asarray(image.convert("L" if grey else "RGB"))
