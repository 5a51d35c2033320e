"""The library's own teacher folders: a backbone and the convention it was trained with, as `config.json` and weights.

Any teacher whose network is a `Backbone` can be written so, those of other libraries included: what is read back needs
neither the original file nor its format.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from dsno.checkpoint import build, load_model, save_model
from dsno.denoise import Kind, Prediction, Threshold
from dsno.nets.backbone import Backbone, net_from_config
from dsno.schedule import schedule_from_config

__all__ = ["load_native", "sample_shape", "save_teacher"]


def save_teacher(folder: Path | str, teacher: Prediction, **notes: object) -> Path:
    """Write a teacher whose network is a `Backbone`: `config.json` and `model.safetensors`; `notes` go into the former.

    Raises:
        ValueError: if its network cannot be rebuilt from a configuration.
    """
    if not isinstance(teacher.net, Backbone):
        raise ValueError(
            f"a {type(teacher.net).__name__} does not say how to rebuild it: give it what `Backbone` asks for, or keep "
            "the module and load its weights yourself"
        )
    clip = dataclasses.asdict(teacher.clip) if isinstance(teacher.clip, Threshold) else teacher.clip
    config = {
        "type": "teacher", "schedule": teacher.schedule.config, "kind": teacher.kind, "clip": clip,
        "data_std": teacher.data_std, "net": teacher.net.config, "notes": notes,
    }  # fmt: skip
    return save_model(folder, config, teacher.net)


def load_native(folder: Path | str) -> Prediction:
    """Read what `save_teacher` wrote.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the folder holds something else, or damaged or foreign weights.
    """
    return load_model(folder, "teacher", lambda config: build(_make, config, "the configuration of a teacher")).eval()


def sample_shape(teacher: Prediction) -> tuple[int, ...]:
    """The shape (C, *spatial) of what a teacher makes.

    Raises:
        ValueError: if the teacher does not say.
    """
    shape = teacher.shape
    if shape is None and isinstance(teacher.net, Backbone):
        shape = teacher.net.shape
    if shape is None:
        raise ValueError(
            f"a {type(teacher.net).__name__} does not say what shape it makes: pass shape=(C, ...) to Prediction"
        )
    return shape


def _make(
    schedule: dict[str, object],
    kind: Kind,
    net: dict[str, Any],
    clip: float | dict[str, float] | None = None,
    data_std: float = 1.0,
) -> tuple[Prediction, nn.Module]:
    made = net_from_config(net)
    assert isinstance(made, Backbone)
    bound = build(Threshold, clip, "the clipping of a teacher") if isinstance(clip, dict) else clip
    path = schedule_from_config(schedule)
    teacher = Prediction(
        made, path, kind, clip=bound, data_std=data_std, shape=made.shape, classes=made.classes
    )  # fmt: skip
    return teacher, made
