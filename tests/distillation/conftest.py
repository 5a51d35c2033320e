"""A small class-conditional teacher, and its trajectories."""

import pytest
import torch

from dsno.denoise import Prediction
from dsno.nets.unet import UNet
from dsno.schedule import Cosine
from dsno.trajectories.generate import generate
from dsno.trajectories.labels import uniform_labels
from dsno.trajectories.sets import TrajectorySet


@pytest.fixture(scope="session")
def teacher() -> Prediction:
    torch.manual_seed(0)
    net = UNet(1, 4, (4, 8), attention=(), classes=2, null=True)
    return Prediction(net, Cosine(), "v", shape=(1, 4, 4), classes=2).eval()


@pytest.fixture(scope="session")
def trajectories(teacher: Prediction, tmp_path_factory: pytest.TempPathFactory) -> TrajectorySet:
    out = tmp_path_factory.mktemp("data") / "trajectories"
    times = torch.tensor([0.5, 0.0], dtype=torch.float64)
    label = uniform_labels(2)
    return generate(teacher, out, 32, shape=(1, 4, 4), times=times, steps=4, solver="unipc2", label=label, batch=16)
