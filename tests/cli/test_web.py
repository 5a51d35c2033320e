"""`dsno web`: a student goes to a browser, its teacher beside it."""

from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.request import urlopen

import pytest

from dsno.checkpoint import read_json
from dsno.web import site
from refusals import Spoil, edit, refusals, refuses
from shell import dsno


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    """Without what takes long, the runtime and graphs; `tests/web` has these."""
    (here / "ort.mjs").write_text("runtime")

    def written(folder: Path, networks: dict[str, object]) -> dict[str, float]:
        for name in (*(f"{name}.onnx" for name in networks), "weights.bin"):
            (folder / name).write_bytes(b"graph")
        return dict.fromkeys(networks, 0.0)

    monkeypatch.setattr(site, "find_runtime", lambda folder: {"ort.mjs": here / "ort.mjs"})
    monkeypatch.setattr(site, "write_graphs", written)


def test_a_page_is_written_of_a_student_and_the_teacher_that_its_folder_notes(light: None, here: Path) -> None:
    ran = dsno("web", "runs/student", "--out", "page", "--title", "Tiny", at=here)
    assert (ran.code, ran.err) == (0, "") and ran.out.splitlines()[1] == "next: dsno web --out page --open"
    held = read_json(here / "page" / "model.json")
    assert held["title"] == "Tiny" and held["teacher"]["solvers"][0]["name"] == "ddim"
    (here / "runs" / "teacher").rename(here / "runs" / "elsewhere")
    edit(here / "runs" / "student" / "config.json", notes={})
    ran = dsno("web", "runs/student", "--out", "page", "--overwrite", at=here)
    assert ran.code == 0 and ran.err.startswith(
        "note: the student is alone on the page: the teacher of runs/student is"
    )
    assert read_json(here / "page" / "model.json")["teacher"] is None


def test_a_page_that_is_there_is_served_as_it_is(light: None, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def asked(address: str) -> None:
        seen.append(address)

    def once(server: ThreadingHTTPServer) -> None:
        server.timeout = 5
        thread = Thread(target=server.handle_request)
        thread.start()
        with urlopen(seen[-1]) as answer:
            seen.append(answer.headers["Cross-Origin-Opener-Policy"])
        thread.join()
        raise KeyboardInterrupt

    monkeypatch.setattr("webbrowser.open", asked)
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", once)
    for count in (1, 2):
        ran = dsno("web", "--out", "page", "--open", "--port", 0, at=here)
        assert ran.code == 0 and "page is at http://127.0.0.1:" in ran.out and "until Ctrl-C" in ran.out
        assert ("MB" in ran.out) == (count == 1), "it is written once"
        assert ran.following == ["export"] and ran.out.count("next: ") == 1
    assert seen[1] == "same-origin" and len(seen) == 4


def others(here: Path) -> None:
    (here / "new").mkdir()
    (here / "new" / "model.json").write_text('{"mine": 1}')


@refusals(
    ("web runs/student --out new --runtime nowhere", None, "nowhere holds no ort.wasm.bundle.min.mjs: `npm pack"),
    ("web runs/teacher --out new", None, "runs/teacher holds a teacher, expected a student"),
    ("web runs/student --out new --port 70000", None, "--port must be in [0, 65535], got 70000"),
    ("web runs/student --teacher digits --out new --open --port -1", None, "--port must be in [0, 65535], got -1"),
)
def test_a_failure_is_one_line_and_touches_nothing(command: str, spoil: Spoil, message: str, here: Path) -> None:
    refuses(command, spoil, message, at=here)


@refusals(
    ("web runs/student --out new --overwrite", others, "new holds other files (model.json) and not a site"),
    ("web runs/student --out runs --overwrite", None, "runs/student is read, and lies in runs"),
)
def test_nobody_loses_work(command: str, spoil: Spoil, message: str, light: None, here: Path) -> None:
    refuses(command, spoil, message, at=here)
