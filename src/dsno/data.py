r"""Data sets, and the only place that knows pixel ranges: samples (N, C, *spatial), float32, of about unit size.

A sample has channels and one to three spatial directions: a signal (C, L), an image (C, H, W), a volume (C, D, H, W).

| source | what |
|---|---|
| `digits` | scikit-learn's 1,797 handwritten digits, 8x8 grey, embedded in that package (Alpaydin & Kaynak, 1998) |
| a folder of pictures | its PNG and JPEG files; or those of its sub-folders, labelled by folder in alphabetical order |
| `*.npy`, `*.npz`, `*.zarr` | an array (N, *spatial), (N, C, *spatial) or (N, *spatial, C); labels under `labels` |
| `*-ubyte.gz` | an idx file as MNIST and Fashion-MNIST ship them; labels from the matching file beside it |
| a folder or `*.parquet` | a Hugging Face dataset: one that `save_to_disk` wrote, or parquet files |
| `hf:org/name[:split]` | a Hugging Face dataset from the Hub; `hf:folder:split` names a split of a local one |

Bytes are taken for pixels and mapped from 0..255 to [-1, 1], the range of images in the library. Other numbers are taken as
they are, or on request standardised by an affine map per channel, kept as `units`,

$$ \text{physical} = \text{shift} + \text{scale} \cdot x, $$

by which samples go back.
"""

from __future__ import annotations

import gzip
import importlib
import math
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "Affine",
    "Channels",
    "Samples",
    "Scale",
    "check_images",
    "check_samples",
    "load_data",
    "resized",
    "split",
    "to_uint8",
    "to_unit",
]

Channels = Literal["first", "last", "none"]
"""Where an array has its channels: (N, C, *spatial), (N, *spatial, C) or (N, *spatial)."""
Scale = Literal["range", "std"]
"""How each channel is standardised: its range to [-1, 1], or to mean 0 and standard deviation 1."""

_PICTURES = (".png", ".jpg", ".jpeg")
_LABELS = ("labels", "label")
_NETWORK_SECONDS = 3.0


@dataclass(frozen=True)
class Affine:
    r"""$\text{physical} = \text{shift} + \text{scale} \cdot x$; one number for all channels, or one for each."""

    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)

    def __call__(self, x: Tensor) -> Tensor:
        """Samples (N, C, *spatial) in physical units; in float64 if they are."""
        shift, scale = (
            torch.tensor(v, dtype=torch.float64).to(x).reshape(1, -1, *[1] * (x.ndim - 2))
            for v in (self.shift, self.scale)
        )
        return shift + scale * x


PIXELS = Affine((127.5,), (127.5,))
"""From [-1, 1] to 0..255."""


@dataclass(frozen=True)
class Samples:
    """A data set.

    Attributes:
        x: (N, C, *spatial) float32; images lie in [-1, 1].
        labels: (N,) int64, or None.
        name: Where it came from.
        units: The map from `x` to the numbers that were given.
    """

    x: Tensor
    labels: Tensor | None
    name: str
    units: Affine = Affine()

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *spatial)."""
        return tuple(self.x.shape[1:])

    def restore(self, x: Tensor) -> Tensor:
        """Samples like these, (N, C, *spatial), in the units of the data that was given."""
        return self.units(x)


def check_samples(x: Tensor, name: str = "the data set") -> Tensor:
    """Return `x` if it is a data set to train on.

    Raises:
        ValueError: unless it is (N, C, *spatial) with one to three spatial directions, none of them empty, finite, not
            constant, and of a standard deviation between 0.01 and 10: noise schedules assume about 1.
    """
    if x.ndim not in (3, 4, 5):
        raise ValueError(
            f"{name} must have shape (N, C, *spatial) with one to three spatial directions, got {tuple(x.shape)}"
        )
    low, high = _finite_range(x, name)
    if low == high:
        raise ValueError(f"{name} is constant (every value is {low:g}): there is nothing to learn")
    spread = float(x.std())
    if not 0.01 <= spread <= 10:
        raise ValueError(
            f"{name} has values in [{low:g}, {high:g}] with standard deviation {spread:.3g}, expected about 1: load it with "
            "scale='std' or scale='range'"
        )
    return x


def check_images(x: Tensor, name: str = "the image set") -> Tensor:
    """Return `x` if it is a usable image set, for all that looks at pixels.

    Raises:
        ValueError: unless it is (N, C, H, W) with N > 0 and C in {1, 3}, finite, inside [-1, 1] and not constant.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"{name} must have shape (N, C, H, W) with 1 or 3 channels, got {tuple(x.shape)}")
    low, high = _finite_range(x, name)
    if low < -1.001 or high > 1.001:
        raise ValueError(f"{name} must lie in [-1, 1], got [{low:g}, {high:g}]: rescale it (uint8 arrays are rescaled)")
    if low == high:
        raise ValueError(f"{name} is constant (every pixel is {low:g}): there is nothing to learn")
    return x


