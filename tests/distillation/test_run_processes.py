"""Methods in several processes: each takes the steps of one."""

from pathlib import Path

import pytest
import torch

from dsno.denoise import Prediction
from dsno.distillation.run import distill
from dsno.schedule import Cosine
from dsno.students.files import load_student
from dsno.train import TrainConfig
from dsno.trajectories.generate import generate
from dsno.trajectories.sets import TrajectorySet
from processes import SHAPE, TIMES, network, succeed

CONFIG = TrainConfig(steps=4, lr=1e-3, warmup=0, decay="constant", checkpoint_every=4, log_every=1)


def teacher() -> Prediction:
    return Prediction(network().float(), Cosine(), "v", shape=SHAPE)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, times = tmp_path_factory.mktemp("data") / "set", tuple(TIMES[1:].tolist())
    generate(teacher(), out, 32, times=times, steps=8, grid="uniform", targets=("x0", "state"), batch=8, shard=32)
    return out


def distilled(out: Path, method: str, data: Path) -> None:
    distill(teacher(), TrajectorySet(data), out, method, CONFIG, batch=8)


@pytest.mark.parametrize("method", ["shortcut", "matching", "decoding"])
def test_a_batch_is_the_same_in_two_processes(method: str, data: Path, tmp_path: Path) -> None:
    distilled(tmp_path / "one", method, data)
    succeed(distilled, tmp_path / "two", method, data)
    one, two = (
        torch.cat([p.detach().flatten() for p in load_student(tmp_path / run).parameters()]) for run in ("one", "two")
    )
    assert float((one - two).abs().max()) < 1e-5
