r"""Pictures that go back to their user as they came: of the same size, grey or in colours, no byte changed unasked.

A data set is brought to one shape, and what is transparent or in a palette becomes what viewers show
(`dsno.data.pictures`). A picture that is to be restored is somebody's own: each keeps its size, and one that could not
be written again as it was read is refused, with what to do. Between bytes and samples nothing is lost,

$$ x = v / 127.5 - 1, \qquad v = \mathrm{round} \, (127.5 \, (x + 1)), \qquad v \in \{0, \dots, 255\}. $$

| a picture of | is read as |
|---|---|
| 8 bits, grey or RGB | itself |
| 1 bit | grey, black and white |
| a palette | RGB, or grey if all its colours are |
| grey or RGB with alpha, opaque everywhere | itself without alpha |
| anything else: transparent pixels, more bits, CMYK, several pages | refused |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsno.data.load import load_data
from dsno.data.pictures import PICTURES, opened
from dsno.data.samples import check_images, to_uint8
from dsno.listing import entries
from dsno.outside import must_be_file

__all__ = ["Original", "as_png", "read_original", "read_originals"]


@dataclass(frozen=True)
class Original:
    """A picture of the user's.

    Attributes:
        name: What it is called, without a suffix; of a picture in an array that of the file and its number.
        x: (C, H, W) float32 in [-1, 1], C = 1 if it is grey, else 3.
    """

    name: str
    x: Tensor

    @property
    def mode(self) -> str:
        """What Pillow calls it, `L` or `RGB`."""
        return "L" if len(self.x) == 1 else "RGB"


def read_originals(source: Path | str) -> list[Original]:
    """The pictures of a folder (those in it, not in folders in it), of a file, or of an .npy array of them.

    An array holds bytes, or numbers in [-1, 1]: (N, H, W), (N, C, H, W) or (N, H, W, C), as `load_data` reads it.

    Raises:
        FileNotFoundError: if there is no such file or folder, or no picture in it.
        ValueError: as `read_original` and `load_data` do; for two pictures of one name.
    """
    path = Path(source)
    if path.is_dir():
        files = [file for file in entries(path) if file.suffix.lower() in PICTURES and not file.is_dir()]
        if not files:
            raise FileNotFoundError(f"{path} holds no picture: expected files {', '.join(PICTURES)}")
        _check_names(files)
        return [read_original(file) for file in files]
    if path.suffix == ".npy" and path.is_file():
        x = check_images(load_data(path).x, path.name)
        return [Original(f"{path.stem}-{n:05d}", row) for n, row in enumerate(x)]
    if not path.is_file():
        raise FileNotFoundError(f"there are no pictures {path}: expected a folder of them, a file, or an .npy array")
    return [read_original(path)]


def _check_names(files: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for file in files:
        # Not every file system tells `A` from `a`.
        other = seen.setdefault(file.stem.casefold(), file)
        if other is not file:
            raise ValueError(f"{other.name} and {file.name} would be written under one name: rename one of them")


def read_original(path: Path | str, most: int | None = None) -> Original:
    """A picture, as the table above says.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, could not be written again as it is, or has more than `most` pixels; says what to
            do.
    """
    path = Path(path)
    pixels = _exact(opened(must_be_file(path).read_bytes, path.name, most), path.name)
    x = torch.from_numpy(np.atleast_3d(pixels).copy()).permute(2, 0, 1).float() / 127.5 - 1
    return Original(path.stem, x)


def _exact(image: Any, name: str) -> np.ndarray:
    """The bytes of an image, (H, W) or (H, W, 3), none of them changed."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"{name} has more than 8 bits per channel, which would be lost: convert it (`magick {name} -depth 8 "
            "NEW.png`), or give all pictures as an .npy array of numbers in [-1, 1]"
        )
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if alpha.min() < 255:
            raise ValueError(
                f"{name} has transparent pixels, of which a teacher knows nothing: put it on a background first "
                f"(`magick {name} -background white -flatten NEW.png`)"
            )
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"))
    if image.mode not in ("P", "PA", "RGB", "RGBA"):
        raise ValueError(
            f"{name} is in {image.mode}, which is not converted without loss: save it in grey or RGB (`magick {name} "
            "-colorspace sRGB NEW.png`)"
        )
    rgb = np.asarray(image.convert("RGB"))
    grey = image.mode in ("P", "PA") and bool((rgb == rgb[..., :1]).all())
    return rgb[..., 0] if grey else rgb


def as_png(x: Tensor) -> bytes:
    """A picture (C, H, W) in [-1, 1], clamped, as a PNG file: grey of one channel, RGB of three."""
    from PIL import Image

    pixels = to_uint8(x.detach().cpu()).permute(1, 2, 0).numpy()
    buffer = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
