r"""Flow map matching: losses over flow maps of two times (Boffi, Albergo & Vanden-Eijnden, 2024, arXiv 2406.07507).

$X_{t \to s}$ moves a state along the teacher's probability-flow ODE, $\dot x = b_t(x)$. It is the flow exactly where one of
these residuals vanishes for all $s \le t$, and each makes a loss, its mean square:

| method | residual | cost of a row |
|---|---|---|
| `lagrangian` | $\partial_s X_{t \to s}(x_t) - b_s(X_{t \to s}(x_t))$, no gradient through the argument of b | a jvp, a teacher call |
| `eulerian` | $\partial_t X_{t \to s}(x_t) + \nabla X_{t \to s}(x_t) \, b_t(x_t)$ | a jvp, a teacher call |
| `semigroup` | $X_{t \to s}(x_t) - X_{u \to s}(X_{t \to u}(x_t))$, $u = (s + t)/2$, no gradient through the right side; where $t - s \le \tau$ (half of the rows), the teacher's DDIM step instead of it | three calls, or one and the teacher's |

The first two residuals are velocities, so they bound the transport distance between the map's samples and the teacher's.
The last is what progressive flow map matching and shortcut models (Frans et al., 2024, arXiv 2410.12557) ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from dsno.denoise import Cond, Denoiser, convert, expand_like
from dsno.distill.denoising import Denoising
from dsno.schedule import Schedule

__all__ = ["Derivative", "FlowMapMatching", "Method", "jvp", "velocity"]

Method = Literal["lagrangian", "eulerian", "semigroup"]
Derivative = Literal["forward", "difference"]


def velocity(teacher: Denoiser, schedule: Schedule, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
    r"""$b_t(x_t) = \dot\alpha_t D + \dot\sigma_t \hat\epsilon$, (B, *shape); t (B,)."""
    return convert("flow", teacher(x_t, t, cond), x_t, t, schedule)


def jvp(
    f: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...], how: Derivative = "forward"
) -> tuple[Tensor, Tensor]:
    r"""$f$ and its derivative in a direction, by forward-mode differentiation or a central difference of step $10^{-3}$.

    Raises:
        NotImplementedError: if a layer has no forward mode; says what to do instead.
    """
    if how == "difference":
        h = 1e-3 if at[0].dtype == torch.float32 else 1e-5
        ahead, behind = (f(*(p + sign * h * v for p, v in zip(at, along, strict=True))) for sign in (1, -1))
        return f(*at), (ahead - behind) / (2 * h)
    try:
        value, derivative = torch.func.jvp(f, at, along)  # type: ignore[misc]
    except (NotImplementedError, RuntimeError) as error:
        if "forward" not in str(error).lower():
            raise
        raise NotImplementedError(
            f"a layer of this network has no forward-mode derivative: pass derivative='difference' ({error})"
        ) from error
    return value, derivative


class FlowMapMatching:
    r"""The objective of a `FlowMap` distilled from a teacher.

    Arguments:
        x: Clean samples, (N, *shape), which are noised to where a map starts.
        teacher: $D$.
        schedule: The path.
        method: The table above.
        labels: (N,) labels of a class-conditional teacher, or None.
        batch: Rows per step, over all processes.
        seed: With the step, determines the batch, times and noise.
        span: $\tau$ of `semigroup`.
        derivative: How derivatives are taken; `difference` for networks without a forward mode.
        floor: The least s, where slopes of the schedule are infinite at 0.

    Raises:
        ValueError: for an unknown method, or as `Denoising` does.
    """

    def __init__(
        self,
        x: Tensor,
        teacher: Denoiser,
        schedule: Schedule,
        method: Method = "lagrangian",
        labels: Tensor | None = None,
        batch: int = 128,
        seed: int = 0,
        span: float = 1 / 64,
        derivative: Derivative = "forward",
        floor: float = 1e-4,
    ) -> None:
        losses = {"lagrangian": self._lagrangian, "eulerian": self._eulerian, "semigroup": self._semigroup}
        if method not in losses:
            raise ValueError(f"unknown method {method!r}: expected one of {', '.join(losses)}")
        if not 0 < span <= 1:
            raise ValueError(f"span must be in (0, 1], got {span:g}")
        self.residual, self.bootstraps = losses[method], method == "semigroup"
        self.teacher, self.schedule, self.span, self.derivative, self.floor = teacher, schedule, span, derivative, floor
        self.noised = Denoising(x, schedule, "x0", labels, batch, seed)

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Tensor]]:
        """Batches from step `start` on; s is uniform in [0, t], t falls on no side of the batch by chance."""
        for step, batch in enumerate(self.noised.batches(start, rank, world), start):
            g = torch.Generator().manual_seed((self.noised.seed << 40) + (step << 12) + 1 + rank)
            # Of two uniform times the later has density 2 t.
            t = batch["t"].sqrt().clamp_min(self.floor)
            share = torch.rand(len(t), generator=g)
            s = t * share
            if self.bootstraps:
                # What a long step is made of has to be learned first, and all the time.
                s = torch.where(torch.rand(len(t), generator=g) < 0.5, t - self.span * share, s)
            s = s.clamp_min(self.floor)
            yield {**batch, "t": t, "s": s}

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The loss of one batch, a scalar."""
        t, s, x0 = batch["t"], batch["s"], batch["x0"]
        alpha_t, sigma_t = (expand_like(c, x0) for c in self.schedule(t))
        x_t = alpha_t * x0 + sigma_t * batch["eps"]
        return self.residual(model, x_t, t, s, batch.get("cond")).square().mean()

    def _lagrangian(self, X: nn.Module, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond | None) -> Tensor:
        x_s, d_s = jvp(lambda s: X(x_t, t, s, cond), (s,), (torch.ones_like(s),), self.derivative)
        with torch.no_grad():
            b_s = velocity(self.teacher, self.schedule, x_s.detach(), s, cond)
        return d_s - b_s

    def _eulerian(self, X: nn.Module, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond | None) -> Tensor:
        with torch.no_grad():
            b_t = velocity(self.teacher, self.schedule, x_t, t, cond)
        _, along = jvp(lambda x, t: X(x, t, s, cond), (x_t, t), (b_t, torch.ones_like(t)), self.derivative)
        return along

    def _semigroup(self, X: nn.Module, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond | None) -> Tensor:
        with torch.no_grad():
            u = (s + t) / 2
            target = X(X(x_t, t, u, cond), u, s, cond)
            short = expand_like(t - s <= self.span, x_t).bool()
            target = torch.where(short, self._ddim(x_t, t, s, cond), target)
        return X(x_t, t, s, cond) - target

    def _ddim(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond | None) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = ((expand_like(c, x_t) for c in self.schedule(time)) for time in (t, s))
        ratio = sigma_s / sigma_t
        return ratio * x_t + (alpha_s - ratio * alpha_t) * self.teacher(x_t, t, cond)
