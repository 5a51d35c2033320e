"""The chain is its coefficients, and has an exact law."""

import pytest
import torch
from torch import Tensor

from dsno.denoise import Denoiser
from dsno.grids import quadratic, uniform
from dsno.schedule import Cosine, Schedule
from dsno.seeds import seed_range
from dsno.solvers.chain import Chain
from dsno.solvers.first_order import DDIM, Ancestral, affine
from dsno.solvers.run import initial_state, solve
from dsno.teachers.closed import Gaussian, GaussianMixture
from solving import MEAN, MEANS, SMOOTH, STD, order, states


def law(denoiser: Denoiser, schedule: Schedule, grid: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of the sample of a chain that is linear in its inputs, by running it on unit inputs."""
    N, zero = len(grid) - 1, torch.zeros(1, 3, dtype=torch.float64)

    def run(x: Tensor, tape: Tensor) -> Tensor:
        return solve(denoiser, schedule, x, grid, Ancestral(eta), tape=tape).sample[0]

    silence = torch.zeros(N, 1, 3, dtype=torch.float64)
    mean = run(zero, silence)
    sigma_1 = schedule.at(float(grid[0]))[1]
    variance = (sigma_1 * (run(zero + 1, silence) - mean)) ** 2
    for n in range(N):
        impulse = silence.clone()
        impulse[n] = 1
        variance += (run(zero, impulse) - mean) ** 2
    return mean, variance


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_chains_law_is_the_closed_form_recursion(schedule: Schedule, eta: float) -> None:
    teacher = Gaussian(schedule, MEAN, STD)
    grid = uniform(8)
    mean, variance = torch.zeros_like(MEAN), torch.full_like(MEAN, schedule.at(1.0)[1] ** 2)
    coefficients = Chain(schedule, grid, eta).coefficients().tolist()
    for t, (a, b, noise_std) in zip(grid.tolist(), coefficients, strict=False):
        alpha_t, sigma_t = schedule.at(t)
        gain = alpha_t * STD**2 / (alpha_t**2 * STD**2 + sigma_t**2)
        mean = a * mean + b * (MEAN + gain * (mean - alpha_t * MEAN))
        variance = (a + b * gain) ** 2 * variance + noise_std**2
    for ours, theirs in zip(law(teacher, schedule, grid, eta), (mean, variance), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["cosine", "flow", "linear_beta"])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_chains_variance_converges_at_first_order(name: str, eta: float) -> None:
    schedule = SMOOTH[name]
    teacher = Gaussian(schedule, MEAN, STD)

    def error(N: int) -> float:
        _, variance = law(teacher, schedule, uniform(N), eta)
        return float((variance - STD**2).abs().max())

    assert 0.75 < order(error, (20, 40)) < 1.3


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_a_chain_is_its_coefficients_and_what_solve_runs(schedule: Schedule, eta: float) -> None:
    teacher = GaussianMixture(schedule, MEANS, 0.4)
    chain = Chain(schedule, quadratic(6), eta)
    seeds = seed_range(5, 4)
    x = initial_state(schedule, states(4, (2,)))
    tape = chain.tape(seeds, (2,), torch.float64)
    path = chain.run(teacher, x, tape)
    solved = solve(teacher, schedule, x, chain.grid, Ancestral(eta), seeds=seeds, keep=chain.grid)
    torch.testing.assert_close(path.x, solved.x, rtol=0, atol=0)
    for n, (a, b, noise_std) in enumerate(chain.coefficients().tolist()):
        torch.testing.assert_close(path.x[:, n], x)
        x = a * x + b * teacher(x, chain.grid[n]) + noise_std * tape[n]
    torch.testing.assert_close(path.sample, x)
    assert len(chain) == 6 and path.rounds == path.nfe == 6


def test_a_deterministic_chain_needs_no_tape() -> None:
    x = states(2, (2,))
    teacher = GaussianMixture(Cosine(), MEANS, 0.4)
    expected = solve(teacher, Cosine(), x, uniform(5), DDIM()).sample
    torch.testing.assert_close(Chain(Cosine(), uniform(5)).run(teacher, x).sample, expected, rtol=0, atol=0)


def test_a_chain_passes_the_condition_on() -> None:
    x, labels = states(3, (2,)), torch.tensor([0, 1, 0])
    teacher = GaussianMixture(Cosine(), MEANS, 0.4, labels=[0, 1, 0])
    path = Chain(Cosine(), uniform(5)).run(teacher, x, cond=labels)
    expected = solve(teacher, Cosine(), x, uniform(5), cond=labels)
    torch.testing.assert_close(path.sample, expected.sample, rtol=0, atol=0)
    assert path.cond is labels


def test_a_step_has_the_coefficients_of_a_first_order_solver(schedule: Schedule) -> None:
    chain = Chain(schedule, uniform(3), 0.6)
    expected = [affine(schedule, t, s, 0.6) for t, s in ((1.0, 2 / 3), (2 / 3, 1 / 3), (1 / 3, 0.0))]
    torch.testing.assert_close(chain.coefficients(), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Chain(Cosine(), uniform(4), eta=1.5), r"eta must be in \[0, 1\], got 1.5"),
        (lambda: Chain(Cosine(), uniform(4), eta=1.0).run(lambda x, t, c: x, states()), "a noise `tape`"),
        (lambda: Chain(Cosine(), torch.tensor([0.0, 1.0])), "decrease strictly"),
    ],
)
def test_what_is_no_chain_is_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
