"""What tests of solvers solve, and how fast a solver gets there."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dsno.grids import uniform
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule, linear_beta
from dsno.seeds import noise, seed_range
from dsno.solvers.run import solve
from dsno.solvers.step import Step
from dsno.teachers.closed import Gaussian

MEAN = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
STD = torch.tensor([0.5, 0.9, 1.5], dtype=torch.float64)
MEANS = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.2, -1.2]], dtype=torch.float64)
SMOOTH: dict[str, Schedule] = {"cosine": Cosine(), "flow": RectifiedFlow(), "ve": VE(4), "linear_beta": linear_beta()}


def states(B: int = 4, shape: tuple[int, ...] = (3,)) -> Tensor:
    return noise(seed_range(0, B), shape, dtype=torch.float64)


def order(error: Callable[[int], float], steps: tuple[int, int]) -> float:
    """The order seen between two numbers of steps."""
    coarse, fine = (error(N) for N in steps)
    return math.log(coarse / fine) / math.log(steps[1] / steps[0])


def order_on_the_gaussian(step: Step, schedule: Schedule) -> float:
    """The order of a solver on a Gaussian, whose flow is known."""
    teacher = Gaussian(schedule, MEAN, STD)
    x = max(schedule.at(0.9)[1], 1) * states()
    exact = teacher.flow(x, 0.9, 0.1)

    def error(N: int) -> float:
        return float((solve(teacher, schedule, x, uniform(N, 0.9, 0.1), step).sample - exact).abs().max())

    return order(error, (48, 96))
