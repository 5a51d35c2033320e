"""A recipe against its targets: quality and latency of one pass beside the teacher's solvers.

    python benchmarks/recipe.py [digits|fashion|sprites|...] [--data SOURCE] [--reference SOURCE] [--source runs/NAME]
    python benchmarks/recipe.py digits --source runs/anew --title recipe_anew --seeds 0

Claim: one pass is nearer to the data than its teacher (0.85 times the teacher's distance on the digits, in 30 minutes
from nothing; 1.0 on Fashion, 0.9 on sprites), two passes are no worse, its recall is the teacher's, and alone it is
five times as fast as the teacher's solver in eight steps. A ratio on the other side refutes it. Runs the recipe if
--source is not complete, then compares its student with the teacher's solvers on --count held-out noises (or reads the
comparison that `dsno reproduce` left there), against --reference, the recipe's own data by default. The stage behind
the regression is run with two seeds more, and the claim of the distance is of the mean of all three. It is looked at on
its way, on noises of its own, and the best of its students is kept; `looks` are those distances. Which 2,048 noises
they are moves a distance by more than the seed of a student does, so each is measured on --many as well, beside the
ends of as many of the recipe's trajectories. A student that was shown data is told from copies of them. Minutes are the
sum of what the stages took, each by its own clock. Writes benchmarks/results/NAME.json (recipe.json for the digits) and
the pictures of the docs; a result of another --title has none.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from _common import Claim, claim, mean_and_spread, parse, parser, printed, write
from torch import Tensor

from dsno.checkpoint import read_json
from dsno.data.load import load_data
from dsno.data.samples import Samples, split
from dsno.measure.copying import copying_ratio
from dsno.measure.evaluate import Reference, evaluate
from dsno.measure.features import extract
from dsno.measure.metrics import frechet_distance
from dsno.measure.results import Result, load_results
from dsno.nets.backbone import sample_shape
from dsno.nets.features import load_feature_net
from dsno.report.compare import HELD_OUT, compare
from dsno.report.pictures import image_grid, quality_against_cost, trajectory_strips
from dsno.report.told import told_of
from dsno.runs.finish import drawn
from dsno.runs.recipes import RECIPES, Recipe
from dsno.seeds import noise, seed_range
from dsno.solvers.fine import fine_solution
from dsno.students.files import load_student, notes_of
from dsno.students.samplers import MultiPass, OnePass, Student
from dsno.teachers.load import load_teacher
from dsno.trajectories.sets import TrajectorySet

BOUNDS = {"recipe": 0.85, "recipe_anew": 0.85, "fashion": 1.0, "sprites": 0.9}
"""Of the distance of one pass over the teacher's."""


def quick(recipe: Recipe) -> Recipe:
    """The same stages, each of a few steps."""
    short = {
        name: replace(config, steps=2, checkpoint_every=2, warmup=0)
        for name in ("teach", "distill", "finish")
        if (config := getattr(recipe, name)) is not None
    }
    return replace(recipe, features_steps=2, count=recipe.distill_batch, finish_looks=1, **short)


def repeated(
    recipe: Recipe,
    source: Path,
    data: Samples,
    seeds: Sequence[int],
    results: Sequence[Result],
    many: int,
    reference: Reference,
    net: Any,
    far: Callable[[Tensor], dict[str, Any]],
) -> dict[str, Any]:
    """One pass and two of the student, and of those that other seeds of its last stage make: on the noises of the other
    samplers, and how `far` so `many` are from the data."""
    own, count = load_student(source / "student"), results[0].protocol.count
    found: dict[str, Any] = {}
    for seed in seeds:
        folder = source / "student"
        if seed != recipe.seed:
            folder = source / "seeds" / str(seed) / "student"
            recipe.finished(source, folder, seed, printed(50), data)
        student = load_student(folder)
        found[str(seed)] = {"looks": notes_of(folder).get("looks", {})}
        for passes in (1, 2) if own.restarts else (1,):
            sampler = MultiPass(student, passes)
            made = evaluate(
                sampler,
                name=f"seed {seed}, {passes} passes",
                shape=own.shape,
                seeds=seed_range(HELD_OUT, count),
                reference=reference,
                extractor=net,
                repeats=0,
            )
            x = drawn(sampler, seed_range(HELD_OUT, many), own.shape)
            found[str(seed)][str(passes)] = {**asdict(made)["quality"], "many": far(x)}
    return found


