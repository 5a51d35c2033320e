r"""A small U-Net for images, the backbone of the recipes: residual blocks told the time, attention where it is cheap.

Every block is called as `block(h, emb)` or, on the way up, `block(h, emb, skip)`, and does its own concatenation, so a
caller may change how many rows of the batch a block sees (`lift`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Block", "Stem", "UNet", "time_embedding"]


def time_embedding(t: Tensor, dim: int) -> Tensor:
    r"""Sines and cosines of $1000\, t$ at `dim` / 2 geometric frequencies from 1 to $10^{-4}$; (B,) to (B, dim)."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device, dtype=torch.float32) / (half - 1))
    angle = 1000 * t.float()[:, None] * frequencies
    return torch.cat([angle.sin(), angle.cos()], -1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(max(channels // 4, 1), 8, channels), channels, eps=1e-6)


class Stem(nn.Module):
    """The first convolution; a block of its own so that `lift` can run it once for all frames."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Head(nn.Module):
    """Normalisation, activation and the last convolution, initialised at zero."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.silu(self.norm(h)))


class Attention(nn.Module):
    """Self-attention over pixels with a residual; heads of `head_dim` channels."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.heads = max(channels // head_dim, 1)
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def forward(self, h: Tensor) -> Tensor:
        B, C, H, W = h.shape
        q, k, v = self.qkv(self.norm(h)).reshape(B, 3, self.heads, C // self.heads, H * W).transpose(-1, -2).unbind(1)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(B, C, H, W)
        return h + self.proj(attended)


class Block(nn.Module):
    r"""Residual block with the time as scale and shift; optional resampling, skip input and attention.

    GN, SiLU, [resample], conv, GN (1 + scale) + shift, SiLU, dropout, conv, + shortcut, [attention].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_dim: int,
        resample: str = "",
        attention: bool = False,
        head_dim: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.out_channels, self.resample, self.dropout = out_channels, resample, dropout
        self.norm1, self.norm2 = _norm(in_channels), _norm(out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.emb = nn.Linear(emb_dim, 2 * out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.attention = Attention(out_channels, head_dim) if attention else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, h: Tensor, emb: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            h = torch.cat([h, skip], 1)
        r = F.silu(self.norm1(h))
        if self.resample == "down":
            h, r = F.avg_pool2d(h, 2), F.avg_pool2d(r, 2)
        elif self.resample == "up":
            h, r = (F.interpolate(u, scale_factor=2.0, mode="nearest") for u in (h, r))
        scale, shift = self.emb(F.silu(emb))[..., None, None].chunk(2, 1)
        r = F.silu(self.norm2(self.conv1(r)) * (1 + scale) + shift)
        r = self.conv2(F.dropout(r, self.dropout, self.training))
        return self.attention(self.shortcut(h) + r)


class UNet(nn.Module):
    r"""U-Net for square images.

    Arguments:
        in_channels: Channels of the images.
        image_size: Height = width, divisible by 2 at every level but the last.
        channels: Width of each level, highest resolution first.
        blocks: Residual blocks per level (one more on the way up).
        attention: Levels (0 is the highest resolution) with self-attention.
        head_dim: Channels per attention head.
        dropout: Dropout probability.
        classes: Number of classes for a class-conditional network, or None.
        emb_dim: Width of the time embedding; four times the first level by default.

    Call: `(x, t, cond)` with x (B, C, H, W), t (B,) in [0, 1], cond (B,) integer labels; returns (B, C, H, W).

    Raises:
        ValueError: if the image size cannot be halved at every level.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 8,
        channels: Sequence[int] = (32, 64, 96),
        blocks: int = 1,
        attention: Sequence[int] = (1,),
        head_dim: int = 32,
        dropout: float = 0.0,
        classes: int | None = None,
        emb_dim: int | None = None,
    ) -> None:
        super().__init__()
        levels = len(channels)
        if image_size % 2 ** (levels - 1):
            raise ValueError(
                f"images of {image_size} pixels cannot be halved {levels - 1} times: use fewer levels in `channels`"
            )
        self.config = {
            "in_channels": in_channels, "image_size": image_size, "channels": list(channels), "blocks": blocks,
            "attention": list(attention), "head_dim": head_dim, "dropout": dropout, "classes": classes,
            "emb_dim": emb_dim,
        }  # fmt: skip
        self.shape = (in_channels, image_size, image_size)
        dim = emb_dim or 4 * channels[0]
        self.emb_in = channels[0]
        self.emb = nn.Sequential(nn.Linear(channels[0], dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label = nn.Embedding(classes, dim) if classes else None

        def block(c_in: int, c_out: int, level: int, resample: str = "") -> Block:
            return Block(c_in, c_out, dim, resample, not resample and level in attention, head_dim, dropout)

        self.stem = Stem(in_channels, channels[0])
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        widths, width = [channels[0]], channels[0]
        for level, c in enumerate(channels):
            for _ in range(blocks):
                self.down.append(block(width, c, level))
                widths.append(width := c)
            if level < levels - 1:
                self.down.append(block(width, c, level, "down"))
                widths.append(c)
        self.mid = nn.ModuleList([block(width, width, levels - 1), block(width, width, levels - 1)])
        for level, c in reversed(list(enumerate(channels))):
            for _ in range(blocks + 1):
                self.up.append(block(width + widths.pop(), c, level))
                width = c
            if level > 0:
                self.up.append(block(c, c, level, "up"))
        self.head = Head(width, in_channels)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        emb = self.emb(time_embedding(t, self.emb_in).to(x.dtype))
        if self.label is not None:
            if cond is None:
                raise ValueError("this U-Net is class conditional: pass labels of shape (B,) as cond")
            emb = emb + self.label(cond)
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
