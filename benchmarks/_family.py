"""The entries of the family's comparison, and how one of them is run: its student, stages, budget and points."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from _common import HELD_OUT, ROOT, kept, named, printed
from filelock import FileLock
from torch import Tensor, nn

from dsno import grids
from dsno.checkpoint import read_tensors, write_tensors
from dsno.cost import flops
from dsno.data.load import load_data
from dsno.denoise import Prediction
from dsno.distillation.identity import IdentityOptions, identity
from dsno.distillation.matching import MatchingOptions, matching
from dsno.distillation.registry import METHODS
from dsno.distillation.stages import Given, Options, Stage
from dsno.measure.evaluate import Reference, evaluate
from dsno.nets.features import load_feature_net
from dsno.runs.features import train_features
from dsno.runs.recipes import RECIPES
from dsno.seeds import noise, seed_range
from dsno.solvers.fine import fine_solution
from dsno.students.flowmap import FlowMap, flow_map_from_teacher
from dsno.students.heads import ParallelDecoder
from dsno.students.operator import TrajectoryStudent, student_from_teacher
from dsno.students.samplers import DecoderSampler, MultiPass, OnePass, Student, passes_known, passes_of
from dsno.teachers.load import load_teacher
from dsno.train import TrainConfig, train
from dsno.trajectories.generate import generate
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectory import Sampler

__all__ = [
    "ENTRIES",
    "PROBLEMS",
    "QUICK",
    "SOURCES",
    "Bench",
    "Entry",
    "Problem",
    "Size",
    "names_of",
    "run",
    "stem_of",
    "step_flops",
]

PASSES = (1, 2, 4)
SHOWN = 24
"""Samples that are kept of every run, for the pictures."""
SOURCES = ROOT / "benchmarks" / "sources"
"""Teachers whose weights do not ship, and the features to measure in: rows of another teacher are another table."""
TIMES = grids.quadratic(4)[1:]
"""Of the frames that are kept of trajectories."""


@dataclass(frozen=True)
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
    """Of the loss, where not the method's own. The network of a perceptual one and its labels are free."""
    fine_tuning: float = 0.0
    """Share of the steps behind the first method that match distributions."""
    finish: str = ""
    """How they do that, where the method is not `matching` already: matching, identity, or adversarial."""
    ema: float = 0.999
    derivative: str = ""
    """How the loss takes derivatives, where not in the method's own way."""
    adaptive: bool = False
    """Whether the weights of the times are learned, as sCM has it."""
    step: str = ""
    """The teacher's step over an interval of a decoder, where not the method's own."""


def operator(frames: int = 4, method: str = "operator", **settings: Any) -> Entry:
    """An operator; of one frame it is knowledge distillation, and has no other frames to weigh."""
    alone: dict[str, Any] = {"weights": "last", "others": None} if frames == 1 else {}
    return Entry(method, trajectories=1024, frames=frames, **alone, **settings)


FINISHED: dict[str, Any] = {"fine_tuning": 0.4}
ADVERSARY = 0.05
"""What the adversary weighs that is shown the data."""
MATCHING: dict[str, Any] = {"method": "matching", "fine_tuning": 0.4}
PERCEPTUAL: dict[str, Any] = {"distance": "l1+perceptual"}
ENTRIES: dict[str, Entry] = {
    "knowledge": operator(1, "knowledge"),
    "operator": operator(),
    "operator, restarts": operator(inner_starts=0.3),
    "operator, perceptual": operator(**PERCEPTUAL),
    "operator, matching": operator(**MATCHING),
    "operator of two frames": operator(2),
    "operator of two frames, perceptual": operator(2, **PERCEPTUAL),
    "operator of two frames, matching": operator(2, **MATCHING),
    "operator of two frames, perceptual, matching": operator(2, **PERCEPTUAL, **MATCHING),
    "knowledge, matching": operator(1, **MATCHING),
    "knowledge, perceptual": operator(1, "knowledge", **PERCEPTUAL),
    # Its paper's distance, too, is a perceptual one.
    "consistency, perceptual": Entry("consistency", **PERCEPTUAL),
    "progressive": Entry("progressive"),
    "consistency": Entry("consistency"),
    "consistency-training": Entry("consistency-training"),
    "easy-consistency": Entry("easy-consistency"),
    "continuous-consistency": Entry("continuous-consistency"),
    "continuous-consistency, adaptive": Entry("continuous-consistency", adaptive=True),
    "lagrangian": Entry("lagrangian"),
    "eulerian": Entry("eulerian"),
    "progressive-map": Entry("progressive-map"),
    "direct": Entry("direct"),
    "shortcut": Entry("shortcut"),
    "meanflow": Entry("meanflow"),
    "decoding": Entry("decoding"),
    "decoding, euler": Entry("decoding", step="euler"),
    "decoding, matching": Entry("decoding", trajectories=1024, finish="matching", **FINISHED),
    "decoding, identity": Entry("decoding", finish="identity", **FINISHED),
    "decoding, adversarial": Entry("decoding", finish="adversarial", **FINISHED),
    "knowledge, identity": operator(1, "knowledge", finish="identity", **FINISHED),
    "knowledge, adversarial": operator(1, "knowledge", finish="adversarial", **FINISHED),
    "operator of two frames, identity": operator(2, finish="identity", **FINISHED),
    "rectified-meanflow": Entry("rectified-meanflow", trajectories=1024, weights="", others=None),
}


