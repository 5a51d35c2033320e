"""A small class-conditional teacher, its trajectories, and what a method draws on of both."""

from pathlib import Path

import torch
from torch import nn

from dsno.denoise import Guided, Prediction
from dsno.distillation.stages import Given
from dsno.nets.unet import UNet
from dsno.schedule import Cosine
from dsno.trajectories.generate import generate
from dsno.trajectories.labels import uniform_labels
from dsno.trajectories.sets import TrajectorySet, samples_of


def small_teacher() -> Prediction:
    """Of two classes and a label that stands for none."""
    torch.manual_seed(0)
    net = UNet(1, 4, (4, 8), attention=(), classes=2, null=True)
    return Prediction(net, Cosine(), "v", shape=(1, 4, 4), classes=2).eval()


def small_set(teacher: Prediction, out: Path) -> TrajectorySet:
    """32 trajectories of it, at t = 0.5 and 0."""
    times = torch.tensor([0.5, 0.0], dtype=torch.float64)
    label = uniform_labels(2)
    return generate(teacher, out, 32, shape=(1, 4, 4), times=times, steps=4, solver="unipc2", label=label, batch=16)


def given(teacher: Prediction, trajectories: TrajectorySet, name: str = "", steps: int = 8) -> Given:
    """What the method `name` draws on: the teacher, guided where it asks for that, and the trajectories."""
    x, labels = samples_of(trajectories)
    solved = Guided(teacher, {"label": torch.tensor(2)}) if name == "guided" else teacher
    return Given(solved, teacher.schedule, steps, 8, 0, x, labels, trajectories)


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks have the same weights."""
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
