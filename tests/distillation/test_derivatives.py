"""Derivatives of a student: the ways of taking them agree, share what they draw, and look back along the flow."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from dsno.denoise import Prediction
from dsno.distillation.derivatives import earlier, jvp, upwind
from dsno.nets.unet import UNet
from dsno.schedule import VE, Cosine, Schedule
from dsno.solvers.first_order import ddim_step
from dsno.students.flowmap import flow_map_from_teacher
from maps import D64, SCHEDULES, small


def test_derivatives_of_a_network_agree() -> None:
    torch.manual_seed(0)
    X = flow_map_from_teacher(Prediction(UNet(1, 8, (8, 16), attention=()), Cosine(), "v", shape=(1, 8, 8))).double()
    for head in X.net.later.heads:
        nn.init.normal_(head.weight, std=0.5)
    x, t, s = (
        torch.randn(2, 1, 8, 8, dtype=D64),
        torch.tensor([0.9, 0.5], dtype=D64),
        torch.tensor([0.3, 0.2], dtype=D64),
    )
    at, along = (x, t, s), (torch.randn_like(x), torch.ones_like(t), torch.ones_like(s))
    (value, forward), (same, difference) = (jvp(X, at, along, how) for how in ("forward", "difference"))
    assert torch.allclose(value, same) and torch.allclose(forward, difference, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("schedule", [*SCHEDULES, VE(80.0)], ids=repr)
def test_the_difference_along_the_flow_looks_back(schedule: Schedule) -> None:
    """To where the phase is less, by the width or down to s; and the state there is DDIM's."""
    x0, x, width = torch.randn(4, 3, dtype=D64), torch.randn(4, 3, dtype=D64), 0.1
    phases = torch.tensor([0.5, 0.9, 0.35, 0.30001], dtype=D64)
    t, s = (schedule.from_phase(p) for p in (phases, torch.full_like(phases, 0.3)))
    r = earlier(schedule, t, s, width)
    assert torch.allclose(schedule.phase(r), torch.tensor([0.4, 0.8, 0.3, 0.29901], dtype=D64), atol=1e-6)
    value, slope = upwind(lambda x, t: t[:, None] * x, schedule, x0, x, t, s, width)
    assert torch.equal(value, t[:, None] * x)
    expected = (value - r[:, None] * ddim_step(schedule, x0, x, t, r)) / (schedule.angle(t) - schedule.angle(r))[
        :, None
    ]
    assert torch.allclose(slope, expected)
    assert bool((earlier(schedule, t.float(), s.float(), width) < t.float()).all())


def test_the_calls_of_a_difference_share_their_dropout() -> None:
    torch.manual_seed(0)
    X = flow_map_from_teacher(
        Prediction(UNet(1, 8, (8,), attention=(), dropout=0.3), Cosine(), "v", shape=(1, 8, 8))
    ).double()
    for parameter in X.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, t, s = torch.randn(2, 1, 8, 8, dtype=D64), torch.full((2,), 0.7, dtype=D64), torch.full((2,), 0.2, dtype=D64)
    found = []
    for how in ("forward", "difference"):
        torch.manual_seed(1)
        found.append(jvp(X.train(), (x, t, s), (torch.randn_like(x), torch.ones_like(t), torch.zeros_like(s)), how))
    torch.manual_seed(1)
    found.append(upwind(lambda x, t: X(x, t, s), Cosine(), torch.randn_like(x), x, t, s, 1e-6))
    assert torch.allclose(found[2][0], found[0][0]) and found[2][1].abs().max() < 3 * found[0][1].abs().max()
    (value, forward), (same, difference) = found[:2]
    assert torch.allclose(value, same) and (forward - difference).abs().max() < 1e-2 * forward.abs().max()
    assert not torch.allclose(X.eval()(x, t, s), value)


def test_derivatives_are_taken_in_full_precision_and_through_attention() -> None:
    AcceleratorState._reset_state()
    X, given = small()
    for parameter in X.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, t, s, label = given.x[:4], torch.rand(4), torch.rand(4), given.labels[:4]
    at, along = (x, t, s), (torch.randn_like(x), torch.ones(4), torch.ones(4))
    plain = jvp(lambda x, t, s: X(x, t, s, label), at, along)
    wrapped = Accelerator(mixed_precision="bf16", cpu=True).prepare(X)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.allclose(wrapped(x, t, s, label), plain[0], atol=1e-6), "bfloat16 is another thing"
        for how in ("forward", "difference"):
            value, derivative = jvp(lambda x, t, s: wrapped(x, t, s, label), at, along, how)
            assert torch.equal(value, plain[0]) and (how == "difference" or torch.equal(derivative, plain[1]))
            derivative.square().mean().backward()
        value, derivative = upwind(lambda x, t: wrapped(x, t, s, label), Cosine(), x, x, t, torch.zeros(4))
        assert torch.equal(value, plain[0]) and derivative.dtype == torch.float32
        derivative.square().mean().backward()
        assert torch.is_autocast_enabled("cpu")
    AcceleratorState._reset_state()


class Doubled(torch.autograd.Function):
    """Backward mode and no other."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return 2 * gradient


def test_what_has_no_derivative_says_so() -> None:
    x = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="unknown derivative 'backward': expected forward or difference"):
        jvp(torch.sin, (x,), (x,), "backward")
    with pytest.raises(NotImplementedError, match="no forward-mode derivative: pass derivative='difference'"):
        jvp(Doubled.apply, (x,), (x,))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        jvp(nn.Linear(2, 2), (x,), (x,))