@dataclass(frozen=True)
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
    "sprites": Problem("crawl_cc0_32.npz", None, 4e12, "karras"),
}


def names_of(problem: Problem) -> list[str]:
    """The entries as they are run on a problem."""
    other = problem.grid != Entry.grid
    return [f"{name}@grid={problem.grid}" if other and e.trajectories else name for name, e in ENTRIES.items()]


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    count: int = 2048
    """Held-out noises."""
    share: float = 1.0
    """Of each budget, and of its trajectories."""
    shard: int = 4096
    """Trajectories are made in powers of two times so many."""
    counted: int = 48
    """Steps whose FLOPs are counted."""
    recipe_steps: int | None = None
    """Of the recipe's teacher and feature network where they are trained; the recipe's own if None."""
    feature_steps: int = 800
    """Of the feature network of a perceptual loss."""
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Of the solvers without training."""
    fine_steps: int = 64
    timed: int = 300
    """Calls behind a latency."""


QUICK = Size(16, 1 / 64, 64, 4, 2, 2, (1, 2, 4, 16), 8, 2)


class Bench:
    """What all runs share: teacher, data, trajectories, the fine solution and the reference features."""

    def __init__(
        self,
        name: str,
        source: Path,
        data: str | None,
        runs: Path,
        precision: str,
        size: Size = Size(),
        held_out: str | None = None,
    ) -> None:
        self.name, self.problem, self.runs, self.precision, self.size = name, PROBLEMS[name], runs, precision, size
        self.images = load_data(data or self.problem.data, size=self.problem.size)
        if not all((source / part / "config.json").is_file() for part in ("teacher", "features")):
            with FileLock(runs / "source.lock"):
                self._recipe().prepare(source, printed(500), data=self.images)
        self.teacher: Prediction = load_teacher(source / "teacher").eval().requires_grad_(False)
        self.features = load_feature_net(source / "features")
        self.shape = self.images.shape
        unseen = None if held_out is None else load_data(held_out, size=self.problem.size).x
        self.reference = Reference.of(self.images.x, self.features, held_out=unseen)
        self.seeds = seed_range(HELD_OUT, size.count)
        self.row = flops(self.teacher, torch.zeros(1, *self.shape), torch.ones(1))
        self.fine = self._fine()

    def _recipe(self) -> Any:
        recipe, steps = RECIPES[self.name], self.size.recipe_steps
        if steps is None:
            return recipe
        return dataclasses.replace(recipe, teach=dataclasses.replace(recipe.teach, steps=steps), features_steps=steps)

    def _fine(self) -> Tensor:
        path = self.runs / "fine.safetensors"
        if not path.is_file():
            z = noise(self.seeds, self.shape)
            solved = fine_solution(self.teacher, self.teacher.schedule, z, self.size.fine_steps)
            write_tensors(path, {"sample": solved.sample})
        return read_tensors(path)["sample"]

    def trajectories_of(self, entry: Entry, factor: float) -> int:
        """How many an entry asks for at a budget."""
        return round(entry.trajectories * factor * self.size.share)

    def trajectories(self, count: int, entry: Entry, times: Tensor) -> TrajectorySet:
        """The first `count` of an entry's kind; made where there are too few."""
        name, least = f"trajectories-{entry.grid}-{entry.solver_steps}", self.size.shard
        sizes = sorted(int(p.name.split("-")[-1]) for p in self.runs.glob(f"{name}-*"))
        size = next((n for n in sizes if n >= count), least * 2 ** max(0, math.ceil(math.log2(count / least))))
        with FileLock(self.runs / "trajectories.lock"):
            made = generate(
                self.teacher,
                self.runs / f"{name}-{size}",
                size,
                shape=self.shape,
                times=TIMES,
                targets=("x0", "state"),
                steps=entry.solver_steps,
                grid=entry.grid,
                resume=True,
            )
        return made.at(times).head(count)

    def loss_features(self) -> Path:
        """Those of a perceptual distance: not the network that the quality is measured in."""
        folder, steps = self.runs / "loss_features", self.size.feature_steps
        with FileLock(self.runs / "loss_features.lock"):
            if not folder.is_dir():
                train_features(self.images, folder, steps, seed=1)
        return folder

    def measure(self, name: str, sampler: Sampler) -> dict[str, Any]:
        result = evaluate(
            sampler,
            name=name,
            shape=self.shape,
            seeds=self.seeds,
            reference=self.reference,
            extractor=self.features,
            fine=self.fine,
            repeats=0,
        )
        assert result.quality is not None
        return {
            "rounds": result.cost.rounds,
            "flops": result.cost.flops,
            **dataclasses.asdict(result.quality),
            "path_error": result.path_error,
            "path_error_median": result.path_error_median,
            **({} if result.held_out is None else {f"held_out_{k}": v for k, v in vars(result.held_out).items()}),
        }