def _finite_range(x: Tensor, name: str) -> tuple[float, float]:
    if x.numel() == 0:
        raise ValueError(f"{name} is empty")
    low, high = (float(v) for v in x.aminmax())
    # A NaN anywhere is the smallest and the largest value.
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} has values that are not finite")
    return low, high


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] to 0..255, rounded to nearest and clamped; any shape."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_unit(x: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], clamped; any shape."""
    return (x.clamp(-1, 1) + 1) / 2


def load_data(
    source: str | Path,
    *,
    channels: Channels | None = None,
    scale: Scale | None = None,
    size: int | None = None,
    key: str | None = None,
    background: int | tuple[int, int, int] = 255,
) -> Samples:
    """Load a data set; see the table above.

    Arguments:
        source: One of the table.
        channels: Where an array has its channels. By default (N, A) and (N, A, B) have none, and an axis of one or three
            next to N or at the end is the channels of an image; what could be either is refused.
        scale: Standardise each channel; by default bytes are pixels and other numbers stay as they are.
        size: Make images `size` x `size`, see `resized`; pictures of a folder may then be of different sizes.
        key: Which array of an .npz or .zarr file, or which column of a dataset, where there are several.
        background: What shows through transparent pixels: a grey level or (r, g, b), 0..255; white by default.

    Raises:
        FileNotFoundError: if `source` is none of the known forms, or the Hub has no such dataset.
        ConnectionError: if the Hub cannot be reached.
        ModuleNotFoundError: if the package that reads this source is not installed; says which extra has it.
        ValueError: if the samples have a wrong shape or range, are damaged, empty or constant, or an option is unknown.
    """
    for option, given, known in (("channels", channels, ("first", "last", "none")), ("scale", scale, ("range", "std"))):
        if given is not None and given not in known:
            raise ValueError(f"unknown {option} {given!r}: expected one of {', '.join(known)}")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    raw, labels, name = _read(str(source), size, key, background)
    if labels is not None and labels.shape != (len(raw),):
        raise ValueError(
            f"{source} has {len(raw)} samples but labels of shape {tuple(labels.shape)}: expected one for each"
        )
    if isinstance(raw, np.ndarray):
        x, units = _numbers(raw, channels, scale, background, name)
    else:
        x, units = raw, PIXELS if name != "digits" else Affine((8.0,), (8.0,))
    samples = Samples(x, labels, name, units)
    if size is not None:
        samples = resized(samples, size)
    if scale is not None:
        samples = _standardised(samples, scale)
    samples = replace(samples, x=samples.x.float())
    check_samples(samples.x, name)
    return samples


def resized(samples: Samples, size: int) -> Samples:
    """Images cropped to the square in their middle and brought to `size` x `size`.

    By a whole factor pixels are averaged; otherwise the interpolation is bilinear, antialiased. Grey images of 28x28, as
    MNIST and its kin, are padded with their lowest value to 32x32 if that is a multiple of `size`.

    Raises:
        ValueError: if the samples are not images.
    """
    if samples.x.ndim != 4:
        raise ValueError(f"{samples.name} has samples of shape {samples.shape}: only images (C, H, W) are resized")
    if samples.shape[1:] == (size, size):
        return samples
    low = float(samples.x.min())
    return replace(samples, x=torch.cat([_fit(part, size, low) for part in samples.x.split(4096)]))


def _fit(x: Tensor, size: int, low: float) -> Tensor:
    H, W = x.shape[2:]
    side = min(H, W)
    top, left = (H - side) // 2, (W - side) // 2
    x = x[..., top : top + side, left : left + side]
    if side == 28 and x.shape[1] == 1 and 32 % size == 0:
        x, side = F.pad(x, (2, 2, 2, 2), value=low), 32
    if side % size == 0:
        return F.interpolate(x, size=(size, size), mode="area")
    return F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)


