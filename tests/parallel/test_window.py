"""The window: how a tolerance is shared out, and the gain of the linear part."""

import math
from collections.abc import Callable

import pytest
import torch

from chains import CHAINS, D64, METHODS, mixture, problem
from dsno.grids import uniform
from dsno.parallel.picard import Picard
from dsno.parallel.rounds import Exact, System
from dsno.parallel.taa import ParaTAA
from dsno.parallel.window import first_guess, gains, shares
from dsno.schedule import Cosine
from dsno.solvers.chain import Chain
from dsno.teachers.closed import Gaussian


@pytest.mark.parametrize("name", ["picard", "taa", "plain", "m=4"])
@pytest.mark.parametrize(("d", "steps", "eta"), [(2, 100, 0.0), (2, 60, 1.0), (64, 100, 0.0), (64, 30, 0.5)])
def test_a_tolerance_bounds_the_error_of_the_sample(name: str, d: int, steps: int, eta: float) -> None:
    chain = Chain(Cosine(), uniform(steps), eta)
    (x, tape), teacher = problem(chain, d, 32), mixture(d)
    reference = chain.run(teacher, x, tape)
    cost = []
    for tolerance in (1e-2, 1e-4):
        made = METHODS[name](teacher, chain, tolerance=tolerance).solve(x, tape)
        assert float((made.sample - reference.sample).square().mean(1).sqrt().max()) <= tolerance
        cost.append(made.nfe)
    assert cost[0] <= cost[1]


def test_the_tolerance_is_shared_out() -> None:
    for chain in CHAINS.values():
        alpha, sigma = chain.schedule(chain.grid[1:])
        allowed = shares(chain)
        assert float((allowed / (alpha**2 + sigma**2).sqrt()).sum()) == pytest.approx(1)
        assert bool((allowed > 0).all())


def test_the_gain_is_the_derivative_of_a_gaussians_step() -> None:
    chain, std = CHAINS["half"], 0.5
    teacher, zero = Gaussian(Cosine(), torch.zeros(1, dtype=D64), std), torch.zeros(1, 1, dtype=D64)
    system = System(chain, zero, torch.zeros(len(chain), 1, 1, dtype=D64))
    one, sample = torch.ones(1, 1, dtype=D64), torch.zeros(1, dtype=torch.int64)
    steps = [float(system.step(one, teacher(one, t), n, sample)) for n, t in enumerate(chain.grid[:-1])]
    assert gains(chain, std).tolist() == pytest.approx(steps, rel=1e-12)
    # s = 0 is the chain with D held; a large s the ODE with the noise held.
    assert torch.allclose(gains(chain, 1e-9), chain.coefficients()[:, 0])
    ode, (alpha, _) = CHAINS["ddim"], Cosine()(CHAINS["ddim"].grid)
    assert torch.allclose(gains(ode, 1e9), alpha[1:] / alpha[:-1])


@pytest.mark.parametrize("sampler", [Picard, ParaTAA])
@pytest.mark.parametrize(
    "options, message",
    [
        ({"tolerance": 0.0}, "tolerance must be positive, or None to run to the end, got 0"),
        ({"tolerance": -1.0}, "tolerance must be positive"),
        ({"tolerance": math.nan}, "tolerance must be positive"),
        ({"window": 0}, "window must be at least 1 step"),
    ],
)
def test_a_window_or_a_tolerance_that_is_not_positive_is_refused(
    sampler: Callable[..., Exact], options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(mixture(2), CHAINS["ddim"], **options)


@pytest.mark.parametrize("name", ["ddim", "half"])
def test_the_first_guess_follows_the_recursion(name: str) -> None:
    chain = CHAINS[name]
    (x, tape), every = problem(chain, 2), torch.arange(8)
    system, gain = System(chain, x, tape), gains(chain, 0.5)
    drafted = torch.randn(8, len(chain), 2, dtype=D64)
    sweep, y = first_guess(system, x, drafted, gain), x
    # With a draft every step is the chain's, whatever the gain, for the draft belongs to no state.
    for n in range(len(chain)):
        y = system.step(y, drafted[:, n], n, every)
        assert torch.equal(sweep.x[:, n + 1], y)
    assert not sweep.held
    # Without one it is the linear part and the noise.
    sweep, y, zero = first_guess(system, x, None, gain), x, torch.zeros_like(x)
    for n in range(len(chain)):
        y = gain[n] * y + system.step(zero, zero, n, every)
        assert torch.equal(sweep.x[:, n + 1], y)
    assert sweep.held
    # As published it is the noise, at every state.
    assert torch.equal(first_guess(system, x, None, gain, True).x, x[:, None].expand_as(sweep.x))


@pytest.mark.parametrize("sampler", [Picard, ParaTAA])
def test_a_first_guess_is_given_once(sampler: Callable[..., Exact]) -> None:
    chain = CHAINS["ddim"]
    x, _ = problem(chain, 2)
    with pytest.raises(ValueError, match="repeat_noise and draft are two first guesses"):
        sampler(mixture(2), chain, draft=chain.run(mixture(2), x), repeat_noise=True)
