"""The magnitude-preserving U-Net of EDM2 (Karras et al., 2023, arXiv 2312.02696).

No layer changes the expected magnitude of what passes through it, the root mean square of the features: weights are
normalised, activations divided by what they take away, sums and concatenations weighed so that independent parts of
magnitude 1 make a whole of magnitude 1. There are no biases and no normalisations but one over channels in the
encoder. Equations are numbered as in the paper. Names as in `edm`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsno.nets.walk import Frequencies, Resample, attend, down_and_up, encoder_and_decoder, filtered, heads_apart

__all__ = ["MagnitudeUNet"]


def _unit(x: Tensor, dims: list[int]) -> Tensor:
    """Divide by the root mean square over `dims`, so that the expected magnitude is 1 (eq. 30)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide / (wide.square().mean(dims, keepdim=True).sqrt() + 1e-4)).to(x.dtype)


def _silu(x: Tensor) -> Tensor:
    """SiLU over the magnitude it has on unit Gaussian input (eq. 81)."""
    return F.silu(x) / 0.596


def _blend(a: Tensor, b: Tensor, w: float) -> Tensor:
    r"""$((1 - w) a + w b) / \sqrt{(1 - w)^2 + w^2}$: of unit magnitude for independent a and b that are (eq. 88)."""
    return torch.lerp(a, b, w) / math.hypot(1 - w, w)


def _join(a: Tensor, b: Tensor, w: float) -> Tensor:
    """Concatenate channels so that a and b count as 1 - w and w, whatever their number (eq. 103)."""
    n_a, n_b = a.shape[1], b.shape[1]
    whole = math.sqrt(n_a + n_b) / math.hypot(1 - w, w)
    return torch.cat([a * (whole * (1 - w) / math.sqrt(n_a)), b * (whole * w / math.sqrt(n_b))], 1)


class MagnitudeFourier(Frequencies):
    r"""$\sqrt 2 \cos(f c + \phi)$ at fixed random frequencies and phases (eq. 75); (B,) to (B, channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * torch.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * torch.pi * torch.rand(channels))

    def forward(self, noise: Tensor) -> Tensor:
        freqs, phases = (self.get_buffer(name).to(noise.dtype) for name in ("freqs", "phases"))
        return math.sqrt(2) * torch.cos(torch.outer(noise, freqs) + phases)


class MagnitudeConv(nn.Module):
    r"""A convolution, or a linear layer where `kernel` is empty, whose every output has a weight of norm 1 (eq. 47).

    The weight is normalised on its way in. Training also pins the stored one to unit magnitude (eq. 66), which changes
    the step size of the optimiser and not the output, and is left to who trains.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: Sequence[int] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, *kernel))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        dims = list(range(1, self.weight.ndim))
        weight = (_unit(self.weight, dims) * (gain / math.sqrt(self.weight[0].numel()))).to(x.dtype)
        return F.linear(x, weight) if len(dims) == 1 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class MagnitudeStem(MagnitudeConv):
    """The first convolution."""


class MagnitudeHead(MagnitudeConv):
    """The last convolution."""


