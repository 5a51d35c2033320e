r"""Solvers: pure steps, and the one driver that runs them on an explicit grid.

The probability-flow ODE of a denoiser, $\dot x_t = \dot\alpha_t D + \dot\sigma_t \hat\epsilon$, has an exact linear part.
With $\kappa = \alpha / \sigma$ it reads $d(x / \sigma) = D \, d\kappa$, so between two times

$$ x_s = \frac{\sigma_s}{\sigma_t} x_t + \sigma_s \int_{\kappa_t}^{\kappa_s} D \, d\kappa, $$

and a solver is a rule for the integral: $D$ constant is DDIM, $D$ polynomial in $\lambda = \log \kappa$ is
DPM-Solver++. A step is a pure function of the current state, two times and the past evaluations; its coefficients are
Python floats computed from the schedule in float64, so nothing is looked up by index and nothing is read back from the
device. Limits at $\sigma_s = 0$ ($x_s = D$) and $\alpha_t = 0$ are analytic: no grid gives a NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from dsno.denoise import Cond, Denoiser, Meter
from dsno.noise import noise_tape
from dsno.schedule import Schedule, check_grid
from dsno.trajectory import Trajectory

__all__ = [
    "DDIM",
    "SOLVERS",
    "Ancestral",
    "Chain",
    "DPMSolverPP",
    "Heun",
    "Sampler",
    "SolverSampler",
    "Step",
    "UniPC",
    "initial_state",
    "solve",
]

Evaluate = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Eval:
    r"""One evaluation $\hat x_0 = D(x_t, t)$ and the state it stands for, kept for multistep rules."""

    t: float
    x: Tensor
    x0: Tensor


Past = tuple[Eval, ...]


class Step(Protocol):
    r"""One step of a solver from `t` to `s` < `t`.

    `D(x, t)` evaluates the denoiser; `past` holds earlier evaluations, newest first; `z` is this step's standard normal
    noise (None for a deterministic solver). Returns the state at `s` and the past for the next step, whose first entry
    is the evaluation at `t`.
    """

    @property
    def stochastic(self) -> bool: ...

    def __call__(
        self, D: Evaluate, schedule: Schedule, x: Tensor, t: float, s: float, past: Past, z: Tensor | None
    ) -> tuple[Tensor, Past]: ...


class Sampler(Protocol):
    """Noise in, trajectory out: sequential solvers, parallel-in-time solvers and one-pass students are called alike.

    `z` is standard normal noise of shape (B, *shape); `cond` has first dimension B; `seeds` (B,) are recorded and, for a
    stochastic sampler, give the noise of its steps.
    """

    def __call__(self, z: Tensor, cond: Cond | None = None, seeds: Tensor | None = None) -> Trajectory: ...


def _affine(schedule: Schedule, t: float, s: float, eta: float) -> tuple[float, float, float]:
    r"""$(a, b, s)$ of $x_s = a x_t + b D + s z$; see `Chain`."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.at(t), schedule.at(s)
    # 1 - (alpha_t / alpha_s)^2 is the variance added between s and t for a VP path; written in kappa it holds for any.
    ratio = (alpha_t * sigma_s) / (alpha_s * sigma_t) if alpha_s > 0 else 1.0
    noise_std = eta * sigma_s * math.sqrt(max(0.0, 1 - ratio**2))
    c = math.sqrt(max(0.0, sigma_s**2 - noise_std**2))
    return c / sigma_t, alpha_s - c * alpha_t / sigma_t, noise_std


@dataclass(frozen=True)
class DDIM:
    r"""First order: $D$ constant over the step (Song et al., 2020, arXiv 2010.02502, eq. 12, $\eta = 0$).

    $$ x_s = \frac{\sigma_s}{\sigma_t} x_t + \Big(\alpha_s - \frac{\sigma_s}{\sigma_t}\alpha_t\Big) D(x_t, t) $$
    """

    stochastic = False

    def __call__(
        self, D: Evaluate, schedule: Schedule, x: Tensor, t: float, s: float, past: Past, z: Tensor | None
    ) -> tuple[Tensor, Past]:
        a, b, _ = _affine(schedule, t, s, eta=0.0)
        x0_hat = D(x, t)
        return a * x + b * x0_hat, (Eval(t, x, x0_hat),)


