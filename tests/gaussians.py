"""Students whose samples are Gaussian, the denoisers of those, and batches over which means are exact."""

import math
from itertools import product

import torch
from torch import Tensor, nn

from dsno.condition import Cond
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule, VPLinear
from dsno.solvers.run import initial_state

D64 = torch.float64
SCHEDULES = [Cosine(), RectifiedFlow(), VPLinear(), VE(10.0)]
MEAN, STD = torch.tensor([0.5, -1.0, 0.2], dtype=D64), torch.tensor([0.3, 0.7, 1.4], dtype=D64)


class Affine(nn.Module):
    """h of a flow map whose samples are m + k z."""

    def __init__(self, schedule: Schedule, m: Tensor, k: Tensor) -> None:
        super().__init__()
        self.schedule, self.m, self.k = schedule, nn.Parameter(m.clone()), nn.Parameter(k.clone())

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
        (alpha_1, sigma_1), (alpha_0, sigma_0) = self.schedule.at(1.0), self.schedule.at(0.0)
        ratio = sigma_0 / sigma_1
        return (self.m + self.k * x / sigma_1 - ratio * x) / (alpha_0 - ratio * alpha_1)


class Normal(nn.Module):
    """The denoiser of N(m, k^2)."""

    def __init__(self, schedule: Schedule, m: Tensor, k: Tensor) -> None:
        super().__init__()
        self.schedule, self.m, self.k = schedule, nn.Parameter(m.clone()), nn.Parameter(k.clone())

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        alpha_t, sigma_t = (c[:, None] for c in self.schedule(t))
        return self.m + alpha_t * self.k**2 / (alpha_t**2 * self.k**2 + sigma_t**2) * (x_t - alpha_t * self.m)


class NoAnchor:
    """In place of a regression whose weight is 0."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def start(self, batch: dict[str, Tensor]) -> tuple[Tensor, float]:
        return initial_state(self.schedule, batch["noise"]), 1.0


def nodes(schedule: Schedule, levels: tuple[float, ...] = (0.1, 0.5, 0.9)) -> dict[str, Tensor]:
    """z = +-1 and eps = +-1 at each level: the means of quadratics over them are those over normal draws."""
    rows = torch.tensor(list(product(levels, (-1.0, 1.0), (-1.0, 1.0))), dtype=D64)
    t = schedule.time(-2 * (rows[:, 0] * math.pi / 2).tan().log())
    z, eps = (rows[:, i, None].expand(-1, 3) for i in (1, 2))
    return {"noise": z, "eps": eps, "t": t, "frames": (-1,)}
