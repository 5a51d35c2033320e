"""Several processes share an evaluation, and all of them know its result."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsno import OnePass
from dsno.measure.evaluate import evaluate
from dsno.measure.results import Result
from dsno.trajectory import Trajectory
from processes import SHAPE, spawn, student, succeed


def measure(out: Path, count: int, batch: int) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    result = _measured(count, batch, accelerator)
    (out / f"result-{accelerator.process_index}.json").write_text(json.dumps(_numbers(result)))


def _numbers(result: Result) -> dict[str, Any]:
    """What does not depend on the clock."""
    return {
        "quality": vars(result.quality),
        "path": [result.path_error, result.path_error_median],
        "cost": [result.cost.nfe, result.cost.rounds, result.cost.flops],
        "seeds": result.protocol.seeds,
        "scale": result.protocol.scale[0],
    }


def _measured(count: int, batch: int, accelerator: Any = None, sampler: Any = None) -> Result:
    torch.manual_seed(0)
    features = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    sampler = sampler or OnePass(student().float())
    reference, fine = torch.rand(30, *SHAPE) * 2 - 1, torch.randn(count, *SHAPE)
    return evaluate(
        sampler,
        name="student",
        shape=SHAPE,
        seeds=range(100, 100 + count),
        reference=reference,
        extractor=features,
        fine=fine,
        batch=batch,
        repeats=1,
        accelerator=accelerator,
    )


@pytest.mark.parametrize("count, batch, world", [(23, 4, 2), (5, 100, 4)])
def test_an_evaluation_is_shared_out(count: int, batch: int, world: int, tmp_path: Path) -> None:
    succeed(measure, tmp_path / "run", count, batch, world=world)
    one = _numbers(_measured(count, batch))
    for rank in range(world):
        found = json.loads((tmp_path / "run" / f"result-{rank}.json").read_text())
        for key, value in one.items():
            assert found[key] == (pytest.approx(value, rel=1e-4) if key in ("quality", "path") else value)


def refuse(out: Path) -> None:
    from accelerate import Accelerator

    def constant(z: Tensor, cond: Any = None, seeds: Any = None) -> Trajectory:
        return Trajectory(torch.zeros(len(z), 2, *SHAPE), torch.tensor([1.0, 0.0]), nfe=1, rounds=1)

    _measured(8, 4, Accelerator(cpu=True), constant)


def test_what_is_wrong_with_an_evaluation_is_said_by_all(tmp_path: Path) -> None:
    for code, error in spawn(refuse, tmp_path / "run"):
        assert code == 1 and "ValueError: the set 'student'" in error
