r"""A small U-Net for signals, images and volumes, the backbone of the recipes.

Residual blocks are told the time as scale and shift (Dhariwal & Nichol, 2021, arXiv 2105.05233); attention is where
it is cheap; what starts at zero makes a fresh network answer zero.

Features are (B, C, *spatial) with one to three spatial directions; convolutions and pools follow their number, nothing
else depends on it. Every block is called as `block(h, emb)` or, on the way up, `block(h, emb, skip)`, and does its own
concatenation, so a caller may change how many rows of the batch a block sees (`lift`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsno.condition import Cond, label_of

__all__ = [
    "Block",
    "Head",
    "PaddingMode",
    "Stem",
    "UNet",
    "depth_to_space",
    "space_to_depth",
    "time_embedding",
    "with_classes",
]

PaddingMode = Literal["zeros", "circular", "reflect", "replicate"]

_CONV: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def time_embedding(t: Tensor, dim: int) -> Tensor:
    r"""Sines and cosines of $1000\, t$ at `dim` / 2 geometric frequencies from 1 to $10^{-4}$; (B,) to (B, dim)."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device, dtype=torch.float32) / (half - 1))
    angle = 1000 * t.float()[:, None] * frequencies
    return torch.cat([angle.sin(), angle.cos()], -1)


def space_to_depth(x: Tensor, patch: int) -> Tensor:
    """(B, C, *spatial) to (B, C patch^rank, *(spatial / patch)): every cube of side `patch` becomes channels."""
    if patch == 1:
        return x
    rank = x.ndim - 2
    cells = [n for size in x.shape[2:] for n in (size // patch, patch)]
    outer, inner = [2 + 2 * i for i in range(rank)], [3 + 2 * i for i in range(rank)]
    return x.reshape(*x.shape[:2], *cells).permute(0, 1, *inner, *outer).flatten(1, 1 + rank)


def depth_to_space(x: Tensor, patch: int) -> Tensor:
    """The inverse of `space_to_depth`: (B, C patch^rank, *spatial) to (B, C, *(spatial * patch))."""
    if patch == 1:
        return x
    rank = x.ndim - 2
    spatial = [size * patch for size in x.shape[2:]]
    order = [d for i in range(rank) for d in (2 + rank + i, 2 + i)]
    x = x.unflatten(1, (-1, *[patch] * rank)).permute(0, 1, *order)
    return x.reshape(*x.shape[:2], *spatial)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(max(channels // 4, 1), 8, channels), channels, eps=1e-6)


def _zero(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Stem(nn.Module):
    """The first convolution; a block of its own so that `lift` can run it once for all frames."""

    def __init__(self, in_channels: int, out_channels: int, rank: int = 2, padding_mode: PaddingMode = "zeros") -> None:
        super().__init__()
        self.conv = _CONV[rank](in_channels, out_channels, 3, padding=1, padding_mode=padding_mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Head(nn.Module):
    """Normalisation, activation and the last convolution, initialised at zero."""

    def __init__(self, channels: int, out_channels: int, rank: int = 2, padding_mode: PaddingMode = "zeros") -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.conv = _zero(_CONV[rank](channels, out_channels, 3, padding=1, padding_mode=padding_mode))

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.silu(self.norm(h)))


class Attention(nn.Module):
    """Self-attention over positions with a residual; heads of `head_dim` channels."""

    def __init__(self, channels: int, head_dim: int, rank: int = 2) -> None:
        super().__init__()
        self.heads = max(channels // head_dim, 1)
        self.norm = _norm(channels)
        self.qkv = _CONV[rank](channels, 3 * channels, 1)
        self.proj = _zero(_CONV[rank](channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        B, C = h.shape[:2]
        parts = self.qkv(self.norm(h)).reshape(B, 3, self.heads, C // self.heads, -1)
        q, k, v = parts.transpose(-1, -2).unbind(1)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(h.shape)
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
        rank: int = 2,
        padding_mode: PaddingMode = "zeros",
    ) -> None:
        super().__init__()
        conv = _CONV[rank]
        self.out_channels, self.resample, self.dropout = out_channels, resample, dropout
        self.norm1, self.norm2 = _norm(in_channels), _norm(out_channels)
        self.conv1 = conv(in_channels, out_channels, 3, padding=1, padding_mode=padding_mode)
        self.conv2 = _zero(conv(out_channels, out_channels, 3, padding=1, padding_mode=padding_mode))
        self.emb = nn.Linear(emb_dim, 2 * out_channels)
        self.shortcut = conv(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.attention = Attention(out_channels, head_dim, rank) if attention else nn.Identity()

    def forward(self, h: Tensor, emb: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            h = torch.cat([h, skip], 1)
        r = F.silu(self.norm1(h))
        if self.resample == "down":
            pool = _POOL[h.ndim - 2]
            h, r = pool(h, 2), pool(r, 2)
        elif self.resample == "up":
            h, r = (F.interpolate(u, scale_factor=2.0, mode="nearest") for u in (h, r))
        scale, shift = self.emb(F.silu(emb))[(..., *[None] * (r.ndim - 2))].chunk(2, 1)
        r = F.silu(self.norm2(self.conv1(r)) * (1 + scale) + shift)
        r = self.conv2(F.dropout(r, self.dropout, self.training))
        return self.attention(self.shortcut(h) + r)


class UNet(nn.Module):
    r"""U-Net for signals, images and volumes; a `Backbone`.

    Arguments:
        in_channels: Channels of the samples.
        image_size: The spatial shape, one to three lengths; a single number is the height and width of a square image.
            Every length is divisible by `patch`, and then by 2 at every level but the last.
        channels: Width of each level, highest resolution first.
        blocks: Residual blocks per level (one more on the way up).
        attention: Levels (0 is the highest resolution) with self-attention.
        head_dim: Channels per attention head.
        dropout: Dropout probability.
        classes: Number of classes for a class-conditional network, or None.
        emb_dim: Width of the time embedding; four times the first level by default.
        patch: Side of the cubes of pixels that the network sees as one position with more channels: an exact
            rearrangement, and about patch^rank times less work.
        padding_mode: What the convolutions see beyond the border; `circular` for periodic data.
        null: Know one more label, `classes`, that stands for none: what guidance subtracts.

    Call: `(x, t, cond)` with x (B, C, *spatial), t (B,) in [0, 1], cond (B,) integer labels, bare or under `label`;
        returns
    (B, C, *spatial).

    Raises:
        ValueError: for another number of lengths, or one that cannot be cut into patches and halved at every level.
    """

    blocks: tuple[type[nn.Module], ...] = (Stem, Block, Head)
    embedding = ("emb",)
    tokens: Mapping[str, tuple[int, ...]] = {}

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int | Sequence[int] = 8,
        channels: Sequence[int] = (32, 64, 96),
        blocks: int = 1,
        attention: Sequence[int] = (1,),
        head_dim: int = 32,
        dropout: float = 0.0,
        classes: int | None = None,
        emb_dim: int | None = None,
        patch: int = 1,
        padding_mode: PaddingMode = "zeros",
        null: bool = False,
    ) -> None:
        super().__init__()
        levels = len(channels)
        spatial = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        rank = len(spatial)
        if rank not in _CONV:
            raise ValueError(f"a UNet takes samples of one to three spatial directions, got the lengths {spatial}")
        if padding_mode not in ("zeros", "circular", "reflect", "replicate"):
            raise ValueError(f"unknown padding_mode {padding_mode!r}: expected zeros, circular, reflect or replicate")
        for size in spatial:
            if patch < 1 or size % patch:
                raise ValueError(
                    f"{size} pixels cannot be cut into patches of {patch}: choose a `patch` that divides it"
                )
            if size // patch % 2 ** (levels - 1):
                raise ValueError(
                    f"images of {size // patch} pixels cannot be halved {levels - 1} times: "
                    "use fewer levels in `channels`"
                )
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "image_size": image_size if isinstance(image_size, int) else list(spatial),
            "channels": list(channels),
            "blocks": blocks,
            "attention": list(attention),
            "head_dim": head_dim,
            "dropout": dropout,
            "classes": classes,
            "emb_dim": emb_dim,
            "patch": patch,
            "padding_mode": padding_mode,
            "null": null,
        }
        self.shape, self.classes, self.patch = (in_channels, *spatial), classes, patch
        dim = emb_dim or 4 * channels[0]
        self.emb_in = channels[0]
        self.emb = nn.Sequential(nn.Linear(channels[0], dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label_count = classes + null if classes else None
        self.label = nn.Embedding(classes + null, dim) if classes else None

        def block(c_in: int, c_out: int, level: int, resample: str = "") -> Block:
            attend = not resample and level in attention
            return Block(c_in, c_out, dim, resample, attend, head_dim, dropout, rank, padding_mode)

        cell = in_channels * patch**rank
        self.stem = Stem(cell, channels[0], rank, padding_mode)
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
        self.head = Head(width, cell, rank, padding_mode)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        emb = self.emb(time_embedding(t, self.emb_in).to(x.dtype))
        if self.label is None and cond is not None:
            raise ValueError("this U-Net is told nothing, and would not read a condition: leave it out")
        if self.label is not None:
            if (label := label_of(cond)) is None:
                raise ValueError("this U-Net is class conditional: pass labels of shape (B,) as cond")
            emb = emb + self.label(label)
        # Outside the blocks: row by row it is the same for `lift`, and all blocks count positions alike.
        h = self.stem(space_to_depth(x, self.patch))
        skips = [h]
        for block in self.down:
            h = block(h, emb)
            skips.append(h)
        for block in self.mid:
            h = block(h, emb)
        for block in self.up:
            h = block(h, emb) if block.resample else block(h, emb, skips.pop())
        return depth_to_space(self.head(h), self.patch)


def with_classes(net: UNet, classes: int) -> UNet:
    """The same network told one of some classes, which change nothing yet: their embedding is zero.

    Raises:
        ValueError: for one that is told classes already.
    """
    if net.classes is not None:
        raise ValueError(f"this U-Net is told one of {net.classes} classes already")
    made = UNet(**{**net.config, "classes": classes})
    state = net.state_dict()
    made.load_state_dict({**state, "label.weight": torch.zeros_like(made.state_dict()["label.weight"])})
    return made.to(next(net.parameters()).device)
