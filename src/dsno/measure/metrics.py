r"""Distances between image sets, and errors along a path.

A distance between sets is a distance between *features* (`dsno.measure.features`): all of these take features (N, D),
computed once and reused.

| quantity | ideal | of what |
|---|---|---|
| `frechet_distance` | 0 | means and covariances of the features |
| `kernel_distance` | 0 | all moments up to the third; unbiased in the number of samples |
| `precision_recall` | 1, 1 | how many fakes lie among the reals, and reals among the fakes |
| `diversity` | 1 | mean pairwise distance of the fakes over that of the reals; 0 is collapse |
| `path_error` | 0 | RMSE against the teacher's own solution from the same noise |

The first two are biased by N (Fréchet) or noisy in it (kernel): compare only numbers with equal counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = [
    "PrecisionRecall",
    "diversity",
    "frechet_distance",
    "kernel_distance",
    "mean_distance",
    "nearest_distances",
    "neighbour_radii",
    "path_error",
    "precision_recall",
    "sample_error",
]

BLOCK = 1 << 24
"""Distances that are held at a time, 128 MiB of them."""


class _Given(nn.Module):
    """The feature module that torchmetrics asks for, where the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(fake: Tensor, real: Tensor) -> float:
    r"""The Fréchet distance between Gaussians fitted to two feature sets (N, D) and (N', D), in float64.

    $$ d^2 = \|\mu - \mu'\|^2 + \operatorname{tr}\big(\Sigma + \Sigma' - 2 (\Sigma \Sigma')^{1/2}\big) $$

    0 for identical sets, not for two samples of one law: biased upwards in proportion to $1/N + 1/N'$, of independent
    features of unit variance by

    $$ \Big(\frac1N + \frac1{N'}\Big) \Big(D + \frac{D (D + 1)}{4}\Big), $$

    1.08 of two times 2,048 samples of 64 features and 0.27 of four times as many. With Inception features this is the
    FID (Heusel et al., 2017, arXiv 1706.08500); with any other it is not, and is named after its extractor.
    Computed by torchmetrics.

    Raises:
        ValueError: unless both are (N, D) with N > 1 and the same D, finite.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    fake, real = _feature_pair(fake, real, at_least=2)
    # Of several processes the one that has all features computes: it must not wait for the others'.
    metric = FrechetInceptionDistance(_Given(real.shape[1]), normalize=True, sync_on_compute=False)
    metric.set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    # Round-off in the matrix root can leave a tiny negative number.
    return max(0.0, float(metric.compute()))


def kernel_distance(
    fake: Tensor, real: Tensor, subsets: int = 50, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    r"""The squared maximum mean discrepancy of two feature sets (N, D) and (N', D) under a cubic kernel, in float64.

    $$ k(f, g) = (f \cdot g / D + 1)^3, \qquad
       \operatorname{MMD}^2 = \mathbb E\,k(f, f') - 2\,\mathbb E\,k(f, g) + \mathbb E\,k(g, g') $$

    without the diagonal terms, hence unbiased: around 0, so also below it, for two samples of one law. The mean over
    `subsets` random subsets of `subset_size` (at most N and N') and their standard deviation. With Inception features
    this is the KID (Bińkowski et al., 2018, arXiv 1801.01401). Computed by torchmetrics.

    Raises:
        ValueError: unless both are (N, D) with N > 1 and the same D, finite.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    fake, real = _feature_pair(fake, real, at_least=2)
    size = min(subset_size, len(fake), len(real))
    # It warns that it keeps the features, and draws subsets from the global generator: neither may leak.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(
            _Given(real.shape[1]), subsets=subsets, subset_size=size, normalize=True, sync_on_compute=False
        )
        metric.set_dtype(torch.float64)
        metric.update(real, real=True)
        metric.update(fake, real=False)
        mean, std = metric.compute()
    return float(mean), float(std)


class PrecisionRecall(NamedTuple):
    """The share of fakes among the reals, and of reals among the fakes; both in [0, 1], best 1."""

    precision: float
    recall: float


def precision_recall(fake: Tensor, real: Tensor, k: int = 3, radii: Tensor | None = None) -> PrecisionRecall:
    r"""Improved precision and recall of feature sets (N, D) and (N', D).

    With $r_k(g)$ the distance from $g$ to its $k$-th nearest neighbour in its own set $\Phi$, the set's manifold is the
    union of the balls $B(g, r_k(g))$;

    $$ \text{precision} = \frac1N \sum_{f \in \text{fake}} \big[\exists g \in \text{real}: \|f - g\| \le r_k(g)\big], $$

    and recall is the same with the sets exchanged. A tie is inside, as in the paper and its authors' code: of a set in
    which every row is there more than k times all radii are 0, and its own rows still lie on its manifold. The package
    `prdc` asks for less than $r_k(g)$, and finds none of them there. What differs by round-off is a tie.

    `radii` are $r_k$ of `real`, (N',), where they are at hand (`neighbour_radii` with the same k): of a large set they
    are most of the work.

    Source: Kynkäänniemi et al., 2019 (arXiv 1904.06991), eqs. 1 and 2.

    Raises:
        ValueError: unless both are (N, D) with N > k >= 1 and the same D, and all is finite.
    """
    fake, real = _feature_pair(fake, real, at_least=k + 1)
    radii = neighbour_radii(real, k) if radii is None else radii
    if radii.shape != (len(real),) or not bool(torch.isfinite(radii).all()):
        raise ValueError(f"radii are one finite number for each of {len(real)} rows, got {tuple(radii.shape)}")
    return PrecisionRecall(_covered(fake, real, radii), _covered(real, fake, neighbour_radii(fake, k)))


def neighbour_radii(features: Tensor, k: int = 3) -> Tensor:
    """The distance of every row of (N, D) to its k-th nearest neighbour, (N,), in float64 and in blocks.

    Raises:
        ValueError: unless they are finite, N > k and k >= 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    features = _checked(features, "real", k + 1)
    # A point is its own nearest neighbour, hence k + 1.
    nearest = (block.topk(k + 1, dim=1, largest=False).values for block in _distances(features, features))
    return torch.cat([distances[:, -1] for distances in nearest])


def nearest_distances(features: Tensor, train: Tensor) -> Tensor:
    r"""The distance of every row $f$ of (N, D) to its nearest in another set, $\min_g \|f - g\|$ over the rows $g$ of
    (N', D): (N,), in float64 and in blocks.

    Exactly 0 of a row that is in both.

    Raises:
        ValueError: unless both are finite, not empty and of one D.
    """
    features, train = _checked(features, "given", 1), _checked(train, "training", 1)
    if features.shape[1] != train.shape[1]:
        raise ValueError(f"the given features have {features.shape[1]} dimensions, the training ones {train.shape[1]}")
    nearest = torch.cat([block.argmin(1) for block in _distances(features, train)])
    # Again, of these alone: the fast matrix form leaves 1e-8 between equal points.
    return (features - train[nearest]).norm(dim=1)


def _distances(points: Tensor, centres: Tensor) -> Iterator[Tensor]:
    """The distances from (N, D) to (N', D), a block of rows (n, N') at a time."""
    return (torch.cdist(rows, centres) for rows in points.split(max(1, BLOCK // len(centres))))


def _covered(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    """The share of `points` inside the manifold of `centres`."""
    # The fast matrix form is off by so much of the squares: equal points would not be at the distance 0.
    largest = torch.cat([points, centres]).square().sum(1).max()
    bounds = radii.square() + 8 * points.shape[1] * torch.finfo(points.dtype).eps * largest
    inside = [(block.square() <= bounds).any(1) for block in _distances(points, centres)]
    return float(torch.cat(inside).double().mean())


def diversity(fake: Tensor, real: Tensor, scale: float | None = None) -> float:
    r"""The mean distance between two fakes over the mean distance between two reals, of features (N, D) and (N', D).

    1 is as diverse as the data, 0 a single image. `scale` is `mean_distance` of the reals, where it is at hand.

    Raises:
        ValueError: unless both are (N, D) with N > 1 and the same D, finite, and the reals are not all equal.
    """
    fake, real = _feature_pair(fake, real, at_least=2)
    scale = mean_distance(real) if scale is None else scale
    if not scale > 0:
        raise ValueError("all reference features are equal: diversity has no scale")
    return mean_distance(fake) / scale


def mean_distance(features: Tensor) -> float:
    """The mean distance between two different rows of (N, D), in float64 and in blocks.

    Raises:
        ValueError: unless they are finite, and more than one.
    """
    features, N = _checked(features, "real", 2), len(features)
    # The fast matrix form leaves 1e-8 between equal points.
    if bool((features == features[0]).all()):
        return 0.0
    return sum(float(block.sum()) for block in _distances(features, features)) / (N * (N - 1))


def _feature_pair(fake: Tensor, real: Tensor, at_least: int) -> tuple[Tensor, Tensor]:
    pair = _checked(fake, "fake", at_least), _checked(real, "real", at_least)
    if fake.shape[1] != real.shape[1]:
        raise ValueError(f"fake features have {fake.shape[1]} dimensions, real ones {real.shape[1]}")
    return pair


def _checked(features: Tensor, name: str, at_least: int) -> Tensor:
    """The features in float64 on the CPU."""
    if features.ndim != 2 or len(features) < at_least:
        raise ValueError(
            f"the {name} features must be (N, D) with N of {at_least} or more, got {tuple(features.shape)}"
        )
    if not bool(torch.isfinite(features).all()):
        raise ValueError(f"the {name} features are not all finite")
    return features.detach().to("cpu", torch.float64)


def path_error(x: Tensor, reference: Tensor) -> Tensor:
    r"""RMSE of each frame of trajectories (B, T, *shape) over samples and pixels, shape (T,), float64.

    $$ e_m = \sqrt{\operatorname{mean}_{b, \text{pixels}} \big(x_{b,m} - x^*_{b,m}\big)^2} $$

    Frames of one time from one noise belong together: see `dsno.solvers.fine.fine_solution`.

    Raises:
        ValueError: if the shapes differ or there is no frame axis.
    """
    square = _square_error(x, reference)
    if square.ndim < 3:
        raise ValueError(f"trajectories have shape (B, T, *shape), got {tuple(x.shape)}")
    return square.transpose(0, 1).flatten(1).mean(1).sqrt()


def sample_error(x: Tensor, reference: Tensor) -> Tensor:
    """RMSE of each sample (B, *shape) over its pixels, shape (B,), float64.

    Raises:
        ValueError: if the shapes differ.
    """
    return _square_error(x, reference).flatten(1).mean(1).sqrt()


def _square_error(x: Tensor, reference: Tensor) -> Tensor:
    if x.shape != reference.shape or x.ndim < 2 or x.numel() == 0:
        raise ValueError(
            f"a path and its reference need one shape, not empty, got {tuple(x.shape)} and {tuple(reference.shape)}"
        )
    return (x.detach().to("cpu", torch.float64) - reference.detach().to("cpu", torch.float64)).square()
