"""Damaged and crafted files of every kind: nothing runs, nothing that was sealed is accepted, and the file is named.

The cases are those of `benchmarks/faults.py`, a few of each, opened in this process; there they are hundreds.
"""

import importlib
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
faults: Any = importlib.import_module("faults")
sys.path.pop(0)

SECONDS = 5

LATER = ("program", "checkpoint", "diffusers", "pipeline")
"""Kinds that take seconds to make, or whose files another module checks."""

SLOW = ("huge", "bomb", "10^5", " of 100000", "nested lists")
"""What takes a second to make or to read."""

CASES = [case for case in faults.cases(True) if case.kind not in LATER and not any(word in case.name for word in SLOW)]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    made = {}
    for name, kind in faults.KINDS.items():
        if name not in LATER:
            kind.make(folder := tmp_path_factory.mktemp("originals") / name)
            made[name] = (folder, "" if name in ("snapshot", "official") else kind.opened(folder))
    return made


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}, {case.name}")
def test_a_damage_is_refused_by_the_name_of_its_file(
    case: Any, originals: dict[str, tuple[Path, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, known = originals[case.kind]
    folder = shutil.copytree(whole, tmp_path / case.kind)
    monkeypatch.chdir(tmp_path)
    case.damage(folder, random.Random(f"{case.kind} {case.name}"))
    began = time.process_time()
    assert faults.opening(case, folder, known) in ("refused", "harmless")
    assert time.process_time() - began < SECONDS


@pytest.mark.parametrize(
    ("opened", "outcome"),
    [
        (lambda folder: "other", "accepted"),
        (lambda folder: (folder.parent / "marker").mkdir(), "executions"),
        (lambda folder: {}["a"], "tracebacks: KeyError: 'a'"),
        (lambda folder: int("a"), "tracebacks: invalid literal for int() with base 10: 'a'"),
        (lambda folder: (folder / "step-1").rmdir() or (folder / "held.json").read_bytes(), "lost checkpoints"),
    ],
)
def test_every_bad_outcome_is_told(opened: Any, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made" / "step-1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(faults.KINDS, "made", faults.KINDS["teacher"].__class__(lambda folder: None, opened, True))
    case = faults.Case("made", "nothing", lambda folder, rng: None)
    assert faults.opening(case, tmp_path / "made", "known") == outcome
