r"""Guided distillation: one student for a whole range of guidance weights, in few passes (Meng et al., 2023, arXiv
2210.03142).

The student is told the weight $w$ beside the class $c$. First it learns, on the times of the finest grid, what guidance
makes of two evaluations,

$$ L_1 = \mathbb E \, \max(\mathrm{SNR}_t, 1) \, \big\| h(x_t, t, s; c, w) - D_w(x_t, t, c) \big\|^2, \qquad
   D_w = (1 + w) \, D(c) - w \, D(\varnothing), \quad w \sim U[w_{\mathrm{low}}, w_{\mathrm{high}}], $$

which makes its steps DDIM's at half the evaluations. Then progressive distillation halves their number with $w$ as an
input, the same in both half steps of a target. Both are one objective, `StepDistillation`: a step of the student for
one or for two of its teacher.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dsno.cost import Metered
from dsno.denoise import Denoiser, Guided, Prediction
from dsno.distillation.denoising import Denoising
from dsno.distillation.progressive import ProgressiveOptions, StepDistillation, ddim, halved, halvings
from dsno.distillation.stages import Given, Stage
from dsno.engine import share_of
from dsno.grids import even
from dsno.seeds import generator
from dsno.students.flowmap import FlowMap, flow_map_from_teacher
from dsno.students.samplers import FlowMapSampler

__all__ = ["GuidedOptions", "WeightedRows", "check_guidance", "guided", "label_name", "stochastic_sampler"]

GOLDEN = (math.sqrt(5) - 1) / 2


class WeightedRows:
    """Rows of `Denoising` with labels whose condition is the label, under `name`, and a `weight` uniform in [low,
    high]."""

    def __init__(self, rows: Denoising, low: float, high: float, name: str = "") -> None:
        self.rows, self.low, self.high, self.name = rows, low, high, name

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """Batches from step `start` on; each is the share of `rank` in one that is a function of (seed, step)."""
        count = self.rows.batch
        mine = share_of(count, rank, world)
        for step, batch in enumerate(self.rows.batches(start, rank, world), start):
            g = generator(self.rows.seed, step, 1)
            # The times of a batch are evenly spaced; steps of the golden ratio are even in the weight and in both
            # together.
            share = (torch.rand(1, generator=g) + GOLDEN * torch.arange(count)) % 1
            weight = (self.low + (self.high - self.low) * share)[mine]
            yield {**batch, "cond": {self.name: batch["cond"], "weight": weight}}


@dataclass(frozen=True)
class GuidedOptions(ProgressiveOptions):
    """Options of `guided`."""

    guidance: tuple[float, float] = (0.0, 4.0)
    """Range of guidance weights, LOW HIGH, that the student is told one of; 0 is the conditional model."""
    null: int | None = None
    """The label that stands for no class, where the teacher does not say."""
    share: float = 0.3
    """Share of the steps that the stage `guidance` takes, before the halvings, in (0, 1)."""

    def student(self, teacher: Prediction, given: Given) -> FlowMap:
        """A flow map around a copy of the teacher that is told a guidance weight."""
        return flow_map_from_teacher(teacher, guidance=True)


def guided(student: FlowMap, given: Given, options: GuidedOptions = GuidedOptions()) -> list[Stage]:
    """A stage `guidance`, then `steps-N` as of `progressive`, for all weights of the range `guidance`.

    The condition of teacher and student is `{"": labels, "weight": w}`, or `{"label": labels, ...}` where the null
    condition of the teacher is called so.

    Raises:
        ValueError: if the teacher is not a `Guided` that reads its weight from the condition, the student is told no
            weight, there are no labels, the range of weights is none (`check_guidance`), or as of `progressive`.
    """
    check_guidance(*options.guidance)
    if not 0 < options.share < 1:
        raise ValueError(
            f"share is the part of the steps that the stage guidance takes, in (0, 1), got {options.share:g}"
        )
    name = label_name(given.denoiser)
    if not student.guided:
        raise ValueError(
            "this student is told no guidance weight: make it with flow_map_from_teacher(teacher, guidance=True)"
        )
    if given.labels is None:
        raise ValueError("guided distillation needs the labels of the samples: give data that has them")
    counts = halved(options.start, options.passes)
    denoising = Denoising(given.samples, given.schedule, "x0", given.labels, given.batch, given.seed)
    rows = WeightedRows(denoising, *options.guidance, name)
    if given.steps < 1 + len(counts):
        raise ValueError(
            f"{given.steps} training steps do not make {1 + len(counts)} stages: give at least one to each"
        )
    before = min(max(round(options.share * given.steps), 1), given.steps - len(counts))

    def make(model: FlowMap) -> tuple[nn.Module, StepDistillation]:
        taught_by = ddim(given.denoiser, given.schedule)
        return model, StepDistillation(taught_by, rows, options.start, 1, options.stochastic)

    first = Stage("guidance", before, make, lambda X: X.trained_for("grid", options.start))
    return [first, *halvings(rows, counts, given.steps - before, None, options.stochastic, before)]


def check_guidance(low: float, high: float) -> None:
    """Make sure that [low, high] is a range of guidance weights.

    Raises:
        ValueError: unless 0 <= low < high < infinity.
    """
    if not 0 <= low < high < math.inf:
        raise ValueError(
            f"guidance is a range of weights, LOW HIGH with 0 <= LOW < HIGH, got {low:g} {high:g}: that of the paper "
            "is guidance=(0, 4), where 0 is the conditional model"
        )


def label_name(teacher: Denoiser) -> str:
    """What the condition of a guided teacher calls the label.

    Raises:
        ValueError: if the teacher is not guided by the weight of its condition and a label alone.
    """
    while isinstance(teacher, Metered):
        teacher = teacher.denoiser
    if not isinstance(teacher, Guided) or teacher.weight is not None:
        found = "one of a fixed weight" if isinstance(teacher, Guided) else f"a {type(teacher).__name__}"
        raise ValueError(
            "guided distillation needs a teacher with an unconditional branch that reads its weight from the "
            "condition, "
            f"Guided(denoiser, null) of a class-conditional one: got {found}"
        )
    names = list(teacher.null) if isinstance(teacher.null, Mapping) else [""]
    if len(names) != 1:
        raise ValueError(
            f"guided distillation tells the label alone, but the teacher's condition has {', '.join(names)}"
        )
    return names[0]


def stochastic_sampler(student: FlowMap) -> FlowMapSampler:
    """The stochastic sampler of a student that was trained with `stochastic=True`, on its own grid.

    Every step but the last jumps twice as far as the grid's and noises back up to the grid's next time (Meng et al.,
    2023, section 3.2), with fresh noise from the seeds it is called with.

    Raises:
        ValueError: if the student was not trained for a grid.
    """
    if student.steps is None:
        raise ValueError(
            f"this flow map was trained for no grid (its way is {student.way!r}): see `progressive` and `guided`"
        )
    grid = even(student.schedule, student.steps)
    return FlowMapSampler(student, grid, torch.cat([grid[2:], grid[-1:]]))
