"""Path error of a one-pass student against the exact flow, as trajectories and parameters grow.

    python benchmarks/mixture.py

Claim: the error falls as trajectories and parameters grow; a slope above 0 refutes it. The teacher is a two-dimensional
Gaussian mixture in closed form, so the reference is the probability-flow ODE itself (third order, 400 steps, error
below 1e-6) and nothing is learned but the operator. Students are residual multilayer perceptrons lifted to M = 4
frames. Writes benchmarks/results/mixture.json and docs/images/mixture.png.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _common import HELD_OUT, Claim, claim, eight_modes, fit, parse, parser, pyplot, save, tidy, write
from torch import Tensor, nn

from dsno import Cosine, DPMSolverPP, SolverSampler, grids, lift
from dsno.distillation.regression import TrajectoryDistillation
from dsno.nets.unet import time_embedding
from dsno.seeds import noise, seed_range
from dsno.students.operator import TrajectoryStudent
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectories.store import store

TIMES = grids.quadratic(4)[1:]
KEEP = torch.cat([torch.ones(1, dtype=torch.float64), TIMES])
TEACHER = eight_modes(Cosine(), 1, 0.15)
TARGETS = {"x0": "trajectories", "state": "trajectories_state"}
"""What a student learns, and the name of its errors by the number of trajectories."""


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    steps: int = 1500
    counts: tuple[int, ...] = (16, 64, 256, 1024)
    """Of trajectories, learned by the widest student."""
    widths: tuple[int, ...] = (4, 8, 16, 32, 64)
    """Of students that learn all of them."""
    noises: int = 4096
    """Held out."""


QUICK = Size(4, (8, 16), (4, 8), 64)


class Residual(nn.Module):
    """A residual block on vectors, told the time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_channels = width
        self.norm, self.emb = nn.LayerNorm(width), nn.Linear(32, width)
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        return h + self.second(nn.functional.silu(self.first(self.norm(h) + self.emb(emb))))


class Perceptron(nn.Module):
    """Three residual blocks between two linear maps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(2, width), nn.Linear(width, 2)
        self.blocks = nn.ModuleList(Residual(width) for _ in range(3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h, emb = self.stem(x), time_embedding(t, 32).to(x.dtype)
        for block in self.blocks:
            h = block(h, emb)
        return self.head(h)


def student_error(data: TrajectorySet, width: int, count: int, size: Size, target: str) -> tuple[float, int]:
    """Root mean square distance of the student's sample to the exact flow's, on held-out noise; and its parameters."""
    torch.manual_seed(0)
    net = lift(Perceptron(width), (torch.zeros(1, 2), torch.zeros(1)), (Residual,), 4, where="every")
    student = TrajectoryStudent(net, Cosine(), TIMES, target, "x0")
    objective = TrajectoryDistillation(data.head(count), student, "uniform", "l2", min(256, count), 0)
    fit(student, objective, steps=size.steps, lr=2e-3, warmup=50, seed=0)
    z = noise(seed_range(HELD_OUT, size.noises), (2,))
    exact = SolverSampler(TEACHER, Cosine(), grids.through(grids.uniform(400), TIMES), DPMSolverPP(3))(z).sample
    error = (student.sample(z) - exact).square().sum(-1).mean().sqrt()
    return float(error), sum(p.numel() for p in student.parameters())


def slope(errors: Mapping[str, float]) -> float:
    """Of the logarithm of errors in that of what they are named by, by least squares."""
    a, b = torch.tensor([*map(float, errors)]).log(), torch.tensor([*errors.values()]).log()
    return float(((a - a.mean()) * (b - b.mean())).sum() / (a - a.mean()).square().sum())


def slopes(numbers: Mapping[str, Any]) -> dict[str, float]:
    by_count = {f"trajectories, {target} target": slope(numbers[name]) for target, name in TARGETS.items()}
    return {**by_count, "parameters": slope(numbers["parameters"])}


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """No error grows."""
    return [claim(f"slope of log path error in log {name}", s, 0.0, "<=") for name, s in slopes(numbers).items()]


def options() -> argparse.ArgumentParser:
    return parser(__file__, __doc__)


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    torch.set_num_threads(1)
    size = QUICK if arguments.quick else Size()
    most, numbers = max(size.counts), {}
    with tempfile.TemporaryDirectory() as folder:
        grid = grids.through(grids.uniform(100), TIMES)
        sampler = SolverSampler(TEACHER, Cosine(), grid, DPMSolverPP(3), KEEP)
        data = store(sampler, (2,), Path(folder), most, targets=("x0", "state"), dtype=torch.float32, batch=1024)
        for target, name in TARGETS.items():
            numbers[name] = {str(n): student_error(data, max(size.widths), n, size, target)[0] for n in size.counts}
            print(target, numbers[name], flush=True)
        grown = [student_error(data, width, most, size, "x0") for width in size.widths]
        numbers["parameters"] = {str(parameters): error for error, parameters in grown}
        print("parameters", numbers["parameters"], flush=True)
    picture(numbers, arguments)
    write(
        arguments,
        "mixture",
        f"8-component mixture, cosine schedule, M = 4 quadratic frames, {size.steps} steps of at most 256, "
        f"{size.noises} held-out noises",
        judged(numbers),
        **numbers,
    )


def picture(numbers: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
    found = slopes(numbers)

    def line(axis: Any, errors: Mapping[str, float], **look: Any) -> None:
        axis.loglog([*map(float, errors)], [*errors.values()], **look)

    for (target, name), marker in zip(TARGETS.items(), "os", strict=True):
        label = f"{target} target, slope {found[f'trajectories, {target} target']:.2f}"
        line(left, numbers[name], marker=marker, label=label)
    line(right, numbers["parameters"], marker="o", color="tab:green", label=f"slope {found['parameters']:.2f}")
    left.set(xlabel="trajectories", ylabel="path error against the exact flow")
    right.set(xlabel="parameters")
    for axis in (left, right):
        tidy(axis, "both")
        axis.legend(frameon=False)
    save(figure, arguments, "mixture.png", 150)


if __name__ == "__main__":
    main()
