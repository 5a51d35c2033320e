"""The whole family of distilled samplers on one teacher, one backbone and one budget of training FLOPs.

    python benchmarks/family.py digits [--budget 4] [--seeds 0 1 2] [--only NAME ...]
    python benchmarks/family.py fashion --data PATH
    python benchmarks/family.py sprites --data PATH --only consistency "knowledge, perceptual@grid=log-snr"
    python benchmarks/family.py digits --report

The digits' teacher is the shipped one; another is made as its recipe makes it, with the features to measure in, if --source
does not hold them.

Every run spends the same FLOPs: what its trajectories cost (teacher calls of their solver) is taken off first, and the rest
divided by the counted FLOPs of a training step (forward, backward, the teacher's and every other call of the loss) is its
number of steps. Quality is measured on 2,048 held-out noises at 1, 2 and 4 passes where a method has them. A run is kept as
a JSON file under --runs, so the script continues where it was stopped; a second process may take other runs meanwhile
(--only, --seeds). --report writes benchmarks/results/family_NAME.json and the plots from the runs that are there.

A name may change an entry's settings: `operator@trajectories=8192@lr=0.0005`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import claim, named, write
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dsno import grids
from dsno.checkpoint import read_tensors, write_tensors
from dsno.cost import flops, latency, throughput
from dsno.data.load import load_data
from dsno.denoise import Prediction
from dsno.distillation.derivatives import jvp
from dsno.distillation.distances import distance
from dsno.distillation.registry import METHODS
from dsno.distillation.stages import Given, Stage
from dsno.measure.evaluate import Reference, evaluate, measure
from dsno.nets.features import FeatureNet, load_feature_net
from dsno.runs.features import train_features
from dsno.runs.recipes import RECIPES
from dsno.runs.shipped import shipped
from dsno.seeds import noise, seed_range
from dsno.solvers.fine import fine_solution, solver_errors
from dsno.solvers.first_order import DDIM
from dsno.solvers.multistep import DPMSolverPP, UniPC
from dsno.solvers.run import SolverSampler
from dsno.students.flowmap import FlowMap, flow_map_from_teacher
from dsno.students.operator import TrajectoryStudent, student_from_teacher
from dsno.students.samplers import FlowMapSampler, MultiPass, OnePass, passes_of
from dsno.teachers.load import load_teacher
from dsno.train import TrainConfig, train
from dsno.trajectories.generate import generate
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectory import Sampler, Trajectory

HELD_OUT, COUNT = 10_000_000, 2048
PASSES = (1, 2, 4)
SHOWN = 24
MAIN = "4"
"""The budget of the main table; x1 and x16 are beside it."""
TIMES = grids.quadratic(4)[1:]
"""Of the frames that are kept of trajectories."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A method with its settings."""

    method: str
    lr: float = 1e-3
    batch: int = 64
    trajectories: int = 0
    """At the budget of 1; they grow with the budget."""
    solver_steps: int = 16
    """Steps of UniPC behind each."""
    grid: str = "quadratic"
    """Of the solver."""
    frames: int = 4
    """The last of every 4 / frames of `TIMES`."""
    weights: str = "snr100"
    others: float | None = 0.25
    inner_starts: float = 0.0
    distance: str = ""
    """Of the loss, where not the method's own. The network of a perceptual one, and the labels it learned from, are free."""
    fine_tuning: float = 0.0
    """Share of the steps behind the regression that match distributions."""
    ema: float = 0.999
    derivative: str = ""
    """How the loss takes derivatives, where not in the method's own way."""


