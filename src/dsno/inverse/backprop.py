r"""Guidance by the gradient of what was measured, through the denoiser.

The score of the posterior is $\nabla \log p(x_t) + \nabla \log p(y \mid x_t)$, and the second term is approximated with
the denoiser's answer $\hat x_0 = D(x_t, t)$, whose Jacobian is J:

| | $p(x_0 \mid x_t)$ is taken for | $\nabla_{x_t} \log p(y \mid x_t)$ |
|---|---|---|
| DPS | a point, $\hat x_0$ | $J^\top A^\top (y - A \hat x_0) / \tau^2$, the length of the step set by hand |
| PiGDM | $\mathcal N(\hat x_0, r_t^2 I)$ | $J^\top A^\top (r_t^2 A A^\top + \tau^2 I)^{-1} (y - A \hat x_0)$ |

Both take a vjp a step: about three times the time of an evaluation, and room for the activations of all layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from dsno.denoise import expand_like
from dsno.inverse.problem import posterior_mean
from dsno.inverse.run import Guidance, Run, check_options, lengths
from dsno.solvers.first_order import affine

__all__ = ["DPS", "PiGDM"]


@dataclass(frozen=True)
class DPS(Guidance):
    r"""Diffusion posterior sampling: an ancestral step, and one of fixed length down the misfit.

    $$ x_s = a x_t + b \hat x_0 + \nu z + \zeta n_s n_t \, J^\top \frac{A^\top e}{|e|}, \qquad e = y - A \hat x_0, $$

    which is $-\zeta \nabla_{x_t} |y - A \hat x_0|$ on a variance preserving schedule; $n_t^2 = \alpha_t^2 + \sigma_t^2$
    makes it the same on any. A step does not become shorter with the grid's: the default was chosen for fifty steps.

    Attributes:
        scale: $\zeta$.
        eta: The share of fresh noise in a step, in [0, 1].

    Raises:
        ValueError: for options out of range.

    Source: Chung et al., 2023 (arXiv 2209.14687), algorithm 1.
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
        n_t, n_s = math.hypot(*run.schedule.at(t)), math.hypot(*run.schedule.at(s))
        x0_hat, pull = run.vjp(x, t)
        run.revise(x0_hat, t)
        e, down = run.misfit(x0_hat)
        x_s = a * x + b * x0_hat + self.scale * n_s * n_t * pull(down / expand_like(lengths(e), down))
        return x_s + nu * run.noise(x) if self.stochastic else x_s


@dataclass(frozen=True)
class PiGDM(Guidance):
    r"""Pseudo-inverse guided diffusion: the misfit is solved for before it goes back through the denoiser.

    $$ x_s = a x_t + b \hat x_0 + \nu z + n_s \alpha_t \, J^\top \delta, \qquad
       \delta = r_t^2 A^\top (r_t^2 A A^\top + \tau^2 I)^{-1} (y - A \hat x_0)
              = \mathbb E[x_0 \mid y] - \hat x_0, $$

    the expectation that of $x_0 \sim \mathcal N(\hat x_0, r_t^2 I)$ (`posterior_mean`), with

    $$ r_t^2 = \frac{v \, \sigma_t^2}{\alpha_t^2 v + \sigma_t^2}, $$

    the variance of $x_0$ given $x_t$ where that of the data is v. The weight $n_s \alpha_t$, with $n_s^2 = \alpha_s^2 +
    \sigma_s^2$, is the published one for a variance preserving schedule; it does not become smaller with the step, so
    that what was measured is met in a step or two, and is no Euler step of the guided flow.

    Attributes:
        variance: v.
        scale: Times the published weight.
        eta: The share of fresh noise in a step, in [0, 1].

    Raises:
        ValueError: for options out of range.

    Source: Song, Vahdat, Mardani & Kautz, ICLR 2023 ("Pseudoinverse-guided diffusion models for inverse problems"),
    algorithm 1.
    """

    solves: ClassVar[bool] = True

    variance: float = field(default=1.0, kw_only=True)
    scale: float = field(default=1.0, kw_only=True)
    eta: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self, self.scale, self.eta)
        if not self.variance > 0:
            raise ValueError(f"the variance of the data must be positive, got {self.variance:g}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def step(self, run: Run, x: Tensor, t: float, s: float) -> Tensor:
        a, b, nu = affine(run.schedule, t, s, self.eta)
        (alpha_t, sigma_t), n_s = run.schedule.at(t), math.hypot(*run.schedule.at(s))
        r2 = self.variance * sigma_t**2 / (alpha_t**2 * self.variance + sigma_t**2)
        x0_hat, pull = run.vjp(x, t)
        problem = run.revise(x0_hat, t)
        delta = posterior_mean(problem, x0_hat, run.y, r2) - x0_hat
        x_s = a * x + b * x0_hat + self.scale * n_s * alpha_t * pull(delta)
        return x_s + nu * run.noise(x) if self.stochastic else x_s
