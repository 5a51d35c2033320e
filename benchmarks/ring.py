"""Flow map losses against an exact flow: one to eight passes on a ring of eight modes.

    python benchmarks/ring.py [--quick]

The teacher is a two-dimensional Gaussian mixture in closed form, on straight paths, so the reference is its probability-flow
ODE itself. Every method trains the same small perceptron from scratch for the same number of steps, on one thread, and is
measured by the root mean square distance of its samples to the exact ones from the same noise, beside Euler steps of the
exact velocity. Three of the losses then train on other paths, in the same number of steps. Writes benchmarks/results/ring.json.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path

import torch
from _common import claim, write
from torch import Tensor, nn

from dsno.distillation.flowmaps import direct, eulerian, lagrangian, meanflow, progressive_map, shortcut
from dsno.distillation.stages import Given
from dsno.grids import even, quadratic, uniform
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule, VPLinear
from dsno.seeds import noise, seed_range
from dsno.solvers.multistep import DPMSolverPP
from dsno.solvers.run import SolverSampler
from dsno.students.flowmap import FlowMap
from dsno.students.samplers import passes_of
from dsno.teachers.closed import GaussianMixture
from dsno.train import TrainConfig, train

METHODS = {
    "lagrangian": lagrangian, "eulerian": eulerian, "meanflow": meanflow, "shortcut": shortcut,
    "progressive-map": progressive_map, "direct": direct, "eulerian, forward": eulerian, "meanflow, forward": meanflow,
}  # fmt: skip
PASSES, SEEDS, STEPS, BATCH, LR = (1, 2, 4, 8), (0, 1, 2), 1500, 256, 3e-3
HELD_OUT, COUNT = 10_000_000, 4096
STRAIGHT = RectifiedFlow()
PATHS: dict[str, Schedule] = {"Cosine": Cosine(), "VPLinear": VPLinear(), "VE": VE(80.0)}
ON_PATHS = ("lagrangian", "eulerian", "meanflow")


class Perceptron(nn.Module):
    """Three hidden layers on the state and waves of the phases of both times."""

    def __init__(self, schedule: Schedule, width: int = 64) -> None:
        super().__init__()
        self.schedule = schedule
        self.layers = nn.Sequential(
            nn.Linear(14, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, 2),
        )  # fmt: skip
        self.register_buffer("frequencies", math.pi * torch.tensor([0.5, 1.0, 2.0]))

    def forward(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        phases = self.schedule.phase(torch.stack([t, s], 1))
        angles = (phases[..., None] * self.frequencies).flatten(1)
        return self.layers(torch.cat([x, angles.sin(), angles.cos()], 1))


def ring(schedule: Schedule = STRAIGHT) -> GaussianMixture:
    angle = torch.arange(8) * math.pi / 4
    return GaussianMixture(schedule, 2 * torch.stack([angle.cos(), angle.sin()], 1), 0.3)


def error(samples: Tensor, exact: Tensor) -> float:
    return float((samples - exact).square().sum(1).mean().sqrt())


def solution(schedule: Schedule, z: Tensor, steps: int = 400) -> Tensor:
    grid = quadratic(steps) if schedule == STRAIGHT else even(schedule, steps)
    return SolverSampler(ring(schedule), schedule, grid, DPMSolverPP(3))(z.double()).sample.float()


def trained(method: str, seed: int, steps: int, schedule: Schedule = STRAIGHT) -> tuple[FlowMap, float]:
    """A map, and the seconds of processor time it took."""
    torch.manual_seed(seed)
    teacher = ring(schedule)
    # The scaled input of EDM's suits any noise level.
    student = FlowMap(Perceptron(schedule), schedule, "flow" if schedule == STRAIGHT else "edm")
    x = teacher.sample(50_000, torch.Generator().manual_seed(seed))
    derivative = "forward" if method.endswith("forward") else None
    given = Given(teacher, schedule, steps, BATCH, seed, x, derivative=derivative)
    began = time.process_time()
    for stage in METHODS[method](student, given):
        model, objective = stage.make(student)
        config = TrainConfig(
            steps=stage.steps, lr=LR, warmup=min(50, stage.steps // 10), ema=0.99, seed=seed, checkpoint_every=10**9,
            log_every=10**9,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            train(model, objective, config, Path(folder) / "run")
    return student.eval(), time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a fifth of the steps, nothing written")
    parser.add_argument(
        "--only", nargs="*", choices=METHODS, default=list(METHODS), help="these alone; nothing written"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds, steps = (SEEDS[:1], STEPS // 5) if arguments.quick else (SEEDS, STEPS)

    z = noise(seed_range(HELD_OUT, COUNT), (2,))
    exact, finer = solution(STRAIGHT, z), solution(STRAIGHT, z, 800)
    euler = {k: error(SolverSampler(ring(), STRAIGHT, uniform(k))(z).sample, exact) for k in PASSES}
    print(f"{'reference':<16} off by {error(exact, finer):.1e}")
    print(f"{'Euler':<16}", *(f"{e:.3f}" for e in euler.values()), flush=True)
    found: dict[str, dict[str, object]] = {}
    for method in arguments.only:
        errors: dict[int, list[float]] = {k: [] for k in PASSES}
        seconds = []
        for seed in seeds:
            student, took = trained(method, seed, steps)
            seconds.append(took)
            for k in PASSES:
                errors[k].append(error(passes_of(student, k)(z).sample, exact))
        found[method] = {"rmse": {str(k): e for k, e in errors.items()}, "seconds": seconds}
        means = (f"{statistics.mean(errors[k]):.3f}" for k in PASSES)
        print(f"{method:<16}", *means, f"  {statistics.mean(seconds):.0f} s", flush=True)
    paths: dict[str, dict[str, dict[str, float]]] = {}
    references = {"RectifiedFlow": error(exact, finer)}
    for path, schedule in PATHS.items():
        reference, paths[path] = solution(schedule, z), {}
        references[path] = error(reference, solution(schedule, z, 800))
        for method in [m for m in ON_PATHS if m in arguments.only]:
            student, _ = trained(method, 0, steps, schedule)
            paths[path][method] = {str(k): error(passes_of(student, k)(z).sample, reference) for k in PASSES}
            print(f"{path:<9}{method:<12}", *(f"{e:.3f}" for e in paths[path][method].values()), flush=True)
    if arguments.quick or set(arguments.only) != set(METHODS):
        return

    def one(method: str) -> float:
        return max(found[method]["rmse"]["1"])  # type: ignore[index]

    write(
        "ring",
        "eight Gaussians of standard deviation 0.3 on a circle of radius 2, straight paths; a perceptron of three layers of 64 "
        f"trained from scratch, {STEPS} steps of {BATCH} rows with Adam at {LR:g} (cosine), the average of the weights; root "
        f"mean square distance to the exact flow over {COUNT} held-out noises, one thread; claims are of the worst of "
        f"{len(SEEDS)} seeds. Other paths: one seed, the network's input and output scaled as EDM's, the reference of each path "
        "by 400 steps of DPM-Solver++ 3 on its even grid",
        [
            claim("one pass of lagrangian, worst seed", one("lagrangian"), 0.32, "<="),
            claim("one pass of eulerian, worst seed", one("eulerian"), 0.32, "<="),
            *(
                claim(f"Euler with {k} steps, off {trial:g} by the share", abs(euler[k] / trial - 1), 0.05, "<=")
                for k, trial in ((1, 2.02), (2, 0.72), (4, 0.21))
            ),
            *(
                claim(
                    f"one pass of {method} under {path}, over the same under Cosine",
                    paths[path][method]["1"] / paths["Cosine"][method]["1"],
                    1.25,
                    "<=",
                )
                for method in ON_PATHS
                for path in ("VPLinear", "VE")
            ),
            claim("slowest run, seconds of processor time", max(max(f["seconds"]) for f in found.values()), 60, "<="),  # type: ignore[call-overload]
        ],
        euler={str(k): e for k, e in euler.items()},
        methods=found,
        paths=paths,
        reference_error=references,
    )


if __name__ == "__main__":
    main()
