r"""A classifier that is told how noisy its input is, and its files.

What can be read in $x_t = \alpha_t x_0 + \sigma_t \epsilon$ of a class $y$ depends on the share of the data in it,
$c = \alpha_t / n_t$ with $n_t^2 = \alpha_t^2 + \sigma_t^2$, and nothing at all at $c = 0$. So the logits are

$$ \log p(y \mid x_t) = \mathrm{log\,softmax}_y \big( b + c \, f(x_t / n_t, \theta_t) \big), \qquad
   \theta_t = \arctan(\sigma_t / \alpha_t) = \arccos c, $$

whose gradient vanishes as $c$ does, as that of the true posterior. The network sees a state of unit scale and the
angle, and no schedule: a classifier that was trained once serves teachers of every path, VP, VE or straight. At
$\theta = 0$ it is an ordinary classifier of clean samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsno.checkpoint import load_net, save_model
from dsno.denoise import each_row
from dsno.nets.unet import Block, Stem, space_to_depth, time_embedding

__all__ = ["Classifier", "load_classifier", "save_classifier"]


class Classifier(nn.Module):
    r"""The way down of a U-Net and a linear layer on the mean over positions: $b + c \, f(x_t / n_t, \theta_t)$.

    Arguments:
        in_channels: Channels of the samples.
        image_size: The spatial shape, one to three lengths; a single number is that of a square image.
        classes: Number of classes.
        channels: Width of each level; each but the first halves the positions.
        patch: Side of the cubes that are seen as one position with more channels.
        noisy: Whether it was trained on noised samples, of every level, or on clean ones alone.

    Call: `(x_t, alpha_t, sigma_t)` with x_t (B, *shape) and the levels numbers or tensors of B numbers; returns logits
    (B, classes).

    Raises:
        ValueError: for fewer than two classes or channels, or lengths that cannot be cut into patches and halved at
            every level.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int | Sequence[int] = 8,
        classes: int = 10,
        channels: Sequence[int] = (16, 32, 64),
        patch: int = 1,
        noisy: bool = True,
    ) -> None:
        super().__init__()
        spatial = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        rank, cut = len(spatial), patch * 2 ** (len(channels) - 1)
        if classes < 2 or min(channels, default=0) < 2 or patch < 1:
            raise ValueError(
                f"a classifier needs 2 or more classes, levels of 2 or more channels and a patch of 1 or more, got "
                f"{classes}, {tuple(channels)} and {patch}"
            )
        if any(size % cut for size in spatial):
            raise ValueError(
                f"samples of {spatial} cannot be cut into patches of {patch} and halved {len(channels) - 1} times: use "
                "fewer levels in `channels`"
            )
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "image_size": image_size if isinstance(image_size, int) else list(spatial),
            "classes": classes,
            "channels": list(channels),
            "patch": patch,
            "noisy": noisy,
        }
        self.shape, self.classes, self.patch, self.noisy = (in_channels, *spatial), classes, patch, noisy
        dim = 2 * channels[0]
        self.emb_in = dim
        self.emb = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.stem = Stem(in_channels * patch**rank, channels[0], rank)
        widths = [channels[0], *channels]
        self.down = nn.ModuleList(
            Block(c_in, c_out, dim, "down" if level else "", rank=rank)
            for level, (c_in, c_out) in enumerate(zip(widths, channels))  # noqa: B905
        )
        self.norm = nn.GroupNorm(math.gcd(8, channels[-1]), channels[-1])
        self.head = nn.Linear(channels[-1], classes, bias=False)
        self.prior = nn.Parameter(torch.zeros(classes))

    def forward(self, x_t: Tensor, alpha_t: Tensor | float = 1.0, sigma_t: Tensor | float = 0.0) -> Tensor:
        alpha, sigma = (
            each_row(level if isinstance(level, float) else level.reshape(-1), x_t) for level in (alpha_t, sigma_t)
        )
        n = torch.hypot(alpha, sigma)
        c = alpha / n
        emb = self.emb(time_embedding(torch.atan2(sigma, alpha) / (math.pi / 2), self.emb_in).to(x_t.dtype))
        h = self.stem(space_to_depth(x_t / n.to(x_t.dtype)[(..., *[None] * (x_t.ndim - 1))], self.patch))
        for block in self.down:
            h = block(h, emb)
        f = self.head(F.silu(self.norm(h)).flatten(2).mean(-1))
        return self.prior + c.to(f.dtype)[:, None] * f


def save_classifier(folder: Path | str, net: Classifier, **notes: object) -> Path:
    """Write `config.json` and `model.safetensors`; `notes` (data, accuracy) go into the former."""
    return save_model(folder, {"type": "classifier", "net": net.config, "notes": notes}, net)


def load_classifier(folder: Path | str) -> Classifier:
    """Read what `save_classifier` wrote.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the folder holds something else, or damaged or foreign weights.
    """
    return load_net(folder, "classifier", Classifier, "a classifier")
