r"""Pairs in closed form: of mixtures seen through a matrix everything about a bridge is known.

$$ x_0 \sim \sum_k w_k \, \mathcal N(\mu_k, s_k^2 I), \qquad x_T = A x_0 + \tau n, \quad n \sim \mathcal N(0, I). $$

With $A = U \Lambda V^\top$ and everything written in the bases of $V$ and $U$, $p(x_0 \mid x_T)$ is a mixture of
Gaussians with diagonal covariances,

$$ v_{ki} = \Big(\frac1{s_k^2} + \frac{\lambda_i^2}{\tau^2}\Big)^{-1}, \qquad
   m_{ki} = v_{ki} \Big(\frac{\mu_{ki}}{s_k^2} + \frac{\lambda_i x_{T,i}}{\tau^2}\Big), \qquad
   \pi_k \propto w_k \prod_i \mathcal N(x_{T,i}; \lambda_i \mu_{ki}, \lambda_i^2 s_k^2 + \tau^2). $$

Given $x_T$ a bridge adds to it what a diffusion does, $y_t = b_t x_0 + c_t z$, so its denoiser is known as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsno.bridge.coefficients import Bridge
from dsno.condition import Cond

__all__ = ["PairedMixture"]


class PairedMixture:
    r"""The exact denoiser of a bridge between a mixture and what a matrix makes of it.

    $$ D(x_t, t, x_T) = \sum_k r_k \Big( m_k + \frac{b_t v_k}{b_t^2 v_k + c_t^2} (y_t - b_t m_k) \Big), \qquad
       r_k \propto \pi_k \prod_i \mathcal N(y_{t,i}; b_t m_{ki}, b_t^2 v_{ki} + c_t^2) $$

    Called as every denoiser of a bridge, `(x_t, t, {"start": x_T})`; states have the shape (B, d).

    Arguments:
        bridge: $a_t, b_t, c_t$.
        means: $\mu_k$, (K, d).
        stds: $s_k > 0$, (K,) or a number.
        A: The matrix, (d, d).
        noise: $\tau > 0$.
        weights: $w_k$, (K,); equal by default.

    Raises:
        ValueError: for a matrix of another shape, or a `noise` or a deviation that is not positive.
    """

    def __init__(
        self,
        bridge: Bridge,
        means: Tensor,
        stds: Tensor | float,
        A: Tensor,
        noise: float,
        weights: Tensor | None = None,
    ) -> None:
        K, d = means.shape
        self.bridge, self.means, self.A, self.noise = bridge, means, A, noise
        self.stds = torch.as_tensor(stds, dtype=means.dtype).expand(K)
        self.weights = torch.full((K,), 1 / K, dtype=means.dtype) if weights is None else weights / weights.sum()
        if A.shape != (d, d):
            raise ValueError(f"A must be a matrix ({d}, {d}) as the means have {d} numbers, got {tuple(A.shape)}")
        if not (noise > 0 and bool((self.stds > 0).all())):
            raise ValueError("the noise and the standard deviations must be positive")
        self.U, self.lam, V_t = torch.linalg.svd(A)
        self.V = V_t.mT

    def posterior(self, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""$p(x_0 \mid x_T)$ in the basis of $V$: $\log \pi$ (B, K), $m$ (B, K, d), $v$ (K, d)."""
        seen, mu = (start @ self.U.to(start))[:, None], (self.means @ self.V).to(start)
        lam, s2 = self.lam.to(start), self.stds.to(start)[:, None] ** 2
        v = 1 / (1 / s2 + lam**2 / self.noise**2)
        m = v * (mu / s2 + lam * seen / self.noise**2)
        log_pi = self.weights.to(start).log() + _log_density(seen - lam * mu, lam**2 * s2 + self.noise**2)
        return log_pi.log_softmax(-1), m, v

    def __call__(self, x_t: Tensor, t: Tensor | float, cond: Cond | None = None) -> Tensor:
        if not isinstance(cond, dict) or "start" not in cond:
            raise ValueError('a bridge is told where it comes from: cond={"start": x_T}')
        start = cond["start"]
        a_t, b_t, c_t = (c.to(x_t).reshape(-1, 1) for c in self.bridge(torch.as_tensor(t, dtype=x_t.dtype)))
        # At t = T, where y, b and c vanish together, y says nothing: as it does where there is noise alone.
        nothing = b_t == 0
        y = torch.where(nothing, 0.0, x_t - a_t * start) @ self.V.to(x_t)
        b_t, c_t = b_t[:, None], torch.where(nothing, 1.0, c_t)[:, None]
        log_pi, m, v = self.posterior(start)
        spread, residual = b_t**2 * v + c_t**2, y[:, None] - b_t * m
        r = (log_pi + _log_density(residual, spread)).softmax(-1)
        x0_hat = (r[..., None] * (m + b_t * v / spread * residual)).sum(1)
        return x0_hat @ self.V.to(x_t).mT

    def pairs(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw `count` pairs $(x_T, x_0)$, each (count, d)."""
        k = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        e, n = torch.randn(2, count, self.means.shape[1], dtype=self.means.dtype, generator=generator)
        x_0 = self.means[k] + self.stds[k, None] * e
        return x_0 @ self.A.mT + self.noise * n, x_0

    def sample(self, start: Tensor, generator: torch.Generator | None = None) -> Tensor:
        r"""Draw $x_0 \mid x_T$ for each row of `start` (B, d), exactly."""
        log_pi, m, v = self.posterior(start)
        k = torch.multinomial(log_pi.exp(), 1, generator=generator)[:, 0]
        e = torch.randn(start.shape, dtype=start.dtype, generator=generator)
        return (m[torch.arange(len(k)), k] + v[k].sqrt() * e) @ self.V.to(start).mT


def _log_density(residual: Tensor, variance: Tensor) -> Tensor:
    """Of independent Gaussians but for a constant, (..., d) to (...)."""
    return -0.5 * (residual**2 / variance + variance.log()).sum(-1)
