"""A small classifier whose features a quality or a perceptual distance is measured in, and its files.

Distances like FID are distances of features, usually of a network trained on photographs of 299 pixels. On digits of
8 pixels such features say little, so the recipes train a network of this kind on the data itself; what it was trained
on is part of its name, and with it of every result.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch.nn.functional as nnf
from torch import Tensor, nn

from dsno.checkpoint import CONFIG, load_net, read_json, save_model

__all__ = ["FeatureNet", "load_feature_net", "made_of", "save_feature_net", "tells_classes"]


class FeatureNet(nn.Module):
    r"""A small convolutional classifier whose penultimate layer is the feature space.

    Three 3x3 convolutions (width, 2 width, 4 width) with group norm, SiLU and 2x2 mean pooling after the first two, the
    rest pooled to 2x2, one linear layer to the features, one to the logits. Nothing depends on the batch.

    Arguments:
        name: What its distances are named after, such as `digits_cnn`.
        channels: 1 (grey) or 3 (RGB).
        classes: Number of logits.
        width: Channels of the first convolution, a multiple of 4.
        dim: Number of features, D.

    Raises:
        ValueError: for impossible sizes.
    """

    def __init__(self, name: str, channels: int = 1, classes: int = 10, width: int = 16, dim: int = 64) -> None:
        super().__init__()
        if channels not in (1, 3) or classes < 2 or dim < 1 or width < 4 or width % 4:
            raise ValueError(
                "a feature network needs 1 or 3 channels, 2 or more classes, a width that is a multiple of 4 and "
                f"1 or more features, got {channels}, {classes}, {width} and {dim}"
            )
        self.name, self.channels = name, channels
        self.config: dict[str, object] = {
            "name": name,
            "channels": channels,
            "classes": classes,
            "width": width,
            "dim": dim,
        }
        widths = [channels, width, 2 * width, 4 * width]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(4, o) for o in widths[1:])
        self.penultimate = nn.Linear(4 * 4 * width, dim)
        self.head = nn.Linear(dim, classes)

    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1], H and W at least 8, to features (B, D).

        Raises:
            ValueError: for another number of channels, or images smaller than 8x8.
        """
        self.check(x)
        return nnf.silu(self.penultimate(nnf.adaptive_avg_pool2d(self.maps(x)[-1], 2).flatten(1)))

    def maps(self, x: Tensor) -> list[Tensor]:
        """What a perceptual distance compares: the feature maps after each convolution, H and W at least 4.

        (B, width, H, W), (B, 2 width, H/2, W/2) and (B, 4 width, H/4, W/4), sizes rounded down.

        Raises:
            ValueError: for another number of channels, or smaller images.
        """
        self.check(x, 4)
        maps: list[Tensor] = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            maps.append(x := nnf.silu(norm(conv(nnf.avg_pool2d(x, 2) if maps else x))))
        return maps

    def check(self, x: Tensor, least: int = 8) -> None:
        """Make sure that there are features of images `x`.

        Raises:
            ValueError: for another number of channels, or images smaller than `least` pixels a side.
        """
        if x.ndim != 4 or x.shape[1] != self.channels or min(x.shape[2:]) < least:
            raise ValueError(
                f"{self.name} takes images (B, {self.channels}, H, W) of {least}x{least} or more, got {tuple(x.shape)}"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to logits (B, classes)."""
        return self.head(self.features(x))


def save_feature_net(folder: Path | str, net: FeatureNet, **notes: object) -> Path:
    """Write `config.json` and `model.safetensors`; `notes` (data, accuracy) go into the former."""
    return save_model(folder, {"type": "features", "net": net.config, "notes": notes}, net)


def made_of(folder: Path | str) -> str | None:
    """The name of the data that a feature network was trained on, as its folder notes it; None if there is none."""
    return _notes(folder).get("data")


def tells_classes(folder: Path | str, data: str) -> bool:
    """Whether a feature network was trained to tell the classes of the data of that name, as its folder notes it."""
    notes = _notes(folder)
    return notes.get("data") == data and notes.get("labelled", True)


def _notes(folder: Path | str) -> dict[str, Any]:
    file = Path(folder) / CONFIG
    config = read_json(file) if file.is_file() else None
    notes = config.get("notes") if isinstance(config, dict) and config.get("type") == "features" else None
    return notes if isinstance(notes, dict) else {}


def load_feature_net(folder: Path | str) -> FeatureNet:
    """Read what `save_feature_net` wrote.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the folder holds something else, or damaged or foreign weights.
    """
    return load_net(folder, "features", FeatureNet, "features")
