"""A block is its formula, and a new network answers zero, whatever pyramid runs beside it."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dsno.nets.edm import Block, DhariwalUNet, Fourier, Positional, SongUNet
from nvlabs import NCSNPP, answer

SMALL = dict(img_resolution=8, in_channels=3, out_channels=3, model_channels=8, num_blocks=1, attn_resolutions=[4])
MAKE = {
    "ddpm++": lambda **more: SongUNet(**SMALL, **more),
    "ncsn++": lambda **more: SongUNet(**SMALL, **NCSNPP, **more),
    "skip": lambda **more: SongUNet(**SMALL, encoder_type="skip", decoder_type="skip", **more),
    "adm": lambda **more: DhariwalUNet(**{**SMALL, "model_channels": 64}, **more),
}


def randomise(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.3)
    return net.eval()


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_block_is_its_formula(adaptive: bool) -> None:
    block = randomise(Block(8, 12, 5, gain=0.7, eps=1e-6, adaptive=adaptive))
    h, skip, emb = torch.randn(2, 6, 4, 4), torch.randn(2, 2, 4, 4), torch.randn(2, 5)
    x = torch.cat([h, skip], 1)
    r = F.conv2d(F.silu(block.norm0(x)), block.conv0.weight, block.conv0.bias, padding=1)
    if adaptive:
        a, b = block.affine(emb)[:, :, None, None].chunk(2, 1)
        r = F.silu(block.norm1(r) * (1 + a) + b)
    else:
        r = F.silu(block.norm1(r + block.affine(emb)[:, :, None, None]))
    r = F.conv2d(r, block.conv1.weight, block.conv1.bias, padding=1)
    expected = 0.7 * (F.conv2d(x, block.skip.weight, block.skip.bias) + r)
    torch.testing.assert_close(block(h, emb, skip), expected)


def test_a_new_block_passes_on_what_it_is_given() -> None:
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 5)
    torch.testing.assert_close(Block(8, 8, 5, heads=2)(x, emb), x)
    torch.testing.assert_close(Block(8, 8, 5, "down")(x, emb), F.avg_pool2d(x, 2))
    torch.testing.assert_close(Block(8, 8, 5, heads=1, gain=math.sqrt(0.5))(x, emb), x / 2)


def test_noise_is_told_as_waves() -> None:
    c = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64)
    for endpoint, last in ((True, 1e-4), (False, 1e-4**0.75)):
        f = torch.tensor(
            [1.0, 1e-4 ** (1 / (3 if endpoint else 4)), 1e-4 ** (2 / (3 if endpoint else 4)), last]
        ).double()
        expected = torch.cat([torch.cos(c[:, None] * f), torch.sin(c[:, None] * f)], 1)
        torch.testing.assert_close(Positional(8, endpoint)(c), expected, rtol=1e-6, atol=1e-6)
    fourier = Fourier(6)
    angle = 2 * math.pi * c[:, None] * fourier.freqs.double()
    torch.testing.assert_close(fourier(c), torch.cat([angle.cos(), angle.sin()], 1))


@pytest.mark.parametrize("kind", MAKE)
def test_a_network_is_told_noise_and_class_row_by_row(kind: str) -> None:
    net = MAKE[kind](channel_mult=[1, 2], label_dim=4)
    x, noise, label = torch.randn(3, 3, 8, 8), torch.randn(3), torch.eye(4)[[0, 2, 3]]
    assert not net(x, noise, label).any()
    randomise(net)
    out = net(x, noise, label)
    assert out.shape == x.shape
    torch.testing.assert_close(net(x[1:2], noise[1:2], label[1:2]), out[1:2], rtol=1e-3, atol=1e-3)
    scale = float(out.detach().abs().mean())
    for other in (net(x, noise + 1, label), net(x, noise, label.flip(1)), net(x + 1, noise, label)):
        assert float((other - out).detach().abs().mean()) > 1e-3 * scale
    if kind == "adm":  # whose map of labels has no bias
        assert torch.equal(net(x, noise), net(x, noise, torch.zeros(3, 4)))


@pytest.mark.parametrize("key", ["embedding_type", "encoder_type", "decoder_type"])
def test_an_unknown_type_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"unknown {key} 'dense': expected one of"):
        SongUNet(**{**SMALL, key: "dense"})


# The architectures: numbers that NVlabs' own code gave for these weights, input and arguments.

PINNED = [
    (SongUNet, dict(channel_mult=[1, 2]), 189347, [0.37257, 0.3058, -0.1762, 0.31355, 0.16658, -0.0988, 0.16509]),
    (
        SongUNet,
        dict(channel_mult=[1, 2], label_dim=4, augment_dim=9, **NCSNPP),
        191267,
        [0.52294, 0.25047, -0.19494, 0.3729, 0.30399, -0.25914, 0.22601],
    ),
    (
        SongUNet,
        dict(channel_mult=[1, 2, 2], encoder_type="skip", decoder_type="skip", resample_filter=[1, 3, 3, 1]),
        319753,
        [0.15369, -0.18497, -0.61239, -0.06889, -0.1468, -0.25629, 0.24863],
    ),
    (
        DhariwalUNet,
        dict(channel_mult=[1, 4], out_channels=6, label_dim=4),
        642182,
        [0.29901, 0.22811, -0.07554, 0.45965, -0.08919, -0.26915, 0.1705],
    ),
]


@pytest.mark.parametrize("make, arguments, parameters, numbers", PINNED)
def test_architectures_answer_as_the_original_code_did(make, arguments: dict, parameters: int, numbers: list) -> None:
    net = make(**{**SMALL, "model_channels": 16, **arguments})
    assert sum(p.numel() for p in net.parameters()) == parameters
    label = torch.eye(4)[[0, 2]] if "label_dim" in arguments else None
    assert answer(net, label) == pytest.approx(numbers, rel=1e-4, abs=2e-5)


CIFAR = dict(img_resolution=32, in_channels=3, out_channels=3, channel_mult=[2, 2, 2], augment_dim=9)


@pytest.mark.parametrize(
    "make, arguments, parameters",
    [  # What the original classes count.
        (SongUNet, CIFAR, 55_733_891),
        (SongUNet, dict(CIFAR, label_dim=10), 55_735_299),
        (SongUNet, dict(CIFAR, **NCSNPP), 56_397_827),
        (SongUNet, dict(CIFAR, img_resolution=64, channel_mult=[1, 2, 2, 2]), 61_805_571),
        (DhariwalUNet, dict(img_resolution=64, in_channels=3, out_channels=3, label_dim=1000), 295_899_267),
        (DhariwalUNet, dict(img_resolution=64, in_channels=3, out_channels=6, label_dim=1000), 295_904_454),
    ],
    ids=["ddpmpp", "ddpmpp-cond", "ncsnpp", "ffhq", "adm", "adm-iddpm"],
)
def test_published_configurations_have_the_published_sizes(make, arguments: dict, parameters: int) -> None:
    with torch.device("meta"):
        net = make(**arguments)
    assert sum(p.numel() for p in net.parameters()) == parameters
