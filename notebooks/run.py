"""Run notebooks from top to bottom, each in an interpreter and an empty folder of its own.

    python notebooks/run.py                               # all three, as `make notebooks` does
    python notebooks/run.py restore-and-bridge --out seen   # one, and keep the pictures that its cells show

What a cell prints is printed, and what its last line shows, as Jupyter would show it: a picture is written to the
folder of --out, anything else printed. The first error ends a notebook, with its name, the cell and the line; the exit
code says whether there was one.
"""

from __future__ import annotations

import argparse
import ast
import json
import linecache
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent

LIMIT = 600
"""Seconds after which a notebook is taken to hang; on two idle cores each takes less than two minutes."""


def cells(notebook: Path) -> list[str]:
    """The code of a notebook, cell by cell."""
    return ["".join(c["source"]) for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]


def run_here(notebook: Path, out: Path | None) -> bool:
    """Run the cells of a notebook in this process; whether none failed."""
    names: dict[str, object] = {"__name__": "__main__"}
    for n, code in enumerate(cells(notebook), 1):
        print(f"[{n}]", flush=True)
        place = f"{notebook.name}, cell {n}"
        linecache.cache[place] = (len(code), None, code.splitlines(keepends=True), place)
        try:
            shown = run_cell(code, place, names)
        except BaseException:
            traceback.print_exc()
            return False
        if hasattr(shown, "_repr_png_"):
            if out is not None:
                (out / f"{notebook.stem}-{n}.png").write_bytes(shown._repr_png_())
        elif shown is not None:
            print(repr(shown))
    return True


def run_cell(code: str, place: str, names: dict[str, object]) -> object:
    """Run a cell; what its last line shows, or None."""
    tree = ast.parse(code, place)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, place, "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), place, "eval"), names)


def run(notebook: Path, out: Path | None, limit: float = LIMIT) -> bool:
    """Run a notebook in an interpreter and a folder of its own; whether it came to its end."""
    began = time.perf_counter()
    command = [sys.executable, str(Path(__file__).resolve()), str(notebook.resolve()), "--here"]
    with tempfile.TemporaryDirectory() as folder:
        if out is not None:
            command += ["--out", str(out.resolve())]
        quiet = {**os.environ, "MPLBACKEND": "agg"}
        try:
            code = subprocess.run(command, cwd=folder, env=quiet, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            code = 1
            print(f"{notebook.stem}: stopped after {limit:g} s")
    print(f"{notebook.stem}: {'failed' if code else 'ran'} in {time.perf_counter() - began:.0f} s", flush=True)
    return code == 0


def options() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="notebooks/run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("notebooks", nargs="*", help="names or files; all of this folder by default")
    made.add_argument("--out", type=Path, help="keep the pictures here")
    made.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    return made


def main(given: Sequence[str] | None = None) -> int:
    """Run them; the exit code."""
    wanted = options().parse_args(given)
    found = [path if (path := Path(name)).suffix else HERE / f"{name}.ipynb" for name in wanted.notebooks]
    if wanted.out is not None:
        wanted.out.mkdir(parents=True, exist_ok=True)
    if wanted.here:
        return int(not run_here(found[0], wanted.out))
    ran = [run(path, wanted.out) for path in found or sorted(HERE.glob("*.ipynb"))]
    return int(not all(ran))


if __name__ == "__main__":
    sys.exit(main())