class MagnitudeBlock(nn.Module):
    r"""The residual block of `MagnitudeUNet` (figure 21).

    $$ y = \mathrm{conv}_1(\mathrm{silu}(\mathrm{conv}_0(\mathrm{silu}(x)) \cdot (1 + g\, W e))), \qquad
       x \leftarrow \mathrm{blend}(\mathrm{skip}(x), y), $$

    then $x \leftarrow \mathrm{blend}(x, \mathrm{attention}(x))$ with queries, keys and values of unit magnitude. In the
    encoder the skip convolution and a normalisation over channels come first, for both branches.

    Arguments as of `MagnitudeUNet`; `encoder` says where the block is. Call: `(x, emb)` or `(x, emb, skip)`, with x
    (B, C, H, W), emb (B, D) and the skip connection's features beside x.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        encoder: bool,
        resample: Resample = "",
        attention: bool = False,
        channels_per_head: int = 64,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        concat_balance: float = 0.5,
        clip_act: float | None = 256,
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        self.out_channels, self.resample, self.encoder = out_channels, resample, encoder
        self.heads = out_channels // channels_per_head if attention else 0
        self.dropout, self.clip_act, self.taps = dropout, clip_act, tuple(resample_filter)
        self.res_balance, self.attn_balance, self.concat_balance = res_balance, attn_balance, concat_balance
        self.emb_gain = nn.Parameter(torch.zeros(()))
        self.conv_res0 = MagnitudeConv(out_channels if encoder else in_channels, out_channels, (3, 3))
        self.emb_linear = MagnitudeConv(emb_channels, out_channels)
        self.conv_res1 = MagnitudeConv(out_channels, out_channels, (3, 3))
        changes = in_channels != out_channels
        self.conv_skip = MagnitudeConv(in_channels, out_channels, (1, 1)) if changes else None
        if self.heads:
            self.attn_qkv = MagnitudeConv(out_channels, 3 * out_channels, (1, 1))
            self.attn_proj = MagnitudeConv(out_channels, out_channels, (1, 1))

    def forward(self, x: Tensor, emb: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            x = _join(x, skip, self.concat_balance)
        if self.resample:
            row = torch.tensor(self.taps, dtype=x.dtype, device=x.device)
            x = filtered(x, torch.outer(row, row)[None, None] / row.sum() ** 2, self.resample)
        if self.encoder:
            x = _unit(x if self.conv_skip is None else self.conv_skip(x), [1])
        y = self.conv_res0(_silu(x))
        y = _silu(y * (1 + self.emb_linear(emb, self.emb_gain))[..., None, None])
        y = self.conv_res1(F.dropout(y, self.dropout, self.training))
        if not self.encoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = _blend(x, y, self.res_balance)
        if self.heads:
            qkv = _unit(heads_apart(self.attn_qkv(x), self.heads), [-1])
            x = _blend(x, self.attn_proj(attend(qkv, x.shape)), self.attn_balance)
        return x if self.clip_act is None else x.clamp(-self.clip_act, self.clip_act)


class MagnitudeUNet(nn.Module):
    r"""The magnitude-preserving U-Net of EDM2 (Karras et al., 2023, arXiv 2312.02696, figure 21).

    Arguments:
        img_resolution: Height and width.
        img_channels: Channels of input and output.
        label_dim: K, the length of `label`; 0 for none.
        model_channels: Unit of the widths.
        channel_mult: Width of every level, highest resolution first.
        channel_mult_noise: Width of the noise features; None for that of the first level.
        channel_mult_emb: Width of the embedding; None for that of the widest level.
        num_blocks: Blocks per level; one more in the decoder.
        attn_resolutions: Image sizes with attention.
        label_balance: Share of the class in the embedding.
        concat_balance: Share of the skip connection in a concatenation.
        channels_per_head: Channels of an attention head.
        dropout: Dropout probability.
        res_balance: Share of the residual branch in a block.
        attn_balance: Share of the attention in a block.
        clip_act: Bound on the activations behind every block, or None.
        resample_filter: Taps of the filter that halves and doubles, an even number.

    Call: `(x, noise, label)` with x (B, C, H, W), noise (B,), label (B, K) or None; returns (B, C, H, W).
    """

    blocks: tuple[type[nn.Module], ...] = (MagnitudeStem, MagnitudeBlock, MagnitudeHead)
    embedding = ("emb_noise",)

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        channels_per_head: int = 64,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256,
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        widths = [model_channels * mult for mult in channel_mult]
        features = widths[0] if channel_mult_noise is None else model_channels * channel_mult_noise
        emb = max(widths) if channel_mult_emb is None else model_channels * channel_mult_emb
        self.label_dim, self.label_balance = label_dim, label_balance
        self.out_gain = nn.Parameter(torch.zeros(()))
        self.emb_fourier = MagnitudeFourier(features)
        self.emb_noise = MagnitudeConv(features, emb)
        self.emb_label = MagnitudeConv(label_dim, emb) if label_dim else None

        shared: dict[str, Any] = {
            "channels_per_head": channels_per_head,
            "dropout": dropout,
            "res_balance": res_balance,
            "attn_balance": attn_balance,
            "concat_balance": concat_balance,
            "clip_act": clip_act,
            "resample_filter": resample_filter,
        }

        def make(c_in: int, c_out: int, size: int, name: str, resample: Resample) -> MagnitudeBlock:
            encoder = name == "down" or name.startswith("enc")
            attends = name == "in0" or (size in attn_resolutions and "block" in name)
            return MagnitudeBlock(c_in, c_out, emb, encoder, resample, attends, **shared)

        # One channel of ones beside the image is the bias that the convolutions do not have.
        stem = MagnitudeStem(img_channels + 1, widths[0], (3, 3))
        self.enc, self.dec, width = encoder_and_decoder(img_resolution, stem, widths[0], widths, num_blocks, make)
        self.out_conv = MagnitudeHead(width, img_channels, (3, 3))

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        emb = self.emb_noise(self.emb_fourier(noise).to(x.dtype))
        if self.emb_label is not None and label is not None:
            label_emb = self.emb_label(label.to(x.dtype) * math.sqrt(self.label_dim))
            emb = _blend(emb, label_emb, self.label_balance)
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        return self.out_conv(down_and_up(self.enc, self.dec, x, _silu(emb)), self.out_gain)
