r"""Denoisers: what a pretrained diffusion model is to everything else.

A denoiser estimates the clean sample from a noisy one,

$$ D(x_t, t) \approx \mathbb E[x_0 \mid x_t], \qquad x_t = \alpha_t x_0 + \sigma_t \epsilon. $$

Noise, velocity, flow $\dot x_t$ and score are linear in $(x_t, D)$, so one of them is all of them:

| kind | quantity | $\hat x_0$ from it |
|---|---|---|
| `x0` | $\hat x_0$ | $\hat x_0$ |
| `eps` | $\hat\epsilon = (x_t - \alpha_t \hat x_0) / \sigma_t$ | $(x_t - \sigma_t \hat\epsilon) / \alpha_t$ |
| `v` | $\hat v = \alpha_t \hat\epsilon - \sigma_t \hat x_0$ | $(\alpha_t x_t - \sigma_t \hat v) / n_t^2$ |
| `flow` | $\dot\alpha_t \hat x_0 + \dot\sigma_t \hat\epsilon$ | $(\dot\sigma_t x_t - \sigma_t \dot x_t) / w_t$ |
| `score` | $\nabla \log p_t(x_t) = -\hat\epsilon / \sigma_t$ | $(x_t + \sigma_t^2 \nabla \log p_t) / \alpha_t$ |
| `edm` | $F$ | $\alpha_t \sigma_d^2 / s_t^2 \; x_t + \sigma_t \sigma_d / s_t \; F$ |

$$ n_t^2 = \alpha_t^2 + \sigma_t^2, \qquad w_t = \dot\sigma_t \alpha_t - \sigma_t \dot\alpha_t, \qquad
   s_t^2 = \alpha_t^2 \sigma_d^2 + \sigma_t^2. $$

`edm` is the preconditioning of Karras et al., 2022 (arXiv 2206.00364, eq. 7) on any schedule: $\sigma_d$ is the
standard deviation of the data, and the network is given $x_t / s_t$, of unit variance. With $\sigma_d = 1$ and a VP
schedule $F = -v$.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from dsno.borrow import called_with, state_of
from dsno.condition import Cond, map_cond, named, rows_like, unnamed
from dsno.schedule import Schedule

__all__ = [
    "Around",
    "Denoiser",
    "Guided",
    "Kind",
    "Prediction",
    "Reading",
    "Threshold",
    "at_one_time",
    "convert",
    "each_row",
    "evaluating",
    "expand_like",
    "innermost",
    "modules_of",
    "scale_input",
    "still",
    "tensors_of",
    "x0_from",
]


@runtime_checkable
class Denoiser(Protocol):
    r"""Any callable $(x_t, t, \mathrm{cond}) \mapsto \hat x_0$.

    `x_t` has shape (B, *shape); `t` is a tensor of shape () or (B,), in [0, 1]; `cond` is None, a tensor or tensors by
    name, whose first dimension is B. The result has the shape of `x_t`.
    """

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor: ...


Kind = Literal["x0", "eps", "v", "flow", "score", "edm"]

KINDS: tuple[Kind, ...] = ("x0", "eps", "v", "flow", "score", "edm")

NEAREST = 1e-6
r"""The least time at which a slope of a schedule is taken: $\sigma \sim \sqrt t$ near 0 for beta schedules, whose
slope is infinite there."""


@dataclass(frozen=True)
class Reading:
    r"""How a network of a `kind` is read (table above): it is shown $x_t / s$, and of its output $F$

    $$ \hat x_0 = (p \, x_t - q F) / n. $$

    Where $n = \alpha_t$ (`eps`, `score`) is 0, on pure noise, the model says nothing about $x_0$; it is the smallest
    normal number of `dtype` instead, so the result is finite for zero numerators and never NaN.

    Raises:
        ValueError: when called, if the kind is unknown.
    """

    kind: Kind
    data_std: float = 1.0
    dtype: torch.dtype = torch.float32

    def __call__(self, schedule: Schedule, t: Tensor) -> tuple[Tensor | float, ...]:
        """$(s, p, q, n)$ at times of any shape, of that shape and of `dtype`; numbers where they are constant."""
        alpha_t, sigma_t = (c.to(self.dtype) for c in schedule(t))
        if self.kind == "x0":
            return 1.0, 0.0, -1.0, 1.0
        if self.kind == "eps":
            return 1.0, 1.0, sigma_t, alpha_t.clamp_min(torch.finfo(self.dtype).tiny)
        if self.kind == "v":
            return 1.0, alpha_t, sigma_t, alpha_t**2 + sigma_t**2
        if self.kind == "flow":
            d_alpha, d_sigma = (c.to(self.dtype) for c in schedule.derivative(_inner(t)))
            alpha_t, sigma_t = (c.to(self.dtype) for c in schedule(_inner(t)))
            return 1.0, d_sigma, sigma_t, d_sigma * alpha_t - sigma_t * d_alpha
        if self.kind == "score":
            return 1.0, 1.0, -(sigma_t**2), alpha_t.clamp_min(torch.finfo(self.dtype).tiny)
        if self.kind == "edm":
            s_t = _scale(alpha_t, sigma_t, self.data_std)
            return s_t, alpha_t * self.data_std**2 / s_t**2, -sigma_t * self.data_std / s_t, 1.0
        raise ValueError(f"unknown prediction kind {self.kind!r}: expected one of {KINDS}")

    def at(self, schedule: Schedule, t: Tensor | float, x: Tensor) -> tuple[Tensor | float, ...]:
        """$(s, p, q, n)$ to multiply `x` (B, *shape) by: floats of one time, else of `t` () or (B,)."""
        if isinstance(t, float):
            return schedule.numbers(self, t, torch.promote_types(x.dtype, torch.float32))
        return self(schedule, t.reshape(-1, *[1] * (x.ndim - 1)))


def x0_from(
    kind: Kind, output: Tensor, x_t: Tensor, t: Tensor | float, schedule: Schedule, data_std: float = 1.0
) -> Tensor:
    r"""Turn a network's `output` of the given `kind` into $\hat x_0$ (`Reading`); shapes (B, *shape), `t` () or (B,) or
    a number, the time of all rows.

    `data_std` is $\sigma_d$ of the kind `edm`; the others do not read it.

    Raises:
        ValueError: if `kind` is unknown.
    """
    if kind == "x0":
        return output
    _, p, q, n = Reading(kind, data_std, x_t.dtype).at(schedule, t, x_t)
    if kind in ("eps", "score"):  # p = 1
        return (x_t - q * output) / n
    if kind == "edm":  # n = 1
        return p * x_t - q * output
    return (p * x_t - q * output) / n


def convert(kind: Kind, x0_hat: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule, data_std: float = 1.0) -> Tensor:
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
    if kind == "edm":
        s_t = _scale(alpha_t, sigma_t, data_std)
        rest = x0_hat - alpha_t * data_std**2 / s_t**2 * x_t
        return torch.where(clean, torch.zeros_like(x_t), rest * s_t / (torch.where(clean, 1.0, sigma_t) * data_std))
    raise ValueError(f"unknown prediction kind {kind!r}: expected one of {KINDS}")


def scale_input(kind: Kind, x_t: Tensor, t: Tensor | float, schedule: Schedule, data_std: float = 1.0) -> Tensor:
    """What a network of the given `kind` is shown of the state: $x_t / s_t$ for `edm`, else $x_t$ itself."""
    if kind != "edm":
        return x_t
    s_t, *_ = Reading(kind, data_std, x_t.dtype).at(schedule, t, x_t)
    return x_t / s_t


def _scale(alpha_t: Tensor, sigma_t: Tensor, data_std: float) -> Tensor:
    r"""$s_t = \sqrt{\alpha_t^2 \sigma_d^2 + \sigma_t^2}$, the standard deviation of $x_t$."""
    return (alpha_t**2 * data_std**2 + sigma_t**2).sqrt()


def _inner(t: Tensor) -> Tensor:
    return t.clamp_min(NEAREST)


def expand_like(value: Tensor, x: Tensor) -> Tensor:
    """View a tensor of shape () or (B,) so that it broadcasts against `x` of shape (B, *shape)."""
    return value.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def each_row(t: Tensor | float, x: Tensor) -> Tensor:
    """Times (B,) of the rows of `x` (B, *shape) from one of all, a number or (), or from theirs, on its device."""
    # Half precision tells only a few hundred times apart, so t never goes below float32.
    dtype = torch.promote_types(x.dtype, torch.float32)
    if isinstance(t, float):
        return torch.full((len(x),), t, dtype=dtype, device=x.device)
    return t.to(x.device, dtype).expand(len(x))


@dataclass(frozen=True)
class Threshold:
    r"""Dynamic thresholding (Saharia et al., 2022, arXiv 2205.11487, section 2.3): with $q$ the `ratio` quantile of
    $|\hat x_0|$ over one sample, clamped to [1, `maximum`], $\hat x_0 \leftarrow \mathrm{clamp}(\hat x_0, -q, q) / q$.
    """

    ratio: float = 0.995
    maximum: float = 1.0

    def __call__(self, x0_hat: Tensor) -> Tensor:
        q = torch.quantile(x0_hat.flatten(1).abs().float(), self.ratio, dim=1).clamp(1, max(self.maximum, 1))
        q = expand_like(q, x0_hat)
        return x0_hat.clamp(-q, q) / q


class Prediction(nn.Module):
    r"""A network with a stated convention as a denoiser.

    Arguments:
        net: Called as `net(x_t, t, cond)` (or `net(x_t, t)` where `cond` is None); returns shape (B, *shape).
        schedule: The schedule the network was trained on.
        kind: What the network predicts; one of kind `edm` is shown $x_t / s_t$.
        time: Maps t in [0, 1], shape (B,), to the network's own time; identity by default.
        clip: Bound on $|\hat x_0|$, a `Threshold`, or None.
        data_std: $\sigma_d$ of the kind `edm`.
        shape: The shape of one sample, where it is known.
        classes: The number of classes the network may be told, or None.

    Raises:
        ValueError: for an unknown kind, or a `data_std` that is not positive.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        kind: Kind = "x0",
        time: Callable[[Tensor], Tensor] | None = None,
        clip: float | Threshold | None = None,
        data_std: float = 1.0,
        shape: Sequence[int] | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"unknown prediction kind {kind!r}: expected one of {KINDS}")
        if not data_std > 0:
            raise ValueError(f"data_std must be positive, got {data_std}")
        self.net, self.schedule, self.kind, self.time, self.clip = net, schedule, kind, time, clip
        self.data_std, self.shape, self.classes = data_std, None if shape is None else tuple(shape), classes

    def unclipped(self, x_t: Tensor, t: Tensor | float, cond: Cond | None = None) -> Tensor:
        r"""$\hat x_0$ before `clip`."""
        rows = each_row(t, x_t)
        t = t if isinstance(t, float) else rows
        x, time = scale_input(self.kind, x_t, t, self.schedule, self.data_std), self.time(rows) if self.time else rows
        output = self.net(x, time) if cond is None else self.net(x, time, cond)
        return x0_from(self.kind, output, x_t, t, self.schedule, self.data_std)

    def clipped(self, x0_hat: Tensor) -> Tensor:
        r"""$\hat x_0$ after `clip`."""
        if isinstance(self.clip, Threshold):
            return self.clip(x0_hat)
        return x0_hat if self.clip is None else x0_hat.clamp(-self.clip, self.clip)

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Cond | None = None) -> Tensor:
        return self.clipped(self.unclipped(x_t, t, cond))


