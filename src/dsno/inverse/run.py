r"""The one driver of restorers: it runs a guided step on an explicit grid, and counts what that costs.

As `solvers.run` it announces the grid to the schedule, hands a stochastic step its noise, and reads nothing back from
the device inside the loop. A step sees the situation, `Run`: the denoiser with its derivatives, the problem as it
stands, and what was measured.

With noise in the measurement a misfit below the noise says nothing. $|A^\top (y - A x)|$ of the true sample is about
the *floor*, $\tau |A^\top n|$ with $n$ of unit variance, whatever the problem, so methods that only walk down the
misfit shorten their walk as it comes near (`Run.above`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from dsno.condition import Cond
from dsno.cost import Cost, Meter, timed, vjp
from dsno.denoise import Denoiser, Prediction, expand_like
from dsno.distillation.derivatives import jvp
from dsno.grids import check_grid, find_times
from dsno.inverse.decoded import Decoded, linearised
from dsno.inverse.operators import Mask
from dsno.inverse.problem import Problem, check_problem, noise_of
from dsno.inverse.restore import Restored, Revise
from dsno.schedule import Schedule
from dsno.seeds import as_seeds, check_noise, noise
from dsno.solvers.run import initial_state
from dsno.trajectory import Trajectory

__all__ = ["Guidance", "Run", "check_options", "largest", "lengths"]

PROBE = 2**31
"""The stream of the noise that says how large a misfit noise alone makes: no step's own."""

PIXELS = (
    "a problem of pixels is stated for latents as Decoded(problem, latents), and its gradients pass through the decoder"
)
"""What to do where samples are latents."""

DIFFERENCE = 1e-2
"""Of samples in [-1, 1]: how far a decoder is moved to see where it goes."""


def check_options(of: object, scale: float, eta: float) -> None:
    """Make sure that a method's `scale` is not negative, and its share of fresh noise in [0, 1].

    Raises:
        ValueError: if not.
    """
    if not scale >= 0 or not 0 <= eta <= 1:
        raise ValueError(f"{type(of).__name__} takes scale >= 0 and eta in [0, 1], got {scale:g} and {eta:g}")


def counts(meter: Meter) -> dict[str, int]:
    """What a meter has counted."""
    return {"rounds": meter.rounds, "rows": meter.rows, "vjps": meter.vjps, "jvps": meter.jvps}


def lengths(x: Tensor) -> Tensor:
    """The Euclidean norm of each row of (B, *shape), at least the smallest normal number; (B,)."""
    return x.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)


def largest(x: Tensor) -> Tensor:
    """The largest magnitude in each row of (B, *shape), at least the smallest normal number; (B,)."""
    return x.flatten(1).abs().amax(1).clamp_min(torch.finfo(x.dtype).tiny)


