"""`dsno reproduce`: a recipe's stages, then its report."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dsno.checkpoint import write_json
from dsno.data.load import load_data
from dsno.measure.results import load_results
from dsno.report.compare import compare
from dsno.runs.features import train_features
from dsno.runs.recipes import RECIPES
from dsno.students.files import trained_for
from refusals import Spoil, refusals, refuses
from shell import dsno

FEW = partial(compare, count=8, ddim=(1,), multistep=(2,), fine_steps=16, repeats=0)


@pytest.fixture
def stages(here: Path) -> dict[Path, bytes]:
    """What a finished run holds, its stages and no evaluation."""
    kept = (p for name in ("teacher", "student", "features") for p in (here / "runs" / name).rglob("*") if p.is_file())
    return {path: path.read_bytes() for path in kept}


def test_what_is_made_is_only_measured(here: Path, stages: dict[Path, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsno.cli.reproduce.compare", FEW)
    ran = dsno("reproduce", "digits", "--out", "runs", at=here)
    assert ran.code == 0 and ran.following == ["sample", "--student", "runs/student"], ran.said
    assert "minutes; report: runs/evaluation/report.html" in ran.out and "DSNO" in ran.out
    assert {r.protocol.count for r in load_results(here / "runs" / "evaluation" / "results.json")} == {8}
    assert {path: path.read_bytes() for path in stages} == stages


def test_a_student_of_classes_is_measured_too(classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_features(load_data("digits"), classes / "runs" / "features", steps=2, width=4)
    monkeypatch.setitem(RECIPES, "classes", replace(RECIPES["digits"], conditional=True, guidance=(0, 3)))
    monkeypatch.setattr("dsno.cli.reproduce.compare", FEW)
    ran = dsno("reproduce", "classes", "--out", "runs", at=classes)
    assert ran.code == 0 and "report: runs/evaluation/report.html" in ran.out, ran.said
    assert ran.following == ["sample", "--student", "runs/student", "--guidance", "1.5"]
    # Its trajectories have weights from about 0 on, of which it is measured at the least.
    (told,) = {r.protocol.told for r in load_results(classes / "runs" / "evaluation" / "results.json")[:-1]}
    least, _ = trained_for(classes / "runs" / "student")
    assert told == f"classes as often as in digits, guidance weight {least:g}" and 0 <= least < 0.3


def between_0_and_1(here: Path) -> None:
    np.save(here / "floats.npy", np.linspace(0, 1, 4 * 64).reshape(4, 8, 8))


def of_other_settings(here: Path) -> None:
    write_json(here / "runs" / "recipe.json", {"data": "digits", "size": None, "seed": 5})


@refusals(
    ("reproduce nowhere", None, "unknown recipe 'nowhere': expected one of digits"),
    (
        "reproduce digits --data nowhere",
        None,
        "no data 'nowhere': expected 'digits', a folder or .zip of PNG or JPEG files",
    ),
    ("reproduce digits --data floats.npy", between_0_and_1, "has numbers in [0, 1], expected [-1, 1]"),
    ("reproduce digits --range 0 1", None, "says what the numbers of an array mean, and digits has pictures"),
    ("reproduce digits --out runs", of_other_settings, "runs holds a run with seed = 5, this one has 0: choose"),
)
def test_a_failure_is_one_line_and_touches_nothing(command: str, spoil: Spoil, message: str, here: Path) -> None:
    refuses(command, spoil, message, at=here)
