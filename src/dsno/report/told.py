r"""What a student and its teacher are told beside the noise, where there are classes.

Both are told the same class of each noise. It follows from the seed, and each class is drawn as often as it is in the
data that samples are compared with, evenly where those have no labels; the label that stands for none never is. A
weight of guidance is one number for all,

$$ D_w(x_t, t, c) = (1 + w) \, D(x_t, t, c) - w \, D(x_t, t, \varnothing), $$

told to a student that takes one; another one was made for one weight, whose ODE is solved all the same. At w = 0 that
is the conditional model, whose call is one evaluation of the network; of any other weight it is two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dsno.borrow import unwrapped
from dsno.condition import Cond
from dsno.data.samples import Samples
from dsno.denoise import Guided, Prediction
from dsno.measure.results import Result
from dsno.nets.backbone import check_null, own_null, tokens_of
from dsno.students.files import checked_weight, notes_of, null_label
from dsno.students.samplers import Student
from dsno.teachers.native import check_class_names, class_names
from dsno.trajectories.labels import shared_labels

__all__ = ["Told", "told_of"]


@dataclass(frozen=True)
class Told:
    """What both sides of a comparison are told: nothing, or a class, and a weight of guidance.

    Attributes:
        teacher: The teacher, without guidance.
        shares: How often each class is drawn, numbers of any sum (C,); or None where no class is told.
        names: What the classes are called, C of them.
        weight: $w$.
        guided: Whether the student is told it, too.
        null: The label that stands for no class; or None where there is none.
        said: All this in words; empty for nothing.
    """

    teacher: Prediction
    shares: Tensor | None = None
    names: tuple[str, ...] = ()
    weight: float = 0.0
    guided: bool = False
    null: int | None = None
    said: str = ""

    @property
    def solved(self) -> Prediction | Guided:
        """$D_w$: the teacher as solvers ask it, which is told labels alone."""
        return Guided(self.teacher, torch.tensor(self.null), self.weight) if self.weight else self.teacher

    @property
    def classes(self) -> list[int]:
        """The labels that are drawn."""
        return [] if self.shares is None else self.shares.nonzero()[:, 0].tolist()

    def labels(self, seeds: Tensor, device: torch.device) -> Tensor | None:
        """The class of each noise, (B,) of seeds (B,); or None."""
        return None if self.shares is None else shared_labels(self.shares)(seeds).to(device)

    def student(self, labels: Tensor | None) -> Cond | None:
        """What the student is told of classes (B,)."""
        if labels is None or not self.guided:
            return labels
        return {"label": labels, "weight": torch.full(labels.shape, self.weight, device=labels.device)}

    def noted(self, result: Result) -> Result:
        """A result whose protocol says it."""
        return replace(result, protocol=replace(result.protocol, told=self.said))


def told_of(
    student: Student, folder: Path | str, teacher: Prediction, ref: str, images: Samples, guidance: float | None = None
) -> Told:
    """What a student and its teacher are told in a comparison on `images`.

    Arguments:
        student: The student.
        folder: Its folder, which notes the weights that it was trained for.
        teacher: Its teacher.
        ref: What that is called.
        images: The data that samples are compared with.
        guidance: The weight; by default the least that the student was trained for.

    Raises:
        ValueError: for a student that is told something else, or was steered; a teacher or data of other classes; a
            weight that it was not trained for, or one of no class; a teacher that cannot be guided.
    """
    if tokens_of(getattr(unwrapped(student.net), "backbone", None)):
        raise ValueError(f"{folder} is told more than a class, a text say, and students are compared by class alone")
    C, notes = student.classes, notes_of(folder)
    if not C:
        if guidance is not None or student.guided:
            raise ValueError(f"{folder} is told no class, and only students of classes are compared under guidance")
        return Told(teacher)
    if "guide" in notes:
        raise ValueError(
            f"{folder} was made of a teacher that a guide steered, whose ODE this is not: look at its samples "
            f"(`dsno sample --student {folder}`)"
        )
    if teacher.classes != C:
        known = f"one of {teacher.classes} classes" if teacher.classes else "no class"
        raise ValueError(f"{ref} is told {known}, and {folder} one of {C}: give its own teacher")
    if images.labels is not None and int(images.labels.max()) >= C:
        raise ValueError(
            f"{images.name} has labels up to {int(images.labels.max())}, and {folder} is told one of {C} classes: give "
            "the data that its teacher was trained on"
        )
    check_class_names(ref, images)
    if guidance is None and notes.get("guided") and not student.guided and "guidance" not in notes:
        raise ValueError(
            f"{folder} was made of a teacher under one weight of guidance, and does not note which: give it, guidance=1"
        )
    weight, null = checked_weight(folder, guidance), null_label(folder)
    null = own_null(teacher) if null is None else check_null(teacher, null, ref)
    if weight and null is None:
        raise ValueError(f"{ref} does not say which label stands for no class, so it cannot be guided: take guidance=0")
    shares = torch.ones(C) if images.labels is None else torch.bincount(images.labels, minlength=C)
    if null is not None and null < C:
        shares[null] = 0
    names = images.names or class_names(ref) or tuple(map(str, range(C)))
    drawn = "evenly" if images.labels is None else f"as often as in {images.name}"
    said = f"classes {drawn}" + (f", guidance weight {weight:g}" if student.guided or weight else "")
    return Told(teacher, shares, names, weight, student.guided, null, said)
