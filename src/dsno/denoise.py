r"""Denoisers: what a pretrained diffusion model is to everything else.

A denoiser estimates the clean sample from a noisy one,

$$ D(x_t, t) \approx \mathbb E[x_0 \mid x_t], \qquad x_t = \alpha_t x_0 + \sigma_t \epsilon. $$

Noise, velocity, flow and score are linear in $(x_t, D)$, so one of them is all of them:

| kind | quantity | $\hat x_0$ from it |
|---|---|---|
| `x0` | $\hat x_0$ | $\hat x_0$ |
| `eps` | $\hat\epsilon = (x_t - \alpha_t \hat x_0) / \sigma_t$ | $(x_t - \sigma_t \hat\epsilon) / \alpha_t$ |
| `v` | $\alpha_t \hat\epsilon - \sigma_t \hat x_0$ | $(\alpha_t x_t - \sigma_t \hat v) / (\alpha_t^2 + \sigma_t^2)$ |
| `flow` | $\dot x_t = \dot\alpha_t \hat x_0 + \dot\sigma_t \hat\epsilon$ | $(\dot\sigma_t x_t - \sigma_t \dot x_t) / (\dot\sigma_t \alpha_t - \sigma_t \dot\alpha_t)$ |
| `score` | $\nabla \log p_t(x_t) = -\hat\epsilon / \sigma_t$ | $(x_t + \sigma_t^2 \nabla \log p_t) / \alpha_t$ |

The closed-form teachers below know $D$ exactly; the Gaussian also knows its flow. Every solver and every student is
tested against them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dsno.schedule import Schedule

__all__ = [
    "Denoiser",
    "Gaussian",
    "GaussianMixture",
    "Kind",
    "Meter",
    "Prediction",
    "convert",
    "expand_like",
    "x0_from",
]

Kind = Literal["x0", "eps", "v", "flow", "score"]
KINDS: tuple[Kind, ...] = ("x0", "eps", "v", "flow", "score")


@runtime_checkable
class Denoiser(Protocol):
    r"""Any callable $(x_t, t, \mathrm{cond}) \mapsto \hat x_0$.

    `x_t` has shape (B, *shape); `t` is a tensor of shape () or (B,), in [0, 1]; `cond` is None or a tensor whose first
    dimension is B. The result has the shape of `x_t`.
    """

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor: ...


def expand_like(value: Tensor, x: Tensor) -> Tensor:
    """View a tensor of shape () or (B,) so that it broadcasts against `x` of shape (B, *shape)."""
    return value.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def x0_from(kind: Kind, output: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    r"""Turn a network's `output` of the given `kind` into $\hat x_0$ (table above); shapes (B, *shape), `t` () or (B,).

    Where the relation divides by $\alpha_t$ and $\alpha_t = 0$ (`eps`, `score` on pure noise) the model says nothing
    about $x_0$; the division is by the smallest normal number instead, so the result is finite for zero numerators and
    never NaN.

    Raises:
        ValueError: if `kind` is unknown.
    """
    alpha_t, sigma_t = (expand_like(c, x_t) for c in schedule(t))
    tiny = torch.finfo(x_t.dtype).tiny
    if kind == "x0":
        return output
    if kind == "eps":
        return (x_t - sigma_t * output) / alpha_t.clamp_min(tiny)
    if kind == "v":
        return (alpha_t * x_t - sigma_t * output) / (alpha_t**2 + sigma_t**2)
    if kind == "flow":
        d_alpha, d_sigma = (expand_like(c, x_t) for c in schedule.derivative(_inner(t)))
        alpha_t, sigma_t = (expand_like(c, x_t) for c in schedule(_inner(t)))
        return (d_sigma * x_t - sigma_t * output) / (d_sigma * alpha_t - sigma_t * d_alpha)
    if kind == "score":
        return (x_t + sigma_t**2 * output) / alpha_t.clamp_min(tiny)
    raise ValueError(f"unknown prediction kind {kind!r}: expected one of {KINDS}")


def convert(kind: Kind, x0_hat: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    r"""The quantity `kind` that corresponds to $\hat x_0$ at $x_t$; the inverse of `x0_from`.

    At $\sigma_t = 0$ the noise $\hat\epsilon = (x_t - \alpha_t \hat x_0)/\sigma_t$ is taken as its value for an exact
    denoiser's numerator, 0, so nothing is NaN.

    Raises:
        ValueError: if `kind` is unknown.
    """
    alpha_t, sigma_t = (expand_like(c, x_t) for c in schedule(t))
    tiny = torch.finfo(x_t.dtype).tiny
    clean = sigma_t <= tiny
    eps_hat = torch.where(clean, torch.zeros_like(x_t), (x_t - alpha_t * x0_hat) / torch.where(clean, 1.0, sigma_t))
    if kind == "x0":
        return x0_hat
    if kind == "eps":
        return eps_hat
    if kind == "v":
        return alpha_t * eps_hat - sigma_t * x0_hat
    if kind == "flow":
        d_alpha, d_sigma = (expand_like(c, x_t) for c in schedule.derivative(_inner(t)))
        return d_alpha * x0_hat + d_sigma * eps_hat
    if kind == "score":
        return torch.where(clean, torch.zeros_like(x_t), -eps_hat / torch.where(clean, 1.0, sigma_t))
    raise ValueError(f"unknown prediction kind {kind!r}: expected one of {KINDS}")


def _inner(t: Tensor) -> Tensor:
    # sigma ~ sqrt(t) near 0 for beta schedules, so d sigma/dt is infinite at t = 0 itself.
    return t.clamp_min(1e-6)


class Prediction(nn.Module):
    r"""A network with a stated convention as a denoiser.

    Arguments:
        net: Called as `net(x_t, time, cond)` (or `net(x_t, time)` where `cond` is None); returns shape (B, *shape).
        schedule: The schedule the network was trained on.
        kind: What the network predicts.
        time: Maps t in [0, 1], shape (B,), to the network's own time; identity by default.
        clip: Bound on $|\hat x_0|$, or None.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        kind: Kind = "x0",
        time: Callable[[Tensor], Tensor] | None = None,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"unknown prediction kind {kind!r}: expected one of {KINDS}")
        self.net, self.schedule, self.kind, self.time, self.clip = net, schedule, kind, time, clip

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        # Half precision tells only a few hundred times apart, so t never goes below float32.
        t = t.to(x_t.device, torch.promote_types(x_t.dtype, torch.float32)).expand(len(x_t))
        time = t if self.time is None else self.time(t)
        output = self.net(x_t, time) if cond is None else self.net(x_t, time, cond)
        x0_hat = x0_from(self.kind, output, x_t, t, self.schedule)
        return x0_hat if self.clip is None else x0_hat.clamp(-self.clip, self.clip)