def split(samples: Samples, fraction: float = 0.1, seed: int = 0) -> tuple[Samples, Samples]:
    """A random share `fraction` held out: (the rest, the held-out), both in the original order; a function of `seed`.

    Raises:
        ValueError: if one of the two would be empty.
    """
    held = round(fraction * len(samples))
    if not 0 < held < len(samples):
        raise ValueError(
            f"a share of {fraction:g} of {len(samples)} samples leaves one side empty: expected one in (0, 1)"
        )
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))

    def rows(index: Tensor) -> Samples:
        index = index.sort().values
        labels = None if samples.labels is None else samples.labels[index]
        return replace(samples, x=samples.x[index], labels=labels)

    return rows(order[held:]), rows(order[:held])


# From what a source holds to samples


def _numbers(
    array: np.ndarray,
    channels: Channels | None,
    scale: Scale | None,
    background: int | tuple[int, int, int],
    name: str,
) -> tuple[Tensor, Affine]:
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name} holds {array.dtype}, expected real numbers (of complex ones, two channels)")
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] == 4 and channels is None:
        array = _over(array, background)
    array = _channels_first(array, channels, name)
    if array.dtype == np.uint8:
        x = torch.from_numpy(np.ascontiguousarray(array)).to(torch.float32)
        return x.div_(127.5).sub_(1), PIXELS
    # Standardising takes what float32 cannot hold, such as millikelvins on three hundred kelvins.
    wide = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32 if array.dtype == np.float32 else np.float64))
    if scale is None and wide.numel() and wide.min() >= 0 and wide.max() <= 1:
        raise ValueError(
            f"{name} has numbers in [0, 1], expected [-1, 1] or about unit variance: store 2 * x - 1, or uint8 for pixels, "
            "or load it with scale='range'"
        )
    return wide, Affine()


def _channels_first(array: np.ndarray, channels: Channels | None, name: str) -> np.ndarray:
    shape = array.shape
    if channels is None:
        channels = _guess(shape, name)
    if not 2 <= array.ndim - (channels != "none") <= 4:
        raise ValueError(
            f"{name} has shape {shape}, expected N samples of one to three spatial directions with channels={channels!r}"
        )
    if channels == "none":
        return array[:, None]
    return array if channels == "first" else np.moveaxis(array, -1, 1)


def _guess(shape: tuple[int, ...], name: str) -> Channels:
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
        f"{name} has shape {shape}, which does not tell where the channels are: load it with channels='first', 'last' or "
        "'none'"
    )


def _standardised(samples: Samples, scale: Scale) -> Samples:
    _finite_range(samples.x, samples.name)
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


