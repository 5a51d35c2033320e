"""DSNO against knowledge distillation on digits, at equal training FLOPs and at equal sampling FLOPs.

    python benchmarks/digits.py --runs runs/digits [--only NAME ...] [--seeds 0 1 2] [--budget 1.0]

Every student starts from the same teacher, sees the same trajectories and spends the same training FLOPs: the number of
steps is the budget divided by the measured FLOPs of one step (forward, backward and the whole batch). Each run is
kept as a JSON file under --runs, so the benchmark continues where it was stopped; when all runs are there, the table
goes to benchmarks/results/digits.json. One budget is what knowledge distillation spends on 2,000 batches of 64.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import time
from pathlib import Path

import torch
from _common import claim, named, write
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dsno import grids
from dsno.checkpoint import read_tensors, write_tensors
from dsno.data.load import load_data
from dsno.distillation.distances import distance
from dsno.distillation.regression import TrajectoryDistillation
from dsno.measure.features import extract
from dsno.measure.metrics import frechet_distance
from dsno.nets.features import load_feature_net
from dsno.seeds import noise, seed_range
from dsno.solvers.fine import fine_solution
from dsno.solvers.multistep import UniPC
from dsno.solvers.run import initial_state
from dsno.students.operator import TrajectoryStudent, student_from_teacher
from dsno.teachers.load import load_teacher
from dsno.train import TrainConfig, train
from dsno.trajectories.generate import generate
from dsno.trajectories.sets import TrajectorySet

HELD_OUT = 10_000_000
COUNT = 2048


@dataclasses.dataclass(frozen=True)
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


RUNS: dict[str, Run] = {
    # One frame, told the noise's time: knowledge distillation, plain and with more FLOPs.
    "kd": Run(frames=1, where="none"),
    "kd, 48 MFLOP": Run(frames=1, where="none", extra=2),
    "kd, 158 MFLOP": Run(frames=1, where="none", extra=6, extra_where="low"),
    # The published operator: a layer in every block, every frame told its own time, weights clamped at 1e4.
    "paper M=2": Run(frames=2, where="every", once=False, told="output", weights="snr", batch=32),
    "paper M=4": Run(frames=4, where="every", once=False, told="output", weights="snr", batch=16),
    "paper M=8": Run(frames=8, where="every", once=False, told="output", weights="snr", batch=8),
    "no temporal M=4": Run(frames=4, where="none", once=False, told="output", weights="snr", batch=16),
    # Frames only where they are cheap, told the input's time.
    "mid M=2": Run(frames=2),
    "mid M=4": Run(frames=4),
    "mid M=8": Run(frames=8),
    "low M=4": Run(frames=4, where="low", batch=32),
    # One change at a time from the published operator.
    "paper M=4, snr5": Run(frames=4, where="every", once=False, told="output", weights="snr5", batch=16),
    "paper M=4, uniform": Run(frames=4, where="every", once=False, told="output", weights="uniform", batch=16),
    "paper M=4, last": Run(frames=4, where="every", once=False, told="output", weights="last", batch=16),
    "paper M=4, state": Run(frames=4, where="every", once=False, told="output", weights="snr", target="state", batch=16),
    "paper M=4, told input": Run(frames=4, where="every", once=False, weights="snr", batch=16),
    "paper M=4, leaky uniform init": Run(
        frames=4, where="every", once=False, told="output", weights="snr", batch=16, activation="leaky_relu",
        init="uniform",
    ),
    "paper M=4, leaky zero init": Run(
        frames=4, where="every", once=False, told="output", weights="snr", batch=16, activation="leaky_relu",
    ),
    "paper M=4, normal init": Run(
        frames=4, where="every", once=False, told="output", weights="snr", batch=16, init="normal"
    ),
    # One change at a time from the cheap operator.
    "mid M=4, snr100": Run(frames=4, weights="snr100"),
    "mid M=4, snr100, others 0.25": Run(frames=4, weights="snr100", others=0.25),
    "mid M=4, l2": Run(frames=4, distance="l2"),
    "mid M=4, huber": Run(frames=4, distance="huber"),
    "mid M=4, l1+perceptual": Run(frames=4, distance="l1+perceptual"),
}  # fmt: skip


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


def times_of(run: Run) -> Tensor:
    return grids.quadratic(run.frames)[1:]


def make_student(run: Run, teacher: object, seed: int) -> TrajectoryStudent:
    torch.manual_seed(seed)
    student = student_from_teacher(
        teacher, times_of(run), run.target, run.modes, run.where, run.once, run.activation, run.init, run.told
    )
    if run.extra:
        backbone = student.net.backbone
        low = [b for b in (*backbone.down, *backbone.mid, *backbone.up) if b.out_channels > backbone.emb_in]
        blocks = backbone.mid if run.extra_where == "mid" else low
        for block in blocks:
            block.adapter = Adapter(block.out_channels, run.extra)
            block.register_forward_hook(lambda m, args, h: m.adapter(h))
    return student


def flops_of(fn: object) -> int:
    with FlopCounterMode(display=False) as counter:
        fn()
    return counter.get_total_flops()


def measure(
    student: TrajectoryStudent, fine: dict[str, Tensor], noises: Tensor, extractor: nn.Module, real: Tensor
) -> dict[str, object]:
    with torch.no_grad():
        h = torch.cat([student(initial_state(student.schedule, z)) for z in noises.split(512)])
    x = student.states(noises, h) if student.target == "state" else h
    index = [fine["times"].index(t) for t in student.times.tolist()]
    error = (x - fine[student.target][:, index]).square().flatten(2).mean(-1).sqrt().mean(0)
    sample = h[:, -1].clamp(-1, 1)
    return {
        "frechet": frechet_distance(extract(extractor, sample), real),
        "path_error": float((sample - fine["x0"][:, -1].clamp(-1, 1)).square().flatten(1).mean(1).sqrt().mean()),
        "frame_error": error.tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of `dsno reproduce digits`")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-digits"))
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--budget", type=float, default=1.0)
    parser.add_argument("--report", action="store_true", help="write the table from the runs that are there")
    parser.add_argument("--name", default="digits", help="of the file of results")
    parser.add_argument("--precision", default="bf16")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    if arguments.report:
        aggregate(arguments)
        return

    teacher = load_teacher(arguments.source / "teacher")
    extractor = load_feature_net(arguments.source / "features")
    real = load_data("digits").x
    real_features = extract(extractor, real)
    # Every time and both targets that any student needs, which the recipe's own trajectories do not hold.
    generate(
        teacher, arguments.runs / "trajectories", 20_000, shape=real.shape[1:], times=grids.quadratic(8)[1:],
        targets=("x0", "state"), grid="quadratic", resume=True,
    )  # fmt: skip
    noises = noise(seed_range(HELD_OUT, COUNT), real.shape[1:])
    fine = fine_frames(teacher, noises, arguments.runs / "fine.safetensors")
    baseline = frechet_distance(extract(extractor, fine["x0"][:, -1].clamp(-1, 1)), real_features)
    print(f"teacher's fine solution: {baseline:.2f}", flush=True)

    unit = None
    for seed in arguments.seeds:
        for name in arguments.only or RUNS:
            run = named(RUNS, name)
            path = arguments.runs / f"{name.replace(' ', '_').replace(',', '')}-{seed}-{arguments.budget:g}.json"
            if path.is_file():
                continue
            if unit is None:
                unit = 2000 * step_flops(RUNS["kd"], teacher, arguments)
            student = make_student(run, teacher, seed)
            per_step = step_flops(run, teacher, arguments)
            steps = round(arguments.budget * unit / per_step)
            objective = objective_of(run, student, arguments, seed)
            config = TrainConfig(
                steps=steps, lr=run.lr, warmup=100, ema=0.999, precision=arguments.precision, seed=seed,
                checkpoint_every=10**9, log_every=200,
            )  # fmt: skip
            began = time.perf_counter()
            train(student, objective, config, arguments.runs / f"training-{path.stem}", overwrite=True)
            result = measure(student, fine, noises, extractor, real_features)
            z = noises[:1]
            result |= {
                "name": name, "seed": seed, "budget": arguments.budget, "run": dataclasses.asdict(run), "steps": steps,
                "train_flops": per_step * steps, "sample_flops": flops_of(lambda s=student, z=z: s.sample(z)),
                "network_images": steps * run.batch * run.frames, "teacher_frechet": baseline,
                "parameters": sum(p.numel() for p in student.parameters()), "seconds": time.perf_counter() - began,
            }  # fmt: skip
            path.write_text(json.dumps(result, indent=1))
            print(
                f"{name:40s} seed {seed} steps {steps:5d} FD {result['frechet']:6.2f} path {result['path_error']:.4f} "
                f"sample {result['sample_flops'] / 1e6:.0f} MFLOP {result['seconds']:.0f} s",
                flush=True,
            )


def objective_of(
    run: Run, student: TrajectoryStudent, arguments: argparse.Namespace, seed: int
) -> TrajectoryDistillation:
    data = TrajectorySet(arguments.runs / "trajectories", times_of(run)).head(run.trajectories)
    maps = load_feature_net(arguments.source / "loss_features").requires_grad_(False).maps
    d = distance(run.distance, maps)
    return TrajectoryDistillation(data, student, run.weights, d, run.batch, seed, run.others, run.inner_starts)


def step_flops(run: Run, teacher: object, arguments: argparse.Namespace) -> int:
    student = make_student(run, teacher, 0)
    objective = objective_of(run, student, arguments, 0)
    batch = next(objective.batches(0))
    return flops_of(lambda: objective(student, batch).backward())


def fine_frames(teacher: object, noises: Tensor, path: Path) -> dict[str, object]:
    """The teacher's fine solution at every time any student has, kept in a file."""
    times = sorted({t for run in RUNS.values() for t in times_of(run).tolist()}, reverse=True)
    if not path.is_file():
        solved = fine_solution(
            teacher, teacher.schedule, noises, 64, keep=[1.0, *times], step=UniPC(3), keep_x0=True, batch=128
        )
        write_tensors(path, {"x0": solved.x0[:, 1:], "state": solved.x[:, 1:], "times": torch.tensor(times)})
    held = read_tensors(path)
    if held["times"].tolist() != torch.tensor(times).tolist():
        raise ValueError(f"{path} holds other times than the runs need: delete it")
    return {**held, "times": times}


