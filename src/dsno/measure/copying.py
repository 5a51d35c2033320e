r"""Whether a sampler copies: how near its samples are to its training data, beside how near new data are.

A distance between sets is least for whoever returns the set itself, so of a sampler that has seen the reference it says
little. Samples that were held out tell a copy from a sample: with $d(x) = \min_{y \in \text{train}} \|x - y\|$ the
distance between features (`dsno.measure.features`) to the nearest training sample,

$$ \text{copying} = \operatorname{median}_{x \in \text{made}} d(x) \,\big/\,
   \operatorname{median}_{x \in \text{held out}} d(x) $$

is about 1 for samples of the law of the data, however many, and 0 for training samples. Of $n$ samples of a law that
fills $D$ dimensions the nearest is at $d \propto n^{-1/D}$: at a ratio of $r$ samples are as near as new data would be
to $r^{-D}$ times as much training data. Below `COPIED` = 1/2, that is $2^D$ times as much, a sampler is said to copy.
From `FEWEST` = 32 samples on chance hardly gets there, but in one dimension.

What it does not see: whoever copies less than half of the time has most of the median of the others; samples that are
far from all data are far from the training data, too; and a feature network may take noise that nobody sees for a
distance, or miss one that everybody sees.

Source: the distances are those of Meehan, Chaudhuri & Dasgupta, 2020 (arXiv 2004.05675), who test their ranks, region
by region; the ratio of medians is coarser, and has no p-value.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from torch import Tensor

from dsno.measure.features import Extractor, extract
from dsno.measure.metrics import frechet_distance, kernel_distance, nearest_distances
from dsno.measure.results import HeldOut

__all__ = ["COPIED", "FEWEST", "Unseen", "copying_ratio", "nearest_median", "shared_images"]

log = logging.getLogger(__name__)

COPIED = 0.5
"""A sampler of a lower ratio copies its training data."""

FEWEST = 32
"""Held-out samples that a ratio is of at least: the median of fewer is chance."""


@dataclass(frozen=True)
class Unseen:
    """Samples of the law of the data that nothing was trained on.

    Attributes:
        features: (N, D).
        sha: SHA-256 of the images as given.
        shared: How many of them are in the training set all the same.
    """

    features: Tensor
    sha: str
    shared: int

    @classmethod
    def of(cls, images: Tensor, train: Tensor, extractor: Extractor, sha: str) -> Unseen:
        """From images (N, C, H, W) in [-1, 1] and those that were trained on, (N', C, H, W); warns of shared ones.

        Raises:
            ValueError: as `shared_images` does.
        """
        if shared := shared_images(images, train):
            log.warning(
                "%d of the %d held-out images are in the reference set, too, and say nothing of new data",
                shared,
                len(images),
            )
        return cls(extract(extractor, images), sha, shared)

    def against(self, made: Tensor, train: Tensor, scale: float) -> HeldOut:
        """The numbers of features (N, D); `scale` as in `copying_ratio`."""
        kernel, _ = kernel_distance(made, self.features)
        ratio = copying_ratio(made, train, self.features, scale)
        return HeldOut(frechet_distance(made, self.features), kernel, ratio)


def copying_ratio(made: Tensor, train: Tensor, held_out: Tensor, scale: float | None = None) -> float:
    """The ratio above of features (N, D), (N', D) and (N'', D), in float64.

    `scale` is the median distance of the held-out features to the nearest training ones, where it is at hand.

    Raises:
        ValueError: unless all are (N, D) of one D, finite and not empty; or if half of the held-out features are those
            of training samples.
    """
    distance = nearest_median(made, train)
    scale = nearest_median(held_out, train) if scale is None else scale
    if not scale > 0:
        raise ValueError(
            "half of the held-out features, or more, are those of training samples, so a ratio to their distance means "
            "nothing: hold out samples that are no training samples"
        )
    return distance / scale


def nearest_median(features: Tensor, train: Tensor) -> float:
    """The median distance of features (N, D) to the nearest of training ones (N', D).

    Raises:
        ValueError: as `nearest_distances` does.
    """
    return float(nearest_distances(features, train).quantile(0.5))


def shared_images(held_out: Tensor, train: Tensor) -> int:
    """How many images (N, C, H, W) of a held-out set are, to the last bit, in the training set (N', C, H, W), too.

    Raises:
        ValueError: if there are fewer than `FEWEST`, half of them are in both sets, or the shapes differ.
    """
    N = len(held_out)
    if held_out.shape[1:] != train.shape[1:]:
        raise ValueError(
            f"the held-out set has images of shape {tuple(held_out.shape[1:])}, the reference set of "
            f"{tuple(train.shape[1:])}: load both alike"
        )
    if N < FEWEST:
        raise ValueError(f"the held-out set has {N} images, expected {FEWEST} or more: the median of fewer is chance")
    known = {_bits(image) for image in train}
    shared = sum(_bits(image) in known for image in held_out)
    if 2 * shared >= N:
        raise ValueError(
            f"{shared} of the {N} held-out images are in the reference set, too, so they are not held out: give images "
            "that nothing was trained on"
        )
    return shared


def _bits(image: Tensor) -> int:
    # Of hashes, since a set of the bytes would be a second copy of the images.
    return hash(image.detach().float().cpu().contiguous().numpy().tobytes())
