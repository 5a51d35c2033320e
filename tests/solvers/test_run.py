"""Solvers converge at their order, to the exact flow or law, on any grid, one sample at a time or many."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dsno.denoise import Denoiser
from dsno.grids import karras, log_snr_uniform, quadratic, uniform
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule, linear_beta
from dsno.seeds import noise, noise_tape, seed_range
from dsno.solvers.chain import Chain
from dsno.solvers.first_order import DDIM, Ancestral
from dsno.solvers.heun import Heun
from dsno.solvers.multistep import DPMSolverPP, UniPC
from dsno.solvers.named import SOLVERS
from dsno.solvers.run import SolverSampler, initial_state, solve
from dsno.solvers.step import Eval, Past, Step
from dsno.teachers.closed import Gaussian, GaussianMixture

MEAN = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
STD = torch.tensor([0.5, 0.9, 1.5], dtype=torch.float64)
MEANS = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.2, -1.2]], dtype=torch.float64)
SMOOTH = {"cosine": Cosine(), "flow": RectifiedFlow(), "ve": VE(4), "linear_beta": linear_beta()}
DETERMINISTIC = [name for name in SOLVERS if name != "ancestral"]

every_solver = pytest.mark.parametrize("step", [build() for build in SOLVERS.values()], ids=SOLVERS.keys())


def states(B: int = 4, shape: tuple[int, ...] = (3,)) -> Tensor:
    return noise(seed_range(0, B), shape, dtype=torch.float64)


def slope(error: Callable[[int], float], steps: tuple[int, int]) -> float:
    """The order seen between two numbers of steps."""
    coarse, fine = (error(N) for N in steps)
    return math.log(coarse / fine) / math.log(steps[1] / steps[0])


# Order of convergence on the Gaussian, whose flow is known


# Heun integrates in t, where linear_beta has a thousand kinks; the others only see the schedule's values.
@pytest.mark.parametrize(
    "name, step, low, high",
    [
        (name, step, low, high)
        for name in SMOOTH
        for step, low, high in [
            (DDIM(), 0.9, 1.1),
            (Heun(), 1.9, 2.1),
            (DPMSolverPP(1), 0.9, 1.1),
            (DPMSolverPP(2), 1.8, 2.2),
            (UniPC(1), 1.8, 2.2),  # the corrector adds an order to every state it has seen
            (UniPC(2), 2.5, 3.2),
            (UniPC(3), 3.0, 4.2),
        ]
        if not (name == "linear_beta" and isinstance(step, Heun))
    ],
    ids=str,
)
def test_order_of_convergence(name: str, step: Step, low: float, high: float) -> None:
    schedule = SMOOTH[name]
    teacher = Gaussian(schedule, MEAN, STD)
    x = max(schedule.at(0.9)[1], 1) * states()
    exact = teacher.flow(x, 0.9, 0.1)

    def error(N: int) -> float:
        return float((solve(teacher, schedule, x, uniform(N, 0.9, 0.1), step).sample - exact).abs().max())

    assert low < slope(error, (48, 96)) < high


@pytest.mark.parametrize("name", SMOOTH)
def test_third_order_multistep_is_of_third_order_once_started(name: str) -> None:
    # One first-order step at the start already costs O(h^2), so the past is given: two exact evaluations.
    schedule = SMOOTH[name]
    teacher = Gaussian(schedule, MEAN, STD)
    x = max(schedule.at(0.9)[1], 1) * states()

    def D(x_t: Tensor, t: float) -> Tensor:
        return teacher(x_t, torch.tensor(t, dtype=torch.float64))

    def error(N: int) -> float:
        times = uniform(N, 0.9, 0.1).tolist()
        path = [teacher.flow(x, 0.9, t) for t in times]
        past: Past = tuple(Eval(t, x_t, D(x_t, t)) for t, x_t in zip(times[1::-1], path[1::-1], strict=True))
        y = path[2]
        for t, s in pairwise(times[2:]):
            y, past = DPMSolverPP(3)(D, schedule, y, t, s, past, None)
        return float((y - path[-1]).abs().max())

    assert 2.75 < slope(error, (64, 128)) < 3.25


@pytest.mark.parametrize("name", ["heun", "dpm2", "dpm3", "unipc2", "unipc3"])
def test_higher_order_pays_on_a_usual_grid(schedule: Schedule, name: str) -> None:
    teacher = GaussianMixture(schedule, MEANS, 0.4)
    x = initial_state(schedule, states(16, (2,)))
    grid = karras(schedule, 20)
    reference = solve(teacher, schedule, x, karras(schedule, 640), DPMSolverPP(2)).sample

    def error(step: Step) -> float:
        return float((solve(teacher, schedule, x, grid, step).sample - reference).pow(2).mean().sqrt())

    assert error(SOLVERS[name]()) < 0.5 * error(DDIM())


# The stochastic chain has an exact law


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
    (a, b, noise_std) = _coefficients(schedule_, t, s, eta)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule_.at(t), schedule_.at(s)
    assert a * alpha_t + b == pytest.approx(alpha_s, abs=1e-12)
    assert (a * sigma_t) ** 2 + noise_std**2 == pytest.approx(sigma_s**2, rel=1e-10, abs=1e-15)


@given(t=st.floats(0.01, 0.99), fraction=st.floats(0.01, 0.99), schedule_=st.sampled_from(list(SMOOTH.values())))
def test_eta_one_draws_from_the_posterior(t: float, fraction: float, schedule_: Schedule) -> None:
    # q(x_s | x_t, x_0) of the Markov chain x_t = (alpha_t / alpha_s) x_s + noise (Ho et al., 2020, eq. 7).
    s = fraction * t
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule_.at(t), schedule_.at(s)
    added = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
    a, b, noise_std = _coefficients(schedule_, t, s, 1.0)
    assert noise_std**2 == pytest.approx(added * sigma_s**2 / sigma_t**2, rel=1e-8)
    assert a == pytest.approx(alpha_t / alpha_s * sigma_s**2 / sigma_t**2, rel=1e-6)
    assert b == pytest.approx(alpha_s * added / sigma_t**2, rel=1e-6)


def _coefficients(schedule: Schedule, t: float, s: float, eta: float) -> tuple[float, float, float]:
    a, b, noise_std = Chain(schedule, torch.tensor([t, s], dtype=torch.float64), eta).coefficients()[0].tolist()
    return a, b, noise_std


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

    assert 0.75 < slope(error, (20, 40)) < 1.3


def test_eta_zero_is_ddim(schedule: Schedule) -> None:
    teacher = GaussianMixture(schedule, MEANS, 0.4)
    x = initial_state(schedule, states(4, (2,)))
    silent = solve(teacher, schedule, x, uniform(6), Ancestral(0.0), seeds=seed_range(0, 4), keep=uniform(6))
    ddim = solve(teacher, schedule, x, uniform(6), DDIM(), keep=uniform(6))
    torch.testing.assert_close(silent.x, ddim.x, rtol=0, atol=0)


def test_first_order_dpm_solver_is_ddim(schedule: Schedule) -> None:
    teacher = GaussianMixture(schedule, MEANS, 0.4)
    x = initial_state(schedule, states(4, (2,)))
    dpm, ddim = (solve(teacher, schedule, x, uniform(6), step).sample for step in (DPMSolverPP(1), DDIM()))
    torch.testing.assert_close(dpm, ddim, rtol=0, atol=0)


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


# Any grid, any schedule, any batch


@every_solver
def test_one_step_from_noise_to_data_is_the_denoiser(schedule: Schedule, step: Step) -> None:
    teacher = GaussianMixture(schedule, MEANS, 0.4)
    x = initial_state(schedule, states(4, (2,)))
    sample = solve(teacher, schedule, x, uniform(1), step, seeds=seed_range(0, 4)).sample
    # The truncated cosine schedule keeps sigma_0 / sigma_1 = 5e-5 of the noise.
    torch.testing.assert_close(sample, teacher(x, torch.tensor(1.0, dtype=torch.float64)), rtol=0, atol=2e-4)


@every_solver
@pytest.mark.parametrize("grid", ["uniform", "quadratic", "karras", "log_snr"])
def test_no_grid_gives_a_nan(schedule: Schedule, step: Step, grid: str) -> None:
    teacher = GaussianMixture(schedule, MEANS, 0.4)
    x = initial_state(schedule, states(4, (2,)).float())
    for N in (1, 2, 3, 9):
        times = {
            "uniform": lambda N: uniform(N),
            "quadratic": lambda N: quadratic(N),
            "karras": lambda N: karras(schedule, N),
            "log_snr": lambda N: log_snr_uniform(schedule, N),
        }[grid](N)
        path = solve(teacher, schedule, x, times, step, seeds=seed_range(0, 4), keep=times)
        assert path.x.isfinite().all()
    # Given a few steps, samples lie where the data do (means of norm < 1.3, std 0.4), not merely below infinity.
    assert path.sample.abs().max() < 4


@every_solver
def test_a_sample_does_not_depend_on_its_batch(step: Step) -> None:
    schedule = Cosine()
    teacher = GaussianMixture(schedule, MEANS, 0.4, labels=[0, 1, 0])
    sampler = SolverSampler(teacher, schedule, quadratic(6), step)
    seeds, labels = torch.tensor([11, 3, 2**40, 7, 8]), torch.tensor([0, 1, 1, 0, 0])
    together = sampler(noise(seeds, (2,), dtype=torch.float64), labels, seeds)
    for i in range(5):
        alone = sampler(noise(seeds[i : i + 1], (2,), dtype=torch.float64), labels[i : i + 1], seeds[i : i + 1])
        torch.testing.assert_close(alone.sample[0], together.sample[i], rtol=1e-12, atol=1e-12)


def test_a_sampler_starts_from_the_noise_of_the_schedule() -> None:
    z = states(2, (2,))
    sampler = SolverSampler(GaussianMixture(VE(80), MEANS, 0.4), VE(80), uniform(2), keep=uniform(2))
    trajectory = sampler(z, seeds=torch.tensor([5, 6]))
    torch.testing.assert_close(trajectory.noise, 80 * z)
    assert trajectory.seeds.tolist() == [5, 6]


@given(split=st.integers(1, 7))
def test_a_one_step_solver_may_stop_and_go_on(split: int) -> None:
    schedule, grid = Cosine(), uniform(8)
    teacher = GaussianMixture(schedule, MEANS, 0.4)
    x = states(4, (2,))
    for step in (DDIM(), Heun()):
        whole = solve(teacher, schedule, x, grid, step).sample
        half = solve(teacher, schedule, x, grid[: split + 1], step).sample
        torch.testing.assert_close(solve(teacher, schedule, half, grid[split:], step).sample, whole, rtol=0, atol=0)


def test_the_denoiser_is_told_the_exact_time_in_half_precision() -> None:
    told = []

    def denoiser(x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        told.append(float(t[0]))
        return x_t

    x = torch.zeros(1, 2, dtype=torch.bfloat16)
    assert solve(denoiser, Cosine(), x, [0.999, 0.499, 0.0]).sample.dtype == torch.bfloat16
    assert told == pytest.approx([0.999, 0.499], abs=1e-6)  # bfloat16 would say 1 and 0.5


# What is kept, and what it cost


def test_noise_and_sample_are_kept_by_default() -> None:
    x = states(2, (2,))
    trajectory = solve(GaussianMixture(Cosine(), MEANS, 0.4), Cosine(), x, uniform(8))
    assert trajectory.x.shape == (2, 2, 2) and trajectory.t.tolist() == [1, 0]
    torch.testing.assert_close(trajectory.noise, x)


@every_solver
def test_only_the_kept_times_come_back_noise_first(step: Step) -> None:
    teacher, x, seeds = GaussianMixture(Cosine(), MEANS, 0.4), states(2, (2,)), seed_range(0, 2)
    everything = solve(teacher, Cosine(), x, quadratic(4), step, seeds=seeds, keep=quadratic(4))
    some = solve(teacher, Cosine(), x, quadratic(4), step, seeds=seeds, keep=[0.0, 0.0625, 0.5625])
    assert some.t.tolist() == [0.5625, 0.0625, 0]
    torch.testing.assert_close(some.x, everything.x[:, [1, 3, 4]], rtol=0, atol=0)


@every_solver
def test_keep_x0_is_what_the_denoiser_said_at_the_kept_states(step: Step) -> None:
    teacher, x, grid = GaussianMixture(Cosine(), MEANS, 0.4), states(2, (2,)), uniform(5)
    trajectory = solve(teacher, Cosine(), x, grid, step, seeds=seed_range(0, 2), keep=grid, keep_x0=True)
    for n, t in enumerate(grid[:-1]):
        torch.testing.assert_close(trajectory.x0[:, n], teacher(trajectory.x[:, n], t), rtol=1e-12, atol=1e-12)
    assert torch.equal(trajectory.x0[:, -1], trajectory.sample)


def test_keep_x0_evaluates_once_more_where_the_grid_ends_in_noise() -> None:
    teacher, x, grid = GaussianMixture(Cosine(), MEANS, 0.4), states(2, (2,)), uniform(5, 1.0, 0.5)
    trajectory = solve(teacher, Cosine(), x, grid, keep_x0=True)
    torch.testing.assert_close(trajectory.x0[:, -1], teacher(trajectory.sample, grid[-1]))
    assert trajectory.nfe == trajectory.rounds == 6
    assert solve(teacher, Cosine(), x, grid).x0 is None


@pytest.mark.parametrize("name", DETERMINISTIC + ["ancestral"])
@pytest.mark.parametrize("N", [1, 5])
def test_cost_is_evaluations_per_sample_and_serial_calls(name: str, N: int) -> None:
    calls = []

    def denoiser(x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        calls.append(len(x_t))
        return 0.5 * x_t

    trajectory = solve(denoiser, VE(), states(3), uniform(N), SOLVERS[name](), seeds=seed_range(0, 3))
    assert trajectory.nfe == trajectory.rounds == (2 * N - 1 if name == "heun" else N)
    assert calls == [3] * trajectory.rounds


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda run: run(keep=[1.0, 0.3]), r"t = 0.3 is not on the grid, so it cannot be kept: the nearest"),
        (lambda run: run(step=Ancestral()), "needs `seeds`"),
        (lambda run: run(grid=[0.0, 1.0]), "decrease strictly"),
        (lambda run: Chain(Cosine(), uniform(4), eta=1.5), r"eta must be in \[0, 1\]"),
        (lambda run: Chain(Cosine(), uniform(4), eta=1.0).run(lambda x, t, c: x, states()), "tape"),
        (lambda run: DPMSolverPP(4), "orders 1, 2 and 3"),
        (lambda run: UniPC(0), "orders 1, 2 and 3"),
    ],
)
def test_what_cannot_be_run_is_refused(build, message: str) -> None:
    def run(grid=(1.0, 0.5, 0.25, 0.0), **arguments):
        return solve(lambda x, t, cond: x, Cosine(), states(), grid, **arguments)

    with pytest.raises(ValueError, match=message):
        build(run)


def test_a_given_tape_replaces_the_seeds() -> None:
    teacher, x = GaussianMixture(Cosine(), MEANS, 0.4), states(2, (2,))
    tape = noise_tape([4, 9], (2,), 5, torch.float64)
    by_tape = solve(teacher, Cosine(), x, uniform(5), Ancestral(), tape=tape).sample
    by_seed = solve(teacher, Cosine(), x, uniform(5), Ancestral(), seeds=torch.tensor([4, 9])).sample
    torch.testing.assert_close(by_tape, by_seed, rtol=0, atol=0)
