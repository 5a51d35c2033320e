"""Learned starts on the command line: a start that is trained for what is measured."""

from __future__ import annotations

from pathlib import Path

import torch

from dsno.cli.conditions import prompts_by_seed
from dsno.cli.console import progress
from dsno.cli.frozen import load_frozen
from dsno.cli.options import Training
from dsno.cli.problems import Measured
from dsno.cli.words import command
from dsno.condition import Cond
from dsno.data.samples import Samples
from dsno.inverse.decoded import Decoded
from dsno.inverse.start_loss import Shares
from dsno.listing import read_text
from dsno.outputs import check_apart
from dsno.runs.start import train_start

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
        FileNotFoundError, ValueError: as `prompts_by_seed`; for more than one prompt.
    """
    by_seed = prompts_by_seed(ref, prompts)
    if (lines := len([line for line in read_text(prompts).split("\n") if line.strip()])) > 1:
        raise ValueError(f"{prompts} holds {lines} prompts, and a start is trained under one: keep a line")
    return by_seed(torch.zeros(1, dtype=torch.int64))