def distances(
    x: Tensor, count: int, real: Tensor, net: Any, known: tuple[Tensor, Tensor] | None = None
) -> dict[str, Any]:
    """Of all samples, and the mean and spread over parts of `count` of them; with the features that are `known`, of
    training data and of others, how far a part is from being copied, too."""
    made = extract(net, x.clamp(-1, 1))
    parts = [frechet_distance(part, real) for part in made.split(count) if len(part) == count]
    copying = {} if known is None else {"copying": copying_ratio(made[:count], *known)}
    return {"frechet": frechet_distance(made, real), "parts": mean_and_spread(parts), **copying}


def known_to(recipe: Recipe, data: Samples, reference: Samples, net: Any) -> tuple[Tensor, Tensor] | None:
    """Features of what a student of an adversary was shown, and of other images: the reference, or where that is the
    same, a tenth of it that is taken for not shown."""
    if not recipe.finish_adversary:
        return None
    shown, others = split(data, 0.1) if reference is data else (data, reference)
    return extract(net, shown.x), extract(net, others.x)


def ends(source: Path, many: int) -> Tensor:
    """What the teacher makes of as many noises: the ends of the recipe's trajectories."""
    data = TrajectorySet(source / "trajectories")
    x = torch.cat([data.__getitems__(rows.tolist())["x0"][:, -1] for rows in torch.arange(many).split(1024)])
    return x.float()


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """What each recipe is to reach."""
    results = {r["name"]: r for r in numbers["results"]}
    teacher, count = results["teacher, fine"]["quality"], results["DSNO"]["protocol"]["count"]
    own, seeds = results["DSNO"]["quality"], list(numbers.get("seeds", {}).values())
    title, bound = "Frechet distance of one pass over the teacher's own", BOUNDS.get(numbers["name"], 1.0)
    mean = "" if len(seeds) < 2 else f", mean of {len(seeds)} seeds"
    over = [s["1"]["frechet"] / teacher["frechet"] for s in seeds] or [own["frechet"] / teacher["frechet"]]
    alone, solver = (results[name]["cost"]["latency"] for name in ("DSNO", "DPM-Solver++-8"))
    claims = [claim(f"{title}, {count:,} held-out noises{mean}", fmean(over), bound, "<=")]
    if "many" in numbers:
        more = [s["1"]["many"]["frechet"] / numbers["many"]["teacher"]["frechet"] for s in seeds]
        claims.append(claim(f"{title}, {numbers['many']['count']:,} noises{mean}", fmean(more), bound, "<="))
    claims += [
        claim("recall of one pass over the teacher's", own["recall"] / teacher["recall"], 0.95, ">="),
        *(
            claim(f"Frechet distance of one pass over that of {name}", own["frechet"] / quality["frechet"], 1, "<=")
            for name in ("DDIM-8", "DPM-Solver++-8")
            for quality in (results[name]["quality"],)
        ),
        claim("latency of DPM-Solver++-8 over that of one pass, batch 1", solver / alone, 5, ">="),
    ]
    if all("2" in s for s in seeds) and "many" in numbers:
        less = [s["2"]["frechet"] / s["1"]["frechet"] for s in seeds]
        more = [s["2"]["many"]["frechet"] / s["1"]["many"]["frechet"] for s in seeds]
        for noises, over in ((count, less), (numbers["many"]["count"], more)):
            name = f"Frechet distance of two passes over that of one, {noises:,} noises{mean}"
            claims.append(claim(name, fmean(over), 1, "<="))
    copies = [s["1"]["many"]["copying"] for s in seeds if "copying" in s["1"]["many"]]
    if copies:
        name = f"median distance to the nearest training image, over that of other images, one pass{mean}"
        claims.append(claim(name, fmean(copies), 0.5, ">="))
    # A run that was given its teacher says nothing of the whole.
    if numbers["name"].startswith("recipe") and "teacher" in numbers["timings"]:
        claims.append(claim("minutes of the whole recipe", sum(numbers["timings"].values()) / 60, 30, "<="))
    return claims


def by_class(student: Student, recipe: Recipe) -> bytes:
    """A row for each class, the same eight noises under the least weight of guidance and under the greatest."""
    assert student.classes and recipe.guidance
    z = noise(seed_range(HELD_OUT, 8), student.shape).repeat(2 * student.classes, 1, 1, 1)
    label = torch.arange(student.classes).repeat_interleave(16)
    weight = torch.tensor(recipe.guidance).repeat_interleave(8).repeat(student.classes)
    return image_grid(student.sample(z, {"label": label, "weight": weight}), 16)


