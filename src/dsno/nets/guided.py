r"""The U-Net of guided diffusion, which published bridges are: I2SB's, DDBM's and DBIM's.

Its modules bear the names that its checkpoints have, so that those are its weights as they are. A network of a bridge
may be shown $x_T$ beside the state, as channels; what it is told of the time is in its project's own units,

| `clock` | told at t | of |
|---|---|---|
| `steps` | $1000 \, t$ | I2SB |
| `log` | $250 \log (\tau t)$, $\tau$ the `span` of time: 1 of DDBM-VP, $\sigma_{\max}$ of DDBM-VE | DDBM, DBIM |

Source: Dhariwal & Nichol, 2021 (arXiv 2105.05233).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsno.condition import Cond
from dsno.nets.paired import start_like

__all__ = ["GuidedUNet"]


class Conv(nn.Sequential):
    """The first block: a convolution under the name `0`."""

    def forward(self, h: Tensor, emb: Tensor | None = None) -> Tensor:
        return super().forward(h)


class Residual(nn.Module):
    """Residual block told the time as scale and shift, or by a sum; it may resample on the way."""

    def __init__(self, channels: int, out: int, emb: int, dropout: float, scale_shift: bool, resample: str) -> None:
        super().__init__()
        self.resample, self.scale_shift, self.out_channels = resample, scale_shift, out
        self.in_layers = nn.Sequential(_norm(channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * out if scale_shift else out))
        self.out_layers = nn.Sequential(_norm(out), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(out, out, 3, padding=1))
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        r = self.in_layers[:-1](h)
        if self.resample:
            h, r = (_resampled(x, self.resample) for x in (h, r))
        r, told = self.in_layers[-1](r), self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, 1)
            r = self.out_layers[0](r) * (1 + scale) + shift
            return self.skip_connection(h) + self.out_layers[1:](r)
        return self.skip_connection(h) + self.out_layers(r + told)


class Attention(nn.Module):
    """Self-attention over pixels with a residual; `legacy` lays heads before queries, keys and values in memory."""

    def __init__(self, channels: int, heads: int, legacy: bool) -> None:
        super().__init__()
        self.heads, self.legacy = heads, legacy
        self.norm = _norm(channels)
        self.qkv, self.proj_out = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, h: Tensor, emb: Tensor | None = None) -> Tensor:
        B, C, *spatial = h.shape
        flat = self.qkv(self.norm(h).flatten(2))
        if self.legacy:
            q, k, v = flat.reshape(B, self.heads, 3, C // self.heads, -1).transpose(-1, -2).unbind(2)
        else:
            q, k, v = flat.reshape(B, 3, self.heads, C // self.heads, -1).transpose(-1, -2).unbind(1)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(B, C, -1)
        return h + self.proj_out(attended).reshape(B, C, *spatial)


class Resample(nn.Module):
    """A change of resolution with a convolution, `op` on the way down and `conv` on the way up."""

    def __init__(self, channels: int, resample: str) -> None:
        super().__init__()
        self.resample = resample
        if resample == "down":
            self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        else:
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor, emb: Tensor | None = None) -> Tensor:
        return self.op(h) if self.resample == "down" else self.conv(_resampled(h, "up"))


class Level(nn.ModuleList):
    """Blocks that run one after another, each told the time."""

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        for block in self:
            h = block(h, emb)
        return h


class GuidedUNet(nn.Module):
    r"""A U-Net of guided diffusion as the network of a bridge; a `Backbone`.

    Arguments:
        image_size: Side of the pictures.
        channels: Width of the first level.
        in_channels: C of the pictures.
        out_channels: Of its output, of which the first C count.
        ch_mult: Widths of the levels, in `channels`.
        blocks: Residual blocks of a level.
        attention: Resolutions with attention.
        head_dim: Channels of a head of attention.
        dropout: Of the residual blocks.
        scale_shift: Whether the time scales, too.
        updown: Whether residual blocks resample; plain convolutions otherwise.
        legacy: The older layout of attention.
        paired: Whether it is shown $x_T$.
        clock: What it is told of the time.
        span: Of `log`.

    Call: `(x, t, cond)` with x (B, C, H, W), t (B,) in [0, 1] and, if `paired`, $x_T$ under `start` of the condition.

    Raises:
        ValueError: when called without $x_T$ if it is shown it.
    """

    blocks: tuple[type[nn.Module], ...] = (Conv, Residual, Attention, Resample)
    embedding = ("time_embed",)
    classes: int | None = None

    def __init__(
        self,
        image_size: int,
        channels: int,
        in_channels: int = 3,
        out_channels: int = 3,
        ch_mult: Sequence[float] = (1, 1, 2, 2, 4, 4),
        blocks: int = 2,
        attention: Sequence[int] = (32, 16, 8),
        head_dim: int = 64,
        dropout: float = 0.0,
        scale_shift: bool = True,
        updown: bool = True,
        legacy: bool = True,
        paired: bool = True,
        clock: Literal["steps", "log"] = "log",
        span: float = 1.0,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "name": "GuidedUNet",
            "image_size": image_size,
            "channels": channels,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "ch_mult": list(ch_mult),
            "blocks": blocks,
            "attention": list(attention),
            "head_dim": head_dim,
            "dropout": dropout,
            "scale_shift": scale_shift,
            "updown": updown,
            "legacy": legacy,
            "paired": paired,
            "clock": clock,
            "span": span,
        }
        self.shape, self.channels, self.paired = (in_channels, image_size, image_size), channels, paired
        self.clock, self.span = clock, span
        self.tokens: Mapping[str, tuple[int, ...]] = {"start": self.shape} if paired else {}
        dim = 4 * channels
        self.time_embed = nn.Sequential(nn.Linear(channels, dim), nn.SiLU(), nn.Linear(dim, dim))

        def residual(width: int, out: int, resample: str = "") -> nn.Module:
            return Residual(width, out, dim, dropout, scale_shift, resample)

        def level(width: int, out: int, side: int) -> list[nn.Module]:
            attend = [Attention(out, max(1, out // head_dim), legacy)] if side in attention else []
            return [residual(width, out), *attend]

        def change(width: int, resample: str) -> nn.Module:
            return residual(width, width, resample) if updown else Resample(width, resample)

        widths = [round(m * channels) for m in ch_mult]
        side, width = image_size, widths[0]
        self.input_blocks = nn.ModuleList([Conv(nn.Conv2d(in_channels * (1 + paired), width, 3, padding=1))])
        held = [width]
        for n, out in enumerate(widths):
            for _ in range(blocks):
                self.input_blocks.append(Level(level(width, out, side)))
                width = out
                held.append(width)
            if n + 1 < len(widths):
                self.input_blocks.append(Level([change(width, "down")]))
                held.append(width)
                side //= 2
        heads = max(1, width // head_dim)
        self.middle_block = Level([residual(width, width), Attention(width, heads, legacy), residual(width, width)])
        self.output_blocks = nn.ModuleList()
        for n, out in reversed([*enumerate(widths)]):
            for k in range(blocks + 1):
                made = level(width + held.pop(), out, side)
                width = out
                if n and k == blocks:
                    made.append(change(width, "up"))
                    side *= 2
                self.output_blocks.append(Level(made))
        self.out = nn.Sequential(_norm(width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1))

    def told(self, t: Tensor) -> Tensor:
        """The time in the network's own units, of the shape of `t`."""
        if self.clock == "steps":
            return 1000 * t
        return 250 * (self.span * t).clamp_min(torch.finfo(t.dtype).tiny).log()

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        h = torch.cat([x, start_like(x, cond)], 1) if self.paired else x
        half = self.channels // 2
        rate = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device, dtype=t.dtype) / half)
        angle = self.told(t)[:, None] * rate
        emb = self.time_embed(torch.cat([angle.cos(), angle.sin()], 1).to(x.dtype))
        held = []
        for block in self.input_blocks:
            h = block(h, emb)
            held.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, held.pop()], 1), emb)
        return self.out(h)[:, : self.shape[0]]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels)


def _resampled(h: Tensor, resample: str) -> Tensor:
    return F.avg_pool2d(h, 2) if resample == "down" else F.interpolate(h, scale_factor=2, mode="nearest")
