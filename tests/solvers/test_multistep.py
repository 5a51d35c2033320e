"""Multistep solvers converge at their order, once they are started, at one evaluation a step."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dsno.grids import uniform
from dsno.schedule import Schedule
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

    assert 2.75 < order(error, (64, 128)) < 3.25


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
