"""Teachers trained by this library: a U-Net and the convention it was trained with, in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from dsno.checkpoint import build, load_model, save_model
from dsno.denoise import Kind, Prediction
from dsno.schedule import schedule_from_config
from dsno.teachers.unet import UNet

__all__ = ["image_shape", "load_teacher", "save_teacher"]


def save_teacher(folder: Path | str, teacher: Prediction, **notes: object) -> Path:
    """Write a `UNet` teacher: `config.json` and `model.safetensors`; `notes` go into the former."""
    config = {
        "type": "teacher", "schedule": teacher.schedule.config, "kind": teacher.kind, "clip": teacher.clip,
        "net": teacher.net.config, "notes": notes,
    }  # fmt: skip
    return save_model(folder, config, teacher.net)


def load_teacher(folder: Path | str) -> Prediction:
    """Read what `save_teacher` wrote.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the folder holds something else, or damaged or foreign weights.
    """
    return load_model(folder, "teacher", lambda config: build(_make, config, "the configuration of a teacher")).eval()


def image_shape(net: nn.Module) -> tuple[int, int, int]:
    """The (C, H, W) a `UNet` makes.

    Raises:
        ValueError: for another network.
    """
    if not isinstance(net, UNet):
        raise ValueError(f"a {type(net).__name__} does not say what shape it makes: expected a UNet")
    return net.shape


def _make(
    schedule: dict[str, object], kind: Kind, net: dict[str, Any], clip: float | None = None
) -> tuple[Prediction, UNet]:
    made = build(UNet, net)
    return Prediction(made, schedule_from_config(schedule), kind, clip=clip), made
