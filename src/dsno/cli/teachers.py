"""Verbs about teachers: train one, check one, bring one into the library's own form."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from dsno.cli.console import progress, say, show_verdict
from dsno.train import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from dsno import schedule
    from dsno.condition import Cond
    from dsno.denoise import Prediction

__all__ = ["CheckTeacher", "Convert", "Teach", "Teacher", "device_of", "new_file", "null_of"]


@dataclass(frozen=True)
class Teacher:
    """Options of every verb that runs a teacher."""

    teacher: str = "runs/teacher"
    """The teacher: a folder of dsno or diffusers, an EDM *.pkl, module:attribute, file.py:attribute, or a Hub id."""
    device: str | None = None
    """Where to run it; the accelerator if there is one, else the CPU."""

    def load(self, dtype: str | None = None) -> Prediction:
        """The teacher on its device."""
        from dsno.teachers.load import load_teacher

        return load_teacher(self.teacher, dtype, device_of(self.device))


def device_of(name: str | None) -> torch.device:
    """The device that is meant; by default the accelerator if there is one, else the CPU.

    Raises:
        ValueError: if the machine has no such device.
    """
    import torch

    from dsno.teachers.load import check_dtype

    if name is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device("cpu") if found is None else found
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: expected cpu, cuda, cuda:1, mps, ...") from None
    check_dtype(None, device)
    return device


def null_of(ref: str, teacher: Prediction, null: int | None) -> Cond:
    """What stands for no condition: the given label, or what a diffusers model says of itself.

    Raises:
        ValueError: if neither says.
    """
    import torch

    if null is not None:
        return torch.tensor(null)
    if type(teacher.net).__name__ == "DiffusersNet":
        from dsno.teachers.prompts import null_cond

        return null_cond(ref)
    raise ValueError(
        f"{ref} does not say which label stands for none: give it, --null {teacher.classes or 0}, if the network was trained "
        "with one"
    )


@dataclass(frozen=True)
class CheckTeacher(Teacher):
    """Verify a teacher before hours are spent on it; exit code 1 if it fails.

    In Python:

        from dsno import load_teacher
        from dsno.teachers.check.run import check_teacher
        from dsno.data.load import load_data
        print(check_teacher(load_teacher("runs/teacher"), load_data("digits").x))
    """

    teacher: Positional[str] = "runs/teacher"
    """The teacher: a folder of dsno or diffusers, an EDM *.pkl, module:attribute, file.py:attribute, or a Hub id."""
    data: str | None = None
    """What it was trained on, as `teach --data`; its own samples by default, which is weaker."""
    size: int | None = None
    """Resize the images of --data to this many pixels a side."""
    dtype: str | None = None
    """Load its network in this dtype: float32, bf16, fp16."""
    levels: int = 12
    """Noise levels to denoise at."""
    rows: int | None = None
    """Samples at each level; 64 by default, 16 of a slow teacher."""
    patience: float = 60.0
    """Seconds after which no other convention is tried any more."""
    seed: int = 0
    """Determines the samples and the noise."""
    out: Path | None = None
    """Write the verdict as JSON, too."""
    overwrite: bool = False
    """Replace --out if it exists."""

    def run(self) -> int:
        from dsno.checkpoint import write_json
        from dsno.data.load import load_data
        from dsno.teachers.check.run import check_teacher

        began = time.perf_counter()
        if self.out is not None:
            new_file(self.out, self.overwrite)
        teacher = self.load(self.dtype)
        samples = None if self.data is None else load_data(self.data, size=self.size)
        x, cond = (None, None) if samples is None else (samples.x, samples.labels)
        if samples is not None and teacher.shape is not None and samples.shape != teacher.shape:
            raise ValueError(f"{self.data} has samples of shape {samples.shape}, the teacher makes {teacher.shape}")
        if cond is not None and teacher.classes is not None and int(cond.max()) >= teacher.classes:
            raise ValueError(f"{self.data} has labels up to {int(cond.max())}, the teacher {teacher.classes} classes")
        verdict = check_teacher(
            teacher, x, cond if teacher.classes else None, self.seed, self.levels, self.rows, self.patience
        )
        if self.out is not None:
            write_json(self.out, verdict.to_dict())
        show_verdict(verdict)
        if verdict.ok:
            say(f"checked in {time.perf_counter() - began:.0f} s", f"dsno generate --teacher {self.teacher}")
        return 0 if verdict.ok else 1


def new_file(path: Path, overwrite: bool) -> None:
    """Make sure that a file may be written, before any work.

    Raises:
        FileExistsError: if it exists and is not to be replaced.
        PermissionError: if its folder cannot be written to.
    """
    from dsno.checkpoint import prepare_folder

    if path.is_dir():
        raise FileExistsError(f"{path} is a folder: name a file")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already: pass --overwrite to replace it")
    prepare_folder(path.parent, resume=True)


@dataclass(frozen=True)
class Convert:
    """Write any teacher as a folder of the library's own: config.json and safetensors, nothing else needed to read it.

    In Python:

        from dsno import load_teacher, save_teacher
        save_teacher("runs/teacher", load_teacher("digits"))
    """

    ref: Positional[str]
    """The teacher: a folder of dsno or diffusers, an EDM *.pkl, module:attribute, file.py:attribute, or a Hub id."""
    out: Path = Path("runs/teacher")
    """Folder for it."""
    dtype: str | None = None
    """Store its network in this dtype: float32, bf16, fp16."""
    overwrite: bool = False
    """Throw away what is in --out."""

    def run(self) -> None:
        from dsno.checkpoint import prepare_folder
        from dsno.nets.backbone import Backbone
        from dsno.teachers.load import load_teacher
        from dsno.teachers.native import save_teacher

        teacher = load_teacher(self.ref, self.dtype)
        if not isinstance(teacher.net, Backbone) or teacher.time is not None:
            own = "has time units of its own" if teacher.time is not None else "does not say how to rebuild it"
            raise ValueError(
                f"the {type(teacher.net).__name__} of {self.ref} {own}: it cannot be converted, use it as it is"
            )
        prepare_folder(self.out, overwrite=self.overwrite)
        save_teacher(self.out, teacher, source=self.ref)
        say(f"teacher in {self.out}", f"dsno check-teacher {self.out}")


@dataclass(frozen=True)
class Teach:
    """Train a small diffusion teacher on an image set.

    In Python:

        from dsno.data.load import load_data
        from dsno.runs.teach import teach
        from dsno.train import TrainConfig
        teacher = teach(load_data("digits"), "runs/teacher", config=TrainConfig(steps=5000, lr=1e-3))
    """

    data: str = "digits"
    """Image set: digits, a folder of PNG or JPEG files, an .npy or .npz array, or an idx file."""
    out: Path = Path("runs/teacher")
    """Folder for the teacher."""
    channels: tuple[int, ...] = (32, 64)
    """U-Net widths, highest resolution first; each level halves the image."""
    kind: Literal["x0", "eps", "v", "flow"] = "v"
    """What the network predicts."""
    schedule: Literal["cosine", "flow", "linear"] = "cosine"
    """Noise schedule: the paper's cosine, rectified flow, or DDPM's linear beta."""
    conditional: bool = False
    """Train on the labels too."""
    batch: int = 128
    """Images per step."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=5000, lr=1e-3, warmup=200))
    resume: bool = False
    """Continue from the last checkpoint in --out."""
    overwrite: bool = False
    """Throw away what is in --out."""

    def run(self) -> None:
        from dsno import schedule
        from dsno.data.load import load_data
        from dsno.runs.teach import teach

        path: dict[str, Callable[[], schedule.Schedule]] = {
            "cosine": schedule.Cosine, "flow": schedule.RectifiedFlow, "linear": schedule.linear_beta
        }  # fmt: skip
        images = load_data(self.data)
        with progress() as report:
            teach(
                images, self.out, self.channels, self.train, self.batch, self.kind, path[self.schedule](),
                self.conditional, self.resume, self.overwrite, report,
            )  # fmt: skip
        say(f"teacher in {self.out}", f"dsno generate --teacher {self.out}")
