"""Commands in several processes, started as the documentation says, do what one process does."""

import json
from pathlib import Path

import pytest
import torch

from dsno.denoise import Prediction
from dsno.schedule import Cosine
from dsno.students.files import load_student
from dsno.teachers.native import save_teacher
from processes import SHAPE, launch, launch_on_two_machines, network
from shell import dsno
from stored import contents


@pytest.fixture
def at(tmp_path: Path) -> Path:
    """A folder with a teacher."""
    save_teacher(tmp_path / "teacher", Prediction(network().float(), Cosine(), "v", shape=SHAPE))
    return tmp_path


def generate(at: Path, out: str) -> tuple[object, ...]:
    """The command that makes eight shards of trajectories."""
    size = ("--count", 32, "--shard", 4, "--batch", 4, "--steps", 8, "--grid", "quadratic")
    return ("generate", "--teacher", at / "teacher", "--out", at / out, *size)


def distill(out: str, steps: int, *more: object) -> tuple[object, ...]:
    """The command that trains a student, so that it may go on."""
    train = ("--batch", 8, "--train.warmup", 0, "--train.decay", "constant", "--train.log-every", 1)
    return ("distill", "--teacher", "teacher", "--data", "set", "--out", out, *train, "--train.steps", steps, *more)


@pytest.mark.slow
def test_two_processes_generate_the_bytes_of_one(at: Path) -> None:
    assert dsno(*generate(at, "one"), at=at).code == 0
    done = launch("-m", "dsno", *generate(at, "two"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("32 trajectories in") == 1  # the first speaks for all
    assert contents(at / "two") == contents(at / "one")


@pytest.mark.slow
def test_two_machines_distil_as_one_process_does_and_one_goes_on(at: Path) -> None:
    for command in (generate(at, "set"), distill("alone", 6)):
        assert dsno(*command, at=at).code == 0
    for code, said in launch_on_two_machines("-m", "dsno", *distill("both", 4), at=at):
        assert code == 0, said
    assert dsno(*distill("both", 6, "--resume"), at=at).code == 0
    logs = [(at / out / "training/regression/log.jsonl").read_text().splitlines() for out in ("alone", "both")]
    one, two = ([json.loads(line)["loss"] for line in log] for log in logs)
    assert len(two) == 6 and two == pytest.approx(one, rel=1e-5)
    a, b = (torch.cat([p.detach().flatten() for p in load_student(at / out).parameters()]) for out in ("alone", "both"))
    assert float((a - b).abs().max()) < 1e-5
