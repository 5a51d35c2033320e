r"""Sampling of bridges: one stochastic start, then any solver.

The probability-flow ODE of a bridge is singular at $t = T$, where $\dot c_t / c_t \to -\infty$, and starts from the one
point $x_T$: solved as it stands it gives one answer and no other. So the first step of every sampler here draws from
the bridge between $x_T$ and the first prediction,

$$ x_{t_1} = a_{t_1} x_T + b_{t_1} D(x_T, T, x_T) + c_{t_1} z, $$

and from $t_1$ on the ODE, or the SDE, is solved by a step of `solvers` or `steps` in $y_t = x_t - a_t x_T$, which is
a diffusion on the schedule $(b_t, c_t)$. The price of the start is that $D$ is taken for constant on $(t_1, T)$: its
bias grows as $t_1$ falls, the stiffness of what follows as $t_1$ rises. Hence $t_1$ is a setting. By default the start
leaves out less the more steps follow, $1 - r_{t_1}^2 = k / N^q$: with q = 1 before steps that take the stiff part
exactly, with q = 1/2 before those that step through it, whose first step has to shrink faster than what it starts from.
The exponent $p$ of the grid is another setting, which is equal steps of a power of the share of the variance,

$$ r_{t_n}^2 = r_{t_1}^2 \Big(1 - \frac{n - 1}{N - 1}\Big)^p, \qquad n = 1, \dots, N. $$

Source: Wang et al., 2024 (arXiv 2412.19992); Zheng et al., 2024 (arXiv 2405.15885), "booting noise".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from dsno.bridge.coefficients import Bridge, Pinned
from dsno.bridge.prediction import BridgePrediction
from dsno.bridge.steps import Euler, ExponentialHeun, Hybrid
from dsno.condition import Cond
from dsno.cost import evaluations
from dsno.denoise import Denoiser, at_one_time
from dsno.grids import check_grid, find_times
from dsno.schedule import Schedule
from dsno.seeds import check_noise, noise, noise_tape
from dsno.solvers.first_order import DDIM, Ancestral
from dsno.solvers.heun import Heun
from dsno.solvers.multistep import DPMSolverPP
from dsno.solvers.run import march
from dsno.solvers.step import Eval, Evaluate, Past, Step
from dsno.trajectory import Trajectory, sampled

__all__ = [
    "BRIDGE_STEPS",
    "EXPONENT",
    "BridgeSampler",
    "bridge_grid",
    "cross",
    "most_calls",
    "steps_of",
    "told",
]

EXPONENT = 1.5
"""$p$ where nothing else is asked for (measured in `benchmarks/bridge.py`)."""

THROUGH, EXACTLY = (1 / 3, 0.5), (0.5, 1.0)
"""k and q of steps through the stiff part, and of those that take it exactly (measured there, too)."""


class Named(NamedTuple):
    """A step by name, the calls that it makes, of one step inside the grid and of the last one, and k and q of where
    its start ends by default."""

    make: Callable[[], Step]
    inner: int = 1
    last: int = 1
    left_out: tuple[float, float] = THROUGH

    def share(self, steps: int) -> float:
        r"""$r_{t_1}^2$ of a grid of so many steps, the start being one."""
        k, q = self.left_out
        return 1 - k / steps**q


BRIDGE_STEPS: dict[str, Named] = {
    "ancestral": Named(Ancestral),
    "euler": Named(Euler),
    "hybrid": Named(Hybrid, 3, 2),
    "dbim1": Named(DDIM, left_out=EXACTLY),
    "dbim2": Named(lambda: DPMSolverPP(2), left_out=EXACTLY),
    "dbim3": Named(lambda: DPMSolverPP(3), left_out=EXACTLY),
    "odes3": Named(Heun, 2),
    "odes3-exponential": Named(ExponentialHeun, 2, left_out=EXACTLY),
}
"""How to make each step of a bridge's sampler. `ancestral` and `hybrid` are stochastic behind the start, too."""


def steps_of(name: str, calls: int) -> int:
    """The number of steps with which the sampler `name` makes so many network calls, its start being one.

    Raises:
        ValueError: for an unknown name; for calls that no grid of the sampler has, with the nearest that it has.
    """
    if name not in BRIDGE_STEPS:
        raise ValueError(f"unknown sampler {name!r} of bridges: expected one of {', '.join(BRIDGE_STEPS)}")
    _, inner, last, _ = BRIDGE_STEPS[name]
    if calls == 1:
        return 1
    first = 1 + last
    steps, rest = divmod(calls - first, inner)
    if calls < first or rest:
        near = [n for n in (1, *range(first, calls + inner + 1, inner)) if abs(n - calls) < max(inner, first)] or [1]
        raise ValueError(
            f"{name} makes 1, {first}, {first + inner}, {first + 2 * inner}, ... calls, got {calls}: "
            f"take {' or '.join(map(str, near))}"
        )
    return steps + 2


