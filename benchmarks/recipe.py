"""A recipe against its targets: quality and latency of one pass beside the teacher's solvers.

    python benchmarks/recipe.py [digits|fashion|sprites|...] [--data SOURCE] [--reference SOURCE] [--source runs/NAME]

Claim: one pass of the digits is within 1.1 times the teacher's own distance, in 25 minutes from nothing; of the others
within 1.3 times, ahead of the teacher's solvers in eight steps, and five times as fast alone. A ratio on the other side
refutes it. Runs the recipe if --source is not complete, then compares its student with the teacher's solvers on --count
held-out noises (or reads the comparison that `dsno reproduce` left there), against --reference, the recipe's own data
by default. Minutes are the sum of what the stages took, each by its own clock. Writes benchmarks/results/NAME.json
(recipe.json for the digits) and the pictures of the docs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from _common import Claim, claim, parse, parser, printed, write

from dsno.checkpoint import read_json
from dsno.data.load import load_data
from dsno.measure.results import load_results
from dsno.nets.backbone import sample_shape
from dsno.report.compare import HELD_OUT, compare
from dsno.report.pictures import image_grid, quality_against_cost, trajectory_strips
from dsno.runs.recipes import RECIPES, Recipe
from dsno.seeds import noise, seed_range
from dsno.solvers.fine import fine_solution
from dsno.students.files import load_student
from dsno.students.samplers import OnePass
from dsno.teachers.load import load_teacher


def quick(recipe: Recipe) -> Recipe:
    """The same stages, each of a few steps."""
    teach, distill = (replace(config, steps=2, checkpoint_every=2) for config in (recipe.teach, recipe.distill))
    return replace(recipe, teach=teach, features_steps=2, count=recipe.distill_batch, distill=distill)


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """What each recipe is to reach."""
    results = {r["name"]: r for r in numbers["results"]}
    count = results["DSNO"]["protocol"]["count"]

    def over(other: str) -> float:
        return results["DSNO"]["quality"]["frechet"] / results[other]["quality"]["frechet"]

    title = f"Frechet distance of one pass over the teacher's own, {count:,} held-out noises"
    if numbers["name"] == "recipe":
        minutes = sum(numbers["timings"].values()) / 60
        return [
            claim(title, over("teacher, fine"), 1.1, "<="),
            claim("minutes of the whole recipe", minutes, 25, "<="),
        ]
    alone, solver = (results[name]["cost"]["latency"] for name in ("DSNO", "DPM-Solver++-8"))
    return [
        claim(title, over("teacher, fine"), 1.3, "<="),
        claim("Frechet distance of one pass over that of DDIM-8", over("DDIM-8"), 1, "<="),
        claim("Frechet distance of one pass over that of DPM-Solver++-8", over("DPM-Solver++-8"), 1, "<="),
        claim("latency of DPM-Solver++-8 over that of one pass, batch 1", solver / alone, 5, ">="),
    ]


def pictures(source: Path, results: Any, images: Path, prefix: str) -> None:
    """The cost plot, samples, and the operator's trajectories over the teacher's."""
    teacher, student = load_teacher(source / "teacher"), load_student(source / "student")
    z = noise(seed_range(HELD_OUT, 64), sample_shape(teacher))
    made = OnePass(student, whole=True)(z[:6])
    exact = fine_solution(teacher, teacher.schedule, z[:6], 64, keep=made.t, keep_x0=True)
    fine = fine_solution(teacher, teacher.schedule, z, 64).sample
    assert made.x0 is not None and exact.x0 is not None
    images.mkdir(parents=True, exist_ok=True)
    for name, drawn in {
        "cost": quality_against_cost(results),
        "samples": image_grid(student.sample(z), 16),
        "teacher": image_grid(fine, 16),
        "trajectories": trajectory_strips(made.x0[:, 1:], exact.x0[:, 1:], made.t[1:], z[:6]),
    }.items():
        (images / f"{prefix}{name}.png").write_bytes(drawn)


def options() -> argparse.ArgumentParser:
    made = parser(__file__, __doc__)
    made.add_argument("name", nargs="?", choices=sorted(RECIPES), default="digits")
    made.add_argument("--data", help="where the recipe's data is on this machine")
    made.add_argument("--reference", help="images to compare with; the recipe's data by default")
    made.add_argument(
        "--source", type=Path, help="the recipe's folder, made if it is not complete; runs/NAME by default"
    )
    made.add_argument("--count", type=int, help="held-out noises, 2,048 by default")
    return made


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    name, recipe = arguments.name, RECIPES[arguments.name]
    recipe = replace(quick(recipe) if arguments.quick else recipe, data=arguments.data or recipe.data)
    source = arguments.source or (arguments.out if arguments.quick else Path("runs")) / name
    recipe.run(source, printed())
    held = source / "evaluation" / "results.json"
    if held.is_file():
        results = load_results(held)
    else:
        data = load_data(arguments.reference or recipe.data, size=recipe.size)
        count, repeats = arguments.count or (16 if arguments.quick else 2048), 1 if arguments.quick else 30
        folders = (source / part for part in ("teacher", "student", "features"))
        results = compare(*folders, data, count, held.parent, repeats=repeats)
    pictures(source, results, arguments.images, "" if name == "digits" else f"{name}-")
    protocol = results[0].protocol
    numbers = {"timings": read_json(source / "timings.json"), "results": [asdict(r) for r in results]}
    title = "recipe" if name == "digits" else name
    write(
        arguments,
        title,
        f"dsno reproduce {name}; {protocol.count} held-out noises, seeds 2^40..; {protocol.reference_count} reference "
        f"images; features {protocol.extractor}; see each result's protocol",
        judged({"name": title, **numbers}),
        **numbers,
    )


if __name__ == "__main__":
    main()
