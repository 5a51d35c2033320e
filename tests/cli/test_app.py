"""`dsno app`: a page of the models that were named, until Ctrl-C."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dsno.app.desk import Desk
from dsno.cli import app
from dsno.runs.shipped import shipped
from refusals import Spoil, edit, refusals, refuses
from shell import Ran, dsno


class Interrupted:
    """In place of what waits for Ctrl-C."""

    def wait(self) -> None:
        raise KeyboardInterrupt


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page is made and served with, without gradio."""
    seen: dict[str, Any] = {}

    def made(desk: Desk, model: str, other: str | None, drawn: bool) -> str:
        seen.update(places=desk.places, named=(model, other), drawn=drawn)
        seen["kinds"] = [desk.opened(name).teacher is not None for name in (model, other) if name]
        return "page"

    @contextmanager
    def served(page: str, *given: object) -> Iterator[str]:
        seen["given"] = (page, *given)
        yield "http://127.0.0.1:1/"
        seen["ended"] = True

    monkeypatch.setattr(app, "made_page", made)
    monkeypatch.setattr(app, "served_page", served)
    monkeypatch.setattr(app, "Event", Interrupted)
    monkeypatch.setattr(app, "free_port", lambda host, port: port)
    return seen


def served(*arguments: object, at: Path) -> Ran:
    ran = dsno("app", *arguments, at=at)
    assert ran.code == 0 and ran.following[0] == "sample" and ran.out.count("next: ") == 1
    return ran


def test_the_shipped_student_is_shown_beside_its_teacher(asked: dict[str, Any], tmp_path: Path) -> None:
    ran = served(at=tmp_path)
    assert ran.err == "" and ran.out.startswith("digits student is at http://127.0.0.1:1/ until Ctrl-C\n")
    assert asked["named"] == ("digits student", "digits") and asked["kinds"] == [False, True] and asked["drawn"]
    assert asked["given"] == ("page", "127.0.0.1", 7860, False) and asked["ended"]
    assert asked["places"].folders == (Path("runs"),) and not asked["places"].hub
    assert asked["places"].found()[:3] == ["digits student", "digits", "digits-classes student"]
    assert asked["places"].opened("digits-classes student") == str(shipped("digits-classes") / "student")
    assert not asked["places"].allows(str(shipped().parent)) and not asked["places"].allows("org/name")


def test_a_student_stands_beside_the_teacher_that_it_notes_or_that_was_named(asked: dict[str, Any], here: Path) -> None:
    ran = served("runs/student", "--port", 0, "--folders", "a", "b", "--hub", at=here)
    assert ran.following == ["sample", "--student", "runs/student"] and not asked["drawn"]
    assert asked["named"] == ("runs/student", "runs/teacher") and asked["kinds"] == [False, True]
    assert asked["places"].folders == (Path("a"), Path("b")) and asked["places"].hub
    served("runs/student", "--teacher", "digits", at=here)
    assert asked["named"] == ("runs/student", "digits")
    served("runs/teacher", at=here)
    assert asked["named"] == ("runs/teacher", None) and asked["kinds"] == [True]
    (here / "runs" / "teacher").rename(here / "runs" / "elsewhere")
    edit(here / "runs" / "student" / "config.json", notes={})
    ran = served("runs/student", at=here)
    assert asked["named"] == ("runs/student", None) and ran.err.startswith("note: nothing stands beside it: ")


def test_whoever_lets_others_in_is_told_so(asked: dict[str, Any], tmp_path: Path) -> None:
    for options in (("--host", "0.0.0.0"), ("--share",)):
        assert served(*options, at=tmp_path).err == (
            "note: whoever reaches this page makes this machine compute, and reads what it makes\n"
        )
    assert served("--host", "localhost", at=tmp_path).err == ""


@refusals(
    ("app runs/trajectories", None, "runs/trajectories"),
    ("app nowhere/at/all", None, "nowhere/at/all"),
    ("app --teacher nowhere/at/all", None, "nowhere/at/all"),
    ("app --port -1", None, "--port must be in [0, 65535], got -1"),
    ("app --host 203.0.113.9", None, "203.0.113.9 is no address of this machine"),
)
def test_a_failure_is_one_line_and_touches_nothing(command: str, spoil: Spoil, message: str, here: Path) -> None:
    pytest.importorskip("gradio", reason="needs gradio: pip install 'dsno[app]'")
    refuses(command, spoil, message, at=here)


def test_without_gradio_it_says_what_to_install(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    refuses("app", None, "dsno: `dsno app` needs the package 'gradio': pip install 'dsno[app]'", at=here)
