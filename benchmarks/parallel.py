"""Exact samplers in serial rounds and rows: on mixtures, and on a recipe's teacher beside its sequential solvers.

    python benchmarks/parallel.py mixtures
    python benchmarks/parallel.py digits|fashion [--source runs/digits] [--runs runs/parallel/digits] [--count 32]

Claims: on mixtures the rounds that related work reports; on a recipe's teacher 7 rounds to the error of DDIM in 100
steps, and 50 to the law, and to the samples, of the stochastic chain of 1,000. More rounds refute them. `mixtures` has
closed-form teachers. With a recipe, its teacher is solved from held-out noises by every sampler: the error to the fine
solution of the ODE against serial rounds, and the Frechet distance of stochastic chains; drafts come from the recipe's
one-pass student and from a restartable one, which is trained first (an hour on one core, resumable). Every number
carries the rows it cost. What is measured is kept in --runs and not measured again: use another folder for another run
of the recipe. Writes benchmarks/results/parallel[_NAME].json and docs/images/parallel-NAME.png.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import _parallel
import torch
from _common import Claim, claim, parse, parser, printed, pyplot, runs_of, save, tidy, write
from _parallel import Mixtures, costs, errors, mixtures, sequential, show

from dsno.checkpoint import read_json, write_json
from dsno.data.load import load_data
from dsno.distillation.run import distill
from dsno.grids import uniform
from dsno.measure.evaluate import Reference
from dsno.measure.features import extract
from dsno.measure.metrics import frechet_distance
from dsno.nets.features import load_feature_net
from dsno.parallel.picard import Picard
from dsno.parallel.receding import Receding
from dsno.parallel.speculative import Speculative
from dsno.parallel.srds import SRDS
from dsno.parallel.taa import ParaTAA
from dsno.report.compare import HELD_OUT
from dsno.runs.recipes import RECIPES
from dsno.runs.shipped import shipped
from dsno.seeds import noise, seed_range
from dsno.solvers.chain import Chain
from dsno.solvers.fine import fine_solution
from dsno.solvers.named import SOLVERS
from dsno.solvers.run import SolverSampler
from dsno.students.files import load_student
from dsno.students.operator import TrajectoryStudent
from dsno.students.samplers import MultiPass, OnePass
from dsno.teachers.load import load_teacher
from dsno.train import TrainConfig
from dsno.trajectories.generate import generate
from dsno.trajectory import Sampler, Trajectory

SEQUENTIAL = {
    "ddim": "DDIM",
    "dpm1": "DPM-Solver++ 1",
    "dpm2": "DPM-Solver++ 2",
    "dpm3": "DPM-Solver++ 3",
    "unipc2": "UniPC 2",
    "unipc3": "UniPC 3",
}


@dataclass(frozen=True)
class Size:
    """What is trained and measured with a recipe; `count` and `law` where nothing else is asked for."""

    count: int = 32
    """Held-out noises of the path errors."""
    law: int = 512
    """Held-out noises of the Frechet distances."""
    steps: tuple[int, ...] = (4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 64, 100)
    """Of the sequential solvers; more than 32 of two of them alone."""
    chains: tuple[tuple[int, tuple[float, ...]], ...] = ((100, (1.0, 0.3, 0.1, 0.01)), (256, (0.3, 0.01)))
    """Steps of the exact samplers' chains, and tolerances; the claims are about the first."""
    ancestral: tuple[int, ...] = (8, 16, 32, 50, 64, 100, 200, 1000)
    multistep: tuple[int, ...] = (8, 16, 32)
    speculative: tuple[tuple[int, int], ...] = ((200, 20), (200, 50), (1000, 50))
    """Steps and windows; the first has variants."""
    sets: tuple[int, int] = (50, 10)
    """Steps and window of the chain whose law is compared over several sets of seeds."""
    pathwise: tuple[int, int] = (1000, 16)
    """Steps of the stochastic chain whose own samples are found, and how many of them."""
    trajectories: int = 32_768
    """Of the restartable student."""
    trained: int = 4800
    """Its steps."""