@dataclass(frozen=True)
class Ancestral:
    r"""The affine chain with fresh noise: DDIM at $\eta = 0$, DDPM's ancestral sampler at $\eta = 1$ (see `Chain`)."""

    eta: float = 1.0
    stochastic = True

    def __call__(
        self, D: Evaluate, schedule: Schedule, x: Tensor, t: float, s: float, past: Past, z: Tensor | None
    ) -> tuple[Tensor, Past]:
        a, b, noise_std = _affine(schedule, t, s, self.eta)
        x0_hat = D(x, t)
        x_s = a * x + b * x0_hat
        return x_s if z is None else x_s + noise_std * z, (Eval(t, x, x0_hat),)


@dataclass(frozen=True)
class Heun:
    r"""Second order: the trapezoidal rule on $\dot x_t$ in the schedule's own time, two evaluations a step.

    $$ d_1 = \dot x(x_t, t), \quad d_2 = \dot x(x_t + (s - t) d_1, s), \quad x_s = x_t + (s - t)\tfrac{d_1 + d_2}{2} $$

    The step to $\sigma_s = 0$ is DDIM's, one evaluation. On the VE schedule this is EDM's sampler (Karras et al., 2022,
    arXiv 2206.00364, algorithm 1).
    """

    stochastic = False

    def __call__(
        self, D: Evaluate, schedule: Schedule, x: Tensor, t: float, s: float, past: Past, z: Tensor | None
    ) -> tuple[Tensor, Past]:
        if schedule.at(s)[1] == 0 or s == 0:
            return DDIM()(D, schedule, x, t, s, past, z)
        x0_hat = D(x, t)
        d_1 = self._flow(schedule, x, x0_hat, t)
        x_euler = x + (s - t) * d_1
        d_2 = self._flow(schedule, x_euler, D(x_euler, s), s)
        return x + (s - t) * (d_1 + d_2) / 2, (Eval(t, x, x0_hat),)

    @staticmethod
    def _flow(schedule: Schedule, x: Tensor, x0_hat: Tensor, t: float) -> Tensor:
        (alpha_t, sigma_t), (d_alpha, d_sigma) = schedule.at(t), schedule.slope(t)
        return d_alpha * x0_hat + d_sigma / sigma_t * (x - alpha_t * x0_hat)


@dataclass(frozen=True)
class DPMSolverPP:
    r"""DPM-Solver++, multistep, order 1 to 3 (Lu et al., 2022, arXiv 2211.01095, algorithm 2 and appendix).

    With $h = \lambda_s - \lambda_t$, $\lambda = \log(\alpha/\sigma)$, and differences $D^{(k)} \approx h^k d^k D / d\lambda^k$ of the
    past evaluations,

    $$ x_s = \frac{\sigma_s}{\sigma_t} x_t - \alpha_s (e^{-h} - 1) D
             + \alpha_s \Big(\frac{e^{-h} - 1}{h} + 1\Big) D^{(1)} - \alpha_s \Big(\frac{e^{-h} - 1 + h}{h^2} - \frac12\Big) D^{(2)}; $$

    order 2 uses the midpoint form $-\tfrac12 \alpha_s (e^{-h} - 1) D^{(1)}$. The order is lowered while the past is short
    and for the step to $\sigma_s = 0$. One evaluation a step.

    The authors' multistep code, and diffusers after it, take half of $D^{(2)}$ (their singlestep code does not), which
    leaves order 3 converging at order 2; here it converges at order 3.
    """

    order: int = 2
    stochastic = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"DPM-Solver++ has orders 1, 2 and 3, got {self.order}")

    def __call__(
        self, D: Evaluate, schedule: Schedule, x: Tensor, t: float, s: float, past: Past, z: Tensor | None
    ) -> tuple[Tensor, Past]:
        past = (Eval(t, x, D(x, t)), *past)[: self.order]
        m = [e.x0 for e in past]
        lam = [_lambda(schedule, s)] + [_lambda(schedule, e.t) for e in past]
        order = _usable_order(lam, self.order)
        if order == 1:
            a, b, _ = _affine(schedule, t, s, eta=0.0)
            return a * x + b * m[0], past
        (alpha_s, sigma_s), (_, sigma_t) = schedule.at(s), schedule.at(t)
        h, h_0 = lam[0] - lam[1], lam[1] - lam[2]
        phi_1 = math.expm1(-h)
        r_0 = h_0 / h
        D_1 = (m[0] - m[1]) / r_0
        x_s = sigma_s / sigma_t * x - alpha_s * phi_1 * m[0]
        if order == 2:
            return x_s - 0.5 * alpha_s * phi_1 * D_1, past
        r_1 = (lam[2] - lam[3]) / h
        D_1b = (m[1] - m[2]) / r_1
        D_2 = 2 * (D_1 - D_1b) / (r_0 + r_1)
        D_1 = D_1 + r_0 / 2 * D_2
        return x_s + alpha_s * (phi_1 / h + 1) * D_1 - alpha_s * ((phi_1 + h) / h**2 - 0.5) * D_2, past


