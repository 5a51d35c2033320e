"""Distances of two batches of samples, one number a sample: what a regression is measured in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsno.nets.features import load_feature_net

__all__ = ["Distance", "distance", "from_folder"]

Distance = Callable[[Tensor, Tensor], Tensor]

Features = Callable[[Tensor], Tensor | Sequence[Tensor]]


def distance(name: str = "l1", features: Features | None = None) -> Distance:
    r"""A distance of two image batches (N, *shape), one number per sample (N,).

    `l1` is $\mathrm{mean}|a - b|$, `l2` $\mathrm{mean}(a - b)^2$, `huber` the pseudo-Huber
    $\mathrm{mean}\,(\sqrt{(a - b)^2 + c^2} - c)$ with $c = 0.03$. With `features`, from images to one or more
    maps (N, C, h, w) (a module is frozen), `perceptual` is

    $$ d(a, b) = \sum_l \mathrm{mean}_{h, w} \sum_c \big(\hat\phi_l(a) - \hat\phi_l(b)\big)^2, \qquad
       \hat\phi = \phi / \|\phi\|_2 \text{ over channels}, $$

    the uncalibrated distance of the official code (there in VGG-16; Zhang et al., 2018, arXiv 1801.03924). Names joined
    by `+` are added, as in `l1+perceptual`.

    Raises:
        ValueError: for an unknown name, or `perceptual` without features.
    """
    parts = [_single(part, features) for part in name.split("+")]
    return parts[0] if len(parts) == 1 else lambda a, b: torch.stack([d(a, b) for d in parts]).sum(0)


def from_folder(name: str, folder: Path | None) -> Distance:
    """A distance by name; a perceptual one in the features of the network in `folder`, which goes where the images are.

    Raises:
        ValueError: for an unknown name, or if it needs features that are not there, or the other way round.
    """
    if folder is None:
        return distance(name)
    if "perceptual" not in name:
        raise ValueError(
            f"features are of a perceptual distance, and this one is {name}: name one (distance='l1+perceptual'), or "
            "leave them out"
        )
    net = load_feature_net(folder).requires_grad_(False)

    def maps(x: Tensor) -> list[Tensor]:
        if next(net.parameters()).device != x.device:
            net.to(x.device)
        return net.maps(x)

    return distance(name, maps)


def _single(name: str, features: Features | None) -> Distance:
    if name == "l1":
        return lambda a, b: (a - b).abs().flatten(1).mean(1)
    if name == "l2":
        return lambda a, b: (a - b).square().flatten(1).mean(1)
    if name == "huber":
        return lambda a, b: ((a - b).square() + 0.03**2).sqrt().sub(0.03).flatten(1).mean(1)
    if name == "perceptual":
        if features is None:
            raise ValueError(
                "the perceptual distance needs a feature network: distance('perceptual', net.maps), or features=FOLDER"
            )
        return _perceptual(features)
    raise ValueError(f"unknown distance {name!r}: expected l1, l2, huber, perceptual, or a sum such as l1+perceptual")


def _perceptual(features: Features) -> Distance:
    if isinstance(features, nn.Module):
        features.eval().requires_grad_(False)

    def normalised(x: Tensor) -> list[Tensor]:
        # Differences of nearly equal maps: in half precision nothing is left of them.
        with torch.autocast(x.device.type, enabled=False):
            maps = features(x.float())
        return [F.normalize(phi, dim=1, eps=1e-6) for phi in ([maps] if isinstance(maps, Tensor) else maps)]

    def d(a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            target = normalised(b)
        parts = [(u - v).square().sum(1).flatten(1).mean(1) for u, v in zip(normalised(a), target, strict=True)]
        return torch.stack(parts).sum(0)

    return d
