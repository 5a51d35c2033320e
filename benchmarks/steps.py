"""What sampling costs beside the network: a solver's step against diffusers', a student's pass against a bare one.

    python benchmarks/steps.py

In a solver's step the network is one product, so what is timed is everything else: coefficients, times, conversion of
the prediction, the past. A teacher with a table of betas (as every model of diffusers has), and closed forms beside the
same schedulers; 3x32x32, batch 1, float32, one thread; DDIM, DPM-Solver++ and UniPC of order 2 on the same number of
steps. Claim: at most 0.7 of diffusers' time for each. A larger ratio refutes it. Each ratio is the median over repeats
in which both sides alternate, in seconds of the processor. The models are made before; the grid and its coefficients,
as `set_timesteps` there, are made in every repeat, and what the schedule knows of the last one is forgotten.

A student of four frames, lifted by default from a U-Net on 8x8: its one pass as a sampler, which makes the sample
alone, against one call of the U-Net, at batch 1. Claims: at most half more, and no more than all frames take.

Writes benchmarks/results/steps.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from _common import Claim, alternating, claim, parse, parser, write
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor, nn

from dsno import DDIM, Cosine, DPMSolverPP, OnePass, Prediction, UniPC, grids, student_from_teacher
from dsno.denoise import Kind
from dsno.nets.unet import UNet
from dsno.schedule import RectifiedFlow, Schedule, VPLinear, linear_beta
from dsno.solvers.run import solve
from dsno.solvers.step import Step

PAIRS: dict[str, tuple[Step, Any]] = {
    "DDIM": (DDIM(), DDIMScheduler),
    "DPM-Solver++(2M)": (DPMSolverPP(2), DPMSolverMultistepScheduler),
    "UniPC(2)": (UniPC(2), UniPCMultistepScheduler),
}
SCHEDULES: dict[str, tuple[Callable[[], Schedule], Kind]] = {
    "table of betas": (linear_beta, "eps"),
    "Cosine": (Cosine, "v"),
    "VPLinear": (VPLinear, "eps"),
    "RectifiedFlow": (RectifiedFlow, "flow"),
}
BOUND = 0.7
PASS_BOUND = 1.5


class Product(nn.Module):
    """The cheapest network: a multiple of the state."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.1 * x


def ours(step: Step, schedule: Callable[[], Schedule], kind: Kind, x: Tensor, steps: int) -> Callable[[], Tensor]:
    made = schedule()
    denoiser = Prediction(NET, made, kind, time=lambda t: 1000 * t - 1)

    def run() -> Tensor:
        made.expect(())
        with torch.no_grad():
            return solve(denoiser, made, x, grids.uniform(steps), step).sample

    return run


def theirs(scheduler: Any, x: Tensor, steps: int) -> Callable[[], Tensor]:
    made = scheduler(
        beta_schedule="linear", beta_start=1e-4, beta_end=0.02, prediction_type="epsilon", timestep_spacing="trailing"
    )

    def run() -> Tensor:
        made.set_timesteps(steps)
        state = x
        with torch.no_grad():
            for k in made.timesteps:
                state = made.step(NET(made.scale_model_input(state, k), k), k, state).prev_sample
        return state

    return run


NET = Product()


def seconds(a: Callable[[], object], b: Callable[[], object], steps: int, repeats: int) -> dict[str, float]:
    """Microseconds a step of both, and the median of their ratios."""
    pairs = list(alternating(a, b, repeats=repeats, clock=time.process_time))
    return {
        "ours": 1e6 * statistics.median(x for x, _ in pairs) / steps,
        "theirs": 1e6 * statistics.median(y for _, y in pairs) / steps,
        "ratio": statistics.median(x / y for x, y in pairs),
    }


def one_pass(channels: tuple[int, ...], repeats: int) -> dict[str, float]:
    """One pass of a student over a call of its backbone: the sample alone, and all frames."""
    net = UNet(channels=channels).eval()
    student = student_from_teacher(Prediction(net, Cosine(), "v"), grids.quadratic(4)[1:], init="normal").eval()
    z, t = torch.randn(1, *net.shape), torch.ones(1)

    def bare() -> None:
        with torch.no_grad():
            net(z, t)

    sides = bare, partial(OnePass(student), z), partial(OnePass(student, whole=True), z)
    taken = alternating(*sides, repeats=repeats, clock=time.process_time)
    return {
        "milliseconds of a bare pass": 1e3 * statistics.median(b for b, _, _ in taken),
        "sample": statistics.median(s / b for b, s, _ in taken),
        "all frames": statistics.median(w / b for b, _, w in taken),
        "sample over all frames": statistics.median(s / w for _, s, w in taken),
    }


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """Every solver's ratio on every schedule, and those of a pass."""
    return [
        *(
            claim(f"a step over diffusers', {name}, {schedule}", n["ratio"], BOUND, "<=")
            for schedule, solvers in numbers["schedules"].items()
            for name, n in solvers.items()
        ),
        claim("one pass of a student over a bare one, batch 1", numbers["pass"]["sample"], PASS_BOUND, "<="),
        claim("its sample over all its frames, batch 1", numbers["pass"]["sample over all frames"], 1.0, "<="),
    ]


def options() -> argparse.ArgumentParser:
    return parser(__file__, __doc__)


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    torch.set_num_threads(1)
    steps, repeats = (3, 1) if arguments.quick else (50, 51)
    x = torch.randn(1, 3, 32, 32)
    numbers = {
        "schedules": {
            name: {
                solver: seconds(ours(step, schedule, kind, x, steps), theirs(scheduler, x, steps), steps, repeats)
                for solver, (step, scheduler) in PAIRS.items()
            }
            for name, (schedule, kind) in SCHEDULES.items()
        },
        "pass": one_pass((16, 16) if arguments.quick else (32, 64), repeats),
    }
    write(
        arguments,
        "steps",
        f"one thread; batch 1, 3x32x32; {steps} steps; medians of {repeats} alternating repeats; microseconds of the "
        "processor a step",
        judged(numbers),
        **numbers,
    )


if __name__ == "__main__":
    main()
