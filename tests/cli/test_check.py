"""`dsno check-teacher`: the verdict is the exit code."""

from pathlib import Path

import numpy as np

from dsno.checkpoint import read_json
from refusals import Spoil, edit, refusals, refuses
from shell import dsno


def test_a_teacher_is_checked_and_the_verdict_is_the_exit_code(here: Path) -> None:
    quick = ("--data", "digits", "--rows", 8, "--levels", 3, "--patience", 0)
    ran = dsno("check-teacher", "digits", *quick, "--out", "verdict.json", at=here)
    assert ran.code == 0 and "this teacher is fit to use" in ran.out
    assert ran.following[:2] == ["generate", "--teacher"]
    assert read_json(here / "verdict.json")["verdict"] == "ok" and len(read_json(here / "verdict.json")["levels"]) == 3
    assert dsno("convert", "digits", "--out", "own", at=here).code == 0
    edit(here / "own" / "config.json", kind="x0")
    ran = dsno("check-teacher", "own", "--data", "digits", "--rows", 16, "--levels", 3, at=here)
    assert ran.code == 1 and "read as v" in " ".join(ran.out.split()) and "do not use this teacher" in ran.out
    assert ran.following == ["check-teacher", "own", "--data", "digits"]


def tall(here: Path) -> None:
    np.save(here / "tall.npy", np.arange(4 * 42, dtype=np.uint8).reshape(4, 6, 7))


@refusals(
    ("check-teacher runs/student", None, "runs/student holds a student, expected a teacher"),
    ("check-teacher runs/teacher --data tall.npy", tall, "samples of shape (1, 6, 7), the teacher makes (1, 8, 8)"),
    ("check-teacher runs/teacher --null -1", None, "the null label -1 is outside the labels of runs/teacher"),
    ("check-teacher runs/teacher --dtype float9", None, "unknown dtype 'float9'"),
    ("check-teacher runs/teacher --out samples.png", None, "samples.png exists already: pass --overwrite"),
)
def test_a_failure_is_one_line_and_touches_nothing(command: str, spoil: Spoil, message: str, here: Path) -> None:
    refuses(command, spoil, message, at=here)
