r"""Noise schedules: how noisy a sample is at a time.

A Gaussian path between data $x_0$ and noise $\epsilon \sim \mathcal N(0, I)$ is

$$ x_t = \alpha_t x_0 + \sigma_t \epsilon, \qquad t \in [0, 1], $$

with $t = 0$ the data and $t = 1$ the noise. A schedule is the pair $(\alpha_t, \sigma_t)$ and nothing else:
variance preserving (VP), variance exploding (VE, EDM) and rectified flow differ in these two functions alone, so
everything written in $(\alpha, \sigma)$ runs on all of them. The log signal-to-noise ratio is

$$ \ell_t = \log(\alpha_t^2 / \sigma_t^2), $$

decreasing in $t$, and the *phase* is the angle that turns from data to noise, from 0 to 1 as t does,

$$ p_t = \frac{\theta_t - \theta_0}{\theta_1 - \theta_0}, \qquad \theta_t = \arctan(\sigma_t / \alpha_t) : $$

in equal steps of it every path moves evenly, however its schedule runs through t.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dsno.outside import check_arguments

__all__ = [
    "SCHEDULES",
    "VE",
    "Cosine",
    "RectifiedFlow",
    "Schedule",
    "Tabulated",
    "VPLinear",
    "linear_beta",
    "schedule_from_config",
]


Numbers = dict[float, tuple[float, ...]]
"""What a function of time says, by time."""


@dataclass(frozen=True)
class Expected:
    """Times that were announced, and what has been worked out for all of them, by function and dtype."""

    times: tuple[float, ...] = ()
    known: dict[object, Numbers] = field(default_factory=dict)


class Schedule(ABC):
    r"""The noise level over time, $t \mapsto (\alpha_t, \sigma_t)$; stateless and elementwise.

    Every map takes a tensor of times of any shape, floating point, in $[0, 1]$, and keeps its shape and dtype.
    Constructor arguments are the whole configuration (`config`); what is kept of the times that `expect` announces
    changes no answer.
    """

    _expected = Expected()

    @abstractmethod
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return $(\alpha_t, \sigma_t)$, both of the shape of `t`."""

    @abstractmethod
    def derivative(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return $(\dot\alpha_t, \dot\sigma_t)$, the derivatives with respect to $t$, both of the shape of `t`."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        r"""Invert $\ell_t$: the time in $[0, 1]$ of a log-SNR, of its shape; beyond the range the nearer end.

        The limits belong to it: pure noise, $\ell = -\infty$, is at $t = 1$, clean data, $\ell = \infty$, at $t = 0$.
        """

    @property
    @abstractmethod
    def config(self) -> dict[str, object]:
        """The JSON-able constructor arguments, with the class under `name`."""

    def log_snr(self, t: Tensor) -> Tensor:
        r"""$\ell_t = 2 \log(\alpha_t / \sigma_t)$; $+\infty$ where $\sigma_t = 0$, $-\infty$ where $\alpha_t = 0$."""
        alpha_t, sigma_t = self(t)
        return 2 * (alpha_t.log() - sigma_t.log())

    def angle(self, t: Tensor) -> Tensor:
        r"""$\theta_t$ in $[0, \pi / 2]$, of the shape and dtype of `t`."""
        alpha_t, sigma_t = self(t)
        return torch.atan2(sigma_t, alpha_t)

    def phase(self, t: Tensor) -> Tensor:
        r"""$p_t$, of the shape and dtype of `t`; in $[0, 1]$ as `t` is."""
        theta_0, theta_1 = self.angle(t.new_tensor([0.0, 1.0]))
        return (self.angle(t) - theta_0) / (theta_1 - theta_0)

    def from_phase(self, p: Tensor) -> Tensor:
        """Invert $p_t$: the time in [0, 1], of the shape and dtype of `p`; beyond [0, 1] the nearer end."""
        theta_0, theta_1 = self.angle(p.new_tensor([0.0, 1.0]))
        t = self.time(-2 * (theta_0 + (theta_1 - theta_0) * p.clamp(0, 1)).tan().log())
        # The tangent of an angle loses the last digits of the ends.
        return torch.where(p <= 0, 0.0, torch.where(p >= 1, 1.0, t))

    def at(self, t: float) -> tuple[float, float]:
        r"""$(\alpha_t, \sigma_t)$ as Python floats computed in float64, so that coefficients never touch the device."""
        alpha_t, sigma_t = self.numbers(_levels, t)
        return alpha_t, sigma_t

    def slope(self, t: float) -> tuple[float, float]:
        r"""$(\dot\alpha_t, \dot\sigma_t)$ as Python floats computed in float64."""
        d_alpha, d_sigma = self.numbers(_slopes, t)
        return d_alpha, d_sigma

    def numbers(self, of: Function, t: float, dtype: torch.dtype = torch.float64) -> tuple[float, ...]:
        r"""What a hashable function `of(schedule, t)` says at one time, as Python floats computed in `dtype` on the
        host; at a time that was announced (`expect`) it is worked out for all of them at once."""
        expected = self._expected
        known = expected.known.get((of, dtype))
        if known is None and expected.times:
            known = expected.known[of, dtype] = self._numbers(of, expected.times, dtype)
        found = None if known is None else known.get(t)
        return self._numbers(of, (t,), dtype)[t] if found is None else found

    def expect(self, times: Sequence[float]) -> None:
        """Announce times, those of a grid: one call of the schedule then serves `at`, `slope` and `numbers` at all of
        them. The next announcement takes their place."""
        if tuple(times) != self._expected.times:
            object.__setattr__(self, "_expected", Expected(tuple(times)))  # a frozen dataclass may be a schedule, too

    def _numbers(self, of: Function, times: tuple[float, ...], dtype: torch.dtype) -> Numbers:
        with torch.device("cpu"):  # whatever the default is, while networks are built without memory
            t = torch.tensor(times, dtype=dtype)
            answers = [torch.as_tensor(answer).expand_as(t).tolist() for answer in of(self, t)]
        return dict(zip(times, zip(*answers, strict=True), strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.config == other.config

    def __hash__(self) -> int:
        return hash(repr(self.config))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.config.items() if k != "name")
        return f"{type(self).__name__}({arguments})"


Function = Callable[[Schedule, Tensor], tuple[Tensor | float, ...]]
"""Of a schedule and times, elementwise as the schedule is: what `Schedule.numbers` turns into floats."""


def _levels(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    return schedule(t)


def _slopes(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    return schedule.derivative(t)


class Cosine(Schedule):
    r"""The truncated cosine schedule of progressive distillation and DSNO; variance preserving.

    $$ \alpha_t = \cos(a t + b), \quad \sigma_t = \sin(a t + b), \quad
       b = \arctan e^{-\ell_{\max}/2}, \quad a = \arctan e^{-\ell_{\min}/2} - b, $$

    so that $\ell_0 = \ell_{\max}$ and $\ell_1 = \ell_{\min}$.

    Raises:
        ValueError: unless `log_snr_min` is below `log_snr_max`.

    Source: Salimans & Ho, 2022 (arXiv 2202.00512), appendix; Zheng et al., 2023 (arXiv 2211.13449).
    """

    def __init__(self, log_snr_min: float = -20.0, log_snr_max: float = 20.0) -> None:
        if not log_snr_min < log_snr_max:
            raise ValueError(f"log_snr_min must be below log_snr_max, got {log_snr_min} and {log_snr_max}")
        self.log_snr_min, self.log_snr_max = float(log_snr_min), float(log_snr_max)
        self.b = math.atan(math.exp(-log_snr_max / 2))
        self.a = math.atan(math.exp(-log_snr_min / 2)) - self.b

    @property
    def config(self) -> dict[str, object]:
        return {"name": "Cosine", "log_snr_min": self.log_snr_min, "log_snr_max": self.log_snr_max}

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cos(self.a * t + self.b), torch.sin(self.a * t + self.b)

    def derivative(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -self.a * torch.sin(self.a * t + self.b), self.a * torch.cos(self.a * t + self.b)

    def time(self, log_snr: Tensor) -> Tensor:
        return ((torch.atan(torch.exp(-log_snr / 2)) - self.b) / self.a).clamp(0, 1)

    def phase(self, t: Tensor) -> Tensor:
        return t

    def from_phase(self, p: Tensor) -> Tensor:
        return p.clamp(0, 1)


class RectifiedFlow(Schedule):
    r"""Straight lines: $\alpha_t = 1 - t$, $\sigma_t = t$ (Liu et al., 2022, arXiv 2209.03003; Lipman et al., 2022)."""

    @property
    def config(self) -> dict[str, object]:
        return {"name": "RectifiedFlow"}

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def derivative(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)


class VE(Schedule):
    r"""Variance exploding in EDM's time: $\alpha_t = 1$, $\sigma_t = \sigma_{\max} t$.

    Raises:
        ValueError: for a `sigma_max` that is not positive.

    Source: Karras et al., 2022 (arXiv 2206.00364).
    """

    def __init__(self, sigma_max: float = 80.0) -> None:
        if not sigma_max > 0:
            raise ValueError(f"sigma_max must be positive, got {sigma_max}")
        self.sigma_max = float(sigma_max)

    @property
    def config(self) -> dict[str, object]:
        return {"name": "VE", "sigma_max": self.sigma_max}

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.sigma_max * t

    def derivative(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.full_like(t, self.sigma_max)

    def time(self, log_snr: Tensor) -> Tensor:
        return (torch.exp(-log_snr / 2) / self.sigma_max).clamp(0, 1)


class VPLinear(Schedule):
    r"""The continuous variance-preserving schedule whose rate $\beta(t)$ is a straight line.

    $$ B(t) = \int_0^t \beta = \beta_{\min} t + \tfrac12 (\beta_{\max} - \beta_{\min}) t^2, \qquad
       \alpha_t = e^{-B/2}, \quad \sigma_t = \sqrt{1 - e^{-B}}. $$

    Near $t = 0$ the level grows as $\sqrt t$, so its slope is infinite there. `linear_beta` is the same in 1000
    discrete steps.

    Raises:
        ValueError: unless `beta_min` is positive and at most `beta_max`.

    Source: Song et al., 2021 (arXiv 2011.13456), eq. 33; Karras et al., 2022 (arXiv 2206.00364), table 1, "VP".
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min <= beta_max:
            raise ValueError(f"beta_min must be positive and at most beta_max, got {beta_min} and {beta_max}")
        self.beta_min, self.beta_max = float(beta_min), float(beta_max)

    @property
    def config(self) -> dict[str, object]:
        return {"name": "VPLinear", "beta_min": self.beta_min, "beta_max": self.beta_max}

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        B = self.beta_min * t + (self.beta_max - self.beta_min) / 2 * t**2
        return torch.exp(-B / 2), torch.sqrt(-torch.expm1(-B))

    def derivative(self, t: Tensor) -> tuple[Tensor, Tensor]:
        beta = self.beta_min + (self.beta_max - self.beta_min) * t
        alpha_t, sigma_t = self(t)
        return -beta / 2 * alpha_t, beta / 2 * alpha_t**2 / sigma_t

    def time(self, log_snr: Tensor) -> Tensor:
        # The root of the quadratic in the form that subtracts nothing: exact near t = 0, and for a constant beta.
        # Pure noise, at B = inf, lies beyond t = 1 as all above B(1) does; inf / inf would say nothing.
        B = torch.nn.functional.softplus(-log_snr).clamp(max=self.beta_min + self.beta_max)
        root = torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * B)
        return (2 * B / (self.beta_min + root)).clamp(0, 1)


