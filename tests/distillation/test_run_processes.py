"""Methods in several processes: each takes the steps of one."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dsno.checkpoint import read_tensors
from dsno.denoise import Prediction
from dsno.distillation.run import distill
from dsno.precision import Precision
from dsno.schedule import Cosine
from dsno.students.files import load_student
from dsno.train import TrainConfig
from dsno.trajectories.generate import generate
from dsno.trajectories.sets import TrajectorySet
from processes import SHAPE, SHARDED, TIMES, network, succeed

CONFIG = TrainConfig(steps=4, lr=1e-3, warmup=0, decay="constant", checkpoint_every=4, log_every=1)


def teacher() -> Prediction:
    return Prediction(network().float(), Cosine(), "v", shape=SHAPE)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, times = tmp_path_factory.mktemp("data") / "set", tuple(TIMES[1:].tolist())
    generate(teacher(), out, 32, times=times, steps=8, grid="uniform", targets=("x0", "state"), batch=8, shard=32)
    return out


def distilled(out: Path, method: str, data: Path, precision: Precision = "no", sharded: bool = False) -> None:
    if sharded:
        os.environ |= SHARDED
    distill(teacher(), TrajectorySet(data), out, method, replace(CONFIG, precision=precision), batch=8)


def weights(student: Path) -> Tensor:
    return torch.cat([p.detach().flatten() for p in load_student(student).parameters()])


@pytest.mark.parametrize("method", ["shortcut", "matching", "decoding"])
def test_a_batch_is_the_same_in_two_processes(method: str, data: Path, tmp_path: Path) -> None:
    distilled(tmp_path / "one", method, data)
    succeed(distilled, tmp_path / "two", method, data)
    assert float((weights(tmp_path / "one") - weights(tmp_path / "two")).abs().max()) < 1e-5


def test_a_network_that_is_called_with_other_weights_is_sharded_as_a_whole(data: Path, tmp_path: Path) -> None:
    distilled(tmp_path / "one", "matching", data)
    succeed(distilled, tmp_path / "two", "matching", data, "no", True)
    assert float((weights(tmp_path / "one") - weights(tmp_path / "two")).abs().max()) < 1e-5


def test_sharded_weights_learn_in_bfloat16_where_they_are_called_without_gradients_first(
    data: Path, tmp_path: Path
) -> None:
    distilled(tmp_path / "one", "consistency", data, "bf16")
    succeed(distilled, tmp_path / "two", "consistency", data, "bf16", True)
    runs = [tmp_path / out / "training/consistency" for out in ("one", "two")]
    one, two = ([json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()] for run in runs)
    assert two == pytest.approx(one, rel=1e-2)
    # Adam has moments of what had a gradient.
    moments = [read_tensors(run / "step-00000004/optimizer.safetensors").keys() for run in runs]
    assert moments[0] == moments[1]
