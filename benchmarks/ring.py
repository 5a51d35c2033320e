"""Flow map losses against an exact flow: one to eight passes on a ring of eight modes.

    python benchmarks/ring.py [--only lagrangian ...]

Claim: one pass of a Lagrangian or Eulerian map is within 0.32 of the exact flow, and no schedule is worse for a loss
than the cosine by more than a quarter; a single seed beyond that refutes it. The teacher is a two-dimensional Gaussian
mixture in closed form, under the schedule of straight paths, so the reference is its probability-flow ODE itself. Every
method trains the same small perceptron from scratch for the same number of steps, on one thread, and is measured by the
root mean square distance of its samples to the exact ones from the same noise, beside Euler steps of the exact
velocity. Three of the losses then train under other schedules, in the same number of steps. Writes
benchmarks/results/ring.json; with --only nothing.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from _common import HELD_OUT, Claim, claim, eight_modes, fit, parse, parser, write
from torch import Tensor, nn

from dsno.distillation.registry import METHODS
from dsno.distillation.stages import Given
from dsno.grids import even, quadratic, uniform
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule, VPLinear
from dsno.seeds import noise, seed_range
from dsno.solvers.multistep import DPMSolverPP
from dsno.solvers.run import SolverSampler
from dsno.students.flowmap import FlowMap
from dsno.students.samplers import passes_of
from dsno.teachers.closed import GaussianMixture

LOSSES: dict[str, dict[str, Any]] = {
    "lagrangian": {},
    "eulerian": {},
    "meanflow": {},
    "shortcut": {},
    "progressive-map": {},
    "direct": {},
    "eulerian, forward": {"derivative": "forward"},
    "meanflow, forward": {"derivative": "forward"},
}
"""Methods, and their options where they are not the method's own."""
PASSES, LR = (1, 2, 4, 8), 3e-3
STRAIGHT = RectifiedFlow()
SCHEDULES: dict[str, Schedule] = {"Cosine": Cosine(), "VPLinear": VPLinear(), "VE": VE(80.0)}
UNDER_SCHEDULES = ("lagrangian", "eulerian", "meanflow")
TRIAL = {"1": 2.02, "2": 0.72, "4": 0.21}
"""Euler's errors in the trial that the bounds are from."""


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 1500
    batch: int = 256
    samples: int = 50_000
    count: int = 4096
    """Held-out noises."""
    solver_steps: int = 400
    """Of the reference, beside one of twice as many."""


QUICK = Size((0,), 5, 16, 512, 64, 40)