class Tabulated(Schedule):
    r"""A discrete-time VP model as a continuous schedule.

    With $\bar\alpha_k$ the model's `alphas_cumprod` at integer steps $k = 0 \dots K-1$, step $k$ sits at
    $t = (k + 1) / K$, the clean image ($\bar\alpha = 1$) at $t = 0$, and between the knots

    $$ B(t) = -\log \bar\alpha \text{ is linear}, \qquad \alpha_t = e^{-B/2}, \quad \sigma_t = \sqrt{1 - e^{-B}}, $$

    which is what a constant $\beta$ over each step means. Exact at the integer steps; exactly invertible.

    Arguments:
        alphas_cumprod: $\bar\alpha_k$, decreasing, in $(0, 1)$.

    Raises:
        ValueError: for a table that is empty, does not decrease, or is not strictly between 0 and 1.
    """

    def __init__(self, alphas_cumprod: Sequence[float]) -> None:
        table = torch.as_tensor(list(alphas_cumprod), dtype=torch.float64)
        if table.ndim != 1 or len(table) < 1 or not bool(((table > 0) & (table < 1)).all()):
            raise ValueError("alphas_cumprod must be a non-empty list of numbers strictly between 0 and 1")
        if len(table) > 1 and not bool((table[1:] < table[:-1]).all()):
            raise ValueError("alphas_cumprod must decrease from step to step")
        self.B = torch.cat([torch.zeros(1, dtype=torch.float64), -table.log()])

    @property
    def config(self) -> dict[str, object]:
        return {"name": "Tabulated", "alphas_cumprod": torch.exp(-self.B[1:]).tolist()}

    def __repr__(self) -> str:
        return f"Tabulated({len(self.B) - 1} steps)"

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """$B(t)$ and its slope."""
        K = len(self.B) - 1
        B = self.B.to(device=t.device, dtype=t.dtype)
        k = (t.detach() * K).floor().long().clamp(0, K - 1)
        rise = B[k + 1] - B[k]
        return B[k] + rise * (t * K - k), rise * K

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        B, _ = self._segment(t)
        return torch.exp(-B / 2), torch.sqrt(-torch.expm1(-B))

    def derivative(self, t: Tensor) -> tuple[Tensor, Tensor]:
        B, slope = self._segment(t)
        return -slope / 2 * torch.exp(-B / 2), slope / 2 * torch.exp(-B) / torch.sqrt(-torch.expm1(-B))

    def time(self, log_snr: Tensor) -> Tensor:
        B = torch.nn.functional.softplus(-log_snr)
        knots = self.B.to(device=B.device, dtype=B.dtype)
        K = len(knots) - 1
        k = (torch.searchsorted(knots, B.contiguous(), right=True) - 1).clamp(0, K - 1)
        return ((k + (B - knots[k]) / (knots[k + 1] - knots[k])) / K).clamp(0, 1)