class Run:
    r"""What a step is given.

    Attributes:
        meter: The denoiser, which counts.
        schedule: $\alpha_t, \sigma_t$.
        problem: $A$ and $\tau$, as they stand.
        y: What was measured, (B, *measured).
        gradients: Rows of gradients through the decoder so far.
    """

    def __init__(
        self,
        meter: Meter,
        schedule: Schedule,
        problem: Problem | Decoded,
        y: Tensor,
        cond: Cond | None = None,
        seeds: Tensor | None = None,
        revise: Revise | None = None,
    ) -> None:
        self.meter, self.schedule, self.problem, self.y = meter, schedule, problem, y
        self.cond, self.seeds, self._revise = cond, seeds, revise
        self.gradients, self._stream = 0, 0
        self._probe: Tensor | None = None

    def x0(self, x_t: Tensor, t: float) -> Tensor:
        r"""$\hat x_0 = D(x_t, t)$, (B, *shape)."""
        return self.meter(x_t, t, self.cond)

    def vjp(self, x_t: Tensor, t: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        r"""$\hat x_0$ and the pullback $v \mapsto J^\top v$, counted (`cost.vjp`)."""
        return vjp(self.meter, x_t, t, self.cond)

    def jvp(self, x_t: Tensor, t: float, v: Tensor) -> tuple[Tensor, Tensor]:
        r"""$\hat x_0$ and $J v$, counted; exact, by forward-mode differentiation.

        Raises:
            NotImplementedError: if a layer of the network has no forward mode.
        """
        self.meter.jvps += len(x_t) * self.meter.evaluations
        return jvp(lambda x: self.meter(x, t, self.cond), (x_t,), (v,))

    def revise(self, x0_hat: Tensor, t: float) -> None:
        """Let who does not know the problem revise it by the denoiser's answer; from here on it is the revised one."""
        if self._revise is not None:
            self.problem = self._revise(x0_hat, t)

    @property
    def linear(self) -> Problem:
        """The problem as it stands, of a method that solves it."""
        assert not isinstance(self.problem, Decoded)
        return self.problem

    def misfit(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""$e = y - A x$, (B, *measured), and $A^\top e$, (B, *shape): down the gradient of $|e|^2 / 2$."""
        Ax, pull = linearised(self.problem, x)
        e = self.y - Ax
        self.gradients += len(x) if isinstance(self.problem, Decoded) else 0
        return e, pull(e)

    def along(self, x: Tensor, v: Tensor) -> Tensor:
        r"""$A'(x) \, v$, (B, *measured): $A v$, or of a decoded problem a forward difference."""
        if not isinstance(self.problem, Decoded):
            return self.problem.A(v)
        h = DIFFERENCE / largest(v)
        Av = self.problem.A(x + expand_like(h, v) * v) - self.problem.A(x)
        return Av / expand_like(h, Av)

    def above(self, x: Tensor, down: Tensor) -> Tensor | float:
        r"""The share of $|A^\top e|$ at `x` that noise does not explain, $(1 - \tau |A^\top n| / |A^\top e|)_+$,
        (B, 1, ...); 1 without noise. `down` is $A^\top e$."""
        if noise_of(self.problem) == 0:
            return 1.0
        if self._probe is None:
            self._probe = noise([0], self.y.shape[1:], PROBE, self.y.dtype, self.y.device).expand_as(self.y)
        _, pull = linearised(self.problem, x)
        self.gradients += len(x) if isinstance(self.problem, Decoded) else 0
        floor = noise_of(self.problem) * lengths(pull(self._probe))
        return expand_like((1 - floor / lengths(down)).clamp_min(0), down)

    def noise(self, x: Tensor) -> Tensor:
        """The next standard normal noise of the run, of the shape and dtype of `x`: streams 1, 2, ... of the seeds."""
        assert self.seeds is not None
        self._stream += 1
        return noise(self.seeds, x.shape[1:], self._stream, x.dtype, x.device)


@dataclass(frozen=True)
class Guidance(ABC):
    r"""A restorer that goes through a grid of times, from noise to the sample, one guided step between neighbours.

    Attributes:
        grid: N + 1 decreasing times in [0, 1].
        keep: The times whose states are returned as a trajectory; None returns none.

    Raises:
        ValueError: for a bad grid; when called, for noise, a measurement or seeds of other shapes than the problem's, a
            problem whose adjoint fails the dot test, or one that the method cannot solve.
    """

    solves: ClassVar[bool] = False
    """Whether a step solves the problem, which must be linear then."""

    grid: Tensor
    keep: Sequence[float] | Tensor | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", check_grid(self.grid))

    def start(self, run: Run, z: Tensor, t: float) -> Tensor:
        """The state at `t`, the first time of the grid, from standard normal noise `z` (B, *shape)."""
        return initial_state(run.schedule, z, t)

    @abstractmethod
    def step(self, run: Run, x: Tensor, t: float, s: float) -> Tensor:
        """The state at `s`, from `x` (B, *shape) at `t` > `s`."""

    @property
    @abstractmethod
    def stochastic(self) -> bool:
        """Whether its steps take noise, and so seeds."""

    def __call__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        problem: Problem | Decoded,
        y: Tensor,
        z: Tensor,
        cond: Cond | None = None,
        seeds: Sequence[int] | Tensor | None = None,
        revise: Revise | None = None,
    ) -> Restored:
        """Restore; see `Restorer`, and `Revise` for a problem that is learnt on the way."""
        y = self._checked(denoiser, problem, y, z, revise is None)
        rows = None if seeds is None else as_seeds(seeds)
        if rows is None and self.stochastic:
            raise ValueError(f"{type(self).__name__} takes noise in its steps: give `seeds`, one for each row")
        if rows is not None and len(rows) != len(z):
            raise ValueError(f"there are {len(rows)} seeds for {len(z)} rows of noise: give one for each")
        kept = [] if self.keep is None else find_times(self.grid, self.keep, "on the grid, so it cannot be kept")
        meter = denoiser if isinstance(denoiser, Meter) else Meter(denoiser)
        before = counts(meter)
        run = Run(meter, schedule, problem, y, cond, rows, revise)
        (x, states), seconds = timed(self._run, run, z, kept)
        spent = {name: value - before[name] for name, value in counts(meter).items()}
        cost = Cost(**spent, gradients=run.gradients, seconds=seconds)
        with torch.no_grad():
            residual = (run.y - run.problem.A(x)).flatten(1).square().mean(1).sqrt()
        path = None
        if kept:
            each, held = cost.rows // len(z), torch.stack(states, 1)
            path = Trajectory(held, self.grid[kept], None, cond, rows, each, cost.rounds)
        return Restored(x, cost, residual, path)

    @torch.no_grad()
    def _run(self, run: Run, z: Tensor, kept: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """The sample, and the states that are kept."""
        times = self.grid.tolist()
        run.schedule.expect(times)
        x = self.start(run, z, times[0])
        states = [x] if 0 in kept else []
        for n, (t, s) in enumerate(pairwise(times), start=1):
            x = self.step(run, x, t, s)
            if n in kept:
                states.append(x)
        return x, states

    def _checked(self, denoiser: Denoiser, problem: Problem | Decoded, y: Tensor, z: Tensor, known: bool) -> Tensor:
        """What was measured, as the run takes it."""
        check_noise(z, denoiser.shape if isinstance(denoiser, Prediction) else None)
        if isinstance(problem, Decoded):
            if self.solves:
                raise ValueError(
                    f"{type(self).__name__} solves a linear problem, and one that is Decoded is none: take "
                    "Constrained, DPS or MPGD for a teacher of latents"
                )
            with torch.no_grad():
                shape, stated = problem.decode(z[:1]).shape[1:], problem.problem
        else:
            shape, stated = z.shape[1:], problem
        try:
            measured = check_problem(stated, shape, z.dtype, z.device, len(z))
        except ValueError as error:
            # Of pictures one knows what is wrong with a problem; what has other channels may be latents of some.
            raise ValueError(f"{error}" if len(shape) and shape[0] in (1, 3) else f"{error}; {PIXELS}") from None
        if y.shape != (len(z), *measured):
            raise ValueError(
                f"what was measured of {tuple(shape)} is {(len(z), *measured)} here, and y is {tuple(y.shape)}; "
                f"{PIXELS}"
            )
        if not bool(y.isfinite().all()):
            raise ValueError("what was measured must be finite, and y holds NaN or infinity")
        # What a mask hides may hold anything: grey, or the picture itself.
        return stated.A(y.to(z)) if isinstance(stated, Mask) and known else y.to(z)
