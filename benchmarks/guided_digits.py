"""One student of every class and guidance weight on the digits, for one budget of training FLOPs.

    python benchmarks/guided_digits.py [--seeds 0 1]

Trains a class-conditional teacher that can be guided, then, for the same FLOPs each: guided distillation, whose students of four
and two passes are those on its way to one; and the operator of one and of two frames, from guided trajectories of random labels
and weights, whose cost is taken off first. The reference at each weight is the guided teacher's own fine solution: from the same
noises for the path error, from others for the Frechet distance. Quality is beside the cost in evaluations, of which the guided
teacher needs two a step. Runs are kept under --runs; the script continues where it was stopped. Writes
benchmarks/results/guided_digits.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _common import claim, write
from family import kept, step_flops
from torch import Tensor

from dsno import grids
from dsno.checkpoint import read_tensors, write_tensors
from dsno.cost import flops
from dsno.data.load import load_data
from dsno.denoise import Guided
from dsno.distillation.registry import METHODS, student_of
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
from dsno.students.operator import TrajectoryStudent
from dsno.students.samplers import FlowMapSampler, OnePass, passes_of
from dsno.teachers.load import load_teacher
from dsno.train import train
from dsno.trajectories.generate import generate
from dsno.trajectories.labels import uniform_labels, uniform_weights
from dsno.trajectory import Sampler

BUDGET, BATCH, LR = 8e12, 64, 1e-3
LOW, HIGH, WEIGHTS = 0.0, 4.0, (0.0, 1.0, 4.0)
HELD_OUT, OTHERS, COUNT, CLASSES = 10_000_000, 20_000_000, 1024, 10
TRAJECTORIES, SOLVER_STEPS = 2048, 16
FRAMES = {"knowledge": (0.0,), "operator of two frames": (0.25, 0.0)}
METHOD = {"guided": "guided", "knowledge": "knowledge", "operator of two frames": "operator"}


class Bench:
    """The guided teacher, the digits, and what the teacher makes at each weight."""

    def __init__(self, runs: Path) -> None:
        self.runs, self.images = runs, load_data("digits")
        runs.mkdir(parents=True, exist_ok=True)
        recipe = RECIPES["digits"]
        if not (runs / "teacher" / "config.json").is_file():
            options = {**recipe.net, "channels": tuple(recipe.net["channels"])}
            teach(
                self.images, runs / "teacher", config=recipe.teach,
                batch=recipe.teach_batch, kind=recipe.kind, conditional=True, drop=0.1, resume=True, **options,
            )  # fmt: skip
        inner = load_teacher(runs / "teacher").eval().requires_grad_(False)
        self.inner, self.teacher = inner, Guided(inner, {"label": torch.tensor(CLASSES)})
        self.features = load_feature_net(shipped() / "features")
        self.labels = torch.arange(COUNT) % CLASSES
        told = {"label": torch.zeros(1, dtype=torch.int64), "weight": torch.ones(1)}
        self.row = flops(self.teacher, torch.zeros(1, *self.images.shape), torch.ones(1), told)
        self.fine = {w: self._fine(w, HELD_OUT) for w in WEIGHTS}
        self.reference = {w: Reference.of(self._fine(w, OTHERS).clamp(-1, 1), self.features) for w in WEIGHTS}

    def cond(self, w: float) -> dict[str, Tensor]:
        return {"label": self.labels, "weight": torch.full((COUNT,), w)}

    def _fine(self, w: float, first: int) -> Tensor:
        path = self.runs / f"fine-{first}-{w:g}.safetensors"
        if not path.is_file():
            z = noise(seed_range(first, COUNT), self.images.shape)
            solved = fine_solution(self.teacher, self.inner.schedule, z, 32, cond=self.cond(w))
            write_tensors(path, {"sample": solved.sample})
        return read_tensors(path)["sample"]

    def trajectories(self, times: tuple[float, ...]) -> Any:
        labels, weights = uniform_labels(CLASSES), uniform_weights(LOW, HIGH)
        made = generate(
            self.teacher, self.runs / "trajectories", TRAJECTORIES, shape=self.images.shape,
            times=grids.quadratic(4)[1:], targets=("x0", "state"), steps=SOLVER_STEPS, grid="quadratic", resume=True,
            label=lambda seeds: {"label": labels(seeds), "weight": weights(seeds)},
        )  # fmt: skip
        return made.at(torch.tensor(times, dtype=torch.float64))

    def measure(self, sampler: Sampler) -> dict[str, dict[str, float]]:
        seeds, found = seed_range(HELD_OUT, COUNT), {}
        z = noise(seeds, self.images.shape)
        for w in WEIGHTS:
            cond = self.cond(w)
            rows = torch.arange(COUNT).split(512)
            made = [sampler(z[i], {name: c[i] for name, c in cond.items()}, seeds[i]) for i in rows]
            x = torch.cat([trajectory.sample for trajectory in made])
            quality = measure(
                x.clamp(-1, 1), name=f"w = {w:g}", reference=self.reference[w], extractor=self.features
            ).quality
            assert quality is not None
            with torch.no_grad():
                read = self.features(x.clamp(-1, 1)).argmax(1)
            found[f"{w:g}"] = {
                "frechet": quality.frechet, "path_error": float((x - self.fine[w]).square().mean().sqrt()),
                "evaluations": made[0].nfe, "accuracy": float((read == self.labels).float().mean()),
            }  # fmt: skip
        return found


def run(name: str, bench: Bench, seed: int) -> dict[str, Any]:
    method, data = METHODS[METHOD[name]], None
    if name in FRAMES:
        data = bench.trajectories(FRAMES[name])

    def make(steps: int, batch: int) -> tuple[FlowMap | TrajectoryStudent, list[Stage]]:
        given = Given(
            bench.teacher, bench.inner.schedule, steps, batch, seed, bench.images.x, bench.images.labels,
            trajectories=data, guidance=(LOW, HIGH),
        )  # fmt: skip
        torch.manual_seed(seed)
        student = student_of(method, bench.inner, given)
        options = {} if data is None else {"weights": "last" if len(FRAMES[name]) == 1 else "snr100"}
        return student, method.stages(student, given, **options)

    made = 0.0 if data is None else TRAJECTORIES * SOLVER_STEPS * bench.row
    per_row = step_flops(lambda rows: make(1000, rows))
    steps = round((BUDGET - made) / (per_row * BATCH))
    student, stages = make(steps, BATCH)
    points: dict[str, dict[str, dict[str, float]]] = {}
    for k, stage in enumerate(stages):
        model, objective = stage.make(student)
        config = dataclasses.replace(
            RECIPES["digits"].distill, steps=stage.steps, lr=LR * stage.lr, warmup=min(100, stage.steps // 10), seed=seed,
            checkpoint_every=10**9,
        )  # fmt: skip
        train(model, objective, config, bench.runs / f"{name.replace(' ', '-')}-{seed}" / f"{k}", overwrite=True)
        passes = stage.name.removeprefix("steps-")
        if passes in ("2", "4") and isinstance(student, FlowMap):
            grid = grids.even(student.schedule, int(passes))
            points[passes] = bench.measure(FlowMapSampler(student.eval(), grid))
    student.eval()
    last = passes_of(student, 1) if isinstance(student, FlowMap) else OnePass(student, whole=False)
    points["1"] = bench.measure(last)
    return {
        "name": name,
        "seed": seed,
        "steps": steps,
        "flops_per_row": per_row,
        "trajectory_flops": made,
        "points": points,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--runs", type=Path, default=Path("runs/guided_digits"))
    arguments = parser.parse_args()
    bench = Bench(arguments.runs)
    solvers: dict[str, Any] = {}
    for name, step in (("DDIM", DDIM()), ("UniPC", UniPC())):
        for k in (1, 2, 4, 8):
            sampler = SolverSampler(bench.teacher, bench.inner.schedule, grids.uniform(k), step)
            solvers[f"{name}-{k}"] = kept(arguments.runs / f"{name}-{k}.json", partial(bench.measure, sampler))
            print(f"{name}-{k}", {w: round(p["frechet"], 2) for w, p in solvers[f"{name}-{k}"].items()}, flush=True)
    held: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for name in METHOD:
            path = arguments.runs / f"{name.replace(' ', '-')}-{seed}.json"
            held.append(kept(path, partial(run, name, bench, seed)))
            shown = {k: {w: round(p["frechet"], 2) for w, p in ws.items()} for k, ws in held[-1]["points"].items()}
            print(name, seed, held[-1]["steps"], shown, flush=True)

    def mean(name: str, passes: str, w: str, key: str) -> float:
        return statistics.mean(r["points"][passes][w][key] for r in held if r["name"] == name)

    one = {name: {w: mean(name, "1", w, "frechet") for w in ("0", "1", "4")} for name in METHOD}
    write(
        "guided_digits",
        f"class-conditional digits teacher (the recipe's training, labels dropped in a tenth), weights uniform in [{LOW:g}, {HIGH:g}]; "
        f"{BUDGET:.0e} FLOPs a run, what {TRAJECTORIES} guided trajectories cost ({SOLVER_STEPS} steps of UniPC, two evaluations "
        f"each) taken off first; batches of {BATCH}, Adam at {LR:g}, mean of {len(arguments.seeds)} seeds; {COUNT} held-out noises "
        "of all classes in turn, Frechet distance in the features of the digits' classifier to as many fine samples of the guided "
        "teacher from other noises, path error to its fine solution from the same; accuracy is the classifier's",
        [
            *(
                claim(
                    f"one pass, w = {w}: Frechet distance of guided less that of knowledge",
                    one["guided"][w] - one["knowledge"][w],
                    0,
                    ">=",
                )
                for w in ("0", "1", "4")
            ),
            *(
                claim(
                    f"one pass of guided, w = {w}: Frechet distance less that of DDIM in 8 steps, 16 evaluations",
                    one["guided"][w] - solvers["DDIM-8"][w]["frechet"],
                    0,
                    "<=",
                )
                for w in ("0", "1", "4")
            ),
        ],
        solvers=solvers,
        runs=held,
    )


if __name__ == "__main__":
    main()
