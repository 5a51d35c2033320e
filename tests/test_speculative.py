"""Speculative sampling: the law of the chain whatever the draft, and a control that shows the tests can fail."""

import math
from functools import partial

import pytest
import torch
from scipy import stats
from torch import Tensor

from dsno.denoise import Gaussian, GaussianMixture, Meter
from dsno.noise import noise
from dsno.parallel import speculative
from dsno.parallel.speculative import Speculative, reflect
from dsno.schedule import Cosine, RectifiedFlow, quadratic, uniform
from dsno.solve import Chain, initial_state
from dsno.trajectory import Trajectory
from test_receding import MIXTURE, SHAPE, solving

D64 = torch.float64
MEAN, STD = torch.tensor([0.7, -0.3, 1.5], dtype=D64), torch.tensor([0.2, 0.6, 1.3], dtype=D64)
COUNT = 40_000


def test_reflection_couples_two_gaussians() -> None:
    g, R = torch.Generator().manual_seed(0), 20_000
    for distance in (0.1, 0.7, 2.0, 6.0):
        z, u = torch.randn(R, 2, 3, dtype=D64, generator=g), torch.rand(R, dtype=D64, generator=g)
        e = torch.nn.functional.normalize(torch.randn(6, dtype=D64, generator=g), dim=0).reshape(2, 3)
        s, m_q = torch.full((R,), 0.3, dtype=D64), torch.randn(R, 2, 3, dtype=D64, generator=g)
        x, accepted = reflect(m_q + 0.3 * distance * e, m_q, s, z, u)
        white = (x - m_q) / 0.3
        assert stats.kstest((white * e).sum((1, 2)).numpy(), "norm").pvalue > 1e-3
        assert stats.kstest(white[:, 0, 1].numpy(), "norm").pvalue > 1e-3
        expected = 2 * stats.norm.cdf(-distance / 2)
        error = math.sqrt(expected * (1 - expected) / R)
        assert abs(float(accepted.double().mean()) - expected) < 4 * error
        # What is accepted is the draft's own state.
        assert torch.equal(x[accepted], (m_q + 0.3 * distance * e + 0.3 * z)[accepted])


def test_a_draft_that_is_the_target_is_always_accepted() -> None:
    m, z = torch.randn(5, 4), torch.randn(5, 4)
    x, accepted = reflect(m, m, torch.full((5,), 0.1), z, torch.full((5,), 1 - 1e-7))
    assert bool(accepted.all()) and torch.equal(x, m + 0.1 * z)


def test_without_noise_the_state_is_the_chains() -> None:
    m_p, m_q = torch.randn(5, 4), torch.randn(5, 4)
    x, accepted = reflect(m_p, m_q, torch.zeros(5), torch.randn(5, 4), torch.rand(5))
    assert not bool(accepted.any()) and torch.equal(x, m_q)


def moments(chain: Chain) -> tuple[Tensor, Tensor]:
    """Mean and variance of every state, (N + 1, d): the chain of a Gaussian is affine in the state."""
    mean, variance = [torch.zeros_like(MEAN)], [torch.ones_like(STD)]
    for t, (a, b, s) in zip(chain.grid.tolist(), chain.coefficients().tolist(), strict=False):
        alpha, sigma = chain.schedule.at(t)
        k = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        mean.append((a + b * k) * mean[-1] + b * (1 - k * alpha) * MEAN)
        variance.append((a + b * k) ** 2 * variance[-1] + s**2)
    return torch.stack(mean), torch.stack(variance)


