"""The denoiser of pairs in closed form is the mean of the law that Bayes' rule gives."""

import pytest
import torch

from crossing import MEANS, NOISE, A, paired, sliced
from dsno.bridge.closed import PairedMixture
from dsno.bridge.coefficients import DDBMVE, DDBMVP, I2SB, Bridge, BrownianBridge

ALL: dict[str, Bridge] = {"brownian": BrownianBridge(), "i2sb": I2SB(), "vp": DDBMVP(), "ve": DDBMVE()}


@pytest.mark.parametrize("name", ALL)
def test_it_is_the_posterior_mean_by_importance_sampling(name: str) -> None:
    """Weigh draws of the prior by p(x_T | x_0) and p(x_t | x_0, x_T), written as the definitions say."""
    teacher = paired(ALL[name], std=0.5)
    start, x_t = torch.tensor([[0.4, -0.1]], dtype=torch.float64), torch.tensor([[0.2, 0.3]], dtype=torch.float64)
    k = torch.randint(4, (400_000,))
    x_0 = MEANS[k] + 0.5 * torch.randn(400_000, 2, dtype=torch.float64)
    a, b, c = ALL[name].at(0.6)
    log_w = -((start - x_0 @ A.T) ** 2).sum(1) / (2 * NOISE**2) - ((x_t - a * start - b * x_0) ** 2).sum(1) / (2 * c**2)
    mean = log_w.softmax(0) @ x_0
    found = teacher(x_t, torch.tensor(0.6, dtype=torch.float64), {"start": start})[0]
    torch.testing.assert_close(found, mean, rtol=0, atol=0.01)


def test_the_ends_know_everything_and_what_the_start_says(dtype: torch.dtype = torch.float32) -> None:
    for bridge in ALL.values():
        teacher = paired(bridge, dtype=dtype)
        start, x = torch.randn(2, 8, 2, dtype=dtype)
        log_pi, m, _ = teacher.posterior(start)
        said = ((log_pi.exp()[..., None] * m).sum(1)) @ teacher.V.mT
        torch.testing.assert_close(teacher(start, 1.0, {"start": start}), said)
        torch.testing.assert_close(teacher(x, torch.zeros(8), {"start": start}), x)


def test_draws_have_the_law_that_the_pairs_have() -> None:
    teacher, g = paired(BrownianBridge()), torch.Generator().manual_seed(0)
    starts, x_0 = teacher.pairs(20_000, g)
    # Two halves of one law are 0.03 apart.
    assert sliced(teacher.sample(starts, g), x_0) < 0.05
    torch.testing.assert_close((starts - x_0 @ A.T).std(0), torch.full((2,), NOISE).double(), rtol=0.03, atol=0)


def test_what_is_missing_is_said() -> None:
    teacher = paired(BrownianBridge())
    with pytest.raises(ValueError, match='a bridge is told where it comes from: cond={"start": x_T}'):
        teacher(MEANS, 0.5)
    with pytest.raises(ValueError, match=r"A must be a matrix \(2, 2\) .* got \(1, 2\)"):
        PairedMixture(BrownianBridge(), MEANS, 0.2, A[:1], 0.1)
    with pytest.raises(ValueError, match="must be positive"):
        PairedMixture(BrownianBridge(), MEANS, 0.2, A, 0.0)
