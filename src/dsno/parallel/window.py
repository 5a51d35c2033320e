r"""Fixed-point iteration on the chain's states, in a window that moves from the noise to the sample.

Guess all states, evaluate the denoiser at those in the window in one round, look at the residual of every equation,

$$ r_n = a_n x_n + b_n D(x_n, t_n) + s_n z_n - x_{n+1}, $$

and move the *frontier* $f$ to the first equation that does not hold; one step further is the chain's own step from an
accepted state. So every round accepts at least one state, N rounds always suffice, and after r rounds the first r
states are the chain's. The states behind it are improved by the equations as they stand, with D linear in between,

$$ y_{n+1} = a_n x_n + b_n D(x_n, t_n) + s_n z_n + g_n (y_n - x_n), \qquad y_f = x_f, $$

whose fixed point is the chain for any numbers $g_n$: all that is known of how $x_{n+1}$ follows a change of $x_n$. The
derivative of the step is $a_n + b_n \partial D / \partial x$, which for Gaussian data of standard deviation s is

$$ g_n = a_n + b_n \frac{\alpha_n s^2}{\alpha_n^2 s^2 + \sigma_n^2} . $$

The known methods are its ends: s = 0 is $g = a$, the chain unrolled with D held; $s \to \infty$ is
$\alpha_{n+1} / \alpha_n$ for the ODE, unrolled with $\hat\epsilon$ held (ParaTAA); $g = 1$, Picard's sum of increments
(ParaDiGMS), is s = 1 of a variance-preserving ODE. What lies between needs fewer rounds than either
(`benchmarks/parallel.py`).

**The first guess.** Both papers begin with the noise repeated, $x_n = x_0$ for every n (`repeat_noise`). Here the
states follow the linear part and the noise of the steps, $x_{n+1} = g_n x_n + s_n z_n$: of the right scale if g is
right, and with $g = 1$ on the ODE the same. Where g holds the noise of an ODE it is the worse guess.

**Tolerance.** Errors accepted on the way add up, so a tolerance per equation says little about the sample (N = 500,
$10^{-3}$ each: far more at the end). Here `tolerance` $\epsilon$ is for the *sample*, RMS over coordinates, and
is shared out,

$$ \operatorname{rms}(r_n) \le \tfrac14 \epsilon \, w_n \, \bar\sigma_{n+1}, \qquad
   w_n = \frac12 \Big( \frac{u_n}{\sum_m u_m} + \frac1N \Big), \quad
   u_n = \frac{\sigma_{n+1}}{\bar\sigma_{n+1}} \sqrt{1 - \frac{\alpha_n^2 \sigma_{n+1}^2}{\alpha_{n+1}^2 \sigma_n^2}},
   \quad \bar\sigma_n = \sqrt{\alpha_n^2 + \sigma_n^2}, $$

half in proportion to the noise of DDPM's step, as both papers do, and half evenly: the shares sum to one. For data of
unit scale the flow from $x_n$ to the sample does not expand a residual relative to $\bar\sigma_n$, and the sample's
error stays below a quarter of $\epsilon$; the rest is for flows that do expand. Accepted states are recomputed from the
frontier with the evaluations at hand, which leaves far less than what was allowed. No residual can promise which of two
modes a sample on their boundary falls into: under a tolerance of a tenth of the data's scale a few of them go to the
other one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dsno.parallel.rounds import Rounds, System, rms, wide
from dsno.solvers.chain import Chain

__all__ = ["Sweep", "check_first_guess", "check_window", "first_guess", "gains", "iterate", "shares"]


@dataclass
class Sweep:
    r"""The unfinished samples between two rounds; A of them.

    Attributes:
        system: The chain.
        sample: Which samples they are, (A,).
        x: Their states, accepted ones and guesses, (A, N + 1, *shape).
        x0: The latest $\hat x_0$ at each step, (A, N, *shape).
        frontier: States up to this one are accepted, (A,).
        end: Steps before this one have been evaluated, (A,).
        held: Whether steps from `end` on have no $\hat x_0$ of their own, and take the last evaluated one.
        gain: $g_n$ of the linear part, (N,).
        window: Steps that are evaluated in a round.
    """

    system: System
    sample: Tensor
    x: Tensor
    x0: Tensor
    frontier: Tensor
    end: Tensor
    held: bool
    gain: Tensor
    window: int

    def run(self, start: Tensor) -> Tensor:
        r"""The fully unrolled system from the states `start` (A,) to the next round's window's end; (A, N + 1, *shape).

        As much elementwise work as one step of the chain for each state.
        """
        states, y = [self.x[:, n] for n in range(len(self.system) + 1)], self.x[:, 0]
        behind = int(self.end.min()) if self.held else len(self.system)
        for n in range(int(start.min()), min(int(self.frontier.max()) + self.window, len(self.system))):
            y, x0_hat = _where(start == n, self.x[:, n], y), self.x0_at(n) if n >= behind else self.x0[:, n]
            moved = self.system.step(self.x[:, n], x0_hat, n, self.sample) + self.gain[n] * (y - self.x[:, n])
            # Where nothing was evaluated there is a guess of D and no state it belongs to.
            y = _where(n < self.end, moved, self.system.step(y, x0_hat, n, self.sample))
            states[n + 1] = y = _where(start <= n, y, states[n + 1])
        return torch.stack(states, 1)

    def x0_at(self, n: int) -> Tensor:
        r"""$\hat x_0$ for step `n`, (A, *shape): the last evaluated one where the window ends before it."""
        return self.x0[torch.arange(len(self.x), device=self.x.device), torch.clamp(self.end - 1, max=n)]


def _where(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(wide(rows, yes), yes, no)


def shares(chain: Chain) -> Tensor:
    r"""$w_n \bar\sigma_{n+1}$, the RMS residual that each equation is allowed per unit of tolerance, (N,) float64."""
    alpha, sigma = chain.schedule(chain.grid)
    scale = (alpha**2 + sigma**2).sqrt()[1:]
    noise_std = Chain(chain.schedule, chain.grid, 1.0).coefficients()[:, 2]
    u = noise_std / scale
    w = (u / u.sum().clamp_min(torch.finfo(u.dtype).tiny) + 1 / len(u)) / 2
    return w * scale


def check_first_guess(repeat_noise: bool, drafted: bool) -> None:
    """Refuse two first guesses.

    Raises:
        ValueError: for a draft beside `repeat_noise`.
    """
    if repeat_noise and drafted:
        raise ValueError("repeat_noise and draft are two first guesses: give one of them")


def check_window(window: int | None, tolerance: float | None) -> None:
    """Refuse a window or a tolerance that is not positive.

    Raises:
        ValueError: names which.
    """
    if window is not None and window < 1:
        raise ValueError(f"the window must be at least 1 step (None is the whole chain), got {window}")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance must be positive, or None to run to the end, got {tolerance:g}")


def gains(chain: Chain, data_std: float) -> Tensor:
    r"""$g_n = a_n + b_n \alpha_n s^2 / (\alpha_n^2 s^2 + \sigma_n^2)$, (N,) float64."""
    alpha, sigma = (c[:-1] for c in chain.schedule(chain.grid))
    a, b, _ = chain.coefficients().unbind(1)
    return a + b * alpha * data_std**2 / (alpha**2 * data_std**2 + sigma**2)


def first_guess(system: System, x: Tensor, drafted: Tensor | None, gain: Tensor, repeat_noise: bool = False) -> Sweep:
    r"""All states by the chain's recursion with the draft's $\hat x_0$; else by its linear part, of the right scale.

    With `repeat_noise` and no draft every state is `x` itself.
    """
    (B, N), like = (len(x), len(system)), x.unsqueeze(1)
    sample, zero = torch.arange(B, device=x.device), torch.zeros(B, dtype=torch.int64, device=x.device)
    sweep = Sweep(
        system, sample, like.expand(-1, N + 1, *x.shape[1:]), torch.empty(0), zero, zero, False, gain.to(x), N
    )
    if drafted is not None:
        sweep.x0 = drafted.clone()
        sweep.x = sweep.run(zero)
        return sweep
    states, nothing = [x], torch.zeros_like(x)
    for n in range(N):
        noise = system.step(nothing, nothing, n, sample)
        states.append(x if repeat_noise else sweep.gain[n] * states[-1] + noise)
    sweep.x, sweep.x0, sweep.held = torch.stack(states, 1), like.new_zeros(B, N, *x.shape[1:]), True
    return sweep


Update = Callable[[Sweep, Tensor], Tensor]
"""From a sweep whose window was just evaluated, and the frontier before it, to better states (A, N + 1, *shape)."""


def iterate(
    rounds: Rounds,
    sweep: Sweep,
    update: Update,
    window: int | None = None,
    tolerance: float | None = None,
    finished: Callable[[Tensor], None] = lambda keep: None,
) -> Tensor:
    """Iterate until every sample's frontier has reached the end: states (B, N + 1, *shape).

    Arguments:
        rounds: The denoiser.
        sweep: The first guess, of all B samples.
        update: The method.
        window: Steps that are evaluated in a round, from the frontier on; all by default.
        tolerance: See the module; None accepts nothing but equality.
        finished: Told which rows of the sweep stay, (A,) bool, when some samples are done: a method's own memory.
    """
    system, N = sweep.system, len(sweep.system)
    sweep.window = window or N
    n = torch.arange(N, device=sweep.x.device)
    allowed = shares(system.chain).to(sweep.x) * (tolerance or 0.0) / 4
    out = sweep.x.clone()
    while len(sweep.x):
        old = sweep.frontier
        sweep.end = torch.clamp(old + sweep.window, max=N)
        inside = (n >= old[:, None]) & (n < sweep.end[:, None])
        i, k = inside.nonzero(as_tuple=True)
        # A guess may be anything, the state at the frontier is the chain's own: only there is an overflow an error.
        sweep.x0[i, k] = rounds(sweep.x[i, k], k, sweep.sample[i], known=k == old[i])
        miss = system.step(sweep.x[i, k], sweep.x0[i, k], k, sweep.sample[i]) - sweep.x[i, k + 1]
        residual = torch.zeros_like(inside, dtype=miss.dtype)
        # What overflowed was answered with 0, and agrees with nothing.
        residual[i, k] = torch.where(rounds.finite, rms(miss), torch.inf)
        rounds.watch(residual.amax(1), sweep.sample)
        fails = inside & ~((residual <= allowed) & residual.isfinite())
        first = torch.where(fails.any(1), fails.int().argmax(1), sweep.end)
        sweep.frontier = torch.minimum(first + 1, sweep.end)
        sweep.x = update(sweep, old)
        done = sweep.frontier == N
        if bool(done.any()):
            out[sweep.sample[done]] = sweep.x[done]
            keep = ~done
            finished(keep)
            sweep.sample, sweep.x, sweep.x0 = sweep.sample[keep], sweep.x[keep], sweep.x0[keep]
            sweep.frontier, sweep.end = sweep.frontier[keep], sweep.end[keep]
    return out