ENTRIES: dict[str, Entry] = {
    "knowledge": Entry("knowledge", trajectories=1024, frames=1, weights="last", others=None),
    "operator": Entry("operator", trajectories=1024),
    "operator, restarts": Entry("operator", trajectories=1024, inner_starts=0.3),
    "operator, perceptual": Entry("operator", trajectories=1024, distance="l1+perceptual"),
    "operator, matching": Entry("matching", trajectories=1024, fine_tuning=0.4),
    "operator of two frames": Entry("operator", trajectories=1024, frames=2),
    "operator of two frames, perceptual": Entry("operator", trajectories=1024, frames=2, distance="l1+perceptual"),
    "operator of two frames, matching": Entry("matching", trajectories=1024, frames=2, fine_tuning=0.4),
    "operator of two frames, perceptual, matching": Entry(
        "matching", trajectories=1024, frames=2, distance="l1+perceptual", fine_tuning=0.4
    ),
    "knowledge, matching": Entry(
        "matching", trajectories=1024, frames=1, weights="last", others=None, fine_tuning=0.4
    ),
    "knowledge, perceptual": Entry(
        "knowledge", trajectories=1024, frames=1, weights="last", others=None, distance="l1+perceptual"
    ),
    # Its paper's distance, too, is a perceptual one.
    "consistency, perceptual": Entry("consistency", distance="l1+perceptual"),
    **{
        name: Entry(name)
        for name in (
            "progressive", "consistency", "consistency-training", "easy-consistency", "continuous-consistency",
            "lagrangian", "eulerian", "progressive-map", "direct", "shortcut", "meanflow",
        )
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Problem:
    """A data set: where its teacher is, and what one budget is."""

    data: str
    size: int | None
    budget: float
    """FLOPs of the budget 1."""
    grid: str = "quadratic"
    """The solver's, of which the trajectories' error is small (`grids` in the results)."""


PROBLEMS = {
    "digits": Problem("digits", None, 2e12),
    "fashion": Problem("hf:zalando-datasets/fashion_mnist:train", 16, 2e12, "uniform"),
    # Its network is twice as large.
    "sprites": Problem("crawl_cc0_32.npz", None, 4e12, "log-snr"),
}


def names_of(problem: Problem) -> list[str]:
    """The entries as they are run on a problem."""
    other = problem.grid != Entry.grid
    return [f"{name}@grid={problem.grid}" if other and e.trajectories else name for name, e in ENTRIES.items()]


def folders(archive: str) -> Tensor:
    """Labels of an archive's images that have none: the first folder in the `name` of each."""
    found = [str(name).split("/")[0] for name in np.load(archive)["name"]]
    return torch.from_numpy(np.unique(found, return_inverse=True)[1])


class Bench:
    """What all runs share: teacher, data, trajectories, the fine solution and the reference features."""

    def __init__(self, name: str, source: Path, data: str | None, runs: Path, precision: str) -> None:
        self.name, self.problem, self.source, self.runs, self.precision = name, PROBLEMS[name], source, runs, precision
        runs.mkdir(parents=True, exist_ok=True)
        self.images = load_data(data or self.problem.data, size=self.problem.size)
        if self.images.labels is None:
            self.images = dataclasses.replace(self.images, labels=folders(data or self.problem.data))
        if source != shipped():
            with FileLock(runs / "source.lock"):
                RECIPES[name].prepare(
                    source, lambda *told: print(*told, flush=True) if told[1] % 500 == 0 else None, data=self.images
                )
        self.teacher: Prediction = load_teacher(source / "teacher").eval().requires_grad_(False)
        self.features = load_feature_net(source / "features")
        self.shape = self.images.shape
        self.reference = Reference.of(self.images.x, self.features)
        self.seeds = seed_range(HELD_OUT, COUNT)
        self.row = flops(self.teacher, torch.zeros(1, *self.shape), torch.ones(1))
        self.fine = self._fine()

    def _fine(self) -> Tensor:
        path = self.runs / "fine.safetensors"
        if not path.is_file():
            solved = fine_solution(self.teacher, self.teacher.schedule, noise(self.seeds, self.shape), 64)
            write_tensors(path, {"sample": solved.sample})
        return read_tensors(path)["sample"]

    def trajectories(self, count: int, entry: Entry, times: Tensor) -> TrajectorySet:
        """The first `count` an entry asks for; made where there are too few, in powers of two times 4,096."""
        name = f"trajectories-{entry.grid}-{entry.solver_steps}"
        sizes = sorted(int(p.name.split("-")[-1]) for p in self.runs.glob(f"{name}-*"))
        size = next((n for n in sizes if n >= count), 4096 * 2 ** max(0, math.ceil(math.log2(count / 4096))))
        with FileLock(self.runs / "trajectories.lock"):
            made = generate(
                self.teacher, self.runs / f"{name}-{size}", size, shape=self.shape, times=TIMES,
                targets=("x0", "state"), steps=entry.solver_steps, resume=True, grid=entry.grid,
            )  # fmt: skip
        return made.at(times).head(count)

    def loss_features(self) -> FeatureNet:
        """Those of a perceptual distance: not the network that the quality is measured in."""
        folder = self.runs / "loss_features"
        with FileLock(self.runs / "loss_features.lock"):
            return load_feature_net(folder) if folder.is_dir() else train_features(self.images, folder, seed=1)

    def measure(self, name: str, sampler: Sampler) -> dict[str, Any]:
        result = evaluate(
            sampler, name=name, shape=self.shape, seeds=self.seeds, reference=self.reference, extractor=self.features,
            fine=self.fine, repeats=0,
        )  # fmt: skip
        quality = dataclasses.asdict(result.quality)  # type: ignore[arg-type]
        return {
            "rounds": result.cost.rounds, "flops": result.cost.flops, **quality, "path_error": result.path_error,
            "path_error_median": result.path_error_median,
        }  # fmt: skip


# A run: the student, its stages, its budget.


def student_of(entry: Entry, bench: Bench, seed: int) -> FlowMap | TrajectoryStudent:
    torch.manual_seed(seed)
    if METHODS[entry.method].student == "flow map":
        return flow_map_from_teacher(bench.teacher)
    times = TIMES[4 // entry.frames - 1 :: 4 // entry.frames]
    return student_from_teacher(bench.teacher, times, where="mid" if entry.frames > 1 else "none")


def stages_of(
    entry: Entry, bench: Bench, student: FlowMap | TrajectoryStudent, steps: int, batch: int, seed: int, factor: float
) -> list[Stage]:
    given = Given(
        bench.teacher, bench.teacher.schedule, steps, batch, seed, bench.images.x, derivative=entry.derivative or None
    )  # fmt: skip
    own: dict[str, Any] = {}
    if entry.distance:
        maps = bench.loss_features().requires_grad_(False).maps if "perceptual" in entry.distance else None
        own["distance"] = distance(entry.distance, maps)
    if isinstance(student, FlowMap):
        return METHODS[entry.method].stages(student, given, **own)
    data = bench.trajectories(round(entry.trajectories * factor), entry, student.times)
    own |= {"fine_tuning": entry.fine_tuning} if entry.fine_tuning else {"inner_starts": entry.inner_starts}
    return METHODS[entry.method].stages(
        student, dataclasses.replace(given, trajectories=data), weights=entry.weights, others=entry.others, **own
    )


def step_flops(make: Callable[[int], tuple[nn.Module, list[Stage]]], rows: int = 4, count: int = 48) -> float:
    """FLOPs of a row of training, averaged over all stages in proportion to their steps.

    Many steps of few rows: what a step supervises may be drawn by lot. Four, of which a quarter is one.
    """
    student, stages = make(rows)
    total = 0.0
    for stage in stages:
        model, objective = stage.make(student)
        with FlopCounterMode(display=False) as counter:
            for batch in islice(objective.batches(0, 0, 1), count // len(stages)):
                objective(model, batch).backward()
        total += counter.get_total_flops() / (rows * (count // len(stages))) * stage.steps
    return total / sum(stage.steps for stage in stages)


def samplers_of(student: FlowMap | TrajectoryStudent) -> dict[int, Sampler]:
    """What a student can do at 1, 2 and 4 passes."""
    if isinstance(student, FlowMap):
        passes = (student.steps,) if student.way == "grid" else PASSES
        return {k: passes_of(student, k) for k in passes if k is not None}
    if not student.restarts:
        return {1: OnePass(student, whole=False)}
    return {k: MultiPass(student, k, whole=False) for k in PASSES}


def seen_error(student: TrajectoryStudent, data: TrajectorySet) -> float:
    """RMSE of one pass on trajectories that the student learned from: far below the path error, it knows them by heart."""
    rows = data.__getitems__(list(range(min(512, len(data)))))
    return float((student.sample(rows["noise"]) - rows["x0"][:, -1]).square().mean().sqrt())


def run(name: str, bench: Bench, seed: int, factor: float, folder: Path) -> dict[str, Any]:
    entry = named(ENTRIES, name)
    began = time.perf_counter()

    def make(steps: int, batch: int, seed: int) -> tuple[FlowMap | TrajectoryStudent, list[Stage]]:
        student = student_of(entry, bench, seed)
        return student, stages_of(entry, bench, student, steps, batch, seed, factor)

    # With one seed, so that the runs of all seeds have as many steps.
    counted = bench.runs / "counted" / f"{stem_of(name)}.json"
    counted.parent.mkdir(exist_ok=True)
    per_row = kept(counted, lambda: step_flops(lambda rows: make(1000, rows, 0)))
    made = round(entry.trajectories * factor) * entry.solver_steps * bench.row
    budget = bench.problem.budget * factor
    if made >= budget:
        raise ValueError(f"{name} spends {made / budget:.0%} of its budget on trajectories: take fewer")
    steps = round((budget - made) / (per_row * entry.batch))
    student, stages = make(steps, entry.batch, seed)
    points: dict[str, dict[str, Any]] = {}
    for k, stage in enumerate(stages):
        model, objective = stage.make(student)
        config = TrainConfig(
            steps=stage.steps, lr=entry.lr * stage.lr, warmup=min(100, stage.steps // 10), ema=entry.ema,
            precision=bench.precision, seed=seed, checkpoint_every=10**9, log_every=100,
        )  # fmt: skip
        train(model, objective, config, folder / f"{k}-{stage.name}", overwrite=True)
        halving = stage.name.removeprefix("steps-")
        if halving.isdigit() and int(halving) in PASSES[1:]:
            # The students on the way to one pass are this method's students of more passes.
            points[halving] = bench.measure(name, FlowMapSampler(student, grids.even(student.schedule, int(halving))))
    trained = time.perf_counter() - began
    student.eval()
    shown = noise(bench.seeds[:SHOWN], bench.shape)
    write_tensors(folder / "samples.safetensors", {"sample": student.sample(shown)})
    points |= {str(passes): bench.measure(name, sampler) for passes, sampler in samplers_of(student).items()}
    if isinstance(student, TrajectoryStudent) and student.restarts:
        for k in PASSES[1:]:
            points[f"{k}, re-noised"] = bench.measure(name, MultiPass(student, k, whole=False, fresh=True))
    seen = {}
    if isinstance(student, TrajectoryStudent):
        data = bench.trajectories(round(entry.trajectories * factor), entry, student.times)
        seen["path_error_seen"] = seen_error(student, data)
    return {
        **seen, "name": name, "seed": seed, "budget": factor, "entry": dataclasses.asdict(entry), "steps": steps,
        "stages": {s.name: s.steps for s in stages}, "flops_per_row": per_row, "trajectory_flops": made,
        "train_flops": per_row * entry.batch * steps, "points": points, "seconds": trained,
        "parameters": sum(p.numel() for p in student.parameters())
    }  # fmt: skip


def stem_of(name: str) -> str:
    return name.replace(", ", "+").replace(" ", "-")


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process is to make `path`: it is not there, and no other process is at it."""
    try:
        with FileLock(path.with_suffix(".lock"), timeout=0):
            yield not path.is_file()
    except Timeout:
        yield False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=PROBLEMS)
    parser.add_argument("--source", type=Path, help="folder of the teacher and the features")
    parser.add_argument("--data", help="where the data are, if not where the recipe says")
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--only", nargs="*", help="the entries to run, all by default")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--budget", type=float, nargs="*", default=[4.0])
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="write the results from the runs that are there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    runs = arguments.runs or Path("runs/family") / arguments.problem
    source = arguments.source or (shipped() if arguments.problem == "digits" else Path("runs") / arguments.problem)
    if arguments.report and not any((runs / "runs").glob("*.json")):
        parser.error(f"{runs} holds no runs to report on: run without --report first")
    bench = Bench(arguments.problem, source, arguments.data, runs, arguments.precision)
    if arguments.report:
        report(bench)
        return
    for factor in arguments.budget:
        for seed in arguments.seeds:
            for name in arguments.only or names_of(bench.problem):
                path = runs / "runs" / f"{stem_of(name)}-{factor:g}-{seed}.json"
                path.parent.mkdir(exist_ok=True)
                with claimed(path) as mine:
                    if not mine:
                        continue
                    result = run(name, bench, seed, factor, runs / "training" / path.stem)
                    path.write_text(json.dumps(result, indent=1))
                points = "  ".join(
                    f"{k}: {p['frechet']:.2f} ({p['path_error']:.4f})" for k, p in result["points"].items()
                )
                print(
                    f"{name:32s} x{factor:g} seed {seed} {result['steps']:6d} steps "
                    f"{result['flops_per_row'] / bench.row:5.2f} F a row {result['seconds']:5.0f} s  {points}",
                    flush=True,
                )


# The report


SOLVERS, STEPS = {"DDIM": DDIM(), "DPM-Solver++": DPMSolverPP(), "UniPC": UniPC()}, (1, 2, 4, 8, 16, 32)
COLOURS = {
    "operator": "tab:red", "knowledge": "tab:orange", "progressive": "tab:brown", "consistency": "tab:blue",
    "flow map": "tab:green",
}  # fmt: skip


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` returns, measured once and kept."""
    if not path.is_file():
        path.write_text(json.dumps(make(), indent=1))
    return json.loads(path.read_text())


def grid_errors(bench: Bench) -> dict[str, dict[str, dict[str, float]]]:
    """RMSE of the ends to the fine solution, by solver, number of steps and grid, least first.

    `trajectories` are those that students learn from: through the frames' times, and of third order.
    """
    path, z = bench.teacher.schedule, noise(seed_range(2 * HELD_OUT, 64), bench.shape)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, step in {**SOLVERS, "trajectories": UniPC(3)}.items():
        made, found[name] = {}, {}
        for n, (grid, make) in product(STEPS, grids.GRIDS.items()):
            # A grid that is too coarse for the frames makes no trajectories.
            with suppress(ValueError):
                times = make(path, n)
                made[f"{n} {grid}"] = grids.through(times, TIMES) if name == "trajectories" else times
        for key, error in solver_errors(bench.teacher, path, z, made, step, fine_steps=128).items():
            steps, grid = key.split(" ")
            found[name].setdefault(steps, {})[grid] = error
    return found


def solvers(bench: Bench, errors: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """The lines without training, each on the grid with the least error."""
    found = {}
    for name, step in SOLVERS.items():
        for n in STEPS:
            grid = next(iter(errors[name][str(n)]))
            sampler = SolverSampler(
                bench.teacher, bench.teacher.schedule, grids.GRIDS[grid](bench.teacher.schedule, n), step
            )
            found[f"{name}-{n}"] = {"grid": grid, **bench.measure(name, sampler)}
    return found


def timings(bench: Bench) -> dict[str, Any]:
    """Latency at batch 1 and throughput at saturation of one pass, as ratios to one call of the teacher."""
    made: dict[str, Callable[[Tensor], Tensor]] = {"teacher, one call": lambda z: bench.teacher(z, torch.ones(len(z)))}
    for name in ("knowledge", "operator of two frames", "operator", "shortcut"):
        made["flow map" if name == "shortcut" else name] = student_of(ENTRIES[name], bench, 0).eval().sample
    absolute = {}
    with torch.no_grad():
        for name, sample in made.items():
            absolute[name] = {
                "latency": latency(sample, torch.randn(1, *bench.shape), repeats=300),
                "throughput": throughput(lambda n, f=sample: f(torch.randn(n, *bench.shape)), 1024).samples_per_second,
            }
    unit = absolute["teacher, one call"]
    return {
        name: {"latency": t["latency"] / unit["latency"], "throughput": t["throughput"] / unit["throughput"]}
        for name, t in absolute.items()
    }


def slopes(bench: Bench) -> dict[str, dict[str, float]]:
    """RMS of the teacher's derivative in t, of its slope over t +- 0.02, and of how far the two are apart.

    What the losses with a derivative in t see of a time embedding that oscillates some 150 times as t goes from 0 to 1.
    """
    found, x0, D = {}, bench.images.x[:256], bench.teacher
    for t in (0.1, 0.3, 0.5, 0.7, 0.9):
        alpha, sigma = bench.teacher.schedule.at(t)
        x, at = alpha * x0 + sigma * noise(range(len(x0)), bench.shape), torch.full((len(x0),), t)
        with torch.no_grad():
            _, derivative = jvp(lambda v, x=x: D(x, v), (at,), (torch.ones_like(at),))
            over = (D(x, at + 0.02) - D(x, at - 0.02)) / 0.04
        named = {"derivative": derivative, "slope": over, "apart": derivative - over}
        found[f"{t:g}"] = {k: float(v.square().mean().sqrt()) for k, v in named.items()}
    return found


def collect(bench: Bench) -> dict[float, dict[str, list[dict[str, Any]]]]:
    """Finished runs by budget and name, in the order of their names."""
    found: dict[float, dict[str, list[dict[str, Any]]]] = {}
    for path in sorted((bench.runs / "runs").glob("*.json")):
        result = json.loads(path.read_text())
        found.setdefault(result["budget"], {}).setdefault(result["name"], []).append(result)
    return dict(sorted(found.items()))


def stat(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "spread": statistics.stdev(values) if len(values) > 1 else 0.0}


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    first = results[0]
    points = {}
    for key, point in first["points"].items():
        here = [r["points"][key] for r in results]
        points[key] = {
            "rounds": point["rounds"], "flops": point["flops"],
            **{q: stat([p[q] for p in here]) for q in ("frechet", "kernel", "precision", "recall", "path_error")},
        }  # fmt: skip
    seen = [r["path_error_seen"] for r in results if "path_error_seen" in r]
    shared = ("entry", "steps", "flops_per_row", "trajectory_flops", "train_flops", "parameters")
    seconds = stat([r["seconds"] for r in results])
    return {
        "seeds": [r["seed"] for r in results],
        **{k: first[k] for k in shared},
        "seconds": seconds,
        "points": points,
        **({"path_error_seen": stat(seen)} if seen else {}),
    }


def family_of(name: str) -> str:
    method = named(ENTRIES, name).method
    if method in ("operator", "matching"):
        return "knowledge" if named(ENTRIES, name).frames == 1 else "operator"
    return method if method in COLOURS else "consistency" if "consistency" in method else "flow map"


def targets(bench: Bench) -> dict[str, float]:
    """Frechet distance of the stored trajectories' own ends, by the solver's grid and steps: what students are shown."""
    found = {}
    for folder in sorted(p for p in bench.runs.glob("trajectories-*-*-*") if p.is_dir()):
        grid, steps, _ = folder.name.removeprefix("trajectories-").rsplit("-", 2)
        ends = TrajectorySet(folder).__getitems__(list(range(COUNT)))["x0"][:, -1].clamp(-1, 1)
        made = measure(ends, name=folder.name, reference=bench.reference, extractor=bench.features)
        assert made.quality is not None
        found[f"{grid}, {steps} steps"] = made.quality.frechet
    return found


def report(bench: Bench) -> None:
    """Write the results, the claims and the plots from the runs that are there."""
    found = collect(bench)
    errors = kept(bench.runs / "grids.json", lambda: grid_errors(bench))
    lines = kept(bench.runs / "solvers.json", lambda: solvers(bench, errors))
    ratios = kept(bench.runs / "timings.json", lambda: timings(bench))
    wiggle = kept(bench.runs / "slopes.json", lambda: slopes(bench))
    budgets = {f"{factor:g}": {name: summary(runs) for name, runs in named.items()} for factor, named in found.items()}
    claims = [c for factor, table in budgets.items() for c in ahead(factor, table, names_of(bench.problem))]
    made = errors["trajectories"]["16"]
    over = made[bench.problem.grid] / next(iter(made.values()))
    claims.append(claim("error of the trajectories' solver, 16 steps, over that on the best grid", over, 1.0, "<="))
    for factor, table in budgets.items():
        print(f"x{factor}: {float(factor) * bench.problem.budget / 1e12:g} TFLOP")
        for name, s in sorted(table.items(), key=lambda item: item[1]["points"]["1"]["frechet"]["mean"]):
            shown = "   ".join(
                f"{k}: {p['frechet']['mean']:6.2f} +- {p['frechet']['spread']:.2f}" for k, p in s["points"].items()
            )
            print(f"  {name:40s} {len(s['seeds'])} seeds  {shown}")
    teacher = bench.measure("teacher", lambda z, cond, seeds: _given(bench.fine, seeds)) | {"rounds": 64}
    quality = bench.features.name
    write(
        f"family_{bench.name}",
        f"every run spends the same training FLOPs ({bench.problem.budget / 1e12:g} TFLOP at x1), its trajectories included, the network of a perceptual loss not; "
        f"{COUNT:,} held-out noises; Frechet and kernel distance, precision and recall in {quality} features against "
        f"{len(bench.images):,} images; path error: RMSE of the sample to the teacher's fine solution; spread: standard "
        f"deviation over seeds; {bench.precision} training; timings are ratios to one call of the teacher",
        claims, entered=names_of(bench.problem), budgets=budgets, solvers=lines, grids=errors, timings=ratios, slopes=wiggle,
        targets=targets(bench), teacher=teacher, teacher_flops=bench.row,
        unit=bench.problem.budget,
    )  # fmt: skip
    pictures(bench, budgets, lines, teacher["frechet"])


def _given(fine: Tensor, seeds: Tensor) -> Trajectory:
    """The fine solution as what a sampler made."""
    x = fine[(seeds - HELD_OUT)]
    return Trajectory(torch.stack([x, x], 1), torch.tensor([1.0, 0.0], dtype=torch.float64), None, None, seeds, 64, 64)


def ahead(factor: str, table: dict[str, Any], entered: list[str]) -> list[dict[str, Any]]:
    """At one pass: Frechet distance of the best of some less that of the best of others, as entered; and less both spreads."""
    names = [n for n in table if n in entered]
    # Knowledge distillation as published is a peer, with a perceptual loss or matching behind it a variant of this library.
    entries = {n: named(ENTRIES, n) for n in names}
    own = [
        n
        for n, e in entries.items()
        if e.method in ("operator", "matching") or (e.method == "knowledge" and e.distance)
    ]
    several = [n for n in own if entries[n].frames > 1]
    peers = [n for n in names if n not in own]
    matched = [n for n in own if entries[n].method == "matching"]
    made = []
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
        made.append(claim(name, other["mean"] - mine["mean"], 0.0, ">="))
        if min(len(table[n]["seeds"]) for n in (our, their)) > 1:
            margin = other["mean"] - mine["mean"] - mine["spread"] - other["spread"]
            made.append(claim(f"{name}, less both spreads", margin, 0.0, ">="))
    return made


def pictures(bench: Bench, budgets: dict[str, Any], lines: dict[str, Any], teacher: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    images = Path(__file__).parents[1] / "docs/images"
    table = {name: s for name, s in budgets[MAIN].items() if name in names_of(bench.problem)}
    names = [n for n in table if sum(n in t for t in budgets.values()) > 1]
    # The second panel is of what was run at several budgets.
    figure, axes = plt.subplots(
        1, 1 + bool(names), figsize=(13 if names else 8.5, 5), layout="constrained", squeeze=False
    )
    left, right = axes[0, 0], axes[0, -1]
    for name in SOLVERS:
        x, y = zip(*[(p["rounds"], p["frechet"]) for k, p in lines.items() if k.startswith(f"{name}-")], strict=True)
        left.plot(x, y, color="0.6", linestyle={"DDIM": ":", "DPM-Solver++": "--", "UniPC": "-"}[name], label=name)
    marks = dict(zip(sorted(table), "osD^vP*X<>hpdH8|x+1234", strict=False))
    for name, s in sorted(table.items(), key=lambda item: item[1]["points"]["1"]["frechet"]["mean"]):
        look = {"marker": marks[name], "ms": 5, "color": COLOURS[family_of(name)]}
        points = [(p["rounds"], p["frechet"]["mean"]) for k, p in s["points"].items() if k.isdigit()]
        left.plot(*zip(*sorted(points), strict=True), label=name.split("@")[0], **look)
        again = [(p["rounds"], p["frechet"]["mean"]) for k, p in s["points"].items() if not k.isdigit()]
        if again:
            left.plot(
                *zip(min(points), *sorted(again), strict=True),
                linestyle=":",
                label=f"{name.split('@')[0]}, noised again",
                **look,
            )
    left.set(
        xscale="log", yscale="log", xlabel="serial network calls", ylabel=f"Fréchet distance ({bench.features.name})"
    )
    left.set_xticks([1, 2, 4, 8, 16, 32], labels=["1", "2", "4", "8", "16", "32"])
    spent = float(MAIN) * bench.problem.budget / 1e12
    left.set_title(f"the same {spent:g} TFLOP of training", loc="left", fontsize=10)
    for name in names:
        points = [(float(f), t[name]["points"]["1"]["frechet"]["mean"]) for f, t in budgets.items() if name in t]
        right.plot(*zip(*points, strict=True), marker=marks[name], ms=5, color=COLOURS[family_of(name)])
    if names:
        right.set(xscale="log", yscale="log", xlabel="budget", ylabel="Fréchet distance, one pass")
        right.set_title("one pass as the budget grows", loc="left", fontsize=10)
        factors = [float(f) for f in budgets]
        right.set_xticks(factors, labels=[f"x{f:g}" for f in factors])
    for axis in axes[0]:
        axis.axhline(teacher, color="0.3", linewidth=0.8)
        axis.text(
            0.995,
            teacher,
            "teacher",
            color="0.3",
            ha="right",
            va="bottom",
            transform=axis.get_yaxis_transform(),
            fontsize=8,
        )
        axis.minorticks_off()
        axis.grid(True, alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    right.legend(
        *left.get_legend_handles_labels(), frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(1, 1)
    )
    figure.savefig(images / f"family-{bench.name}.png", dpi=130)
    plt.close(figure)
    strips(bench, table, images / f"family-{bench.name}-samples.png")


def strips(bench: Bench, table: dict[str, Any], path: Path) -> None:
    """One pass of every method from the same noises, a row each."""
    import matplotlib.pyplot as plt

    rows = {"teacher, fine": bench.fine[:SHOWN]}
    for name in sorted(table, key=lambda n: table[n]["points"]["1"]["frechet"]["mean"]):
        stem = f"{stem_of(name)}-{MAIN}-{table[name]['seeds'][0]}"
        rows[name] = read_tensors(bench.runs / "training" / stem / "samples.safetensors")["sample"]
    figure, axes = plt.subplots(len(rows), 1, figsize=(0.36 * SHOWN + 3, 0.42 * len(rows)), squeeze=False)
    for axis, (name, x) in zip(axes[:, 0], rows.items(), strict=True):
        strip = torch.cat(list((x.clamp(-1, 1) + 1) / 2), -1).movedim(0, -1)
        axis.imshow(strip.squeeze(-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_ylabel(name.split("@")[0], rotation=0, ha="right", va="center", fontsize=8)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.subplots_adjust(left=0.24, right=0.995, top=0.995, bottom=0.005, hspace=0.08)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