def _over(rgba: np.ndarray, background: int | tuple[int, int, int]) -> np.ndarray:
    """Composite (..., 4) bytes on a background, to (..., 3) bytes."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    mixed = alpha * rgba[..., :3] + (1 - alpha) * np.asarray(background, np.float32)
    return np.rint(mixed).astype(np.uint8)


# The sources: an array, or a float Tensor of pixels in [-1, 1]; labels; a name

_Read = tuple[np.ndarray | Tensor, Tensor | None, str]


def _read(source: str, size: int | None, key: str | None, background: int | tuple[int, int, int]) -> _Read:
    path = Path(source)
    if source == "digits":
        return *_digits(), source
    if source.startswith("hf:"):
        return *_dataset(source[3:], size, key, background), source[3:]
    if path.suffix in (".npy", ".npz") and path.is_file():
        return *_numpy(path, key, background), path.name
    if path.name.endswith("ubyte.gz") and path.is_file():
        return *_idx(path), path.name
    if path.exists() and (path.name.endswith((".zarr", ".zarr.zip")) or _has(path, "zarr.json", ".zarray", ".zgroup")):
        return *_zarr(path, key), path.name
    if (path.suffix == ".parquet" and path.is_file()) or _has(
        path, "dataset_info.json", "dataset_dict.json", "*.parquet", "*/*.parquet"
    ):
        return *_dataset(source, size, key, background), path.name
    if path.is_dir():
        return *_folder(path, size, background), path.name
    raise FileNotFoundError(
        f"no data {source!r}: expected 'digits', a folder of PNG or JPEG files, an .npy, .npz or .zarr array, an idx "
        "'*-ubyte.gz' file, a dataset's folder or .parquet file, or 'hf:org/name' for one on the Hub"
    )


def _has(path: Path, *patterns: str) -> bool:
    return path.is_dir() and any(next(path.glob(p), None) is not None for p in patterns)


def _need(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        raise ModuleNotFoundError(
            f"this data needs the package {package!r}: pip install 'dsno[{extra}]'", name=package
        ) from None


def _digits() -> tuple[Tensor, Tensor]:
    digits = _need("sklearn.datasets", "images").load_digits()
    x = torch.as_tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    return x, torch.as_tensor(digits.target, dtype=torch.int64)


def _folder(
    path: Path, size: int | None, background: int | tuple[int, int, int]
) -> tuple[np.ndarray | Tensor, Tensor | None]:
    def pictures(folder: Path) -> list[Path]:
        return sorted(p for p in folder.iterdir() if p.suffix.lower() in _PICTURES)

    files, labels = pictures(path), None
    if not files:
        classes = [found for p in sorted(path.iterdir()) if p.is_dir() and (found := pictures(p))]
        files = [file for found in classes for file in found]
        labels = torch.tensor([k for k, found in enumerate(classes) for _ in found])
    if not files:
        raise ValueError(f"{path} has no PNG or JPEG files, and none in its sub-folders")
    _need("PIL", "images")
    return _pictures(((str(file), file) for file in files), size, background), labels


def _pictures(
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
    return torch.cat([_fit(x, size, -1.0) for x in rows])


def _pixels(image: Any, name: str, background: int | tuple[int, int, int]) -> np.ndarray:
    """A picture as bytes, (H, W) if it is grey, else (H, W, 3)."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{name} has more than 8 bits per channel: save it with 8, or all images as an .npy array")
    grey = image.mode in ("1", "L", "LA") and isinstance(background, int)
    if image.has_transparency_data:
        array = _over(np.asarray(image.convert("RGBA")), background)
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


def _numpy(path: Path, key: str | None, background: int | tuple[int, int, int]) -> tuple[np.ndarray, Tensor | None]:
    with _damaged(path, "an array file"):
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None
        arrays = {n: loaded[n] for n in loaded.files if key not in loaded.files or n == key or n in _LABELS}
    name = _choose(arrays, key, path)
    array = _over(arrays[name], background) if name == "rgba" else arrays[name]
    return array, _labels(arrays)


def _zarr(path: Path, key: str | None) -> tuple[np.ndarray, Tensor | None]:
    zarr = _need("zarr", "data")
    with _damaged(path, "a zarr array"):
        found = zarr.open(str(path), mode="r")
        if isinstance(found, zarr.Array):
            return found[:], None
        arrays = dict(found.arrays())
    name = _choose(arrays, key, path)
    with _damaged(path, "a zarr array"):
        return arrays[name][:], _labels({n: a[:] for n, a in arrays.items() if n in _LABELS})


def _choose(arrays: Mapping[str, Any], key: str | None, path: Path) -> str:
    if key is not None:
        if key not in arrays:
            raise ValueError(f"{path} has no array {key!r}; it has {', '.join(arrays) or 'nothing'}")
        return key
    names = [n for n, a in arrays.items() if n not in _LABELS and a.ndim >= 2 and a.dtype.kind in "buif"]
    if len(names) == 1:
        return names[0]
    if names:
        raise ValueError(f"{path} has several arrays, {', '.join(names)}: say which with key=")
    raise ValueError(f"{path} has no array of samples; it has {', '.join(arrays) or 'nothing'}")


def _labels(arrays: Mapping[str, np.ndarray]) -> Tensor | None:
    for name in _LABELS:
        if name in arrays:
            return torch.as_tensor(arrays[name].astype(np.int64))
    if "name" in arrays and arrays["name"].dtype.kind == "U":
        # The paths of pictures: their first folder is the class, as in a folder of folders.
        classes, index = np.unique([path.split("/")[0] for path in arrays["name"]], return_inverse=True)
        return torch.as_tensor(index) if len(classes) < len(index) else None
    return None


def _idx(path: Path) -> tuple[np.ndarray, Tensor | None]:
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


# Hugging Face datasets