class Around(nn.Module):
    """A denoiser that is made of another one, and takes times and states as that one does.

    `evaluations` are the rows of the network for each row of a call.
    """

    denoiser: Denoiser
    evaluations: int = 1


def innermost(denoiser: Denoiser) -> Denoiser:
    """What guidance was put around, itself of others."""
    while isinstance(denoiser, Around):
        denoiser = denoiser.denoiser
    return denoiser


class Guided(Around):
    r"""Classifier-free guidance; a guided denoiser is again a denoiser (Ho & Salimans, 2022, arXiv 2207.12598, eq. 6).

    $$ D_w(x_t, t, c) = (1 + w) \, D(x_t, t, c) - w \, D(x_t, t, \varnothing) $$

    $w = 0$ is the conditional model; the `guidance_scale` of diffusers is $1 + w$. Linear in $D$, so the same in
    $\hat x_0$, $\hat\epsilon$ and $v$; a `Prediction` is clipped after the guidance. Both terms are rows of one call.

    Arguments:
        denoiser: $D$.
        null: $\varnothing$ without a batch dimension: the label () or embedding (...) that stands for no condition, or
            such by name. On any device: it is looked up where the states are.
        weight: $w \ge 0$; None reads it from each row's `cond["weight"]`, (B,).

    Raises:
        ValueError: for a negative weight; when called without a condition, with one of other names than the null
            condition's, or without a weight where none was given.
    """

    evaluations: int = 2

    def __init__(self, denoiser: Denoiser, null: Cond, weight: float | None = None) -> None:
        super().__init__()
        if weight is not None and weight < 0:
            raise ValueError(f"a guidance weight is at least 0 (0 is the conditional model), got {weight}")
        self.denoiser, self.null, self.weight = denoiser, null, weight
        self._copies: dict[torch.device, tuple[Cond, Cond]] = {}

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Cond | None = None) -> Tensor:
        if cond is None:
            raise ValueError("guidance needs a condition: pass labels or embeddings as cond")
        w, cond = self._weight(x_t, cond)
        null = rows_like(self._null_on(x_t.device), cond)
        both = unnamed({name: torch.cat([c, null[name]]) for name, c in named(cond).items()})
        D: Callable[..., Tensor] = self.denoiser
        if isinstance(self.denoiser, Prediction):
            D = self.denoiser.unclipped
        twice = t if isinstance(t, float) else torch.cat([t.expand(len(x_t))] * 2)
        conditional, unconditional = D(torch.cat([x_t, x_t]), twice, both).chunk(2)
        x0_hat = (1 + w) * conditional - w * unconditional
        return self.denoiser.clipped(x0_hat) if isinstance(self.denoiser, Prediction) else x0_hat

    def _weight(self, x_t: Tensor, cond: Cond) -> tuple[Tensor | float, Cond]:
        """$w$, a number or (B, 1, ...), and the rest of the condition."""
        if self.weight is not None:
            return self.weight, cond
        if isinstance(cond, Tensor) or "weight" not in cond:
            raise ValueError("guidance has no weight: pass one to Guided, or give `weight` (B,) in the condition")
        rest = {name: c for name, c in cond.items() if name != "weight"}
        return expand_like(cond["weight"].to(x_t.device), x_t), rest

    def _null_on(self, device: torch.device) -> Cond:
        # `null` stays as it was given, in what a manifest says of it and in a copy. Its copies on other devices are
        # kept, with what they are copies of: to copy it at every call would make the host wait for the GPU each time.
        if all(c.device == device for c in named(self.null).values()):
            return self.null
        original, copied = self._copies.get(device, (None, self.null))
        if original is not self.null:
            copied = map_cond(lambda c: c.to(device), self.null)
            self._copies[device] = self.null, copied
        return copied


