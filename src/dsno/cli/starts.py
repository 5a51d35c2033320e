"""Learned starts on the command line: a start that is trained for what is measured."""

from __future__ import annotations

from pathlib import Path

from dsno.borrow import unwrapped
from dsno.cli.console import progress
from dsno.cli.options import Training
from dsno.cli.problems import Measured
from dsno.data.samples import Samples
from dsno.hub import is_hub_id
from dsno.inverse.decoded import Decoded
from dsno.inverse.start_loss import Shares
from dsno.nets.backbone import Backbone, sample_shape
from dsno.outputs import check_apart
from dsno.runs.start import train_start
from dsno.teachers.latents import load_decoder
from dsno.teachers.load import load_teacher

__all__ = ["teach_start"]


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
    said, features = measured.stated(), measured.features
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
    return f"dsno restore PICTURES --teacher {ref} {measured.words()} --start {out}"
