"""The whole family of distilled samplers on one teacher, one backbone and one budget of training FLOPs.

    python benchmarks/family.py digits [--budget 4] [--seeds 0 1 2] [--only NAME ...]
    python benchmarks/family.py fashion --data PATH [--held-out PATH]
    python benchmarks/family.py sprites --data PATH --only consistency "knowledge, perceptual@grid=log-snr"
    python benchmarks/family.py digits --report [--keep]
    python benchmarks/family.py fashion --data PATH --title clothes --report

Claim: at one pass an operator is ahead of every method that is not one; a smaller distance of another method refutes
it, and a difference within both spreads leaves it open. The digits' teacher is the shipped one; another is that of
benchmarks/sources, so that rows can be added to what is published, or made as its recipe makes it, with the features to
measure in, if --source does not hold them.

Every run spends the same FLOPs: what its trajectories cost (teacher calls of their solver) is taken off first, and the
rest divided by the counted FLOPs of a training step (forward, backward, the teacher's and every other call of the loss)
is its number of steps. Quality is measured on 2,048 held-out noises at 1, 2 and 4 passes where a method has them. A run
is kept as a JSON file under --runs, so the script continues where it was stopped; a second process may take other runs
meanwhile (--only, --seeds). --report writes benchmarks/results/family_NAME.json and the plots from the runs that are
there.

--keep keeps the rows of the result that is there whose runs are not, as long as they are of the same teacher; those of
another are a result of another --title.

A name may change an entry's settings: `operator@trajectories=8192@lr=0.0005`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any

import torch
from _common import (
    HELD_OUT,
    Claim,
    claim,
    kept,
    mean_and_spread,
    named,
    parse,
    parser,
    pyplot,
    runs_of,
    save,
    tidy,
    write,
)
from _family import (
    ENTRIES,
    PROBLEMS,
    QUICK,
    SHOWN,
    SOURCES,
    TIMES,
    Bench,
    Problem,
    Size,
    names_of,
    run,
    stem_of,
    student_of,
)
from filelock import FileLock, Timeout
from torch import Tensor

from dsno import grids
from dsno.checkpoint import read_json, read_tensors, write_json
from dsno.cost import latency, throughput
from dsno.distillation.derivatives import jvp
from dsno.measure.evaluate import measure
from dsno.runs.shipped import shipped
from dsno.seeds import noise, seed_range
from dsno.solvers.fine import solver_errors
from dsno.solvers.first_order import DDIM
from dsno.solvers.multistep import DPMSolverPP, UniPC
from dsno.solvers.run import SolverSampler
from dsno.solvers.step import Step
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectory import Trajectory

MAIN = "4"
"""The budget of the main table; x1 and x16 are beside it."""
SOLVERS: dict[str, Step] = {"DDIM": DDIM(), "DPM-Solver++": DPMSolverPP(), "UniPC": UniPC()}
COLOURS = {
    "operator": "tab:red",
    "knowledge": "tab:orange",
    "progressive": "tab:brown",
    "consistency": "tab:blue",
    "flow map": "tab:green",
}
QUALITIES = ("frechet", "kernel", "precision", "recall", "path_error")
HELD = ("held_out_frechet", "held_out_copying")
"""Beside them, where there are data that nothing was trained on: the distance to those, and who copies."""


# Beside the runs: solvers, times, slopes


def grid_errors(bench: Bench) -> dict[str, dict[str, dict[str, float]]]:
    """RMSE of the ends to the fine solution, by solver, number of steps and grid, least first.

    `trajectories` are those that students learn from: through the frames' times, and of third order.
    """
    schedule, z = bench.teacher.schedule, noise(seed_range(2 * HELD_OUT, min(64, bench.size.count)), bench.shape)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, step in {**SOLVERS, "trajectories": UniPC(3)}.items():
        made, found[name] = {}, {}
        for n, (grid, make) in product(bench.size.steps, grids.GRIDS.items()):
            # A grid that is too coarse for the frames makes no trajectories.
            with suppress(ValueError):
                times = make(schedule, n)
                made[f"{n} {grid}"] = grids.through(times, TIMES) if name == "trajectories" else times
        errors = solver_errors(bench.teacher, schedule, z, made, step, fine_steps=2 * bench.size.fine_steps)
        for key, error in errors.items():
            steps, grid = key.split(" ")
            found[name].setdefault(steps, {})[grid] = error
    return found


def solvers(bench: Bench, errors: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """The lines without training, each on the grid with the least error."""
    found, schedule = {}, bench.teacher.schedule
    for (name, step), n in product(SOLVERS.items(), bench.size.steps):
        grid = next(iter(errors[name][str(n)]))
        sampler = SolverSampler(bench.teacher, schedule, grids.GRIDS[grid](schedule, n), step)
        found[f"{name}-{n}"] = {"grid": grid, **bench.measure(name, sampler)}
    return found


def timings(bench: Bench) -> dict[str, Any]:
    """Latency at batch 1 and throughput at saturation of one pass, as ratios to one call of the teacher."""
    made: dict[str, Callable[[Tensor], Tensor]] = {"teacher, one call": lambda z: bench.teacher(z, torch.ones(len(z)))}
    for name in ("knowledge", "operator of two frames", "operator", "shortcut"):
        made["flow map" if name == "shortcut" else name] = student_of(ENTRIES[name], bench, 0).eval().sample
    absolute, size = {}, bench.size
    with torch.no_grad():
        for name, sample in made.items():
            absolute[name] = {
                "latency": latency(sample, torch.randn(1, *bench.shape), repeats=size.timed),
                "throughput": throughput(
                    lambda n, f=sample: f(torch.randn(n, *bench.shape)), size.count // 2
                ).samples_per_second,
            }
    unit = absolute["teacher, one call"]
    return {name: {key: seconds / unit[key] for key, seconds in t.items()} for name, t in absolute.items()}


def slopes(bench: Bench) -> dict[str, dict[str, float]]:
    """RMS of the teacher's derivative in t, of its slope over t +- 0.02, and of how far the two are apart.

    What the losses with a derivative in t see of a time embedding that oscillates some 150 times as t goes from 0 to 1.
    """
    found, x0, D = {}, bench.images.x[: min(256, bench.size.count)], bench.teacher
    for t in (0.1, 0.3, 0.5, 0.7, 0.9):
        alpha, sigma = bench.teacher.schedule.at(t)
        x, at = alpha * x0 + sigma * noise(range(len(x0)), bench.shape), torch.full((len(x0),), t)
        with torch.no_grad():
            _, derivative = jvp(lambda v, x=x: D(x, v), (at,), (torch.ones_like(at),))
            over = (D(x, at + 0.02) - D(x, at - 0.02)) / 0.04
        compared = {"derivative": derivative, "slope": over, "apart": derivative - over}
        found[f"{t:g}"] = {k: float(v.square().mean().sqrt()) for k, v in compared.items()}
    return found


def targets(bench: Bench) -> dict[str, float]:
    """Frechet distance of the stored trajectories' ends, by the solver's grid and steps: what students are shown."""
    found = {}
    for folder in sorted(p for p in bench.runs.glob("trajectories-*-*-*") if p.is_dir()):
        grid, steps, _ = folder.name.removeprefix("trajectories-").rsplit("-", 2)
        ends = TrajectorySet(folder).__getitems__(list(range(bench.size.count)))["x0"][:, -1].clamp(-1, 1)
        made = measure(ends, name=folder.name, reference=bench.reference, extractor=bench.features)
        assert made.quality is not None
        found[f"{grid}, {steps} steps"] = made.quality.frechet
    return found


# The report


def collect(bench: Bench) -> dict[float, dict[str, list[dict[str, Any]]]]:
    """Finished runs by budget and name, in the order of their names."""
    found: dict[float, dict[str, list[dict[str, Any]]]] = {}
    for result in map(read_json, sorted((bench.runs / "runs").glob("*.json"))):
        found.setdefault(result["budget"], {}).setdefault(result["name"], []).append(result)
    return dict(sorted(found.items()))


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = results[0]
    points = {}
    for key, point in first["points"].items():
        here = [r["points"][key] for r in results]
        qualities = {q: mean_and_spread([p[q] for p in here]) for q in (*QUALITIES, *HELD) if all(q in p for p in here)}
        points[key] = {"rounds": point["rounds"], "flops": point["flops"], **qualities}
    seen = [r["path_error_seen"] for r in results if "path_error_seen" in r]
    shared = ("entry", "steps", "flops_per_row", "trajectory_flops", "train_flops", "parameters")
    return {
        "seeds": [r["seed"] for r in results],
        **{k: first[k] for k in shared},
        "seconds": mean_and_spread([r["seconds"] for r in results]),
        "points": points,
        **({"path_error_seen": mean_and_spread(seen)} if seen else {}),
    }


def report(bench: Bench, arguments: argparse.Namespace) -> None:
    """Write the results, the claims and the plots from the runs that are there."""
    found = collect(bench)
    rows = {f"{factor:g}": {name: summary(runs) for name, runs in by.items()} for factor, by in found.items()}
    teacher = bench.measure("teacher", lambda z, cond, seeds: _given(bench.fine, seeds)) | {"rounds": 64}
    before = earlier(bench, arguments, teacher) if arguments.keep else {}
    held = before.get("budgets", {})
    for name in ("grids", "solvers", "timings", "slopes"):
        if name in before:
            kept(bench.runs / f"{name}.json", lambda name=name: before[name])
    errors = kept(bench.runs / "grids.json", lambda: grid_errors(bench))
    numbers = {
        "entered": names_of(bench.problem),
        "main": MAIN,
        "budgets": {f: held.get(f, {}) | rows.get(f, {}) for f in sorted({*held, *rows}, key=float)},
        "solvers": kept(bench.runs / "solvers.json", lambda: solvers(bench, errors)),
        "grids": errors,
        "timings": kept(bench.runs / "timings.json", lambda: timings(bench)),
        "slopes": kept(bench.runs / "slopes.json", lambda: slopes(bench)),
        "targets": before.get("targets", {}) | targets(bench),
        "teacher": teacher,
        "teacher_flops": bench.row,
        "unit": bench.problem.budget * bench.size.share,
    }
    for factor, table in numbers["budgets"].items():
        print(f"x{factor}: {float(factor) * numbers['unit'] / 1e12:g} TFLOP")
        for name, s in by_frechet(table):
            points = ((k, p["frechet"]) for k, p in s["points"].items())
            shown = "   ".join(f"{k}: {d['mean']:6.2f} +- {d['spread']:.2f}" for k, d in points)
            print(f"  {name:40s} {len(s['seeds'])} seeds  {shown}")
    write(
        arguments,
        f"family_{arguments.title}",
        f"every run spends the same training FLOPs ({numbers['unit'] / 1e12:g} TFLOP at x1), its trajectories "
        f"included, the network of a perceptual loss not; {bench.size.count:,} held-out noises; Frechet and kernel "
        f"distance, precision and recall in {bench.features.name} features against {len(bench.images):,} images; path "
        "error: RMSE of the sample to the teacher's fine solution; spread: standard deviation over seeds; "
        f"{bench.precision} training; timings are ratios to one call of the teacher",
        judged(numbers),
        **numbers,
    )
    picture(bench, numbers, arguments)
    strips(bench, numbers, arguments)


def earlier(bench: Bench, arguments: argparse.Namespace, teacher: Mapping[str, Any]) -> dict[str, Any]:
    """What the result that is there says.

    Raises:
        ValueError: if it is of another teacher.
    """
    result: dict[str, Any] = read_json(arguments.out / f"family_{arguments.title}.json")
    was, now = result["teacher"]["frechet"], teacher["frechet"]
    if abs(now / was - 1) > 1e-3:
        raise ValueError(f"the rows that are there are of a teacher with a distance of {was:g}, this one has {now:g}")
    return result


def _given(fine: Tensor, seeds: Tensor) -> Trajectory:
    """The fine solution as what a sampler made."""
    x = fine[(seeds - HELD_OUT)]
    return Trajectory(torch.stack([x, x], 1), torch.tensor([1.0, 0.0], dtype=torch.float64), None, None, seeds, 64, 64)


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """The leaders at every budget, and the grid of the trajectories, which is the first that was entered with any."""
    entered: list[str] = numbers["entered"]
    claims = [c for factor, table in numbers["budgets"].items() for c in ahead(factor, table, entered)]
    errors = numbers["grids"]["trajectories"]["16"]
    grid = next(e.grid for e in (named(ENTRIES, name) for name in entered) if e.trajectories)
    over = errors[grid] / next(iter(errors.values()))
    return [*claims, claim("error of the trajectories' solver, 16 steps, over that on the best grid", over, 1.0, "<=")]


def ahead(factor: str, table: Mapping[str, Any], entered: Sequence[str]) -> list[Claim]:
    """At one pass, as entered: how far the best of others is behind the best of ours, less both spreads, too."""
    entries = {n: named(ENTRIES, n) for n in table if n in entered}
    # Knowledge distillation as published is a peer, with a perceptual loss or matching behind it a variant of ours.
    ours_too = [n for n, e in entries.items() if e.method == "knowledge" and (e.distance or e.finish)]
    own = [*ours_too, *(n for n, e in entries.items() if e.method in ("operator", "matching"))]
    several = [n for n in own if entries[n].frames > 1]
    peers = [n for n in entries if n not in own]
    matched = [n for n in own if entries[n].method == "matching"]
    claims = []
    for what, ours, theirs in (
        ("an operator of several frames", several, peers),
        ("an operator of several frames, or of one with a loss beside regression", own, peers),
        (
            "several frames ahead of one, both matched",
            [n for n in matched if n in several],
            [n for n in matched if n not in several],
        ),
    ):
        if not ours or not theirs:
            continue
        our, their = (min(names, key=lambda n: table[n]["points"]["1"]["frechet"]["mean"]) for names in (ours, theirs))
        mine, other = (table[n]["points"]["1"]["frechet"] for n in (our, their))
        name = f"x{factor}, one pass, {what}: Frechet distance of {their} less that of {our}"
        claims.append(claim(name, other["mean"] - mine["mean"], 0.0, ">="))
        if min(len(table[n]["seeds"]) for n in (our, their)) > 1:
            margin = other["mean"] - mine["mean"] - mine["spread"] - other["spread"]
            claims.append(claim(f"{name}, less both spreads", margin, 0.0, ">="))
    return claims


# Pictures


def by_frechet(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Best first, at one pass."""
    return sorted(table.items(), key=lambda item: item[1]["points"]["1"]["frechet"]["mean"])


