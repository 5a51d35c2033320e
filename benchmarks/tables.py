"""Write the tables of README.md and docs/ from benchmarks/results/*.json, so that no number is typed.

    python benchmarks/tables.py [--check]

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; everything between is replaced. --check changes nothing
and exits with 1 if a page is out of date.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def rows(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def recipe(record: dict[str, Any]) -> str:
    """The shipped student beside its teacher's solvers."""
    chosen = ("DSNO", "DDIM-1", "DDIM-4", "DDIM-8", "DDIM-16", "DDIM-64", "DPM-Solver++-4", "DPM-Solver++-8",
              "DPM-Solver++-16", "UniPC-8", "UniPC-16", "teacher, fine")  # fmt: skip
    named = {r["name"]: r for r in record["results"]}
    body = []
    for name in chosen:
        r = named[name]
        cost, quality = r["cost"], r["quality"]
        sampled = bool(cost["rounds"])
        body.append([
            f"**{name}, one pass**" if name == "DSNO" else name,
            str(cost["rounds"]) if sampled else "-",
            f"{cost['flops'] / 1e6:,.0f}" if sampled else "-",
            f"{quality['frechet']:.2f}", f"{quality['precision']:.2f}", f"{quality['recall']:.2f}",
            f"{r['path_error']:.3f}" if r["path_error"] is not None else "-",
        ])  # fmt: skip
    return rows(
        ["sampler", "serial network calls", "MFLOP a sample", "Fréchet", "precision", "recall", "path error"], body
    )


def digits(record: dict[str, Any]) -> str:
    """Students at equal training FLOPs."""
    body = [
        [
            name, str(s["run"]["frames"]), f"{s['sample_flops'] / 1e6:.0f}", f"{s['network_images'] / 1e3:.0f}k",
            f"{s['frechet']['mean']:.2f}" + (f" ± {s['frechet']['spread']:.2f}" if s["seeds"] > 1 else ""),
            f"{s['path_error']['mean']:.4f}" + (f" ± {s['path_error']['spread']:.4f}" if s["seeds"] > 1 else ""),
            str(s["seeds"]),
        ]
        for name, s in sorted(record["table"].items(), key=lambda item: item[1]["frechet"]["mean"])
    ]  # fmt: skip
    return rows(["student", "M", "MFLOP a sample", "network images", "Fréchet", "path error", "seeds"], body)


def claims(record: dict[str, Any]) -> str:
    """Claims of one benchmark, those that fall short included."""
    body = [
        [c["name"], f"{c['value']:.3g}", f"{c['direction']} {c['bound']:g}", "yes" if c["holds"] else "**no**"]
        for c in record["claims"]
    ]
    return rows(["claim", "measured", "bound", "holds"], body)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "recipe": recipe, "fashion": recipe, "sprites": recipe, "digits": digits, "ablation": digits
}  # fmt: skip


def render(text: str) -> str:
    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        source = name.removeprefix("claims ")
        record = json.loads((ROOT / "benchmarks/results" / f"{source}.json").read_text())
        table = claims(record) if name.startswith("claims ") else TABLES[name](record)
        return f"<!-- table: {name} -->\n\n{table}\n\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w ]+) -->.*?<!-- end -->", fill, text, flags=re.DOTALL)


def main() -> None:
    stale = [page for page in PAGES if render(page.read_text()) != page.read_text()]
    for page in stale:
        print(f"{'out of date' if '--check' in sys.argv else 'written'}: {page.relative_to(ROOT)}")
        if "--check" not in sys.argv:
            page.write_text(render(page.read_text()))
    sys.exit(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    main()
