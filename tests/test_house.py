"""The rules of the house that a machine can hold."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src" / "dsno"
FILES = sorted(SOURCE.rglob("*.py"))
EARLIER = SOURCE / "pipeline.py"
"""The name that a module had in version 0.1: `test_earlier.py` opens what refers to it."""


def without_docstring(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function, decorators and its own docstring not counted."""
    first = function.body[0]
    docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(function) is not None else 0
    return function.end_lineno - function.lineno + 1 - docstring


def test_every_module_has_a_test_at_its_place() -> None:
    modules = [p.relative_to(SOURCE) for p in FILES if p.stem not in ("__init__", "__main__") and p != EARLIER]
    assert len(modules) > 100
    tests = [path.with_name(f"test_{path.name}") for path in modules]
    missing = [f"tests/{path}" for path in tests if not (TESTS / path).is_file()]
    assert missing == [], "each module has its tests in a file of its name at the same place"


def test_a_file_fits_in_one_head() -> None:
    lengths = {str(path.relative_to(SOURCE)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > 500} == {}, "split it by noun"


def test_a_function_fits_on_a_page() -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    lengths = {
        f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}": without_docstring(node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, kinds)
    }
    assert len(lengths) > 500
    assert {name: lines for name, lines in lengths.items() if lines > 80} == {}, "80 lines without its docstring"
