r"""Parareal in time: a cheap serial sweep proposes, fine steps of all blocks in parallel correct (SRDS).

The N steps of the chain are cut into M blocks of $P_1, \dots, P_M$ steps. Two maps cross block $i$, which starts at
$t_i$: the *fine* one $F_i$ is the chain's own $P_i$ steps, the *coarse* one $G_i$ the same with $D$ held at the start,

$$ G_i(x) = A_i x + B_i D(x, t_i) + \zeta_i, \qquad
   A_i = \prod_n a_n, \quad B_i = \sum_n b_n \prod_{m > n} a_m, \quad \zeta_i = \sum_n s_n z_n \prod_{m > n} a_m, $$

products and sums over the block's steps. At $\eta = 0$ it is DDIM's step from the block's start to its end. With $U_0$
the noise, $U_i^0 = G_i(U_{i-1}^0)$ and then, in iterations $p = 1, 2, \dots$,

$$ U_i^p = F_i(U_{i-1}^{p-1}) + \big( G_i(U_{i-1}^p) - G_i(U_{i-1}^{p-1}) \big). $$

Where a start did not change the bracket is exactly 0, and the block's end is the chain's. So after $p$ iterations the
first $p$ blocks are exact, whatever the guesses were, and nothing more is spent on them; after M iterations all are.

$F_i$ and $G_i$ ask the same first question, which is asked once: $F_i$ costs $P_i - 1$ rounds more. *Plain*, an
iteration is two phases: the fine steps of all blocks abreast, then the coarse sweep, block after block. *Pipelined*,
nothing waits but for its own inputs, and a round holds evaluations of several blocks and several iterations: $U_i^p$ is
there after

$$ T(i, p) = \max\big( T(i - 1, p - 1) + P_i, \; T(i - 1, p) + 1 \big), \qquad T(i, 0) = i, \quad T(0, p) = 0, $$

rounds, never more than a serial run needs. For $k$ iterations with M blocks of P steps each:

| | rounds | with a draft | evaluations of a sample |
|---|---|---|---|
| plain | $M + k (P - 1) + \sum_{p \le k} (M - p)$ | $M - 1$ fewer | $\sum_{p < k} (M - p) P + M - k$ |
| pipelined | $k P + M - k$ | the same | those, and what was begun of later iterations |

The last state may rest while those before it still move, and then move again: a sample between two modes does, and at
$\eta = 1$ one can stop in the wrong mode. What is wrong at the end is a sum over the blocks of what is wrong across
each, so the sum of the changes is what is held against the tolerance, unless the published rule is asked for.

A draft takes the place of the first coarse sweep, which the pipelined schedule hides behind the fine steps: there it
saves rounds only if it saves an iteration.

Source: Selvam, Merchant & Ermon, 2024 (arXiv 2412.08292), where the chain is DDIM's; with its noise drawn once any
$\eta$ is the same computation. Parareal is by Lions, Maday & Turinici, 2001.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor

from dsno.condition import Cond
from dsno.denoise import expand_like
from dsno.parallel.draft import Draft, guess
from dsno.parallel.rounds import Exact, Rounds, System
from dsno.trajectory import Trajectory

__all__ = ["SRDS"]


@dataclass(frozen=True)
class SRDS(Exact):
    r"""Self-refining diffusion sampler: parareal on the chain (Selvam et al., 2024, arXiv 2412.08292).

    Arguments:
        denoiser: The teacher, $D$.
        chain: The chain to be solved, N steps; its `run` is the reference.
        blocks: The number of blocks M, a divisor of N; or the number of steps of each, with sum N. None cuts N into
            about $\sqrt N$ blocks, as even as possible.
        tolerance: A sample stops when an iteration changes it by less. None stops it when one changed nothing, or after
            M iterations: the chain's own result, to rounding. Rounding moves last bits to the end, so that is about M
            iterations: a small tolerance is much cheaper than none.
        pipelined: Fill each round with whatever is ready, of any iteration; else coarse and fine phases take turns. The
            results are the same. Pipelining takes fewer rounds, and more evaluations: iterations are begun before it is
            known that they are needed.
        draft: Where the states at the block boundaries start, instead of the coarse sweep.
        stop: What is held against the tolerance: the sum over all block boundaries of the mean of $|U_i^p - U_i^{p-1}|$
            over a sample's coordinates (`path`), or that of the last state alone (`last`), the published rule.
        iterations: At most so many iterations, at least 1. With fewer than M the tolerance may not be reached; the
            first `iterations` blocks are exact even so.

    Raises:
        ValueError: for blocks that do not make up the chain, a tolerance or number of iterations that is not positive,
            or another rule to stop.
    """

    blocks: int | Sequence[int] | None = None
    tolerance: float | None = 1e-3
    pipelined: bool = True
    draft: Draft | None = None
    stop: Literal["path", "last"] = "path"
    iterations: int | None = None

    def __post_init__(self) -> None:
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(
                f"tolerance must be positive, got {self.tolerance:g}: None runs until nothing changes any more"
            )
        if self.iterations is not None and self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}: None sets no limit")
        if self.stop not in ("path", "last"):
            raise ValueError(f"stop must be 'path' (all boundaries) or 'last' (the last state), got {self.stop!r}")
        _ = self.lengths  # raises for blocks that do not fit

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of steps of each block, (M,)."""
        return _lengths(len(self.chain), self.blocks)

    @torch.no_grad()
    def solve(
        self, x: Tensor, tape: Tensor | None = None, cond: Cond | None = None, seeds: Tensor | None = None
    ) -> Trajectory:
        r"""From the states `x` (B, *shape) at the chain's start, with the noise of its steps (N, B, *shape).

        Returns:
            The states at the block boundaries, (B, M + 1, *shape), and their times (M + 1,). Samples stop one by one:
            one that has is in no later round. `trace.history` has a row for each iteration.

        Raises:
            ValueError: for a stochastic chain without a tape, a bad draft, or a denoiser that is not deterministic.
            FloatingPointError: if the denoiser is not finite at a state of the chain.
        """
        system, rounds = System(self.chain, x, tape), Rounds(self.denoiser, self.chain, cond, x)
        blocks = _Blocks(system, self.lengths)
        M = len(blocks)
        last = M if self.iterations is None else min(self.iterations, M)
        path = guess(self.draft, system, x, cond, seeds, rounds)
        live = torch.arange(len(x), device=x.device)
        result = x.new_zeros(len(x), M + 1, *x.shape[1:])
        first = _Iteration(0, [], blocks, live)
        for u in [x] if path is None else blocks.ends(x, path):
            first.reach(u)
        iterations = [first]  # those under way, and the one before them
        while len(live):
            _round(self._due(iterations), blocks, rounds, live, last)
            newest = iterations[-1]
            if newest.p < last and newest.p in newest.F:  # one more block is exact
                iterations.append(_Iteration(newest.p + 1, newest.U[: newest.p + 1], blocks, live))
            for before, iteration in zip([None, *iterations[:-1]], iterations, strict=True):
                if (state := iteration.next_state(before)) is not None:
                    iteration.reach(state)
            while len(live) and len(iterations) > 1 and len(iterations[1].U) == M + 1:
                old, new = iterations[:2]
                done = self._done(old, new, live, rounds) | (new.p == last)
                result[live[done]] = torch.stack(new.U, 1)[done]
                live, iterations = live[~done], iterations[1:]
                for iteration in iterations:
                    iteration.keep(~done)
        return rounds.trajectory(result, self.chain.grid[blocks.edges], seeds)

    def _due(self, iterations: list[_Iteration]) -> list[tuple[_Iteration, int]]:
        """The blocks of which iterations the next round evaluates."""
        if self.pipelined:
            return [(iteration, i) for iteration in iterations for i in iteration.flight]
        oldest = next(iteration for iteration in iterations if iteration.flight)
        swept = len(oldest.blocks) - 1 in oldest.G
        return [(oldest, i) for i in oldest.flight if swept or i not in oldest.G]

    def _done(self, old: _Iteration, new: _Iteration, live: Tensor, rounds: Rounds) -> Tensor:
        """Which of the samples `live` (A,) an iteration has brought to their end, (A,)."""
        dtype = torch.promote_types(new.U[0].dtype, torch.float32)
        pairs = zip(new.U, old.U, strict=True)
        change = torch.stack([(u - v).abs().flatten(1).mean(1, dtype=dtype) for u, v in pairs])
        rounds.watch(change[-1], live)
        if self.tolerance is None:
            still = (change == 0).all(0)
        else:
            still = (change.sum(0) if self.stop == "path" else change[-1]) < self.tolerance
        return still & ~old.doubt


class _Blocks:
    """The chain in M blocks, from step `edges[i]` to `edges[i + 1]`, and the coarse map across each."""

    def __init__(self, system: System, lengths: Sequence[int]) -> None:
        self.system, self.edges = system, [0, *accumulate(lengths)]
        self.A: list[float] = []
        self.B: list[float] = []
        self.zeta: list[Tensor] = []
        coefficients, one = system.chain.coefficients(), torch.ones(1, dtype=torch.float64)
        for start, end in pairwise(self.edges):
            a, b, s = coefficients[start:end].unbind(1)
            after = torch.cat([a.flip(0).cumprod(0).flip(0)[1:], one])  # what the block's later steps multiply by
            self.A.append(float(a.prod()))
            self.B.append(float((b * after).sum()))
            if system.tape is not None:
                tape = system.tape[start:end]
                self.zeta.append((expand_like((s * after).to(tape), tape) * tape).sum(0))

    def __len__(self) -> int:
        return len(self.edges) - 1

    def coarse(self, i: int, x: Tensor, x0_hat: Tensor, sample: Tensor) -> Tensor:
        r"""$A_i x + B_i \hat x_0 + \zeta_i$ for the states (A, *shape) of samples (A,) at the start of block `i`."""
        x_end = self.A[i] * x + self.B[i] * x0_hat
        return x_end + self.zeta[i][sample] if self.zeta else x_end

    def ends(self, x: Tensor, path: Tensor) -> list[Tensor]:
        r"""The states (B, *shape) at the M + 1 ends of blocks, where $\hat x_0$ is the draft's, (B, N, *shape)."""
        states, every = [x], torch.arange(len(x), device=x.device)
        for n in range(len(self.system)):
            states.append(self.system.step(states[-1], path[:, n], n, every))
        return [states[n] for n in self.edges]


class _Iteration:
    """Iteration `p`: the states it has reached, (A, *shape) each, and by block what was made of them.

    `U[i]` is the start of block `i`, `G[i]` and `F[i]` the ends of its coarse and its fine map, `flight[i]` the step
    and the state its fine map has come to. `doubt` (A,): an answer stood in for one that was not finite.
    """

    def __init__(self, p: int, exact: list[Tensor], blocks: _Blocks, live: Tensor) -> None:
        self.p, self.U, self.blocks = p, exact, blocks
        self.G: dict[int, Tensor] = {}
        self.F: dict[int, Tensor] = {}
        self.flight: dict[int, tuple[int, Tensor]] = {}
        self.doubt = torch.zeros(len(live), dtype=torch.bool, device=live.device)

    def reach(self, u: Tensor) -> None:
        """Take the next state, and start the block behind it."""
        self.U.append(u)
        if (i := len(self.U) - 1) < len(self.blocks):
            self.flight[i] = self.blocks.edges[i], u

    def next_state(self, old: _Iteration | None) -> Tensor | None:
        """The next state, from this iteration and the one before it, if all it needs is there."""
        i = len(self.U) - 1
        if old is None:
            return self.G.get(i)
        if i not in old.F:
            return None
        if i < self.p:  # its start was exact an iteration ago
            return old.F[i]
        return old.F[i] + (self.G[i] - old.G[i]) if i in self.G else None

    def keep(self, rows: Tensor) -> None:
        """Drop the samples that have stopped; `rows` (A,) are kept."""
        self.U, self.doubt = [u[rows] for u in self.U], self.doubt[rows]
        self.G, self.F = ({i: u[rows] for i, u in ends.items()} for ends in (self.G, self.F))
        self.flight = {i: (n, u[rows]) for i, (n, u) in self.flight.items()}


def _round(due: list[tuple[_Iteration, int]], blocks: _Blocks, rounds: Rounds, live: Tensor, last: int) -> None:
    """Evaluate the samples `live` (A,) at the blocks that are due, in one call, and move each a step on."""
    A = len(live)
    steps = torch.tensor([iteration.flight[i][0] for iteration, i in due], device=live.device).repeat_interleave(A)
    # An exact start is no guess, and what the last iteration begins from is kept whatever it is.
    final = [iteration.p == i or iteration.p >= last - 1 for iteration, i in due]
    known = torch.tensor(final, device=live.device).repeat_interleave(A)
    x, sample = torch.cat([iteration.flight[i][1] for iteration, i in due]), live.repeat(len(due))
    x0_hat = rounds(x, steps, sample, known)
    rows = (x, x0_hat, blocks.system.step(x, x0_hat, steps, sample), ~rounds.finite)
    for (iteration, i), x_n, x0_n, x_next, doubt in zip(due, *(r.split(A) for r in rows), strict=True):
        n = iteration.flight[i][0]
        if n == blocks.edges[i]:
            iteration.G[i] = blocks.coarse(i, x_n, x0_n, live)
        iteration.flight[i] = n + 1, x_next
        iteration.doubt = iteration.doubt | doubt
        if n + 1 == blocks.edges[i + 1]:
            iteration.F[i] = x_next
        if n + 1 == blocks.edges[i + 1] or iteration.p == last:  # no later iteration needs the fine map
            del iteration.flight[i]


def _lengths(steps: int, blocks: int | Sequence[int] | None) -> tuple[int, ...]:
    if blocks is None:
        return _even(steps, max(round(math.sqrt(steps)), 1))
    if not isinstance(blocks, int):
        lengths = tuple(blocks)
        if min(lengths, default=0) < 1 or sum(lengths) != steps:
            raise ValueError(
                f"blocks of {lengths} steps have {sum(lengths)} in all: a chain of {steps} steps takes positive "
                f"lengths that sum to {steps}"
            )
        return lengths
    if blocks < 1 or steps % blocks:
        divisors = sorted((m for m in range(1, steps + 1) if steps % m == 0), key=lambda m: (abs(m - blocks), m))[:4]
        example = ", ".join(map(str, _even(steps, min(max(blocks, 1), steps))[:3]))
        near = ", ".join(map(str, sorted(divisors)))
        raise ValueError(
            f"{blocks} blocks cannot share the {steps} steps of the chain evenly: take {near} blocks, or give the "
            f"length of each, such as ({example}, ...), with sum {steps}"
        )
    return (steps // blocks,) * blocks


def _even(steps: int, blocks: int) -> tuple[int, ...]:
    """The longer ones first."""
    length, longer = divmod(steps, blocks)
    return (length + 1,) * longer + (length,) * (blocks - longer)
