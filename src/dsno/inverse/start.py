r"""Learned starts: restorations in one to five steps, from a noise that was chosen for what was measured.

Without guidance, the ordinary sampler is started on the way, at a state that leads it to the restoration,

$$ x_\tau = \alpha_\tau y_0 + \sigma_\tau f_w(y_0, \tau), \qquad y_0 = A^+ y, $$

with the noise predictor $f_w$ of `start_net`, which was trained for this teacher and this problem (`start_loss`). The
teacher is asked once a step, and nothing is differentiated. In one step the restoration is the teacher's answer there,
near $\mathbb E[x_0 \mid y]$; more steps look more like its data, and are farther from the truth.

A one-pass student may stand in the teacher's place (`OneJump`): it goes to t = 0 from where it starts, so of a student
that starts from noise alone $\tau = 1$, and what the predictor says is its noise,

$$ x_1 = \alpha_1 y_0 + \sigma_1 f_w(y_0, 1) \approx \sigma_1 f_w, \qquad \hat x_0 = G(x_1). $$

Source: Yue, Liao & Loy, 2025 (arXiv 2412.09013).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dsno.condition import Cond
from dsno.denoise import each_row
from dsno.distillation.matching import one_ended
from dsno.inverse.decoded import Decoded
from dsno.inverse.problem import Problem, posterior_mean
from dsno.inverse.run import Guidance, Run, check_options
from dsno.inverse.start_net import NoisePredictor
from dsno.inverse.tiles import Tiled
from dsno.schedule import Schedule
from dsno.solvers.first_order import affine
from dsno.students.flowmap import FlowMap
from dsno.students.heads import ParallelDecoder
from dsno.students.samplers import Student
from dsno.teachers.latents import Latents

__all__ = ["LearnedStart", "OneJump", "latents_of", "pseudo_inverse"]


def pseudo_inverse(problem: Problem | Decoded, y: Tensor) -> Tensor:
    r"""$y_0$, (B, *shape) from what was measured (B, *measured): $A^+ y$, and with noise the mean of
    $\mathcal N(0, I)$ given y, which is finite where $A$ is nearly singular. Of a decoded problem the latents of that.

    Raises:
        ValueError: for a decoded problem whose decoder has no encoder.
    """
    if isinstance(problem, Decoded):
        return latents_of(problem).encode(pseudo_inverse(problem.problem, y))
    return posterior_mean(problem, torch.zeros_like(problem.A_adjoint(y)), y, 1.0)


def latents_of(problem: Decoded) -> Latents:
    """The autoencoder of a decoded problem.

    Raises:
        ValueError: if it is another decoder.
    """
    if not isinstance(problem.decode, Latents):
        raise ValueError(
            "a start for latents is encoded from pixels: give Decoded the Latents of load_decoder, not a function "
            "that only decodes"
        )
    return problem.decode


class OneJump(nn.Module):
    r"""A student as the frozen model of a start: $\hat x_0$ is where it goes to from $x_t$ in one pass.

    Arguments:
        student: A `TrajectoryStudent`, a `FlowMap`, or a `ParallelDecoder` in one call.

    Attributes:
        schedule: The student's.
        from_noise: Whether it starts from pure noise alone, so that $\tau = 1$.

    Raises:
        ValueError: for a decoder that was not trained for one call.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = one_ended(student)
        self.schedule: Schedule = student.schedule
        if isinstance(student, ParallelDecoder):
            if student.count not in student.spans:
                raise ValueError(f"this decoder was trained for spans {student.spans}, and not for all in one call")
            restarts = False
        else:
            restarts = student.way != "grid" if isinstance(student, FlowMap) else student.restarts
        self.from_noise = not restarts

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Cond | None = None) -> Tensor:
        last, start = (-1,), each_row(t, x_t)
        h = self.student(x_t, cond, start, last)
        return (self.student.states(x_t, h, start, last) if self.student.target == "state" else h)[:, -1]


@dataclass(frozen=True)
class LearnedStart(Guidance):
    r"""The ordinary sampler from a learned start.

    $$ x_\tau = \alpha_\tau y_0 + \sigma_\tau f_w(y_0, \tau), \qquad
       x_s = a \, x_t + b \, D(x_t, t) + \nu z $$

    with the first-order step of `dsno.solvers.first_order`. The grid begins at $\tau$ (`start_grid`), and the noise of
    $f_w$ is that of the start. The one evaluation of the predictor comes on top of the cost, which is the teacher's.
    Where the teacher is `Tiled`, so is the predictor: what it says of the tiles is blended by the same weights.

    Arguments:
        grid: Decreasing times, from $\tau$ to 0.
        net: $f_w$, trained for this teacher and this problem.
        eta: The share of fresh noise in a step, in [0, 1].

    Raises:
        ValueError: for options out of range; when called, for a start that the predictor was not trained for, a student
            of `OneJump` that starts from noise alone on another grid than from 1 to 0, or samples of another shape.
    """

    net: NoisePredictor
    eta: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self, 0.0, self.eta)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def start(self, run: Run, z: Tensor, t: float) -> Tensor:
        p = float(run.schedule.phase(torch.tensor(t, dtype=torch.float64)))
        low, high = min(self.net.phases), max(self.net.phases)
        if not low - 1e-6 <= p <= high + 1e-6:
            raise ValueError(
                f"this start was trained for phases of {low:g} to {high:g}, and the grid begins at {p:g}: take "
                "start_grid(schedule, steps, most)"
            )
        tiled = run.meter.denoiser if isinstance(run.meter.denoiser, Tiled) else None
        asked = run.meter.denoiser if tiled is None else tiled.denoiser
        if isinstance(asked, OneJump) and asked.from_noise and self.grid.tolist() != [1, 0]:
            raise ValueError("this student starts from noise alone: restore with it on the grid [1, 0]")
        alpha_t, sigma_t = run.schedule.at(t)
        y0 = pseudo_inverse(run.problem, run.y)
        f = self.net.noise(y0, y0.new_full((len(y0),), p), z, None if tiled is None else tiled.tiling)
        return alpha_t * y0 + sigma_t * f

    def step(self, run: Run, x: Tensor, t: float, s: float) -> Tensor:
        a, b, nu = affine(run.schedule, t, s, self.eta)
        x0_hat = run.x0(x, t)
        run.revise(x0_hat, t)
        x_s = a * x + b * x0_hat
        return x_s + nu * run.noise(x) if self.stochastic else x_s
