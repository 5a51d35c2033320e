"""Guidance without derivatives: what was measured is met exactly, and what was not is left to the denoiser."""

import math

import pytest
import torch

from dsno.grids import uniform
from dsno.inverse.operators import Downsample, Mask
from dsno.inverse.problem import Problem
from dsno.inverse.projected import MPGD, DiffPIR, Replacement
from dsno.schedule import Cosine, Schedule
from dsno.seeds import noise, seed_range
from dsno.solvers.first_order import Ancestral
from dsno.solvers.run import solve
from dsno.teachers.closed import Gaussian
from posteriors import D64, Correlated

D = 16
KEEP = torch.arange(D) < 8
SHAPE = (2, 4, 4)


@pytest.mark.parametrize("problem", [Mask.box(SHAPE), Downsample(2), Downsample(2, "bicubic")])
@pytest.mark.parametrize("make", [DiffPIR, Replacement])
def test_without_noise_the_sample_fits_exactly(schedule: Schedule, make: type, problem: Problem) -> None:
    teacher, seeds = Gaussian(schedule, torch.zeros(SHAPE, dtype=D64), 0.5), seed_range(0, 3)
    y, z = problem.A(torch.randn(3, *SHAPE, dtype=D64)), noise(seeds, SHAPE, dtype=D64)
    made = make(uniform(5))(teacher, schedule, problem, y, z, seeds=seeds)
    # What a schedule leaves of the noise at t = 0 is left there.
    assert float(made.residual.max()) < 10 * schedule.at(0.0)[1] + 1e-10
    assert made.cost.vjps == 0


def test_what_is_independent_of_what_was_seen_stays_the_plain_chains() -> None:
    """Each coordinate of this Gaussian is its own: replacement touches the seen ones and no other."""
    teacher = Gaussian(Cosine(), torch.zeros(D, dtype=D64), torch.linspace(0.2, 1.0, D, dtype=D64))
    problem, seeds = Mask(KEEP), seed_range(0, 3)
    z, y = noise(seeds, (D,), dtype=D64), problem.A(torch.randn(3, D, dtype=D64))
    made = Replacement(uniform(6), resamples=1)(teacher, Cosine(), problem, y, z, seeds=seeds)
    tape = torch.stack([noise(seeds, (D,), 2 * n + 1, dtype=D64) for n in range(6)])
    plain = solve(teacher, Cosine(), Cosine().at(1.0)[1] * z, uniform(6), Ancestral(1.0), tape=tape)
    assert torch.allclose(made.x[:, ~KEEP], plain.sample[:, ~KEEP], rtol=0, atol=1e-12)
    assert torch.allclose(made.x[:, KEEP], y[:, KEEP], rtol=0, atol=1e-3)


def test_resampling_brings_what_was_hidden_nearer_to_the_posterior() -> None:
    data, problem, seeds = Correlated.of(D), Mask(KEEP), seed_range(0, 400)
    y = problem.A(data.sample(1, seed=5)).expand(400, D)
    mean, std = data.posterior(KEEP, y[:1])
    off = []
    for resamples in (1, 4):
        method = Replacement(uniform(30), resamples=resamples)
        made = method(data.denoiser, data.schedule, problem, y, noise(seeds, (D,), dtype=D64), seeds=seeds)
        off.append(float(((made.x[:, ~KEEP].mean(0) - mean[0]) / std).square().mean().sqrt()))
        assert made.cost.rounds == 30 * resamples
    assert off[1] < 0.6 * off[0]


def test_a_noisy_measurement_is_not_followed_below_its_noise() -> None:
    tau, seeds = 0.3, seed_range(0, 200)
    data, problem = Correlated.of(D), Mask(KEEP, noise=tau)
    x = data.sample(200)
    y, z = problem.A(x + tau * noise(seeds, (D,), 99, dtype=D64)), noise(seeds, (D,), dtype=D64)
    for make in (DiffPIR, MPGD, Replacement):
        made = make(uniform(30))(data.denoiser, data.schedule, problem, y, z, seeds=seeds)
        misfit = float(made.residual.square().mean().sqrt()) * math.sqrt(2)
        assert 0.5 * tau < misfit < 1.5 * tau, make


def test_the_direction_of_mpgd_is_a_projection_where_a_problem_has_one_scale() -> None:
    data, problem = Correlated.of(D), Mask(KEEP)
    y, z = problem.A(data.sample(2)), noise([0, 1], (D,), dtype=D64)
    one = MPGD([0.6, 0.3], eta=0.0)(data.denoiser, data.schedule, problem, y, z)
    other = DiffPIR([0.6, 0.3], fresh=0.0)(data.denoiser, data.schedule, problem, y, z)
    assert torch.allclose(one.x, other.x, rtol=0, atol=1e-12)
    assert one.cost.vjps == other.cost.vjps == 0
