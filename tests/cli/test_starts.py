"""A start by command: trained for a problem, and restored from by the command that it says; and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsno.checkpoint import read_json
from dsno.inverse.start_net import load_start
from shell import QUICK, dsno


def test_a_start_is_trained_and_the_command_it_says_restores(tmp_path: Path) -> None:
    asked = ("--start", "digits", "--factor", 2, "--noise", 0.05, "--channels", 8, "--out", "begun")
    ran = dsno("teach", *asked, *QUICK, at=tmp_path)
    assert ran.code == 0, ran.said
    assert load_start(tmp_path / "begun").shape == (1, 8, 8)
    notes = read_json(tmp_path / "begun" / "config.json")["notes"]
    assert notes["problem"] == "Downsample(factor=2, kind='average', noise=0.05)"
    (tmp_path / "small").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4), dtype=np.uint8)).save(tmp_path / "small/a.png")
    restoring = ["small" if word == "PICTURES" else word for word in ran.following]
    assert restoring[:2] == ["restore", "small"] and restoring[-2:] == ["--start", "begun"]
    assert dsno(*restoring, "--out", "out", "--device", "cpu", at=tmp_path).code == 0
    held = read_json(tmp_path / "out" / "restored.json")
    assert (held["method"], held["steps"], held["cost"]["rounds"]) == ("start", 1, 1)
    assert "yue2025arbitrary" in dsno("cite", "begun", at=tmp_path).said


@pytest.mark.parametrize(
    "given, message",
    [
        ("--factor 2", "--factor is of learned starts and of bridges: give --start TEACHER or --pairs CLEAN"),
        ("--start digits --kind v", "--kind does not go with --start"),
        ("--start digits --pairs a b", "--pairs does not go with --start"),
        ("--start digits --problem inpaint", "inpaint needs one of --mask FILE"),
        ("--start digits --box 0.5", "--box is no option of the problem super"),
        ("--start digits --data wide.npy", "wide.npy has samples of shape (1, 16, 16), digits makes (1, 8, 8)"),
        ("--start nowhere", "nowhere"),
    ],
)
def test_a_failure_is_one_line_and_touches_nothing(given: str, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.arange(4 * 256, dtype=np.int64).reshape(4, 16, 16).astype(np.uint8))
    ran = dsno("teach", *given.split(), *QUICK, "--out", "new", at=tmp_path)
    assert ran.code != 0 and message in ran.said, ran.said
    assert not (tmp_path / "new").exists()