def linear_beta(beta_start: float = 1e-4, beta_end: float = 0.02, num_steps: int = 1000) -> Tabulated:
    r"""The linear-$\beta$ VP schedule of DDPM (Ho et al., 2020, arXiv 2006.11239), as diffusers tabulates it.

    $\bar\alpha_k = \prod_{i \le k} (1 - \beta_i)$ with $\beta_i$ linear from `beta_start` to `beta_end`.
    """
    # diffusers accumulates in float32; doing the same keeps our table equal to its `alphas_cumprod`.
    betas = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float32)
    return Tabulated(torch.cumprod(1 - betas, dim=0).tolist())


SCHEDULES: dict[str, type[Schedule]] = {
    "Cosine": Cosine,
    "RectifiedFlow": RectifiedFlow,
    "VE": VE,
    "VPLinear": VPLinear,
    "Tabulated": Tabulated,
}


def schedule_from_config(config: dict[str, object]) -> Schedule:
    """Rebuild a schedule from its `config`.

    Raises:
        ValueError: if the name or a key is unknown, one is missing, or a value is of another type.
    """
    arguments = dict(config)
    name = str(arguments.pop("name", None))
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}: expected one of {sorted(SCHEDULES)}")
    signature = inspect.signature(SCHEDULES[name])
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ValueError(f"the schedule {name} has {', '.join(signature.parameters) or 'no keys'}: {error}") from None
    check_arguments(SCHEDULES[name], arguments, f"the schedule {name}")
    return SCHEDULES[name](**arguments)