def at_one_time(denoiser: Denoiser) -> Callable[[Tensor, float, Cond | None], Tensor]:
    """The denoiser where all rows have one time, a number: with float coefficients if it is a `Prediction`, guided or
    not; anyone else's is told the time of `each_row`, and so is one that is compiled, for each number anew otherwise.
    """
    chain = [denoiser]
    while isinstance(chain[-1], Around):
        chain.append(chain[-1].denoiser)
    compiled = any(isinstance(part, nn.Module) and part._compiled_call_impl is not None for part in chain)
    if isinstance(denoiser, Prediction | Around) and isinstance(chain[-1], Prediction) and not compiled:
        return denoiser
    return lambda x_t, t, cond: denoiser(x_t, each_row(t, x_t), cond)


def modules_of(denoiser: Denoiser) -> dict[str, nn.Module]:
    """The denoiser if it is a module, else the modules among its attributes, under their prefix."""
    if isinstance(denoiser, nn.Module):
        return {"": denoiser}
    return {f"{k}.": v for k, v in getattr(denoiser, "__dict__", {}).items() if isinstance(v, nn.Module)}


def tensors_of(denoiser: Denoiser) -> dict[str, Tensor]:
    """The weights of a denoiser: its state dict if it is a module, else those and the tensors among its attributes."""
    state = {} if isinstance(denoiser, nn.Module) else dict(getattr(denoiser, "__dict__", {}))
    for prefix, module in modules_of(denoiser).items():
        state |= {f"{prefix}{name}": value for name, value in state_of(module).items()}
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}


def still(denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
    """What a denoiser says, as a function of the state alone: gradients pass through it, and its weights get none."""
    if not isinstance(denoiser, nn.Module):
        return denoiser(x_t, t, cond)
    weights = {name: parameter.detach() for name, parameter in denoiser.named_parameters()}
    return cast(Tensor, called_with(weights, denoiser, x_t, t, cond))


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; the mode of every submodule comes back as it was."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    for m, _ in modes:
        m.training = False
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training
