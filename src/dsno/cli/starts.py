"""Learned starts on the command line: a start that is trained for what is measured."""

from __future__ import annotations

from pathlib import Path

from dsno.cli.conditions import read_prompts
from dsno.cli.console import progress
from dsno.cli.frozen import load_frozen
from dsno.cli.options import Training
from dsno.cli.problems import Measured
from dsno.cli.words import command
from dsno.condition import Cond
from dsno.data.samples import Samples
from dsno.inverse.decoded import Decoded
from dsno.inverse.start_loss import Shares
from dsno.outputs import check_apart
from dsno.runs.start import train_start
from dsno.teachers.prompts import encode_prompts

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
    prompts: Path | None = None,
) -> str:
    """Train a start of a teacher, or a student, for what was measured. Returns how it restores.

    Raises:
        ValueError: for a teacher of other pictures, or one that is told a text; as `stated` and `train_start` do.
    """
    said, features = measured.stated(), measured.features
    check_apart(out, ref, features, prompts, *said.inputs)
    model = load_frozen(ref)
    if model.tokens != (prompts is not None):
        wanted = "is told a text: give --prompts" if model.tokens else "is told no text: leave out --prompts"
        raise ValueError(f"{ref} {wanted}, a file with the one line that it is told of every picture")
    text = None if prompts is None else _told(ref, prompts)
    if model.latents is None and images.shape != model.shape:
        raise ValueError(f"{images.name} has samples of shape {images.shape}, {ref} makes {model.shape}")
    problem = said.of(images.shape)
    with progress() as report:
        train_start(
            model.denoiser,
            problem if model.latents is None else Decoded(problem, model.latents),
            images,
            out,
            channels,
            config,
            batch,
            shares=Shares(after=config.steps // 10),
            features=features,
            labelled=bool(model.classes),
            told=text,
            resume=resume,
            overwrite=overwrite,
            report=report,
        )
    return command("restore", "PICTURES", teacher=ref, **measured.options(), prompts=prompts, start=out)


def _told(ref: str, prompts: Path) -> Cond:
    """What a text-to-image teacher is told of every picture, (1, ...).

    Raises:
        FileNotFoundError, ValueError: as `read_prompts` and `encode_prompts`; for more than one prompt.
    """
    lines = read_prompts(prompts)
    if len(lines) > 1:
        raise ValueError(f"{prompts} holds {len(lines)} prompts, and a start is trained under one: keep a line")
    return encode_prompts(ref, lines)