def worst(chain: Chain, made: Trajectory) -> float:
    """The largest deviation of mean, variance or covariance of an inner and the last state, in standard errors."""
    means, variances = moments(chain)
    found = []
    for n in (len(chain) // 2, len(chain)):
        x, mean, variance = made.x[:, n], means[n], variances[n]
        white = (x - mean) / variance.sqrt()
        found += (white.mean(0) * math.sqrt(COUNT)).tolist()
        found += ((white.square().mean(0) - 1) * math.sqrt(COUNT / 2)).tolist()
        i, j = torch.triu_indices(3, 3, 1)
        found += ((white[:, i] * white[:, j]).mean(0) * math.sqrt(COUNT)).tolist()
        # Each state's noise is fresh: what is left over from the state before has the chain's share.
        alpha, sigma = chain.schedule.at(float(chain.grid[n - 1]))
        a, b, _ = chain.coefficients()[n - 1].tolist()
        k = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        before = (made.x[:, n - 1] - means[n - 1]) / variances[n - 1].sqrt()
        rho = (a + b * k) * variances[n - 1].sqrt() / variance.sqrt()
        found += (((before * white).mean(0) - rho) / ((1 + rho**2) / COUNT).sqrt()).tolist()
    return max(map(abs, found))


def garbage(chain: Chain, x: Tensor) -> Trajectory:
    """A draft that knows nothing: constant, and far away."""
    x0 = torch.full((1, 2, 3), 2.0, dtype=D64).expand(len(x), 2, 3)
    return Trajectory(x0, chain.grid[[0, -1]], x0)


VARIANTS = {
    "one call": {},
    "two calls": {"refresh": True},
    "adaptive": {"adaptive": True},
    "window 1": {"window": 1},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_the_law_is_the_chains(options: dict, eta: float) -> None:
    chain, teacher = Chain(Cosine(), uniform(16), eta), Gaussian(Cosine(), MEAN, STD)
    seeds = torch.arange(COUNT)
    made = Speculative(teacher, chain, **{"window": 6, **options})(noise(seeds, (3,), dtype=D64), seeds=seeds)
    assert worst(chain, made) < 4
    assert made.rounds <= (len(chain) + 1 if "refresh" in options else len(chain))


def far(chain: Chain, teacher: Gaussian) -> Trajectory:
    seeds = torch.arange(COUNT)
    z = noise(seeds, (3,), dtype=D64)
    return Speculative(teacher, chain, window=6, draft=garbage(chain, z))(z, seeds=seeds)


def test_the_law_is_the_chains_from_a_draft_that_knows_nothing() -> None:
    chain, teacher = Chain(Cosine(), uniform(16), 1.0), Gaussian(Cosine(), MEAN, STD)
    assert worst(chain, far(chain, teacher)) < 4


def test_without_the_reflection_the_same_test_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def naive(m_p: Tensor, m_q: Tensor, s: Tensor, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        x, accepted = reflect(m_p, m_q, s, z, u)
        return torch.where(accepted[:, None], x, m_q + s[:, None] * z), accepted

    monkeypatch.setattr(speculative, "reflect", naive)
    chain, teacher = Chain(Cosine(), uniform(16), 1.0), Gaussian(Cosine(), MEAN, STD)
    assert worst(chain, far(chain, teacher)) > 8


def test_every_step_is_the_coupling_of_its_neighbours() -> None:
    """On a mixture, where nothing is closed form: given the state before, each step's noise is standard normal."""
    means = torch.randn(4, 2, dtype=D64, generator=torch.Generator().manual_seed(1))
    teacher, chain = GaussianMixture(RectifiedFlow(), means, 0.2), Chain(RectifiedFlow(), quadratic(12), 0.8)
    seeds = torch.arange(4000)
    made = Speculative(teacher, chain, window=5)(noise(seeds, (2,), dtype=D64), seeds=seeds)
    for n, (t, (a, b, s)) in enumerate(zip(chain.grid.tolist(), chain.coefficients().tolist(), strict=False)):
        before = made.x[:, n]
        mean = a * before + b * teacher(before, torch.tensor(t, dtype=D64))
        if s == 0:
            assert torch.allclose(made.x[:, n + 1], mean)
        else:
            assert stats.kstest(((made.x[:, n + 1] - mean) / s).flatten().numpy(), "norm").pvalue > 1e-4


def test_a_restarting_student_redrafts_each_window() -> None:
    chain, seeds = Chain(Cosine(), uniform(16), 0.5), torch.arange(40)
    z = noise(seeds, SHAPE, dtype=D64)
    run = partial(Speculative, MIXTURE, chain, window=6)
    x0 = torch.full((40, 2, *SHAPE), 2.0, dtype=D64)
    blind, drafted = run(draft=Trajectory(x0, chain.grid[[0, -1]], x0)), run(draft=solving())
    made, worse = drafted(z, seeds=seeds), blind(z, seeds=seeds)
    assert made.trace is not None and worse.trace is not None
    assert torch.equal(made.trace.draft_rounds, made.trace.rounds)
    assert float(made.trace.history.nanmean()) > float(worse.trace.history.nanmean()) + 0.2
    assert int(made.trace.rounds.sum()) < int(worse.trace.rounds.sum())


def test_a_sample_is_the_same_in_any_company() -> None:
    chain, teacher = Chain(Cosine(), uniform(20), 1.0), Gaussian(Cosine(), MEAN, STD)
    seeds = torch.arange(7)
    z = noise(seeds, (3,), dtype=D64)
    for options in VARIANTS.values():
        sampler = Speculative(teacher, chain, **{"window": 6, **options})
        together, alone = sampler(z, seeds=seeds), sampler(z[3:4], seeds=seeds[3:4])
        assert torch.equal(together.x[3], alone.x[0])
        assert together.trace is not None and int(together.trace.rounds[3]) == alone.rounds


def test_the_trace_is_what_a_meter_counts() -> None:
    chain, meter = Chain(Cosine(), uniform(20), 1.0), Meter(Gaussian(Cosine(), MEAN, STD))
    seeds = torch.arange(5)
    for options in VARIANTS.values():
        meter.reset()
        made = Speculative(meter, chain, **{"window": 6, **options})(noise(seeds, (3,), dtype=D64), seeds=seeds)
        assert made.trace is not None
        assert meter.rounds == made.rounds >= int(made.trace.rounds.max())
        assert meter.rows == int(made.trace.rows.sum())
        assert torch.equal(made.x[:, 0], noise(seeds, (3,), dtype=D64) * Cosine().at(1.0)[1])


def test_conditions_reach_their_rows() -> None:
    means = torch.tensor([[-5.0], [5.0]], dtype=D64)
    teacher, chain = Gaussian(Cosine(), means, 0.1, classes=2), Chain(Cosine(), uniform(12), 1.0)
    seeds = torch.arange(10)
    made = Speculative(teacher, chain, window=4)(noise(seeds, (1,), dtype=D64), seeds % 2, seeds)
    assert torch.equal((made.sample[:, 0] > 0).long(), seeds % 2)


def test_bad_input() -> None:
    teacher, chain = Gaussian(Cosine(), MEAN, STD), Chain(Cosine(), uniform(8), 1.0)
    with pytest.raises(ValueError, match="window must be at least 1 step, got 0"):
        Speculative(teacher, chain, window=0)
    with pytest.raises(ValueError, match="needs a stochastic chain, got eta = 0"):
        Speculative(teacher, Chain(Cosine(), uniform(8)))
    z = torch.randn(3, 3, dtype=D64)
    for seeds in (None, torch.arange(2)):
        with pytest.raises(ValueError, match=r"pass `seeds`, one per sample \(3\)"):
            Speculative(teacher, chain)(z, seeds=seeds)
    wrong = Trajectory(torch.zeros(3, 2, 4, dtype=D64), chain.grid[[0, -1]])
    with pytest.raises(ValueError, match="the draft's states have shape"):
        Speculative(teacher, chain, draft=wrong)(z, seeds=torch.arange(3))

    def broken(x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.where((t < 0.5)[:, None], torch.nan, teacher(x_t, t))

    with pytest.raises(FloatingPointError, match=r"not finite for sample \d at t = 0\.\d+"):
        Speculative(broken, chain).solve(initial_state(Cosine(), z), seeds=torch.arange(3))
