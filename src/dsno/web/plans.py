r"""Samplers as numbers: all that a page does between two calls of a network.

Every sampler here is affine in its state and in what its network says. A pass of a student makes states at the times
$t_m$ from the one at t, and a step of a teacher's solver one,

$$ F = \mathrm{net}(c x_t, t), \qquad x_{t_m} = r_m x_t + \sum_k w_{mk} F_k, $$

$$ \hat x_0 = \mathrm{clip}(p \, x_t + q F), \qquad x_s = a \, x_t + b \, \hat x_0 + b' \, \hat x_0', $$

with $\hat x_0'$ the evaluation before. A step of a restorer puts between the two what was measured,

$$ \tilde x_0 = \mathbb E[x \mid y], \quad x \sim \mathcal N(\hat x_0, r^2 I), \qquad
   x_s = a \, x_t + b \, \tilde x_0 + \nu z. $$

The numbers follow from schedule, kind of prediction and grid. They are read off
the library's own samplers in float64, which are given unit vectors for states and outputs, so that no formula is
written a second time, and a page knows neither schedules nor solvers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from dsno.cost import Meter
from dsno.denoise import Prediction
from dsno.grids import even, uniform
from dsno.inverse.projected import DiffPIR
from dsno.inverse.run import Run
from dsno.solvers.named import SOLVERS
from dsno.solvers.step import Eval
from dsno.students.flowmap import FlowMap
from dsno.students.heads import ParallelDecoder
from dsno.students.operator import TrajectoryStudent
from dsno.students.samplers import DecoderSampler, MultiPass, Student, passes_of

__all__ = [
    "RESTORING",
    "STEPS",
    "Pass",
    "Restoring",
    "Step",
    "passes_planned",
    "restoring_planned",
    "sample_planned",
    "steps_planned",
]

STEPS = (*range(1, 17), 20, 24, 28, 32, 40, 48, 56, 64)
"""The numbers of steps that a page offers of a teacher's solvers."""

RESTORING = (5, 10, 20, 50, 100)
"""The numbers of steps that a page offers of a restorer."""

Row = tuple[float, ...]


@dataclass(frozen=True)
class Pass:
    """One network call of a student.

    Attributes:
        t: The time of the state it starts from.
        later: What else a flow map's network is told: the phase of the time that it jumps to.
        scale: c.
        times: $t_m$.
        states: $r_m, w_{m1}, w_{m2}, ...$, of each time.
        predictions: The same of what the student says of the sample at that time, where it does.
        fresh: Standard deviation of the noise that is added to the last state; pass n draws it from stream n.
    """

    t: float
    later: float | None
    scale: float
    times: Row
    states: tuple[Row, ...]
    predictions: tuple[Row, ...] | None = None
    fresh: float = 0.0


@dataclass(frozen=True)
class Step:
    """One step of a teacher's solver: $c$; $p, q$; $a, b, b'$."""

    t: float
    scale: float
    reading: tuple[float, float]
    weights: tuple[float, float, float]


@dataclass(frozen=True)
class Restoring:
    r"""One step of a restorer: $c$; $p, q$; $r^2$; $a, b, \nu$. Step n draws its noise from stream n, from 1 on."""

    t: float
    scale: float
    reading: tuple[float, float]
    variance: float
    weights: tuple[float, float, float]


