"""Training of a teacher on a data set."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsno import schedule
from dsno.data.samples import Samples, check_samples
from dsno.denoise import Kind, Prediction
from dsno.distillation.denoising import Denoising
from dsno.nets.unet import UNet
from dsno.teachers.native import save_teacher
from dsno.train import Report, TrainConfig, prepare_run, quiet, stage_progress, train

__all__ = ["teach"]


def teach(
    images: Samples,
    out: Path | str,
    channels: tuple[int, ...] = (32, 64),
    config: TrainConfig = TrainConfig(),  # noqa: B008 (frozen)
    batch: int = 128,
    kind: Kind = "v",
    path: schedule.Schedule | None = None,
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

    The network is a small `UNet` of the given `channels` and `options` (`attention`, `patch`, `padding_mode`, ...), or the
    backbone `net`. The teacher's predictions are bounded by `clip`, its training is not. With `drop` a conditional U-Net is
    not told that share of the labels, and can be guided: its null label is the number of classes.

    Raises:
        ValueError: if the samples do not fit the network, or its patches its channels, or if there are no labels although
            `conditional`.
    """
    path = schedule.Cosine() if path is None else path
    check_samples(images.x, images.name)
    if conditional and images.labels is None:
        raise ValueError(f"{images.name} has no labels: train an unconditional teacher")
    C, *spatial = images.shape
    square = len(spatial) == 2 and spatial[0] == spatial[1]
    torch.manual_seed(config.seed)
    labels = images.labels if conditional else None
    classes = int(labels.max()) + 1 if labels is not None else None
    if net is None:
        size = spatial[0] if square else spatial
        net = UNet(C, size, channels, classes=classes, null=drop > 0, **options)
    if isinstance(net, UNet) and kind != "x0":
        cell, first = C * net.patch ** len(spatial), net.config["channels"][0]
        if cell > first:
            raise ValueError(
                f"a patch of {cell} numbers does not pass through {first} channels, and the noise that a network of kind "
                f"{kind!r} cannot pass stays in its samples: take {cell} or more as the first of `channels`, a smaller "
                "`patch`, or the kind 'x0'"
            )
    objective = Denoising(images.x, path, kind, labels, batch, config.seed, classes, drop)
    settings = {
        "images": images.name, "count": len(images), "conditional": conditional, "kind": kind, "schedule": path.config,
        "batch": batch, "drop": drop, **options,
    }  # fmt: skip
    prepare_run(out, resume, overwrite)
    train(
        net, objective, config, Path(out) / "training", resume, overwrite, progress=stage_progress("teach", report),
        settings=settings,
    )  # fmt: skip
    teacher = Prediction(net, path, kind, clip=clip, shape=images.shape, classes=classes).eval()
    units = dataclasses.asdict(images.units)
    save_teacher(out, teacher, images=images.name, units=units, training=dataclasses.asdict(config), batch=batch)
    return teacher
