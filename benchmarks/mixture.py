"""Path error of a one-pass student against the exact flow, as trajectories and parameters grow.

    python benchmarks/mixture.py [--quick]

The teacher is a two-dimensional Gaussian mixture in closed form, so the reference is the probability-flow ODE itself
(third order, 400 steps, error below 1e-6) and nothing is learned but the operator. Students are residual multilayer
perceptrons lifted to M = 4 frames. Writes benchmarks/results/mixture.json and docs/images/mixture.png.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import torch
from _common import claim, write
from torch import Tensor, nn

from dsno import Cosine, DPMSolverPP, GaussianMixture, SolverSampler, grids, lift
from dsno.distillation.regression import TrajectoryDistillation
from dsno.nets.unet import time_embedding
from dsno.seeds import noise, seed_range
from dsno.students.operator import TrajectoryStudent
from dsno.train import TrainConfig, train
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectories.store import store

TIMES = grids.quadratic(4)[1:]
KEEP = torch.cat([torch.ones(1, dtype=torch.float64), TIMES])


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


def teacher() -> GaussianMixture:
    angle = 2 * math.pi * torch.arange(8) / 8
    return GaussianMixture(Cosine(), torch.stack([angle.cos(), angle.sin()], 1), 0.15)


def student_error(data: Path, width: int, count: int, steps: int, seed: int, target: str) -> tuple[float, int]:
    """Root mean square distance of the student's sample to the exact flow's, on held-out noise; and its parameters."""
    torch.manual_seed(seed)
    net = lift(Perceptron(width), (torch.zeros(1, 2), torch.zeros(1)), (Residual,), 4, where="every")
    student = TrajectoryStudent(net, Cosine(), TIMES, target, "x0")
    objective = TrajectoryDistillation(TrajectorySet(data).head(count), student, "uniform", "l2", min(256, count), seed)
    config = TrainConfig(steps=steps, lr=2e-3, warmup=50, checkpoint_every=10**9, log_every=10**9, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        train(student, objective, config, Path(folder) / "run")
    z = noise(seed_range(10_000_000, 4096), (2,))
    exact = SolverSampler(teacher(), Cosine(), grids.through(grids.uniform(400), TIMES), DPMSolverPP(3))(z).sample
    error = (student.sample(z) - exact).square().sum(-1).mean().sqrt()
    return float(error), sum(p.numel() for p in student.parameters())


def slope(x: list[float], y: list[float]) -> float:
    a, b = torch.tensor(x).log(), torch.tensor(y).log()
    return float(((a - a.mean()) * (b - b.mean())).sum() / (a - a.mean()).square().sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, nothing written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps = 200 if arguments.quick else 1500
    counts, widths = [16, 64, 256, 1024], [4, 8, 16, 32, 64]
    by_count: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        sampler = SolverSampler(teacher(), Cosine(), grids.through(grids.uniform(100), TIMES), DPMSolverPP(3), KEEP)
        store(sampler, (2,), data, max(counts), targets=("x0", "state"), dtype=torch.float32, batch=1024)
        for target in ("x0", "state"):
            by_count[target] = [student_error(data, 64, n, steps, 0, target)[0] for n in counts]
            print(target, dict(zip(counts, by_count[target], strict=True)), flush=True)
        grown = [student_error(data, w, max(counts), steps, 0, "x0") for w in widths]
        print("parameters", [(p, e) for e, p in grown], flush=True)
    errors, parameters = [e for e, _ in grown], [p for _, p in grown]
    slopes = {
        "trajectories, x0 target": slope(counts, by_count["x0"]),
        "trajectories, state target": slope(counts, by_count["state"]),
        "parameters": slope(parameters, errors),
    }
    print(slopes)
    if arguments.quick:
        return
    picture(counts, by_count, parameters, errors, slopes)
    write(
        "mixture",
        f"8-component mixture, cosine schedule, M = 4 quadratic frames, {steps} steps of at most 256, 4096 held-out noises",
        [claim(f"slope of log path error in log {name}", value, 0.0, "<=") for name, value in slopes.items()],
        trajectories=dict(zip(map(str, counts), by_count["x0"], strict=True)),
        trajectories_state=dict(zip(map(str, counts), by_count["state"], strict=True)),
        parameters=dict(zip(map(str, parameters), errors, strict=True)),
    )


def picture(
    counts: list[int],
    by_count: dict[str, list[float]],
    parameters: list[int],
    errors: list[float],
    slopes: dict[str, float],
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
    for target, marker in (("x0", "o"), ("state", "s")):
        label = f"{target} target, slope {slopes[f'trajectories, {target} target']:.2f}"
        left.loglog(counts, by_count[target], marker=marker, label=label)
    right.loglog(parameters, errors, "o-", color="tab:green", label=f"slope {slopes['parameters']:.2f}")
    left.set(xlabel="trajectories", ylabel="path error against the exact flow")
    right.set(xlabel="parameters")
    for axis in (left, right):
        axis.grid(True, which="both", alpha=0.25)
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    images = Path(__file__).parents[1] / "docs/images"
    images.mkdir(parents=True, exist_ok=True)
    figure.savefig(images / "mixture.png", dpi=150)


if __name__ == "__main__":
    main()