def _dataset(
    reference: str, size: int | None, key: str | None, background: int | tuple[int, int, int]
) -> tuple[np.ndarray | Tensor, Tensor | None]:
    datasets = _need("datasets", "data")
    table = _table(datasets, reference)
    column = _column(datasets, table, key, reference)
    labels = [n for n in _LABELS if n in table.features]
    labels += [n for n, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    held = None
    if labels and labels[0] != column:
        held = torch.as_tensor(table.select_columns(labels[:1]).with_format("numpy")[:][labels[0]], dtype=torch.int64)
    rows = table.select_columns([column])
    if isinstance(table.features[column], datasets.Image):
        pictures = ((f"{reference}, row {i}", row[column]) for i, row in enumerate(rows))
        return _pictures(pictures, size, background), held
    array = rows.with_format("numpy")[:][column]
    if array.dtype == object:
        raise ValueError(f"the rows of column {column!r} of {reference} differ in shape: they must agree")
    # The format widens integers; what the column says they are decides whether they are pixels.
    return array.astype(_dtype(table.features[column])), held


def _table(datasets: Any, reference: str) -> Any:
    """The split of a dataset that `folder`, `file.parquet` or `org/name`, each with an optional `:split`, names."""
    where, colon, named = reference.rpartition(":")
    if not colon or Path(reference).exists():
        where, named = reference, ""
    path = Path(where)
    try:
        if path.is_file():
            found = datasets.load_dataset("parquet", data_files=where)
        elif _has(path, "dataset_info.json", "dataset_dict.json"):
            found = datasets.load_from_disk(where)
        elif path.is_dir():
            found = datasets.load_dataset(where)
        else:
            _reach(where)
            found = datasets.load_dataset(where)
    except ConnectionError as error:
        raise ConnectionError(
            f"the Hub cannot be reached for the dataset {where!r} ({_line(error)}): check the network, or set "
            "HF_HUB_OFFLINE=1 if it is in your cache"
        ) from None
    except (datasets.exceptions.DatasetsError, FileNotFoundError) as error:
        raise FileNotFoundError(f"no dataset {where!r}: {_line(error)}") from None
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{where} cannot be read as a dataset: {_line(error)}") from None
    if isinstance(found, datasets.Dataset):
        if named:
            raise ValueError(f"{where} is a single split: leave ':{named}' out")
        return found
    chosen = named or ("train" if "train" in found else next(iter(found)) if len(found) == 1 else "")
    if chosen not in found:
        asked = f"no split {chosen!r}" if chosen else "several splits"
        raise ValueError(f"{where} has {asked}: name one of {', '.join(found)} as hf:{where}:split")
    return found[chosen]


def _reach(name: str) -> None:
    """Ask the Hub for a dataset once: without a network `load_dataset` tries for half a minute."""
    import huggingface_hub
    from huggingface_hub import errors

    if name.count("/") > 1 or name.startswith((".", "/")):
        raise FileNotFoundError("there is no such folder, and on the Hub names are 'org/name'")
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        # Then only the cache is looked at, which takes no time.
        return
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=_NETWORK_SECONDS)
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            "there is no such folder, and the Hub has none of that name that you may read"
        ) from None
    except errors.HFValidationError as error:
        raise FileNotFoundError(_line(error)) from None
    except Exception as error:  # The client's transport, and so the type of its errors, changed between versions.
        raise ConnectionError(_line(error)) from None


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _column(datasets: Any, table: Any, key: str | None, reference: str) -> str:
    features = table.features
    if key is not None:
        if key not in features:
            raise ValueError(f"{reference} has no column {key!r}; it has {', '.join(features)}")
        return key
    pictures = [n for n, feature in features.items() if isinstance(feature, datasets.Image)]
    arrays = [n for n, feature in features.items() if not hasattr(feature, "names") and _dtype(feature) is not None]
    arrays = [n for n in arrays if not isinstance(features[n], datasets.Value)]
    names = pictures or arrays
    if len(names) != 1:
        what = f"several columns, {', '.join(names)}" if names else f"no column of samples among {', '.join(features)}"
        raise ValueError(f"{reference} has {what}: say which with key=")
    return names[0]


def _dtype(feature: Any) -> np.dtype[Any] | None:
    """The numbers of a column, or None if it holds something else."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    try:
        dtype = np.dtype(feature.dtype)
    except (AttributeError, TypeError):
        return None
    return dtype if dtype.kind in "buif" else None
