r"""Data sets: whatever holds samples becomes `Samples`, (N, C, *spatial), float32, of about unit size.

| source | what |
|---|---|
| `digits` | scikit-learn's 1,797 handwritten digits, 8x8 grey, embedded in that package (Alpaydin & Kaynak, 1998) |
| a picture, `*.png` say | itself |
| a folder or a `*.zip` of pictures | its files; or those of its sub-folders, labelled by folder, alphabetically |
| the same with `dataset.json`, `metadata.csv` or `.jsonl` in it | the files that it lists, labelled as it says |
| `*.npy`, `*.npz`, `*.zarr` | an array (N, *spatial), (N, C, *spatial) or (N, *spatial, C); labels under `labels` |
| `*-ubyte.gz` | an idx file as MNIST and Fashion-MNIST ship them; labels from the matching file beside it |
| a folder or `*.parquet` | a Hugging Face dataset: one that `save_to_disk` wrote, or parquet files |
| `hf:org/name[:split]` | a Hugging Face dataset from the Hub; `hf:folder:split` names a split of a local one |

Bytes are taken for pixels and mapped from 0..255 to [-1, 1], the range of images in the library. Other numbers are
taken as they are, or on request standardised by an affine map per channel, kept as `units`, by which samples go back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dsno.data.classes import Labels
from dsno.data.files import (
    Read,
    holds_any,
    optional_package,
    read_idx,
    read_numpy,
    read_zarr,
)
from dsno.data.folders import read_folder, read_zip
from dsno.data.hub import SAVED, read_dataset
from dsno.data.pictures import PICTURES, Background, over_background, read_pictures
from dsno.data.samples import PIXELS, Affine, Samples, check_samples, cropped, finite_range, resized

__all__ = ["Channels", "Scale", "load_data"]

Channels = Literal["first", "last", "none"]
"""Where an array has its channels: (N, C, *spatial), (N, *spatial, C) or (N, *spatial)."""

Scale = Literal["range", "std"]
"""How each channel is standardised: its range to [-1, 1], or to mean 0 and standard deviation 1."""


def load_data(
    source: str | Path,
    *,
    channels: Channels | None = None,
    scale: Scale | None = None,
    size: int | None = None,
    key: str | None = None,
    background: Background = 255,
    range: tuple[float, float] | None = None,
    crop: Sequence[int] | None = None,
) -> Samples:
    """Load a data set of any form of the table above.

    Arguments:
        source: One of the table.
        channels: Where an array has its channels. By default (N, A) and (N, A, B) have none, and an axis of one or
            three next to N or at the end is the channels of an image; what could be either is refused.
        scale: Standardise each channel; by default bytes are pixels and other numbers stay as they are.
        size: Make images `size` x `size`, see `resized`; pictures of a folder may then be of different sizes.
        key: Which array of an .npz or .zarr file, or which column of a dataset, where there are several.
        background: What shows through transparent pixels: a grey level or (r, g, b), 0..255; white by default.
        range: The range that the numbers of an array are in, (0, 1) say, which becomes [-1, 1]; what overshoots it a
            little, as filters do, is clipped. (-1, 1) takes them as they are. Needed where the numbers leave it open.
        crop: Take the middle of each sample, so many points in each direction (one number is that of all), behind
            `size`.

    Raises:
        FileNotFoundError: if `source` is none of the known forms, or the Hub has no such dataset.
        PermissionError: if the Hub has it, but not for this user.
        ConnectionError: if the Hub cannot be reached.
        ModuleNotFoundError: if the package that reads this source is not installed; says which extra has it.
        ValueError: if the samples have a wrong shape or range, are damaged, empty or constant, or an option is unknown.
    """
    for option, given, known in (("channels", channels, ("first", "last", "none")), ("scale", scale, ("range", "std"))):
        if given is not None and given not in known:
            raise ValueError(f"unknown {option} {given!r}: expected one of {', '.join(known)}")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if range is not None and (scale is not None or not -math.inf < range[0] < range[1] < math.inf):
        problem = f"and scale={scale!r} exclude each other" if scale is not None else "is no range"
        raise ValueError(f"range={range} {problem}: expected (least, largest) of the numbers, without scale")
    raw, held, name = _read(str(source), size, key, background)
    if isinstance(raw, np.ndarray):
        x, units = _from_array(raw, channels, scale, range, background, name)
    elif range is not None:
        raise ValueError(f"range={range} says what the numbers of an array mean, and {name} has pictures: leave it out")
    else:
        x, units = raw, PIXELS if name != "digits" else Affine((8.0,), (8.0,))
    labels, names = (None, None) if held is None else (held.numbers, held.names)
    samples = Samples(x, labels, name, units, names)
    if size is not None:
        samples = resized(samples, size)
    if crop is not None:
        samples = cropped(samples, crop)
    if scale is not None:
        samples = _standardised(samples, scale)
    samples = replace(samples, x=samples.x.float())
    check_samples(samples.x, name)
    return samples


def _from_array(
    array: np.ndarray,
    channels: Channels | None,
    scale: Scale | None,
    range: tuple[float, float] | None,
    background: Background,
    name: str,
) -> tuple[Tensor, Affine]:
    """An array of a file as (N, C, *spatial), and its units: pixels of bytes; of other numbers those they are in."""
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name} holds {array.dtype}, expected real numbers (of complex ones, two channels)")
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] == 4 and channels is None:
        array = over_background(array, background)
    array = _channels_first(array, channels, name)
    if array.dtype == np.uint8 and range is None:
        x = torch.from_numpy(np.ascontiguousarray(array)).to(torch.float32)
        return x.div_(127.5).sub_(1), PIXELS
    # Standardising takes what float32 cannot hold, such as millikelvins on three hundred kelvins.
    wide = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32 if array.dtype == np.float32 else np.float64))
    if range is not None:
        return _in_range(wide, range, name)
    if scale is None:
        _check_clear(wide, name)
    return wide, Affine()


def _in_range(x: Tensor, range: tuple[float, float], name: str) -> tuple[Tensor, Affine]:
    """Numbers of a range that was stated as samples in [-1, 1], and their units."""
    (low, high), shift, spread = finite_range(x, name), sum(range) / 2, (range[1] - range[0]) / 2
    if max(range[0] - low, high - range[1]) > spread:
        raise ValueError(f"{name} has numbers in [{low:g}, {high:g}], and not in the range that was stated, {range}")
    return ((x - shift) / spread).clamp(-1, 1), Affine((shift,), (spread,))


def _check_clear(x: Tensor, name: str) -> None:
    """Refuse numbers that look like pixels in [0, 1] or 0..255, but for an overshoot: a guess would be silent.

    Raises:
        ValueError: says what was found, and how to say what is meant.
    """
    if not x.numel():
        return
    low, high = (float(v) for v in x.aminmax())
    outside = float(((x < 0) | (x > 1)).double().mean())
    if low > -0.5 and high < 1.5 and outside <= 1 / 3:
        looks = "[0, 1]" if not outside else f"[{low:g}, {high:g}], {outside:.2g} of them outside [0, 1]"
        guess = "(0, 1)"
    elif low > -64 and 127 < high < 320:
        looks, guess = f"[{low:g}, {high:g}]", "(0, 255)"
    else:
        return
    raise ValueError(
        f"{name} has numbers in {looks}, expected [-1, 1] or about unit variance: say what they are in, range={guess}, "
        "or range=(-1, 1) to take them as they are; standardise them with "
        "scale='std'; or store uint8 for pixels"
    )


def _channels_first(array: np.ndarray, channels: Channels | None, name: str) -> np.ndarray:
    """(N, C, *spatial)."""
    shape = array.shape
    if channels is None:
        channels = _guess(shape, name)
    if not 2 <= array.ndim - (channels != "none") <= 4:
        raise ValueError(
            f"{name} has shape {shape}, expected N samples of one to three spatial directions with "
            f"channels={channels!r}"
        )
    if channels == "none":
        return array[:, None]
    return array if channels == "first" else np.moveaxis(array, -1, 1)


def _guess(shape: tuple[int, ...], name: str) -> Channels:
    """Where the channels are, if the shape leaves no doubt."""
    if len(shape) == 2 or (len(shape) == 3 and min(shape[1:]) > 4):
        return "none"
    if len(shape) in (4, 5):
        first, last = shape[1] in (1, 3), shape[-1] in (1, 3)
        if first or last:
            return "first" if first else "last"
    if not 2 <= len(shape) <= 5:
        raise ValueError(
            f"{name} has shape {shape}, expected (N, *spatial), (N, C, *spatial) or (N, *spatial, C) with one to three "
            "spatial directions"
        )
    raise ValueError(
        f"{name} has shape {shape}, which does not tell where the channels are: load it with channels='first', 'last' "
        "or 'none' (`--channels-first`, `--channels-last` or `--channels-none`)"
    )


def _standardised(samples: Samples, scale: Scale) -> Samples:
    """Each channel by its own affine map, which the units take up: physical = b + a (shift + spread x)."""
    finite_range(samples.x, samples.name)
    x, shifts, scales = samples.x.to(torch.float32).clone(), [], []
    for c in range(x.shape[1]):
        # In float64, per channel: the difference of two near numbers comes before the rounding.
        channel = samples.x[:, c].double()
        low, high = (float(v) for v in channel.aminmax())
        if low == high:
            raise ValueError(f"channel {c} of {samples.name} is constant ({low:g}): it cannot be standardised")
        shift, spread = float(channel.mean()), float(channel.std())
        if scale == "range":
            shift, spread = (low + high) / 2, (high - low) / 2
        x[:, c] = (channel - shift) / spread
        shifts.append(shift)
        scales.append(spread)
    b, a = (np.asarray(v) for v in (samples.units.shift, samples.units.scale))
    return replace(
        samples, x=x, units=Affine(tuple((b + a * shifts).tolist()), tuple((a * np.asarray(scales)).tolist()))
    )


def _read(
    source: str, size: int | None, key: str | None, background: Background
) -> tuple[np.ndarray | Tensor, Labels | None, str]:
    """What `source` holds, its labels and its name, by the table above."""
    path = Path(source)
    if source == "digits":
        return *_digits(), source
    if source.startswith("hf:"):
        return *read_dataset(source[3:], size, key, background), source[3:]
    if path.suffix in (".npy", ".npz") and path.is_file():
        return *read_numpy(path, key, background), path.name
    if path.name.endswith("ubyte.gz") and path.is_file():
        return *read_idx(path), path.name
    if path.exists() and (
        path.name.endswith((".zarr", ".zarr.zip")) or holds_any(path, "zarr.json", ".zarray", ".zgroup")
    ):
        return *read_zarr(path, key), path.name
    if path.suffix.lower() in PICTURES and path.is_file():
        optional_package("PIL", "images")
        return read_pictures([(source, path.read_bytes)], size, background), None, path.name
    if path.suffix == ".zip" and path.is_file():
        return *read_zip(path, size, background), path.name
    if (path.suffix == ".parquet" and path.is_file()) or holds_any(path, *SAVED, "*.parquet", "*/*.parquet"):
        return *read_dataset(source, size, key, background), path.name
    if path.is_dir():
        return *read_folder(path, size, background), path.name
    raise FileNotFoundError(
        f"no data {source!r}: expected 'digits', a folder or .zip of PNG or JPEG files, an .npy, .npz or .zarr array, "
        "an idx '*-ubyte.gz' file, a dataset's folder or .parquet file, or 'hf:org/name' for one on the Hub"
    )


def _digits() -> Read:
    """scikit-learn's digits, whose grey levels 0..16 become [-1, 1]."""
    digits = optional_package("sklearn.datasets", "images").load_digits()
    x = torch.as_tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    return x, Labels(torch.as_tensor(digits.target, dtype=torch.int64))
