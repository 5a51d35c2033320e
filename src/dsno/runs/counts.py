"""What a run does, counted: floating-point operations, bytes and weights of one row.

Work and memory of a large network are counted on the meta device, where tensors have shapes and no numbers, so any size
is counted in seconds. Bytes of a training step are those of the tensors that autograd keeps for the backward pass,
weights left out; bytes of an evaluation are those alive at its worst moment.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from dsno.borrow import unwrapped
from dsno.condition import Cond
from dsno.cost import Live, flops
from dsno.denoise import Prediction
from dsno.nets.backbone import Backbone, example, sample_shape
from dsno.runs.workload import Workload

__all__ = [
    "Count",
    "count_run",
    "count_student",
    "parameter_of",
    "saved_bytes",
    "student_arguments",
    "teacher_arguments",
    "teacher_to_count",
]

SMALL = 3e6
"""Parameters of a teacher whose calls are quicker with numbers on the CPU than without on the meta device."""


@dataclass(frozen=True)
class Count:
    """The work and the memory of one row.

    Attributes:
        shape: Of a sample.
        classes: That the teacher is told, or None.
        evaluation: FLOP of an evaluation of the teacher.
        solving: Bytes alive at the worst moment of one.
        teaching: Bytes that a training step of the teacher keeps.
        teacher_weights: Numbers in the teacher.
        sample: FLOP of a student's pass on a sample, in the mean over the kinds of training steps.
        widest: The same in the step that supervises the most frames.
        training: Bytes that such a step keeps.
        student_weights: Numbers in the student.
        trained: Of these, those that are trained.
        written: Of these, those that stay on disk.
    """

    shape: tuple[int, ...]
    classes: int | None
    evaluation: float
    solving: int
    teaching: int
    teacher_weights: int
    sample: float = 0.0
    widest: float = 0.0
    training: int = 0
    student_weights: int = 0
    trained: int = 0
    written: int = 0


def teacher_to_count(work: Workload) -> Prediction:
    """The teacher on the meta device, or, where it is small, on the CPU, whose calls are quicker."""
    with torch.device("meta"):
        made = work.teacher()
    if sum(p.numel() for p in made.parameters()) < SMALL:
        return work.own_teacher().cpu().float()
    # A teacher that was loaded already is not to lose its weights.
    return made if parameter_of(made).is_meta else copy.deepcopy(made).to("meta")


def count_run(work: Workload, teacher: Prediction) -> Count:
    """The work and the memory of a run whose teacher is `teacher_to_count(work)`.

    Raises:
        ValueError: if the student does not fit the teacher.
    """
    arguments = teacher_arguments(teacher, 1, parameter_of(teacher))

    def call() -> Tensor:
        return teacher(*arguments)

    count = Count(
        sample_shape(teacher),
        teacher.classes,
        evaluation=_flop(teacher, arguments),
        solving=_peak_bytes(call),
        teaching=saved_bytes(teacher, call),
        teacher_weights=sum(p.numel() for p in teacher.parameters()),
    )
    return count_student(work, teacher, count, memory=True)


def count_student(work: Workload, teacher: Prediction, count: Count, memory: bool = False) -> Count:
    """`count` with the student of `work`; its memory, which takes one more pass, where that is asked for."""
    if work.train is None:
        return count
    student, like = work.student_of(teacher), parameter_of(teacher)
    shares, arguments = zip(
        *((share, student_arguments(work, teacher, 1, like, frames)) for share, frames in work.supervised), strict=True
    )
    each = [_flop(student, call) for call in arguments]
    return replace(
        count,
        sample=sum(share * flop for share, flop in zip(shares, each, strict=True)),
        widest=each[-1],
        training=saved_bytes(student, lambda: student(*arguments[-1])) if memory else count.training,
        student_weights=sum(p.numel() for p in student.parameters()),
        trained=sum(p.numel() for p in student.parameters() if p.requires_grad),
        written=work.written(student),
    )


def parameter_of(module: nn.Module) -> Tensor:
    """A parameter of a module, for its dtype and device; a closed form has none, and is on the CPU."""
    return next(module.parameters(), torch.zeros(1))


def teacher_arguments(teacher: Prediction, rows: int, like: Tensor) -> tuple[Any, ...]:
    """State, time and, where it has one, condition of a call of the teacher: zeros but for the time, like `like`."""
    net = unwrapped(teacher.net)
    if isinstance(net, Backbone):
        x, t, *cond = example(net, like, rows)
    else:
        x, t = like.new_zeros(rows, *sample_shape(teacher)), like.new_zeros(rows)
        cond = [torch.zeros(rows, dtype=torch.int64, device=like.device)] if teacher.classes else []
    return (x, t + 0.5, *cond)


def student_arguments(
    work: Workload, teacher: Prediction, rows: int, like: Tensor, frames: tuple[int, ...]
) -> tuple[Any, ...]:
    """State, condition, start and frames of a call of the student: zeros but for the start, like `like`."""
    x, _, *rest = teacher_arguments(teacher, rows, like)
    cond: Cond | None = rest[0] if rest else None
    if work.student.get("guidance"):
        named = {} if cond is None else {"label": cond} if isinstance(cond, Tensor) else dict(cond)
        cond = {**named, "weight": x.new_zeros(rows)}
    return x, cond, 1.0, frames


@torch.no_grad()
def _flop(module: nn.Module, arguments: tuple[Any, ...]) -> float:
    return float(flops(module, *arguments))


def saved_bytes(module: nn.Module, call: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward one, the weights of `module` left out."""
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
def _peak_bytes(call: Callable[[], Tensor]) -> int:
    with Live() as live:
        call()
    return live.peak
