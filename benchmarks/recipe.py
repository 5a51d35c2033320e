"""The digits recipe against its targets: quality of one pass over the teacher's own, and minutes for the whole.

    python benchmarks/recipe.py [--out runs/digits]

Runs the recipe if --out is not complete, then compares its student with the teacher's solvers on 2,048 held-out noises.
Minutes are the sum of what the stages took. Writes benchmarks/results/recipe.json.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from _common import claim, write

from dsno.checkpoint import read_json
from dsno.recipes import DigitsRecipe
from dsno.report import compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    out = DigitsRecipe().run(parser.parse_args().out, lambda stage, done, total, text: None)
    results = compare(out / "teacher", out / "student", out / "features", "digits", 2048, out / "evaluation")
    named = {r.name: r for r in results}
    student, teacher = named["DSNO"], named["teacher, fine"]
    assert student.quality and teacher.quality
    timings = read_json(out / "timings.json")
    claims = [
        claim(
            "Frechet distance of one pass over the teacher's own, 2,048 held-out noises",
            student.quality.frechet / teacher.quality.frechet, 1.1, "<=",
        ),
        claim("minutes of the whole recipe", sum(timings.values()) / 60, 25, "<="),
    ]  # fmt: skip
    for c in claims:
        print(f"{'ok  ' if c['holds'] else 'FAIL'} {c['name']}: {c['value']:.3f} ({c['direction']} {c['bound']})")
    write(
        "recipe", "dsno reproduce digits; features digits_cnn; seeds 2^40..; see each result's protocol", claims,
        timings=timings, results=[asdict(r) for r in results],
    )  # fmt: skip


if __name__ == "__main__":
    main()
