r"""A data set in memory: samples, labels and units; the only place that knows pixel ranges.

A sample has channels and one to three spatial directions: a signal (C, L), an image (C, H, W), a volume (C, D, H, W).
Noise schedules assume that its values are of about unit size, and the library that images lie in [-1, 1]. What the data
was given in is kept as an affine map per channel,

$$ \text{physical} = \text{shift} + \text{scale} \cdot x. $$
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "Affine",
    "Samples",
    "check_images",
    "check_samples",
    "finite_range",
    "resized",
    "split",
    "to_square",
    "to_uint8",
    "to_unit",
]


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
        names: What the classes are called, in the order of their numbers, or None.

    Raises:
        ValueError: for labels that are no class numbers, one for each sample.
    """

    x: Tensor
    labels: Tensor | None
    name: str
    units: Affine = Affine()
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        labels = self.labels
        if labels is None:
            return
        if labels.shape != (len(self.x),):
            raise ValueError(
                f"{self.name} has {len(self.x)} samples but labels of shape {tuple(labels.shape)}: expected one for "
                "each"
            )
        if labels.is_floating_point() or (len(labels) and int(labels.min()) < 0):
            found = f"of {labels.dtype}" if labels.is_floating_point() else f"down to {int(labels.min())}"
            raise ValueError(f"{self.name} has labels {found}, which are no classes: expected whole numbers from 0 on")
        if self.names is not None and len(labels) and int(labels.max()) >= len(self.names):
            raise ValueError(
                f"{self.name} has labels up to {int(labels.max())}, and names of {len(self.names)} classes"
            )

    @property
    def classes(self) -> int | None:
        """How many classes there are: as many as have names, else up to the largest label; None without labels."""
        if self.labels is None:
            return None
        return len(self.names) if self.names is not None else int(self.labels.max()) + 1

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
    low, high = finite_range(x, name)
    if low == high:
        raise ValueError(f"{name} is constant (every value is {low:g}): there is nothing to learn")
    spread = float(x.std())
    if not 0.01 <= spread <= 10:
        raise ValueError(
            f"{name} has values in [{low:g}, {high:g}] with standard deviation {spread:.3g}, expected about 1: load it "
            "with scale='std' or scale='range'"
        )
    return x


def check_images(x: Tensor, name: str = "the image set") -> Tensor:
    """Return `x` if it is a usable image set, for all that looks at pixels.

    Raises:
        ValueError: unless it is (N, C, H, W) with N > 0 and C in {1, 3}, finite, inside [-1, 1] and not constant.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"{name} must have shape (N, C, H, W) with 1 or 3 channels, got {tuple(x.shape)}")
    low, high = finite_range(x, name)
    if low < -1.001 or high > 1.001:
        raise ValueError(f"{name} must lie in [-1, 1], got [{low:g}, {high:g}]: rescale it (uint8 arrays are rescaled)")
    if low == high:
        raise ValueError(f"{name} is constant (every pixel is {low:g}): there is nothing to learn")
    return x


def finite_range(x: Tensor, name: str) -> tuple[float, float]:
    """The least and the largest value.

    Raises:
        ValueError: if there is none, or one that is not finite.
    """
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


def resized(samples: Samples, size: int) -> Samples:
    """Images cropped to the square in their middle and brought to `size` x `size`.

    By a whole factor pixels are averaged; otherwise the interpolation is bilinear, antialiased. Grey images of 28x28,
    as MNIST and its kin, are padded with their lowest value to 32x32 if that is a multiple of `size`.

    Raises:
        ValueError: if the samples are not images.
    """
    if samples.x.ndim != 4:
        raise ValueError(f"{samples.name} has samples of shape {samples.shape}: only images (C, H, W) are resized")
    if samples.shape[1:] == (size, size):
        return samples
    low = float(samples.x.min())
    return replace(samples, x=torch.cat([to_square(part, size, low) for part in samples.x.split(4096)]))


def to_square(x: Tensor, size: int, low: float) -> Tensor:
    """Images (N, C, H, W) to (N, C, size, size), as `resized`; `low` is the value of the padding."""
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
