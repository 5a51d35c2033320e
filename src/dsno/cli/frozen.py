"""The model behind a learned start, as the command line names it: a teacher, or a student that makes one pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from dsno.checkpoint import STUDENTS, type_of
from dsno.denoise import Prediction
from dsno.hub import is_hub_id
from dsno.inverse.start import OneJump
from dsno.nets.backbone import sample_shape, tokens_of
from dsno.schedule import Schedule
from dsno.students.origin import open_student, origin_of
from dsno.students.samplers import told_more
from dsno.teachers.latents import Latents, load_decoder
from dsno.teachers.load import load_teacher

__all__ = ["Frozen", "is_student", "load_frozen"]


@dataclass(frozen=True)
class Frozen:
    """A model that stays as it is.

    Attributes:
        denoiser: The teacher, or the student as one.
        shape: The shape of its samples, (C, *spatial).
        kind: What its network predicts.
        classes: How many classes it may be told, or None.
        tokens: Whether it is told a text.
        latents: What makes pictures of the samples, if they are latents.
    """

    denoiser: Prediction | OneJump
    shape: tuple[int, ...]
    kind: str
    classes: int | None = None
    tokens: bool = False
    latents: Latents | None = None

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule


def is_student(ref: str) -> bool:
    """Whether a folder holds a student of any kind."""
    return type_of(ref) in STUDENTS


def load_frozen(ref: str, device: torch.device | str | None = None, variant: str | None = None) -> Frozen:
    """A teacher as `load_teacher` takes it, or the folder of a student; one of latents with its teacher's autoencoder,
    where that lies here.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: as `load_teacher` and `open_student` do.
        ValueError: for a student that needs to be told more than a class: a picture, or a guidance weight.
    """
    if not is_student(ref):
        teacher = load_teacher(ref, None, device, variant=variant)
        tokens, latents = bool(tokens_of(teacher.net)), _latents(ref, device, variant)
        return Frozen(teacher, sample_shape(teacher), teacher.kind, teacher.classes, tokens, latents)
    student = open_student(ref, variant=variant)
    if told_more(student):
        told = "a guidance weight" if student.guided else "a text or a picture"
        raise ValueError(f"{ref} is told {told}, and a start is trained for a class at most: take another student")
    place = None
    if student.shape[0] not in (1, 3):
        place = next((p for p in origin_of(ref).places if (Path(p) / "model_index.json").is_file()), None)
    latents = None if place is None else _latents(place, device, variant)
    jump = OneJump(student.to(device)).eval()
    return Frozen(jump, student.shape, student.kind, student.classes, False, latents)


def _latents(ref: str, device: torch.device | str | None, variant: str | None) -> Latents | None:
    known = Path(ref).is_dir() or is_hub_id(ref)
    latents = load_decoder(ref, variant=variant) if known else None
    return None if latents is None else latents.to(device)
