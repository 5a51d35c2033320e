r"""Progressive distillation: halve a sampler's steps again and again (Salimans & Ho, 2022, arXiv 2202.00512).

A teacher moves a state from $t$ to $s$ in two steps, through the time $u$ midway in phase, to $x_s = X_{u \to s}(X_{t
\to u}(x_t))$. The one $\tilde x$ whose DDIM step does the same at once is what the student learns on the even grid of
$N$ steps,

$$ \tilde x = \frac{x_s - (\sigma_s / \sigma_t) \, x_t}{\alpha_s - (\sigma_s / \sigma_t) \, \alpha_t}, \qquad
   L = \mathbb E \, \max(\mathrm{SNR}_t, 1) \, \big\| h(x_t, t, s) - \tilde x \big\|^2, \qquad
   p_t = \tfrac nN, \; p_s = \tfrac{n - 1}N. $$

Then it is the teacher of the student of $N / 2$ steps. The first teacher is the diffusion model itself, by DDIM. The
weight is the truncated SNR, without which the last steps, of a few calls that start near pure noise, would not count.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dsno.condition import Cond
from dsno.denoise import Denoiser, expand_like
from dsno.distillation.denoising import Denoising, noised
from dsno.distillation.stages import FlowMapOptions, Given, Stage
from dsno.schedule import Schedule
from dsno.solvers.first_order import ddim_inverse
from dsno.students.flowmap import FlowMap

__all__ = [
    "NoisedRows",
    "ProgressiveOptions",
    "StepDistillation",
    "ddim",
    "halved",
    "halvings",
    "progressive",
    "shared",
    "truncated_snr",
]


class NoisedRows(Protocol):
    """Batches of what to noise: `x0` and `eps` (B, *shape), `t` (B,) uniform in [0, 1), perhaps `cond`."""

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]: ...


def truncated_snr(t: Tensor, schedule: Schedule) -> Tensor:
    r"""$\max(\alpha_t^2 / \sigma_t^2, 1)$, shape of t; t > 0."""
    alpha_t, sigma_t = schedule(t)
    return (alpha_t / sigma_t).square().clamp_min(1)


class _DDIM(nn.Module):
    """A denoiser as the network of a flow map: the same h whatever s is, so the map is DDIM's step."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond | None = None) -> Tensor:
        return self.denoiser(x_t, t, cond)


def ddim(teacher: Denoiser, schedule: Schedule) -> FlowMap:
    """A teacher's DDIM steps as a flow map."""
    return FlowMap(_DDIM(teacher), schedule, "x0")


class StepDistillation:
    r"""The objective of one stage: a step of the even grid of N for `substeps` of the teacher's.

    Arguments:
        teacher: $X_{t \to s}$.
        rows: What is noised, to the phases $1/N, \dots, 1$; `Denoising` makes such.
        steps: N.
        substeps: The teacher's steps for one of the student's.
        stochastic: Train half of the rows on steps of twice the length, where there is room for them: what a sampler
            that jumps ahead and noises back makes of a grid (`dsno.distillation.guided.stochastic_sampler`). A teacher
            that was trained so teaches them by its own double steps.
        first: Steps that stages before this one took: batches go on where theirs ended.
    """

    def __init__(
        self,
        teacher: FlowMap,
        rows: NoisedRows,
        steps: int,
        substeps: int = 2,
        stochastic: bool = False,
        first: int = 0,
    ) -> None:
        self.teacher, self.schedule, self.rows, self.steps = teacher, teacher.schedule, rows, steps
        self.substeps, self.stochastic, self.first = substeps, stochastic, first

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """Batches from step `start` of the stage on: t on the grid and s one or, if stochastic, two steps on."""
        N, time = self.steps, self.schedule.from_phase
        for batch in self.rows.batches(self.first + start, rank, world):
            n = (batch["t"] * N).floor().clamp_max(N - 1)
            length = torch.ones_like(n)
            if self.stochastic:
                # Where t fell between two grid times is independent of which two they are.
                length += (batch["t"] * N - n >= 0.5) & (n >= 1)
            yield {**batch, "t": time((n + 1) / N), "s": time((n + 1 - length) / N)}

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """The loss of one batch, a scalar."""
        x0, t, s, cond = batch["x0"], batch["t"], batch["s"], batch.get("cond")
        x_t = noised(self.schedule, x0, batch["eps"], t)
        with torch.no_grad():
            x_s = self._taught(x_t, t, s, cond)
        h, target = (ddim_inverse(self.schedule, x, x_t, t, s) for x in (model(x_t, t, s, cond), x_s))
        return (expand_like(truncated_snr(t, self.schedule), h) * (h - target).square()).mean()

    def _taught(self, x: Tensor, t: Tensor, s: Tensor, cond: Cond | None) -> Tensor:
        # A copy of a student is where that was; training may have moved on to another device.
        X, (p, q), k = self.teacher.to(x.device), (self.schedule.phase(time) for time in (t, s)), self.substeps
        times = [t, *(self.schedule.from_phase(p + (q - p) * n / k) for n in range(1, k)), s]
        for a, b in pairwise(times):
            x = X(x, a, b, cond)
        return x


