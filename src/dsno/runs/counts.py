"""What a run does, counted on the meta device: FLOPs, bytes and weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from dsno.condition import Cond
from dsno.cost import Live, flops
from dsno.denoise import Prediction
from dsno.nets.backbone import Backbone, example, sample_shape
from dsno.runs.workload import Workload
from dsno.students.operator import TrajectoryStudent, student_from_teacher

__all__ = ["Count", "arguments", "count_student", "counted", "like", "selections", "student_of", "weighted"]


def arguments(teacher: Prediction, rows: int, like: Tensor) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Cond]:
    """State, time and condition of a call, all zeros but for the time."""
    if isinstance(teacher.net, Backbone):
        x, t, *cond = example(teacher.net, like, rows)
    else:
        x, t = like.new_zeros(rows, *sample_shape(teacher)), like.new_zeros(rows)
        cond = [torch.zeros(rows, dtype=torch.int64, device=like.device)] if teacher.classes else []
    return (x, t + 0.5, *cond)  # type: ignore[return-value]


def like(module: nn.Module) -> Tensor:
    return next(module.parameters(), torch.zeros(1))


@dataclass(frozen=True)
class Count:
    """Of one row: the work of an evaluation, of a sample in a mean step and in the widest, and bytes; and the weights."""

    evaluation: float
    solving: int
    teaching: int
    teacher_weights: int
    sample: float = 0.0
    widest: float = 0.0
    training: int = 0
    student_weights: int = 0
    trained: int = 0


def counted(work: Workload, teacher: Prediction) -> Count:
    example = arguments(teacher, 1, like(teacher))

    def call() -> Tensor:
        return teacher(*example)

    weights = sum(p.numel() for p in teacher.parameters())
    count = Count(_work(teacher, example), _peak(call), _saved(teacher, call), weights)
    return count_student(work, teacher, count, memory=True)


def count_student(work: Workload, teacher: Prediction, count: Count, memory: bool = False) -> Count:
    """`count` with the student of `work`; its memory takes one more pass."""
    if work.train is None:
        return count
    student = student_of(work, teacher)
    x, _, *cond = arguments(teacher, 1, like(teacher))
    told = weighted(cond[0] if cond else None, work, x)
    shares, selected = zip(*selections(work), strict=True)
    works = [_work(student, (x, told, 1.0, select)) for select in selected]
    return replace(
        count,
        sample=sum(share * flop for share, flop in zip(shares, works, strict=True)),
        widest=works[-1],
        training=_saved(student, lambda: student(x, told, 1.0, selected[-1])) if memory else count.training,
        student_weights=sum(p.numel() for p in student.parameters()),
        trained=sum(p.numel() for p in student.parameters() if p.requires_grad),
    )


def student_of(work: Workload, teacher: Prediction) -> TrajectoryStudent:
    return student_from_teacher(teacher, work.times, **work.student)


def weighted(cond: Cond | None, work: Workload, x: Tensor) -> Cond | None:
    """The condition of a student that is told the guidance weight."""
    if not work.student.get("guidance"):
        return cond
    named = {} if cond is None else {"label": cond} if isinstance(cond, Tensor) else dict(cond)
    return {**named, "weight": x.new_zeros(len(x))}


def selections(work: Workload) -> list[tuple[float, tuple[int, ...]]]:
    """The frames that a step supervises, with the share of the steps that do."""
    M = len(work.times)
    if work.others is None or M == 1:
        return [(1.0, tuple(range(M)))]
    return [(1 - work.others, (M - 1,)), (work.others, (0, M - 1))]


@torch.no_grad()
def _work(module: nn.Module, arguments: tuple[Any, ...]) -> float:
    return float(flops(module, *arguments))


def _saved(module: nn.Module, call: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward one, weights left out."""
    own = {p.untyped_storage()._cdata for p in [*module.parameters(), *module.buffers()]}
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        kept.setdefault(x.untyped_storage()._cdata, x)
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        output = call()
    del output
    return sum(x.untyped_storage().nbytes() for key, x in kept.items() if key not in own)


@torch.no_grad()
def _peak(call: Callable[[], Tensor]) -> int:
    with Live() as live:
        call()
    return live.peak