@dataclass(frozen=True)
class UniPC:
    r"""UniPC with $B_2(h) = e^{h} - 1$, data prediction (Zhao et al., 2023, arXiv 2302.04867, algorithms 5 to 8).

    The evaluation at the predicted state first *corrects* that state (order $p + 1$, no extra evaluation), then predicts
    the next one (order $p$). The state the sampler keeps at inner times is the predicted one; the step to $\sigma_s = 0$
    is first order and the order is lowered while the past is short. One evaluation a step.
    """

    order: int = 2
    stochastic = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"UniPC is implemented for orders 1, 2 and 3, got {self.order}")

    def __call__(
        self, D: Evaluate, schedule: Schedule, x: Tensor, t: float, s: float, past: Past, z: Tensor | None
    ) -> tuple[Tensor, Past]:
        x0_hat = D(x, t)
        if past:
            x = self._correct(schedule, past, t, x0_hat)
        past = (Eval(t, x, x0_hat), *past)[: self.order]
        return self._predict(schedule, past, s), past

    def _predict(self, schedule: Schedule, past: Past, s: float) -> Tensor:
        base, coefficient, r, D_1, h = self._differences(schedule, past, s)
        if not r:
            return base
        if len(r) == 1:
            return base + coefficient * 0.5 * D_1[0]
        R, b = _unipc_system(r, -h)
        rho = torch.linalg.solve(R, b).tolist()
        return base + coefficient * sum((p * d for p, d in zip(rho, D_1, strict=True)), torch.zeros_like(base))

    def _correct(self, schedule: Schedule, past: Past, t: float, x0_hat: Tensor) -> Tensor:
        base, coefficient, r, D_1, h = self._differences(schedule, past, t)
        r, D_1 = [*r, 1.0], [*D_1, x0_hat - past[0].x0]
        if len(r) == 1:
            return base + coefficient * 0.5 * D_1[0]
        R, b = _unipc_system(r, -h)
        rho = torch.linalg.solve(R, b).tolist()
        return base + coefficient * sum((p * d for p, d in zip(rho, D_1, strict=True)), torch.zeros_like(base))

    def _differences(
        self, schedule: Schedule, past: Past, s: float
    ) -> tuple[Tensor, float, list[float], list[Tensor], float]:
        """The first-order step, the factor of the rest, and the ratios and divided differences of the past."""
        newest = past[0]
        a, b, _ = _affine(schedule, newest.t, s, eta=0.0)
        lam = [_lambda(schedule, s)] + [_lambda(schedule, e.t) for e in past]
        h = lam[0] - lam[1]
        r, D_1 = [], []
        for k in range(1, _usable_order(lam, self.order)):
            r_k = (lam[k + 1] - lam[1]) / h
            r.append(r_k)
            D_1.append((past[k].x0 - newest.x0) / r_k)
        return a * newest.x + b * newest.x0, b, r, D_1, h


