"""One student of every class and guidance weight on the digits, for one budget of training FLOPs.

    python benchmarks/guided_digits.py [--seeds 0 1]

Claim: at one pass and each weight knowledge distillation is ahead of guided distillation, and guided distillation of
eight steps of DDIM; a difference of the other sign refutes it. Trains a class-conditional teacher that can be guided,
then, for the same FLOPs each: guided distillation, whose students of four and two passes are those on its way to one;
and the operator of one and of two frames, from guided trajectories of random labels and weights, whose cost is taken
off first. The reference at each weight is the guided teacher's own fine solution: from the same noises for the path
error, from others for the Frechet distance. Quality is beside the cost in evaluations, of which the guided teacher
needs two a step. Runs are kept under --runs; the script continues where it was stopped. Writes
benchmarks/results/guided_digits.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from _common import HELD_OUT, Claim, claim, kept, parse, parser, runs_of, write
from _family import step_flops
from torch import Tensor

from dsno import grids
from dsno.checkpoint import read_tensors, write_tensors
from dsno.cost import flops
from dsno.data.load import load_data
from dsno.denoise import Guided
from dsno.distillation.registry import METHODS
from dsno.distillation.stages import Given, Stage
from dsno.measure.evaluate import Reference, measure
from dsno.nets.features import load_feature_net
from dsno.runs.recipes import RECIPES
from dsno.runs.shipped import shipped
from dsno.runs.teach import teach
from dsno.seeds import noise, seed_range
from dsno.solvers.fine import fine_solution
from dsno.solvers.first_order import DDIM
from dsno.solvers.multistep import UniPC
from dsno.solvers.run import SolverSampler
from dsno.students.flowmap import FlowMap
from dsno.students.samplers import Student, passes_of, sampler_of
from dsno.teachers.load import load_teacher
from dsno.train import train
from dsno.trajectories.generate import generate
from dsno.trajectories.labels import uniform_labels, uniform_weights
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectory import Sampler

BATCH, LR, SOLVER_STEPS = 64, 1e-3, 16
LOW, HIGH, WEIGHTS = 0.0, 4.0, (0.0, 1.0, 4.0)
OTHERS, CLASSES = 20_000_000, 10
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "guided": ("guided", {"guidance": (LOW, HIGH)}),
    "knowledge": ("knowledge", {}),
    "operator of two frames": ("operator", {"times": (0.25, 0.0), "weights": "snr100"}),
}
"""Methods and their options."""


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    budget: float = 8e12
    """FLOPs of a run."""
    trajectories: int = 2048
    count: int = 1024
    """Held-out noises."""
    teach_steps: int = RECIPES["digits"].teach.steps
    fine_steps: int = 32
    counted: int = 48
    """Steps whose FLOPs are counted."""


QUICK = Size(2e11, 64, 20, 2, 8, 8)


class Bench:
    """The guided teacher, the digits, and what the teacher makes at each weight."""

    def __init__(self, runs: Path, size: Size) -> None:
        self.runs, self.size, self.images = runs, size, load_data("digits")
        recipe = RECIPES["digits"]
        if not (runs / "teacher" / "config.json").is_file():
            teach(
                self.images,
                runs / "teacher",
                config=dataclasses.replace(recipe.teach, steps=size.teach_steps),
                batch=recipe.teach_batch,
                kind=recipe.kind,
                conditional=True,
                drop=0.1,
                resume=True,
                **{**recipe.net, "channels": tuple(recipe.net["channels"])},
            )
        inner = load_teacher(runs / "teacher").eval().requires_grad_(False)
        self.inner, self.teacher = inner, Guided(inner, {"label": torch.tensor(CLASSES)})
        self.features = load_feature_net(shipped() / "features")
        self.labels = torch.arange(size.count) % CLASSES
        cond = {"label": torch.zeros(1, dtype=torch.int64), "weight": torch.ones(1)}
        self.row = flops(self.teacher, torch.zeros(1, *self.images.shape), torch.ones(1), cond)
        self.fine = {w: self._fine(w, HELD_OUT) for w in WEIGHTS}
        self.reference = {w: Reference.of(self._fine(w, OTHERS).clamp(-1, 1), self.features) for w in WEIGHTS}

    def cond(self, w: float) -> dict[str, Tensor]:
        return {"label": self.labels, "weight": torch.full((self.size.count,), w)}

    def _fine(self, w: float, first: int) -> Tensor:
        path = self.runs / f"fine-{first}-{w:g}.safetensors"
        if not path.is_file():
            z = noise(seed_range(first, self.size.count), self.images.shape)
            solved = fine_solution(self.teacher, self.inner.schedule, z, self.size.fine_steps, cond=self.cond(w))
            write_tensors(path, {"sample": solved.sample})
        return read_tensors(path)["sample"]

    def trajectories(self) -> TrajectorySet:
        labels, weights = uniform_labels(CLASSES), uniform_weights(LOW, HIGH)
        return generate(
            self.teacher,
            self.runs / "trajectories",
            self.size.trajectories,
            shape=self.images.shape,
            times=grids.quadratic(4)[1:],
            targets=("x0", "state"),
            steps=SOLVER_STEPS,
            grid="quadratic",
            resume=True,
            label=lambda seeds: {"label": labels(seeds), "weight": weights(seeds)},
        )

    def measure(self, sampler: Sampler) -> dict[str, dict[str, float]]:
        seeds, found = seed_range(HELD_OUT, self.size.count), {}
        z = noise(seeds, self.images.shape)
        for w in WEIGHTS:
            cond = self.cond(w)
            rows = torch.arange(self.size.count).split(512)
            made = [sampler(z[i], {name: c[i] for name, c in cond.items()}, seeds[i]) for i in rows]
            x = torch.cat([trajectory.sample for trajectory in made])
            shown, reference = x.clamp(-1, 1), self.reference[w]
            quality = measure(shown, name=f"w = {w:g}", reference=reference, extractor=self.features).quality
            assert quality is not None
            with torch.no_grad():
                read = self.features(shown).argmax(1)
            found[f"{w:g}"] = {
                "frechet": quality.frechet,
                "path_error": float((x - self.fine[w]).square().mean().sqrt()),
                "evaluations": made[0].nfe,
                "accuracy": float((read == self.labels).float().mean()),
            }
        return found


def run(name: str, bench: Bench, seed: int) -> dict[str, Any]:
    """Train and measure one student."""
    method = METHODS[STUDENTS[name][0]]
    chosen = method.configured(**STUDENTS[name][1])
    data = bench.trajectories() if "trajectories" in method.needs else None

    def make(steps: int, batch: int) -> tuple[Student, list[Stage]]:
        x, labels = bench.images.x, bench.images.labels
        given = Given(bench.teacher, bench.inner.schedule, steps, batch, seed, x, labels, data)
        torch.manual_seed(seed)
        student = chosen.student(bench.inner, given)
        return student, method.stages(student, given, chosen)

    made = 0.0 if data is None else bench.size.trajectories * SOLVER_STEPS * bench.row
    per_row = step_flops(lambda rows: make(1000, rows), bench.size.counted)
    steps = round((bench.size.budget - made) / (per_row * BATCH))
    student, stages = make(steps, BATCH)
    points: dict[str, dict[str, dict[str, float]]] = {}
    for k, stage in enumerate(stages):
        model, objective = stage.make(student)
        config = dataclasses.replace(
            RECIPES["digits"].distill,
            steps=stage.steps,
            lr=LR * stage.lr,
            warmup=min(100, stage.steps // 10),
            seed=seed,
            checkpoint_every=10**9,
        )
        train(model, objective, config, bench.runs / f"{name.replace(' ', '-')}-{seed}" / f"{k}", overwrite=True)
        student = stage.became(student)
        if isinstance(student, FlowMap) and student.steps in (2, 4):
            # The students on the way to one pass are this method's students of more passes.
            points[str(student.steps)] = bench.measure(passes_of(student.eval(), student.steps))
    points["1"] = bench.measure(sampler_of(student.eval(), 1))
    return {
        "name": name,
        "seed": seed,
        "steps": steps,
        "flops_per_row": per_row,
        "trajectory_flops": made,
        "points": points,
    }


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """One pass, means over seeds: guided distillation beside knowledge distillation and eight steps of DDIM."""
    solver = numbers["solvers"]["DDIM-8"]
    weights = [f"{w:g}" for w in WEIGHTS]

    def one(name: str, w: str) -> float:
        return statistics.mean(r["points"]["1"][w]["frechet"] for r in numbers["runs"] if r["name"] == name)

    return [
        *(
            claim(
                f"one pass, w = {w}: Frechet distance of guided less that of knowledge",
                one("guided", w) - one("knowledge", w),
                0,
                ">=",
            )
            for w in weights
        ),
        *(
            claim(
                f"one pass of guided, w = {w}: Frechet distance less that of DDIM in 8 steps, 16 evaluations",
                one("guided", w) - solver[w]["frechet"],
                0,
                "<=",
            )
            for w in weights
        ),
    ]


def options() -> argparse.ArgumentParser:
    made = parser(__file__, __doc__)
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    made.add_argument("--runs", type=Path, help="what is trained and measured; runs/guided_digits by default")
    return made


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    size, seeds = (QUICK, [0]) if arguments.quick else (Size(), arguments.seeds)
    runs = runs_of(arguments, "runs/guided_digits")
    bench = Bench(runs, size)
    solvers: dict[str, Any] = {}
    for (name, step), k in product((("DDIM", DDIM()), ("UniPC", UniPC())), (1, 2, 4, 8)):
        sampler = SolverSampler(bench.teacher, bench.inner.schedule, grids.uniform(k), step)
        solvers[f"{name}-{k}"] = kept(runs / f"{name}-{k}.json", partial(bench.measure, sampler))
        print(f"{name}-{k}", {w: round(p["frechet"], 2) for w, p in solvers[f"{name}-{k}"].items()}, flush=True)
    held: list[dict[str, Any]] = []
    for seed, name in product(seeds, STUDENTS):
        path = runs / f"{name.replace(' ', '-')}-{seed}.json"
        held.append(kept(path, partial(run, name, bench, seed)))
        points = {k: {w: round(p["frechet"], 2) for w, p in ws.items()} for k, ws in held[-1]["points"].items()}
        print(name, seed, held[-1]["steps"], points, flush=True)
    numbers = {"solvers": solvers, "runs": held}
    write(
        arguments,
        "guided_digits",
        "class-conditional digits teacher (the recipe's training, labels dropped in a tenth), weights uniform in "
        f"[{LOW:g}, {HIGH:g}]; {size.budget:.0e} FLOPs a run, what {size.trajectories} guided trajectories cost "
        f"({SOLVER_STEPS} steps of UniPC, two evaluations each) taken off first; batches of {BATCH}, Adam at {LR:g}, "
        f"mean of {len(seeds)} seeds; {size.count} held-out noises of all classes in turn, Frechet distance in the "
        "features of the digits' classifier to as many fine samples of the guided teacher from other noises, path "
        "error to its fine solution from the same; accuracy is the classifier's",
        judged(numbers),
        **numbers,
    )


if __name__ == "__main__":
    main()
