"""No layer changes the expected magnitude of what passes through it."""

import math

import pytest
import torch
from torch import Tensor

from dsno.nets.edm2 import MagnitudeBlock, MagnitudeConv, MagnitudeFourier, MagnitudeUNet, _blend, _join, _silu, _unit
from nvlabs import SMALL, answer


def magnitude(x: Tensor) -> float:
    return float(x.detach().square().mean().sqrt())


def test_independent_parts_of_unit_magnitude_make_a_whole_of_unit_magnitude() -> None:
    a, b, c = torch.randn(64, 20, 8, 8), torch.randn(64, 20, 8, 8), torch.randn(64, 5, 8, 8)
    # 80 000 numbers: a standard error of 0.25 %.
    assert magnitude(_silu(a)) == pytest.approx(1, abs=0.01)
    assert magnitude(_blend(a, b, 0.3)) == pytest.approx(1, abs=0.01)
    assert magnitude(_unit(3 * a, [1])) == pytest.approx(1, abs=1e-3)
    for w in (0.2, 0.5):
        joined = _join(a, c, w)
        assert joined.shape == (64, 25, 8, 8) and magnitude(joined) == pytest.approx(1, abs=0.01)
        # Each counts as its weight says, whatever the number of its channels.
        parts = [float(x.square().sum()) ** 0.5 for x in (joined[:, :20], joined[:, 20:])]
        assert parts[1] / parts[0] == pytest.approx(w / (1 - w), rel=0.03)


@pytest.mark.parametrize("kernel, scale", [((), 7.0), ((1, 1), 0.1), ((3, 3), 1.0)])
def test_a_convolution_has_unit_weights_whatever_it_stores(kernel: tuple[int, ...], scale: float) -> None:
    conv = MagnitudeConv(16, 64, kernel)
    x = torch.randn(256, 16, *(6 for _ in kernel))
    y = conv(x)
    inner = y[..., 1:-1, 1:-1] if kernel else y  # the border sees zeros
    assert magnitude(inner) == pytest.approx(1, abs=0.05)
    conv.weight.data *= scale
    torch.testing.assert_close(conv(x), y, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(conv(x, gain=0.5), conv(x) / 2)


def test_waves_have_unit_magnitude() -> None:
    assert magnitude(MagnitudeFourier(4096)(torch.randn(20))) == pytest.approx(1, abs=0.02)


def test_a_block_keeps_the_magnitude_and_is_bounded() -> None:
    x, skip, emb = torch.randn(8, 32, 8, 8), torch.randn(8, 16, 8, 8), torch.randn(8, 24)
    decoder = MagnitudeBlock(48, 32, 24, False, attention=True, channels_per_head=8)
    # Zeros beyond the border, and the mean that attention takes of values, cost a little.
    assert 0.85 < magnitude(decoder(x, emb, skip)) < 1.05
    encoder = MagnitudeBlock(32, 48, 24, True, "down")
    assert encoder(x, emb).shape == (8, 48, 4, 4)
    assert 0.9 < magnitude(encoder(5 * x, emb)) < 1.05  # normalised over channels
    assert float(MagnitudeBlock(32, 32, 24, False, clip_act=0.5)(x, emb).detach().abs().max()) == 0.5


def test_the_embedding_takes_effect_once_its_gain_has_grown() -> None:
    block = MagnitudeBlock(16, 16, 8, False)
    x, (one, other) = torch.randn(2, 16, 4, 4), torch.randn(2, 2, 8)
    assert torch.equal(block(x, one), block(x, other))
    block.emb_gain.data.fill_(1)
    assert not torch.allclose(block(x, one), block(x, other), atol=1e-2)


def test_a_new_network_answers_zero_and_then_row_by_row() -> None:
    net = MagnitudeUNet(8, 3, 4, 16, [1, 2], num_blocks=1, attn_resolutions=[4], channels_per_head=8).eval()
    x, noise, label = torch.randn(3, 3, 8, 8), torch.randn(3), torch.eye(4)[[0, 2, 3]]
    assert not net(x, noise, label).any()
    net.out_gain.data.fill_(1)
    for block in net.modules():
        if isinstance(block, MagnitudeBlock):
            block.emb_gain.data.fill_(1)
    out = net(x, noise, label)
    assert out.shape == x.shape and 0.3 < magnitude(out) < 3
    torch.testing.assert_close(net(x[1:2], noise[1:2], label[1:2]), out[1:2], rtol=1e-4, atol=1e-4)
    for other in (net(x, noise + 1, label), net(x, noise, label.flip(1)), net(x, noise)):
        assert magnitude(other - out) > 1e-3
    assert math.isclose(magnitude(net(x, noise, label)), magnitude(out))


# The architecture: numbers that NVlabs' own code gave for these weights, input and arguments.


@pytest.mark.parametrize(
    "arguments, parameters, numbers",
    [
        (
            dict(channel_mult=[1, 2], channels_per_head=8),
            181243,
            [0.68495, -2.1874, 2.1418, 0.0894, 13.32301, -4.7561, 4.47079],
        ),
        (
            dict(
                channel_mult=[1, 2],
                label_dim=4,
                channels_per_head=16,
                channel_mult_noise=2,
                channel_mult_emb=3,
                label_balance=0.3,
                concat_balance=0.4,
                res_balance=0.4,
                attn_balance=0.2,
                clip_act=1.5,
                resample_filter=[1, 3, 3, 1],
            ),
            186555,
            [0.399, -0.82124, 0.13336, -1.41857, 2.10338, -0.87908, 1.21618],
        ),
    ],
)
def test_the_architecture_answers_as_the_original_code_did(arguments: dict, parameters: int, numbers: list) -> None:
    net = MagnitudeUNet(**{**SMALL, "img_channels": 3, **arguments})
    assert sum(p.numel() for p in net.parameters()) == parameters
    label = torch.eye(4)[[0, 2]] if "label_dim" in arguments else None
    assert answer(net, label) == pytest.approx(numbers, rel=1e-4, abs=2e-5)


@pytest.mark.parametrize(
    # What the original class counts; the preconditioner adds the 128 of its uncertainty.
    "channels, parameters",
    [(128, 124_713_125), (192, 280_212_709), (448, 1_523_164_645)],
    ids=["xs", "s", "xxl"],
)
def test_published_configurations_have_the_published_sizes(channels: int, parameters: int) -> None:
    with torch.device("meta"):
        net = MagnitudeUNet(img_resolution=64, img_channels=4, label_dim=1000, model_channels=channels)
    assert sum(p.numel() for p in net.parameters()) == parameters