def pictures(recipe: Recipe, source: Path, data: Samples, results: Any, images: Path, prefix: str) -> None:
    """The cost plot, samples, and the operator's trajectories over the teacher's."""
    teacher, student = load_teacher(source / "teacher"), load_student(source / "student")
    told, seeds = told_of(student, source / "student", teacher, str(source / "teacher"), data), seed_range(HELD_OUT, 64)
    z, labels = noise(seeds, sample_shape(teacher)), told.labels(seeds, torch.device("cpu"))
    few = None if labels is None else labels[:6]
    made = OnePass(student, whole=True)(z[:6], told.student(few))
    exact = fine_solution(teacher, teacher.schedule, z[:6], 64, keep=made.t, keep_x0=True, cond=few)
    fine = fine_solution(teacher, teacher.schedule, z, 64, cond=labels).sample
    assert made.x0 is not None and exact.x0 is not None
    images.mkdir(parents=True, exist_ok=True)
    for name, picture in {
        "cost": quality_against_cost(results),
        "samples": image_grid(student.sample(z), 16) if recipe.guidance is None else by_class(student, recipe),
        "teacher": image_grid(fine, 16),
        "trajectories": trajectory_strips(made.x0[:, 1:], exact.x0[:, 1:], made.t[1:], z[:6]),
    }.items():
        (images / f"{prefix}{name}.png").write_bytes(picture)


def options() -> argparse.ArgumentParser:
    made = parser(__file__, __doc__)
    made.add_argument("name", nargs="?", choices=sorted(RECIPES), default="digits")
    made.add_argument("--data", help="where the recipe's data is on this machine")
    made.add_argument("--reference", help="images to compare with; the recipe's data by default")
    made.add_argument(
        "--source", type=Path, help="the recipe's folder, made if it is not complete; runs/NAME by default"
    )
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the stage behind the regression")
    made.add_argument("--title", help="what the result is called; NAME by default, recipe for the digits")
    made.add_argument("--count", type=int, help="held-out noises, 2,048 by default")
    made.add_argument("--many", type=int, help="noises of the student and of its teacher alone, 16,384 by default")
    return made


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    name, recipe = arguments.name, RECIPES[arguments.name]
    recipe = replace(quick(recipe) if arguments.quick else recipe, data=arguments.data or recipe.data)
    source = arguments.source or (arguments.out if arguments.quick else Path("runs")) / name
    data = load_data(recipe.data, size=recipe.size)
    recipe.run(source, printed(), data=data)
    held = source / "evaluation" / "results.json"
    reference = load_data(arguments.reference, size=recipe.size) if arguments.reference else data
    if held.is_file():
        results = load_results(held)
    else:
        count, repeats = arguments.count or (16 if arguments.quick else 2048), 1 if arguments.quick else 30
        parts = (source / part for part in ("teacher", "student", "features"))
        results = compare(*parts, reference, count, held.parent, repeats=repeats)
    net = load_feature_net(source / "features")
    more: dict[str, Any] = {}
    if recipe.finish is not None:
        many, beside = arguments.many or (32 if arguments.quick else 16_384), Reference.of(reference.x, net)
        known = known_to(recipe, data, reference, net)
        far = partial(distances, count=results[0].protocol.count, real=beside.features, net=net, known=known)
        more = {
            "seeds": repeated(recipe, source, data, arguments.seeds, results, many, beside, net, far),
            "many": {"count": many, "teacher": far(ends(source, many))},
        }
    if arguments.title is None:
        pictures(recipe, source, data, results, arguments.images, "" if name == "digits" else f"{name}-")
    protocol = results[0].protocol
    numbers = {
        "timings": read_json(source / "timings.json"),
        **more,
        "results": [asdict(r) for r in results],
    }
    title = arguments.title or ("recipe" if name == "digits" else name)
    write(
        arguments,
        title,
        f"dsno reproduce {name}; {protocol.count} held-out noises, seeds 2^40..; {protocol.reference_count} reference "
        f"images; features {protocol.extractor}; see each result's protocol; seeds are those of the stage behind the "
        "regression; passes are made as the student was trained to",
        judged({"name": title, **numbers}),
        **numbers,
    )


if __name__ == "__main__":
    main()
