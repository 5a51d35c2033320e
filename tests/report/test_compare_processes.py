"""Several processes share a comparison, and one of them writes it."""

from pathlib import Path
from typing import Any

import pytest

from dsno.measure.results import load_results
from dsno.report.compare import compare
from dsno.runs.shipped import shipped
from processes import succeed


def compared(out: Path, count: int) -> None:
    from accelerate import Accelerator

    _compared(out, count, Accelerator(cpu=True))


def _compared(out: Path, count: int, accelerator: Any = None) -> None:
    parts = [shipped("digits") / name for name in ("teacher", "student", "features")]
    options = {"ddim": (2,), "multistep": (2,), "fine_steps": 8, "repeats": 1, "accelerator": accelerator}
    compare(*parts, "digits", count, out, **options)


def test_processes_share_a_comparison_and_one_of_them_writes_it(tmp_path: Path) -> None:
    succeed(compared, tmp_path / "two", 15)
    _compared(tmp_path / "one", 15)
    assert (tmp_path / "two" / "report.html").is_file()
    one, two = (load_results(tmp_path / name / "results.json") for name in ("one", "two"))
    assert [r.name for r in one] == [r.name for r in two]
    for a, b in zip(one, two, strict=True):
        assert vars(b.quality) == pytest.approx(vars(a.quality), rel=1e-4, abs=1e-6)
        assert b.path_error == (None if a.path_error is None else pytest.approx(a.path_error, rel=1e-5))
