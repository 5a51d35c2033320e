"""`dsno generate`: every grid, several processes, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from dsno.checkpoint import read_tensors, write_json, write_tensors
from dsno.cli.generate import Generate
from dsno.grids import GRIDS
from pretend import Rank
from refusals import Spoil, another_schedule, another_teacher, edit, refusals, refuses
from shell import dsno


def test_generate_offers_every_grid() -> None:
    assert get_args(get_type_hints(Generate)["grid"]) == ("best", *GRIDS)


def test_processes_share_the_trajectories(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["generate", "--count", 64, "--steps", 6, "--shard", 16, "--batch", 8]
    assert dsno(*command, "--out", "one", at=here).code == 0
    (here / "two").mkdir()
    shutil.copy(here / "one" / "manifest.json", here / "two")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in ((1, ""), (0, "64 trajectories in two")):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setattr("accelerate.Accelerator", lambda cpu, rank=rank: Rank(rank))
        ran = dsno(*command, "--out", "two", "--resume", at=here)
        shards = sorted(p.name for p in (here / "two").glob("shard-*"))
        if rank == 1:
            # Its share alone, and not a word on the way; the set is not complete before the other's.
            assert shards == ["shard-00001.safetensors", "shard-00003.safetensors"]
            assert ran.err.splitlines() == [
                line for line in ran.err.splitlines() if line.startswith("dsno: two is inc")
            ]
        else:
            assert ran.code == 0 and said in ran.out and len(shards) == 4 and "generate" in ran.err
    manifests = [json.loads((here / name / "manifest.json").read_text()) for name in ("one", "two")]
    assert manifests[0] == manifests[1]
    assert all(p.read_bytes() == (here / "two" / p.name).read_bytes() for p in (here / "one").glob("shard-*"))


# Refusals


def diverged(here: Path) -> None:
    weights = here / "runs" / "teacher" / "model.safetensors"
    write_tensors(weights, {k: v * float("nan") for k, v in read_tensors(weights).items()})
    edit(weights.with_name("config.json"))


def foreign(here: Path) -> None:
    (here / "foreign").mkdir()
    write_json(here / "foreign" / "config.json", {"_class_name": "UNet2DModel"})
    write_json(here / "foreign" / "scheduler_config.json", {"_class_name": "NopeScheduler"})


@refusals(
    ("generate", None, "runs/trajectories holds 1 shards already"),
    (
        "generate --count 32 --steps 6 --resume",
        None,
        "holds other trajectories than asked for: count: expected 32, found 64",
    ),
    ("generate --out samples.png/set", None, "cannot write to samples.png/set"),
    ("generate --teacher nowhere", None, "there is no folder nowhere, and no other teacher of that name"),
    ("generate --teacher runs/student", None, "runs/student holds a student, expected a teacher"),
    ("generate --out new --count 8", diverged, "of seeds 0, 1, 2, 3, and 4 more is not finite"),
    (
        "generate --out new --times 0.2 0.6 0",
        None,
        "a grid must decrease strictly, from noise to data, got [1, 0.2, 0.6, 0]",
    ),
    ("generate --out new --times 1.5 0", None, "a grid must lie inside [0, 1] (1 is noise), got [1, 1.5, 0]"),
    (
        "generate --out new --times 0.5 -0.5",
        None,
        "--times must end with 0, the time of the sample that a student is to",
    ),
    ("generate --out new --frames 0", None, "a grid needs at least one step, got 0"),
    ("generate --out new --frames 8 --steps 6", None, "a grid of 6 steps cannot pass through"),
    ("generate --count 64 --steps 6 --resume", another_teacher, "than asked for: teacher.sha256: expected"),
    (
        "generate --count 64 --steps 6 --resume",
        another_schedule,
        'schedule.name: expected "RectifiedFlow", found "Cosine"',
    ),
    ("generate --out new --labels 3", None, "--labels 3: runs/teacher has no classes"),
    ("generate --out new --guidance 1", None, "--guidance needs a condition, and runs/teacher is told none"),
    ("generate --out new --guidance 2 1", None, "--guidance is a weight of 0 or more, or LOW HIGH, got 2.0 1.0"),
    ("generate --out new --device nowhere", None, "unknown device 'nowhere': expected cpu, cuda"),
    ("generate --out new --device cuda:99", None, "this machine has no device cuda:99"),
    ("generate --out new --teacher foreign", foreign, "Nope"),
    ("generate --out new --teacher runs/trajectories", None, "runs/trajectories is no model"),
    ("generate --out new --prompts none.txt", None, "there is no file none.txt of prompts"),
)
def test_a_failure_is_one_line_and_touches_nothing(command: str, spoil: Spoil, message: str, here: Path) -> None:
    refuses(command, spoil, message, at=here)


def test_a_hub_name_without_a_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.snapshot_download", not_cached)
    ran = dsno("generate", "--teacher", "org/name", at=tmp_path)
    assert ran.code == 2 and len(ran.err.splitlines()) == 1 and "the Hub cannot be reached for org/name" in ran.err
    assert not [*tmp_path.iterdir()]


def not_cached(*arguments: object, **options: object) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    raise LocalEntryNotFoundError("not there")


def test_a_set_without_a_shard_is_not_left(here: Path) -> None:
    diverged(here)
    assert dsno("generate", "--out", "new/set", "--count", 8, at=here).code == 2
    assert not (here / "new").exists()
