"""Grids are decreasing lists of times, from noise to data, with the steps that their names promise."""

import math

import pytest
import torch

from dsno.grids import GRIDS, check_grid, even, find_times, karras, log_snr_uniform, quadratic, through, uniform
from dsno.schedule import VE, Cosine, Schedule

# Condition numbers of the maps are below 1e3 inside, so float64 round-off stays below this.
EXACT = dict(rtol=1e-11, atol=1e-11)


def test_uniform_grid() -> None:
    assert uniform(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert uniform(2, 0.9, 0.1).tolist() == pytest.approx([0.9, 0.5, 0.1])


def test_quadratic_grid_holds_the_published_cifar_frames() -> None:
    assert quadratic(4)[1:].tolist() == [0.5625, 0.25, 0.0625, 0]


def test_the_even_grid_has_equal_steps_of_the_phase(schedule: Schedule) -> None:
    grid = even(schedule, 4)
    assert grid[0] == 1 and grid[-1] == 0
    torch.testing.assert_close(schedule.phase(grid), uniform(4), rtol=1e-9, atol=1e-9)


def test_the_even_grid_of_ve_is_where_its_noise_meets_its_data() -> None:
    assert VE(80.0)(even(VE(80.0), 2))[1].tolist() == pytest.approx([80, math.tan(math.atan(80) / 2), 0])
    assert torch.equal(even(Cosine(), 5), uniform(5))


def test_karras_grid_is_the_papers_table() -> None:
    # EDM's 18 steps (Karras et al., 2022, table 1), rounded.
    sigma = karras(VE(80), 18) * 80
    assert sigma[[0, 1, 2, 3, 17, 18]].tolist() == pytest.approx([80, 57.586, 40.786, 28.375, 0.002, 0], abs=5e-4)


def test_karras_grid_means_the_same_noise_to_signal_on_every_schedule(schedule: Schedule) -> None:
    alpha_t, sigma_t = schedule(karras(schedule, 10, sigma_max=50)[1:-1])
    ramp = torch.linspace(50 ** (1 / 7), 0.002 ** (1 / 7), 10, dtype=torch.float64) ** 7
    torch.testing.assert_close(sigma_t / alpha_t, ramp[1:], **EXACT)


def test_log_snr_uniform_grid_takes_equal_steps(schedule: Schedule) -> None:
    log_snr = schedule.log_snr(log_snr_uniform(schedule, 12)[1:-1])
    assert float(log_snr[-1]) == pytest.approx(10)
    torch.testing.assert_close(log_snr.diff(), log_snr.diff().mean().expand(10), rtol=1e-9, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", ["uniform", "quadratic", "karras", "log_snr"])
def test_every_grid_goes_from_noise_to_data(schedule: Schedule, name: str, steps: int) -> None:
    grid = {
        "uniform": lambda: uniform(steps),
        "quadratic": lambda: quadratic(steps),
        "karras": lambda: karras(schedule, steps),
        "log_snr": lambda: log_snr_uniform(schedule, steps),
    }[name]()
    assert len(grid) == steps + 1 and grid.dtype == torch.float64
    assert (grid[0], grid[-1]) == (1, 0) and (grid.diff() < 0).all()


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_schedule_that_begins_noisier_than_a_grid_ends_gives_it_its_own_end(steps: int) -> None:
    for schedule in (Cosine(-12, 12), Cosine(-8, 8)):  # Karras' least level, 0.002, is a log-SNR of 12.4.
        grid = karras(schedule, steps)
        assert len(grid) == steps + 1 and (grid[0], grid[-1]) == (1, 0)
        alpha_t, sigma_t = schedule(grid[1:])
        high, low = (float(sigma / alpha) ** (1 / 7) for alpha, sigma in map(schedule.at, (1.0, 0.0)))
        levels = torch.linspace(min(high, 80 ** (1 / 7)), low, steps + 1, dtype=torch.float64)[1:] ** 7
        torch.testing.assert_close(sigma_t / alpha_t, levels, **EXACT)
    log_snr = Cosine(-8, 8).log_snr(log_snr_uniform(Cosine(-8, 8), steps))
    torch.testing.assert_close(log_snr, torch.linspace(-8, 8, steps + 1, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    # One that reaches further has a last step below the range, as most schedules have an infinite one.
    assert float(Cosine(-12, 12).log_snr(log_snr_uniform(Cosine(-12, 12), 8)[-2])) == pytest.approx(10)


@pytest.mark.parametrize("steps", [8, 20, 64])
def test_a_grid_can_be_led_through_given_times(steps: int) -> None:
    frames = quadratic(4)[1:]
    grid = through(uniform(steps), frames)
    assert len(grid) == steps + 1 and (grid[0], grid[-1]) == (1, 0) and (grid.diff() < 0).all()
    assert all((grid == t).any() for t in frames)
    assert (grid - uniform(steps)).abs().max() <= 0.5 / steps  # only neighbours moved


@pytest.mark.parametrize("times", [[0.5, 0.49], [0.9], [0.05, 0.0], [0.05]], ids=str)
def test_a_coarse_grid_is_neither_led_through_two_times_at_once_nor_off_its_ends(times: list[float]) -> None:
    with pytest.raises(ValueError, match="a grid of 4 steps cannot pass through .* use more steps"):
        through(uniform(4), times)


@pytest.mark.parametrize(
    "grid, message",
    [
        ([1.0, 0.5, 0.5, 0.0], "decrease strictly"),
        ([0.0, 1.0], "decrease strictly"),
        ([1.5, 0.0], r"inside \[0, 1\]"),
        ([1.0, -0.1], r"inside \[0, 1\]"),
        ([1.0, math.nan, 0.0], r"inside \[0, 1\]"),
        ([math.inf, 0.0], r"inside \[0, 1\]"),
        ([1.0], "at least two times"),
        ([], "at least two times"),
        ([[1.0, 0.0]], "at least two times"),
    ],
)
def test_a_bad_grid_gives_one_clear_error(grid: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_grid(grid)


@pytest.mark.parametrize("build", [uniform, quadratic, lambda n: karras(VE(), n), lambda n: log_snr_uniform(VE(), n)])
def test_a_grid_needs_a_step(build) -> None:
    with pytest.raises(ValueError, match="at least one step, got 0"):
        build(0)


def test_grids_by_name_are_those_of_the_phase(schedule: Schedule) -> None:
    for steps in (1, 4, 16):
        for name, shares in (("quadratic", quadratic(steps)), ("even", uniform(steps))):
            grid = GRIDS[name](schedule, steps)
            assert torch.allclose(schedule.phase(grid), shares, atol=1e-9)
            assert not isinstance(schedule, Cosine) or torch.equal(grid, shares)
        for name, make in GRIDS.items():
            grid = make(schedule, steps)
            assert len(grid) == steps + 1 and grid[0] == 1 and grid[-1] == 0, name


def test_times_are_found_in_order_each_once_whoever_rounded_them() -> None:
    times = uniform(4)
    assert find_times(times, [0.25, 1.0, 0.25], "there") == [0, 3]
    assert find_times(times, torch.tensor([0.75]), "there") == [1]
    assert find_times(times, [0.5 + 1e-12], "there") == [2]
    assert find_times(times, [], "there") == []
    for wanted in (0.6, 0.5 + 1e-6, math.nan):
        with pytest.raises(ValueError, match=r"is not there: the nearest of the 5 times is"):
            find_times(times, [1.0, wanted], "there")