def _unipc_system(r: list[float], hh: float) -> tuple[Tensor, Tensor]:
    R, b = [], []
    h_phi_k, factorial = math.expm1(hh) / hh - 1, 1.0
    for i in range(1, len(r) + 1):
        R.append([x ** (i - 1) for x in r])
        b.append(h_phi_k * factorial / math.expm1(hh))
        factorial *= i + 1
        h_phi_k = h_phi_k / hh - 1 / factorial
    return torch.tensor(R, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)


def _lambda(schedule: Schedule, t: float) -> float:
    # t = 0 is the data whatever tiny sigma a truncated schedule leaves there: extrapolating D across that last,
    # very long step in lambda would amplify errors by its length, so it is taken as infinite (first order).
    alpha_t, sigma_t = schedule.at(t)
    if t == 0 or sigma_t == 0:
        return math.inf
    return math.log(alpha_t / sigma_t) if alpha_t > 0 else -math.inf


def _usable_order(lam: list[float], order: int) -> int:
    """The highest order whose log-SNRs (target first, then newest to oldest) are all finite."""
    if not math.isfinite(lam[0]) or not math.isfinite(lam[1]):
        return 1
    known = 1
    while known < order and known + 1 < len(lam) and math.isfinite(lam[known + 1]):
        known += 1
    return known


SOLVERS: dict[str, Callable[[], Step]] = {
    "ddim": DDIM,
    "heun": Heun,
    "dpm1": lambda: DPMSolverPP(1),
    "dpm2": lambda: DPMSolverPP(2),
    "dpm3": lambda: DPMSolverPP(3),
    "unipc2": UniPC,
    "unipc3": lambda: UniPC(3),
    "ancestral": Ancestral,
}


def initial_state(schedule: Schedule, z: Tensor, start: float = 1.0) -> Tensor:
    r"""Standard normal noise as the state at the start: $x_1 = \sigma_1 z$, shape (B, *shape)."""
    return schedule.at(start)[1] * z


def solve(
    denoiser: Denoiser,
    schedule: Schedule,
    x: Tensor,
    grid: Tensor | Sequence[float],
    step: Step | None = None,
    cond: Cond | None = None,
    seeds: Tensor | None = None,
    keep: Sequence[float] | Tensor | None = None,
    keep_x0: bool = False,
    tape: Tensor | None = None,
) -> Trajectory:
    r"""Run a solver from the state `x` at `grid[0]` to `grid[-1]`, one step between neighbouring times.

    Arguments:
        denoiser: $D(x_t, t, \mathrm{cond})$.
        schedule: The path it was trained on.
        x: The state at `grid[0]`, shape (B, *shape).
        grid: N + 1 strictly decreasing times in [0, 1], N >= 1.
        step: The solver; DDIM by default.
        cond: The condition, first dimension B.
        seeds: (B,) seeds; a stochastic solver without a `tape` draws its noise from streams 1 to N of them.
        keep: The times whose states are returned (a subset of the grid; the first and last by default).
        keep_x0: Also return $\hat x_0$ at each kept state, at no extra evaluation for inner times.
        tape: The noise of the steps, shape (N, B, *shape).

    Returns:
        A trajectory of the kept states, noise first.

    Raises:
        ValueError: for a bad grid, a kept time that is not on it, or a stochastic solver without seeds or tape.
    """
    step = DDIM() if step is None else step
    times = check_grid(grid)
    wanted = _kept(times, keep)
    if step.stochastic and tape is None:
        if seeds is None:
            raise ValueError("a stochastic solver needs `seeds` (one per sample) or a noise `tape`")
        tape = noise_tape(seeds, x.shape[1:], len(times) - 1, x.dtype, x.device)
    meter = Meter(denoiser)

    def D(x_t: Tensor, t: float) -> Tensor:
        time_dtype = torch.promote_types(x_t.dtype, torch.float32)  # 0.999 is 1.0 in bfloat16
        return meter(x_t, torch.full((len(x_t),), t, dtype=time_dtype, device=x_t.device), cond)

    states, x0s = [], []
    past: Past = ()
    grid_times = times.tolist()
    for n, (t, s) in enumerate(pairwise(grid_times)):
        state = x
        z = tape[n] if tape is not None else None
        x, past = step(D, schedule, state, t, s, past, z)
        if n in wanted:
            states.append(state)
            x0s.append(past[0].x0)
    if len(times) - 1 in wanted:
        states.append(x)
        if keep_x0:
            x0s.append(x if schedule.at(grid_times[-1])[1] < 1e-4 else D(x, grid_times[-1]))
    return Trajectory(
        x=torch.stack(states, 1),
        t=times[sorted(wanted)],
        x0=torch.stack(x0s, 1) if keep_x0 else None,
        cond=cond,
        seeds=seeds,
        nfe=meter.rows // max(len(x), 1),
        rounds=meter.rounds,
    )


