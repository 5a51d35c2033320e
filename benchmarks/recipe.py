"""A recipe against its targets: quality and latency of one pass beside the teacher's solvers.

    python benchmarks/recipe.py [digits|fashion|sprites|...] [--data SOURCE] [--reference SOURCE] [--out runs/NAME]

Runs the recipe if --out is not complete, then compares its student with the teacher's solvers on --count held-out noises
(or reads the comparison that `dsno reproduce` left there), against --reference, the recipe's own data by default. Minutes are the sum of what the stages took, each by its own
clock. Writes benchmarks/results/NAME.json (recipe.json for the digits) and the pictures of the docs.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from _common import claim, write

from dsno.checkpoint import read_json
from dsno.data.load import load_data
from dsno.measure.results import Result, load_results
from dsno.nets.backbone import sample_shape
from dsno.report.compare import HELD_OUT, compare
from dsno.report.pictures import image_grid, quality_against_cost, trajectory_strips
from dsno.runs.recipes import RECIPES
from dsno.seeds import noise, seed_range
from dsno.solvers.fine import fine_solution
from dsno.students.files import load_student
from dsno.students.samplers import OnePass
from dsno.teachers.load import load_teacher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=sorted(RECIPES), default="digits")
    parser.add_argument("--data", help="where the recipe's data is on this machine")
    parser.add_argument("--reference", help="images to compare with; the recipe's data by default")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--count", type=int, default=2048)
    arguments = parser.parse_args()
    name, recipe = arguments.name, RECIPES[arguments.name]
    recipe = replace(recipe, data=arguments.data or recipe.data)
    out = recipe.run(
        arguments.out or Path("runs") / name,
        lambda stage, done, total, text: print(f"{stage} {done}/{total} {text}", flush=True),
    )
    held = out / "evaluation" / "results.json"
    if held.is_file():
        results = load_results(held)
    else:
        data = load_data(arguments.reference or recipe.data, size=recipe.size)
        results = compare(
            out / "teacher", out / "student", out / "features", data, arguments.count, out / "evaluation", repeats=30
        )
    timings = read_json(out / "timings.json")
    claims = judged(name, {r.name: r for r in results}, timings)
    for c in claims:
        print(f"{'ok  ' if c['holds'] else 'FAIL'} {c['name']}: {c['value']:.3f} ({c['direction']} {c['bound']})")
    pictures(out, results, "" if name == "digits" else f"{name}-")
    protocol = results[0].protocol
    write(
        "recipe" if name == "digits" else name,
        f"dsno reproduce {name}; {protocol.count} held-out noises, seeds 2^40..; {protocol.reference_count} reference images; "
        f"features {protocol.extractor}; see each result's protocol",
        claims, timings=timings, results=[asdict(r) for r in results],
    )  # fmt: skip


def judged(name: str, results: dict[str, Result], timings: dict[str, float]) -> list[dict[str, Any]]:
    """What the issue of each recipe asks for."""

    def frechet(sampler: str) -> float:
        quality = results[sampler].quality
        assert quality is not None
        return quality.frechet

    count = f"{results['DSNO'].protocol.count:,}"
    ratio = frechet("DSNO") / frechet("teacher, fine")
    over_teacher = f"Frechet distance of one pass over the teacher's own, {count} held-out noises"
    if name == "digits":
        minutes = sum(timings.values()) / 60
        return [claim(over_teacher, ratio, 1.1, "<="), claim("minutes of the whole recipe", minutes, 25, "<=")]
    alone, solver = results["DSNO"].cost.latency, results["DPM-Solver++-8"].cost.latency
    assert alone is not None and solver is not None
    return [
        claim(over_teacher, ratio, 1.3, "<="),
        claim("Frechet distance of one pass over that of DDIM-8", frechet("DSNO") / frechet("DDIM-8"), 1, "<="),
        claim(
            "Frechet distance of one pass over that of DPM-Solver++-8",
            frechet("DSNO") / frechet("DPM-Solver++-8"), 1, "<=",
        ),
        claim("latency of DPM-Solver++-8 over that of one pass, batch 1", solver / alone, 5, ">="),
    ]  # fmt: skip


def pictures(out: Path, results: list[Result], prefix: str) -> None:
    """The cost plot, samples, and the operator's trajectories over the teacher's."""
    teacher, student = load_teacher(out / "teacher"), load_student(out / "student")
    z = noise(seed_range(HELD_OUT, 64), sample_shape(teacher))
    path = OnePass(student)(z[:6])
    exact = fine_solution(teacher, teacher.schedule, z[:6], 64, keep=path.t, keep_x0=True)
    assert path.x0 is not None and exact.x0 is not None
    images = Path(__file__).parents[1] / "docs/images"
    images.mkdir(parents=True, exist_ok=True)
    (images / f"{prefix}cost.png").write_bytes(quality_against_cost(results))
    (images / f"{prefix}samples.png").write_bytes(image_grid(student.sample(z), 16))
    fine = fine_solution(teacher, teacher.schedule, z, 64).sample
    (images / f"{prefix}teacher.png").write_bytes(image_grid(fine, 16))
    (images / f"{prefix}trajectories.png").write_bytes(
        trajectory_strips(path.x0[:, 1:], exact.x0[:, 1:], path.t[1:], z[:6])
    )


if __name__ == "__main__":
    main()
