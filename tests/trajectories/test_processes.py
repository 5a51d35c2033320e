"""A process that was killed goes on to the bytes of one that was not."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsno.trajectories.sets import TrajectorySet
from processes import environment
from stored import contents

SCRIPT = """
import sys
import torch
from dsno import grids, schedule, Cosine, DDIM, Prediction, SolverSampler
from dsno.trajectories.store import store

torch.set_num_threads(1)

def sampler():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 1, 3, padding=1))
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net
        def forward(self, x, t, cond):
            return self.net(x) + cond[:, None, None, None] / 10
    return SolverSampler(Prediction(Net(), Cosine()), Cosine(), grids.uniform(4), DDIM(), torch.tensor([0.5, 0.0]))

def run(folder, **options):
    return store(
        sampler(), (1, 8, 8), folder, 2000, shard=50, batch=16, targets=("x0", "state"), label=lambda s: s % 10,
        **options,
    )
"""


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[..., TrajectorySet]]:
    """A folder of forty shards of a small network, and the function that made it."""
    space: dict[str, Any] = {}
    exec(SCRIPT, space)
    folder = tmp_path_factory.mktemp("store") / "whole"
    space["run"](folder)
    return folder, space["run"]


@pytest.mark.slow
def test_killed_at_random_it_resumes_to_the_same_bytes(
    tmp_path: Path, uninterrupted: tuple[Path, Callable[..., TrajectorySet]]
) -> None:
    whole, run = uninterrupted
    chance, written = random.Random(0), [0]
    call = "run(sys.argv[1], resume=True, progress=lambda *_: print('.', end='', flush=True))"
    script = tmp_path / "script.py"
    script.write_text(f"{SCRIPT}\n{call}\n")
    folder = tmp_path / "set"
    for _ in range(3):
        command = [sys.executable, str(script), str(folder)]
        process = subprocess.Popen(command, env=environment(), text=True, stdout=subprocess.PIPE)
        assert process.stdout is not None
        batches_done = chance.randint(6, 30)  # of 160; a shard is four
        assert process.stdout.read(batches_done) == "." * batches_done
        time.sleep(chance.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        shards = sorted(folder.glob("shard-*.safetensors"))
        assert all(p.read_bytes() == (whole / p.name).read_bytes() for p in shards)
        written.append(len(shards))
    assert written == sorted(written)
    assert 0 < written[1] < 40, f"{written} of 40 shards: the first kill did not fall inside the work"
    run(folder, resume=True)
    assert contents(folder) == contents(whole)
