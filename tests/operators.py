"""Operators: around a small U-Net, around whatever a test says, and around a solver."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dsno.denoise import Kind, Prediction
from dsno.grids import quadratic, uniform
from dsno.nets.unet import UNet
from dsno.schedule import Cosine, Schedule
from dsno.solvers.run import SolverSampler
from dsno.students.operator import TrajectoryStudent, student_from_teacher
from dsno.teachers.closed import GaussianMixture

SHAPE, TIMES = (1, 4, 4), quadratic(4)[1:]


class Oracle(nn.Module):
    """In place of a network: whatever `answer(x_t, start)` says for every frame, (B, M, *shape)."""

    def __init__(self, answer, frames: int = 4) -> None:
        super().__init__()
        self.answer, self.frames = answer, frames

    def forward(
        self, x: Tensor, times: Tensor, cond: Tensor | None, start: Tensor | float, select: Sequence[int] | None
    ) -> Tensor:
        frames = self.answer(x, torch.as_tensor(start, dtype=x.dtype))
        return frames if select is None else frames[:, list(select)]


def teacher(kind: Kind = "v", classes: int | None = None, schedule: Schedule | None = None) -> Prediction:
    """A small U-Net in which every parameter counts."""
    net = UNet(1, 8, (4, 8), attention=(), classes=classes)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return Prediction(net, Cosine() if schedule is None else schedule, kind).eval()


def student(target: str = "x0", classes: int | None = None, **arguments: object) -> TrajectoryStudent:
    """A student of it, of four frames."""
    return student_from_teacher(teacher(classes=classes), TIMES, target, init="normal", **arguments).eval()


def restartable(target: str = "x0", **arguments: object) -> TrajectoryStudent:
    """One that says that it was trained from inner starts, too."""
    made = student(target, **arguments)
    made.restarts = True
    return made


MIXTURE = GaussianMixture(Cosine(), torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)), 0.3)
SAMPLER = SolverSampler(MIXTURE, Cosine(), uniform(16), keep=TIMES, keep_x0=True)


class Solving(nn.Module):
    """In place of a lifted network: solves the teacher's ODE from where it is told to start."""

    frames, once = 4, True

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target, self.asked = target, []

    def forward(
        self, x: Tensor, times: Tensor, cond: Tensor | None, start: Tensor | float, select: Sequence[int] | None
    ) -> Tensor:
        frames = range(4) if select is None else select
        self.asked.append((start, tuple(frames)))
        grid = [t for t in uniform(16).tolist() if t <= start]
        keep = [float(times[m]) for m in frames]
        solver = SolverSampler(MIXTURE, Cosine(), torch.tensor(grid, dtype=torch.float64), keep=keep, keep_x0=True)
        made = solver(x / Cosine().at(start)[1])
        if self.target == "x0":
            return made.x0
        (alpha_t, sigma_t), h = Cosine().at(start), []
        for m, t in enumerate(keep):
            alpha, sigma = Cosine().at(t)
            h.append((made.x[:, m] - sigma / sigma_t * x) / (alpha - sigma / sigma_t * alpha_t))
        return torch.stack(h, 1)


def solving(target: str) -> TrajectoryStudent:
    """The operator of that."""
    return TrajectoryStudent(Solving(target), Cosine(), TIMES, target, "x0", restarts=True)
