"""The log-SNR of a step is a float, and infinite where the step has to be of first order."""

import math

import pytest

from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule
from dsno.solvers.step import half_log_snr


def test_half_the_log_snr_is_a_float_of_double_precision(schedule: Schedule) -> None:
    alpha_t, sigma_t = schedule.at(0.3)
    assert half_log_snr(schedule, 0.3) == math.log(alpha_t / sigma_t)


@pytest.mark.parametrize("schedule", [Cosine(), VE(), RectifiedFlow()], ids=repr)
def test_it_is_infinite_at_the_ends_whatever_a_truncated_schedule_leaves_there(schedule: Schedule) -> None:
    assert half_log_snr(schedule, 0.0) == math.inf
    assert (half_log_snr(schedule, 1.0) == -math.inf) == (schedule.at(1.0)[0] == 0)
