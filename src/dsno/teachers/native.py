"""The library's own teacher folders: a backbone and the convention it was trained with, as `config.json` and weights.

Any teacher whose network is a `Backbone` can be written so, those of other libraries included: what is read back needs
neither the original file nor its format.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from dsno.borrow import unwrapped
from dsno.checkpoint import CONFIG, build, load_model, read_json, save_model
from dsno.data.samples import Samples
from dsno.denoise import Kind, Prediction, Threshold
from dsno.nets.backbone import Backbone, net_from_config
from dsno.schedule import schedule_from_config

__all__ = ["CLASS_NAMES", "check_class_names", "class_names", "load_native", "save_teacher"]

CLASS_NAMES = "class_names"
"""The note that says what the classes of a teacher are called, in the order of their numbers."""


def save_teacher(folder: Path | str, teacher: Prediction, **notes: object) -> Path:
    """Write a teacher whose network is a `Backbone`: `config.json` and `model.safetensors`; `notes` go into the former.

    Raises:
        ValueError: if its network cannot be rebuilt from a configuration, or its weights cannot be written.
    """
    teacher = unwrapped(teacher)
    net = unwrapped(teacher.net)
    if not isinstance(net, Backbone):
        raise ValueError(
            f"a {type(net).__name__} does not say how to rebuild it: give it what `Backbone` asks for, or keep "
            "the module and load its weights yourself"
        )
    clip = dataclasses.asdict(teacher.clip) if isinstance(teacher.clip, Threshold) else teacher.clip
    config = {
        "type": "teacher",
        "schedule": teacher.schedule.config,
        "kind": teacher.kind,
        "clip": clip,
        "data_std": teacher.data_std,
        "net": net.config,
        "notes": notes,
    }
    return save_model(folder, config, teacher.net)


def load_native(folder: Path | str, unchecked: bool = False) -> Prediction:
    """Read what `save_teacher` wrote; `unchecked`, also what was changed since.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the folder holds something else, or damaged or foreign weights, or was changed since it was
            written.
    """

    def make(config: dict[str, Any]) -> tuple[Prediction, nn.Module]:
        return build(_make, config, "the configuration of a teacher")

    return load_model(folder, "teacher", make, unchecked).eval()


def class_names(ref: Path | str) -> tuple[str, ...] | None:
    """What the classes of a teacher are called, as its folder notes it; None where it does not."""
    file = Path(ref) / CONFIG
    config = read_json(file) if file.is_file() else None
    names = config.get("notes", {}).get(CLASS_NAMES) if isinstance(config, dict) else None
    return None if names is None else tuple(names)


def check_class_names(ref: Path | str, images: Samples) -> None:
    """Make sure that a number means the same class in a data set and to a teacher, as far as both name them.

    Raises:
        ValueError: if their names differ.
    """
    known = class_names(ref)
    if None not in (known, images.names) and known != images.names:
        raise ValueError(
            f"{images.name} has the classes {', '.join(images.names or ())}, and {ref} was trained on "
            f"{', '.join(known or ())}: give the same, so that a number means the same class"
        )


def _make(
    schedule: dict[str, object],
    kind: Kind,
    net: dict[str, Any],
    clip: float | dict[str, float] | None = None,
    data_std: float = 1.0,
) -> tuple[Prediction, nn.Module]:
    """A teacher with fresh weights, and the module that they belong into; the arguments are the keys of the file."""
    backbone = net_from_config(net)
    assert isinstance(backbone, Backbone)
    teacher = Prediction(
        backbone,
        schedule_from_config(schedule),
        kind,
        clip=build(Threshold, clip, "the clipping of a teacher") if isinstance(clip, dict) else clip,
        data_std=data_std,
        shape=backbone.shape,
        classes=backbone.classes,
    )
    return teacher, backbone