class Perceptron(nn.Module):
    """Three hidden layers on the state and waves of the phases of both times."""

    def __init__(self, schedule: Schedule, width: int = 64) -> None:
        super().__init__()
        self.schedule = schedule
        hidden = (
            nn.Linear(14, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
        )
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 2))
        self.register_buffer("frequencies", math.pi * torch.tensor([0.5, 1.0, 2.0]))

    def forward(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        phases = self.schedule.phase(torch.stack([t, s], 1))
        angles = (phases[..., None] * self.frequencies).flatten(1)
        return self.layers(torch.cat([x, angles.sin(), angles.cos()], 1))


def teacher_under(schedule: Schedule) -> GaussianMixture:
    return eight_modes(schedule, 2, 0.3)


def error(samples: Tensor, exact: Tensor) -> float:
    return float((samples - exact).square().sum(1).mean().sqrt())


def solution(schedule: Schedule, z: Tensor, steps: int) -> Tensor:
    grid = quadratic(steps) if schedule == STRAIGHT else even(schedule, steps)
    return SolverSampler(teacher_under(schedule), schedule, grid, DPMSolverPP(3))(z.double()).sample.float()


def trained(loss: str, seed: int, size: Size, schedule: Schedule = STRAIGHT) -> tuple[FlowMap, float]:
    """A map, and the seconds of processor time it took."""
    torch.manual_seed(seed)
    teacher = teacher_under(schedule)
    # The scaled input of EDM's suits any noise level.
    student = FlowMap(Perceptron(schedule), schedule, "flow" if schedule == STRAIGHT else "edm")
    x = teacher.sample(size.samples, torch.Generator().manual_seed(seed))
    method = METHODS[loss.split(",")[0]]
    given = Given(teacher, schedule, size.steps, size.batch, seed, x)
    began = time.process_time()
    for stage in method.stages(student, given, method.configured(**LOSSES[loss])):
        model, objective = stage.make(student)
        fit(model, objective, steps=stage.steps, lr=LR, warmup=min(50, stage.steps // 10), ema=0.99, seed=seed)
        student = stage.became(student)
    return student.eval(), time.process_time() - began


def errors_of(student: FlowMap, z: Tensor, exact: Tensor) -> dict[str, float]:
    return {str(k): error(passes_of(student, k)(z).sample, exact) for k in PASSES}


def losses(methods: Sequence[str], size: Size, z: Tensor, exact: Tensor) -> dict[str, dict[str, Any]]:
    """Errors of each method, of all seeds by the number of passes, and the seconds of each seed."""
    found: dict[str, dict[str, Any]] = {}
    for method in methods:
        runs = [trained(method, seed, size) for seed in size.seeds]
        each = [errors_of(student, z, exact) for student, _ in runs]
        errors, seconds = {str(k): [e[str(k)] for e in each] for k in PASSES}, [took for _, took in runs]
        found[method] = {"rmse": errors, "seconds": seconds}
        means = (f"{statistics.mean(e):.3f}" for e in errors.values())
        print(f"{method:<17}", *means, f"  {statistics.mean(seconds):.0f} s", flush=True)
    return found


def under_schedules(
    methods: Sequence[str], size: Size, z: Tensor
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, float]]:
    """Errors of three of the losses under each schedule, and how far each reference is off."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    off = {}
    for name, schedule in SCHEDULES.items():
        reference, found[name] = solution(schedule, z, size.solver_steps), {}
        off[name] = error(reference, solution(schedule, z, 2 * size.solver_steps))
        for method in [m for m in UNDER_SCHEDULES if m in methods]:
            student, _ = trained(method, 0, size, schedule)
            found[name][method] = errors_of(student, z, reference)
            print(f"{name:<9}{method:<12}", *(f"{e:.3f}" for e in found[name][method].values()), flush=True)
    return found, off


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """One pass beside its bound, the Euler steps beside the trial's, and every schedule beside the cosine's."""
    methods, euler, schedules = numbers["methods"], numbers["euler"], numbers["schedules"]
    return [
        *(
            claim(f"one pass of {name}, worst seed", max(methods[name]["rmse"]["1"]), 0.32, "<=")
            for name in ("lagrangian", "eulerian")
        ),
        *(
            claim(f"Euler with {k} steps, off {trial:g} by the share", abs(euler[k] / trial - 1), 0.05, "<=")
            for k, trial in TRIAL.items()
        ),
        *(
            claim(
                f"one pass of {method} under {name}, over the same under Cosine",
                schedules[name][method]["1"] / schedules["Cosine"][method]["1"],
                1.25,
                "<=",
            )
            for method in UNDER_SCHEDULES
            for name in ("VPLinear", "VE")
        ),
        claim(
            "slowest run, seconds of processor time",
            max(max(method["seconds"]) for method in methods.values()),
            60,
            "<=",
        ),
    ]


def options() -> argparse.ArgumentParser:
    made = parser(__file__, __doc__)
    made.add_argument("--only", nargs="*", choices=LOSSES, help="these alone, and nothing is written")
    return made


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    torch.set_num_threads(1)
    size, only = QUICK if arguments.quick else Size(), arguments.only or list(LOSSES)

    z = noise(seed_range(HELD_OUT, size.count), (2,))
    exact = solution(STRAIGHT, z, size.solver_steps)
    off = {"RectifiedFlow": error(exact, solution(STRAIGHT, z, 2 * size.solver_steps))}
    exact_teacher = teacher_under(STRAIGHT)
    euler = {str(k): error(SolverSampler(exact_teacher, STRAIGHT, uniform(k))(z).sample, exact) for k in PASSES}
    print(f"{'reference':<17} off by {off['RectifiedFlow']:.1e}")
    print(f"{'Euler':<17}", *(f"{e:.3f}" for e in euler.values()), flush=True)
    methods = losses(only, size, z, exact)
    schedules, also_off = under_schedules(only, size, z)
    if arguments.only:
        return
    numbers = {"euler": euler, "methods": methods, "schedules": schedules, "reference_error": off | also_off}
    write(
        arguments,
        "ring",
        "eight Gaussians of standard deviation 0.3 on a circle of radius 2, straight paths; a perceptron of three "
        f"layers of 64 trained from scratch, {size.steps} steps of {size.batch} rows with Adam at {LR:g} (cosine), "
        f"the average of the weights; root mean square distance to the exact flow over {size.count} held-out noises, "
        f"one thread; claims are of the worst of {len(size.seeds)} seeds. Other schedules: one seed, the network's "
        f"input and output scaled as EDM's, the reference of each by {size.solver_steps} steps of DPM-Solver++ 3 on "
        "its even grid",
        judged(numbers),
        **numbers,
    )


if __name__ == "__main__":
    main()