class _Units(nn.Module):
    """In place of a network of `frames` outputs, whose place in a state (B, 1 + frames) is behind the input's: says
    unit vectors, and keeps the scale of what it was shown."""

    def __init__(self, frames: int = 1) -> None:
        super().__init__()
        self.frames, self.scale = frames, 1.0

    def rows(self, shown: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        """(1, K, 1 + frames) for the frames that are asked for, by default all."""
        self.scale = float(shown[0, 0])
        return torch.eye(1 + self.frames, dtype=shown.dtype)[1:][
            None, [*range(self.frames)] if frames is None else frames
        ]


class _Operator(_Units):
    def forward(self, x: Tensor, times: Tensor, cond: None, start: float, select: Sequence[int]) -> Tensor:
        return self.rows(x, select)


class _Heads(_Units):
    def forward(self, x: Tensor, t: Tensor, block: tuple[int, int], shares: Row, cond: None) -> Tensor:
        each = self.rows(x, range(*block))
        return (each * each.new_tensor(shares).reshape(1, -1, 1)).sum(1, keepdim=True)


class _Single(_Units):
    def forward(self, x: Tensor, t: Tensor, later: Tensor | None = None) -> Tensor:
        return self.rows(x)[:, 0]


def _unit(frames: int) -> Tensor:
    """The state itself, (1, 1 + frames)."""
    return torch.eye(1, 1 + frames, dtype=torch.float64)


def _rows(x: Tensor) -> tuple[Row, ...]:
    return tuple(map(tuple, x.reshape(-1, x.shape[-1]).tolist()))


# Students


def passes_planned(student: Student, passes: int) -> tuple[Pass, ...]:
    """The calls of a sampler of so many passes, of a network that says all frames or heads.

    Raises:
        ValueError: for passes that the student was not trained for.
    """
    if isinstance(student, TrajectoryStudent):
        return _of_operator(student, passes)
    return _of_decoder(student, passes) if isinstance(student, ParallelDecoder) else _of_map(student, passes)


def sample_planned(student: Student) -> Pass:
    """The one call of a student whose network says the sample's output alone: the last frame's, or that of the heads
    fused."""
    (made,) = passes_planned(student, 1)
    r, *w = made.states[-1]
    # The last frame has a weight of its own; those of heads are its shares.
    return replace(made, times=made.times[-1:], states=((r, sum(w)),), predictions=None)


def _of_operator(student: TrajectoryStudent, passes: int) -> tuple[Pass, ...]:
    net, M = _Operator(student.frames), student.frames
    own = (student.schedule, student.times, student.target, student.kind, student.data_std)
    bare, x = TrajectoryStudent(cast(Any, net), *own, shape=(1 + M,)), _unit(M)
    sampler, made = MultiPass(bare.restarting(student.restarts, student.fresh), passes, whole=True), []
    for start, frames in sampler.calls:
        h, states, sigma = sampler.call(x, None, start, frames)
        times, said = tuple(student.times[list(frames)].tolist()), _rows(h) if sampler.predicts else None
        made.append(Pass(start, None, net.scale, times, _rows(states), said, sigma))
    return tuple(made)


def _of_decoder(student: ParallelDecoder, passes: int) -> tuple[Pass, ...]:
    DecoderSampler(student, passes)  # refuses passes that there are not
    net, N, L = _Heads(student.count), student.count, student.count // passes
    bare, x = (
        ParallelDecoder(net, student.schedule, student.grid, student.kind, student.data_std, shape=(1 + N,)),
        _unit(N),
    )
    made = []
    for n in range(0, N, L):
        states = torch.stack([bare(x, n, m) for m in range(n + 1, n + L + 1)])
        made.append(Pass(student.times[n], None, net.scale, student.times[n + 1 : n + L + 1], _rows(states)))
    return tuple(made)


def _of_map(student: FlowMap, passes: int) -> tuple[Pass, ...]:
    net, sampler = _Single(), passes_of(student, passes)
    bare, x = FlowMap(net, student.schedule, student.kind, student.data_std), _unit(1)
    made = []
    for (t, s), landing in zip(pairwise(sampler.grid.tolist()), cast(Tensor, sampler.landings).tolist(), strict=True):
        ratio, fresh = sampler.noised(landing, s) if landing < s else (1.0, 0.0)
        states = _rows(ratio * bare(x, t, landing))
        later = float(student.schedule.phase(torch.tensor(landing, dtype=torch.float64)))
        made.append(Pass(t, later, net.scale, (s,), states, None, fresh))
    return tuple(made)


# Teachers


def steps_planned(teacher: Prediction, solver: str, steps: int) -> tuple[Step, ...]:
    """The steps of a solver that remembers one evaluation at most, on the even grid.

    Raises:
        ValueError: for no steps.
    """
    read, step = _Read(teacher), SOLVERS[solver]()
    x, x0_hat, before = torch.eye(3, dtype=torch.float64)[:, None]
    made: list[Step] = []
    times = even(teacher.schedule, steps).tolist()
    teacher.schedule.expect(times)
    for t, s in pairwise(times):
        past = (Eval(made[-1].t, x, before),) if made else ()
        x_s, _ = step(lambda *_: x0_hat, teacher.schedule, x, t, s, past, None)
        a, b, c = x_s[0].tolist()
        made.append(Step(t, *read(t), (a, b, c)))
    return tuple(made)


def restoring_planned(teacher: Prediction, steps: int) -> tuple[Restoring, ...]:
    """The steps of `DiffPIR` as it is by default, on the uniform grid.

    Raises:
        ValueError: for no steps.
    """
    read, method = _Read(teacher), DiffPIR(uniform(steps))
    x, x0, z = torch.eye(3, dtype=torch.float64)[:, None]
    problem = _Solved(x0)
    run = _Told(Meter(read.bare), teacher.schedule, problem, x0)
    run.z = z
    made: list[Restoring] = []
    times = method.grid.tolist()
    teacher.schedule.expect(times)
    for t, s in pairwise(times):
        a, b, nu = method.step(run, x, t, s)[0].tolist()
        made.append(Restoring(t, *read(t), problem.variance, (a, b, nu)))
    return tuple(made)


class _Read:
    """How a teacher reads its network: the scale of what that is shown at a time, and $p, q$."""

    def __init__(self, teacher: Prediction) -> None:
        self.net = _Single()
        self.bare = Prediction(self.net, teacher.schedule, teacher.kind, data_std=teacher.data_std)

    def __call__(self, t: float) -> tuple[float, tuple[float, float]]:
        # In the precision of states: of noise (`eps`) at t = 1 it decides what alpha is, by which is divided.
        p, q = self.bare.unclipped(_unit(1).float(), t)[0].tolist()
        return self.net.scale, (p, q)


class _Solved:
    r"""A problem with noise of 1 that keeps $r^2$ and says a unit vector for $\mathbb E[x \mid y]$."""

    noise = 1.0

    def __init__(self, x0: Tensor) -> None:
        self.x0, self.variance = x0, 0.0

    def A(self, x: Tensor, /) -> Tensor:
        return x

    def A_adjoint(self, y: Tensor, /) -> Tensor:
        return y

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float, /) -> Tensor:
        self.variance = gamma
        return self.x0


class _Told(Run):
    """A run whose denoiser's answer only the problem sees, and whose noise is a unit vector, `z`."""

    z: Tensor

    def x0(self, x_t: Tensor, t: float) -> Tensor:
        return x_t

    def noise(self, x: Tensor) -> Tensor:
        return self.z
