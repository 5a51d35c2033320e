r"""The methods of distillation by name: what each needs, what it makes, and when to take it.

All of them learn the flow of the teacher's ODE, $x_t \mapsto x_s$, and differ in the pairs $(t, s)$ they learn it for and in
what the map is compared with:

| compared with | for | methods |
|---|---|---|
| solved trajectories | t = 1 and some s | `operator`, `knowledge`, `matching` |
| two steps of the teacher, or of the map itself | neighbours of a grid, or any | `progressive`, `guided`, `shortcut`, `progressive-map` |
| its own value one small step on | s = 0 | `consistency`, `consistency-training`, `easy-consistency`, `continuous-consistency` |
| the teacher's velocity, or the data's | any | `lagrangian`, `eulerian`, `meanflow`, `direct` |

A method is a function `(student, given) -> stages` (`dsno.distillation.stages`), in the file of its family, which is imported when
it is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from dsno.denoise import Prediction
from dsno.distillation.stages import Given, Stage, check_guidance

__all__ = ["METHODS", "Method", "Need", "Passes", "matched", "regression", "student_of"]

Need = Literal["trajectories", "teacher", "samples", "data"]
"""Solved trajectories; the teacher itself, while training; clean samples, be they the ends of trajectories; or samples of the
data, which are what the student then learns, whatever the teacher says. Beside these, every student starts from a teacher's
weights (`student_of`)."""

Passes = Literal["1", "1 to M", "any", "one number, chosen beforehand"]


@dataclass(frozen=True)
class Method:
    """A way to train a student.

    Attributes:
        name: What it is called by.
        title: Its name in the literature.
        student: What it trains: a `TrajectoryStudent` or a `FlowMap`.
        needs: What it cannot do without.
        passes: How many passes the student can make afterwards.
        references: Keys of `dsno.references.REFERENCES`.
        choose: When to take it.
        where: Where its function is, `module:function`.
        derivative: How its loss takes derivatives of the student where it is not told (`dsno.distillation.flowmaps`), if it does.
        batch: Rows per step, where none is asked for.
    """

    name: str
    title: str
    student: Literal["operator", "flow map"]
    needs: tuple[Need, ...]
    passes: Passes
    references: tuple[str, ...]
    choose: str
    where: str
    derivative: Literal["forward", "upwind"] | None = None
    batch: int = 64

    @property
    def stages(self) -> Callable[..., list[Stage]]:
        """`(student, given, **options) -> stages`."""
        module, name = self.where.split(":")
        found: Callable[..., list[Stage]] = getattr(importlib.import_module(module), name)
        return found

    def check(self, given: Given) -> None:
        """Make sure that `given` is what the method needs.

        Raises:
            ValueError: for the first thing that is missing or does not fit; says how to mend it.
        """
        self.check_options(given.passes, given.guidance)
        self.check_data(given.trajectories is not None)
        if {"samples", "data"} & {*self.needs}:
            _ = given.samples
        if "teacher" in self.needs:
            _ = given.denoiser
        if given.derivative is not None and self.derivative is None:
            raise ValueError(f"{self.name} takes no derivatives: leave derivative={given.derivative!r} out")
        if self.name == "guided":
            from dsno.distillation.guided import label_name

            label_name(given.denoiser)

    def check_options(self, passes: int, guidance: tuple[float, float]) -> None:
        """Make sure that the method can be trained for so many passes, and for this range of guidance weights.

        Raises:
            ValueError: if not.
        """
        beforehand = self.passes == "one number, chosen beforehand"
        if passes < 1 or (passes > 1 and not beforehand):
            raise ValueError(f"{self.name} {_PASSES[self.passes]}, got passes = {passes}")
        if self.name == "guided":
            check_guidance(*guidance)

    def check_data(self, solved: bool, found: str = "") -> None:
        """Make sure that there are trajectories, if the method needs them; `found` is what there is instead.

        Raises:
            ValueError: if not.
        """
        if "trajectories" in self.needs and not solved:
            instead = "shortcut" if "teacher" in self.needs else "consistency"
            raise ValueError(
                f"{self.name} learns from the teacher's trajectories and there are none"
                + (f" in {found}" if found else "")
                + ": make them (`dsno generate`) and give their folder (`--data runs/trajectories`), or take a method that "
                f"needs samples alone, such as {instead} (`dsno methods`)"
            )

    def check_student(self, student: nn.Module, given: Given) -> None:
        """Make sure that the student is of the method's kind, and has the derivatives it takes.

        Raises:
            ValueError: if not; says what to do instead.
        """
        from dsno.students.flowmap import FlowMap

        kind = "flow map" if isinstance(student, FlowMap) else "operator"
        if kind != self.student:
            makes = "flow_map_from_teacher" if self.student == "flow map" else "student_from_teacher"
            raise ValueError(
                f"{self.name} trains {_A[self.student]}, got {_A[kind]}: make the student with {makes}, or take another method"
            )
        if self.derivative and (given.derivative or self.derivative) == "forward":
            try:
                _try_derivative(student, given)
            except NotImplementedError as error:
                raise ValueError(
                    f"{self.name} takes derivatives of the student, and a layer of its network has no forward mode: take them "
                    f"by differences (`--derivative difference`), or a method without, such as shortcut ({error})"
                ) from None


_A = {"operator": "an operator", "flow map": "a flow map"}

_PASSES = {
    "1": "makes one pass: leave `--passes` out, or take a method that makes more (`dsno methods`)",
    "1 to M": "is not trained for a number of passes: leave `--passes` out, and train it with `--inner-starts 0.5` for "
    "several (`dsno sample --passes`)",
    "any": "is not trained for a number of passes: leave `--passes` out, and choose it when you draw (`dsno sample --passes`)",
    "one number, chosen beforehand": "makes at least one pass",
}


@torch.no_grad()
def _try_derivative(student: nn.Module, given: Given) -> None:
    """One row in every direction there is: fails as the loss would."""
    from dsno.distillation.derivatives import jvp

    like = next(student.parameters())
    x = given.samples[:1].to(like)
    cond = None if given.labels is None else given.labels[:1].to(like.device)
    t, s = like.new_full((1,), 0.6), like.new_full((1,), 0.3)
    jvp(lambda x, t, s: student(x, t, s, cond), (x, t, s), (x, torch.ones_like(t), torch.ones_like(s)))


def regression(
    student: nn.Module,
    given: Given,
    *,
    weights: str = "snr5",
    distance: Any = "l1",
    others: float | None = None,
    inner_starts: float = 0.0,
) -> list[Stage]:
    """An operator on trajectories, in one stage: see `TrajectoryDistillation`, whose options these are.

    A student of fewer frames than are stored learns those it has.
    """
    from dsno.distillation.regression import TrajectoryDistillation
    from dsno.students.operator import TrajectoryStudent

    data = given.trajectories
    assert data is not None and isinstance(student, TrajectoryStudent)
    data = data.at(student.times) if len(student.times) < len(data.times) else data
    objective = TrajectoryDistillation(
        data, student, weights, distance, given.batch, given.seed, others, inner_starts
    )  # fmt: skip
    student.restarts = inner_starts > 0
    return [Stage("regression", given.steps, lambda student: (student, objective))]


def matched(
    student: nn.Module,
    given: Given,
    *,
    weights: str = "snr5",
    distance: Any = "l1",
    others: float | None = None,
    fine_tuning: float = 0.4,
) -> list[Stage]:
    """`regression`, and in the share `fine_tuning` of the steps behind it `dsno.distillation.matching.matching`.

    Raises:
        ValueError: for a share outside (0, 1), or fewer steps than stages; as the two functions do.
    """
    from dsno.distillation.matching import matching

    if not 0 < fine_tuning < 1 or given.steps < 2:
        raise ValueError(
            f"matching is two stages of at least a step, the second of a share in (0, 1): got {given.steps} steps and "
            f"fine_tuning = {fine_tuning:g}"
        )
    second = min(max(round(given.steps * fine_tuning), 1), given.steps - 1)
    options: dict[str, Any] = {"weights": weights, "distance": distance, "others": others}
    first = regression(student, replace(given, steps=given.steps - second), **options)
    return first + matching(student, replace(given, steps=second), **options)


def student_of(method: Method, teacher: Prediction, given: Given, **options: Any) -> nn.Module:
    """The student that a method trains, around a copy of the teacher; `options` are those of `student_from_teacher`.

    It is told a guidance weight if guidance is distilled, or the trajectories are told one.

    Raises:
        ValueError: if the teacher's network cannot be made one; as the functions that make students do.
    """
    from dsno.students.flowmap import flow_map_from_teacher
    from dsno.students.operator import student_from_teacher

    if method.student == "flow map":
        return flow_map_from_teacher(teacher, guidance=method.name == "guided")
    method.check(given)
    assert given.trajectories is not None
    times = given.trajectories.times
    options = {"guidance": "weight" in (given.trajectories.manifest["cond"] or ()), **options}
    if method.name == "knowledge":
        times, options = times[-1:], {**options, "where": "none"}
    return student_from_teacher(teacher, times, **options)


_ALL: tuple[Method, ...] = (
    Method(
        "operator", "DSNO", "operator", ("trajectories",), "1 to M", ("zheng2023fast",),
        "You want the path as well as the sample, in one pass, and can make trajectories first.",
        "dsno.distillation.registry:regression",
    ),
    Method(
        "knowledge", "knowledge distillation", "operator", ("trajectories",), "1", ("luhman2021knowledge",),
        "You want the sample alone, in one pass: the simplest loss there is, and the one to beat.",
        "dsno.distillation.registry:regression",
    ),
    Method(
        "matching", "DSNO, then distribution matching", "operator", ("trajectories", "teacher"), "1",
        ("zheng2023fast", "yin2024one", "yin2024improved"),
        "A regressed student is blurred, and you care about the look of the set more than about each path.",
        "dsno.distillation.registry:matched",
    ),
    Method(
        "progressive", "progressive distillation", "flow map", ("teacher", "samples"), "one number, chosen beforehand",
        ("salimans2022progressive", "song2021denoising"),
        "You know how many passes you will make, two to eight, and have no disk for trajectories.",
        "dsno.distillation.progressive:progressive",
    ),
    Method(
        "guided", "distillation of guided diffusion", "flow map", ("teacher", "samples"), "one number, chosen beforehand",
        ("meng2023distillation", "salimans2022progressive", "ho2022classifier", "song2021denoising"),
        "The teacher is guided, and one student has to serve a range of guidance weights.",
        "dsno.distillation.guided:guided",
    ),
    Method(
        "consistency", "consistency distillation", "flow map", ("teacher", "samples"), "any",
        ("song2023consistency", "song2024improved", "karras2022elucidating"),
        "One or two passes from a teacher, cheap steps, no trajectories; more passes than a few do not help it.",
        "dsno.distillation.consistency:consistency",
    ),
    Method(
        "consistency-training", "improved consistency training", "flow map", ("data",), "any",
        ("song2023consistency", "song2024improved", "karras2022elucidating"),
        "There is data and a teacher that is worth starting from, not trusting; with a good one, distillation learns faster.",
        "dsno.distillation.consistency:consistency_training",
    ),
    Method(
        "easy-consistency", "easy consistency tuning", "flow map", ("data",), "any", ("geng2025consistency",),
        "Data and the weights of a teacher, and little time: it starts as a diffusion model and tightens step by step.",
        "dsno.distillation.consistency:easy_consistency",
    ),
    Method(
        "continuous-consistency", "sCM, continuous-time consistency", "flow map", ("teacher", "samples"), "any",
        ("lu2025simplifying", "song2023consistency"),
        "As consistency, in small steps of normalised size: for several passes rather than for one.",
        "dsno.distillation.consistency:continuous_consistency", derivative="upwind",
    ),
    Method(
        "lagrangian", "Lagrangian map distillation", "flow map", ("teacher", "samples"), "any", ("boffi2025flow",),
        "Any number of passes from one student, two above all; the network needs a forward mode.",
        "dsno.distillation.flowmaps:lagrangian", derivative="forward",
    ),
    Method(
        "eulerian", "Eulerian map distillation", "flow map", ("teacher", "samples"), "any", ("boffi2025flow",),
        "You want the loss that bounds the distance of the samples; lagrangian learns faster.",
        "dsno.distillation.flowmaps:eulerian", derivative="upwind",
    ),
    Method(
        "progressive-map", "progressive flow map matching", "flow map", ("teacher", "samples"), "any", ("boffi2025flow",),
        "Any number of passes without derivatives, doubling the length of a step in stages.",
        "dsno.distillation.flowmaps:progressive_map",
    ),
    Method(
        "shortcut", "shortcut model", "flow map", ("samples",), "any", ("frans2025one",),
        "Any number of passes without derivatives, in one stage: each step is made of two of half its length.",
        "dsno.distillation.flowmaps:shortcut",
    ),
    Method(
        "meanflow", "MeanFlow", "flow map", ("samples",), "any", ("geng2025mean",),
        "Any number of passes; of the teacher's velocity, or of the data's (`--from-data`).",
        "dsno.distillation.flowmaps:meanflow", derivative="upwind",
    ),
    Method(
        "direct", "direct flow map matching", "flow map", ("data",), "any", ("boffi2025flow",),
        "A flow map of the data, the teacher not asked, to compare with: distillation learns faster.",
        "dsno.distillation.flowmaps:direct", derivative="forward",
    ),
)  # fmt: skip

METHODS: dict[str, Method] = {method.name: method for method in _ALL}
"""The methods by name."""
