"""First-order steps: DDIM and the ancestral step, one affine form."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from dsno.denoise import expand_like
from dsno.schedule import Schedule
from dsno.solvers.step import Eval, Evaluate, Past

__all__ = ["DDIM", "Ancestral", "affine", "ddim_inverse", "ddim_step"]


def affine(schedule: Schedule, t: float, s: float, eta: float) -> tuple[float, float, float]:
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
        a, b, _ = affine(schedule, t, s, eta=0.0)
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
        a, b, noise_std = affine(schedule, t, s, self.eta)
        x0_hat = D(x, t)
        x_s = a * x + b * x0_hat
        return x_s if z is None else x_s + noise_std * z, (Eval(t, x, x0_hat),)


def ddim_step(schedule: Schedule, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    r"""DDIM's step from $x_t$ to $x_s$, $s \le t$."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ((expand_like(c, x_t) for c in schedule(time)) for time in (t, s))
    ratio = sigma_s / sigma_t
    return ratio * x_t + (alpha_s - ratio * alpha_t) * x0


def ddim_inverse(schedule: Schedule, x_s: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    r"""$\tilde x$, the clean sample whose `ddim_step` takes `x_t` at t to `x_s` at s; (B, *shape), t and s (B,), s < t.

    $$ \tilde x = \frac{x_s - (\sigma_s / \sigma_t) \, x_t}{\alpha_s - (\sigma_s / \sigma_t) \, \alpha_t} $$

    The denominator vanishes at s = t alone, and at s = 0, where $\sigma_s = 0$, $\tilde x = x_s / \alpha_s$. An error of `x_s`
    is divided by it, too: by about the step's length where t = 1.

    Source: Salimans & Ho, 2022 (arXiv 2202.00512), algorithm 2 and appendix G.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ((expand_like(c, x_t) for c in schedule(time)) for time in (t, s))
    ratio = sigma_s / sigma_t
    return (x_s - ratio * x_t) / (alpha_s - ratio * alpha_t)
