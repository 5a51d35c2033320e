"""Multistep solvers converge at their order, once they are started, at one evaluation a step."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dsno.grids import uniform
from dsno.schedule import Cosine, Schedule
from dsno.solvers.first_order import DDIM
from dsno.solvers.multistep import DPMSolverPP, UniPC, _unipc_weights
from dsno.solvers.run import initial_state, solve
from dsno.solvers.step import Eval, Past, Step
from dsno.teachers.closed import Gaussian, GaussianMixture
from solving import MEAN, MEANS, SMOOTH, STD, order, order_on_the_gaussian, states


@pytest.mark.parametrize(
    "step, low, high",
    [
        (DPMSolverPP(1), 0.9, 1.1),
        (DPMSolverPP(2), 1.8, 2.2),
        (DPMSolverPP(3), 2.75, 3.25),
        (UniPC(1), 1.8, 2.2),  # the corrector adds an order to every state it has seen
        (UniPC(2), 2.5, 3.2),
        (UniPC(3), 3.0, 4.2),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", SMOOTH)
def test_order_of_convergence(name: str, step: Step, low: float, high: float) -> None:
    assert low < order_on_the_gaussian(step, SMOOTH[name]) < high


@pytest.mark.parametrize("name", SMOOTH)
def test_third_order_multistep_is_of_third_order_once_started(name: str) -> None:
    # Whatever the first steps are: the past is given, two exact evaluations.
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

    assert 2.75 < order(error, (64, 128)) < 3.25


def test_the_first_step_of_order_3_is_corrected_below_1_alone_at_no_evaluation() -> None:
    schedule, x = Cosine(), states()
    teacher = Gaussian(schedule, MEAN, STD)

    def D(x_t: Tensor, t: float) -> Tensor:
        return teacher(x_t, torch.tensor(t, dtype=torch.float64))

    def second(order: int, start: float) -> Tensor:
        """The state that the second step starts from: its past says it."""
        y, past = DPMSolverPP(order)(D, schedule, x, start, 0.8, (), None)
        return DPMSolverPP(order)(D, schedule, y, 0.8, 0.7, past, None)[1][0].x

    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.at(0.8), schedule.at(0.9)
    first = DDIM()(D, schedule, x, 0.9, 0.8, (), None)[0]
    ratio, mean = sigma_s / sigma_t, (D(x, 0.9) + D(first, 0.8)) / 2
    assert torch.equal(second(2, 0.9), first)
    assert torch.allclose(second(3, 0.9), ratio * x + (alpha_s - ratio * alpha_t) * mean, rtol=0, atol=1e-14)
    assert torch.equal(second(3, 1.0), DDIM()(D, schedule, x, 1.0, 0.8, (), None)[0])
    for start in (0.9, 1.0):
        assert solve(teacher, schedule, x, uniform(7, start), DPMSolverPP(3)).nfe == 7


@pytest.mark.parametrize(("start", "end", "low", "high"), [(1.0, 0.1, 1.9, 3.2), (0.6, 0.0, 1.4, 2.2)])
@pytest.mark.parametrize("name", SMOOTH)
def test_to_an_end_of_the_path_order_3_is_less(name: str, start: float, end: float, low: float, high: float) -> None:
    schedule = SMOOTH[name]
    teacher, x = Gaussian(schedule, MEAN, STD), max(schedule.at(start)[1], 1) * states()

    def error(N: int) -> float:
        made = solve(teacher, schedule, x, uniform(N, start, end), DPMSolverPP(3)).sample
        return float((made - teacher.flow(x, start, end)).square().mean().sqrt())

    assert low < order(error, (64, 128)) < high


def test_first_order_dpm_solver_is_ddim(schedule: Schedule) -> None:
    teacher = GaussianMixture(schedule, MEANS, 0.4)
    x = initial_state(schedule, states(4, (2,)))
    dpm, ddim = (solve(teacher, schedule, x, uniform(6), step).sample for step in (DPMSolverPP(1), DDIM()))
    torch.testing.assert_close(dpm, ddim, rtol=0, atol=0)


@pytest.mark.parametrize("r", [[-1.0, 1.0], [-0.7, -1.9], [-0.5, -1.2, 1.0]], ids=str)
@pytest.mark.parametrize("h", [0.05, 0.8])
def test_the_weights_of_unipc_integrate_polynomials(r: list[float], h: float) -> None:
    """For D a polynomial of u = (lambda - lambda_t) / h through 0, the step has its integral."""
    rho = _unipc_weights(r, -h)
    for power in range(1, len(r) + 1):
        # alpha_s times the integral of e^(h (u - 1)) u^power h du, over b = alpha_s (1 - e^-h)
        u = torch.linspace(0, 1, 20_001, dtype=torch.float64)
        exact = float(torch.trapezoid((h * (u - 1)).exp() * u**power * h, u)) / -math.expm1(-h)
        assert sum(p * r_k**power / r_k for p, r_k in zip(rho, r, strict=True)) == pytest.approx(exact, abs=1e-8)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: DPMSolverPP(4), "DPM-Solver\\+\\+ has orders 1, 2 and 3, got 4"),
        (lambda: UniPC(0), "UniPC is implemented for orders 1, 2 and 3, got 0"),
    ],
)
def test_other_orders_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
