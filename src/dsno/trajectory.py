"""What sampling produces, and who produces it.

A solver, an exact sampler in parallel and a student that answers in one pass all take noise and return a
`Trajectory`: the states that were kept, their times, and what they cost. Whatever follows takes any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from dsno.condition import Cond, map_cond
from dsno.seeds import as_seeds

__all__ = ["Sampler", "Trace", "Trajectory", "sampled"]


@dataclass(frozen=True)
class Trace:
    """What each sample cost, of a sampler whose samples finish apart.

    Attributes:
        rounds: Serial rounds: batched calls that evaluated the sample, (B,) int64.
        rows: Network evaluations, (B,) int64.
        draft_rounds: Serial calls of the draft's network, (B,) int64.
        draft_rows: Its evaluations, (B,) int64.
        history: What the sampler watches, by round, (R, B) float64, NaN where a sample was not in the round: the
            largest residual of Picard, ParaTAA and the receding loop, the last state's mean change of SRDS, the
            accepted share of the window of speculative sampling.
    """

    rounds: Tensor
    rows: Tensor
    draft_rounds: Tensor
    draft_rows: Tensor
    history: Tensor


@dataclass(frozen=True)
class Trajectory:
    r"""States along the probability-flow ODE (or a stochastic chain), noise first, sample last.

    Attributes:
        x: States, shape (B, T, *shape).
        t: Their times, shape (T,), decreasing float64 on the host.
        x0: The denoiser's $\hat x_0(x_t, t)$ at each kept state, shape (B, T, *shape), where it was asked for; at
            $\sigma_t = 0$ it is the state itself.
        cond: The condition, one tensor or several by name, first dimension B; or None.
        seeds: The seeds of the initial noise, shape (B,), or None.
        nfe: Network evaluations per sample (the total cost).
        rounds: Serial network calls (the latency).
        trace: The cost of each sample apart, and how it converged, from samplers that know.
    """

    x: Tensor
    t: Tensor
    x0: Tensor | None = None
    cond: Cond | None = None
    seeds: Tensor | None = None
    nfe: int = 0
    rounds: int = 0
    trace: Trace | None = None

    @property
    def noise(self) -> Tensor:
        """The first state, shape (B, *shape)."""
        return self.x[:, 0]

    @property
    def sample(self) -> Tensor:
        """The last state, shape (B, *shape)."""
        return self.x[:, -1]


def sampled(
    run: Callable[[Tensor, Cond | None, Tensor | None], Trajectory],
    z: Tensor,
    cond: Cond | None = None,
    seeds: Sequence[int] | Tensor | None = None,
) -> Trajectory:
    """What a sampler's `run` makes of noise (B, *shape), with seeds that are integers; of no rows no samples.

    Raises:
        ValueError: for seeds that are none, or not one for each row.
    """
    seeds = None if seeds is None else as_seeds(seeds)
    if seeds is not None and len(seeds) != len(z):
        raise ValueError(f"there are {len(seeds)} seeds for {len(z)} rows of noise: give one for each")
    if len(z):
        return run(z, cond, seeds)

    # Networks are not made for a batch of nothing: it is what they make of one row, without that row.
    def one(rows: Tensor) -> Tensor:
        return rows.new_zeros(1, *rows.shape[1:])

    made = run(one(z), map_cond(one, cond), None if seeds is None else one(seeds))
    return replace(made, x=made.x[:0], x0=None if made.x0 is None else made.x0[:0], cond=cond, seeds=seeds, trace=None)


class Sampler(Protocol):
    """Noise in, trajectory out: sequential solvers, parallel-in-time solvers and one-pass students are called alike.

    `z` is standard normal noise of shape (B, *shape); `cond` has first dimension B; `seeds` (B,) are recorded and, for
    a stochastic sampler, give the noise of its steps.
    """

    def __call__(self, z: Tensor, cond: Cond | None = None, seeds: Tensor | None = None) -> Trajectory: ...