def _kept(times: Tensor, keep: Sequence[float] | Tensor | None) -> set[int]:
    if keep is None:
        return {0, len(times) - 1}
    wanted = set()
    for t in torch.as_tensor(keep, dtype=torch.float64).tolist():
        distance = (times - t).abs()
        n = int(distance.argmin())
        if distance[n] > 1e-9:
            raise ValueError(f"cannot keep t = {t:g}: it is not on the grid (nearest is {times[n]:g})")
        wanted.add(n)
    return wanted


@dataclass(frozen=True)
class SolverSampler:
    """A solver on a grid as a `Sampler`: from standard normal noise to a trajectory."""

    denoiser: Denoiser
    schedule: Schedule
    grid: Tensor
    step: Step = field(default_factory=DDIM)
    keep: Tensor | None = None
    keep_x0: bool = False

    @torch.no_grad()
    def __call__(self, z: Tensor, cond: Cond | None = None, seeds: Tensor | None = None) -> Trajectory:
        x = initial_state(self.schedule, z, float(self.grid[0]))
        return solve(
            self.denoiser, self.schedule, x, self.grid, self.step, cond, seeds, keep=self.keep, keep_x0=self.keep_x0
        )


@dataclass(frozen=True)
class Chain:
    r"""The affine Gaussian chain every first-order sampler is an instance of.

    $$ x_{n+1} = a_n x_n + b_n D(x_n, t_n) + s_n z_n, \qquad z_n \sim \mathcal N(0, I) \text{ drawn once (the tape)} $$

    With $(\alpha, \sigma)$ at $t_n$ and $(\alpha', \sigma')$ at $t_{n+1}$,

    $$ s_n^2 = \eta^2 \sigma'^2 \Big(1 - \frac{\alpha^2 \sigma'^2}{\alpha'^2 \sigma^2}\Big), \quad
       c_n = \sqrt{\sigma'^2 - s_n^2}, \quad a_n = c_n / \sigma, \quad b_n = \alpha' - c_n \alpha / \sigma. $$

    $\eta = 0$ is DDIM, $\eta = 1$ DDPM's ancestral sampler (Song et al., 2020, arXiv 2010.02502, eq. 16). `run` is the
    sequential reference that every exact sampler is tested against.

    Arguments:
        schedule: The path.
        grid: N + 1 decreasing times.
        eta: The share of fresh noise, in [0, 1].
    """

    schedule: Schedule
    grid: Tensor
    eta: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", check_grid(self.grid))
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}")

    def __len__(self) -> int:
        return len(self.grid) - 1

    def coefficients(self) -> Tensor:
        """$(a_n, b_n, s_n)$ for every step, shape (N, 3), float64."""
        times = self.grid.tolist()
        rows = [_affine(self.schedule, t, s, self.eta) for t, s in pairwise(times)]
        return torch.tensor(rows, dtype=torch.float64)

    def tape(self, seeds: Sequence[int] | Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """This chain's noise from per-sample seeds, shape (N, B, *shape)."""
        return noise_tape(seeds, shape, len(self), dtype)

    def run(self, denoiser: Denoiser, x: Tensor, tape: Tensor | None = None, cond: Cond | None = None) -> Trajectory:
        """Run the chain sequentially from the state `x`, keeping every state.

        Raises:
            ValueError: if the chain is stochastic and there is no `tape`.
        """
        return solve(
            denoiser, self.schedule, x, self.grid, Ancestral(self.eta) if self.eta > 0 else DDIM(),
            cond, keep=self.grid, tape=tape,
        )  # fmt: skip
