r"""Multistep solvers: DPM-Solver++ and UniPC, one evaluation a step.

In $\lambda = \log \kappa$ the exact form (`step`) is, with $h = \lambda_s - \lambda_t$,

$$ x_s = \frac{\sigma_s}{\sigma_t} x_t + \alpha_s \int_0^h e^{u - h} D(\lambda_t + u) \, du, $$

and the integral of a polynomial D is elementary. The polynomial goes through the evaluations of the past steps, so a
step of any order costs one. The order is lowered while the past is short, and for the step to $\sigma_s = 0$, where
$h$ is infinite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dsno.schedule import Schedule
from dsno.solvers.first_order import affine
from dsno.solvers.step import Eval, Evaluate, Past, half_log_snr

__all__ = ["DPMSolverPP", "UniPC"]


@dataclass(frozen=True)
class DPMSolverPP:
    r"""DPM-Solver++, multistep, order 1 to 3.

    With differences $D^{(k)} \approx h^k \, d^k D / d\lambda^k$ of the past evaluations,

    $$ x_s = \frac{\sigma_s}{\sigma_t} x_t - \alpha_s (e^{-h} - 1) D
             + \alpha_s \Big(\frac{e^{-h} - 1}{h} + 1\Big) D^{(1)}
             - \alpha_s \Big(\frac{e^{-h} - 1 + h}{h^2} - \frac12\Big) D^{(2)}; $$

    order 2 uses the midpoint form $-\tfrac12 \alpha_s (e^{-h} - 1) D^{(1)}$.

    The authors' multistep code, and diffusers after it, take half of $D^{(2)}$ (their singlestep code does not), which
    leaves order 3 converging at order 2; here it converges at order 3.

    Order 3 is lost to a first step of order 1, whose error is $O(h^2)$. From a time below 1 the evaluation at the first
    step's end therefore corrects that state, too (UniPC's corrector, with no evaluation more),

    $$ x_s = \frac{\sigma_s}{\sigma_t} x_t
             - \alpha_s (e^{-h} - 1) \, \tfrac12 \big(D(x_t, t) + D(\tilde x_s, s)\big), $$

    where $\tilde x_s$ is the state the sampler keeps. From t = 1 nothing is corrected: D hardly depends on the state
    there, and steps in $\lambda$ are long. Orders are those of grids inside (0, 1): seen on uniform ones, order 3 is
    one of 2 to 3 from t = 1, and of 1.4 to 2 down to t = 0, whose last step is of first order.

    Raises:
        ValueError: for another order.

    Source: Lu et al., 2022 (arXiv 2211.01095), algorithm 2 and appendix.
    """

    order: int = 2
    stochastic = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"DPM-Solver++ has orders 1, 2 and 3, got {self.order}")

    def __call__(
        self, D: Evaluate, schedule: Schedule, x: Tensor, t: float, s: float, past: Past, z: Tensor | None
    ) -> tuple[Tensor, Past]:
        x0_hat = D(x, t)
        if self.order == 3 and len(past) == 1 and past[0].t < 1:
            x = self._corrected(schedule, past[0], x, t, x0_hat)
        past = (Eval(t, x, x0_hat), *past)[: self.order]
        m = [e.x0 for e in past]
        lam = [half_log_snr(schedule, s)] + [half_log_snr(schedule, e.t) for e in past]
        order = _usable_order(lam, self.order)
        if order == 1:
            a, b, _ = affine(schedule, t, s, eta=0.0)
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

    def _corrected(self, schedule: Schedule, first: Eval, x: Tensor, t: float, x0_hat: Tensor) -> Tensor:
        """The end `x` of the first step at `t`, by the trapezoidal rule; as it is where a log-SNR is infinite."""
        if not all(math.isfinite(half_log_snr(schedule, time)) for time in (first.t, t)):
            return x
        a, b, _ = affine(schedule, first.t, t, eta=0.0)
        return a * first.x + b * (first.x0 + x0_hat) / 2


@dataclass(frozen=True)
class UniPC:
    r"""UniPC with $B_2(h) = e^{h} - 1$, data prediction, order 1 to 3.

    With $D_k$ the past evaluations at $\lambda_t + r_k h$,

    $$ x_s = \frac{\sigma_s}{\sigma_t} x_t
             + \alpha_s (1 - e^{-h}) \Big( D + \sum_k \rho_k \frac{D_k - D}{r_k} \Big), \qquad
       \sum_k r_k^{i - 1} \rho_k = \frac{i! \, z \varphi_{i + 1}(z)}{e^z - 1} \Big|_{z = -h}, $$

    $\varphi_1(z) = (e^z - 1) / z$, $\varphi_{i + 1}(z) = (\varphi_i(z) - 1 / i!) / z$; of one difference $\rho = 1/2$.

    The evaluation at the predicted state first *corrects* that state, as the $D_k$ with $r_k = 1$ (order $p + 1$, no
    extra evaluation), then predicts the next one (order $p$). The state the sampler keeps at inner times is the
    predicted one.

    Raises:
        ValueError: for another order.

    Source: Zhao et al., 2023 (arXiv 2302.04867), algorithms 5 to 8.
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
            x = self._advanced(schedule, past, t, x0_hat)
        past = (Eval(t, x, x0_hat), *past)[: self.order]
        return self._advanced(schedule, past, s), past

    def _advanced(self, schedule: Schedule, past: Past, s: float, x0_s: Tensor | None = None) -> Tensor:
        """The state at `s` from the newest of the past: predicted, or with the evaluation at `s` corrected."""
        newest = past[0]
        a, b, _ = affine(schedule, newest.t, s, eta=0.0)
        x_s = a * newest.x + b * newest.x0
        lam = [half_log_snr(schedule, s)] + [half_log_snr(schedule, e.t) for e in past]
        h = lam[0] - lam[1]
        known = range(1, _usable_order(lam, self.order))
        r = [(lam[k + 1] - lam[1]) / h for k in known]
        D_1 = [(past[k].x0 - newest.x0) / r_k for k, r_k in zip(known, r, strict=True)]
        if x0_s is not None:
            r, D_1 = [*r, 1.0], [*D_1, x0_s - newest.x0]
        if not r:
            return x_s
        if len(r) == 1:
            return x_s + b * 0.5 * D_1[0]
        rho = _unipc_weights(r, -h)
        return x_s + b * sum((p * d for p, d in zip(rho, D_1, strict=True)), torch.zeros_like(x_s))


def _unipc_weights(r: list[float], z: float) -> list[float]:
    r"""$\rho_k$ of the system above."""
    R, b = [], []
    z_phi, factorial = math.expm1(z) / z - 1, 1.0  # of i = 1: z phi_2(z) and 1!
    for i in range(1, len(r) + 1):
        R.append([r_k ** (i - 1) for r_k in r])
        b.append(z_phi * factorial / math.expm1(z))
        factorial *= i + 1
        z_phi = z_phi / z - 1 / factorial
    return torch.linalg.solve(*(torch.tensor(c, dtype=torch.float64) for c in (R, b))).tolist()


def _usable_order(lam: list[float], order: int) -> int:
    """The highest order whose log-SNRs (target first, then newest to oldest) are all finite."""
    if not math.isfinite(lam[0]) or not math.isfinite(lam[1]):
        return 1
    known = 1
    while known < order and known + 1 < len(lam) and math.isfinite(lam[known + 1]):
        known += 1
    return known
