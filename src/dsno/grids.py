r"""Time grids: the times at which a solver stops, from noise to data.

A *grid* of N steps is a float64 tensor of N + 1 times in [0, 1], strictly decreasing; a solver makes one step between
neighbours. It is made on the host before the network runs, and is always explicit: nothing looks a time up by the
number of a step. `uniform` and `quadratic` are numbers alone, the others follow the schedule: equal steps of its
phase $p_t$, of its log-SNR $\ell_t$, or of a power of its noise level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dsno.schedule import Schedule

__all__ = ["GRIDS", "check_grid", "even", "find_times", "karras", "log_snr_uniform", "quadratic", "through", "uniform"]


def uniform(steps: int, start: float = 1.0, stop: float = 0.0) -> Tensor:
    r"""$t_n = t_0 + (t_N - t_0)\, n/N$: `steps` + 1 times from `start` to `stop`, $1 - n/N$ by default.

    Raises:
        ValueError: for no steps, or times that are not in [0, 1].
    """
    return check_grid(torch.linspace(start, stop, _positive(steps) + 1, dtype=torch.float64))


def quadratic(steps: int, start: float = 1.0) -> Tensor:
    r"""$t_n = t_0 (1 - n/N)^2$: denser towards the data; DSNO's CIFAR-10 frames are `quadratic(4)[1:]`.

    Raises:
        ValueError: for no steps, or a start that is not in (0, 1].
    """
    return check_grid(start * torch.linspace(1, 0, _positive(steps) + 1, dtype=torch.float64) ** 2)


def even(schedule: Schedule, steps: int) -> Tensor:
    r"""Equal steps of the phase, $p_n = 1 - n/N$: `steps` + 1 times from 1 to 0; `uniform` on `Cosine`.

    Raises:
        ValueError: for no steps.
    """
    return check_grid(schedule.from_phase(uniform(steps)))


def log_snr_uniform(schedule: Schedule, steps: int, log_snr_max: float = 10.0, log_snr_min: float = -10.0) -> Tensor:
    r"""Equal steps of $\ell$ between $t = 1$ and `log_snr_max`, then one last step to $t = 0$ (`steps` + 1 times).

    The log-SNR is infinite at one end of most schedules, so the range is clipped to `[log_snr_min, log_snr_max]`. On a
    schedule whose data end lies inside it, at $\ell_0$, the steps are equal all the way: the last of them ends there.

    Raises:
        ValueError: for no steps, or a range that the schedule does not have.
    """
    last, start = schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    start, within = max(log_snr_min, start), log_snr_max < last
    count = _positive(steps) + (not within)
    return _closed(schedule.time(torch.linspace(start, min(log_snr_max, last), count, dtype=torch.float64)), within)


def karras(
    schedule: Schedule, steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    r"""Equal steps of $\bar\sigma^{1/\rho}$, where $\bar\sigma = \sigma_t / \alpha_t$, then one last step to $t = 0$.

    $$ \bar\sigma_n = \Big(
           \sigma_{\max}^{1/\rho} + \tfrac{n}{N-1} \big( \sigma_{\min}^{1/\rho} - \sigma_{\max}^{1/\rho} \big)
       \Big)^\rho, \qquad n = 0, \dots, N - 1 $$

    A schedule that ends at a lower level than `sigma_max` has its own. One that begins at a higher level than
    `sigma_min` has its own, too, and all N steps are equal: the last of them ends there, at $t = 0$.

    Raises:
        ValueError: for no steps, or levels that the schedule does not have.

    Source: Karras et al., 2022 (arXiv 2206.00364), eq. 5.
    """
    alpha, sigma_end = schedule.at(1.0)
    sigma_max = min(sigma_max, sigma_end / alpha) if alpha > 0 else sigma_max
    alpha, sigma_first = schedule.at(0.0)
    within = sigma_first / alpha < sigma_min
    sigma_min = max(sigma_min, sigma_first / alpha)
    ramp = torch.linspace(0, 1, _positive(steps) + (not within), dtype=torch.float64)
    sigma = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return _closed(schedule.time(-2 * sigma.log()), within)


GRIDS: dict[str, Callable[[Schedule, int], Tensor]] = {
    "quadratic": lambda schedule, steps: check_grid(schedule.from_phase(quadratic(steps))),
    "uniform": lambda schedule, steps: uniform(steps),
    "even": even,
    "log-snr": log_snr_uniform,
    "karras": karras,
}
"""The grids by name: functions of a schedule and the number of steps. `even` is `uniform` in the phase, and `quadratic`
so in the phase, too."""


def check_grid(grid: Tensor | Sequence[float]) -> Tensor:
    """Return `grid` as a float64 tensor on the host, or say what is wrong with it.

    Raises:
        ValueError: unless the grid has at least two times, strictly decreasing, inside [0, 1].
    """
    times = torch.as_tensor(grid, dtype=torch.float64, device="cpu")
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"a grid needs at least two times (one step), got shape {tuple(times.shape)}")
    if not bool(torch.isfinite(times).all()) or times.min() < 0 or times.max() > 1:
        raise ValueError(f"a grid must lie inside [0, 1] (1 is noise), got {_preview(times)}")
    if not bool((times[1:] < times[:-1]).all()):
        raise ValueError(f"a grid must decrease strictly, from noise to data, got {_preview(times)}")
    return times


def through(grid: Tensor, times: Sequence[float] | Tensor) -> Tensor:
    """Move the nearest inner times of a grid onto `times`, so that a solver's states can be kept there; the ends stay.

    Raises:
        ValueError: if the grid is too coarse to give each of the times an inner grid time of its own.
    """
    moved = check_grid(grid).clone()
    for t in torch.as_tensor(times, dtype=torch.float64).tolist():
        moved[(check_grid(grid) - t).abs().argmin()] = t
    missing = [t for t in torch.as_tensor(times, dtype=torch.float64).tolist() if not bool((moved == t).any())]
    ends_moved = not torch.equal(moved[[0, -1]], check_grid(grid)[[0, -1]])
    if missing or ends_moved or not bool((moved[1:] < moved[:-1]).all()):
        raise ValueError(
            f"a grid of {len(moved) - 1} steps cannot pass through {list(map(float, times))}: use more steps"
        )
    return moved


def find_times(times: Tensor, wanted: Sequence[float] | Tensor, where: str) -> list[int]:
    """The indices of `wanted` among `times` (N,), increasing, each once; equal to within $10^{-9}$.

    Raises:
        ValueError: for a time that is not among them, "t is not {where}", with the nearest.
    """
    found = set()
    for t in torch.as_tensor(wanted, dtype=torch.float64).reshape(-1).tolist():
        n = int((times - t).abs().argmin())
        if not abs(float(times[n]) - t) <= 1e-9:
            raise ValueError(f"t = {t:g} is not {where}: the nearest of the {len(times)} times is {float(times[n]):g}")
        found.add(n)
    return sorted(found)


def _closed(times: Tensor, within: bool) -> Tensor:
    """A grid from all its times; from all but the last where they end `within` the schedule's range, above the data."""
    # The first time is the noise itself and the last the data, whatever range the inner times were clipped to.
    times = torch.cat([times, times.new_zeros(1)]) if within else times.clone()
    times[0], times[-1] = 1.0, 0.0
    return check_grid(times)


def _positive(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"a grid needs at least one step, got {steps}")
    return int(steps)


def _preview(times: Tensor) -> str:
    shown = ", ".join(f"{t:g}" for t in times[:6].tolist())
    return f"[{shown}{', ...' if len(times) > 6 else ''}]"
