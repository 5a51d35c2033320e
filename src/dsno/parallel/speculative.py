r"""Speculative sampling of the stochastic chain: draft several steps, check them in one round, keep those that hold.

A step of the chain is a draw from a Gaussian $q = \mathcal N(m_q, s_n^2 I)$, $m_q = a_n x + b_n D(x, t_n)$, whose $s_n$
the network does not touch. A draft $\hat x_0$ gives another mean, $m_p$. Reflection couples the two, so that one draw
is of both as often as two laws allow: with $z \sim \mathcal N(0, I)$, $u$ uniform, $\Delta = (m_p - m_q) / s$,
$e = \Delta / |\Delta|$,

$$ x = \begin{cases} m_p + s z & \log u \le -\langle z, \Delta\rangle - \tfrac12 |\Delta|^2 \\
                     m_q + s (z - 2 e \langle e, z\rangle) & \text{else} \end{cases} \qquad
   x \sim q, \quad P(\text{the first}) = 2 \Phi(-\tfrac12 |\Delta|). $$

A window drafts the next states one after the other, asks the denoiser at all of them in one round, and goes through the
steps up to the first that is refused, whose reflected state starts the next window. Each state of the result is a draw
from $q$ given its past, so the law is the chain's whatever the draft, as long as the draft of step n does not know
$z_n, u_n$.

**What the draft may know.** Each step uses its $z_n, u_n$ once, in the window that decides it: behind a refused step
nothing was decided. So all windows share one tape, and a window drafts with the answers that the one before it got
behind its refused step, at states that have the same noise and are off by one reflection only. From the last answer
$D_i$ at $y_i$, $i \le j$, the draft of step $j$ goes on as for data that are Gaussian of covariance $c_i I$ given $y_i$
(a Kalman filter):

$$ \hat x_0 = D_i + c_j \big( \gamma_j y_j - \gamma_i y_i - (\lambda_j - \lambda_i) D_i \big), \qquad
   \tfrac{1}{c_j} = \tfrac{1}{c_i} + \lambda_j - \lambda_i, \qquad
   \gamma = \tfrac{\alpha}{\sigma^2}, \quad \lambda = \tfrac{\alpha^2}{\sigma^2}, $$

with $c$ the running mean of what solves this, by least squares, for neighbouring states of the result. $c = 0$ is the
frozen $\hat x_0$. A path $g$ of $\hat x_0$ from elsewhere adds its change, $g_j - g_i$: at $\eta = 1$ the expected
change is 0 ($D$ is a martingale along the chain of an exact denoiser), so what an ODE's path can add is little.

Source: De Bortoli, Galashov, Gretton, Doucet, 2025 (arXiv 2501.05370). There a window freezes the drift at its start,
after a round for it where a step was refused (`refresh`). Here $\hat x_0$ is frozen (`reuse=False`), which leaves the
linear part of the step exact, and the last accepted state's serves, one step old. One tape and the filter are this
module's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dsno.condition import Cond
from dsno.denoise import Prediction
from dsno.parallel.draft import Draft, guess, x0_of_student
from dsno.parallel.rounds import Exact, Rounds, System, wide
from dsno.seeds import as_seeds, check_noise, noise
from dsno.solvers.chain import Chain
from dsno.solvers.run import initial_state
from dsno.students.operator import TrajectoryStudent
from dsno.trajectory import Trajectory

__all__ = ["Speculative", "reflect"]

# Far from the streams of the initial noise and of the chain's tape, which a draft may know.
STREAM = 2**31


def reflect(m_p: Tensor, m_q: Tensor, s: Tensor, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    r"""The reflection maximal coupling of $\mathcal N(m_p, s^2 I)$ and $\mathcal N(m_q, s^2 I)$, the formula above.

    Arguments:
        m_p: The draft's means, (R, *shape).
        m_q: The chain's, (R, *shape).
        s: The standard deviation, (R,), at least 0.
        z: Standard normal noise, (R, *shape).
        u: Uniform numbers in [0, 1], (R,).

    Returns:
        Draws from $q$, (R, *shape), and which of them are the draft's, (R,) bool. Equal means are accepted; $s = 0$
        gives $m_q$ and is not. A draft that is not finite is refused.
    """
    precise = torch.promote_types(m_p.dtype, torch.float32)
    apart, flat = (m_p - m_q).flatten(1).to(precise), z.flatten(1).to(precise)
    norm, still = apart.norm(dim=1), s == 0
    pointed = (norm > 0) & norm.isfinite()
    e = torch.where(pointed[:, None], apart / torch.where(pointed, norm, 1.0)[:, None], 0.0)
    along, far = (e * flat).sum(1), norm / torch.where(still, 1.0, s).to(precise)
    accepted = ~still & ((norm == 0) | pointed & (u.log() <= -far * (along + far / 2)))
    mirrored = z - (2 * along[:, None] * e).reshape_as(z).to(z)
    scale = wide(s, z)
    return torch.where(wide(accepted, z), m_p + scale * z, m_q + scale * mirrored), accepted


@dataclass(frozen=True)
class Speculative(Exact):
    r"""Draws from the law of the stochastic chain in few rounds.

    Each sample has its own step and its own window, and a finished sample is in no later round. A window of $\ell$
    steps is one round of at most $\ell + 1$ rows, the state behind its last step among them: where all steps hold, the
    next window starts with its own evaluation. No sample needs more than N rounds for N steps.

    The noise of step n is a function of the sample's seed and n, on streams of its own ($2^{31} + n$), so a sample is
    the same in any batch; the `tape` of `solve` is not used, and the result has the law of `chain.run`, not its path.

    Arguments:
        denoiser: The teacher, $D$.
        chain: The chain, eta > 0.
        window: The most steps in a window.
        adaptive: Whether a sample's window is 1.5 times the running mean of the steps that its windows made (each
            counts as much as all before it): fewer rows, a few more rounds.
        refresh: Whether a window behind a refused step first spends a round on its start's evaluation, as published.
        draft: What else is known of $\hat x_0$: nothing, or a trajectory, sampler or student, asked once; a student
            that `restarts` is asked at every window's start (`OnePass` of it once). It must not know the noise of the
            steps: what this sampler made from the same seeds is no draft.
        reuse: Whether drafts use what earlier windows learned, the answers behind a refused step and $c$; else they
            freeze $\hat x_0$ of the last accepted state that has one.

    Raises:
        ValueError: if the window is not at least 1, or the chain is deterministic.
    """

    window: int = 20
    adaptive: bool = False
    refresh: bool = False
    draft: Draft | None = None
    reuse: bool = True

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"the window must be at least 1 step, got {self.window}")
        if self.chain.eta == 0:
            raise ValueError(
                "speculative sampling needs a chain with noise, got eta = 0: take Picard, ParaTAA or SRDS, or raise eta"
            )

    def __call__(self, z: Tensor, cond: Cond | None = None, seeds: Tensor | None = None) -> Trajectory:
        """From standard normal noise (B, *shape); raises as `solve` does."""
        check_noise(z, self.denoiser.shape if isinstance(self.denoiser, Prediction) else None)
        seeds = None if seeds is None else as_seeds(seeds)
        return self.solve(initial_state(self.chain.schedule, z, float(self.chain.grid[0])), None, cond, seeds)

    @torch.no_grad()
    def solve(
        self, x: Tensor, tape: Tensor | None = None, cond: Cond | None = None, seeds: Tensor | None = None
    ) -> Trajectory:
        """From the states `x` (B, *shape) at the chain's start: every state of the chain; `tape` is not used.

        Raises:
            ValueError: without a seed for each sample, or for a draft of another shape or on other times.
            FloatingPointError: if the denoiser returns values that are not finite; names the sample and the time.
        """
        if seeds is None or len(seeds) != len(x):
            raise ValueError(
                f"speculative sampling draws its noise from `seeds`, one for each of the {len(x)} samples, "
                f"got {'none' if seeds is None else len(seeds)}"
            )
        N, rounds = len(self.chain), Rounds(self.denoiser, self.chain, cond, x)
        ahead = _Ahead(self.draft, self.chain, x, cond, seeds, rounds, self.reuse)
        steps = _Steps(self.chain, x, seeds)
        states = x.new_zeros(len(x), N + 1, *x.shape[1:])
        states[:, 0] = x
        n = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        # Whether the evaluation at a sample's present state is known; the running mean of the steps its windows made.
        fresh, pace = torch.zeros_like(n, dtype=torch.bool), torch.full_like(n, self.window, dtype=torch.float32) / 1.5
        while len(sample := (n < N).nonzero()[:, 0]):
            start, known, row = n[sample], fresh[sample], torch.arange(len(sample), device=x.device)
            length = (N - start).clamp_max(self.window)
            if self.adaptive:
                length = torch.minimum(length, (1.5 * pace[sample]).ceil().long())
            # A window of no steps is the evaluation at its start.
            length = torch.where(~known & (self.refresh | ahead.blank(sample)), 0, length)
            moves, L = length > 0, int(length.max())
            k = torch.arange(L + 1, device=x.device)
            inside, step = start[:, None] + k < N, (start[:, None] + k).clamp_max(N - 1)
            who = sample[:, None].expand_as(step)

            # Draft.
            y = x.new_empty(len(sample), L + 1, *x.shape[1:])
            m_p, y[:, 0] = torch.empty_like(y[:, 1:]), states[sample, start]
            ahead.begin(y[moves, 0], start[moves], sample[moves])
            for j in range(L):
                m_p[:, j] = steps.mean(y[:, j], ahead(y[:, j], step[:, j], sample), step[:, j])
                y[:, j + 1] = steps.draw(m_p[:, j], step[:, j], sample)

            # Ask.
            asked = inside & (k <= length[:, None]) & (k >= known[:, None].long())
            answered = ahead.ask(y, step, who, asked)
            length = torch.minimum(length, answered.sum(1))

            # Decide: `held` steps hold, one more is made if it was refused.
            step, who = step[:, :L], who[:, :L]
            m_q = steps.mean(y[:, :L], ahead.x0[who, step], step)
            x_next, accepted = steps.decide(m_p, m_q, step, who)
            held = (accepted & (k[:L] < length[:, None])).long().cumprod(1).sum(1)
            made = torch.minimum(held + 1, length)
            kept = k[:L] < made[:, None]
            states[who[kept], step[kept] + 1] = x_next[kept]
            fresh[sample] = whole = (held == length) & answered[row, length]
            n[sample] = start + made
            ahead.accept(start + torch.where(whole, length, made - 1), sample)
            pace[sample] = torch.where(moves, (pace[sample] + made) / 2, pace[sample])
            if bool(asked.any()):
                rounds.watch(held[moves] / length[moves], sample[moves])
        return rounds.trajectory(states, self.chain.grid, seeds)


class _Steps:
    """The Gaussians of the chain's steps with the numbers drawn for them, for rows (A,) or windows (A, L) of steps.

    Attributes:
        z: Standard normal numbers, (N, B, *shape).
        u: Uniform numbers, (N, B), each from one more normal number.
    """

    def __init__(self, chain: Chain, x: Tensor, seeds: Tensor) -> None:
        precise, size = torch.promote_types(x.dtype, torch.float32), x[:1].numel()
        drawn = torch.stack([noise(seeds, (size + 1,), STREAM + n, precise, x.device) for n in range(len(chain))])
        self.z, self.u = drawn[..., :-1].reshape(len(chain), *x.shape).to(x.dtype), torch.special.ndtr(drawn[..., -1])
        self.a, self.b, self.s = chain.coefficients().to(x).unbind(1)

    def mean(self, x: Tensor, x0_hat: Tensor, n: Tensor) -> Tensor:
        r"""$a_n x + b_n \hat x_0$."""
        return wide(self.a[n], x) * x + wide(self.b[n], x) * x0_hat

    def draw(self, mean: Tensor, n: Tensor, sample: Tensor) -> Tensor:
        """The states with a draft's means."""
        return mean + wide(self.s[n], mean) * self.z[n, sample]

    def decide(self, m_p: Tensor, m_q: Tensor, n: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """`reflect` for windows: states (A, L, *shape), and which are the draft's, (A, L)."""
        z, u = self.z[n, sample], self.u[n, sample]
        x, accepted = reflect(m_p.flatten(0, 1), m_q.flatten(0, 1), self.s[n].flatten(), z.flatten(0, 1), u.flatten())
        return x.reshape(m_p.shape), accepted.reshape(n.shape)


class _Ahead:
    r"""What is expected of $\hat x_0$ at states that were not asked, the filter above.

    Attributes:
        x0: The last answer at each step, (B, N, *shape).
        at: The states they were given at, (B, N, *shape).
        top: The last step that has one, -1 at first, (B,).
        last: The last step whose answer is at an accepted state, (B,).
        c: The variance of the data given that state, (B,).
        path: $g$, (B, N, *shape), or None.
    """

    def __init__(
        self,
        draft: Draft | None,
        chain: Chain,
        x: Tensor,
        cond: Cond | None,
        seeds: Tensor,
        rounds: Rounds,
        reuse: bool,
    ) -> None:
        # States of a draft are read as the ODE's: their noise, if any, is not that of the steps.
        self.system = System(replace(chain, eta=0.0), x, None)
        self.cond, self.rounds, self.reuse = cond, rounds, reuse
        precise = torch.promote_types(x.dtype, torch.float32)
        alpha, sigma = (v.to(x.device, precise) for v in chain.schedule(chain.grid[:-1]))
        self.gain, self.snr = alpha / sigma**2, (alpha / sigma) ** 2
        self.x0 = x.new_zeros(len(x), len(chain), *x.shape[1:])
        self.at = torch.zeros_like(self.x0)
        self.top = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
        self.last, self.c = torch.zeros_like(self.top), torch.zeros_like(self.top, dtype=precise)
        self.student = draft if isinstance(draft, TrajectoryStudent) and draft.restarts else None
        self.path: Tensor | None = torch.zeros_like(self.x0)
        if self.student is None:
            self.path = guess(draft, self.system, x, cond, seeds, rounds)

    def blank(self, sample: Tensor) -> Tensor:
        """Which of the samples nothing is known of, (A,) bool."""
        return (self.top[sample] < 0) & (self.path is None)

    def begin(self, y: Tensor, n: Tensor, sample: Tensor) -> None:
        """Windows of the samples (A,) start from the states `y` (A, *shape) at steps `n` (A,)."""
        if self.student is None or self.path is None or not len(sample):
            return
        said = x0_of_student(self.student, self.system, y, n, self.cond, sample)
        self.rounds.tally(sample, 1, 1)
        # Of steps before its start it says nothing, so there is no change up to there.
        steps = torch.arange(said.shape[1], device=y.device).expand(len(y), -1)
        row = torch.arange(len(y), device=y.device)[:, None]
        self.path[sample] = said[row, torch.maximum(steps, n[:, None])]

    def __call__(self, y: Tensor, n: Tensor, sample: Tensor) -> Tensor:
        r"""$\hat x_0$ (A, *shape) at the states `y` (A, *shape) of the samples (A,) at steps `n` (A,)."""
        seen = self.top[sample] >= 0
        i = torch.minimum(n, self.top[sample].clamp_min(0))
        x0 = self.x0[sample, i]
        c = self._narrowed(self.c[sample], self.last[sample], n)
        expected = x0 + (wide(c, y) * self._news(self.at[sample, i], x0, i, y, n)).to(x0)
        if self.path is None:
            return expected
        return expected + self.path[sample, n] - torch.where(wide(seen, y), self.path[sample, i], 0.0)

    def ask(self, y: Tensor, n: Tensor, sample: Tensor, asked: Tensor) -> Tensor:
        """One round at the states `asked` of windows (A, L + 1, *shape): how far there are answers, (A, L + 1) bool.

        Far off a network may overflow. Such a guess ends its window; if it is the chain's, it is asked as the next
        one's first state, which is no guess.
        """
        sane = torch.ones_like(asked)
        if not bool(asked.any()):
            return sane
        first = torch.zeros_like(asked)
        first[:, 0] = True
        x0_hat = self.rounds(y[asked], n[asked], sample[asked], first[asked])
        sane[asked] = self.rounds.finite
        known = asked & (sane := sane.long().cumprod(1).bool())
        self.x0[sample[known], n[known]], self.at[sample[known], n[known]] = x0_hat[sane[asked]], y[known]
        self.top.scatter_reduce_(0, sample[known], n[known], "amax")
        return sane

    def accept(self, n: Tensor, sample: Tensor) -> None:
        """The samples' answers up to steps `n` (A,) are at accepted states."""
        n = n.clamp_max(self.x0.shape[1] - 1)
        if not self.reuse:
            self.top[sample], self.last[sample] = n, n
            return
        i, c = self.last[sample], self.c[sample]
        y_i, x0_i = self.at[sample, i], self.x0[sample, i]
        for _ in range(int((n - i).max())):
            j = torch.minimum(i + 1, n)
            y_j, x0_j, c = self.at[sample, j], self.x0[sample, j], self._narrowed(c, i, j)
            news = self._news(y_i, x0_i, i, y_j, j).flatten(1)
            size, along = news.square().sum(1), ((x0_j - x0_i).flatten(1) * news).sum(1)
            fitted = along / torch.where(size > 0, size, 1.0)
            c = torch.where((j > i) & (size > 0), (0.7 * c + 0.3 * fitted).clamp_min(0), c)
            i, y_i, x0_i = j, y_j, x0_j
        self.last[sample], self.c[sample] = n, c

    def _narrowed(self, c: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """The variance at steps `j` from that at steps `i`, all (A,)."""
        return c / (1 + c * (self.snr[j] - self.snr[i]))

    def _news(self, y_i: Tensor, x0_i: Tensor, i: Tensor, y_j: Tensor, j: Tensor) -> Tensor:
        """What the states (A, *shape) at steps `j` (A,) say that those at `i` do not, the bracket above."""
        gain_i, gain_j, more = (wide(v, y_i) for v in (self.gain[i], self.gain[j], self.snr[j] - self.snr[i]))
        return gain_j * y_j - gain_i * y_i - more * x0_i
