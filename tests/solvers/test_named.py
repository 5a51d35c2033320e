"""Every solver, on any grid: finite, one sample at a time or many, at the cost that is said."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from dsno.grids import karras, log_snr_uniform, quadratic, uniform
from dsno.schedule import VE, Cosine, Schedule
from dsno.seeds import noise, seed_range
from dsno.solvers.first_order import DDIM
from dsno.solvers.multistep import DPMSolverPP
from dsno.solvers.named import SOLVERS, ODESolver, calls_of
from dsno.solvers.run import SolverSampler, initial_state, solve
from dsno.solvers.step import Step
from dsno.teachers.closed import GaussianMixture
from solving import MEANS, states

every_solver = pytest.mark.parametrize("step", [build() for build in SOLVERS.values()], ids=SOLVERS.keys())


def test_a_name_makes_a_new_solver_each_time_and_one_alone_is_stochastic() -> None:
    made = {name: build() for name, build in SOLVERS.items()}
    assert [name for name, step in made.items() if step.stochastic] == ["ancestral"]
    assert {name[-1]: step.order for name, step in made.items() if name[:3] == "dpm"} == {"1": 1, "2": 2, "3": 3}
    assert {name[-1]: step.order for name, step in made.items() if name[:5] == "unipc"} == {"2": 2, "3": 3}


@pytest.mark.parametrize("name", ["heun", "dpm2", "dpm3", "unipc2", "unipc3"])
def test_higher_order_pays_on_a_usual_grid(schedule: Schedule, name: str) -> None:
    teacher = GaussianMixture(schedule, MEANS, 0.4)
    x = initial_state(schedule, states(16, (2,)))
    grid = karras(schedule, 20)
    reference = solve(teacher, schedule, x, karras(schedule, 640), DPMSolverPP(2)).sample

    def error(step: Step) -> float:
        return float((solve(teacher, schedule, x, grid, step).sample - reference).pow(2).mean().sqrt())

    assert error(SOLVERS[name]()) < 0.5 * error(DDIM())


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


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("N", [1, 5])
def test_cost_is_evaluations_per_sample_and_serial_calls(name: str, N: int) -> None:
    calls = []

    def denoiser(x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        calls.append(len(x_t))
        return 0.5 * x_t

    trajectory = solve(denoiser, VE(), states(3), uniform(N), SOLVERS[name](), seeds=seed_range(0, 3))
    assert trajectory.nfe == trajectory.rounds == calls_of(name, N) == (2 * N - 1 if name == "heun" else N)
    assert calls == [3] * trajectory.rounds


def test_the_command_line_offers_every_solver_without_noise_of_its_own() -> None:
    assert get_args(ODESolver) == tuple(name for name, make in SOLVERS.items() if not make().stochastic)
