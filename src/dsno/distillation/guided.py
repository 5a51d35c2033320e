r"""Guided distillation: one student for a whole range of guidance weights, in few passes (Meng et al., 2023, arXiv 2210.03142).

The student is told the weight $w$ beside the class $c$. First it learns, on the times of the finest grid, what guidance makes
of two evaluations,

$$ L_1 = \mathbb E \, \max(\mathrm{SNR}_t, 1) \, \big\| h(x_t, t, s; c, w) - D_w(x_t, t, c) \big\|^2, \qquad
   D_w = (1 + w) \, D(c) - w \, D(\varnothing), \quad w \sim U[w_{\mathrm{low}}, w_{\mathrm{high}}], $$

which makes its steps DDIM's at half the evaluations. Then progressive distillation halves their number with $w$ as an input,
the same in both half steps of a target. Both are one objective, `StepDistillation`: a step of the student for one or for two
of its teacher.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from dsno.cost import Metered
from dsno.denoise import Denoiser, Guided
from dsno.distillation.denoising import Denoising
from dsno.distillation.progressive import StepDistillation, ddim, halved, halvings
from dsno.distillation.stages import Given, Stage, check_guidance
from dsno.grids import even
from dsno.seeds import generator
from dsno.students.flowmap import FlowMap
from dsno.students.samplers import FlowMapSampler

__all__ = ["WeightedRows", "guided", "label_name", "stochastic_sampler"]

GOLDEN = (math.sqrt(5) - 1) / 2


class WeightedRows:
    """Rows of `Denoising` with labels whose condition is the label, under `name`, and a `weight` uniform in [low, high]."""

    def __init__(self, rows: Denoising, low: float, high: float, name: str = "") -> None:
        self.rows, self.low, self.high, self.name = rows, low, high, name

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """Batches from step `start` on; each is the share of `rank` in one that is a function of (seed, step)."""
        count = self.rows.batch
        mine = slice(rank * (count // world), (rank + 1) * (count // world))
        for step, batch in enumerate(self.rows.batches(start, rank, world), start):
            g = generator(self.rows.seed, step, 1)
            # The times of a batch are evenly spaced; steps of the golden ratio are even in the weight and in both together.
            share = (torch.rand(1, generator=g) + GOLDEN * torch.arange(count)) % 1
            weight = (self.low + (self.high - self.low) * share)[mine]
            yield {**batch, "cond": {self.name: batch["cond"], "weight": weight}}


def guided(
    student: FlowMap, given: Given, *, start: int = 32, stochastic: bool = False, share: float = 0.3
) -> list[Stage]:
    """A stage `guidance`, then `steps-N` as of `progressive`, for all weights of `given.guidance`.

    The condition of teacher and student is `{"": labels, "weight": w}`, or `{"label": labels, ...}` where the null condition of
    the teacher is called so.

    Arguments:
        student: Told the weight; made for the even grid of `given.passes` steps from here on.
        given: Its teacher is a `Guided` that reads its weight from the condition; with labels.
        start: Steps of the student after the stage `guidance`, whose number the others halve.
        stochastic: Train for `stochastic_sampler`, too.
        share: The share of the steps that the stage `guidance` takes, in (0, 1).

    Raises:
        ValueError: if the teacher is not such a `Guided`, the student is told no weight, there are no labels, the range of
            weights is none (`check_guidance`), or as of `progressive`.
    """
    low, high = given.guidance
    check_guidance(low, high)
    if not 0 < share < 1:
        raise ValueError(f"share is the part of the steps that the stage guidance takes, in (0, 1), got {share:g}")
    name = label_name(given.denoiser)
    if not student.guided:
        raise ValueError(
            "this student is told no guidance weight: make it with flow_map_from_teacher(teacher, guidance=True)"
        )
    if given.labels is None:
        raise ValueError("guided distillation needs the labels of the samples: give data that has them")
    counts = halved(start, given.passes)
    rows = WeightedRows(
        Denoising(given.samples, given.schedule, "x0", given.labels, given.batch, given.seed), low, high, name
    )
    if given.steps < 1 + len(counts):
        raise ValueError(
            f"{given.steps} training steps do not make {1 + len(counts)} stages: give at least one to each"
        )
    before = min(max(round(share * given.steps), 1), given.steps - len(counts))

    def make(model: nn.Module) -> tuple[nn.Module, StepDistillation]:
        return model, StepDistillation(ddim(given.denoiser, given.schedule), rows, start, 1, stochastic)

    later = halvings(student, rows, counts, given.steps - before, None, stochastic, before)
    return [Stage("guidance", before, make), *later]


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
            "guided distillation needs a teacher with an unconditional branch that reads its weight from the condition, "
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

    Every step but the last jumps twice as far as the grid's and noises back up to the grid's next time (Meng et al., 2023,
    section 3.2), with fresh noise from the seeds it is called with.

    Raises:
        ValueError: if the student was not trained for a grid.
    """
    if student.steps is None:
        raise ValueError(
            f"this flow map was trained for no grid (its way is {student.way!r}): see `progressive` and `guided`"
        )
    grid = even(student.schedule, student.steps)
    return FlowMapSampler(student, grid, torch.cat([grid[2:], grid[-1:]]))
