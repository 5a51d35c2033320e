"""Learned starts on the command line: what is measured, and a start that is trained for it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from dsno.borrow import unwrapped
from dsno.cli.console import progress
from dsno.cli.options import Training
from dsno.cli.problems import stated
from dsno.cli.words import command, flag
from dsno.data.samples import Samples
from dsno.hub import is_hub_id
from dsno.inverse.decoded import Decoded
from dsno.inverse.start_loss import Shares
from dsno.nets.backbone import Backbone, sample_shape
from dsno.outputs import check_apart
from dsno.runs.start import train_start
from dsno.teachers.latents import load_decoder
from dsno.teachers.load import load_teacher

__all__ = ["AsMeasured", "Measured", "teach_start"]


@dataclass(frozen=True)
class Measured:
    """What was measured of the pictures that a start is for, as `restore` says it."""

    problem: Literal["inpaint", "super", "deblur", "gray"] = "super"
    """With --start, what happened to the pictures: parts are missing, pixels are (super), they are blurred by a kernel
    that is known (deblur), or have lost their colour."""
    mask: Path | None = None
    """Of inpaint: a picture, white where they are seen and black where not, or an .npy array of 1 and 0."""
    box: float | None = None
    """Of inpaint: a box in the middle is missing, this share of each side."""
    half: Literal["right", "bottom"] | None = None
    """Of inpaint: this half is missing."""
    random: float | None = None
    """Of inpaint: this share of the pixels is missing, those that `restore --seed 0` misses."""
    factor: int | None = None
    """Of super: how many times more pixels a side is to have; 4 by default."""
    resize: Literal["average", "bicubic"] | None = None
    """Of super: how the pixels were lost, as means of blocks (by default) or by bicubic resizing."""
    kernel: Path | None = None
    """Of deblur: the kernel, an .npy array (h, w)."""
    border: Literal["circular", "zero"] | None = None
    """Of deblur: what was beyond the border, the other side (by default) or a middle grey."""
    noise: float = 0.0
    """With --start, the standard deviation of the noise in what was measured, of pixels in [-1, 1]."""
    features: Path | None = None
    """With --start, the folder of a feature network: the loss has a perceptual part then."""

    def given(self) -> list[str]:
        """The flags that were given."""
        usual = Measured()
        names = [field.name for field in dataclasses.fields(self)]
        return [flag(name) for name in names if getattr(self, name) != getattr(usual, name)]


AsMeasured = Annotated[Measured, arg(name="")]
"""Options of a verb that trains a start, `--problem` and the like."""


def teach_start(
    ref: str,
    images: Samples,
    measured: Measured,
    out: Path,
    channels: tuple[int, ...],
    config: Training,
    batch: int,
    resume: bool,
    overwrite: bool,
) -> str:
    """Train a start of a teacher for what was measured. Returns how it restores.

    Raises:
        ValueError: for a teacher of other pictures, or one that is told a text; as `stated` and `train_start` do.
    """
    asked = dataclasses.asdict(measured)
    name, noise, features = asked.pop("problem"), asked.pop("noise"), asked.pop("features")
    said = stated(name, noise, 0, False, asked)
    check_apart(out, ref, features, *said.inputs)
    teacher = load_teacher(ref)
    latents = load_decoder(ref) if Path(ref).is_dir() or is_hub_id(ref) else None
    net = unwrapped(teacher.net)
    if isinstance(net, Backbone) and net.tokens:
        raise ValueError(f"{ref} is told a text, and a start is trained on images alone: take another teacher")
    if latents is None and images.shape != sample_shape(teacher):
        raise ValueError(f"{images.name} has samples of shape {images.shape}, {ref} makes {sample_shape(teacher)}")
    problem = said.of(images.shape)
    with progress() as report:
        train_start(
            teacher,
            problem if latents is None else Decoded(problem, latents),
            images,
            out,
            channels,
            config,
            batch,
            shares=Shares(after=config.steps // 10),
            features=features,
            labelled=bool(teacher.classes),
            resume=resume,
            overwrite=overwrite,
            report=report,
        )
    told = {option: value for option, value in said.options.items() if asked[option] is not None}
    return command(
        "restore", "PICTURES", teacher=ref, problem=name, **told, noise=f"{noise:g}" if noise else None, start=out
    )
