"""The objective of a bridge: its minimum is the denoiser, and its batches are functions of the step."""

import pytest
import torch
from torch import Tensor, nn

from crossing import paired
from dsno.bridge.coefficients import DDBMVE, I2SB, BrownianBridge
from dsno.bridge.prediction import reading
from dsno.bridge.train import Bridging, degraded, moments_of
from dsno.inverse.operators import Downsample, Function, Mask
from dsno.seeds import noise, seed_range


def objective(kind: str = "ddbm", batch: int = 4096, **options: object) -> Bridging:
    bridge = options.pop("bridge", BrownianBridge())
    x_T, x_0 = paired(bridge).pairs(4000, torch.Generator().manual_seed(0))
    return Bridging(x_T.float(), x_0.float(), bridge, kind, batch=batch, **options)


class Shifted(nn.Module):
    """The exact network, and `shift` beside it."""

    def __init__(self, objective: Bridging, shift: float) -> None:
        super().__init__()
        self.o, self.shift, self.D = objective, shift, paired(objective.bridge, dtype=torch.float32)

    def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        s, p, e, q = (c[:, None] for c in reading(self.o.bridge, self.o.kind, t, self.o.moments))
        return (self.D(x / s, t, cond) - p * (x / s) - e * cond["start"]) / q + self.shift


@pytest.mark.parametrize("bridge", [BrownianBridge(), I2SB(), DDBMVE()])
@pytest.mark.parametrize("kind", ["x0", "flow", "i2sb", "ddbm"])
def test_the_exact_denoiser_is_the_minimum(kind: str, bridge) -> None:
    made = objective(kind, bridge=bridge)
    batch = next(made.batches(0))
    least, above, below = (float(made(Shifted(made, shift), batch)) for shift in (0.0, 0.3, -0.3))
    # A shift d of F adds d^2, but for the correlation of 4096 residuals.
    assert above - least == pytest.approx(0.09, abs=0.03) and below - least == pytest.approx(0.09, abs=0.03)


def test_batches_are_functions_of_the_step_and_shared_by_processes() -> None:
    made = objective(batch=8)
    source = made.batches(0)
    _, second = next(source), next(source)
    again = next(made.batches(1))
    halves = [next(made.batches(1, rank, 2)) for rank in (0, 1)]
    for name, value in second.items():
        assert torch.equal(value, again[name]) and torch.equal(value, torch.cat([half[name] for half in halves]))
    times = second["t"].sort().values
    assert float(times[0]) > 0 and float(times[-1]) <= 1 and float(times.diff().max()) < 0.13
    with pytest.raises(ValueError, match="a batch of 8 cannot be shared evenly by 3"):
        next(made.batches(0, 0, 3))


def test_moments_are_those_of_the_pairs_and_bear_pairs_that_are_equal() -> None:
    x = torch.randn(1000, 3)
    sigma_0, sigma_T, sigma_0T = moments_of(0.5 * x, x)
    assert sigma_0 == pytest.approx(2 * sigma_T) and 0.998 < sigma_0T / (sigma_0 * sigma_T) < 1
    sigma_0, sigma_T, sigma_0T = moments_of(torch.randn(1000, 3), x)
    assert sigma_0T == pytest.approx(0, abs=0.1)


def test_what_does_not_pair_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pairs have one shape, got \(2, 3\) and \(2, 4\)"):
        Bridging(torch.zeros(2, 3), torch.zeros(2, 4), BrownianBridge())
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        objective(batch=0)


# Pairs of a problem


def test_a_problem_makes_the_other_half_of_pairs() -> None:
    x = torch.randn(5, 1, 4, 4)
    small = torch.nn.functional.avg_pool2d(x, 2)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(degraded(Downsample(2), x), large)
    mask = torch.ones(4, 4).triu()
    noisy = degraded(Mask(mask, noise=0.1), x, seed=3, batch=2)
    torch.testing.assert_close(noisy, x * mask + 0.1 * noise(seed_range(3, 5), (1, 4, 4)))
    # Where no pseudo-inverse is known the adjoint brings it to size.
    halves = Function(lambda x: x[..., :2], (1, 4, 4))
    torch.testing.assert_close(degraded(halves, x), torch.cat([x[..., :2], torch.zeros(5, 1, 4, 2)], -1))
    with pytest.raises(ValueError, match="a factor of 3 does not divide samples of 4 x 4"):
        degraded(Downsample(3), x)
