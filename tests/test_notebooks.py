"""The notebooks are stored without outputs and fit the package; `make notebooks` runs them, which takes minutes."""

import ast
import importlib
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from anchors import sections

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    """`notebooks/run.py`."""
    spec = importlib.util.spec_from_file_location("notebooks_run", ROOT / "notebooks" / "run.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def stored(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def write(path: Path, *cells: str) -> Path:
    """A notebook of these cells of code."""
    held = [{"cell_type": "markdown", "source": ["# T"]}]
    held += [{"cell_type": "code", "source": c.splitlines(keepends=True)} for c in cells]
    path.write_text(json.dumps({"cells": held}))
    return path


@each
def test_a_notebook_is_stored_without_what_a_run_leaves_in_it(path: Path) -> None:
    notebook = stored(path)
    cells = notebook["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["outputs"] for cell in code] == [[]] * len(code), "clear the outputs before you commit"
    assert {cell["execution_count"] for cell in code} == {None}
    assert [cell["metadata"] for cell in cells] == [{}] * len(cells)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    # Written as Jupyter writes it, so that opening and saving one changes nothing.
    assert path.read_text() == json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    assert len({cell["id"] for cell in cells}) == len(cells)


@each
def test_what_a_notebook_imports_is_there(path: Path, runner: ModuleType) -> None:
    trees = [ast.parse(code) for code in runner.cells(path)]
    found = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = [(node.module or "", alias.name) for node in found for alias in node.names]
    ours = [(module, name) for module, name in names if module.split(".")[0] == "dsno"]
    assert len(ours) > 10
    for module, name in ours:
        assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"


@each
def test_what_a_notebook_links_to_is_there(path: Path) -> None:
    text = "\n".join("".join(cell["source"]) for cell in stored(path)["cells"] if cell["cell_type"] == "markdown")
    assert text.startswith("# ")
    links = re.findall(r"\]\(([^)#]+\.md)(?:#([^)]+))?\)", text)
    assert len(links) >= 2
    for name, anchor in links:
        page = path.parent / name
        assert page.is_file() and (not anchor or anchor in sections(page)), f"{name}#{anchor}"


def test_every_notebook_is_on_its_page_and_run_by_ci() -> None:
    page = (ROOT / "docs" / "notebooks.md").read_text()
    assert re.findall(r"^\| `(.+)\.ipynb`", page, re.M) == [path.stem for path in NOTEBOOKS] and len(NOTEBOOKS) == 3
    assert "make notebooks" in (ROOT / ".ci" / "run").read_text().splitlines()
    assert "$(BIN)/python notebooks/run.py $(ARGS)" in (ROOT / "Makefile").read_text()


def test_cells_run_in_their_order_in_an_empty_folder(
    tmp_path: Path, runner: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = "class Shown:\n    def _repr_png_(self):\n        return b'png'\n\nShown()"
    first = "import os\na = [*os.listdir(), os.environ['MPLBACKEND']]\nopen('left', 'w').close()"
    notebook = write(tmp_path / "good.ipynb", first, "a += [len(a)]\na", shown, "a = None\na")
    assert runner.main([str(notebook), "--out", str(tmp_path / "seen")]) == 0
    said = capfd.readouterr().out
    assert re.sub(r"\d+ s$", "1 s", said.strip()) == "[1]\n[2]\n['agg', 1]\n[3]\n[4]\ngood: ran in 1 s"
    assert [path.name for path in (tmp_path / "seen").iterdir()] == ["good-3.png"]
    assert (tmp_path / "seen" / "good-3.png").read_bytes() == b"png"
    assert not Path("left").exists()


def test_an_error_ends_a_notebook_and_says_where(
    tmp_path: Path, runner: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = write(tmp_path / "bad.ipynb", "x = 1", "y = x\nraise ValueError('odd')", "print('not reached')")
    assert runner.main([str(bad)]) == 1
    said, error = capfd.readouterr()
    assert "bad: failed in" in said and "not reached" not in said
    for part in ('File "bad.ipynb, cell 2", line 2', "raise ValueError('odd')", "ValueError: odd"):
        assert part in error


def test_a_notebook_that_hangs_is_stopped(
    tmp_path: Path, runner: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not runner.run(write(tmp_path / "slow.ipynb", "import time\ntime.sleep(60)"), None, limit=0.5)
    assert "slow: stopped after 0.5 s" in capfd.readouterr().out


def test_notebooks_are_found_by_their_names(runner: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(runner, "run", lambda path, out: asked.append(path.name) or len(asked) < 3)
    assert runner.main(["restore-and-bridge"]) == 0 and asked == ["restore-and-bridge.ipynb"]
    assert runner.main([]) == 1 and asked[1:] == [path.name for path in NOTEBOOKS]
