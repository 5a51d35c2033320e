"""Adams-Bashforth rules: their weights on any grid, their orders, and where they begin."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dsno.grids import quadratic, uniform
from dsno.schedule import VE, RectifiedFlow, Schedule
from dsno.solvers.adams import PLMS, adams_bashforth, noise_ratio
from dsno.solvers.first_order import DDIM
from dsno.solvers.run import solve
from dsno.teachers.closed import Gaussian
from solving import MEAN, SMOOTH, STD, order_on_the_gaussian, states

EVEN = {1: (1,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


@pytest.mark.parametrize("order", EVEN)
def test_on_an_even_grid_the_weights_are_the_known_ones(order: int) -> None:
    # From 3 downwards in steps of a half.
    w = adams_bashforth([3 + 0.5 * j for j in range(order)], 2.5)
    assert w == pytest.approx([-0.5 * v for v in EVEN[order]], rel=1e-12)


@pytest.mark.parametrize("order", EVEN)
def test_on_any_grid_polynomials_are_integrated_exactly(order: int) -> None:
    r, r_s = [2.0, 2.7, 5.0, 9.0][:order], 1.1
    w = adams_bashforth(r, r_s)
    for power in range(order):
        exact = (r_s ** (power + 1) - r[0] ** (power + 1)) / (power + 1)
        assert math.fsum(w_j * r_j**power for w_j, r_j in zip(w, r, strict=True)) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("order, least", [(1, 0.95), (2, 1.85), (3, 2.1)])
def test_its_order_is_seen_on_the_gaussian(name: str, order: int, least: float) -> None:
    assert order_on_the_gaussian(PLMS(order), SMOOTH[name]) > least


def test_order_4_is_seen_once_it_started_so() -> None:
    """From exact values of the past; the start of lower order is left out."""
    schedule, grids = VE(4), {N: uniform(N, 0.9, 0.1).tolist() for N in (48, 96)}
    teacher, x = Gaussian(schedule, MEAN, STD), states()
    x = schedule.at(0.9)[1] * x

    def error(N: int) -> float:
        step, times, past = PLMS(), grids[N], ()
        known = [teacher.flow(x, 0.9, t) for t in times]

        def D(y: Tensor, t: float) -> Tensor:
            return teacher(y, torch.tensor(t, dtype=torch.float64))

        for n in range(3):
            _, past = step(
                D,
                schedule,
                known[n],
                times[n],
                times[n + 1],
                past,
                None,
            )
        y = known[3]
        for t, s in pairwise(times[3:]):
            y, past = step(D, schedule, y, t, s, past, None)
        return float((y - known[-1]).abs().max())

    assert math.log2(error(48) / error(96)) > 3.7


def test_order_1_is_ddim_and_an_uneven_grid_keeps_its_order() -> None:
    schedule = VE(4)
    teacher, x = Gaussian(schedule, MEAN, STD), 4 * states()
    pair = [solve(teacher, schedule, x, uniform(5), step).sample for step in (PLMS(1), DDIM())]
    assert torch.equal(*pair)

    def error(N: int) -> float:
        grid = 0.1 + 0.8 * quadratic(N)
        made = solve(teacher, schedule, x, grid, PLMS(2)).sample
        return float((made - teacher.flow(x, 0.9, 0.1)).abs().max())

    assert math.log2(error(64) / error(128)) > 1.9


@pytest.mark.parametrize("schedule", [RectifiedFlow(), VE()], ids=["flow", "ve"])
def test_pure_noise_and_clean_data_are_limits(schedule: Schedule) -> None:
    """A past value at an infinite ratio has no weight: the first step is DDIM's, and so is the second, of order 2."""
    teacher, x = Gaussian(schedule, MEAN, STD), schedule.at(1.0)[1] * states()
    assert noise_ratio(schedule, 1.0) == (math.inf if schedule.at(1.0)[0] == 0 else 80)
    made = [solve(teacher, schedule, x, [1.0, 0.6, 0.3], step).sample for step in (PLMS(2), DDIM())]
    assert torch.equal(*made) == (schedule.at(1.0)[0] == 0)
    for order in EVEN:
        assert solve(teacher, schedule, x, uniform(6), PLMS(order)).sample.isfinite().all()


@pytest.mark.parametrize("order", [0, 5])
def test_other_orders_are_refused(order: int) -> None:
    with pytest.raises(ValueError, match=f"Adams-Bashforth rules have orders 1 to 4 here, got {order}"):
        PLMS(order)
