r"""Steering: a denoiser that a guide pulls towards what is wanted, though nobody trained it for that.

By Bayes' rule the score of the samples that have a property $y$ is the model's own plus a guide's,

$$ \nabla \log p_t(x_t \mid y) = \nabla \log p_t(x_t) + \nabla_{x_t} \log p(y \mid x_t), $$

and with a scale $w$ on the second term, sharper than Bayes' rule where $w > 1$ (Dhariwal & Nichol, 2021, arXiv
2105.05233, algorithm 2), the noise and the clean sample that the denoiser predicts become

$$ \hat\epsilon_w = \hat\epsilon - \sigma_t \, w \nabla_{x_t} \log p(y \mid x_t), \qquad
   D_w = D + \frac{\sigma_t^2}{\alpha_t} \, w \nabla_{x_t} \log p(y \mid x_t). $$

A steered denoiser is again a denoiser. Where $\alpha_t = 0$ the state says nothing about $y$ and where $\sigma_t = 0$
there is nothing left to decide: there the guide is silent, it is not asked, and $D_w = D$.

A step that splits the guide off (`dsno.solvers.splitting`) needs both terms apart: `Halves` is a steered denoiser in
one run, and hands out the whole, $D$ alone, and the slope $w \nabla_{x_t} \log p(y \mid x_t)$ alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from dsno.condition import Cond, named, unnamed
from dsno.denoise import Around, Denoiser, Prediction, at_one_time, expand_like, innermost
from dsno.schedule import Schedule

__all__ = ["TARGET", "Guide", "Halves", "Projection", "Reads", "Steered", "as_label", "levels", "target_of", "untold"]

TARGET = "guide"
"""The name in a condition of what a guide pulls each row towards, (B, ...): labels, pictures, embeddings."""

Reads = Literal["x_t", "x0_hat", "graph"]

Projection = Callable[[Tensor, float], Tensor]
r"""What is done to every state a solver arrives at, $(x_s, s) \mapsto x_s$, such as putting known pixels back."""


@runtime_checkable
class Guide(Protocol):
    r"""The gradient $\nabla_{x_t} \log p(y \mid x_t)$, (B, *shape), at a state.

    It is called as `guide(x_t, t, x0_hat, cond)`: the state (B, *shape), its time, a number or a tensor () or (B,), the
    clean sample that the unguided denoiser predicts, and the whole condition, whose `guide` is the row's $y$. It works
    out its gradient itself, also where gradients are switched off, and rows do not depend on each other.
    """

    @property
    def reads(self) -> Reads:
        r"""What it needs: the state alone, and then $\hat x_0$ may be None; $\hat x_0$; or $\hat x_0$ with the graph
        that leads from $x_t$ to it, which costs a pass back through the network."""

    @property
    def config(self) -> Mapping[str, Any]:
        """What a manifest says of it beside the checksum of its weights: JSON-able."""

    def __call__(self, x_t: Tensor, t: Tensor | float, x0_hat: Tensor | None, cond: Cond | None) -> Tensor: ...


def target_of(cond: Cond | None) -> Tensor:
    """What a guide pulls each row towards.

    Raises:
        ValueError: if the condition does not say.
    """
    if (target := named(cond).get(TARGET)) is None:
        raise ValueError(f"the guide has no target: give one for each row, cond={{{TARGET!r}: labels}}")
    return target


def untold(cond: Cond | None) -> Cond | None:
    """The condition without the guide's target: what the denoiser itself is told."""
    return unnamed({name: c for name, c in named(cond).items() if name != TARGET})


def as_label(cond: Cond | None) -> Cond | None:
    """The condition of a steered teacher as its student is told it, which knows no guide: the target is its label."""
    if cond is None or isinstance(cond, Tensor):
        return cond
    return {"label" if name == TARGET else name: c for name, c in cond.items()}


def levels(schedule: Schedule, t: Tensor | float, x: Tensor) -> tuple[Tensor | float, Tensor | float]:
    r"""$(\alpha_t, \sigma_t)$ to multiply `x` (B, *shape) by: floats of a number, else tensors of `t` () or (B,)."""
    if isinstance(t, float):
        return schedule.at(t)
    alpha_t, sigma_t = schedule(t.to(x.device))
    return expand_like(alpha_t, x), expand_like(sigma_t, x)


