"""Features of images: the network, its name and checksum.

A distance between sets is a distance between *features*, so it means nothing without the network that computed them.
Here that network is always named: an `Extractor` carries a name and a checksum of its weights, and `extract` is the
only way from images in $[-1, 1]$ to features.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsno.checkpoint import tensor_sha
from dsno.data.samples import check_images
from dsno.denoise import evaluating
from dsno.nets.features import FeatureNet

__all__ = ["Extractor", "as_extractor", "class_accuracy", "classifier_of", "extract"]


@dataclass(frozen=True)
class Extractor:
    """A named network from images (B, C, H, W) in [-1, 1] to features (B, D)."""

    net: nn.Module
    name: str

    def __call__(self, x: Tensor) -> Tensor:
        features = self.net.features(x) if isinstance(self.net, FeatureNet) else self.net(x)
        return features.flatten(1)

    @property
    def sha(self) -> str:
        """SHA-256 over the names and values of the weights."""
        state = sorted(self.net.state_dict().items())
        return hashlib.sha256("".join(f"{k}:{tensor_sha(v)};" for k, v in state).encode()).hexdigest()


def as_extractor(net: nn.Module | Extractor, name: str | None = None) -> Extractor:
    """Name a network: its own name for a `FeatureNet`, else `name`, else the name of its class."""
    if isinstance(net, Extractor):
        return net
    return Extractor(net, name or (net.name if isinstance(net, FeatureNet) else type(net).__name__))


@torch.no_grad()
def extract(extractor: nn.Module | Extractor, images: Tensor, batch: int = 512) -> Tensor:
    """Features of an image set, (N, C, H, W) in [-1, 1] to (N, D), float64 on the host.

    The network runs in evaluation mode, on its own device and in its own dtype, and is left in the mode it was in.

    Raises:
        ValueError: if the images are not a usable set (`dsno.data.samples.check_images`) or a feature is not finite.
    """
    extractor = as_extractor(extractor)
    check_images(images, "the image set to extract features from")
    like = next(extractor.net.parameters(), images)
    with evaluating(extractor.net):
        features = torch.cat([extractor(part.to(like)).to("cpu", torch.float64) for part in images.split(batch)])
    if not bool(torch.isfinite(features).all()):
        raise ValueError(f"{extractor.name} gave features that are not finite: are its weights?")
    return features


def classifier_of(extractor: nn.Module | Extractor | None) -> FeatureNet:
    """The classifier that an extractor is.

    Raises:
        ValueError: if it is none.
    """
    net = extractor.net if isinstance(extractor, Extractor) else extractor
    if not isinstance(net, FeatureNet):
        raise ValueError(
            f"labels are told by a FeatureNet, and the extractor is a {type(net).__name__}: leave them out"
        )
    return net


@torch.no_grad()
def class_accuracy(net: FeatureNet, images: Tensor, labels: Tensor) -> float:
    """Share of images, (N, C, H, W) in [-1, 1], that a feature network, as the classifier that it is, takes for their
    `labels` (N,).

    Raises:
        ValueError: as `extract` does.
    """
    logits = net.head(extract(net, images).to(net.head.weight))
    return float((logits.argmax(1) == labels.to(logits.device)).double().mean())
