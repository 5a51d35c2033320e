"""The digits recipe against its targets: quality of one pass over the teacher's own, and minutes for the whole.

    python benchmarks/recipe.py [--out runs/digits]

Runs the recipe if --out is not complete, then compares its student with the teacher's solvers on 2,048 held-out noises
(or reads the comparison that `dsno reproduce` left there).
Minutes are the sum of what the stages took. Writes benchmarks/results/recipe.json and the pictures of the README.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from _common import claim, write

from dsno.checkpoint import read_json
from dsno.evaluate import Result, fine_solution, load_results
from dsno.noise import noise, seed_range
from dsno.recipes import DigitsRecipe
from dsno.report import HELD_OUT, compare, image_grid, quality_against_cost, trajectory_strips
from dsno.students.flowmap import OnePass, load_student
from dsno.teachers.load import load_teacher
from dsno.teachers.native import sample_shape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    out = DigitsRecipe().run(parser.parse_args().out, lambda stage, done, total, text: None)
    held = out / "evaluation" / "results.json"
    if held.is_file():
        results = load_results(held)
    else:
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
    pictures(out, results)
    write(
        "recipe", "dsno reproduce digits; features digits_cnn; seeds 2^40..; see each result's protocol", claims,
        timings=timings, results=[asdict(r) for r in results],
    )  # fmt: skip


def pictures(out: Path, results: list[Result]) -> None:
    """The cost plot, samples, and the operator's trajectories over the teacher's."""
    teacher, student = load_teacher(out / "teacher"), load_student(out / "student")
    z = noise(seed_range(HELD_OUT, 64), sample_shape(teacher))
    path = OnePass(student)(z[:6])
    exact = fine_solution(teacher, teacher.schedule, z[:6], 64, keep=path.t, keep_x0=True)
    assert path.x0 is not None and exact.x0 is not None
    images = Path(__file__).parents[1] / "docs/images"
    images.mkdir(parents=True, exist_ok=True)
    (images / "cost.png").write_bytes(quality_against_cost(results))
    (images / "samples.png").write_bytes(image_grid(student.sample(z), 16))
    (images / "trajectories.png").write_bytes(trajectory_strips(path.x0[:, 1:], exact.x0[:, 1:], path.t[1:], z[:6]))


if __name__ == "__main__":
    main()
