"""The walk visits every block once, under its published name, with the widths that fit."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsno.nets.walk import Frequencies, attend, down_and_up, encoder_and_decoder, filtered, heads_apart

ROWS = {"box": torch.ones(2), "binomial": torch.tensor([1.0, 3.0, 3.0, 1.0])}
TAPS = {name: torch.outer(row, row)[None, None] / row.sum() ** 2 for name, row in ROWS.items()}


@pytest.mark.parametrize("name", TAPS)
def test_doubling_is_the_transpose_of_halving_and_keeps_the_mean(name: str) -> None:
    taps, x, y = TAPS[name], torch.randn(2, 3, 8, 6), torch.randn(2, 3, 4, 3)
    down, up = filtered(x, taps, "down"), filtered(y, taps, "up")
    assert down.shape == y.shape and up.shape == x.shape
    torch.testing.assert_close((down * y).sum() * 4, (x * up).sum())
    inner = filtered(torch.ones(1, 1, 8, 8), taps, "down")[..., 1:-1, 1:-1]
    torch.testing.assert_close(inner, torch.ones_like(inner))
    if name == "box":
        torch.testing.assert_close(down, F.avg_pool2d(x, 2))
        torch.testing.assert_close(up, F.interpolate(y, scale_factor=2.0, mode="nearest"))


def test_padding_made_before_is_not_made_again() -> None:
    x = torch.randn(1, 2, 8, 8)
    padded = filtered(F.pad(x, (1, 1, 1, 1)), TAPS["binomial"], "down", 0)
    torch.testing.assert_close(padded, filtered(x, TAPS["binomial"], "down"))


def test_attention_is_the_softmax_of_the_products_of_each_head() -> None:
    B, C, heads = 2, 6, 3
    qkv = torch.randn(B, 3 * C, 2, 4)
    # The layout of published weights: query, key and value side by side for every channel of every head.
    q, k, v = qkv.reshape(B * heads, C // heads, 3, -1).unbind(2)
    weights = torch.einsum("ncq,nck->nqk", q, k / (C // heads) ** 0.5).softmax(2)
    expected = torch.einsum("nqk,nck->ncq", weights, v).reshape(B, C, 2, 4)
    apart = heads_apart(qkv, heads)
    assert apart.shape == (3, B, heads, 8, C // heads)
    torch.testing.assert_close(attend(apart, expected.shape), expected)


class Asked(nn.Module):
    """A block that adds a channel of ones for each that it is to have more, and drops what it is to have less."""

    def __init__(self, channels_in: int, channels_out: int, resample: str) -> None:
        super().__init__()
        self.channels_in, self.channels_out, self.resample = channels_in, channels_out, resample

    def forward(self, x: Tensor, emb: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        x = x if skip is None else torch.cat([x, skip], 1)
        assert x.shape[1] == self.channels_in
        x = {"": x, "down": x[..., ::2, ::2], "up": x.repeat_interleave(2, 2).repeat_interleave(2, 3)}[self.resample]
        more = x.new_ones(len(x), max(self.channels_out - self.channels_in, 0), *x.shape[2:])
        return torch.cat([x, more], 1)[:, : self.channels_out]


def test_a_walk_goes_down_and_up_with_the_features_that_fit() -> None:
    asked: list[tuple[str, int, str]] = []

    def make(channels_in: int, channels_out: int, size: int, name: str, resample: str) -> Asked:
        asked.append((name, size, resample))
        return Asked(channels_in, channels_out, resample)

    def beside(chain: str, level: int, size: int, width: int) -> dict[str, nn.Module]:
        return {f"{size}x{size}_{chain}{level}_{width}": nn.Identity()}

    enc, dec, width = encoder_and_decoder(8, Asked(1, 2, ""), 2, [2, 5], 1, make)
    assert list(enc) == ["8x8_conv", "8x8_block0", "4x4_down", "4x4_block0"]
    assert list(dec) == ["4x4_in0", "4x4_in1", "4x4_block0", "4x4_block1", "8x8_up", "8x8_block0", "8x8_block1"]
    assert [resample for _, _, resample in asked] == ["", "down", "", "", "", "", "", "up", "", ""]
    assert asked[0] == ("enc_block0", 8, "") and asked[-1] == ("dec_block1", 8, "")
    out = down_and_up(enc, dec, torch.randn(3, 1, 8, 8), torch.zeros(3, 4))
    assert out.shape == (3, width, 8, 8) and width == 2
    enc, dec, _ = encoder_and_decoder(8, Asked(1, 2, ""), 2, [2, 5], 1, make, beside)
    assert "4x4_enc1_2" in enc and list(dec)[-1] == "8x8_dec0_2" and "4x4_dec1_5" in dec


def test_frequencies_keep_their_digits_in_half_precision() -> None:
    class Wave(Frequencies):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("freqs", torch.tensor([123.4567]))

    wave = Wave()
    assert wave.half().freqs.dtype == torch.float32 and float(wave.bfloat16().freqs) == pytest.approx(123.4567)
    assert wave.double().freqs.dtype == torch.float64