def collect(runs: Path, budget: float) -> dict[str, list[dict[str, object]]]:
    """Finished runs by name, seeds in order."""
    found: dict[str, list[dict[str, object]]] = {}
    for path in sorted(runs.glob("*.json")):
        result = json.loads(path.read_text())
        if result["budget"] == budget:
            found.setdefault(result["name"], []).append(result)
    return found


def summary(results: list[dict[str, object]]) -> dict[str, object]:
    def stat(key: str) -> dict[str, float]:
        values = [r[key] for r in results]
        return {"mean": statistics.mean(values), "spread": statistics.stdev(values) if len(values) > 1 else 0.0}

    first = results[0]
    shared = {k: first[k] for k in ("run", "steps", "train_flops", "sample_flops", "network_images", "parameters")}
    return {"seeds": len(results), "frechet": stat("frechet"), "path_error": stat("path_error"), **shared}


def aggregate(arguments: argparse.Namespace) -> None:
    """Write the table, the claims and the plot from the runs that are there."""
    found = collect(arguments.runs, arguments.budget)
    table = {name: summary(results) for name, results in found.items()}
    claims = [
        claim_ahead(table, control, rivals, key)
        for control, rivals in (
            # Equal training FLOPs, and at most the control's sampling FLOPs for the wide ones.
            ("kd", ("mid M=2", "mid M=4", "mid M=8", "low M=4", "paper M=2", "paper M=4", "paper M=8")),
            ("kd, 48 MFLOP", ("mid M=2", "mid M=4")),
            ("kd, 158 MFLOP", ("paper M=4",)),
            ("no temporal M=4", ("paper M=4",)),
        )
        for key in ("frechet", "path_error")
        if table.get(control, {}).get("seeds", 0) > 1
    ]
    for name, s in sorted(table.items(), key=lambda item: item[1]["frechet"]["mean"]):
        print(
            f"{name:44s} {s['run']['trajectories']:6d} FD {s['frechet']['mean']:5.2f} +- {s['frechet']['spread']:.2f}  "
            f"path {s['path_error']['mean']:.4f} +- {s['path_error']['spread']:.4f}  "
            f"{s['sample_flops'] / 1e6:4.0f} MFLOP a sample, {s['seeds']} seeds"
        )
    teacher = next(iter(found.values()))[0]["teacher_frechet"]
    write(
        arguments.name,
        f"equal training FLOPs ({next(iter(table.values()))['train_flops'] / 1e12:.2f} TFLOP a run); 2,048 held-out noises; "
        "Frechet distance in digits_cnn features against the 1,797 images; path error: mean RMSE of the sample to the "
        "teacher's fine solution; spread: standard deviation over seeds; bf16 training on one thread",
        claims, teacher_frechet=teacher, table=table,
    )  # fmt: skip
    picture(table, teacher, arguments.name)