def shown_in(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The table of the main budget, as entered."""
    return {name: s for name, s in numbers["budgets"][numbers["main"]].items() if name in numbers["entered"]}


def colour_of(name: str) -> str:
    entry = named(ENTRIES, name)
    if entry.trajectories:
        return COLOURS["knowledge" if entry.frames == 1 else "operator"]
    kind = "consistency" if "consistency" in entry.method else entry.method
    return COLOURS.get(kind, COLOURS["flow map"])


def picture(bench: Bench, numbers: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """Distance against serial calls at the main budget; of what was run at several, one pass against the budget."""
    table, budgets, plt = shown_in(numbers), numbers["budgets"], pyplot()
    names = [n for n in table if sum(n in t for t in budgets.values()) > 1]
    figure, axes = plt.subplots(
        1, 1 + bool(names), figsize=(13 if names else 8.5, 6.5), layout="constrained", squeeze=False
    )
    left, right = axes[0, 0], axes[0, -1]
    looks = {
        name: {"marker": mark, "ms": 5, "color": colour_of(name)}
        for name, mark in zip(sorted(table), "osD^vP*X<>hpdH8|x+1234" * 2, strict=False)
    }
    for name, style in zip(SOLVERS, (":", "--", "-"), strict=True):
        lines = [(p["rounds"], p["frechet"]) for k, p in numbers["solvers"].items() if k.startswith(f"{name}-")]
        left.plot(*zip(*lines, strict=True), color="0.6", linestyle=style, label=name)
    for name, s in by_frechet(table):
        label = name.split("@")[0]
        points = {k: (p["rounds"], p["frechet"]["mean"]) for k, p in s["points"].items()}
        own = sorted(p for k, p in points.items() if k.isdigit())
        again = sorted(p for k, p in points.items() if not k.isdigit())
        left.plot(*zip(*own, strict=True), label=label, **looks[name])
        if again:
            look = {"linestyle": ":", "label": f"{label}, noised again", **looks[name]}
            left.plot(*zip(own[0], *again, strict=True), **look)
    left.set(
        xscale="log", yscale="log", xlabel="serial network calls", ylabel=f"Fréchet distance ({bench.features.name})"
    )
    calls = (1, 2, 4, 8, 16, 32)
    left.set_xticks(calls, labels=[str(n) for n in calls])
    spent = float(numbers["main"]) * numbers["unit"] / 1e12
    left.set_title(f"the same {spent:g} TFLOP of training", loc="left", fontsize=10)
    for name in names:
        points = [(float(f), t[name]["points"]["1"]["frechet"]["mean"]) for f, t in budgets.items() if name in t]
        right.plot(*zip(*points, strict=True), **looks[name])
    if names:
        right.set(xscale="log", yscale="log", xlabel="budget", ylabel="Fréchet distance, one pass")
        right.set_title("one pass as the budget grows", loc="left", fontsize=10)
        factors = [float(f) for f in budgets]
        right.set_xticks(factors, labels=[f"x{f:g}" for f in factors])
    teacher, said = numbers["teacher"]["frechet"], {"color": "0.3", "ha": "right", "va": "bottom", "fontsize": 8}
    for axis in axes[0]:
        axis.axhline(teacher, color="0.3", linewidth=0.8)
        axis.text(0.995, teacher, "teacher", transform=axis.get_yaxis_transform(), **said)
        axis.minorticks_off()
        tidy(axis)
    handles = left.get_legend_handles_labels()
    figure.legend(*handles, frameon=False, fontsize=7.5, loc="outside lower center", ncols=5 if names else 3)
    save(figure, arguments, f"family-{arguments.title}.png", 130)


def strips(bench: Bench, numbers: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """One pass of every method from the same noises, a row each."""
    rows = {"teacher, fine": bench.fine[:SHOWN]}
    for name, s in by_frechet(shown_in(numbers)):
        stem = f"{stem_of(name)}-{numbers['main']}-{s['seeds'][0]}"
        # Rows that were kept have none.
        if (held := bench.runs / "training" / stem / "samples.safetensors").is_file():
            rows[name] = read_tensors(held)["sample"]
    figure, axes = pyplot().subplots(len(rows), 1, figsize=(0.36 * SHOWN + 3, 0.42 * len(rows)), squeeze=False)
    for axis, (name, x) in zip(axes[:, 0], rows.items(), strict=True):
        strip = torch.cat(list((x.clamp(-1, 1) + 1) / 2), -1).movedim(0, -1)
        axis.imshow(strip.squeeze(-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_ylabel(name.split("@")[0], rotation=0, ha="right", va="center", fontsize=8)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.subplots_adjust(left=0.24, right=0.995, top=0.995, bottom=0.005, hspace=0.08)
    save(figure, arguments, f"family-{arguments.title}-samples.png", 120)


# The runs


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process is to make `path`: it is not there, and no other process is at it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.with_suffix(".lock"), timeout=0):
            yield not path.is_file()
    except Timeout:
        yield False


def options() -> argparse.ArgumentParser:
    made = parser(__file__, __doc__)
    made.add_argument("problem", choices=PROBLEMS)
    made.add_argument(
        "--source", type=Path, help="folder of the teacher and the features; runs/PROBLEM where none is kept"
    )
    made.add_argument("--data", help="where the data are, if not where the recipe says")
    made.add_argument("--held-out", help="data that nothing is trained on, to measure against, too")
    made.add_argument("--runs", type=Path, help="what is trained and measured; runs/family/PROBLEM by default")
    made.add_argument("--only", nargs="*", help="the entries to run, all by default; with --quick three")
    made.add_argument("--seeds", type=int, nargs="*", help="0 1 2 by default; with --quick 0")
    made.add_argument("--budget", type=float, nargs="*", default=[float(MAIN)])
    made.add_argument("--precision", default="bf16")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--title", help="what the result is called, family_TITLE; PROBLEM by default")
    made.add_argument("--keep", action="store_true", help="with --report: keep rows whose runs are not there")
    made.add_argument("--report", action="store_true", help="write the results from the runs that are there")
    return made


def quick_names(problem: Problem) -> list[str]:
    """An operator that restarts, one of a single frame, and a flow map."""
    quick = ("operator, restarts", "knowledge", "consistency")
    return [name for name in names_of(problem) if name.split("@")[0] in quick]


def main(given: Sequence[str] | None = None) -> None:
    made = options()
    arguments = parse(made, given)
    arguments.title = arguments.title or arguments.problem
    torch.set_num_threads(arguments.threads)
    problem, quick = PROBLEMS[arguments.problem], arguments.quick
    runs = runs_of(arguments, f"runs/family/{arguments.problem}")
    if arguments.report and not any((runs / "runs").glob("*.json")):
        made.error(f"{runs} holds no runs to report on: run without --report first")
    held = SOURCES / arguments.problem
    trained = runs / "source" if quick else held if held.is_dir() else Path("runs") / arguments.problem
    source = arguments.source or (shipped() if arguments.problem == "digits" else trained)
    size = QUICK if quick else Size()
    bench = Bench(arguments.problem, source, arguments.data, runs, arguments.precision, size, arguments.held_out)
    names = arguments.only or (quick_names(problem) if quick else names_of(problem))
    seeds = arguments.seeds or ([0] if quick else [0, 1, 2])
    for factor, seed, name in () if arguments.report else product(arguments.budget, seeds, names):
        path = runs / "runs" / f"{stem_of(name)}-{factor:g}-{seed}.json"
        with claimed(path) as mine:
            if not mine:
                continue
            result = run(name, bench, seed, factor, runs / "training" / path.stem)
            write_json(path, result)
        points = (f"{k}: {p['frechet']:.2f} ({p['path_error']:.4f})" for k, p in result["points"].items())
        print(
            f"{name:32s} x{factor:g} seed {seed} {result['steps']:6d} steps "
            f"{result['flops_per_row'] / bench.row:5.2f} F a row {result['seconds']:5.0f} s  {'  '.join(points)}",
            flush=True,
        )
    if arguments.report or quick:
        report(bench, arguments)


if __name__ == "__main__":
    main()