def most_calls(name: str, calls: int) -> int:
    """The most calls, at most so many, that a grid of the sampler has.

    Raises:
        ValueError: for an unknown name, or less than one call.
    """
    steps_of(name, min(calls, 1))
    _, inner, last, _ = BRIDGE_STEPS[name]
    first = 1 + last
    return 1 if calls < first else calls - (calls - first) % inner


def bridge_grid(bridge: Bridge, steps: int, t_1: float | None = None, exponent: float = EXPONENT) -> Tensor:
    r"""The times of `steps` steps: $T = 1$, then $t_1$ and so on above, to 0; (steps + 1,) float64.

    Arguments:
        bridge: Whose share of the variance is stepped.
        steps: N, the start included.
        t_1: Where the start ends, in (0, 1); that of `odes3` by default.
        exponent: $p > 0$; larger is denser towards the data.

    Raises:
        ValueError: for no steps, a `t_1` outside (0, 1), or an `exponent` that is not positive.
    """
    if steps < 1:
        raise ValueError(f"a bridge needs at least one step, got {steps}")
    if not exponent > 0:
        raise ValueError(f"the exponent of a bridge's grid must be positive, got {exponent}")
    if t_1 is not None and not 0 < t_1 < 1:
        raise ValueError(f"t_1 is where the start ends, inside (0, 1), got {t_1}")
    share = torch.tensor(BRIDGE_STEPS["odes3"].share(steps), dtype=torch.float64)
    if t_1 is not None:
        share = bridge.levels(torch.tensor(t_1, dtype=torch.float64))[1] ** 2
    rest = torch.linspace(1, 0, steps, dtype=torch.float64) if steps > 1 else torch.zeros(1, dtype=torch.float64)
    times = bridge.time(share * rest**exponent)
    times[-1] = 0.0
    if t_1 is not None and steps > 1:
        times[0] = t_1
    return check_grid(torch.cat([times.new_ones(1), times]))


def told(start: Tensor, cond: Cond | None = None) -> dict[str, Tensor]:
    """What a bridge's denoiser is told beside the state: $x_T$ under `start`, labels (B,) under `label`, and so on."""
    others: Mapping[str, Tensor] = {"label": cond} if isinstance(cond, Tensor) else cond or {}
    return {"start": start, **others}


@dataclass(frozen=True)
class Started:
    """The start as the first step of a solver in $y$, and `step` behind it, to which it is no past.

    Attributes:
        step: What follows.
        z: The noise of the start, (B, *shape).
    """

    step: Step
    z: Tensor

    @property
    def stochastic(self) -> bool:
        return self.step.stochastic

    def __call__(
        self, D: Evaluate, schedule: Schedule, x: Tensor, t: float, s: float, past: Past, z: Tensor | None
    ) -> tuple[Tensor, Past]:
        if t < 1:
            return self.step(D, schedule, x, t, s, tuple(e for e in past if e.t < 1), z)
        (b_s, c_s), x0_hat = schedule.at(s), D(x, t)
        return b_s * x0_hat + c_s * self.z, (Eval(t, x, x0_hat),)


