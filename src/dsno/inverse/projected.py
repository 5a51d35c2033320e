r"""Guidance that never differentiates the denoiser: its answer is moved to what was measured, or the state is.

| | what is moved | how far |
|---|---|---|
| `DiffPIR` | $\hat x_0$, to the mean of $\mathcal N(\hat x_0, r_t^2 I)$ given y | a solve; DDNM's, without noise |
| `MPGD` | $\hat x_0$, along $A^\top (y - A \hat x_0)$ | to the lowest point of that line |
| `Replacement` | $x_s$, so that $A x_s$ is y, made as noisy as $x_s$ | a projection |

One evaluation a step and nothing else, which is the least that a restoration costs. What was not measured hears of it
through the denoiser alone, one step later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from dsno.denoise import expand_like
from dsno.inverse.problem import noise_of, posterior_mean
from dsno.inverse.run import Guidance, Run, check_options, lengths
from dsno.solvers.first_order import affine

__all__ = ["MPGD", "DiffPIR", "Replacement"]


@dataclass(frozen=True)
class DiffPIR(Guidance):
    r"""Plug and play restoration: the denoiser as the prior's step of half-quadratic splitting.

    $$ \tilde x_0 = \arg\min_x \frac{|A x - y|^2}{\tau^2} + \frac{\lambda}{r_t^2} |x - \hat x_0|^2,
       \qquad \tilde\epsilon = \frac{x_t - \alpha_t \tilde x_0}{\sigma_t}, \qquad
       r_t^2 = \frac{\sigma_t^2}{\alpha_t^2 + \sigma_t^2}, $$

    $$ x_s = \alpha_s \tilde x_0 + \sigma_s \big( \sqrt{1 - \zeta} \, \tilde\epsilon + \sqrt\zeta \, z \big). $$

    The paper has $r_t = \sigma_t / \alpha_t$, which is infinite on pure noise: there a noisy blur is inverted, whatever
    that does to its noise. Ours is that of data of unit variance, and the same where little noise is left. Without
    noise $\tilde x_0 = \hat x_0 + A^+ (y - A \hat x_0)$, the null-space projection of DDNM (Wang et al., 2023, arXiv
    2212.00490, eq. 12), whatever $\lambda$ is.

    Attributes:
        prior: $\lambda$, how much the denoiser's answer is trusted against a noisy measurement.
        fresh: $\zeta$, the share of the noise's variance that is fresh in every step, in [0, 1].

    Raises:
        ValueError: for options out of range.

    Source: Zhu et al., 2023 (arXiv 2305.08995), algorithm 1.
    """

    solves: ClassVar[bool] = True

    prior: float = field(default=1.0, kw_only=True)
    fresh: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prior > 0 or not 0 <= self.fresh <= 1:
            raise ValueError(f"DiffPIR takes prior > 0 and fresh in [0, 1], got {self.prior:g} and {self.fresh:g}")

    @property
    def stochastic(self) -> bool:
        return self.fresh > 0

    def step(self, run: Run, x: Tensor, t: float, s: float) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = run.schedule.at(t), run.schedule.at(s)
        x0_hat = run.x0(x, t)
        problem = run.revise(x0_hat, t)
        variance = sigma_t**2 / (alpha_t**2 + sigma_t**2) / self.prior
        x0_hat = posterior_mean(problem, x0_hat, run.y, variance)
        x_s = alpha_s * x0_hat + sigma_s * math.sqrt(1 - self.fresh) / sigma_t * (x - alpha_t * x0_hat)
        return x_s + sigma_s * math.sqrt(self.fresh) * run.noise(x) if self.stochastic else x_s


@dataclass(frozen=True)
class MPGD(Guidance):
    r"""The direction of the misfit in the space of samples, without the denoiser's Jacobian.

    $$ \hat x_0 \mathrel{+}= \zeta \kappa v, \qquad v = A^\top (y - A \hat x_0), \qquad
       \kappa = \Big( \rho + \frac{\tau^2}{r_t^2} \Big)^{-1}, \qquad \rho = \frac{|A v|^2}{|v|^2}, $$

    with $r_t^2 = \sigma_t^2 / (\alpha_t^2 + \sigma_t^2)$: $\kappa$ is where the misfit and the distance from $\hat x_0$
    are least along $v$, each over its variance. For masks, averages and grey the point is that of `DiffPIR`; the length
    of the step is ours, the paper sets it by hand, and its projection onto an autoencoder's range is left out.

    Attributes:
        scale: $\zeta$.
        eta: The share of fresh noise in a step, in [0, 1].

    Raises:
        ValueError: for options out of range.

    Source: He et al., 2024 (arXiv 2311.16424), algorithm 1 ("MPGD w/o projection").
    """

    scale: float = field(default=1.0, kw_only=True)
    eta: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self, self.scale, self.eta)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def step(self, run: Run, x: Tensor, t: float, s: float) -> Tensor:
        a, b, nu = affine(run.schedule, t, s, self.eta)
        alpha_t, sigma_t = run.schedule.at(t)
        x0_hat = run.x0(x, t)
        problem = run.revise(x0_hat, t)
        _, v = run.misfit(x0_hat)
        rho = (lengths(run.along(x0_hat, v)) / lengths(v)) ** 2
        kappa = 1 / (rho + noise_of(problem) ** 2 * (1 + alpha_t**2 / sigma_t**2))
        x_s = a * x + b * (x0_hat + self.scale * expand_like(kappa, v) * v)
        return x_s + nu * run.noise(x) if self.stochastic else x_s


@dataclass(frozen=True)
class Replacement(Guidance):
    r"""What was measured, made as noisy as the state, takes its place in it; RePaint for masks.

    $$ x_s \leftarrow \arg\min_x \frac{|A x - (\alpha_s y + \sigma_s A z)|^2}{\alpha_s^2 \tau^2}
       + \frac{|x - x_s|^2}{\sigma_s^2}
       \;\overset{\tau = 0}{=}\; x_s + A^+ \big( \alpha_s y + \sigma_s A z - A x_s \big) $$

    after an ancestral step. What was replaced and what was not are then of two samples; going back to t by fresh noise
    and down again, `resamples` times in all, lets the denoiser make one of them. The last state fits exactly; a noisy
    measurement is followed the less, the less noise is left in the state.

    Attributes:
        resamples: How often each step is made.
        eta: The share of fresh noise in a step, in [0, 1].

    Raises:
        ValueError: for options out of range.

    Source: Lugmayr et al., 2022 (arXiv 2201.09865), algorithm 1, with $A^+$ in the place of a mask, and noise, which is
    ours.
    """

    solves: ClassVar[bool] = True

    resamples: int = field(default=5, kw_only=True)
    eta: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self, 1.0, self.eta)
        if self.resamples < 1:
            raise ValueError(f"each step is made at least once, got resamples={self.resamples}")

    @property
    def stochastic(self) -> bool:
        return True

    def step(self, run: Run, x: Tensor, t: float, s: float) -> Tensor:
        a, b, nu = affine(run.schedule, t, s, self.eta)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = run.schedule.at(t), run.schedule.at(s)
        back = alpha_t / alpha_s
        for again in reversed(range(self.resamples)):
            x0_hat = run.x0(x, t)
            problem = run.revise(x0_hat, t)
            x_s = a * x + b * x0_hat + nu * run.noise(x)
            noisy = alpha_s * run.y + sigma_s * problem.A(run.noise(x))
            x_s = posterior_mean(problem, x_s, noisy, (sigma_s / alpha_s) ** 2)
            if again:
                x = back * x_s + math.sqrt(max(0.0, sigma_t**2 - (back * sigma_s) ** 2)) * run.noise(x)
        return x_s
