r"""The U-Net of progressive distillation and of the published DSNO models (`unet_iddpm`).

Salimans & Ho, 2022 (arXiv 2202.00512): residual blocks that resample inside, told the time as scale and shift;
attention at chosen resolutions and always in the middle. The network is told the noise level as the angle of its
log-SNR on the truncated cosine schedule, as sines and cosines of $1000\, u$,

$$ u = \tfrac{2}{\pi} \arctan e^{-\ell_t / 2} = \tfrac{2}{\pi} (a t + b), $$

which differs from $t$ by at most $3 \cdot 10^{-5}$. `CIFAR10` and `IMAGENET64` are the configurations of the paper
(Zheng et al., 2023, arXiv 2211.13449).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsno.condition import Cond, label_of
from dsno.nets.unet import Stem, time_embedding
from dsno.schedule import Cosine

__all__ = ["CIFAR10", "IMAGENET64", "Block", "Head", "IDDPMUNet", "published_blocks"]

CIFAR10: dict[str, Any] = {
    "image_size": 32,
    "channels": 256,
    "ch_mult": (1, 1, 1),
    "blocks": 3,
    "attention": (16, 8),
    "dropout": 0.2,
}
"""Of 60 million parameters, for images of 32 pixels."""

IMAGENET64: dict[str, Any] = {
    "image_size": 64,
    "channels": 192,
    "ch_mult": (1, 2, 3, 4),
    "blocks": 3,
    "attention": (32, 16, 8),
    "head_dim": 64,
    "dropout": 0.1,
    "classes": 1000,
}
"""Of 296 million parameters, for images of 64 pixels in 1000 classes."""

L = TypeVar("L", bound=nn.Linear | nn.Conv2d)


def _start(layer: L, scale: float = 1.0) -> L:
    """Uniform weights of variance `scale` over the mean of fan-in and fan-out, no bias."""
    nn.init.xavier_uniform_(layer.weight, gain=scale**0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Head(nn.Module):
    """Normalisation in 32 groups, activation and the last convolution, initialised at zero."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(channels, 32), channels, eps=1e-6)
        self.conv = _start(nn.Conv2d(channels, out_channels, 3, padding=1), 0)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.silu(self.norm(h)))


