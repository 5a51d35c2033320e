"""What the U-Nets of EDM and EDM2 share: the walk down an encoder and up a decoder, and small pieces of their blocks.

A network is a pair of chains, an encoder whose every output is kept and a decoder that takes them back in reverse. As
in `unet`, a block is called as `block(h, emb)` or `block(h, emb, skip)` and everything between two blocks is row by
row, so that `lift` may change how many rows of the batch each of them sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Frequencies", "Resample", "attend", "down_and_up", "encoder_and_decoder", "filtered", "heads_apart"]

Resample = Literal["", "down", "up"]
"""What a block does to the image: nothing, halve it, or double it."""


def encoder_and_decoder(
    resolution: int,
    stem: nn.Module,
    width: int,
    widths: Sequence[int],
    num_blocks: int,
    make: Callable[[int, int, int, str, Resample], nn.Module],
    beside: Callable[[str, int, int, int], Mapping[str, nn.Module]] = lambda chain, level, size, width: {},
) -> tuple[nn.ModuleDict, nn.ModuleDict, int]:
    """Encoder and decoder of a U-Net in the order they run, under their published names; and the last width.

    Arguments:
        resolution: Height and width of the images.
        stem: The first convolution.
        width: Its channels.
        widths: Channels of every level, highest resolution first.
        num_blocks: Blocks per level; one more in the decoder.
        make: `make(channels_in, channels_out, size, name, resample)` makes a block, where the channels of a skip
            connection count as input.
        beside: `beside(chain, level, size, width)` makes what follows the resampling (`enc`) or the last block (`dec`)
            of a level, by name.
    """
    enc, dec = nn.ModuleDict({f"{resolution}x{resolution}_conv": stem}), nn.ModuleDict()
    kept = [width]
    for level, target in enumerate(widths):
        size = resolution >> level
        if level:
            enc[f"{size}x{size}_down"] = make(width, width, size, "down", "down")
            enc.update(beside("enc", level, size, width))
            kept.append(width)
        for i in range(num_blocks):
            enc[f"{size}x{size}_block{i}"] = make(width, target, size, f"enc_block{i}", "")
            kept.append(width := target)
    for level, target in reversed(list(enumerate(widths))):
        size = resolution >> level
        if level == len(widths) - 1:
            for name in ("in0", "in1"):
                dec[f"{size}x{size}_{name}"] = make(width, width, size, name, "")
        else:
            dec[f"{size}x{size}_up"] = make(width, width, size, "up", "up")
        for i in range(num_blocks + 1):
            dec[f"{size}x{size}_block{i}"] = make(width + kept.pop(), target, size, f"dec_block{i}", "")
            width = target
        dec.update(beside("dec", level, size, width))
    return enc, dec, width


def down_and_up(enc: nn.ModuleDict, dec: nn.ModuleDict, x: Tensor, emb: Tensor) -> Tensor:
    """The walk where nothing runs beside the blocks: images (B, C, H, W) and embedding (B, D) to the last features."""
    kept: list[Tensor] = []
    for name, block in enc.items():
        x = block(x) if name.endswith("conv") else block(x, emb)
        kept.append(x)
    for name, block in dec.items():
        x = block(x, emb, kept.pop()) if "block" in name else block(x, emb)
    return x


def filtered(x: Tensor, taps: Tensor, resample: Resample, pad: int | None = None) -> Tensor:
    """Images (B, C, H, W) halved (filtered, every second pixel kept) or doubled (the transpose of that).

    Arguments:
        x: (B, C, H, W).
        taps: The filter, (1, 1, n, n) of sum 1, n even.
        resample: `down` or `up`.
        pad: Pixels of zeros around the image; None for those that give exactly half or twice the sides.
    """
    pad = (taps.shape[-1] - 1) // 2 if pad is None else pad
    each = taps.to(x.dtype).expand(x.shape[1], -1, -1, -1)
    if resample == "down":
        return F.conv2d(x, each, stride=2, padding=pad, groups=x.shape[1])
    return F.conv_transpose2d(x, 4 * each, stride=2, padding=pad, groups=x.shape[1])


def heads_apart(qkv: Tensor, heads: int) -> Tensor:
    """Queries, keys and values of every head, (3, B, heads, H W, C / heads) from (B, 3 C, H, W).

    The three lie side by side for every channel.
    """
    return qkv.reshape(qkv.shape[0], heads, -1, 3, qkv.shape[2] * qkv.shape[3]).permute(3, 0, 1, 4, 2)


def attend(qkv: Tensor, shape: torch.Size) -> Tensor:
    """Self-attention over pixels: `heads_apart` (3, B, heads, H W, C / heads) to features of `shape` (B, C, H, W)."""
    q, k, v = qkv
    return F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(shape)


class Frequencies(nn.Module):
    """Random features of the noise label, whose buffers keep their precision when the network is cast to half of it.

    Frequencies of hundreds, rounded to three digits, would turn every phase by radians.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, after in self.named_buffers():
            if after.dtype in (torch.float16, torch.bfloat16) and not after.is_meta:
                self.register_buffer(name, before[name].to(after.device))
        return self
