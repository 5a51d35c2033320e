"""An architecture is told the noise and the class as it was in training."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsno.nets.backbone import Backbone, example, net_from_config
from dsno.nets.preconditioned import PreconditionedUNet, iddpm_schedule, iddpm_sigmas

SONG = dict(
    type="SongUNet", img_resolution=8, in_channels=2, out_channels=2, model_channels=8, channel_mult=[1], num_blocks=1
)
ADM = dict(SONG, type="DhariwalUNet", out_channels=4, label_dim=3, model_channels=64)


class Listens(nn.Module):
    """In the place of an architecture: says what it was told, and answers its input twice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None) -> Tensor:
        self.told = x.dtype, noise, label
        return torch.cat([x, 5 * x], 1)


def listening(**options: Any) -> tuple[PreconditionedUNet, Listens]:
    net, inner = PreconditionedUNet(**options), Listens()
    net.model = inner
    return net, inner


T = torch.tensor([0.0, 1e-6, 0.3, 1.0], dtype=torch.float64)


@pytest.mark.parametrize(
    "options, expected",
    [
        (dict(), [math.log(max(80 * t, 0.002)) / 4 for t in T.tolist()]),
        (dict(precond="ve", sigma_max=50, sigma_min=0.02), [math.log(max(50 * t, 0.02) / 2) for t in T.tolist()]),
        (dict(precond="vp", steps=500), [499 * t for t in T.tolist()]),
        (dict(precond="iddpm", steps=100), [0, 0, 29, 99]),
    ],
    ids=["edm", "ve", "vp", "iddpm"],
)
def test_the_noise_label_is_the_table(options: dict[str, Any], expected: list[float]) -> None:
    net, inner = listening(net=SONG, **options)
    x = torch.randn(4, 2, 8, 8)
    out = net(x, T)
    dtype, noise, label = inner.told
    assert noise.tolist() == pytest.approx(expected, rel=1e-12)
    assert (dtype, label, out.dtype) == (torch.float64, None, torch.float32)
    # Of more channels the first count, and F of `ve` has the other sign.
    assert torch.equal(out, -x if options.get("precond") == "ve" else x)


def test_classes_are_one_hot_and_none_is_nothing() -> None:
    net, inner = listening(net=ADM)
    assert isinstance(net, Backbone) and net.classes == 3 and net.shape == (2, 8, 8)
    x, t = torch.randn(3, 2, 8, 8), torch.rand(3)
    for cond, rows in (
        (torch.tensor([2, 0, 3]), [[0, 0, 1], [1, 0, 0], [0, 0, 0]]),
        ({"label": torch.tensor([1, 1, 1])}, [[0, 1, 0]] * 3),
        (None, [[0, 0, 0]] * 3),
    ):
        net(x, t, cond)
        assert inner.told[2].tolist() == rows


def test_the_levels_of_iddpm_follow_the_recursion_and_are_those_of_its_schedule() -> None:
    M = 50
    u = iddpm_sigmas(M)
    assert u.shape == (M + 1,) and u[-1] == 0 and bool((u[1:] < u[:-1]).all())
    bar = [math.sin(math.pi / 2 * j / M / 1.008) ** 2 for j in range(M + 1)]
    for j in range(M, 0, -1):
        expected = (float(u[j]) ** 2 + 1) / max(bar[j - 1] / bar[j], 0.001) - 1
        assert float(u[j - 1]) ** 2 == pytest.approx(expected, rel=1e-9)
    schedule = iddpm_schedule(u)
    for j in (0, 17, M - 1):
        alpha_t, sigma_t = schedule.at((M - j) / M)
        assert sigma_t / alpha_t == pytest.approx(float(u[j]), rel=1e-9)


@pytest.mark.parametrize("config", [dict(net=SONG, precond="ve"), dict(net=ADM, precond="iddpm", steps=20)], ids=str)
def test_it_is_rebuilt_from_its_configuration(config: dict[str, Any]) -> None:
    net = PreconditionedUNet(**config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.2)
    twin = net_from_config(net.config)
    twin.load_state_dict(net.state_dict())
    x, t, *cond = example(net.eval(), torch.zeros(()), rows=2)
    assert torch.equal(twin.eval()(x + 1, t + 0.3, *cond), net(x + 1, t + 0.3, *cond))
    assert twin.config == net.config and net.embedding == ("model.map_layer1",)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(net=dict(SONG, type="VNet")), "unknown architecture 'VNet': expected one of SongUNet, DhariwalUNet"),
        (dict(net=SONG, precond="ddpm"), "unknown precond 'ddpm': expected edm, vp, ve or iddpm"),
        (dict(net=SONG, sigma_min=90.0), "sigma_min must be positive and below sigma_max, got 90.0 and 80.0"),
    ],
)
def test_what_it_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreconditionedUNet(**options)
