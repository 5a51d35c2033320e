"""DSNO against knowledge distillation on digits, at equal training FLOPs and at equal sampling FLOPs.

    python benchmarks/digits.py [--only NAME ...] [--seeds 0 1 2] [--budget 1.0]
    python benchmarks/digits.py --report [--name digits] [--budget 1.0]

Claim: an operator is ahead of its control by more than the spreads of both; a margin below 0 refutes it. Of one seed
there is no spread, and a change is ahead of what it changes, or not. Every student starts from the same teacher, sees
the same trajectories and spends the same training FLOPs: the number of steps is the budget divided by the measured
FLOPs of one step (forward, backward and the whole batch). One budget is what knowledge distillation spends on 2,000
batches of 64. Each run is kept as a JSON file under --runs, so the benchmark continues where it was stopped. --report
writes benchmarks/results/NAME.json and docs/images/NAME.png from the runs of the budget that are there.

A name may change a student's settings: `kd@lr=0.0005@trajectories=4000`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from torch import Tensor, nn
from torch.nn import functional as F

from dsno import grids
from dsno.checkpoint import read_json, read_tensors, write_tensors
from dsno.cost import flops
from dsno.data.load import load_data
from dsno.denoise import Prediction
from dsno.distillation.distances import distance
from dsno.distillation.regression import TrajectoryDistillation
from dsno.measure.features import extract
from dsno.measure.metrics import frechet_distance
from dsno.nets.features import load_feature_net
from dsno.runs.shipped import shipped
from dsno.seeds import noise, seed_range
from dsno.solvers.fine import fine_solution
from dsno.solvers.multistep import UniPC
from dsno.solvers.run import initial_state
from dsno.students.operator import TrajectoryStudent, student_from_teacher
from dsno.teachers.load import load_teacher
from dsno.train import TrainConfig, train
from dsno.trajectories.generate import generate
from dsno.trajectories.sets import TrajectorySet


@dataclass(frozen=True)
class Run:
    """One student: what differs from the default DSNO."""

    frames: int = 4
    where: str = "mid"
    once: bool = True
    modes: int = 2
    activation: str = "silu"
    init: str = "zero"
    told: str = "input"
    target: str = "x0"
    weights: str = "last"
    distance: str = "l1"
    batch: int = 64
    others: float | None = None
    inner_starts: float = 0.0
    extra: int = 0
    """Pairs of residual convolutions appended to the blocks `extra_where`: a network of more FLOPs."""
    extra_where: str = "mid"
    lr: float = 1e-3
    trajectories: int = 20_000

    @property
    def times(self) -> Tensor:
        return grids.quadratic(self.frames)[1:]


def published(frames: int) -> Run:
    """The published operator: a layer in every block, every frame told its own time, weights clamped at 1e4."""
    return Run(frames, where="every", once=False, told="output", weights="snr", batch=64 // frames)


STUDENTS: dict[str, Run] = {
    # One frame, told the noise's time: knowledge distillation, plain and with more FLOPs.
    "kd": Run(frames=1, where="none"),
    "kd, 48 MFLOP": Run(frames=1, where="none", extra=2),
    "kd, 158 MFLOP": Run(frames=1, where="none", extra=6, extra_where="low"),
    **{f"paper M={frames}": published(frames) for frames in (2, 4, 8)},
    "no temporal M=4": dataclasses.replace(published(4), where="none"),
    # Frames only where they are cheap, told the input's time.
    **{f"mid M={frames}": Run(frames) for frames in (2, 4, 8)},
    "low M=4": Run(where="low", batch=32),
}

CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "paper M=4": {
        "snr5": {"weights": "snr5"},
        "uniform": {"weights": "uniform"},
        "last": {"weights": "last"},
        "state": {"target": "state"},
        "told input": {"told": "input"},
        "leaky uniform init": {"activation": "leaky_relu", "init": "uniform"},
        "leaky zero init": {"activation": "leaky_relu"},
        "normal init": {"init": "normal"},
    },
    "mid M=4": {
        "snr100": {"weights": "snr100"},
        "snr100, others 0.25": {"weights": "snr100", "others": 0.25},
        "l2": {"distance": "l2"},
        "huber": {"distance": "huber"},
        "l1+perceptual": {"distance": "l1+perceptual"},
    },
}
"""One change at a time from the published operator, and from the cheap one."""

RUNS: dict[str, Run] = STUDENTS | {
    f"{base}, {change}": dataclasses.replace(STUDENTS[base], **settings)
    for base, changes in CHANGES.items()
    for change, settings in changes.items()
}

RIVALS = {
    # Equal training FLOPs, and at most the control's sampling FLOPs for the wide ones.
    "kd": ("mid M=2", "mid M=4", "mid M=8", "low M=4", "paper M=2", "paper M=4", "paper M=8"),
    "kd, 48 MFLOP": ("mid M=2", "mid M=4"),
    "kd, 158 MFLOP": ("paper M=4",),
    "no temporal M=4": ("paper M=4",),
}
"""Each control, and those that are to be ahead of it."""
MEASURES = ("frechet", "path_error")


@dataclass(frozen=True)
class Size:
    """How much is trained and measured where nothing else is asked for."""

    only: tuple[str, ...] = tuple(RUNS)
    seeds: tuple[int, ...] = (0, 1, 2)
    budget: float = 1.0
    count: int = 2048
    """Held-out noises."""
    trajectories: int | None = None
    """All a run asks for, if None."""


QUICK = Size(("kd", "mid M=2", "mid M=4", "mid M=4, huber"), (0, 1), 0.002, 64, 64)


class Adapter(nn.Module):
    """Residual convolutions behind a block, zero at the start: more FLOPs without another teacher."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2 * count))
        for layer in self.layers[1::2]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor) -> Tensor:
        for first, second in zip(self.layers[::2], self.layers[1::2], strict=True):
            h = h + second(F.silu(first(F.silu(h))))
        return h


