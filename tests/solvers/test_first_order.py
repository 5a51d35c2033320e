"""A first-order step carries the marginals, and DDIM's step has an inverse."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsno.denoise import expand_like
from dsno.grids import uniform
from dsno.schedule import Schedule
from dsno.seeds import seed_range
from dsno.solvers.first_order import DDIM, Ancestral, affine, ddim_inverse, ddim_step
from dsno.solvers.run import initial_state, solve
from dsno.teachers.closed import GaussianMixture
from solving import MEANS, SMOOTH, order_on_the_gaussian, states


@pytest.mark.parametrize("name", SMOOTH)
def test_ddim_is_of_first_order(name: str) -> None:
    assert 0.9 < order_on_the_gaussian(DDIM(), SMOOTH[name]) < 1.1


@given(
    eta=st.floats(0, 1),
    t=st.floats(0.01, 1),
    fraction=st.floats(0, 0.99),
    schedule_=st.sampled_from(list(SMOOTH.values())),
)
def test_a_chain_step_carries_the_marginals_of_known_data(
    eta: float, t: float, fraction: float, schedule_: Schedule
) -> None:
    # With D = x0, x_t = alpha_t x0 + sigma_t eps must become alpha_s x0 + sigma_s eps' for every eta.
    s = fraction * t
    a, b, nu = affine(schedule_, t, s, eta)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule_.at(t), schedule_.at(s)
    assert a * alpha_t + b == pytest.approx(alpha_s, abs=1e-12)
    assert (a * sigma_t) ** 2 + nu**2 == pytest.approx(sigma_s**2, rel=1e-10, abs=1e-15)


@given(t=st.floats(0.01, 0.99), fraction=st.floats(0.01, 0.99), schedule_=st.sampled_from(list(SMOOTH.values())))
def test_eta_one_draws_from_the_posterior(t: float, fraction: float, schedule_: Schedule) -> None:
    # q(x_s | x_t, x_0) of the Markov chain x_t = (alpha_t / alpha_s) x_s + noise (Ho et al., 2020, eq. 7).
    s = fraction * t
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule_.at(t), schedule_.at(s)
    added = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
    a, b, nu = affine(schedule_, t, s, 1.0)
    assert nu**2 == pytest.approx(added * sigma_s**2 / sigma_t**2, rel=1e-8)
    assert a == pytest.approx(alpha_t / alpha_s * sigma_s**2 / sigma_t**2, rel=1e-6)
    assert b == pytest.approx(alpha_s * added / sigma_t**2, rel=1e-6)


def test_eta_zero_is_ddim(schedule: Schedule) -> None:
    teacher = GaussianMixture(schedule, MEANS, 0.4)
    x = initial_state(schedule, states(4, (2,)))
    silent = solve(teacher, schedule, x, uniform(6), Ancestral(0.0), seeds=seed_range(0, 4), keep=uniform(6))
    ddim = solve(teacher, schedule, x, uniform(6), DDIM(), keep=uniform(6))
    torch.testing.assert_close(silent.x, ddim.x, rtol=0, atol=0)


def test_a_step_of_tensors_is_the_solvers_for_each_row(schedule: Schedule) -> None:
    x_t, x0 = states(4), states(4).flip(0)
    t, s = torch.tensor([0.9, 0.5, 0.7, 1.0]).double(), torch.tensor([0.3, 0.5, 0.0, 0.2]).double()
    x_s = ddim_step(schedule, x0, x_t, t, s)
    for n in range(4):
        rows, said = slice(n, n + 1), x0[n : n + 1]
        alone, _ = DDIM()(lambda x, t, said=said: said, schedule, x_t[rows], float(t[n]), float(s[n]), (), None)
        torch.testing.assert_close(x_s[rows], alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x_s[1], x_t[1], rtol=0, atol=1e-15)  # no step
    torch.testing.assert_close(ddim_step(schedule, x0, x_t, t[0], s[0])[0], x_s[0], rtol=0, atol=0)
    sigma_s, alpha_s = (expand_like(c, x_t) for c in reversed(schedule(s)))
    (alpha_t, sigma_t) = (expand_like(c, x_t) for c in schedule(t))
    eps_hat = (x_t - alpha_t * x0) / sigma_t
    torch.testing.assert_close(x_s, alpha_s * x0 + sigma_s * eps_hat, rtol=1e-10, atol=1e-10)


def test_the_inverse_finds_the_clean_sample_of_a_step(schedule: Schedule) -> None:
    x_t, x0 = states(4), states(4).flip(0)
    t, s = torch.tensor([0.9, 0.5, 0.7, 1.0]).double(), torch.tensor([0.3, 0.2, 0.0, 0.2]).double()
    found = ddim_inverse(schedule, ddim_step(schedule, x0, x_t, t, s), x_t, t, s)
    # On VE the gain of a step is its share of the way, 0.3 at least.
    torch.testing.assert_close(found, x0, rtol=1e-9, atol=1e-9)
