"""`dsno teach`: what it takes, and what it refuses before any work."""

from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np

from dsno.cli.teach import SCHEDULES, Teach
from dsno.schedule import Cosine, RectifiedFlow, linear_beta
from dsno.teachers.load import load_teacher
from refusals import Spoil, refusals, refuses
from shell import QUICK, dsno


def test_every_schedule_has_its_name() -> None:
    assert get_args(get_type_hints(Teach)["schedule"]) == tuple(SCHEDULES)
    made = {name: schedule() for name, schedule in SCHEDULES.items()}
    assert made == {"cosine": Cosine(), "flow": RectifiedFlow(), "linear": linear_beta()}


def test_what_was_asked_for_is_what_is_taught(tmp_path: Path) -> None:
    asked = ("--channels", 4, 8, "--kind", "eps", "--schedule", "flow", "--conditional", "--out", "own")
    ran = dsno("teach", *asked, *QUICK, at=tmp_path)
    assert ran.code == 0 and ran.following == ["generate", "--teacher", "own"]
    teacher = load_teacher(tmp_path / "own")
    assert (teacher.kind, teacher.schedule, teacher.classes) == ("eps", RectifiedFlow(), 10)
    assert list(teacher.net.config["channels"]) == [4, 8]


def arrays(here: Path) -> None:
    np.save(here / "empty.npy", np.zeros((0, 8, 8), np.uint8))
    np.save(here / "constant.npy", np.full((4, 8, 8), 7, np.uint8))
    np.save(here / "range.npy", np.linspace(-300, 300, 4 * 64).reshape(4, 8, 8))
    np.save(here / "shape.npy", np.zeros((4, 8, 3), np.uint8))
    np.save(here / "tall.npy", np.arange(4 * 42, dtype=np.uint8).reshape(4, 6, 7))
    (here / "damaged.npz").write_bytes(b"PK\x03\x04 and no more")


@refusals(
    ("teach", None, "runs/teacher exists already: pass --resume to continue it or --overwrite to start again"),
    ("teach --kind eps --batch 16 --channels 8 16 --resume", None, "was trained with kind = v, now eps: resume alike"),
    ("teach --out samples.png/teacher", None, "cannot write to samples.png/teacher (Not a directory): choose another"),
    ("teach --data nowhere", None, "no data 'nowhere': expected 'digits', a folder or .zip of PNG or JPEG files"),
    ("teach --data empty.npy --out new", arrays, "empty.npy is empty"),
    ("teach --data constant.npy --out new", arrays, "constant.npy is constant"),
    ("teach --data range.npy --out new", arrays, "range.npy has values in [-300, 300] with standard deviation"),
    (
        "teach --data shape.npy --out new",
        arrays,
        "shape.npy has shape (4, 8, 3), which does not tell where the channels are",
    ),
    ("teach --data tall.npy --out new", arrays, "images of 7 pixels cannot be halved 1 times"),
    ("teach --data damaged.npz --out new", arrays, "damaged.npz is damaged or not an array file"),
    ("teach --batch 0 --out new", None, "batch must be at least 1, got 0"),
    ("teach --train.lr nan --out new", None, "--train.lr must be positive and finite, got nan"),
    ("teach --train.ema 1.5 --out new", None, "--train.ema must be in [0, 1), got 1.5"),
    ("teach --train.steps 0 --out new", None, "--train.steps must be at least 1, got 0"),
    ("teach --train.warmup -1 --out new", None, "--train.warmup must be at least 0, got -1"),
)
def test_a_failure_is_one_line_and_touches_nothing(command: str, spoil: Spoil, message: str, here: Path) -> None:
    refuses(command, spoil, message, at=here)
