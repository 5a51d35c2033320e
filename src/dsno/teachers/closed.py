"""Teachers in closed form: of Gaussian data and mixtures the denoiser is known exactly, of Gaussian data its flow, too.

Every solver and every student is tested against them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dsno.condition import Cond, label_of
from dsno.denoise import expand_like
from dsno.schedule import Schedule

__all__ = ["Gaussian", "GaussianMixture"]


class Gaussian:
    r"""The exact denoiser of $x_0 \sim \mathcal N(\mu, \mathrm{diag}(s^2))$, and its exact flow.

    $$ D(x_t, t) = \mu + \frac{\alpha_t s^2}{\alpha_t^2 s^2 + \sigma_t^2} (x_t - \alpha_t \mu) $$

    Arguments:
        schedule: $\alpha_t, \sigma_t$.
        mean: $\mu$, of shape (*shape); or (K, *shape) with `classes` = K, picked by `cond` of shape (B,).
        std: $s > 0$, broadcastable to (*shape).
        classes: The number of classes, or None.
    """

    def __init__(self, schedule: Schedule, mean: Tensor, std: Tensor | float, classes: int | None = None) -> None:
        self.schedule = schedule
        self.mean = mean
        self.std = torch.as_tensor(std, dtype=mean.dtype)
        self.classes = classes
        if not bool((self.std > 0).all()):
            raise ValueError("std must be positive")
        if classes is not None and len(mean) != classes:
            raise ValueError(f"mean has {len(mean)} rows but there are {classes} classes")

    def _mu(self, cond: Cond | None) -> Tensor:
        if self.classes is None:
            return self.mean
        if (label := label_of(cond)) is None:
            raise ValueError("this Gaussian is class conditional: pass labels of shape (B,) as cond")
        return self.mean.to(label.device)[label]

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        mu, s2 = self._mu(cond).to(x_t), self.std.to(x_t) ** 2
        alpha_t, sigma_t = (expand_like(c, x_t) for c in self.schedule(t))
        return mu + alpha_t * s2 / (alpha_t**2 * s2 + sigma_t**2) * (x_t - alpha_t * mu)

    def flow(self, x_t: Tensor, t: float, s: float, cond: Cond | None = None) -> Tensor:
        r"""The probability-flow ODE solved exactly from time `t` to time `s`; shapes (B, *shape).

        $$ x_s = \alpha_s \mu
           + \sqrt{\frac{\alpha_s^2 s^2 + \sigma_s^2}{\alpha_t^2 s^2 + \sigma_t^2}} (x_t - \alpha_t \mu) $$
        """
        mu, s2 = self._mu(cond).to(x_t), self.std.to(x_t) ** 2
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.schedule.at(t), self.schedule.at(s)
        gain = ((alpha_s**2 * s2 + sigma_s**2) / (alpha_t**2 * s2 + sigma_t**2)).sqrt()
        return alpha_s * mu + gain * (x_t - alpha_t * mu)


class GaussianMixture:
    r"""The exact denoiser of a mixture $\sum_k w_k \mathcal N(\mu_k, s_k^2 I)$.

    $$ D(x_t, t) = \sum_k r_k(x_t) \Big( \mu_k + \tfrac{\alpha_t s_k^2}{v_k} (x_t - \alpha_t \mu_k) \Big), \quad
       r_k \propto w_k \mathcal N(x_t; \alpha_t \mu_k, v_k I), \quad v_k = \alpha_t^2 s_k^2 + \sigma_t^2. $$

    Arguments:
        schedule: $\alpha_t, \sigma_t$.
        means: $\mu_k$, shape (K, *shape).
        stds: $s_k$, shape (K,) or a number.
        weights: $w_k$, shape (K,); equal by default.
        labels: The class of each component, shape (K,); a `cond` of shape (B,) keeps the components of that class.
    """

    def __init__(
        self,
        schedule: Schedule,
        means: Tensor,
        stds: Tensor | float,
        weights: Tensor | None = None,
        labels: Sequence[int] | Tensor | None = None,
    ) -> None:
        K = len(means)
        self.schedule, self.means = schedule, means
        self.stds = torch.as_tensor(stds, dtype=means.dtype).expand(K)
        self.weights = torch.full((K,), 1 / K, dtype=means.dtype) if weights is None else weights / weights.sum()
        self.labels = None if labels is None else torch.as_tensor(labels)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        B, K = len(x_t), len(self.means)
        x = x_t.reshape(B, 1, -1)
        mu = self.means.to(x_t).reshape(1, K, -1)
        s2 = self.stds.to(x_t).reshape(1, K, 1) ** 2
        alpha_t, sigma_t = (c.to(x_t).reshape(-1, 1, 1) for c in self.schedule(t))
        v = alpha_t**2 * s2 + sigma_t**2
        residual = x - alpha_t * mu
        logits = self.weights.to(x_t).log() - 0.5 * (residual**2 / v).sum(-1) - 0.5 * x.shape[-1] * v.log().squeeze(-1)
        if (label := label_of(cond)) is not None:
            if self.labels is None:
                raise ValueError("this mixture has no labels: it cannot be conditioned on a class")
            logits = logits.masked_fill(self.labels.to(label)[None] != label[:, None], -torch.inf)
        r = logits.softmax(-1).unsqueeze(-1)
        return (r * (mu + alpha_t * s2 / v * residual)).sum(1).reshape(x_t.shape)

    def log_posterior(self, x_t: Tensor, t: Tensor | float, label: Tensor, noise_share: float = 1.0) -> Tensor:
        r"""$\log p(y \mid x_t)$ of labels (B,) at states (B, *shape), (B,): the exact classifier.

        It is told a `noise_share` of the noise: with less than all, $v_k = \alpha_t^2 s_k^2 + (\rho \sigma_t)^2$, it is
        surer of what it sees than it should be, as a classifier of clean samples is, and its gradient is rough.

        Raises:
            ValueError: if the mixture has no labels.
        """
        if self.labels is None:
            raise ValueError("this mixture has no labels: it has no classes to tell apart")
        K, x = len(self.means), x_t.reshape(len(x_t), 1, -1)
        times = torch.as_tensor(t, dtype=x_t.dtype, device=x_t.device)
        alpha_t, sigma_t = (c.reshape(-1, 1) for c in self.schedule(times))
        v = alpha_t**2 * self.stds.to(x_t) ** 2 + (noise_share * sigma_t) ** 2
        away = (x - alpha_t[..., None] * self.means.to(x_t).reshape(1, K, -1)).square().sum(-1)
        log_p = self.weights.to(x_t).log() - away / (2 * v) - 0.5 * x.shape[-1] * v.log()
        own = log_p.masked_fill(self.labels.to(label)[None] != label[:, None], -torch.inf)
        return own.logsumexp(1) - log_p.logsumexp(1)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw `count` exact samples, shape (count, *shape)."""
        k = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, *self.means.shape[1:], dtype=self.means.dtype, generator=generator)
        return self.means[k] + expand_like(self.stds[k], noise) * noise