class Bench:
    """What all runs share: teacher, trajectories, the fine solution and the reference features."""

    def __init__(self, source: Path, runs: Path, size: Size, precision: str) -> None:
        self.source, self.runs, self.size, self.precision = source, runs, size, precision
        self.teacher: Prediction = load_teacher(source / "teacher")
        self.features = load_feature_net(source / "features")
        real = load_data("digits").x
        self.real, self.shape = extract(self.features, real), tuple(real.shape[1:])
        # Every time and both targets that any student needs, which the recipe's own trajectories do not hold.
        generate(
            self.teacher,
            runs / "trajectories",
            size.trajectories or Run.trajectories,
            shape=self.shape,
            times=grids.quadratic(8)[1:],
            targets=("x0", "state"),
            grid="quadratic",
            resume=True,
        )
        self.noises = noise(seed_range(HELD_OUT, size.count), self.shape)
        self.times = sorted({t for run in RUNS.values() for t in run.times.tolist()}, reverse=True)
        self.fine = self._fine(runs / "fine.safetensors")
        ends = self.fine["x0"][:, -1].clamp(-1, 1)
        self.frechet = frechet_distance(extract(self.features, ends), self.real)
        print(f"teacher's fine solution: {self.frechet:.2f}", flush=True)
        self.unit = 2000 * self.step_flops(RUNS["kd"])

    def _fine(self, path: Path) -> dict[str, Tensor]:
        """The teacher's fine solution at every time any student has, kept in a file."""
        times = torch.tensor(self.times)
        if not path.is_file():
            keep, z = [1.0, *self.times], self.noises
            solved = fine_solution(
                self.teacher, self.teacher.schedule, z, 64, keep=keep, step=UniPC(3), keep_x0=True, batch=128
            )
            assert solved.x0 is not None
            write_tensors(path, {"x0": solved.x0[:, 1:], "state": solved.x[:, 1:], "times": times})
        held = read_tensors(path)
        if held["times"].tolist() != times.tolist():
            raise ValueError(f"{path} holds other times than the runs need: delete it")
        return held

    def student(self, run: Run, seed: int) -> TrajectoryStudent:
        torch.manual_seed(seed)
        student = student_from_teacher(
            self.teacher,
            run.times,
            run.target,
            run.modes,
            run.where,
            run.once,
            run.activation,
            run.init,
            run.told,
        )
        if run.extra:
            backbone = student.net.backbone
            low = [b for b in (*backbone.down, *backbone.mid, *backbone.up) if b.out_channels > backbone.emb_in]
            for block in backbone.mid if run.extra_where == "mid" else low:
                block.adapter = Adapter(block.out_channels, run.extra)
                block.register_forward_hook(lambda m, args, h: m.adapter(h))
        return student

    def objective(self, run: Run, student: TrajectoryStudent, seed: int) -> TrajectoryDistillation:
        data = TrajectorySet(self.runs / "trajectories", run.times).head(self.size.trajectories or run.trajectories)
        maps = None
        if "perceptual" in run.distance:
            maps = load_feature_net(self.source / "loss_features").requires_grad_(False).maps
        d = distance(run.distance, maps)
        return TrajectoryDistillation(data, student, run.weights, d, run.batch, seed, run.others, run.inner_starts)

    def step_flops(self, run: Run) -> int:
        student = self.student(run, 0)
        objective = self.objective(run, student, 0)
        batch = next(objective.batches(0))
        return flops(lambda: objective(student, batch).backward())

    def measure(self, student: TrajectoryStudent) -> dict[str, Any]:
        with torch.no_grad():
            h = torch.cat([student(initial_state(student.schedule, z)) for z in self.noises.split(512)])
        x = student.states(self.noises, h) if student.target == "state" else h
        index = [self.times.index(t) for t in student.times.tolist()]
        error = (x - self.fine[student.target][:, index]).square().flatten(2).mean(-1).sqrt().mean(0)
        sample, fine = h[:, -1].clamp(-1, 1), self.fine["x0"][:, -1].clamp(-1, 1)
        return {
            "frechet": frechet_distance(extract(self.features, sample), self.real),
            "path_error": float((sample - fine).square().flatten(1).mean(1).sqrt().mean()),
            "frame_error": error.tolist(),
        }

    def run(self, name: str, seed: int, budget: float, folder: Path) -> dict[str, Any]:
        """Train and measure one student."""
        run = named(RUNS, name)
        student = self.student(run, seed)
        per_step = self.step_flops(run)
        steps = round(budget * self.unit / per_step)
        config = TrainConfig(
            steps=steps,
            lr=run.lr,
            warmup=100,
            ema=0.999,
            precision=self.precision,
            seed=seed,
            checkpoint_every=10**9,
            log_every=200,
        )
        began = time.perf_counter()
        train(student, self.objective(run, student, seed), config, folder, overwrite=True)
        return {
            **self.measure(student),
            "name": name,
            "seed": seed,
            "budget": budget,
            "run": dataclasses.asdict(run),
            "steps": steps,
            "train_flops": per_step * steps,
            "sample_flops": flops(student.sample, self.noises[:1]),
            "network_images": steps * run.batch * run.frames,
            "teacher_frechet": self.frechet,
            "parameters": sum(p.numel() for p in student.parameters()),
            "seconds": time.perf_counter() - began,
        }