@dataclass(frozen=True)
class ProgressiveOptions(FlowMapOptions):
    """Options of `progressive`."""

    passes: int = 1
    """What the student is to make."""
    start: int = 32
    """DDIM steps of the teacher in the first stage, whose number the stages halve."""
    stochastic: bool = False
    """Train for `stochastic_sampler`, too, which jumps ahead and noises back."""


def progressive(student: FlowMap, given: Given, options: ProgressiveOptions = ProgressiveOptions()) -> list[Stage]:
    r"""Stages `steps-N`, N = `start` / 2, `start` / 4, ..., `passes`; the last two, of 2 and 1, take twice the steps.

    Raises:
        ValueError: if the passes are not `start` halved some times, there are fewer steps than stages, or no data.
    """
    counts = halved(options.start, options.passes)
    rows = Denoising(given.samples, given.schedule, "x0", given.labels, given.batch, given.seed)
    teacher = ddim(given.denoiser, given.schedule)
    return halvings(rows, counts, given.steps, teacher, options.stochastic)


def halved(start: int, passes: int) -> list[int]:
    """`start` / 2, `start` / 4, ..., `passes`.

    Raises:
        ValueError: if that never meets `passes`.
    """
    counts = [start >> k for k in range(1, max(start, 1).bit_length()) if start % (1 << k) == 0]
    if passes not in counts:
        raise ValueError(
            f"halving the teacher's {start} steps gives {', '.join(map(str, counts)) or 'nothing'}, not {passes} "
            "passes: "
            f"ask for one of these, or start from {passes} times a power of two"
        )
    return counts[: counts.index(passes) + 1]


def shared(steps: int, shares: list[float]) -> list[int]:
    """`steps` in proportion to the shares, at least one each.

    Raises:
        ValueError: if there are fewer steps than shares.
    """
    if steps < len(shares):
        raise ValueError(f"{steps} training steps do not make {len(shares)} stages: give at least one to each")
    ends = [round(steps * sum(shares[: k + 1]) / sum(shares)) for k in range(len(shares))]
    for k in range(len(ends)):
        # Rounding may leave a stage without a step: every end leaves room for the stages before and behind it.
        ends[k] = min(max(ends[k], (ends[k - 1] if k else 0) + 1), steps - (len(ends) - 1 - k))
    return [b - a for a, b in zip([0, *ends], ends, strict=False)]


def halvings(
    rows: NoisedRows,
    counts: list[int],
    steps: int,
    teacher: FlowMap | None,
    stochastic: bool = False,
    first: int = 0,
) -> list[Stage]:
    """A stage for each of `counts`, which share the `steps`; `teacher` is None where the student itself is the first
    teacher.

    Raises:
        ValueError: if there are fewer steps than stages.
    """

    def stage(count: int, own: int, taught_by: FlowMap | None, first: int) -> Stage:
        def make(model: FlowMap) -> tuple[nn.Module, StepDistillation]:
            X = copy.deepcopy(model).eval().requires_grad_(False) if taught_by is None else taught_by
            return model, StepDistillation(X, rows, count, 2, stochastic, first)

        return Stage(f"steps-{count}", own, make, lambda X: X.trained_for("grid", count))

    stages: list[Stage] = []
    own_steps = shared(steps, [2.0 if n <= 2 else 1.0 for n in counts])
    for count, own in zip(counts, own_steps, strict=True):
        stages.append(stage(count, own, teacher if not stages else None, first))
        first += own
    return stages
