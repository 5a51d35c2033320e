"""Training of a teacher: a network and the convention that it is trained with, from a data set to a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsno.data.classes import said_of_gaps
from dsno.data.samples import Samples, check_samples
from dsno.denoise import Kind, Prediction
from dsno.distillation.denoising import Denoising
from dsno.nets.unet import UNet
from dsno.outputs import TEACHER, claimed
from dsno.schedule import Cosine, Schedule
from dsno.snapshots import changes_of
from dsno.teachers.native import CLASS_NAMES, save_teacher
from dsno.train import Report, TrainConfig, check_finished, quiet, stage_progress, train

__all__ = ["teach"]


def teach(
    images: Samples,
    out: Path | str,
    channels: tuple[int, ...] = (32, 64),
    config: TrainConfig = TrainConfig(),  # noqa: B008 (frozen)
    batch: int = 128,
    kind: Kind = "v",
    schedule: Schedule | None = None,
    conditional: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    report: Report = quiet,
    clip: float | None = None,
    drop: float = 0.0,
    net: nn.Module | None = None,
    **options: Any,
) -> Prediction:
    """Train a teacher on a data set and write it to `out`; see `Denoising` and `train`.

    Arguments:
        images: The data.
        out: The teacher's folder.
        channels: Widths of a small `UNet`, highest resolution first.
        config: How to train.
        batch: Samples per step.
        kind: What the network predicts.
        schedule: The noise schedule; cosine by default.
        conditional: Train on the labels too; what the classes are called is noted in the folder's `config.json`.
        resume: Continue what is in `out`, of the same settings.
        overwrite: Throw away what an earlier run wrote to `out`.
        report: Told of the progress.
        clip: Bound on the teacher's predictions; its training has none.
        drop: Share of the labels that a conditional U-Net is not told, so that it can be guided: its null label is the
            number of classes.
        net: A backbone to train instead of a U-Net.
        options: Further arguments of the `UNet` (`attention`, `patch`, `padding_mode`, ...).

    Raises:
        BlockingIOError: if another run is writing to `out`.
        FileExistsError: if `out` has something in it and neither `resume` nor `overwrite` is set, or holds
            anything but a teacher.
        ValueError: if the samples do not fit the network, or its patches its channels, or if there are no labels
            although `conditional`; if `out` holds a teacher of other settings that is to be resumed.
    """
    schedule = Cosine() if schedule is None else schedule
    check_samples(images.x, images.name)
    if conditional and images.labels is None:
        raise ValueError(f"{images.name} has no labels: train an unconditional teacher")
    labels = images.labels if conditional else None
    classes = images.classes if conditional else None
    torch.manual_seed(config.seed)
    if net is None:
        C, *spatial = images.shape
        square = len(spatial) == 2 and spatial[0] == spatial[1]
        size = spatial[0] if square else spatial
        net = UNet(C, size, channels, classes=classes, null=drop > 0, **options)
    if isinstance(net, UNet) and kind != "x0":
        _check_patch(net, images.shape, kind)
    objective = Denoising(images.x, schedule, kind, labels, batch, config.seed, classes, drop)
    settings = {
        "images": images.name,
        "count": len(images),
        "conditional": conditional,
        "kind": kind,
        "schedule": schedule.config,
        "batch": batch,
        "drop": drop,
        **options,
    }
    out, training = Path(out), Path(out) / "training"
    with claimed(out, TEACHER, resume, overwrite):
        if resume:
            check_finished(out, config, config.steps)
        if labels is not None and classes is not None and (gaps := said_of_gaps(labels, classes)):
            report("teach", 0, config.steps, gaps)
        progress = stage_progress("teach", report)
        # What was to be overwritten is gone.
        train(net, objective, config, training, resume=True, progress=progress, settings=settings)
        teacher = Prediction(net, schedule, kind, clip=clip, shape=images.shape, classes=classes).eval()
        units = dataclasses.asdict(images.units)
        notes: dict[str, Any] = {"images": images.name, "units": units, "training": dataclasses.asdict(config)}
        if changes := changes_of(training):
            notes["changes"] = changes
        if conditional and images.names is not None:
            notes[CLASS_NAMES] = list(images.names)
        save_teacher(out, teacher, **notes, batch=batch)
    return teacher


def _check_patch(net: UNet, shape: tuple[int, ...], kind: Kind) -> None:
    """Make sure that noise passes through the first channels: x0 alone may be of fewer numbers than a patch."""
    C, *spatial = shape
    cell, first = C * net.patch ** len(spatial), net.config["channels"][0]
    if cell > first:
        raise ValueError(
            f"a patch of {cell} numbers does not pass through {first} channels, and the noise that a network of kind "
            f"{kind!r} cannot pass stays in its samples: take {cell} or more as the first of `channels`, a smaller "
            "`patch`, or the kind 'x0'"
        )
