"""What a network predicts is read so that the exact target gives the exact sample."""

import pytest
import torch
from torch import Tensor, nn

from crossing import paired
from dsno.bridge.coefficients import DDBMVE, DDBMVP, I2SB, Bridge, BrownianBridge
from dsno.bridge.prediction import BridgePrediction, reading
from dsno.bridge.sampler import BridgeSampler
from dsno.bridge.train import moments_of
from dsno.seeds import seed_range

ALL: dict[str, Bridge] = {"brownian": BrownianBridge(), "i2sb": I2SB(), "vp": DDBMVP(), "ve": DDBMVE()}
KINDS = ("x0", "flow", "i2sb", "ddbm")
MOMENTS = (0.8, 0.5, 0.3)


class Exact(nn.Module):
    """A network that predicts `kind` of pairs in closed form, without an error."""

    def __init__(self, bridge: Bridge, kind: str) -> None:
        super().__init__()
        self.kind, self.D = kind, paired(bridge)

    def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        s, p, e, q = (c.reshape(-1, 1) for c in reading(self.D.bridge, self.kind, t.double(), MOMENTS))
        x_t = x / s
        return (self.D(x_t, t.double(), cond) - p * x_t - e * cond["start"]) / q


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ALL)
def test_a_network_without_an_error_is_the_denoiser_whatever_it_predicts(name: str, kind: str) -> None:
    bridge, (x_t, start) = ALL[name], torch.randn(2, 5, 2, dtype=torch.float64)
    made, t = BridgePrediction(Exact(bridge, kind), bridge, kind, MOMENTS), torch.linspace(0.05, 1, 5).double()
    for time in (t, torch.tensor(0.6).double(), 0.6):
        expected = paired(bridge)(x_t, time, {"start": start})
        torch.testing.assert_close(made(x_t, time, {"start": start}), expected, rtol=1e-9, atol=1e-9)


def test_ddbms_preconditioning_is_the_best_linear_guess_and_leaves_unit_variance() -> None:
    bridge, g = DDBMVP(), torch.Generator().manual_seed(0)
    x_T, x_0 = paired(bridge).pairs(200_000, g)
    moments = moments_of(x_T, x_0)
    x_0, x_T = x_0 - x_0.mean(), x_T - x_T.mean()
    for t in (0.2, 0.6, 0.95):
        a, b, c = bridge.at(t)
        x_t = a * x_T + b * x_0 + c * torch.randn(x_0.shape, generator=g, dtype=x_0.dtype)
        s, p, _, q = (float(v) for v in reading(bridge, "ddbm", torch.tensor(t, dtype=torch.float64), moments))
        assert float((s * x_t).square().mean()) == pytest.approx(1, abs=0.02)
        assert p == pytest.approx(float((x_0 * x_t).mean() / x_t.square().mean()), abs=0.01)
        assert float(((x_0 - p * x_t) / q).square().mean()) == pytest.approx(1, abs=0.02)


def test_i2sb_predicts_what_its_authors_do() -> None:
    """(x_t - x_0) / std_fwd, their eq. 12."""
    bridge, t = I2SB(), torch.tensor([0.3], dtype=torch.float64)
    forward = (bridge.total * bridge.levels(t)[1] ** 2).sqrt()
    x_t, x_0 = torch.randn(2, 4, dtype=torch.float64)
    _, p, e, q = reading(bridge, "i2sb", t, MOMENTS)
    torch.testing.assert_close(p * x_t + q * (x_t - x_0) / forward, x_0)
    assert float(e) == 0


def test_it_clips_and_is_sampled_as_it_is() -> None:
    bridge = BrownianBridge()
    made = BridgePrediction(Exact(bridge, "flow"), bridge, "flow", clip=0.5)
    start = torch.tensor([[0.15, 0.1]], dtype=torch.float64).expand(6, 2)
    assert float(made(start, 1.0, {"start": 9 * start}).abs().max()) <= 0.5
    free = BridgePrediction(Exact(bridge, "flow"), bridge, "flow")
    found = BridgeSampler.of_calls(free, bridge, 6)(start, seeds=seed_range(0, 6))
    same = BridgeSampler.of_calls(paired(bridge), bridge, 6)(start, seeds=seed_range(0, 6))
    torch.testing.assert_close(found.sample, same.sample, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "build, message",
    [
        (
            lambda b: BridgePrediction(nn.Identity(), b, "eps"),
            "unknown prediction kind 'eps' of a bridge",
        ),
        (lambda b: BridgePrediction(nn.Identity(), b, moments=(1.0, 1.0, 1.0)), "a covariance below their product"),
        (lambda b: BridgePrediction(nn.Identity(), b)(torch.zeros(1, 2), 0.5), "sample it with BridgeSampler"),
    ],
)
def test_what_is_no_bridge_is_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(BrownianBridge())
