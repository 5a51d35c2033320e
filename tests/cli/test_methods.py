"""`dsno methods` and `dsno cite`."""

from pathlib import Path

import pytest

from dsno.bridge.sampler import BRIDGE_STEPS
from dsno.cli.methods import CROSSINGS, flag, options_table, shown
from dsno.distillation.registry import METHODS
from dsno.inverse.named import RESTORERS
from shell import dsno


def test_the_methods_are_listed_with_what_they_need(tmp_path: Path) -> None:
    ran = dsno("methods", at=tmp_path)
    assert ran.code == 0 and all(f"\n{name} " in ran.said for name in METHODS)
    assert ran.following == ["distill", "--method", "NAME"]
    assert all(text in ran.out for text in ("2211.13449", "trajectories", "1 to M"))


def test_a_methods_options_are_listed_with_what_they_take(tmp_path: Path) -> None:
    ran = dsno("methods", "progressive", at=tmp_path)
    first, *rows = ran.out.splitlines()
    assert ran.code == 0 and first.split() == ["option", "takes", "default"]
    for option in METHODS["progressive"].described():
        assert any(row.split()[:1] == [flag(option.name)] and shown(option.default) in row for row in rows)
    assert ran.following == ["distill", "--method", "progressive"]
    ran = dsno("methods", "progresive", at=tmp_path)
    assert ran.code == 2 and "progressive" in ran.err and ran.out == ""


def test_restorers_are_listed_with_what_they_cost_and_guides_pointed_to(tmp_path: Path) -> None:
    ran = dsno("methods", at=tmp_path)
    assert all(f"\n{name} " in ran.said for name in (*RESTORERS, "start")) and "1 call, 1 vjp" in ran.said
    assert "2412.09013" in ran.said and "dsno teach --start" in ran.said
    assert "a network of the teacher's size has the lower error" in ran.said and "--guide" in ran.said
    ran = dsno("methods", "dps", at=tmp_path)
    assert ran.code == 2 and "dps is a restorer, whose options are those of `dsno restore`" in ran.err


def test_samplers_of_bridges_are_listed_with_what_they_cost(tmp_path: Path) -> None:
    ran = dsno("methods", at=tmp_path)
    assert all(f"\n{name} " in ran.said for name in BRIDGE_STEPS) and "2412.19992" in ran.said
    for name, (said, *_) in CROSSINGS.items():
        _, inner, last, _ = BRIDGE_STEPS[name]
        for steps in (2, 3, 7):
            calls = eval(said.replace("2 (", "2 * (").replace("3 (", "3 * ("), {"N": steps})
            assert calls == 1 + inner * (steps - 2) + last
    ran = dsno("methods", "dbim2", at=tmp_path)
    assert ran.code == 2 and "dsno sample --bridge FOLDER --sampler dbim2" in ran.err
    ran = dsno("methods", "start", at=tmp_path)
    assert ran.code == 2 and "start is a restorer" in ran.err and "LearnedStart in Python" in ran.err


def test_the_table_for_the_page_is_printed_whole(tmp_path: Path) -> None:
    ran = dsno("methods", "--markdown", at=tmp_path)
    assert ran.code == 0 and ran.out == options_table() + "\n" and ran.err.startswith("next: dsno methods")


@pytest.mark.parametrize(
    "default, said", [((), "all"), ((0.5, 0.0), "0.5 0"), (None, "none"), (0.25, "0.25"), (True, "true"), ("L1", "l1")]
)
def test_a_default_is_shown_as_the_command_line_takes_it(default: object, said: str) -> None:
    assert shown(default) == said


def test_what_cannot_be_cited_is_said(tmp_path: Path) -> None:
    ran = dsno("cite", "nowhere", at=tmp_path)
    assert ran.code == 2 and "no folder nowhere: name one of a student" in ran.said
    ran = dsno("cite", ".", at=tmp_path)
    assert ran.code == 2 and "nothing to cite" in ran.said