def cross(
    denoiser: Denoiser,
    bridge: Bridge,
    start: Tensor,
    grid: Tensor | Sequence[float],
    step: Step | None = None,
    cond: Cond | None = None,
    seeds: Tensor | None = None,
    *,
    x: Tensor | None = None,
    z: Tensor | None = None,
    tape: Tensor | None = None,
    keep: Sequence[float] | Tensor | None = None,
    keep_x0: bool = False,
) -> Trajectory:
    r"""Go from $x_T$ to a sample, or on from a state of the bridge.

    Arguments:
        denoiser: $D(x_t, t, \mathrm{cond})$, told $x_T$ under `start` of the condition.
        bridge: The bridge it was trained on.
        start: $x_T$, shape (B, *shape).
        grid: N + 1 strictly decreasing times in [0, 1]; one that begins at 1 begins with the stochastic start.
        step: What follows it; `Heun`, which is ODES3, by default.
        cond: What else the denoiser is told, first dimension B; a tensor are labels.
        seeds: (B,) seeds: stream 0 is the noise of the start, streams 1 to N those of stochastic steps.
        x: The state at `grid[0]`, (B, *shape), for a grid that begins below 1.
        z: The noise of the start, (B, *shape), instead of stream 0.
        tape: The noise of the steps, (N, B, *shape), instead of streams 1 to N.
        keep: The times whose states are returned; the first and the last by default.
        keep_x0: Also return $\hat x_0$ at each kept state, at no extra evaluation but for a grid that ends above 0.

    Returns:
        The trajectory of the kept states, $x_T$ first.

    Raises:
        ValueError: for a bad grid or a kept time that is not on it, a grid below 1 without `x`, or noise that is needed
            without seeds.
    """
    step = Heun() if step is None else step
    times = check_grid(grid)
    begins = float(times[0]) == 1
    wanted = set(find_times(times, times[[0, -1]] if keep is None else keep, "on the grid, so it cannot be kept"))
    if begins != (x is None):
        raise ValueError("a grid that begins at 1 starts from x_T alone, and one below 1 from a state x on the bridge")
    if seeds is None and ((begins and z is None) or (step.stochastic and tape is None)):
        raise ValueError("a bridge starts with noise: give `seeds` (one per sample), or `z` of the start and a `tape`")
    if begins and z is None and seeds is not None:
        z = noise(seeds, start.shape[1:], 0, start.dtype, start.device)
    if step.stochastic and tape is None and seeds is not None:
        tape = noise_tape(seeds, start.shape[1:], len(times) - 1, start.dtype, start.device)
    cond, rounds = told(start, cond), 0
    a = dict(zip(times.tolist(), bridge(times)[0].tolist(), strict=True))
    ask = denoiser if isinstance(denoiser, BridgePrediction) else at_one_time(denoiser)

    def D(y: Tensor, t: float) -> Tensor:
        nonlocal rounds
        rounds += 1
        return ask(y + (a[t] if t in a else bridge.at(t)[0]) * start, t, cond)

    if x is not None:
        y = x - a[float(times[0])] * start
    else:
        assert z is not None
        y, step = torch.zeros_like(start), Started(step, z)
    states, x0s = march(D, Pinned(bridge), y, times, step, tape, wanted, keep_x0)
    kept = times[sorted(wanted)]
    return Trajectory(
        x=torch.stack([y + a[t] * start for y, t in zip(states, kept.tolist(), strict=True)], 1),
        t=kept,
        x0=torch.stack(x0s, 1) if keep_x0 else None,
        cond=cond,
        seeds=seeds,
        nfe=rounds * evaluations(denoiser),
        rounds=rounds,
    )


@dataclass(frozen=True)
class BridgeSampler:
    """A solver on a bridge's grid: from $x_T$ to a trajectory, without a graph.

    Called as `sampler(start, cond, seeds)`; samples of one $x_T$ are its copies with other seeds.

    Attributes:
        denoiser: What is sampled.
        bridge: The bridge it was trained on.
        grid: N + 1 decreasing times from 1.
        step: What follows the start; `Heun`, which is ODES3, by default.
        keep: The times whose states are returned, as in `cross`.
        keep_x0: Also return the denoiser's answer there.
    """

    denoiser: Denoiser
    bridge: Bridge
    grid: Tensor
    step: Step = field(default_factory=Heun)
    keep: Tensor | None = None
    keep_x0: bool = False

    @classmethod
    def of_calls(
        cls,
        denoiser: Denoiser,
        bridge: Bridge,
        calls: int,
        name: str = "odes3",
        t_1: float | None = None,
        exponent: float = EXPONENT,
        eta: float = 0.0,
    ) -> BridgeSampler:
        r"""The sampler `name` of `BRIDGE_STEPS` with so many network calls.

        Of `dbim1` a share $\eta$ in [0, 1] of the noise is fresh, and 1 is `ancestral`; DBIM's orders 2 and 3 are those
        of its ODE, $\eta = 0$, behind the noise of the start.

        Raises:
            ValueError: for an `eta` of another sampler or out of range; as `steps_of` and `bridge_grid`.
        """
        steps = steps_of(name, calls)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {eta:g}")
        if eta and name != "dbim1":
            raise ValueError(
                f"eta is of dbim1, whose steps may be stochastic, and those of {name} are what they are: take dbim1, "
                "or leave eta out"
            )
        if t_1 is None:
            t_1 = float(bridge.time(torch.tensor(BRIDGE_STEPS[name].share(steps), dtype=torch.float64)))
        grid = bridge_grid(bridge, steps, t_1, exponent)
        return cls(denoiser, bridge, grid, Ancestral(eta) if eta else BRIDGE_STEPS[name].make())

    @torch.no_grad()
    def __call__(self, start: Tensor, cond: Cond | None = None, seeds: Tensor | None = None) -> Trajectory:
        check_noise(start)
        return sampled(self._run, start, cond, seeds)

    def _run(self, start: Tensor, cond: Cond | None, seeds: Tensor | None) -> Trajectory:
        return cross(
            self.denoiser,
            self.bridge,
            start,
            self.grid,
            self.step,
            cond,
            seeds,
            keep=self.keep,
            keep_x0=self.keep_x0,
        )
