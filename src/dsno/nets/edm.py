r"""The architectures that EDM trains: DDPM++ and NCSN++ (`SongUNet`), and ADM (`DhariwalUNet`).

They are called as `net(x, noise, label)` with the noise label `noise` (B,) and one-hot classes (B, K);
`PreconditionedUNet` computes both from (t, cond) and makes a backbone of them. Parameters bear the names that published
weights know them by. The walk down and up that they share with EDM2's network is in `walk`.

Source: Karras et al., 2022 (arXiv 2206.00364).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsno.nets.walk import Frequencies, Resample, attend, down_and_up, encoder_and_decoder, filtered, heads_apart

__all__ = ["Block", "DhariwalUNet", "SongUNet"]


class Conv(nn.Module):
    """A convolution, or none where `kernel` is 0, behind a separable filter that halves or doubles the image.

    (B, C_in, H, W) to (B, C_out, H, W), or half or twice the sides. It has no `out_channels`, so that no `lift` takes
    it for a residual block.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, resample: Resample = "", taps: Sequence[float] = (1, 1)
    ) -> None:
        super().__init__()
        self.resample = resample
        shape = (channels_out, channels_in, kernel, kernel)
        self.weight = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(shape), math.sqrt(5))) if kernel else None
        self.bias = nn.Parameter(torch.zeros(channels_out)) if kernel else None
        if resample:
            row = torch.tensor(taps, dtype=torch.float32)
            self.register_buffer("resample_filter", torch.outer(row, row)[None, None] / row.sum() ** 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.resample:
            x = filtered(x, self.get_buffer("resample_filter"), self.resample)
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)


