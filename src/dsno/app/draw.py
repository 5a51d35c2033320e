r"""One sample of a model, what it cost, and the states on its way.

The noise is that of the seed, $x_1 = \sigma_1 z$, and the sampler the library's own: `sampler_of` the passes of a
student, `SolverSampler` on the even grid of a teacher. So a seed is the same picture here, in Python and from
`dsno sample`. States are shown at the scale of noise, $x_t / \max(1, n_t)$ with $n_t^2 = \alpha_t^2 + \sigma_t^2$, of
latents decoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dsno.app.models import Ask, Model
from dsno.cost import counting, timed
from dsno.grids import even
from dsno.seeds import noise, seed_range
from dsno.solvers.named import SOLVERS, calls_of, solver_named
from dsno.solvers.run import SolverSampler
from dsno.students.operator import TrajectoryStudent
from dsno.students.samplers import sampler_of
from dsno.trajectory import Sampler

__all__ = ["STEPS", "Drawn", "Tell", "draw"]

Tell = Callable[[int, int], None]
"""Told of how many network calls, of how many, are done; may raise to end the run."""

STEPS = 1000
"""The most steps of a solver."""

FRAMES = 9
"""The most states on the way that are shown."""


@dataclass(frozen=True)
class Drawn:
    """A sample.

    Attributes:
        picture: (C, H, W) in [-1, 1].
        calls: Serial network calls that it took.
        seconds: How long these took, nothing decoded.
        path: States on the way, noise first, each with its time; empty if they were not asked for.
    """

    picture: Tensor
    calls: int
    seconds: float
    path: tuple[tuple[float, Tensor], ...] = ()


def draw(model: Model, ask: Ask, tell: Tell = lambda done, total: None) -> Drawn:
    """One sample of a model.

    The frames of an operator are made by a pass of its own, which is not measured.

    Raises:
        ValueError: for something that the model cannot be asked.
    """
    seeds = seed_range(ask.seed, 1)
    calls, sampler = _sampler(model, ask)
    z, cond = noise(seeds, model.shape, device=model.device), model.told(ask, seeds)
    with counting(model.of, lambda done: tell(min(done, calls), calls)):
        made, seconds = timed(sampler, z, cond, seeds)
    picture, rounds = _shown(model, made.sample)[0], made.rounds
    if ask.path and isinstance(model.of, TrajectoryStudent):
        made = sampler_of(model.of, ask.passes, whole=True)(z, cond, seeds)
    path = []
    if ask.path:
        for n in torch.linspace(0, len(made.t) - 1, min(FRAMES, len(made.t))).round().int().tolist():
            t = float(made.t[n])
            path.append((t, _shown(model, made.x[:, n] / max(1.0, math.hypot(*model.schedule.at(t))))[0]))
    return Drawn(picture, rounds, seconds, tuple(path))


def _sampler(model: Model, ask: Ask) -> tuple[int, Sampler]:
    """What draws the sample, and the network calls that it takes."""
    if model.teacher is None:
        if ask.passes is not None and ask.passes not in model.passes:
            known = ", ".join(map(str, model.passes))
            raise ValueError(f"{model.name} makes {known} pass(es), got {ask.passes}")
        return ask.passes or model.passes[0], sampler_of(model.of, ask.passes)  # type: ignore[arg-type]
    if not 1 <= ask.steps <= STEPS:
        raise ValueError(f"steps must be in [1, {STEPS}], got {ask.steps}")
    if ask.solver not in SOLVERS:
        raise ValueError(f"unknown solver {ask.solver!r}: expected one of {', '.join(SOLVERS)}")
    denoiser, schedule = model.denoiser(ask.guidance), model.schedule
    grid = even(schedule, ask.steps)
    kept = torch.linspace(0, ask.steps, min(FRAMES, ask.steps + 1)).round().long() if ask.path else [0, -1]
    sampler = SolverSampler(denoiser, schedule, grid, solver_named(ask.solver, denoiser), grid[kept])
    return calls_of(ask.solver, ask.steps), sampler


@torch.no_grad()
def _shown(model: Model, x: Tensor) -> Tensor:
    """Samples, or states at the scale of samples, as pictures on the host."""
    decoded = x if model.latents is None else model.latents.decode(x)
    return decoded.float().cpu().clamp(-1, 1)
