"""An architecture is told the noise and the class as it was in training."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nvlabs
from dsno.nets.backbone import Backbone, example, net_from_config
from dsno.nets.preconditioned import PreconditionedUNet, iddpm_schedule, iddpm_sigmas
from dsno.students.lift import lift
from nvlabs import TEACHERS, made, settle

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
        (dict(net=dict(SONG, model_chanels=8)), "model_chanels.*did you mean.*model_channels"),
        (dict(net=dict(SONG, encoder_type="dense")), "encoder_type must be one of 'standard', .*got 'dense'"),
        (dict(net=SONG, precond="ddpm"), "unknown precond 'ddpm': expected edm, vp, ve or iddpm"),
        (dict(net=SONG, sigma_min=90.0), "sigma_min must be positive and below sigma_max, got 90.0 and 80.0"),
    ],
)
def test_what_it_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreconditionedUNet(**options)


def test_iddpm_steps_are_told_by_their_number_and_times_between_by_the_nearest() -> None:
    net = made("iddpm")[1]
    t = torch.arange(1, 1001) / 1000
    assert net.noise_label(t).tolist() == list(range(1000))
    assert net.noise_label(t - 1e-4).tolist() == list(range(1000))
    assert net.noise_label(torch.zeros(1)).tolist() == [0]


@pytest.mark.parametrize("name", ["edm-song", "ve", "edm2"])
def test_half_precision_keeps_the_noise_embedding(name: str) -> None:
    net = made(name)[1]
    x, t = torch.randn(4, *net.shape), torch.tensor([0.01, 0.1, 0.5, 1.0])
    with torch.no_grad():
        wanted = net(x, t)
        half = copy.deepcopy(net).to(torch.bfloat16)(x.bfloat16(), t)
    assert half.dtype == torch.bfloat16
    assert float((half.float() - wanted).norm() / wanted.norm()) < 0.05


def test_frequencies_survive_a_cast_to_half() -> None:
    net = made("ve")[1]
    before = net.model.map_noise.freqs.clone()
    assert torch.equal(net.half().model.map_noise.freqs, before)
    assert net.double().model.map_noise.freqs.dtype == torch.float64


def test_no_condition_is_the_label_behind_the_last() -> None:
    net = made("edm2")[1]
    x, t = torch.randn(3, *net.shape), torch.full((3,), 0.1)
    with torch.no_grad():
        told = net(x, t, torch.tensor([1, 4, 2]))
        torch.testing.assert_close(told[1], net(x, t)[1])
        torch.testing.assert_close(net(x, t, {"label": torch.tensor([1, 4, 2])}), told)
        assert float((told[0] - net(x, t)[0]).norm() / told[0].norm()) > 0.01


@pytest.mark.parametrize(
    "name, label, message",
    [
        ("edm2", [0, 5], "label 5 is not a class: expected 0 to 3, or 4 for none"),
        ("edm2", [-1, 0], "label -1 is not a class"),
        ("edm2", [0], "integers of shape \\(2,\\), got torch.int64 of shape \\(1,\\)"),
        ("edm2", [0.0, 1.0], "integers of shape \\(2,\\), got torch.float32"),
        ("vp", [0, 1], "knows no classes"),
    ],
)
def test_wrong_labels_say_what_is_wrong(name: str, label: list, message: str) -> None:
    net = made(name)[1]
    with pytest.raises(ValueError, match=message):
        net(torch.randn(2, *net.shape), torch.rand(2), torch.tensor(label))


@pytest.mark.parametrize("told", ["output", "input"])
@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("name", ["edm-song", "ve", "iddpm", "edm2", "skip"])
def test_lifted_backbones_are_the_backbone_frame_by_frame(name: str, once: bool, told: str) -> None:
    if name == "skip":
        skip = dict(nvlabs.SONG, encoder_type="skip", decoder_type="skip", channel_mult=[1, 2, 2])
        net = settle(PreconditionedUNet(skip))
    else:
        net = made(name)[1]
    x, weight = torch.randn(2, *net.shape), {"weight": torch.tensor([0.5, 3.0])}
    label = {} if net.classes is None else {"label": torch.tensor([0, 2])}
    times, start = torch.tensor([0.9, 0.3, 0.0]), torch.tensor(1.0)
    lifted = lift(
        copy.deepcopy(net), example(net, x), net.blocks, 3, 2, where="mid", once=once, told=told, guidance=net.embedding
    )
    layers = lifted.temporal_layers()
    assert layers and all("4x4" in n or "2x2" in n for n in layers)
    with torch.no_grad():
        frames = lifted(x, times, label | weight, start)
        last = lifted(x, times, label | weight, start, select=[2])
        assert torch.allclose(last[:, 0], frames[:, 2], atol=1e-5)
        for m, t in enumerate(times):
            if once and told == "output":
                break  # The first blocks are told the start: another function, on purpose.
            time = (start if told == "input" else t).expand(2)
            wanted = net(x, time, label or None)
            torch.testing.assert_close(frames[:, m], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TEACHERS)
def test_every_parameter_takes_part(name: str) -> None:
    # Distributed training stops at a parameter that has no gradient.
    net = made(name)[1].train()
    net(torch.randn(1, *net.shape), torch.rand(1)).sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []
