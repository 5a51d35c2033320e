r"""Speculative sampling of the stochastic chain: draft several steps, check them with one call, keep those that hold.

A step of the chain is a Gaussian $q = \mathcal N(m_q, s^2 I)$, $m_q = a_n x + b_n D(x, t_n)$, whose $s$ the network does not
touch. A draft knows a cheap mean $m_p$. Reflection couples $p = \mathcal N(m_p, s^2 I)$ with $q$ so that they agree as
often as two laws can: with $z \sim \mathcal N(0, I)$, $u$ uniform, $\Delta = (m_p - m_q)/s$, $e = \Delta/|\Delta|$,

$$ x = \begin{cases} m_p + s z & \log u \le -\langle z, \Delta\rangle - \tfrac12|\Delta|^2 \\
                     m_q + s (z - 2 e \langle e, z\rangle) & \text{else} \end{cases}
   \qquad x \sim q, \quad P(\text{first}) = 2 \Phi(-\tfrac12|\Delta|). $$

A window drafts states $\tilde y_{n+1}, \dots, \tilde y_{n+\ell}$ with $p$, asks the denoiser at all of them in one round, and
goes through the steps in order up to the first that is rejected; the reflected state is one of $q$ and starts the next
window. Every step of the result is drawn from $q$ given its past, so the law is the chain's for any draft that is a
function of the past alone.

Source: De Bortoli, Galashov, Gretton, Doucet, 2025 (arXiv 2501.05370). Two things differ. What is frozen in a window is
$\hat x_0$ and not the drift, which keeps the linear part of the step exact. And a window starts with the evaluation at the
last *verified* state, one step old, where the publication spends a round on a new one (`refresh`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dsno.denoise import Cond, expand_like
from dsno.noise import noise
from dsno.parallel.draft import Draft, fill_from, guess
from dsno.parallel.rounds import Exact, Rounds, System
from dsno.solve import initial_state
from dsno.students.flowmap import TrajectoryStudent
from dsno.trajectory import Trajectory

__all__ = ["Speculative", "reflect"]

STREAM = 2**31
"""The first of the streams windows draw from: far from those of the initial noise and of the chain's tape, which a draft
may have seen."""


def reflect(m_p: Tensor, m_q: Tensor, s: Tensor, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    r"""The reflection maximal coupling of $\mathcal N(m_p, s^2 I)$ and $\mathcal N(m_q, s^2 I)$, the formula above.

    Arguments:
        m_p: The draft's means, (R, *shape).
        m_q: The chain's, (R, *shape).
        s: The standard deviation, (R,), at least 0.
        z: Standard normal noise, (R, *shape).
        u: Uniform numbers in (0, 1), (R,).

    Returns:
        States of the law of $q$, (R, *shape), and whether they are the draft's, (R,) bool. Equal means are accepted;
        a step without noise gives $m_q$ and is not.
    """
    precise = torch.promote_types(m_p.dtype, torch.float32)
    apart, flat_z = (m_p - m_q).flatten(1).to(precise), z.flatten(1).to(precise)
    norm, s_row = apart.norm(dim=1), s.to(precise)
    same, still = norm == 0, s_row == 0
    e = apart / torch.where(same, 1.0, norm).unsqueeze(1)
    g, r = (e * flat_z).sum(1), norm / torch.where(still, 1.0, s_row)
    accepted = (same | (u.log() <= -r * (g + r / 2))) & ~still
    mirrored = z - (2 * g.unsqueeze(1) * e).reshape_as(z).to(z)
    scale = expand_like(s, z)
    return torch.where(expand_like(accepted, z).bool(), m_p + scale * z, m_q + scale * mirrored), accepted


@dataclass(frozen=True)
class Speculative(Exact):
    r"""Samples of the stochastic chain's exact law in few rounds.

    Each sample has its own step and its own window, and a finished one is in no later round. A window of $\ell$ steps costs
    one round of at most $\ell + 1$ rows, the state after its last step among them: where all steps hold, the next window
    starts with its own evaluation. A sample needs at most N rounds, N being those of the chain itself.

    The noise of window w of a sample is a function of its seed and w: a sample is the same in any batch. A rejected step
    has seen its noise, so windows cannot share one tape: `solve` does not use `tape`, and the result has the law of
    `chain.run` and not its path.

    Arguments:
        denoiser: The teacher, $D$.
        chain: The chain, eta > 0.
        window: The longest window, in steps.
        adaptive: Whether a sample's window is twice the running mean of the steps that its windows made (each window
            counts half of what came after it), at most `window`: fewer rows, and some more rounds.
        refresh: Whether a window that starts behind a rejected step first spends a round on its own evaluation, as
            published.
        draft: None is the frozen $\hat x_0$. A trajectory, a sampler or a student gives a path of $\hat x_0$ before the
            first window. A student that can restart (`restarts`) drafts each window from its first state; `OnePass` of
            it drafts once. A draft must not know the noise of the windows: a trajectory that this sampler made from
            the same seeds is none.

    Raises:
        ValueError: if the window is not at least 1, or the chain is deterministic.
    """

    window: int = 20
    adaptive: bool = False
    refresh: bool = False
    draft: Draft | None = None

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be at least 1 step, got {self.window}")
        if self.chain.eta == 0:
            raise ValueError(
                "speculative sampling needs a stochastic chain, got eta = 0: raise eta, or take Picard, ParaTAA or SRDS"
            )

    def __call__(self, z: Tensor, cond: Cond | None = None, seeds: Tensor | None = None) -> Trajectory:
        """From standard normal noise (B, *shape); see `solve`."""
        return self.solve(initial_state(self.chain.schedule, z, float(self.chain.grid[0])), None, cond, seeds)

    @torch.no_grad()
    def solve(
        self, x: Tensor, tape: Tensor | None = None, cond: Cond | None = None, seeds: Tensor | None = None
    ) -> Trajectory:
        """All states of the chain (B, N + 1, *shape) from `x` (B, *shape) at its start; `tape` is not used.

        Raises:
            ValueError: without one seed per sample, or for a draft that does not fit.
            FloatingPointError: if the denoiser returns values that are not finite; names the sample and the time.
        """
        if seeds is None or len(seeds) != len(x):
            given = "none" if seeds is None else len(seeds)
            raise ValueError(
                f"speculative sampling draws its own noise: pass `seeds`, one per sample ({len(x)}), got {given}"
            )
        chain, N = self.chain, len(self.chain)
        rounds = Rounds(self.denoiser, chain, cond, x)
        a, b, s = chain.coefficients().to(x).unbind(1)
        path = self._path(x, cond, seeds, rounds)
        states = x.new_zeros(len(x), N + 1, *x.shape[1:])
        states[:, 0] = x
        n = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        # The evaluation at the last verified state, and whether that is the sample's present state. Before the first one 0
        # is as good a guess as there is: at the noise D is the mean of the data.
        x0_hat, fresh = torch.zeros_like(x), torch.zeros_like(n, dtype=torch.bool)
        mean = torch.full((len(x),), self.window / 2, device=x.device)
        longest = torch.full_like(n, self.window)
        for w in itertools.count():
            sample = (n < N).nonzero().squeeze(1)
            if len(sample) == 0:
                return rounds.trajectory(states, chain.grid, seeds)
            start, known = n[sample], fresh[sample]
            length = torch.minimum(longest[sample], N - start)
            if self.refresh:
                # A window of no steps is an evaluation at the present state.
                length = torch.where(known, length, 0)
            L = int(length.max())
            k = torch.arange(L + 1, device=x.device)
            step = start.unsqueeze(1) + k
            inside, step = step < N, step.clamp_max(N - 1)
            x0_p = self._drafted(path, x0_hat, states[sample, start], sample, step[:, :L], rounds)
            x0_p[known, :1] = x0_hat[sample[known]].unsqueeze(1)
            z, u = _noise(seeds, sample, L, w, x)
            m_p, y = torch.empty_like(x0_p), x.new_empty(len(sample), L + 1, *x.shape[1:])
            y[:, 0] = states[sample, start]
            for j in range(L):
                i = step[:, j]
                m_p[:, j] = expand_like(a[i], x) * y[:, j] + expand_like(b[i], x) * x0_p[:, j]
                y[:, j + 1] = m_p[:, j] + expand_like(s[i], x) * z[:, j]
            # One round.
            asked = (k <= length.unsqueeze(1)) & (k >= known.long().unsqueeze(1)) & inside
            x0_q = torch.zeros_like(y)
            x0_q[known, 0] = x0_hat[sample[known]]
            if bool(asked.any()):
                x0_q[asked] = rounds(y[asked], step[asked], sample.unsqueeze(1).expand_as(asked)[asked])
            # Verify.
            i = step[:, :L].reshape(-1)
            flat = y[:, :L].flatten(0, 1)
            m_q = expand_like(a[i], flat) * flat + expand_like(b[i], flat) * x0_q[:, :L].flatten(0, 1)
            x_next, accepted = reflect(m_p.flatten(0, 1), m_q, s[i], z.flatten(0, 1), u.flatten())
            x_next = x_next.unflatten(0, (len(sample), L))
            held = (accepted.unflatten(0, (len(sample), L)) & (k[:L] < length.unsqueeze(1))).long().cumprod(1).sum(1)
            made = torch.minimum(held + 1, length)
            kept = k[:L] < made.unsqueeze(1)
            states[sample.unsqueeze(1).expand_as(kept)[kept], step[:, :L][kept] + 1] = x_next[kept]
            fresh[sample] = held == length
            row = torch.arange(len(sample), device=x.device)
            x0_hat[sample] = x0_q[row, torch.where(held == length, length, made - 1)]
            n[sample] += made
            if self.adaptive:
                tried = sample[length > 0]
                mean[tried] = (mean[tried] + made[length > 0]) / 2
                longest[tried] = (2 * mean[tried]).ceil().long().clamp(1, self.window)
            watched = length > 0
            rounds.watch((held / length.clamp_min(1))[watched], sample[watched])
        raise AssertionError("unreachable: every window makes a step")

    @property
    def _restarting(self) -> TrajectoryStudent | None:
        return self.draft if isinstance(self.draft, TrajectoryStudent) and self.draft.restarts else None

    def _path(self, x: Tensor, cond: Cond | None, seeds: Tensor, rounds: Rounds) -> Tensor | None:
        """The draft that is made once, (B, N, *shape)."""
        if self._restarting is not None:
            return None
        # A draft follows the ODE: it has no part in the noise of the windows.
        return guess(self.draft, System(replace(self.chain, eta=0.0), x, None), x, cond, seeds, rounds)

    def _drafted(
        self, path: Tensor | None, x0_hat: Tensor, y: Tensor, sample: Tensor, step: Tensor, rounds: Rounds
    ) -> Tensor:
        r"""$\hat x_0$ of the windows' steps `step` (A, L): (A, L, *shape)."""
        if path is not None:
            return path[sample.unsqueeze(1), step]
        if step.shape[1] == 0 or (student := self._restarting) is None:
            return x0_hat[sample].unsqueeze(1).expand(-1, step.shape[1], *y.shape[1:]).clone()
        rounds.tally(sample, 1, 1)
        system = System(replace(self.chain, eta=0.0), y, None)
        drafted = fill_from(student, system, y, step[:, 0], rounds.cond, sample)
        return drafted[torch.arange(len(sample), device=y.device).unsqueeze(1), step]


def _noise(seeds: Tensor, sample: Tensor, L: int, w: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """The normal numbers (A, L, *shape) and the uniform ones (A, L) of window `w`."""
    precise = torch.promote_types(x.dtype, torch.float32)
    drawn = noise(seeds.to(sample.device)[sample].cpu(), (L, x[0].numel() + 1), STREAM + w, precise, x.device)
    return drawn[..., :-1].reshape(len(sample), L, *x.shape[1:]).to(x.dtype), torch.special.ndtr(drawn[..., -1])
