"""Guidance through the denoiser: the formulas step by step, its vjps, and how near the posterior it comes."""

import math

import pytest
import torch

from dsno.grids import uniform
from dsno.inverse.backprop import DPS, PiGDM
from dsno.inverse.operators import Mask
from dsno.schedule import RectifiedFlow, Schedule
from dsno.seeds import noise, seed_range
from dsno.solvers.first_order import affine
from posteriors import D64, Correlated

D = 16
KEEP = torch.arange(D) < 8


@pytest.mark.parametrize("tau", [0.0, 0.2])
def test_a_step_is_its_formula(schedule: Schedule, tau: float) -> None:
    data, problem, t, s = Correlated.of(D, schedule), Mask(KEEP, noise=tau), 0.7, 0.4
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.at(t), schedule.at(s)
    n_t, n_s, J = math.hypot(alpha_t, sigma_t), math.hypot(alpha_s, sigma_s), data.jacobian(t)
    a, b, _ = affine(schedule, t, s, 0.0)
    z, y = noise([0, 1], (D,), dtype=D64), problem.A(data.sample(2))
    x = sigma_t * z
    x0_hat = x @ J
    e = y - problem.A(x0_hat)
    r2 = sigma_t**2 * 0.5 / (alpha_t**2 * 0.5 + sigma_t**2)
    dps = 0.3 * n_s * n_t * (e / e.norm(dim=1, keepdim=True)) @ J
    pigdm = n_s * alpha_t * r2 / (r2 + tau**2) * e @ J
    for method, shift in ((DPS([t, s], scale=0.3, eta=0.0), dps), (PiGDM([t, s], variance=0.5, eta=0.0), pigdm)):
        made = method(data.denoiser, schedule, problem, y, z)
        expected = a * x + b * x0_hat + shift
        assert torch.allclose(made.x, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))
        assert (made.cost.rounds, made.cost.rows, made.cost.vjps) == (1, 2, 2)


def test_dps_walks_down_the_misfit() -> None:
    r"""Its shift is $-\zeta \nabla_{x_t} |y - A D(x_t, t)|$ on a variance preserving schedule."""
    data, problem, t, s = Correlated.of(D), Mask(KEEP), 0.7, 0.4
    z, y = noise([0], (D,), dtype=D64), problem.A(data.sample(1))
    sigma_t = data.schedule.at(t)[1]
    with_it, without = (
        DPS([t, s], scale=scale, eta=0.0)(data.denoiser, data.schedule, problem, y, z).x for scale in (2.0, 0.0)
    )
    x = (sigma_t * z).requires_grad_()
    length = (y - problem.A(data.denoiser(x, torch.tensor(t, dtype=D64)))).norm()
    (slope,) = torch.autograd.grad(length, x)
    assert torch.allclose(with_it - without, -2.0 * slope, atol=1e-12)


@pytest.mark.parametrize("tau", [0.05, 0.3])
def test_pigdm_is_near_the_posterior_mean(tau: float) -> None:
    """Of many restorations of one measurement, the mean of what was hidden; without guidance it is 0."""
    data, problem, seeds = Correlated.of(D), Mask(KEEP, noise=tau), seed_range(0, 400)
    y = (problem.A(data.sample(1, seed=5)) + tau * noise([9], (D,), dtype=D64)).expand(400, D)
    mean, std = data.posterior(KEEP, y[:1], tau)
    made = PiGDM(uniform(50))(data.denoiser, data.schedule, problem, y, noise(seeds, (D,), dtype=D64), seeds=seeds)
    off = float(((made.x[:, ~KEEP].mean(0) - mean[0]) / std).square().mean().sqrt())
    assert off < 0.5 and off < 0.7 * float((mean[0] / std).square().mean().sqrt())


def test_more_guidance_fits_better() -> None:
    data, problem, seeds = Correlated.of(D, RectifiedFlow()), Mask(KEEP), seed_range(0, 50)
    y, z = problem.A(data.sample(50)), noise(seeds, (D,), dtype=D64)
    fits = [
        float(DPS(uniform(50), scale=scale)(data.denoiser, data.schedule, problem, y, z, seeds=seeds).residual.mean())
        for scale in (0.0, 0.1, 0.5)
    ]
    assert fits[0] > 2 * fits[1] > 4 * fits[2]


def test_the_variance_of_the_data_is_positive() -> None:
    with pytest.raises(ValueError, match="the variance of the data must be positive, got 0"):
        PiGDM(uniform(2), variance=0.0)