def claim_ahead(
    table: dict[str, dict[str, object]], control: str, rivals: tuple[str, ...], key: str
) -> dict[str, object]:
    """The control's mean minus the best rival's, less the standard deviations of both: positive is ahead of them."""
    name = min((n for n in rivals if table.get(n, {}).get("seeds", 0) > 1), key=lambda n: table[n][key]["mean"])
    ours, theirs = table[name][key], table[control][key]
    margin = theirs["mean"] - ours["mean"] - ours["spread"] - theirs["spread"]
    return claim(f"{key}: {name} ahead of {control} by more than both spreads", margin, 0.0, ">=")


def picture(table: dict[str, dict[str, object]], teacher: float, name: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = sorted({s["run"]["trajectories"] for s in table.values()})
    figure, axes = plt.subplots(1, len(counts), figsize=(7 * len(counts), 4.2), layout="constrained", squeeze=False)
    markers = itertools.cycle("osD^vP*X<>h")
    for axis, count in zip(axes[0], counts, strict=True):
        axis.axhline(teacher, color="0.5", linestyle="--", linewidth=1)
        axis.text(0.99, teacher, "teacher ", color="0.4", ha="right", va="bottom", transform=axis.get_yaxis_transform())
        for student, s in sorted(table.items(), key=lambda item: item[1]["frechet"]["mean"]):
            if s["run"]["trajectories"] != count:
                continue
            colour = "tab:blue" if s["run"]["frames"] == 1 else "0.6" if s["run"]["where"] == "none" else "tab:red"
            axis.errorbar(
                s["path_error"]["mean"], s["frechet"]["mean"], s["frechet"]["spread"], s["path_error"]["spread"],
                fmt=next(markers), color=colour, capsize=2, label=student,
            )  # fmt: skip
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        axis.set(title=f"{count:,} trajectories", xlabel="path error", ylabel="Fréchet distance (digits_cnn)")
        axis.grid(True, alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    images = Path(__file__).parents[1] / "docs/images"
    images.mkdir(parents=True, exist_ok=True)
    figure.savefig(images / f"{name}.png", dpi=150)


if __name__ == "__main__":
    main()
