"""A mixture whose classifier is known, told the noise level or not, and the fine solution of the two together."""

import math

import torch
from torch import Tensor

from dsno.guidance.guides import DensityGuide
from dsno.schedule import VE, Schedule
from dsno.seeds import noise, seed_range
from dsno.solvers.adams import noise_ratio
from dsno.steer import Halves, Steered
from dsno.teachers.closed import GaussianMixture

HIGH, LOW = 40.0, 0.02
"""The noise ratios between which is solved."""


def ring(schedule: Schedule, std: float = 0.15) -> GaussianMixture:
    """Eight blobs on a circle, of two classes in turn."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    return GaussianMixture(schedule, 2 * torch.stack([angle.cos(), angle.sin()], 1), std, labels=torch.arange(8) % 2)


def posterior(mixture: GaussianMixture, share: float = 1.0) -> DensityGuide:
    """The mixture's own classifier, told a `share` of the noise: 1 is all of it."""

    def log_density(x_t: Tensor, t: Tensor | float, label: Tensor | None) -> Tensor:
        assert label is not None
        return mixture.log_posterior(x_t, t, label, share)

    return DensityGuide(log_density, "posterior")


def steered(share: float = 1.0, scale: float = 5.0, schedule: Schedule | None = None) -> Steered:
    mixture = ring(VE() if schedule is None else schedule)
    return Steered(mixture, posterior(mixture, share), scale, mixture.schedule)


def even_ratios(schedule: Schedule, steps: int) -> Tensor:
    """Times between `HIGH` and `LOW`, in even steps of the log-SNR."""
    return schedule.time(-2 * torch.linspace(math.log(HIGH), math.log(LOW), steps + 1, dtype=torch.float64))


def start(schedule: Schedule, rows: int = 64) -> tuple[Tensor, dict[str, Tensor]]:
    """States at the first of these times, (B, 2), and their targets."""
    z = noise(seed_range(0, rows), (2,), dtype=torch.float64)
    return schedule.at(float(even_ratios(schedule, 1)[0]))[1] * z, {"guide": torch.arange(rows) % 2}


def fine(model: Steered, x: Tensor, cond: dict[str, Tensor], steps: int = 600) -> Tensor:
    r"""The state at the last of the times by Runge and Kutta's rule of order 4 on $d \bar x / d \log r$."""
    schedule, D = model.schedule, Halves(model, cond)
    times = even_ratios(schedule, 2 * steps).tolist()

    def slope(x_bar: Tensor, t: float) -> Tensor:
        alpha_t, sigma_t = schedule.at(t)
        return noise_ratio(schedule, t) * (alpha_t * x_bar - alpha_t * D(alpha_t * x_bar, t)) / sigma_t

    h, x_bar = (math.log(LOW) - math.log(HIGH)) / steps, x / schedule.at(times[0])[0]
    for n in range(0, 2 * steps, 2):
        t, middle, s = times[n : n + 3]
        k1 = slope(x_bar, t)
        k2 = slope(x_bar + h / 2 * k1, middle)
        k3 = slope(x_bar + h / 2 * k2, middle)
        x_bar = x_bar + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x_bar + h * k3, s))
    return schedule.at(times[-1])[0] * x_bar
