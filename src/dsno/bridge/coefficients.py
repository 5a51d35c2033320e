r"""Bridges: how a sample turns into another between two times.

A diffusion bridge ends in data at both ends, clean at $t = 0$ and degraded at $t = T = 1$,

$$ x_t = a_t x_T + b_t x_0 + c_t z, \qquad z \sim \mathcal N(0, I). $$

Take a diffusion $x_t = \alpha_t x_0 + \sigma_t \epsilon$ and pin its end. With the noise level $\rho_t = \sigma_t /
\alpha_t$ and its share $r_t = \rho_t / \rho_T$, $s_t^2 = 1 - r_t^2$,

$$ a_t = \frac{\alpha_t}{\alpha_T} r_t^2, \qquad b_t = \alpha_t s_t^2, \qquad c_t = \alpha_t \rho_T \, r_t s_t, $$

so a bridge is $(\alpha_t, r_t)$ and the number $\rho_T$:

| | $\alpha_t$ | $r_t^2$ | $\rho_T$ |
|---|---|---|---|
| `BrownianBridge` | 1 | $t$ | $\kappa$ |
| `I2SB` | 1 | $\int_0^t \beta / \int_0^1 \beta$ | $(\int_0^1 \beta)^{1/2}$ |
| `DDBMVE` | 1 | $t^2$ | $\sigma_{\max}$ |
| `DDBMVP` | $e^{-B_t / 2}$ | $(e^{B_t} - 1) / (e^{B_1} - 1)$ | $(e^{B_1} - 1)^{1/2}$ |

Given $x_T$, what is left, $y_t = x_t - a_t x_T = b_t x_0 + c_t z$, is a diffusion again, whose schedule is $(b_t, c_t)$
(`Pinned`): its log-SNR $\log (b_t^2 / c_t^2) = \log (s_t^2 / r_t^2) - 2 \log \rho_T$ falls from $\infty$ to $-\infty$.
So every solver of the library is one of bridges. Only the start is not: both $b_T$ and $c_T$ are 0.

Source: Zhou et al., 2023 (arXiv 2309.16948); Zheng et al., 2024 (arXiv 2405.15885).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from dsno.checkpoint import build
from dsno.schedule import Schedule

__all__ = ["BRIDGES", "DDBMVE", "DDBMVP", "I2SB", "Bridge", "BrownianBridge", "Pinned", "bridge_from_config"]


class Bridge(ABC):
    r"""The coefficients of a bridge, $t \mapsto (a_t, b_t, c_t)$; stateless and elementwise.

    Every map takes a tensor of times of any shape, floating point, in $[0, 1]$, and keeps its shape and dtype. The ends
    are exact: $(0, b_0, 0)$ at $t = 0$ and $(1, 0, 0)$ at $t = 1$, and nothing is NaN. Constructor arguments are the
    whole configuration (`config`).
    """

    end: float
    r"""$\rho_T$."""

    @abstractmethod
    def levels(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""$(\alpha_t, r_t, s_t)$, of the shape of `t`, with $r_t^2 + s_t^2 = 1$."""

    @abstractmethod
    def rates(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""$(\dot\alpha_t / \alpha_t, \dot r_t, d r_t^2 / dt)$, of the shape of `t`; the last is finite and at $t = 1$
        positive, $\dot r_0$ may be infinite."""

    @abstractmethod
    def time(self, share: Tensor) -> Tensor:
        r"""Invert $r_t^2$: the time in $[0, 1]$ of a share of the variance in $[0, 1]$, of its shape."""

    @property
    @abstractmethod
    def config(self) -> dict[str, object]:
        """The JSON-able constructor arguments, with the class under `name`."""

    @cached_property
    def alpha_T(self) -> float:
        r"""$\alpha_T$."""
        return float(self.levels(torch.ones((), dtype=torch.float64, device="cpu"))[0])

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Return $(a_t, b_t, c_t)$, of the shape of `t`."""
        alpha_t, r, s = self.levels(t)
        return alpha_t / self.alpha_T * r**2, alpha_t * s**2, alpha_t * self.end * r * s

    def derivative(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Return $(\dot a_t, \dot b_t, \dot c_t)$, of the shape of `t`; $\dot c_T = -\infty$, and $\dot c_0$ may be
        $\infty$.

        $$ \dot a = \frac{\alpha}{\alpha_T} \Big( \frac{\dot\alpha}{\alpha} r^2 + \frac{d r^2}{dt} \Big), \quad
           \dot b = \alpha \Big( \frac{\dot\alpha}{\alpha} s^2 - \frac{d r^2}{dt} \Big), \quad
           \dot c = \alpha \rho_T \Big( \frac{\dot\alpha}{\alpha} r s + \dot r s - \frac{r}{2 s} \frac{d r^2}{dt} \Big)
        $$
        """
        (alpha_t, r, s), (rate, d_r, d_r2) = self.levels(t), self.rates(t)
        d_a = alpha_t / self.alpha_T * (rate * r**2 + d_r2)
        d_b = alpha_t * (rate * s**2 - d_r2)
        return d_a, d_b, alpha_t * self.end * (rate * r * s + d_r * s - r / (2 * s) * d_r2)

    def log_derivative(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Return $(\dot a_t / a_t, \dot b_t / b_t, \dot c_t / c_t)$, of the shape of `t`.

        $$ \frac{\dot a}{a} = \frac{\dot\alpha}{\alpha} + \frac{2 \dot r}{r}, \qquad
           \frac{\dot b}{b} = \frac{\dot\alpha}{\alpha} - \frac{1}{s^2} \frac{d r^2}{dt}, \qquad
           \frac{\dot c}{c} = \frac{\dot\alpha}{\alpha} + \frac{\dot r}{r} - \frac{1}{2 s^2} \frac{d r^2}{dt} $$

        The limits are infinite where the coefficient vanishes: $\infty$ at $t = 0$, $-\infty$ at $t = 1$.
        """
        (_, r, s), (rate, d_r, d_r2) = self.levels(t), self.rates(t)
        return rate + 2 * d_r / r, rate - d_r2 / s**2, rate + d_r / r - d_r2 / (2 * s**2)

    def at(self, t: float) -> tuple[float, float, float]:
        r"""$(a_t, b_t, c_t)$ as Python floats computed in float64, so that coefficients never touch the device."""
        a_t, b_t, c_t = self(torch.tensor(t, dtype=torch.float64, device="cpu"))
        return float(a_t), float(b_t), float(c_t)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bridge) and self.config == other.config

    def __hash__(self) -> int:
        return hash(repr(self.config))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.config.items() if k != "name")
        return f"{type(self).__name__}({arguments})"


