"""Heun's method is of second order, and EDM's sampler on the VE schedule."""

import pytest
import torch
from torch import Tensor

from dsno.schedule import VE
from dsno.solvers.heun import Heun
from dsno.teachers.closed import GaussianMixture
from solving import MEANS, SMOOTH, order_on_the_gaussian, states


# It integrates in t, where linear_beta has a thousand kinks.
@pytest.mark.parametrize("name", [name for name in SMOOTH if name != "linear_beta"])
def test_heun_is_of_second_order(name: str) -> None:
    assert 1.9 < order_on_the_gaussian(Heun(), SMOOTH[name]) < 2.1


def test_a_step_on_ve_is_algorithm_1_of_edm() -> None:
    schedule = VE(80.0)
    teacher, x = GaussianMixture(schedule, MEANS, 0.4), 20 * states(4, (2,))

    def D(x: Tensor, t: float) -> Tensor:
        return teacher(x, torch.tensor(t, dtype=torch.float64))

    found, past = Heun()(D, schedule, x, 0.25, 0.1, (), None)
    t_i, t_next = 20.0, 8.0  # sigma, which is EDM's time
    d_i = (x - D(x, 0.25)) / t_i
    x_euler = x + (t_next - t_i) * d_i
    d_prime = (x_euler - D(x_euler, 0.1)) / t_next
    torch.testing.assert_close(found, x + (t_next - t_i) * (d_i + d_prime) / 2, rtol=1e-12, atol=1e-12)
    assert len(past) == 1 and torch.equal(past[0].x0, D(x, 0.25))
    last, _ = Heun()(D, schedule, x, 0.25, 0.0, (), None)
    torch.testing.assert_close(last, D(x, 0.25), rtol=1e-12, atol=1e-12)
