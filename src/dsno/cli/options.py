"""What several verbs ask for: a teacher, a device, a file to write, a share of the work."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from dsno.cli.words import flag
from dsno.outputs import BUILT_IN, check_apart, writable
from dsno.runs.shipped import shipped
from dsno.teachers.load import check_dtype
from dsno.train import TrainConfig

if TYPE_CHECKING:
    from dsno.data.samples import Samples

__all__ = [
    "TAUGHT",
    "AsRead",
    "Device",
    "Reading",
    "Refused",
    "StudentFolder",
    "TeacherRef",
    "Training",
    "Variant",
    "device_of",
    "launched",
    "new_file",
]

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

StudentFolder = Annotated[
    Path,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda given: shipped(given[0]) / "student" if given[0] in BUILT_IN else Path(given[0]),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""The folder of a student; `digits` and `digits-classes` are those that ship with the package."""

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


TAUGHT: dict[str, Any] = {"steps": 5000, "lr": 1e-3, "warmup": 200}
"""How `dsno teach` trains, and `dsno plan` plans it."""


@dataclass(frozen=True)
class Reading:
    """How image sets and arrays are read."""

    size: int | None = None
    """Resize images to this many pixels a side."""
    crop: tuple[int, ...] = ()
    """Take the middle of each sample, so many points in each direction; one number is that of all."""
    range: tuple[float, float] | None = None
    """LOW HIGH of the numbers in an array of images, 0 1 say, where they leave it open; -1 1 takes them as they are."""
    scale: Literal["range", "std"] | None = None
    """Standardise each channel: its range to [-1, 1], or to mean 0 and standard deviation 1."""
    key: str | None = None
    """Which array of an .npz or .zarr file, or which column of a dataset, where there are several."""
    channels_first: bool = False
    """An array has its channels first, (N, C, *spatial)."""
    channels_last: bool = False
    """An array has its channels last, (N, *spatial, C)."""
    channels_none: bool = False
    """An array has no channels, (N, *spatial)."""

    def load(self, source: str) -> Samples:
        """The data set.

        Raises:
            FileNotFoundError, ValueError, ...: as `load_data` does; also for two places of the channels.
        """
        from dsno.data.load import Channels, load_data

        places: tuple[Channels, ...] = ("first", "last", "none")
        named = [place for place in places if getattr(self, f"channels_{place}")]
        if len(named) > 1:
            raise ValueError(f"--channels-{named[0]} and --channels-{named[1]} exclude each other: leave one out")
        return load_data(
            source,
            channels=named[0] if named else None,
            scale=self.scale,
            size=self.size,
            key=self.key,
            range=self.range,
            crop=self.crop or None,
        )

    def given(self) -> list[str]:
        """The options that were given, as the command line has them."""
        return [flag(name) for name in self._changed()]

    def options(self, source: str) -> dict[str, object]:
        """The options that read `source` again alike, by name."""
        return {"data": source, **{name: getattr(self, name) for name in self._changed()}}

    def _changed(self) -> list[str]:
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]


AsRead = Annotated[Reading, arg(name="")]
"""Options of a verb that reads data, `--size` and the like."""


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
