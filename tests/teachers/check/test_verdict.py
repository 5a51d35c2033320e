"""A verdict is the worst of its findings, prints as a page and is JSON."""

import json

import torch

from dsno.schedule import Cosine
from dsno.teachers.check.run import check_teacher
from dsno.teachers.check.verdict import Finding, Level, Verdict
from exact import Exact, broken, data, stated


def test_a_verdict_prints_and_is_json() -> None:
    verdict = check_teacher(broken(lambda out, t: out * torch.nan), data())
    assert json.loads(json.dumps(verdict.to_dict(), allow_nan=False))["verdict"] == "failure"
    verdict = check_teacher(stated(Exact("v", Cosine())), data(), levels=4, patience=0)
    page = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert page["verdict"] == "ok" and len(page["levels"]) == 4 and page["levels"][0]["ratio"] > 0
    lines = str(verdict).splitlines()
    assert lines[-1] == "this teacher is fit to use" == verdict.summary
    assert all(f.check in line for f, line in zip(verdict.findings, lines[1:-1], strict=True))


def test_a_verdict_is_the_worst_of_its_findings() -> None:
    fine, warned, failed = (
        Finding("a", "ok", "x"),
        Finding("b", "warning", "y"),
        Finding("c", "failure", "z", "mend it"),
    )
    verdict = Verdict("a teacher", "data", (fine, warned, warned))
    assert (verdict.state, verdict.ok, verdict.summary) == (
        "warning",
        True,
        "this teacher is fit to use, mind 2 warnings",
    )
    verdict = Verdict("a teacher", "data", (fine, failed, warned, failed))
    assert (verdict.state, verdict.ok, verdict.summary) == ("failure", False, "do not use this teacher as it is: c")
    assert "failure  c            z -> mend it" in str(verdict)
    assert Verdict("a teacher", "data", ()).state == "ok"


def test_a_level_is_compared_with_the_best_baseline_and_no_number_is_infinite_in_json() -> None:
    level = Level(t=0.5, log_snr=0.0, error=1.0, mean=4.0, input=2.0, wiener=3.0)
    assert level.ratio == 0.5
    endless = Level(t=1.0, log_snr=-torch.inf, error=torch.nan, mean=1.0, input=torch.inf, wiener=1.0)
    written = Verdict("a teacher", "data", (), (level, endless), {"seconds_1": 0.1}).to_dict()
    assert written["levels"][0]["ratio"] == 0.5 and written["cost"] == {"seconds_1": 0.1}
    assert [written["levels"][1][k] for k in ("log_snr", "error", "input", "ratio")] == [None] * 4