class Meter:
    """Counts what a denoiser costs: `rounds` (calls, the serial cost) and `rows` (batch rows, the total cost).

    `jvps` and `vjps` are counted by the samplers that differentiate, through `tally`.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.reset()

    def reset(self) -> None:
        self.rounds = self.rows = self.jvps = self.vjps = 0

    def tally(self, jvps: int = 0, vjps: int = 0) -> None:
        self.jvps += jvps
        self.vjps += vjps

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.rounds += 1
        self.rows += len(x_t)
        return self.denoiser(x_t, t, cond)


class Gaussian:
    r"""The exact denoiser of $x_0 \sim \mathcal N(\mu, \mathrm{diag}(s^2))$, and its exact flow.

    $$ D(x_t, t) = \mu + \frac{\alpha_t s^2}{\alpha_t^2 s^2 + \sigma_t^2} (x_t - \alpha_t \mu) $$

    Arguments:
        schedule: The path.
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

    def _mu(self, cond: Tensor | None) -> Tensor:
        if self.classes is None:
            return self.mean
        if cond is None:
            raise ValueError("this Gaussian is class conditional: pass labels of shape (B,) as cond")
        return self.mean.to(cond.device)[cond]

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        mu, s2 = self._mu(cond).to(x_t), self.std.to(x_t) ** 2
        alpha_t, sigma_t = (expand_like(c, x_t) for c in self.schedule(t))
        return mu + alpha_t * s2 / (alpha_t**2 * s2 + sigma_t**2) * (x_t - alpha_t * mu)

    def flow(self, x_t: Tensor, t: float, s: float, cond: Tensor | None = None) -> Tensor:
        r"""The probability-flow ODE solved exactly from time `t` to time `s`; shapes (B, *shape).

        $$ x_s = \alpha_s \mu + \sqrt{\frac{\alpha_s^2 s^2 + \sigma_s^2}{\alpha_t^2 s^2 + \sigma_t^2}} (x_t - \alpha_t \mu) $$
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
        schedule: The path.
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

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        B, K = len(x_t), len(self.means)
        x = x_t.reshape(B, 1, -1)
        mu = self.means.to(x_t).reshape(1, K, -1)
        s2 = self.stds.to(x_t).reshape(1, K, 1) ** 2
        alpha_t, sigma_t = (c.to(x_t).reshape(-1, 1, 1) for c in self.schedule(t))
        v = alpha_t**2 * s2 + sigma_t**2
        residual = x - alpha_t * mu
        logits = self.weights.to(x_t).log() - 0.5 * (residual**2 / v).sum(-1) - 0.5 * x.shape[-1] * v.log().squeeze(-1)
        if cond is not None:
            if self.labels is None:
                raise ValueError("this mixture has no labels: it cannot be conditioned on a class")
            logits = logits.masked_fill(self.labels.to(cond)[None] != cond[:, None], -torch.inf)
        r = logits.softmax(-1).unsqueeze(-1)
        return (r * (mu + alpha_t * s2 / v * residual)).sum(1).reshape(x_t.shape)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw `count` exact samples, shape (count, *shape)."""
        k = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, *self.means.shape[1:], dtype=self.means.dtype, generator=generator)
        return self.means[k] + expand_like(self.stds[k], noise) * noise