QUICK = Size(2, 8, (4, 16), ((16, (1.0, 0.1)),), (8, 16), (8,), ((8, 2), (16, 4)), (8, 2), (16, 2), 64, 2)
QUICK_MIXTURES = Mixtures(2, 4, ((100, 0.0),), (25,), ((200, 20),))


class Known:
    """What has been measured, by name, kept on disk."""

    def __init__(self, path: Path) -> None:
        self.path, self.held = path, read_json(path) if path.is_file() else {}

    def __call__(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if name not in self.held:
            with torch.no_grad():
                self.held[name] = measure()
            write_json(self.path, self.held)
        return self.held[name]


class Bench:
    """A recipe's teacher and students, and what has been measured with them."""

    def __init__(self, arguments: argparse.Namespace, runs: Path, size: Size) -> None:
        name = arguments.problem
        self.source = arguments.source or (shipped(name) if arguments.quick else Path("runs") / name)
        self.recipe, self.runs, self.size = RECIPES[name], runs, size
        self.data = arguments.data or self.recipe.data
        self.count = size.count if arguments.count is None else arguments.count
        self.law = size.law if arguments.law is None else arguments.law
        # A draft is to be near the path, which a finish leaves: the student before it, where there is one.
        drafts = (self.source / name for name in ("regressed", "student"))
        self.student = load_student(next(folder for folder in drafts if (folder / "config.json").is_file()))
        self.teacher = load_teacher(self.source / "teacher")
        self.shape, self.schedule = self.student.shape, self.student.schedule
        self.again = self._restartable()
        self.known = Known(runs / f"measured-{self.count}.json")

    def _restartable(self) -> TrajectoryStudent:
        """The student that starts from its frames, too; trained where it is not there yet."""
        out = self.runs / "student"
        if not (out / "config.json").is_file():
            data = generate(
                self.teacher,
                self.runs / "trajectories",
                self.size.trajectories,
                times=self.recipe.times,
                targets=("x0", "state"),
                grid="quadratic",
                resume=True,
                report=printed(100),
            )
            steps, batch = self.size.trained, min(128, len(data))
            config = TrainConfig(steps=steps, lr=1e-3, warmup=100, precision="bf16", checkpoint_every=250)
            distill(
                self.teacher,
                data,
                out,
                "operator",
                config,
                batch=batch,
                target="state",
                others=0.5,
                inner_starts=0.5,
                resume=True,
                report=printed(100),
            )
        return load_student(out)


def path_errors(bench: Bench) -> list[dict[str, Any]]:
    """Every sampler's error to the fine solution, and of exact ones to their chain's own samples."""
    teacher, student, again, schedule, size = bench.teacher, bench.student, bench.again, bench.schedule, bench.size
    seeds = seed_range(HELD_OUT, bench.count)
    z = noise(seeds, bench.shape)
    fine = fine_solution(teacher, schedule, z)
    rows: list[dict[str, Any]] = []

    def add(
        family: str, point: str, sampler: Callable[[], Sampler], reference: Trajectory | None = None, **said: Any
    ) -> None:
        def measured() -> dict[str, Any]:
            made = sampler()(z, seeds=seeds)
            compared = {} if reference is None else errors(made, reference)
            return costs(made) | compared | errors(made, fine, "fine_")

        rows.append({"family": family, "point": point, **said, **bench.known(f"path {family} {point}", measured)})
        show(rows[-1])

    for solver, title in SEQUENTIAL.items():
        for steps in size.steps:
            if title in ("DDIM", "UniPC 3") or steps <= 32:
                add(title, str(steps), partial(SolverSampler, teacher, schedule, uniform(steps), SOLVERS[solver]()))
    add("student", "one pass", partial(OnePass, student))
    for passes in range(1, again.frames + 1):
        add("restartable student", f"{passes} passes", partial(MultiPass, again, passes))
    for steps, tolerances in size.chains:
        chain = Chain(schedule, uniform(steps))
        reference = sequential(chain, teacher, z, seeds)
        for tolerance in tolerances:
            point, said = f"N = {steps}, {tolerance:g}", {"N": steps, "tolerance": tolerance}
            for title, draft in (("", None), (", drafted", student), (", drafted by states", again)):
                for family, method in (("Picard", Picard), ("ParaTAA", ParaTAA), ("SRDS", SRDS)):
                    sampler = partial(method, teacher, chain, tolerance=tolerance, draft=draft)
                    add(f"{family}{title}", point, sampler, reference, **said)
            for title, corrected in (("Receding", False), ("Receding, corrected", True)):
                # A student's word alone is accepted a step a round where the tolerance is below its error.
                if steps == size.chains[0][0] and (corrected or tolerance >= 1):
                    sampler = partial(Receding, teacher, chain, again, corrected, tolerance=tolerance)
                    add(title, point, sampler, reference, **said)
    return rows


def laws(bench: Bench) -> list[dict[str, Any]]:
    """Stochastic chains: the Frechet distance of their samples to the recipe's data."""
    teacher, schedule, size, net = (
        bench.teacher,
        bench.schedule,
        bench.size,
        load_feature_net(bench.source / "features"),
    )
    reference = Reference.of(load_data(bench.data, size=bench.recipe.size).x, net)
    seeds = seed_range(HELD_OUT, bench.law)
    z, rows = noise(seeds, bench.shape), list[dict[str, Any]]()

    def distance(made: Trajectory) -> float:
        return frechet_distance(extract(net, made.sample.clamp(-1, 1)), reference.features)

    def add(family: str, point: str, measured: Callable[[], dict[str, Any]], **said: Any) -> None:
        found = bench.known(f"law of {len(seeds)} {family} {point}", measured)
        rows.append({"family": family, "point": point, **said, **found})
        show(rows[-1])

    def once(sampler: Callable[[], Sampler]) -> dict[str, Any]:
        made = sampler()(z, seeds=seeds)
        return costs(made) | {"frechet": distance(made)}

    def spread(sampler: Sampler) -> dict[str, Any]:
        """The distance over four sets of seeds: that of a few hundred samples varies much."""
        each = []
        for k in range(4):
            some = seeds + k * len(seeds)
            made = sampler(noise(some, bench.shape), seeds=some)
            each.append(distance(made))
        return costs(made) | {"frechet": sum(each) / 4, "frechet_std": float(torch.tensor(each).std()), "each": each}

    def ancestral(steps: int) -> SolverSampler:
        return SolverSampler(teacher, schedule, uniform(steps), SOLVERS["ancestral"]())

    for steps in size.ancestral:
        add("ancestral", str(steps), partial(once, partial(ancestral, steps)))
    for steps in size.multistep:
        solver = partial(SolverSampler, teacher, schedule, uniform(steps), SOLVERS["dpm2"]())
        add("DPM-Solver++ 2", str(steps), partial(once, solver))
    for n, (steps, window) in enumerate(size.speculative):
        chain, point = Chain(schedule, uniform(steps), 1.0), f"N = {steps}, L = {window}"
        variants: dict[str, dict[str, Any]] = {", x0 frozen": {"reuse": False}, ", student": {"draft": bench.again}}
        for title, options in {"": {}, **(variants if n == 0 else {})}.items():
            sampler = partial(Speculative, teacher, chain, window=window, **options)
            add(f"speculative{title}", point, partial(once, sampler), N=steps)

    steps, window = size.sets
    point, chain = f"N = {steps}", Chain(schedule, uniform(steps), 1.0)
    add("ancestral", f"{point}, four sets", partial(spread, ancestral(steps)), N=steps)
    sampler = Speculative(teacher, chain, window=window)
    add("speculative", f"{point}, L = {window}, four sets", partial(spread, sampler), N=steps)

    # The same path as the sequential chain's, sample by sample: few are enough, and no distance between sets is needed.
    steps, few = size.pathwise
    chain, rows_of = Chain(schedule, uniform(steps), 1.0), slice(0, few)

    def pathwise() -> dict[str, Any]:
        made = ParaTAA(teacher, chain, tolerance=0.3)(z[rows_of], seeds=seeds[rows_of])
        return costs(made) | errors(made, sequential(chain, teacher, z[rows_of], seeds[rows_of]))

    add("ParaTAA", f"N = {steps}, 0.3", pathwise, N=steps)
    return rows


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """The moonshot; on mixtures the figures of related work."""
    return (
        [*errors_judged(numbers["rows"]), *laws_judged(numbers["law"])]
        if "law" in numbers
        else _parallel.judged(numbers)
    )


def errors_judged(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Rounds to the error of the first chain's DDIM, and over those of a sequential solver as accurate."""
    steps = next(r["N"] for r in rows if "N" in r)
    ddim = next(r for r in rows if (r["family"], r["point"]) == ("DDIM", str(steps)))
    enough = 1.05 * ddim["fine_rmse"]
    parallel = [r for r in rows if r.get("N") == steps and r["fine_rmse"] <= enough]
    best = min(parallel, key=lambda r: r["rounds"])
    title = f"mean rounds to within 5 % of DDIM-{steps}'s error to the fine solution"
    how = f"({best['family']}, tolerance {best['tolerance']:g}, {best['rows']:.0f} rows)"
    alone = [r for r in rows if "N" not in r and "student" not in r["family"] and r["fine_rmse"] <= enough]
    first = min(alone, key=lambda r: r["rounds"], default=ddim)
    over = f"these rounds over those of the first sequential solver as accurate ({first['family']}-{first['point']})"
    return [
        claim(f"{title} {how}", best["rounds"], 7, "<="),
        claim("the same, worst sample", best["rounds_max"], 7, "<="),
        claim(over, best["rounds"] / first["rounds"], 1, "<="),
    ]


def laws_judged(law: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Rounds to the law of the longest stochastic chain, and to its samples; and the same law from both samplers."""
    if not law:
        return []
    steps = max(r["N"] for r in law if "N" in r)
    long = [r for r in law if r.get("N") == steps]
    exact = min((r for r in long if "speculative" in r["family"] and "frechet" in r), key=lambda r: r["rounds"])
    theirs, ours = (r for r in law if "frechet_std" in r)
    error = math.hypot(ours["frechet_std"], theirs["frechet_std"]) / 2
    apart = abs(ours["frechet"] - theirs["frechet"]) / error
    same = next(r for r in long if r["family"] == "ParaTAA")
    to_law = f"rounds to the law of the {steps}-step stochastic chain ({exact['family']}, {exact['rows']:,.0f} rows)"
    compared = f"the speculative and the sequential {ours['N']}-step chain apart"
    to_samples = f"rounds to the {steps}-step stochastic chain's own samples"
    how = f"(ParaTAA, tolerance 0.3, {same['rows']:,.0f} rows)"
    return [
        claim(f"mean {to_law}", exact["rounds"], 50, "<="),
        claim(f"worst {to_law}", exact["rounds_max"], 50, "<="),
        claim(f"Frechet distances of {compared}, in standard errors of four sets", apart, 3, "<="),
        claim(f"mean {to_samples} {how}", same["rounds"], 50, "<="),
        claim(f"worst {to_samples} {how}", same["rounds_max"], 50, "<="),
        claim("RMS error of the worst of these samples to the chain's", same["max"], 0.3, "<="),
    ]


def picture(numbers: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """Error against rounds, and Frechet distance against rounds."""
    name, rows, law = arguments.problem, numbers["rows"], numbers["law"]
    panels, chain = 3 if law else 2, next(r["N"] for r in rows if "N" in r)
    figure, axes = pyplot().subplots(1, panels, figsize=(6.2 * panels, 5.4), squeeze=False)
    alone = {"DDIM": "#9aa0a6", "DPM-Solver++ 2": "#5f6b76", "DPM-Solver++ 3": "#33414e", "UniPC 3": "#000000"}
    marked = {
        "Picard": ("#1f77b4", "o"),
        "ParaTAA": ("#d62728", "o"),
        "SRDS": ("#2ca02c", "o"),
        "Picard, drafted by states": ("#1f77b4", "x"),
        "ParaTAA, drafted by states": ("#d62728", "x"),
        "SRDS, drafted by states": ("#2ca02c", "x"),
        "Receding, corrected": ("#9467bd", "^"),
        "restartable student": ("#ff7f0e", "s"),
        "student": ("#8c564b", "D"),
    }
    for axis, error, title in ((axes[0][0], "fine_rmse", "RMSE"), (axes[0][1], "fine_median", "median sample")):
        for family, colour in alone.items():
            points = [(r["rounds"], r[error]) for r in rows if r["family"] == family]
            axis.plot(*zip(*points, strict=True), "-", color=colour, lw=1.2, label=family)
        for family, (colour, marker) in marked.items():
            found = [r for r in rows if r["family"] == family and r.get("N", chain) == chain]
            points = [(r["rounds"], r[error]) for r in found]
            label = f"{family}, N = {chain}" if "N" in found[0] else family
            axis.plot(*zip(*points, strict=True), marker, ls=":", color=colour, ms=6, label=label)
        axis.set(xscale="log", yscale="log", xlabel="serial rounds (mean)")
        axis.set_title(f"{name}: error to the fine ODE solution, {title}")
    if law:
        right = axes[0][2]
        one_set = [r for r in law if "frechet" in r and "frechet_std" not in r]
        for family in dict.fromkeys(r["family"] for r in one_set):
            points = [(r["rounds"], r["frechet"]) for r in one_set if r["family"] == family]
            style = "-" if family in ("ancestral", "DPM-Solver++ 2") else "o"
            right.plot(*zip(*points, strict=True), style, label=family, ms=6)
        right.set(xscale="log", xlabel="serial rounds (mean)", title=f"{name}: Fréchet distance of stochastic chains")
    for axis in axes[0]:
        axis.legend(fontsize=8, frameon=False)
        tidy(axis, "both")
    figure.tight_layout()
    save(figure, arguments, f"parallel-{name}.png", 110)


def options() -> argparse.ArgumentParser:
    made = parser(__file__, __doc__)
    made.add_argument("problem", choices=["mixtures", "digits", "fashion"])
    made.add_argument("--source", type=Path, help="the recipe's folder; runs/PROBLEM by default")
    made.add_argument("--runs", type=Path, help="what is trained and measured; runs/parallel/PROBLEM by default")
    made.add_argument("--count", type=int, help="held-out noises of the path errors, 32 by default")
    made.add_argument("--law", type=int, help="held-out noises of the Frechet distances, 512 by default; 0 for none")
    made.add_argument("--data", help="where the recipe's data is on this machine")
    return made


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    name, quick = arguments.problem, arguments.quick
    if name == "mixtures":
        size = QUICK_MIXTURES if quick else Mixtures()
        numbers = mixtures(size)
        write(
            arguments,
            "parallel",
            "eight modes of std 0.2 (d = 2: on the unit circle; d = 64: standard normal), cosine schedule, uniform "
            f"grids, float64; {size.noises} noises (speculative: {size.draws}), seeds 2^40..; tolerance 1e-4 (SRDS: "
            "1e-3); rounds and rows are means, with the worst sample beside; residual_rounds are rounds until every "
            "unaccepted equation's RMS residual is below 1e-3, the verifying one included; errors are RMS per sample "
            "to chain.run on the same tape",
            judged(numbers),
            **numbers,
        )
        return
    bench = Bench(arguments, runs_of(arguments, f"runs/parallel/{name}"), QUICK if quick else Size())
    numbers = {"rows": path_errors(bench), "law": laws(bench) if bench.law else []}
    write(
        arguments,
        f"parallel_{name}",
        f"the teacher, one-pass student and features of `dsno reproduce {name}`; a student restartable from its "
        f"frames; {bench.count} held-out noises for errors, RMS over samples and pixels to the fine ODE solution "
        f"(fine_) and to the chain's sequential run, {bench.law} for Frechet distances (biased upwards at that count, "
        "alike for all); uniform grids, float32; rounds include the student's, one each; rows are the teacher's, "
        "beside the student's",
        judged(numbers),
        **numbers,
    )
    picture(numbers, arguments)


if __name__ == "__main__":
    main()
