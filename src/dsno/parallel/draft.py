r"""Drafts: a guess at the trajectory, from which an exact sampler starts.

A draft changes what a sample costs; run to the end (`tolerance=None`), never the sample. Under a tolerance a sample on
the boundary of two modes may stay where the draft put it. It is taken as $\hat x_0$ at every step of the chain, and the
states follow from the chain's own recursion, so a draft that is right about $\hat x_0$ is right about the states
whatever lies between its times. Where it comes from:

| a draft gives | $\hat x_0$ at step $n$ |
|---|---|
| $\hat x_0$ at its times | interpolated linearly in $t$, constant before the first |
| states at all the chain's times | the value for which the chain's step leads from $x_n$ to $x_{n+1}$ |
| states at some times | between two neighbours $t > s$ the constant of the ODE's step, below |

The last is DDIM's step inverted,

$$ \hat x_0 = \frac{x_s - (\sigma_s / \sigma_t) \, x_t}{\alpha_s - (\sigma_s / \sigma_t) \, \alpha_t} . $$
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsno.condition import Cond, map_cond
from dsno.parallel.rounds import Rounds, System, wide
from dsno.solvers.chain import Chain
from dsno.students.operator import TrajectoryStudent
from dsno.trajectory import Sampler, Trajectory

__all__ = ["Draft", "guess", "x0_of_student", "x0_of_trajectory"]

Draft = Trajectory | TrajectoryStudent | Sampler
"""A trajectory of the same samples on times of the chain; or what makes one from the noise, a student or a sampler."""


def guess(
    draft: Draft | None, system: System, x: Tensor, cond: Cond | None, seeds: Tensor | None, rounds: Rounds
) -> Tensor | None:
    r"""What a draft says of $\hat x_0$ at every step, (B, N, *shape), or None. Its calls are counted in `rounds`.

    Raises:
        ValueError: for a draft of another shape, or on other times.
    """
    if draft is None:
        return None
    chain, every = system.chain, torch.arange(len(x), device=x.device)
    if isinstance(draft, Trajectory):
        known = (draft.t.double()[:, None] - chain.grid).abs().amin(1) < 1e-6
        if not bool(known.all()):
            raise ValueError(
                f"the draft has a state at t = {float(draft.t[~known][0]):g}, which is no time of the chain: give "
                "states at times of the chain, or the student itself"
            )
        return x0_of_trajectory(draft, system, x)
    start = float(chain.grid[0])
    if start != 1 and not (isinstance(draft, TrajectoryStudent) and draft.restarts):
        raise ValueError(
            f"this draft starts from pure noise, the chain starts at t = {start:g}: start it at 1, or draft None"
        )
    if isinstance(draft, TrajectoryStudent):
        rounds.tally(every, 1, 1)
        return x0_of_student(draft, system, x, torch.zeros_like(every), cond, every)
    made = draft(x / chain.schedule.at(start)[1], cond, seeds)
    if made.trace is None:
        rounds.tally(every, made.rounds, made.nfe)
    else:
        rounds.draft_calls += made.rounds
        rounds.draft_rounds += made.trace.rounds + made.trace.draft_rounds
        rounds.draft_rows += made.trace.rows + made.trace.draft_rows
    return x0_of_trajectory(made, system, x)


def x0_of_trajectory(draft: Trajectory, system: System, x: Tensor) -> Tensor:
    r"""$\hat x_0$ at every step from a trajectory of states or of $\hat x_0$, the table above: (B, N, *shape).

    Raises:
        ValueError: for another shape, or times that do not reach from the chain's first to its last.
    """
    chain, t = system.chain, draft.t.double()
    for name, y in (("states", draft.x), ("x0", draft.x0)):
        if y is not None and y.shape != (len(x), len(t), *x.shape[1:]):
            raise ValueError(
                f"the draft's {name} have shape {tuple(y.shape)}, expected {(len(x), len(t), *x.shape[1:])}: samples, "
                "times, and the shape of one sample"
            )
    first, last = float(chain.grid[0]), float(chain.grid[-1])
    if len(t) < 2 or abs(float(t[0]) - first) > 1e-9 or abs(float(t[-1]) - last) > 1e-9:
        raise ValueError(
            f"the draft has times {t.tolist()}, expected some from {first:g} to {last:g}, the chain's ends"
        )
    if draft.x0 is not None:
        return _interpolated(draft.x0.to(x), t, chain.grid[:-1])
    states = draft.x.to(x)
    if len(t) == len(chain.grid) and torch.allclose(t, chain.grid, rtol=0, atol=1e-6):
        return _between_all(states, system)
    steps = torch.searchsorted(-t, -chain.grid[:-1] + 1e-7, right=True).sub(1).clamp(0, len(t) - 2)
    return _between(states, t, chain)[:, steps.to(x.device)]


def x0_of_student(
    student: TrajectoryStudent, system: System, x: Tensor, n: Tensor, cond: Cond | None, sample: Tensor
) -> Tensor:
    r"""$\hat x_0$ at every step by a student that starts from inner states: one pass, (A, *shape) to (A, N, *shape).

    Row i is the state `x[i]` at step `n[i]` of sample `sample[i]`. Only the frames behind its time are used, and what
    is said of steps before `n[i]` means nothing.

    Raises:
        ValueError: for a student of samples of another shape.
    """
    if tuple(student.shape) != tuple(x.shape[1:]):
        raise ValueError(f"the student makes samples of shape {student.shape}, the chain's have {tuple(x.shape[1:])}")
    if len(x) == 0:
        return x.new_zeros(0, len(system), *x.shape[1:])
    grid, t, last = system.chain.grid[:-1], system.chain.grid[n.cpu()], student.frames - 1
    cond = map_cond(lambda c: c[sample.to(c.device)], cond)
    start = t.to(x.device, torch.promote_types(x.dtype, torch.float32))
    h = student(x, cond, start)
    # Before the first frame behind the start, h of that frame: of a state student it is the ODE's constant up to there.
    first = (student.times < t[:, None] - 1e-9).int().argmax(1)
    rows, before = torch.arange(len(x), device=x.device)[:, None], grid > student.times[first][:, None]
    nearest = h[rows, first[:, None].to(x.device)].expand(-1, len(grid), *x.shape[1:])
    if last == 0:
        return nearest
    m = (torch.searchsorted(-student.times, -grid + 1e-12, right=True) - 1).clamp(0, last - 1)
    if student.target == "state":
        behind = _between(student.states(x, h, start), student.times, system.chain)[:, m.to(x.device)]
    else:
        behind = _interpolated(h, student.times, grid)
    return torch.where(wide(before.to(x.device), nearest), nearest, behind)


def _interpolated(x0: Tensor, t: Tensor, times: Tensor) -> Tensor:
    """Linear in t; (B, T, *shape) at `t` (T,), decreasing, to (B, N, *shape) at `times` (N,)."""
    m = (torch.searchsorted(-t, -times, right=True) - 1).clamp(0, len(t) - 2)
    weight = ((t[m] - times) / (t[m] - t[m + 1])).clamp(0, 1)
    m, w = m.to(x0.device), wide(weight.to(x0)[None], x0)
    return torch.lerp(x0[:, m], x0[:, m + 1], w.expand(len(x0), -1, *x0.shape[2:]))


def _between_all(x: Tensor, system: System) -> Tensor:
    """The value for which the chain's step leads from each state to the next, (B, N + 1, *shape) to (B, N, *shape)."""
    every, zero = torch.arange(len(x), device=x.device), torch.zeros_like(x[:, 0])
    rest = [x[:, n + 1] - system.step(x[:, n], zero, n, every) for n in range(len(system))]
    b = system.b
    return torch.stack([r / b[n] if b[n] != 0 else zero for n, r in enumerate(rest)], 1)


def _between(x: Tensor, t: Tensor, chain: Chain) -> Tensor:
    """DDIM's step inverted from each state to the next, (B, T, *shape) at `t` (T,) to (B, T - 1, *shape)."""
    # `ddim_inverse` of all rows at once, but with float64 times on the host: not every device has such numbers.
    alpha, sigma = (wide(c.to(x)[None], x) for c in chain.schedule(t))
    ratio = sigma[:, 1:] / sigma[:, :-1]
    return (x[:, 1:] - ratio * x[:, :-1]) / (alpha[:, 1:] - ratio * alpha[:, :-1])
