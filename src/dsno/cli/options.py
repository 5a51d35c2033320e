"""What several verbs ask for: a teacher, a device, a file to write, a share of the work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from tyro.conf import arg

from dsno.outputs import check_apart, writable
from dsno.teachers.load import check_dtype
from dsno.train import TrainConfig

__all__ = ["Device", "Refused", "TeacherRef", "Training", "Variant", "device_of", "launched", "new_file"]

TeacherRef = Annotated[
    str,
    arg(
        help="The teacher: a folder of dsno or diffusers, an EDM *.pkl, module:attribute, file.py:attribute, or a Hub "
        "id."
    ),
]
"""A teacher, as `dsno.teachers.load.load_teacher` takes it."""

Variant = Annotated[str | None, arg(help="The variant of a diffusers model's weights: fp16, say.")]
"""A variant, as `load_teacher` takes it."""

Device = Annotated[str | None, arg(help="Where to run it; the accelerator if there is one, else the CPU.")]
"""A device, as `device_of` takes it."""


class Refused(Exception):
    """A value on the command line that cannot be, said in a line: of a ValueError the parser makes a box of its own."""


@dataclass(frozen=True)
class Training(TrainConfig):
    """How to train."""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise Refused(f"--train.{error}") from None


def device_of(name: str | None) -> torch.device:
    """The device that is meant; by default the accelerator if there is one, else the CPU.

    Raises:
        ValueError: if the machine has no such device.
    """
    if name is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device("cpu") if found is None else found
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: expected cpu, cuda, cuda:1, mps, ...") from None
    check_dtype(None, device)
    return device


def new_file(path: Path, overwrite: bool, *inputs: object) -> None:
    """Make sure that a file may be written, before any work.

    Raises:
        FileExistsError: if it exists and is not to be replaced, or is one of the `inputs`.
        PermissionError: if its folder cannot be written to.
    """
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder: name a file")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already: pass --overwrite to replace it")
    check_apart(path, *inputs)
    writable(path.parent)


def launched() -> Any:
    """The `accelerate.Accelerator` of a process that `accelerate launch` started beside others, or None."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from accelerate import Accelerator

    return Accelerator(cpu=not torch.cuda.is_available())