class Steered(Around):
    r"""A denoiser under a guide, $D_w = D + (\sigma_t^2 / \alpha_t) \, w \nabla_{x_t} \log p(y \mid x_t)$.

    The target $y$ of each row is `guide` in the condition; the denoiser is told the rest, so one that knows no
    condition is told none. Solvers look at the gradient of every step at the end of a run and name the first that is
    not finite (`Halves.check`).

    Arguments:
        denoiser: $D$.
        guide: $\nabla_{x_t} \log p(y \mid x_t)$.
        scale: $w \ge 0$; 1 is Bayes' rule, 0 the denoiser.
        schedule: The denoiser's; that of a `Prediction` by default.
        project: What solvers do to each state they arrive at, or None.

    Raises:
        ValueError: for a scale that is negative or not finite, or if nobody says the schedule.

    Source: Dhariwal & Nichol, 2021 (arXiv 2105.05233), algorithm 2.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        guide: Guide,
        scale: float = 1.0,
        schedule: Schedule | None = None,
        project: Projection | None = None,
    ) -> None:
        super().__init__()
        if not (math.isfinite(scale) and scale >= 0):
            raise ValueError(f"the scale of a guide is a finite number of 0 or more (0 is no guide), got {scale}")
        if schedule is None:
            inner = innermost(denoiser)
            if not isinstance(inner, Prediction):
                raise ValueError(f"a {type(inner).__name__} does not say its schedule: give Steered(..., schedule=...)")
            schedule = inner.schedule
        self.denoiser, self.guide, self.scale, self.project = denoiser, guide, float(scale), project
        self.schedule: Schedule = schedule
        self.evaluations = denoiser.evaluations if isinstance(denoiser, Around) else 1

    def slope(
        self, ask: Callable[[Tensor], Tensor], x_t: Tensor, t: Tensor | float, cond: Cond | None, estimate: bool
    ) -> tuple[Tensor | None, Tensor]:
        r"""$\hat x_0$ and $w \nabla_{x_t} \log p(y \mid x_t)$, (B, *shape); `ask` is $x_t \mapsto \hat x_0$, called
        once if the guide or an `estimate` needs it, and not at all otherwise."""
        if self.guide.reads == "graph":
            with torch.enable_grad():
                x = x_t.detach().requires_grad_()
                x0_hat = ask(x)
                gradient = self.guide(x, t, x0_hat, cond)
            return x0_hat.detach(), self.scale * gradient.detach()
        found = ask(x_t) if estimate or self.guide.reads == "x0_hat" else None
        return found, self.scale * self.guide(x_t, t, found, cond).detach()

    def silent(self, t: Tensor | float) -> bool:
        r"""Whether nothing is to be asked at a number `t`, where $\alpha_t \sigma_t = 0$."""
        return isinstance(t, float) and math.prod(self.schedule.at(t)) == 0

    def steer(self, x0_hat: Tensor, slope: Tensor, t: Tensor | float) -> Tensor:
        r"""$\hat x_0 + (\sigma_t^2 / \alpha_t)$ `slope`, (B, *shape), and $\hat x_0$ where the guide is silent."""
        alpha_t, sigma_t = levels(self.schedule, t, x0_hat)
        if isinstance(alpha_t, float) or isinstance(sigma_t, float):
            return x0_hat + sigma_t**2 / alpha_t * slope
        heard = alpha_t * sigma_t > 0
        return torch.where(heard, x0_hat + sigma_t**2 / torch.where(heard, alpha_t, 1.0) * slope, x0_hat)

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Cond | None = None) -> Tensor:
        told = untold(cond)

        def ask(x: Tensor) -> Tensor:
            return at_one_time(self.denoiser)(x, t, told) if isinstance(t, float) else self.denoiser(x, t, told)

        if self.silent(t):
            return ask(x_t)
        x0_hat, slope = self.slope(ask, x_t, t, cond, estimate=True)
        assert x0_hat is not None
        return self.steer(x0_hat, slope, t)


class Halves:
    r"""A steered denoiser in one run of a solver, its condition given: called with $(x_t, t)$ it is $D_w$.

    Attributes:
        rounds: Calls of the denoiser so far.
    """

    def __init__(self, steered: Steered, cond: Cond | None) -> None:
        self.steered, self.cond, self._told = steered, cond, untold(cond)
        self._ask, self.rounds = at_one_time(steered.denoiser), 0
        self._watched: list[tuple[float, Tensor]] = []

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        if self.steered.silent(t):
            return self.free(x_t, t)
        x0_hat, slope = self._both(x_t, t, estimate=True)
        assert x0_hat is not None
        return self.steered.steer(x0_hat, slope, t)

    def free(self, x_t: Tensor, t: float) -> Tensor:
        r"""$D(x_t, t)$, without the guide."""
        self.rounds += 1
        return self._ask(x_t, t, self._told)

    def slope(self, x_t: Tensor, t: float) -> Tensor | None:
        r"""$w \nabla_{x_t} \log p(y \mid x_t)$, (B, *shape); None where the guide is silent. A guide that reads
        $\hat x_0$ costs a call of the denoiser."""
        return None if self.steered.silent(t) else self._both(x_t, t, estimate=False)[1]

    def projected(self, x_s: Tensor, s: float) -> Tensor:
        """The state that a step arrives at, after the projection, if there is one."""
        return x_s if self.steered.project is None else self.steered.project(x_s, s)

    def _both(self, x_t: Tensor, t: float, estimate: bool) -> tuple[Tensor | None, Tensor]:
        x0_hat, slope = self.steered.slope(lambda x: self.free(x, t), x_t, t, self.cond, estimate)
        # One number, left where it is: it is read once, at the end of the run.
        self._watched.append((t, slope.isfinite().all()))
        return x0_hat, slope

    def check(self) -> None:
        """Make sure that all gradients of the run were finite: the device is waited for once, here.

        Raises:
            FloatingPointError: for the first that was not; names its number and time.
        """
        if not self._watched:
            return
        finite = torch.stack([flag for _, flag in self._watched]).tolist()
        if not all(finite):
            n = finite.index(False)
            raise FloatingPointError(
                f"gradient {n + 1} of {len(finite)} of the guide {type(self.steered.guide).__name__}, at t = "
                f"{self._watched[n][0]:g}, is not finite: take more steps, a smaller scale than "
                f"{self.steered.scale:g}, or look at the guide there"
            )