def student_of(entry: Entry, bench: Bench, seed: int) -> Student:
    torch.manual_seed(seed)
    if METHODS[entry.method].student == "flow map":
        return flow_map_from_teacher(bench.teacher)
    if METHODS[entry.method].student == "decoder":
        return options_of(entry, bench).student(bench.teacher, Given(bench.teacher, bench.teacher.schedule, 0))
    times = TIMES[4 // entry.frames - 1 :: 4 // entry.frames]
    return student_from_teacher(bench.teacher, times, where="mid" if entry.frames > 1 else "none")


def options_of(entry: Entry, bench: Bench) -> Options:
    """The options of the entry's method: those that it has of the entry's settings."""
    method = METHODS[entry.method]
    features = bench.loss_features() if "perceptual" in entry.distance else None
    asked = {
        "weights": entry.weights if entry.trajectories else None,
        "others": entry.others,
        "inner_starts": entry.inner_starts,
        "fine_tuning": entry.fine_tuning or None,
        "distance": entry.distance or None,
        "derivative": entry.derivative or None,
        "step": entry.step or None,
        "adaptive": entry.adaptive or None,
        "features": features,
    }
    kept = {name: value for name, value in asked.items() if value is not None and name in method.names}
    return method.configured(**kept)


def stages_of(
    entry: Entry, bench: Bench, student: Student, steps: int, batch: int, seed: int, factor: float
) -> list[Stage]:
    given = Given(bench.teacher, bench.teacher.schedule, steps, batch, seed, bench.images.x)
    if entry.trajectories:
        times = student.times if isinstance(student, TrajectoryStudent) else TIMES[-1:]
        data = bench.trajectories(bench.trajectories_of(entry, factor), entry, times)
        given = dataclasses.replace(given, trajectories=data)
    last = round(steps * entry.fine_tuning) if entry.finish else 0
    first = dataclasses.replace(given, steps=steps - last)
    if not isinstance(student, TrajectoryStudent) and entry.finish:
        first = dataclasses.replace(first, trajectories=None)
    stages = METHODS[entry.method].stages(student, first, options_of(entry, bench))
    behind = dataclasses.replace(given, steps=last)
    if entry.finish == "matching":
        stages += matching(student, behind, MatchingOptions())
    elif entry.finish:
        # Noises without end, as it needs no trajectories.
        adversary = ADVERSARY if entry.finish == "adversarial" else 0.0
        stages += identity(
            student, dataclasses.replace(behind, trajectories=None), IdentityOptions(adversary=adversary)
        )
    return stages


def step_flops(make: Callable[[int], tuple[Student, list[Stage]]], count: int = 48, rows: int = 4) -> float:
    """FLOPs of a row of training, averaged over all stages in proportion to their steps.

    Many steps of few rows: what a step supervises may be drawn by lot. Four, of which a quarter is one.
    """
    student, stages = make(rows)
    total = 0.0
    for stage in stages:
        model, objective = stage.make(student)
        each = max(count // len(stages), 1)

        def train_some(model: nn.Module = model, objective: Any = objective, each: int = each) -> None:
            for batch in islice(objective.batches(0, 0, 1), each):
                objective(model, batch).backward()

        total += flops(train_some) / (rows * each) * stage.steps
        student = stage.became(student)
    return total / sum(stage.steps for stage in stages)


def samplers_of(student: Student) -> dict[str, Sampler]:
    """What a student can do at 1, 2 and 4 passes, in the end and of its own states or noised again."""
    if isinstance(student, FlowMap):
        passes = (student.steps,) if student.way == "grid" else PASSES
        return {str(k): passes_of(student, k) for k in passes if k is not None}
    if isinstance(student, ParallelDecoder):
        return {str(k): DecoderSampler(student, k) for k in PASSES if k in passes_known(student)}
    if not student.restarts:
        return {"1": OnePass(student)}
    return {
        **{str(k): MultiPass(student, k, fresh=False) for k in PASSES},
        **{f"{k}, re-noised": MultiPass(student, k, fresh=True) for k in PASSES[1:]},
    }


def seen_error(student: TrajectoryStudent, data: TrajectorySet) -> float:
    """RMSE of one pass on trajectories it learned from: far below the path error, the student knows them by heart."""
    rows = data.__getitems__(list(range(min(512, len(data)))))
    return float((student.sample(rows["noise"]) - rows["x0"][:, -1]).square().mean().sqrt())


def stem_of(name: str) -> str:
    return name.replace(", ", "+").replace(" ", "-")


def run(name: str, bench: Bench, seed: int, factor: float, folder: Path) -> dict[str, Any]:
    """Train and measure an entry at a budget."""
    entry = named(ENTRIES, name)
    began = time.perf_counter()

    def make(steps: int, batch: int, seed: int) -> tuple[Student, list[Stage]]:
        student = student_of(entry, bench, seed)
        return student, stages_of(entry, bench, student, steps, batch, seed, factor)

    # With one seed, so that the runs of all seeds have as many steps.
    counted = bench.runs / "counted" / f"{stem_of(name)}.json"
    per_row = kept(counted, lambda: step_flops(lambda rows: make(1000, rows, 0), bench.size.counted))
    made = bench.trajectories_of(entry, factor) * entry.solver_steps * bench.row
    budget = bench.problem.budget * factor * bench.size.share
    if made >= budget:
        raise ValueError(f"{name} spends {made / budget:.0%} of its budget on trajectories: take fewer")
    steps = round((budget - made) / (per_row * entry.batch))
    student, stages = make(steps, entry.batch, seed)
    points: dict[str, dict[str, Any]] = {}
    for k, stage in enumerate(stages):
        model, objective = stage.make(student)
        config = TrainConfig(
            steps=stage.steps,
            lr=entry.lr * stage.lr,
            warmup=min(100, stage.steps // 10),
            ema=entry.ema,
            precision=bench.precision,
            seed=seed,
            checkpoint_every=10**9,
            log_every=100,
        )
        train(model, objective, config, folder / f"{k}-{stage.name}", overwrite=True)
        student = stage.became(student)
        if stage is not stages[-1] and isinstance(student, FlowMap) and student.steps in PASSES:
            # The students on the way to one pass are this method's students of more passes.
            points[str(student.steps)] = bench.measure(name, passes_of(student, student.steps))
    trained = time.perf_counter() - began
    student.eval()
    shown = noise(bench.seeds[:SHOWN], bench.shape)
    write_tensors(folder / "samples.safetensors", {"sample": student.sample(shown)})
    points |= {passes: bench.measure(name, sampler) for passes, sampler in samplers_of(student).items()}
    seen = {}
    if isinstance(student, TrajectoryStudent):
        data = bench.trajectories(bench.trajectories_of(entry, factor), entry, student.times)
        seen["path_error_seen"] = seen_error(student, data)
    return {
        **seen,
        "name": name,
        "seed": seed,
        "budget": factor,
        "entry": dataclasses.asdict(entry),
        "steps": steps,
        "stages": {s.name: s.steps for s in stages},
        "flops_per_row": per_row,
        "trajectory_flops": made,
        "train_flops": per_row * entry.batch * steps,
        "points": points,
        "seconds": trained,
        "parameters": sum(p.numel() for p in student.parameters()),
    }