# The report


def collect(runs: Path, budget: float) -> dict[str, list[dict[str, Any]]]:
    """Finished runs by name, seeds in order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in map(read_json, sorted(runs.glob("*.json"))):
        if result["budget"] == budget:
            found.setdefault(result["name"], []).append(result)
    return found


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shared = ("run", "steps", "train_flops", "sample_flops", "network_images", "parameters")
    return {
        "seeds": len(results),
        **{measure: mean_and_spread([r[measure] for r in results]) for measure in MEASURES},
        **{key: results[0][key] for key in shared},
    }


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """Of several seeds the best rival of each control; and each change beside what it changes."""
    table = numbers["table"]

    def ahead(name: str, control: str, measure: str) -> Claim:
        """The control's mean minus the other's, less the standard deviations of both: positive is ahead of them."""
        ours, theirs = table[name][measure], table[control][measure]
        margin = theirs["mean"] - ours["mean"] - ours["spread"] - theirs["spread"]
        by = "by more than both spreads" if min(table[n]["seeds"] for n in (name, control)) > 1 else "with one seed"
        return claim(f"{measure}: {name} ahead of {control} {by}", margin, 0.0, ">=")

    several = [name for name, s in table.items() if s["seeds"] > 1]
    claims = []
    for control, rivals in RIVALS.items():
        entered = [name for name in rivals if name in several]
        for measure in MEASURES if control in several and entered else ():
            best = min(entered, key=lambda n: table[n][measure]["mean"])
            claims.append(ahead(best, control, measure))
    pairs = [(f"{base}, {change}", base) for base, changes in CHANGES.items() for change in changes]
    pairs = [pair for pair in pairs if {*pair} <= {*table}]
    return claims + [ahead(*pair, measure) for pair in pairs for measure in MEASURES]


def report(arguments: argparse.Namespace, runs: Path, size: Size, budget: float) -> None:
    """Write the table, the claims and the plot from the runs that are there."""
    found = collect(runs, budget)
    table = {name: summary(results) for name, results in found.items()}
    for name, s in sorted(table.items(), key=lambda item: item[1]["frechet"]["mean"]):
        print(
            f"{name:44s} {s['run']['trajectories']:6d} FD {s['frechet']['mean']:5.2f} +- {s['frechet']['spread']:.2f}  "
            f"path {s['path_error']['mean']:.4f} +- {s['path_error']['spread']:.4f}  "
            f"{s['sample_flops'] / 1e6:4.0f} MFLOP a sample, {s['seeds']} seeds"
        )
    teacher = next(iter(found.values()))[0]["teacher_frechet"]
    spent = next(iter(table.values()))["train_flops"] / 1e12
    write(
        arguments,
        arguments.name,
        f"equal training FLOPs ({spent:.2f} TFLOP a run); {size.count:,} held-out noises; Frechet distance in "
        "digits_cnn features against the 1,797 images; path error: mean RMSE of the sample to the teacher's fine "
        "solution; spread: standard deviation over seeds; bf16 training on one thread",
        judged({"table": table}),
        teacher_frechet=teacher,
        table=table,
    )
    picture(table, teacher, arguments)


def picture(table: Mapping[str, Mapping[str, Any]], teacher: float, arguments: argparse.Namespace) -> None:
    counts = sorted({s["run"]["trajectories"] for s in table.values()})
    figure, axes = pyplot().subplots(
        1, len(counts), figsize=(7 * len(counts), 4.2), layout="constrained", squeeze=False
    )
    markers = itertools.cycle("osD^vP*X<>h")
    for axis, count in zip(axes[0], counts, strict=True):
        axis.axhline(teacher, color="0.5", linestyle="--", linewidth=1)
        axis.text(0.99, teacher, "teacher ", color="0.4", ha="right", va="bottom", transform=axis.get_yaxis_transform())
        for student, s in sorted(table.items(), key=lambda item: item[1]["frechet"]["mean"]):
            if s["run"]["trajectories"] != count:
                continue
            colour = "tab:blue" if s["run"]["frames"] == 1 else "0.6" if s["run"]["where"] == "none" else "tab:red"
            x, y = s["path_error"], s["frechet"]
            look = {"fmt": next(markers), "color": colour, "capsize": 2, "label": student}
            axis.errorbar(x["mean"], y["mean"], y["spread"], x["spread"], **look)
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        axis.set(title=f"{count:,} trajectories", xlabel="path error", ylabel="Fréchet distance (digits_cnn)")
        tidy(axis)
    save(figure, arguments, f"{arguments.name}.png", 150)


def options() -> argparse.ArgumentParser:
    made = parser(__file__, __doc__)
    made.add_argument("--source", type=Path, help="folder of `dsno reproduce digits`; runs/digits by default")
    made.add_argument("--runs", type=Path, help="what is trained and measured; runs/benchmark-digits by default")
    made.add_argument("--only", nargs="*", help="the students to train, all by default")
    made.add_argument("--seeds", type=int, nargs="*")
    made.add_argument("--budget", type=float)
    made.add_argument("--report", action="store_true", help="write the results of the runs that are there")
    made.add_argument("--name", default="digits", help="of the file of results")
    made.add_argument("--precision", default="bf16")
    return made


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    torch.set_num_threads(1)
    size = QUICK if arguments.quick else Size()
    runs, budget = runs_of(arguments, "runs/benchmark-digits"), arguments.budget or size.budget
    if not arguments.report:
        source = arguments.source or (shipped() if arguments.quick else Path("runs/digits"))
        bench = Bench(source, runs, size, arguments.precision)
        for seed in arguments.seeds or size.seeds:
            for name in arguments.only or size.only:
                path = runs / f"{name.replace(' ', '_').replace(',', '')}-{seed}-{budget:g}.json"
                if path.is_file():
                    continue
                result = kept(path, lambda: bench.run(name, seed, budget, runs / f"training-{path.stem}"))  # noqa: B023
                print(
                    f"{name:40s} seed {seed} steps {result['steps']:5d} FD {result['frechet']:6.2f} path "
                    f"{result['path_error']:.4f} sample {result['sample_flops'] / 1e6:.0f} MFLOP "
                    f"{result['seconds']:.0f} s",
                    flush=True,
                )
    if arguments.report or arguments.quick:
        report(arguments, runs, size, budget)


if __name__ == "__main__":
    main()