def _groups(channels: int) -> int:
    return min(32, channels // 4)


class Block(nn.Module):
    r"""The residual block of `SongUNet` and `DhariwalUNet`.

    $$ h = \mathrm{conv}_0(\mathrm{silu}(\mathrm{norm}_0 x)), \quad
       h = \mathrm{silu}(\mathrm{norm}_1(h)(1 + a) + b) \ \text{or} \ \mathrm{silu}(\mathrm{norm}_1(h + b)), \quad
       y = g\,(\mathrm{skip}(x) + \mathrm{conv}_1 h), $$

    with $(a, b)$, or $b$, linear in the embedding, and then $y \leftarrow g\,(y + \mathrm{attention}(y))$.

    Arguments:
        in_channels: Channels of $x$, those of a skip connection included.
        out_channels: Channels of $y$.
        emb_channels: D of the embedding (B, D).
        resample: Whether $\mathrm{conv}_0$ and the shortcut halve or double the image.
        heads: Attention heads; 0 for no attention.
        gain: $g$; $\sqrt{1/2}$ keeps the variance of the sum of two.
        adaptive: The first form of $h$, with a scale, or the second.
        dropout: Dropout probability, in front of $\mathrm{conv}_1$.
        taps: Taps of the filter that halves and doubles.
        eps: What the normalisations add to the variance.
        project: Whether the shortcut of a resampling block has a convolution though the channels stay.

    Call: `(h, emb)` or `(h, emb, skip)`, where $x$ is h and skip side by side.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        resample: Resample = "",
        heads: int = 0,
        dropout: float = 0.0,
        taps: Sequence[float] = (1, 1),
        gain: float = 1.0,
        eps: float = 1e-5,
        adaptive: bool = True,
        project: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels, self.resample, self.heads = out_channels, resample, heads
        self.dropout, self.gain, self.adaptive = dropout, gain, adaptive
        self.norm0 = nn.GroupNorm(_groups(in_channels), in_channels, eps)
        self.conv0 = Conv(in_channels, out_channels, 3, resample, taps)
        self.affine = nn.Linear(emb_channels, out_channels * (2 if adaptive else 1))
        self.norm1 = nn.GroupNorm(_groups(out_channels), out_channels, eps)
        self.conv1 = Conv(out_channels, out_channels, 3)
        self.skip: Conv | None = None
        if resample or in_channels != out_channels:
            kernel = 1 if project or in_channels != out_channels else 0
            self.skip = Conv(in_channels, out_channels, kernel, resample, taps)
        last = [self.conv1]
        if heads:
            self.norm2 = nn.GroupNorm(_groups(out_channels), out_channels, eps)
            self.qkv = Conv(out_channels, 3 * out_channels, 1)
            self.proj = Conv(out_channels, out_channels, 1)
            last.append(self.proj)
        for conv in last:
            nn.init.zeros_(conv.get_parameter("weight"))

    def forward(self, h: Tensor, emb: Tensor, skip: Tensor | None = None) -> Tensor:
        x = h if skip is None else torch.cat([h, skip], 1)
        h = self.conv0(F.silu(self.norm0(x)))
        ab = self.affine(emb)[..., None, None]
        if self.adaptive:
            a, b = ab.chunk(2, 1)
            h = F.silu(self.norm1(h) * (1 + a) + b)
        else:
            h = F.silu(self.norm1(h + ab))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        y = self.gain * ((x if self.skip is None else self.skip(x)) + h)
        if self.heads:
            attended = attend(heads_apart(self.qkv(self.norm2(y)), self.heads), y.shape)
            y = self.gain * (y + self.proj(attended))
        return y


class Stem(Conv):
    """The first convolution."""


class Side(Conv):
    """A convolution of the image pyramid beside the blocks; added to the blocks' features where they are given.

    With `fused` it is convolved before it is filtered: one operation, as published.
    """

    def __init__(self, *args: Any, gain: float = 1.0, fused: bool = False) -> None:
        super().__init__(*args)
        self.gain, self.fused = gain, fused

    def forward(self, side: Tensor, h: Tensor | None = None) -> Tensor:
        if self.fused and self.weight is not None:
            # Filtering last differs at the border alone: the padding is made once, in front of both.
            taps = self.get_buffer("resample_filter")
            pad = self.weight.shape[-1] // 2 + (taps.shape[-1] - 1) // 2
            side = filtered(F.conv2d(side, self.weight, self.bias, padding=pad), taps, "down", 0)
        else:
            side = super().forward(side)
        return side if h is None else self.gain * (h + side)


class HeadNorm(nn.GroupNorm):
    """The normalisation in front of a head."""


class Head(Conv):
    """Activation and the last convolution; added to the image of the lower resolutions where there is one."""

    def forward(self, h: Tensor, side: Tensor | None = None) -> Tensor:
        out = super().forward(F.silu(h))
        return out if side is None else side + out


class Fourier(Frequencies):
    r"""$(\cos 2\pi f c, \sin 2\pi f c)$ at fixed random $f \sim \mathcal N(0, 16^2)$; c (B,) to (B, channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def forward(self, noise: Tensor) -> Tensor:
        angle = 2 * torch.pi * torch.outer(noise, self.get_buffer("freqs").to(noise.dtype))
        return torch.cat([angle.cos(), angle.sin()], 1)


class Positional(nn.Module):
    r"""$(\cos f c, \sin f c)$ at f falling from 1 to (`endpoint`) or towards $10^{-4}$; c (B,) to (B, channels)."""

    def __init__(self, channels: int, endpoint: bool) -> None:
        super().__init__()
        self.count, self.last = channels // 2, channels // 2 - int(endpoint)

    def forward(self, noise: Tensor) -> Tensor:
        power = torch.arange(self.count, device=noise.device, dtype=noise.dtype) / self.last
        angle = torch.outer(noise, 1e-4**power)
        return torch.cat([angle.cos(), angle.sin()], 1)


class SongUNet(nn.Module):
    r"""DDPM++ and NCSN++ (Song et al., 2021, arXiv 2011.13456), as EDM trains them.

    | | DDPM++ | NCSN++ |
    |---|---|---|
    | `embedding_type` | `positional` | `fourier` |
    | `channel_mult_noise` | 1 | 2 |
    | `encoder_type` | `standard` | `residual`: the image, halved and convolved, joins every level |
    | `resample_filter` | [1, 1] | [1, 3, 3, 1] |

    Arguments:
        img_resolution: Height and width.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        label_dim: K, the length of `label`; 0 for none.
        augment_dim: Length of the vector of augmentations that training used; sampling is told zeros.
        model_channels: Width of the first convolution, and unit of the next three.
        channel_mult: Width of every level, highest resolution first.
        channel_mult_emb: Width of the embedding.
        channel_mult_noise: Width of the noise features.
        num_blocks: Blocks per level; one more in the decoder.
        attn_resolutions: Image sizes with attention.
        dropout: Dropout probability.
        embedding_type: `positional` or `fourier`.
        encoder_type: `standard`, `skip` (the halved image itself joins every level) or `residual`.
        decoder_type: `standard`, or `skip` where every level adds its own image.
        resample_filter: Taps of the filter that halves and doubles, an even number.

    Call: `(x, noise, label)` with x (B, in_channels, H, W), noise (B,), label (B, K) or None; returns
    (B, out_channels, H, W).

    Raises:
        ValueError: for an unknown type.
    """

    blocks: tuple[type[nn.Module], ...] = (Stem, Side, Block, HeadNorm, Head)
    embedding = ("map_layer1",)

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        embedding_type: Literal["positional", "fourier"] = "positional",
        channel_mult_noise: int = 1,
        encoder_type: Literal["standard", "skip", "residual"] = "standard",
        decoder_type: Literal["standard", "skip"] = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        for what, value, known in (
            ("embedding_type", embedding_type, ("positional", "fourier")),
            ("encoder_type", encoder_type, ("standard", "skip", "residual")),
            ("decoder_type", decoder_type, ("standard", "skip")),
        ):
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}: expected one of {known}")
        self.label_dim, self.augment_dim = label_dim, augment_dim
        features, emb = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        self.map_noise = Positional(features, endpoint=True) if embedding_type == "positional" else Fourier(features)
        self.map_label = nn.Linear(label_dim, features) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, features, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(features, emb), nn.Linear(emb, emb)
        image = in_channels  # The width of what runs beside the encoder.
        song: dict[str, Any] = dict(gain=math.sqrt(0.5), eps=1e-6, adaptive=False, project=True)

        def make(c_in: int, c_out: int, size: int, name: str, resample: Resample) -> Block:
            attends = name == "in0" or (
                size in attn_resolutions and (name.startswith("enc_block") or name == f"dec_block{num_blocks}")
            )
            return Block(c_in, c_out, emb, resample, int(attends), dropout, resample_filter, **song)

        def beside(chain: str, level: int, size: int, width: int) -> dict[str, nn.Module]:
            nonlocal image
            at = f"{size}x{size}_aux_"
            added: dict[str, nn.Module] = {}
            if chain == "enc" and encoder_type == "skip":
                added[at + "down"] = Side(image, image, 0, "down", resample_filter)
                added[at + "skip"] = Side(image, width, 1)
            if chain == "enc" and encoder_type == "residual":
                residual = Side(image, width, 3, "down", resample_filter, gain=math.sqrt(0.5), fused=True)
                added[at + "residual"], image = residual, width
            if chain == "dec" and (decoder_type == "skip" or level == 0):
                if decoder_type == "skip" and level < len(channel_mult) - 1:
                    added[at + "up"] = Side(out_channels, out_channels, 0, "up", resample_filter)
                added[at + "norm"] = HeadNorm(_groups(width), width, 1e-6)
                added[at + "conv"] = Head(width, out_channels, 3)
                nn.init.zeros_(added[at + "conv"].get_parameter("weight"))
            return added

        widths = [model_channels * mult for mult in channel_mult]
        stem = Stem(in_channels, model_channels, 3)
        self.enc, self.dec, _ = encoder_and_decoder(
            img_resolution, stem, model_channels, widths, num_blocks, make, beside
        )

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        cosines, sines = self.map_noise(noise).to(x.dtype).chunk(2, 1)
        emb = torch.cat([sines, cosines], 1)
        if self.map_label is not None and label is not None:
            emb = emb + self.map_label(label.to(x.dtype) * math.sqrt(self.label_dim))
        if self.map_augment is not None:
            emb = emb + self.map_augment(x.new_zeros(1, self.augment_dim))
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        kept: list[Tensor] = []
        side: Tensor | None = x
        for name, block in self.enc.items():
            if name.endswith("aux_down"):
                side = block(side)
            elif name.endswith("aux_skip"):
                x = kept[-1] = block(side, x)
            elif name.endswith("aux_residual"):
                x = kept[-1] = side = block(side, x)
            else:
                x = block(x) if name.endswith("conv") else block(x, emb)
                kept.append(x)
        side = None
        for name, block in self.dec.items():
            if name.endswith("aux_up"):
                side = block(side)
            elif name.endswith("aux_norm"):
                normed = block(x)
            elif name.endswith("aux_conv"):
                side = block(normed, side)
            else:
                x = block(x, emb, kept.pop()) if "block" in name else block(x, emb)
        assert side is not None  # The highest resolution always has a head.
        return side


class DhariwalUNet(nn.Module):
    r"""ADM (Dhariwal & Nichol, 2021, arXiv 2105.05233): adaptive normalisation, attention heads of 64 channels.

    Arguments and call as of `SongUNet`, without the types.
    """

    blocks: tuple[type[nn.Module], ...] = (Stem, Block, HeadNorm, Head)
    embedding = ("map_layer1",)

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
    ) -> None:
        super().__init__()
        self.augment_dim = augment_dim
        emb = model_channels * channel_mult_emb
        self.map_noise = Positional(model_channels, endpoint=False)
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(model_channels, emb), nn.Linear(emb, emb)
        self.map_label = nn.Linear(label_dim, emb, bias=False) if label_dim else None

        def make(c_in: int, c_out: int, size: int, name: str, resample: Resample) -> Block:
            attends = name == "in0" or (size in attn_resolutions and "block" in name)
            return Block(c_in, c_out, emb, resample, c_out // 64 if attends else 0, dropout)

        widths = [model_channels * mult for mult in channel_mult]
        stem = Stem(in_channels, widths[0], 3)
        self.enc, self.dec, width = encoder_and_decoder(img_resolution, stem, widths[0], widths, num_blocks, make)
        self.out_norm = HeadNorm(_groups(width), width, 1e-5)
        self.out_conv = Head(width, out_channels, 3)
        nn.init.zeros_(self.out_conv.get_parameter("weight"))

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        emb = self.map_noise(noise).to(x.dtype)
        if self.map_augment is not None:
            emb = emb + self.map_augment(x.new_zeros(1, self.augment_dim))
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None and label is not None:
            emb = emb + self.map_label(label.to(x.dtype))
        return self.out_conv(self.out_norm(down_and_up(self.enc, self.dec, x, F.silu(emb))))