class Pointwise(nn.Linear):
    """A linear map over the channels of (B, C, H, W); where they lie last in memory, without a copy."""

    def forward(self, h: Tensor) -> Tensor:
        return super().forward(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Self-attention over pixels with a residual."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(math.gcd(channels, 32), channels, eps=1e-6)
        self.qkv = _start(Pointwise(channels, 3 * channels), 0.1)
        self.proj = _start(Pointwise(channels, channels), 0)

    def forward(self, h: Tensor) -> Tensor:
        B, C, H, W = h.shape
        tokens = self.qkv(self.norm(h)).permute(0, 2, 3, 1).reshape(B, H * W, 3, self.heads, C // self.heads)
        attended = F.scaled_dot_product_attention(*tokens.permute(2, 0, 3, 1, 4).unbind(0))
        return h + self.proj(attended.transpose(1, 2).reshape(B, H, W, C).permute(0, 3, 1, 2))


def _doubled(conv: nn.Conv2d, r: Tensor) -> Tensor:
    """`conv` of r at twice its resolution (nearest), in four ninths of the products.

    Where pixels repeat, weights that meet the same one add up: a transposed convolution with a kernel of such sums.
    """
    kernel = 4 * F.avg_pool2d(F.pad(conv.weight.flip(2, 3), (1, 1, 1, 1)), 2, stride=1)
    return F.conv_transpose2d(r, kernel.transpose(0, 1), conv.bias, stride=2, padding=1)


class Block(nn.Module):
    r"""Residual block told the time as scale and shift; optional resampling, skip input and attention.

    GN, SiLU, [resample], conv, GN (1 + scale) + shift, SiLU, dropout, conv, + shortcut, [attention].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_dim: int,
        resample: str = "",
        heads: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.out_channels, self.resample, self.dropout = out_channels, resample, dropout
        self.norm1 = nn.GroupNorm(min(in_channels // 4, 32), in_channels, eps=1e-6)
        self.norm2 = nn.GroupNorm(min(out_channels // 4, 32), out_channels, eps=1e-6)
        self.conv1 = _start(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.conv2 = _start(nn.Conv2d(out_channels, out_channels, 3, padding=1), 0)
        self.emb = _start(nn.Linear(emb_dim, 2 * out_channels))
        self.shortcut = (
            _start(Pointwise(in_channels, out_channels), 0.1) if in_channels != out_channels else nn.Identity()
        )
        self.attention = Attention(out_channels, heads) if heads else nn.Identity()

    def forward(self, h: Tensor, emb: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            h = torch.cat([h, skip], 1)
        r = F.silu(self.norm1(h))
        if self.resample == "down":
            h, r = F.avg_pool2d(h, 2), self.conv1(F.avg_pool2d(r, 2))
        elif self.resample == "up":
            h, r = F.interpolate(h, scale_factor=2.0, mode="nearest"), _doubled(self.conv1, r)
        else:
            r = self.conv1(r)
        scale, shift = self.emb(F.silu(emb))[..., None, None].chunk(2, 1)
        r = F.silu(torch.addcmul(shift, self.norm2(r), 1 + scale))
        r = self.conv2(F.dropout(r, self.dropout, self.training))
        return self.attention(self.shortcut(h) + r)


class IDDPMUNet(nn.Module):
    r"""The U-Net above, for square images.

    Arguments:
        in_channels: Channels of the images.
        image_size: Height = width in pixels, divisible by 2 at every level but the last.
        channels: Width of the first level; every level's is a multiple of 4, of 32 from 128 on.
        ch_mult: Width of each level in units of `channels`, highest resolution first.
        blocks: Residual blocks per level (one more on the way up).
        attention: Resolutions in pixels with self-attention; the middle has it always.
        heads: Attention heads.
        head_dim: Channels per attention head; overrides `heads`.
        dropout: Dropout probability.
        classes: Number of classes for a class-conditional network, or None.
        emb_dim: Width of the time embedding; four times `channels` by default.
        log_snr_min: $\ell_1$ of the schedule, a `Cosine`.
        log_snr_max: $\ell_0$ of the schedule.

    Call: `(x, t, cond)` with x (B, C, H, W), t (B,) in [0, 1], cond (B,) integer labels, bare or under `label`; returns
    (B, C, H, W).

    Raises:
        ValueError: if the image size cannot be halved at every level, or a width cannot be normalised in groups or
            split in heads.
    """

    blocks: tuple[type[nn.Module], ...] = (Stem, Block, Head)
    embedding = ("emb",)
    tokens: Mapping[str, tuple[int, ...]] = {}

    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 32,
        channels: int = 256,
        ch_mult: Sequence[int] = (1, 1, 1),
        blocks: int = 3,
        attention: Sequence[int] = (16, 8),
        heads: int = 1,
        head_dim: int | None = None,
        dropout: float = 0.0,
        classes: int | None = None,
        emb_dim: int | None = None,
        log_snr_min: float = -20.0,
        log_snr_max: float = 20.0,
    ) -> None:
        super().__init__()
        levels = len(ch_mult)
        if image_size % 2 ** (levels - 1):
            raise ValueError(
                f"images of {image_size} pixels cannot be halved {levels - 1} times: use fewer levels in `ch_mult`"
            )
        for width in (channels * m for m in ch_mult):
            groups, parts = 4 if width < 128 else 32, head_dim or heads
            if width % groups or width % parts:
                raise ValueError(
                    f"a level of {width} channels cannot be normalised in groups and split in heads: expected a "
                    f"multiple of {groups} and of {parts}"
                )
        self.config: dict[str, Any] = {
            "name": "IDDPMUNet",
            "in_channels": in_channels,
            "image_size": image_size,
            "channels": channels,
            "ch_mult": list(ch_mult),
            "blocks": blocks,
            "attention": list(attention),
            "heads": heads,
            "head_dim": head_dim,
            "dropout": dropout,
            "classes": classes,
            "emb_dim": emb_dim,
            "log_snr_min": log_snr_min,
            "log_snr_max": log_snr_max,
        }
        self.shape, self.classes = (in_channels, image_size, image_size), classes
        self.label_count = classes
        self.schedule = Cosine(log_snr_min, log_snr_max)
        dim = emb_dim or 4 * channels
        self.emb_in = channels
        self.emb = nn.Sequential(_start(nn.Linear(channels, dim)), nn.SiLU(), _start(nn.Linear(dim, dim)))
        # A linear map of the one-hot label, bias included, as published.
        self.label = _start(nn.Linear(classes, dim)) if classes else None

        def block(c_in: int, c_out: int, attends: bool = False, resample: str = "") -> Block:
            split = c_out // head_dim if head_dim else heads
            return Block(c_in, c_out, dim, resample, split if attends else 0, dropout)

        self.stem = Stem(in_channels, channels)
        self.down, self.mid, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        sizes = [(channels * m, image_size >> level in attention) for level, m in enumerate(ch_mult)]
        widths, width = [channels], channels
        for level, (c, attends) in enumerate(sizes):
            for _ in range(blocks):
                self.down.append(block(width, c, attends))
                widths.append(width := c)
            if level < levels - 1:
                self.down.append(block(c, c, resample="down"))
                widths.append(c)
        self.mid.extend([block(width, width, attends=True), block(width, width)])
        for level, (c, attends) in reversed(list(enumerate(sizes))):
            for _ in range(blocks + 1):
                self.up.append(block(width + widths.pop(), c, attends))
                width = c
            if level > 0:
                self.up.append(block(c, c, resample="up"))
        self.head = Head(width, in_channels)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        u = (self.schedule.a * t + self.schedule.b) / (math.pi / 2)
        emb = self.emb(time_embedding(u, self.emb_in).to(x.dtype))
        if self.label is None and cond is not None:
            raise ValueError("this U-Net is told nothing, and would not read a condition: leave it out")
        if self.label is not None:
            if (label := label_of(cond)) is None:
                raise ValueError("this U-Net is class conditional: pass labels of shape (B,) as cond")
            emb = emb + F.embedding(label, self.label.weight.T) + self.label.bias
        h = self.stem(x)
        skips = [h]
        for block in self.down:
            h = block(h, emb)
            skips.append(h)
        for block in self.mid:
            h = block(h, emb)
        for block in self.up:
            h = block(h, emb) if block.resample else block(h, emb, skips.pop())
        return self.head(h)


def published_blocks(net: IDDPMUNet) -> list[str]:
    """The names of the blocks behind which the paper puts a temporal layer.

    All that do not resample, but only the first of the two in the middle: 22 in `CIFAR10`, 29 in `IMAGENET64`.
    """
    return [n for n, m in net.named_modules() if isinstance(m, Block) and not m.resample and n != "mid.1"]
