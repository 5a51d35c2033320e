r"""First-order steps: DDIM and the ancestral step, the denoiser constant from one time to the next.

With $D$ constant the integral of the exact form (`step`) is $(\kappa_s - \kappa_t) D$, and

$$ x_s = \frac{\sigma_s}{\sigma_t} x_t + \Big(\alpha_s - \frac{\sigma_s}{\sigma_t} \alpha_t\Big) D(x_t, t)
       = \alpha_s \hat x_0 + \sigma_s \hat\epsilon, $$

which is DDIM. Of the noise at $s$ a share $\eta$ may be fresh, of standard deviation $\nu$, while $c$ of the old one
stays:

$$ x_s = \alpha_s \hat x_0 + c \, \hat\epsilon + \nu z = a \, x_t + b \, D(x_t, t) + \nu z, \qquad
   z \sim \mathcal N(0, I), $$

$$ \nu = \eta \, \sigma_s \sqrt{1 - \Big(\frac{\alpha_t \sigma_s}{\alpha_s \sigma_t}\Big)^2}, \qquad
   c = \sqrt{\sigma_s^2 - \nu^2}, \qquad a = \frac{c}{\sigma_t}, \qquad b = \alpha_s - \frac{c}{\sigma_t} \alpha_t. $$

$\eta = 0$ is DDIM, $\eta = 1$ DDPM's ancestral sampler: a draw from the posterior $q(x_s \mid x_t, x_0 = \hat x_0)$.
For a solver these numbers are floats (`affine`); `ddim_step` and `ddim_inverse` take a time for each row.

Source: Song et al., 2020 (arXiv 2010.02502), eq. 12 and 16; Ho et al., 2020 (arXiv 2006.11239).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from dsno.denoise import expand_like
from dsno.schedule import Schedule
from dsno.solvers.step import Eval, Evaluate, Past

__all__ = ["DDIM", "Ancestral", "affine", "ddim_inverse", "ddim_step"]


def affine(schedule: Schedule, t: float, s: float, eta: float) -> tuple[float, float, float]:
    r"""$(a, b, \nu)$ of $x_s = a \, x_t + b \, D + \nu z$ above, for `s` < `t` and `eta` in [0, 1]."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.at(t), schedule.at(s)
    # 1 - (alpha_t / alpha_s)^2 is the variance added between s and t for a VP path; written in kappa it holds for any.
    ratio = (alpha_t * sigma_s) / (alpha_s * sigma_t) if alpha_s > 0 else 1.0
    nu = eta * sigma_s * math.sqrt(max(0.0, 1 - ratio**2))
    c = math.sqrt(max(0.0, sigma_s**2 - nu**2))
    return c / sigma_t, alpha_s - c * alpha_t / sigma_t, nu


@dataclass(frozen=True)
class DDIM:
    r"""$x_s = (\sigma_s / \sigma_t) \, x_t + (\alpha_s - (\sigma_s / \sigma_t) \, \alpha_t) \, D(x_t, t)$."""

    stochastic = False

    def __call__(
        self, D: Evaluate, schedule: Schedule, x: Tensor, t: float, s: float, past: Past, z: Tensor | None
    ) -> tuple[Tensor, Past]:
        a, b, _ = affine(schedule, t, s, eta=0.0)
        x0_hat = D(x, t)
        return a * x + b * x0_hat, (Eval(t, x, x0_hat),)


@dataclass(frozen=True)
class Ancestral:
    r"""$x_s = a \, x_t + b \, D(x_t, t) + \nu z$: DDIM at $\eta = 0$, DDPM's ancestral sampler at $\eta = 1$."""

    eta: float = 1.0
    stochastic = True

    def __call__(
        self, D: Evaluate, schedule: Schedule, x: Tensor, t: float, s: float, past: Past, z: Tensor | None
    ) -> tuple[Tensor, Past]:
        a, b, nu = affine(schedule, t, s, self.eta)
        x0_hat = D(x, t)
        x_s = a * x + b * x0_hat
        return x_s if z is None else x_s + nu * z, (Eval(t, x, x0_hat),)


def ddim_step(schedule: Schedule, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    r"""DDIM's step from $x_t$ to $x_s$, (B, *shape); t and s () or (B,), $0 < t$, $s \le t$.

    $$ x_s = \frac{\sigma_s}{\sigma_t} x_t + \Big(\alpha_s - \frac{\sigma_s}{\sigma_t} \alpha_t\Big) x_0 $$
    """
    ratio, gain = _ratio_and_gain(schedule, x_t, t, s)
    return ratio * x_t + gain * x0


def ddim_inverse(schedule: Schedule, x_s: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    r"""$\tilde x$, the clean sample whose `ddim_step` takes $x_t$ to $x_s$, (B, *shape); t and s () or (B,), $s < t$.

    $$ \tilde x = \frac{x_s - (\sigma_s / \sigma_t) \, x_t}{\alpha_s - (\sigma_s / \sigma_t) \, \alpha_t} $$

    The denominator vanishes at s = t alone, and at s = 0, where $\sigma_s = 0$, $\tilde x = x_s / \alpha_s$. An error
    of $x_s$ is divided by it, too: by about the step's length where t = 1.

    Source: Salimans & Ho, 2022 (arXiv 2202.00512), algorithm 2 and appendix G.
    """
    ratio, gain = _ratio_and_gain(schedule, x_t, t, s)
    return (x_s - ratio * x_t) / gain


def _ratio_and_gain(schedule: Schedule, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    r"""$\sigma_s / \sigma_t$ and $\alpha_s - (\sigma_s / \sigma_t) \alpha_t$, to broadcast against `x`."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ((expand_like(c, x) for c in schedule(time)) for time in (t, s))
    ratio = sigma_s / sigma_t
    return ratio, alpha_s - ratio * alpha_t
