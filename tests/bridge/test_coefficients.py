"""A bridge is its coefficients: their closed forms, ends, slopes and inverses."""

import math

import pytest
import torch
from torch import Tensor

from dsno.bridge.coefficients import BRIDGES, DDBMVE, DDBMVP, I2SB, Bridge, BrownianBridge, Pinned, bridge_from_config

ALL: dict[str, Bridge] = {
    "brownian": BrownianBridge(0.7),
    "i2sb": I2SB(),
    "steady": I2SB(0.2, 0.2),
    "vp": DDBMVP(),
    "ve": DDBMVE(1.5),
}


@pytest.fixture(params=ALL.values(), ids=ALL.keys())
def bridge(request: pytest.FixtureRequest) -> Bridge:
    return request.param


def times(n: int = 41) -> Tensor:
    return torch.linspace(0, 1, n, dtype=torch.float64)


def test_the_brownian_bridge_is_the_one_of_the_books() -> None:
    a, b, c = BrownianBridge(0.7).at(0.3)
    assert (a, b, c) == pytest.approx((0.3, 0.7, 0.7 * math.sqrt(0.3 * 0.7)), rel=1e-14)


def test_ve_and_vp_are_the_diffusion_with_its_end_pinned() -> None:
    """Condition x_t = alpha x_0 + sigma eps on x_T by the rule for Gaussians, without a word of bridges."""
    t = times()[1:-1]
    for made, alpha, rho2, alpha_T, rho2_T in (
        (DDBMVE(1.5), torch.ones_like(t), (1.5 * t) ** 2, 1.0, 1.5**2),
        (DDBMVP(), torch.exp(-(0.1 * t + t**2) / 2), torch.exp(0.1 * t + t**2) - 1, math.exp(-0.55), math.e**1.1 - 1),
    ):
        # x_T | x_t is N(alpha_T / alpha x_t, alpha_T^2 (rho_T^2 - rho^2)), so cov(x_t, x_T) = alpha alpha_T rho^2.
        gain = alpha * alpha_T * rho2 / (alpha_T**2 * rho2_T)
        a, b, c = made(t)
        torch.testing.assert_close(a, gain, rtol=1e-12, atol=0)
        torch.testing.assert_close(b, alpha - gain * alpha_T, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(c**2, alpha**2 * rho2 - gain * alpha * alpha_T * rho2, rtol=1e-12, atol=1e-14)


def test_i2sb_is_its_authors_table() -> None:
    N = 1000
    beta = torch.linspace(math.sqrt(0.1), math.sqrt(0.3), N, dtype=torch.float64)[: N // 2] ** 2 / N
    beta = torch.cat([beta, beta.flip(0)])
    forward, backward = beta.cumsum(0), beta.flip(0).cumsum(0).flip(0)
    a, b, c = I2SB()((torch.arange(N).double() + 0.5) / N)
    total = forward + backward
    torch.testing.assert_close(a, forward / total, rtol=0, atol=4e-4)
    torch.testing.assert_close(b, backward / total, rtol=0, atol=4e-4)
    torch.testing.assert_close(c, (forward * backward / total).sqrt(), rtol=0, atol=3e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_ends_are_the_samples_themselves(bridge: Bridge, dtype: torch.dtype) -> None:
    a, b, c = bridge(torch.tensor([0.0, 1.0], dtype=dtype))
    assert a.dtype == dtype
    assert (a[0], b[0], c[0]) == (0, 1, 0) and (b[1], c[1]) == (0, 0)
    assert float(a[1]) == pytest.approx(1, abs=torch.finfo(dtype).eps * 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nothing_is_nan_anywhere(bridge: Bridge, dtype: torch.dtype) -> None:
    t = torch.cat([times(1001), torch.tensor([1e-30, 1e-12, 1 - 1e-12])]).to(dtype)
    for values in (bridge(t), bridge.derivative(t), bridge.log_derivative(t), Pinned(bridge)(t)):
        for value in values:
            assert value.shape == t.shape and value.dtype == dtype and not value.isnan().any()
    assert bool(torch.stack(bridge(t)).isfinite().all()) and not Pinned(bridge).log_snr(t).isnan().any()


def test_logarithms_are_infinite_where_a_coefficient_vanishes(bridge: Bridge) -> None:
    a, b, c = bridge.log_derivative(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert (a[0], c[0]) == (math.inf, math.inf) and (b[1], c[1]) == (-math.inf, -math.inf)
    assert b[0].isfinite() and a[1].isfinite()
    assert bridge.derivative(torch.tensor(1.0))[2] == -math.inf


def test_slopes_are_those_of_differences(bridge: Bridge) -> None:
    t, h = times(40)[1:-1], 1e-6  # no time at the kink of I2SB's rate
    slopes, logs = bridge.derivative(t), bridge.log_derivative(t)
    for above, below, slope, log, value in zip(bridge(t + h), bridge(t - h), slopes, logs, bridge(t), strict=True):
        torch.testing.assert_close(slope, (above - below) / (2 * h), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(slope, log * value, rtol=1e-12, atol=1e-12)


def test_the_share_of_the_variance_is_inverted(bridge: Bridge) -> None:
    t = times()
    torch.testing.assert_close(bridge.time(bridge.levels(t)[1] ** 2), t, rtol=1e-9, atol=1e-12)


# What is left when the end is given


def test_a_pinned_bridge_is_a_schedule_whose_signal_to_noise_ratio_falls(bridge: Bridge) -> None:
    schedule, t = Pinned(bridge), times()
    log_snr = schedule.log_snr(t)
    assert log_snr[0] == math.inf and log_snr[-1] == -math.inf and bool((log_snr.diff() < 0).all())
    b, c = schedule(t[1:-1])
    torch.testing.assert_close(log_snr[1:-1], 2 * (b / c).log(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(schedule.time(log_snr), t, rtol=1e-9, atol=1e-12)


def test_a_pinned_bridge_is_a_markov_chain_backwards(bridge: Bridge) -> None:
    """x_s given x_t and x_0 is a bridge of its own: its law does not know x_T. The house's ancestral step says so."""
    from dsno.solvers.first_order import affine

    (a_t, b_t, c_t), (a_s, b_s, c_s) = bridge.at(0.7), bridge.at(0.3)
    gain, _, nu = affine(Pinned(bridge), 0.7, 0.3, 1.0)
    assert a_s - gain * a_t == pytest.approx(0, abs=1e-12)
    assert (gain * c_t) ** 2 + nu**2 == pytest.approx(c_s**2, rel=1e-12) and b_s > gain * b_t


# Configuration


def test_a_bridge_is_rebuilt_from_its_configuration(bridge: Bridge) -> None:
    again = bridge_from_config(bridge.config)
    assert again == bridge and hash(again) == hash(bridge) and repr(again) == repr(bridge)
    assert again != BrownianBridge(0.123) and {made.__name__ for made in BRIDGES.values()} == {*BRIDGES}


@pytest.mark.parametrize(
    "config, message",
    [
        ({"name": "Bridge"}, "unknown bridge 'Bridge': expected one of BrownianBridge, I2SB, DDBMVP, DDBMVE"),
        ({"name": "I2SB", "beta": 1.0}, "unknown key 'beta' in the bridge I2SB"),
        ({"name": "DDBMVE", "sigma_max": "1"}, "sigma_max"),
        ({"name": "DDBMVE", "sigma_max": 0.0}, "sigma_max must be positive and finite, got 0"),
        ({"name": "DDBMVP", "beta_d": -1.0}, "beta_d must be at least 0 and finite, got -1"),
        ({"name": "BrownianBridge", "kappa": math.inf}, "kappa must be positive and finite, got inf"),
    ],
)
def test_what_is_no_bridge_is_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bridge_from_config(config)