class BrownianBridge(Bridge):
    r"""Straight on average, $a_t = t$, $b_t = 1 - t$, $c_t = \kappa \sqrt{t (1 - t)}$.

    Raises:
        ValueError: for a `kappa` that is not positive.

    Source: Li et al., 2022 (arXiv 2205.07680).
    """

    def __init__(self, kappa: float = 1.0) -> None:
        self.end = self.kappa = _positive("kappa", kappa)

    @property
    def config(self) -> dict[str, object]:
        return {"name": "BrownianBridge", "kappa": self.kappa}

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ones_like(t), t.sqrt(), (1 - t).sqrt()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.zeros_like(t), 1 / (2 * t.sqrt()), torch.ones_like(t)

    def time(self, share: Tensor) -> Tensor:
        return share


class I2SB(Bridge):
    r"""The bridge of I2SB, whose noise comes and goes slowly.

    $$ \sqrt{\beta(t)} = \sqrt{\beta_{\min}} + (\sqrt{\beta_{\max}} - \sqrt{\beta_{\min}}) \, t
       \quad (t \le \tfrac12), \qquad \beta(t) = \beta(1 - t) \quad (t > \tfrac12). $$

    The authors' 1000 discrete steps, $k = 0, 1, \dots$, are this at $t = (k + \tfrac12) / 1000$ to $4 \cdot 10^{-4}$ in
    a and b and $3 \cdot 10^{-3}$ in c, which theirs leave above 0 at the ends; their `beta_max` (0.3, and 1 for
    inpainting) is the end of the straight line, which turns back half way.

    Raises:
        ValueError: for a `beta_min` or `beta_max` that is not positive.

    Source: Liu et al., 2023 (arXiv 2302.05872), eq. 11.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 0.3) -> None:
        self.beta_min, self.beta_max = _positive("beta_min", beta_min), _positive("beta_max", beta_max)
        self._root, self._rise = math.sqrt(beta_min), math.sqrt(beta_max) - math.sqrt(beta_min)
        self.total = 2 * float(self._risen(torch.tensor(0.5, dtype=torch.float64, device="cpu")))
        self.end = math.sqrt(self.total)

    @property
    def config(self) -> dict[str, object]:
        return {"name": "I2SB", "beta_min": self.beta_min, "beta_max": self.beta_max}

    def _risen(self, t: Tensor) -> Tensor:
        r"""$\int_0^t \beta$ for $t \le 1/2$."""
        return self._root**2 * t + self._root * self._rise * t**2 + self._rise**2 / 3 * t**3

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        near = self._risen(torch.minimum(t, 1 - t)) / self.total
        early = t <= 0.5
        r2, s2 = torch.where(early, near, 1 - near), torch.where(early, 1 - near, near)
        return torch.ones_like(t), r2.sqrt(), s2.sqrt()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        d_r2 = (self._root + self._rise * torch.minimum(t, 1 - t)) ** 2 / self.total
        return torch.zeros_like(t), d_r2 / (2 * self.levels(t)[1]), d_r2

    def time(self, share: Tensor) -> Tensor:
        near = torch.minimum(share, 1 - share) * self.total
        # The cubic is (root + rise t)^3 - root^3 = 3 rise near, solved by Newton's rule: monotone, and exact at 0.
        t = near / self._root**2
        for _ in range(60):
            t = (t - (self._risen(t) - near) / (self._root + self._rise * t) ** 2).clamp(0, 0.5)
        return torch.where(share <= 0.5, t, 1 - t)


class DDBMVE(Bridge):
    r"""The variance exploding bridge of DDBM: $\alpha_t = 1$, $\rho_t = \sigma_{\max} t$.

    $$ a_t = t^2, \qquad b_t = 1 - t^2, \qquad c_t = \sigma_{\max} \, t \sqrt{1 - t^2} $$

    Raises:
        ValueError: for a `sigma_max` that is not positive.

    Source: Zhou et al., 2023 (arXiv 2309.16948), table 1.
    """

    def __init__(self, sigma_max: float = 1.0) -> None:
        self.end = self.sigma_max = _positive("sigma_max", sigma_max)

    @property
    def config(self) -> dict[str, object]:
        return {"name": "DDBMVE", "sigma_max": self.sigma_max}

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ones_like(t), t, ((1 - t) * (1 + t)).sqrt()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t), 2 * t

    def time(self, share: Tensor) -> Tensor:
        return share.sqrt()


class DDBMVP(Bridge):
    r"""The variance preserving bridge of DDBM.

    $$ B_t = \beta_{\min} t + \tfrac12 \beta_d t^2, \qquad \alpha_t = e^{-B_t / 2}, \qquad \rho_t^2 = e^{B_t} - 1 $$

    Raises:
        ValueError: unless `beta_min` is positive and `beta_d` is not negative.

    Source: Zhou et al., 2023 (arXiv 2309.16948), table 1; Zheng et al., 2024 (arXiv 2405.15885).
    """

    def __init__(self, beta_min: float = 0.1, beta_d: float = 2.0) -> None:
        self.beta_min, self.beta_d = _positive("beta_min", beta_min), float(beta_d)
        if not 0 <= beta_d < math.inf:
            raise ValueError(f"beta_d must be at least 0 and finite, got {beta_d}")
        self.B_1 = self.beta_min + self.beta_d / 2
        self.end = math.sqrt(math.expm1(self.B_1))

    @property
    def config(self) -> dict[str, object]:
        return {"name": "DDBMVP", "beta_min": self.beta_min, "beta_d": self.beta_d}

    def _B(self, t: Tensor) -> Tensor:
        return self.beta_min * t + self.beta_d / 2 * t**2

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B = self._B(t)
        left = (1 - t) * (self.beta_min + self.beta_d / 2 * (1 + t))  # B_1 - B_t, exactly 0 at t = 1
        s2 = -math.exp(self.B_1) / self.end**2 * torch.expm1(-left)
        return torch.exp(-B / 2), torch.expm1(B).sqrt() / self.end, s2.sqrt()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        beta = self.beta_min + self.beta_d * t
        d_r2 = beta * self._B(t).exp() / self.end**2
        return -beta / 2, d_r2 / (2 * self.levels(t)[1]), d_r2

    def time(self, share: Tensor) -> Tensor:
        B = torch.log1p(share * self.end**2)
        # The root of the quadratic in the form that subtracts nothing.
        return (2 * B / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * self.beta_d * B))).clamp(0, 1)


class Pinned(Schedule):
    r"""What is left of a bridge when $x_T$ is given: the schedule $(\alpha_t, \sigma_t) = (b_t, c_t)$ of
    $y_t = x_t - a_t x_T$.

    $$ \ell_t = \log \frac{b_t^2}{c_t^2} = \log \frac{s_t^2}{r_t^2} - 2 \log \rho_T $$

    Both coefficients vanish at $t = 1$, so solvers start below it.
    """

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge

    @property
    def config(self) -> dict[str, object]:
        return {"name": "Pinned", "bridge": self.bridge.config}

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.bridge(t)[1:]

    def derivative(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.bridge.derivative(t)[1:]

    def log_snr(self, t: Tensor) -> Tensor:
        _, r, s = self.bridge.levels(t)
        return 2 * (s.log() - r.log() - math.log(self.bridge.end))

    def time(self, log_snr: Tensor) -> Tensor:
        return self.bridge.time(torch.sigmoid(-log_snr - 2 * math.log(self.bridge.end)))


BRIDGES: dict[str, type[Bridge]] = {
    "BrownianBridge": BrownianBridge,
    "I2SB": I2SB,
    "DDBMVP": DDBMVP,
    "DDBMVE": DDBMVE,
}


def bridge_from_config(config: Mapping[str, object]) -> Bridge:
    """Rebuild a bridge from its `config`.

    Raises:
        ValueError: if the name or a key is unknown, one is missing, or a value is of another type.
    """
    arguments = dict(config)
    name = str(arguments.pop("name", None))
    if name not in BRIDGES:
        raise ValueError(f"unknown bridge {name!r}: expected one of {', '.join(BRIDGES)}")
    return build(BRIDGES[name], arguments, f"the bridge {name}")


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return float(value)
