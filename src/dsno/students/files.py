"""Students on disk: one function that saves and one that loads, whatever kind a student is."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsno.checkpoint import CONFIG, build, load_model, read_json, save_model
from dsno.denoise import Kind, Prediction
from dsno.nets.backbone import Backbone, example, net_from_config
from dsno.schedule import schedule_from_config
from dsno.students.blocks import Told
from dsno.students.flowmap import FlowMap, TwoTime, Way, two_time
from dsno.students.lift import Lifted, Plan, install, lift
from dsno.students.operator import Target, TrajectoryStudent
from dsno.students.samplers import Student
from dsno.students.temporal import Activation

__all__ = ["build_student", "load_any", "load_flow_map", "load_student", "save_flow_map", "save_student"]


def save_student(folder: Path | str, student: TrajectoryStudent, adapter_only: bool = False, **notes: object) -> Path:
    """Write a student: `config.json` and `model.safetensors`; `notes` go into the former.

    With `adapter_only`, only what lifting added to the teacher, and a fingerprint of the teacher's weights.

    Raises:
        ValueError: if only the adapter is to be written of a student whose backbone is trained, too.
    """
    config = {"type": "student", **student.config, "notes": notes}
    if not adapter_only:
        return save_model(folder, config, student)
    added = student.net.added()
    own = set(added.parameters())
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and parameter not in own:
            raise ValueError(
                f"{name} is trained, too: freeze the backbone before training (`freeze_backbone`), or save the whole student"
            )
    return save_model(folder, {**config, "type": "adapter", "teacher": _fingerprint(student.net)}, added)


def load_student(
    folder: Path | str, backbone: nn.Module | None = None, teacher: Prediction | None = None
) -> TrajectoryStudent:
    """Read what `save_student` wrote.

    Arguments:
        folder: What `save_student` wrote.
        backbone: A network like the one that was lifted, where that was no `Backbone`; lifted in place.
        teacher: The teacher that an adapter belongs to; its network is copied.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the folder holds something else, or damaged or foreign weights; if it needs a backbone or a teacher
            and there is none, or the teacher is another.
    """
    folder = Path(folder)
    if teacher is None:
        config = read_json(folder / CONFIG)
        if isinstance(config, dict) and config.get("type") == "adapter":
            raise ValueError(f"{folder} holds an adapter: pass the teacher it belongs to, load_student(..., teacher=)")

        def whole(config: dict[str, Any]) -> tuple[TrajectoryStudent, nn.Module]:
            student = build_student(config, backbone)
            return student, student

        return load_model(folder, "student", whole).eval()
    net = copy.deepcopy(teacher.net)

    def adapter(config: dict[str, Any]) -> tuple[TrajectoryStudent, nn.Module]:
        expected = config.pop("teacher", None)
        student = build_student(config, net)
        if _fingerprint(student.net) != expected:
            raise ValueError(f"{folder} is the adapter of another teacher: the weights of the one given differ")
        student.net.freeze_backbone()
        return student, student.net.added()

    return load_model(folder, "adapter", adapter).eval()


def _fingerprint(net: Lifted) -> str:
    """sha256 of the backbone's weights: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    added = tuple(f"{name}." for name in net.temporal_layers())
    for name, value in sorted(net.backbone.state_dict().items()):
        if not name.startswith(added):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def build_student(config: Mapping[str, Any], backbone: nn.Module | None = None) -> TrajectoryStudent:
    """The student a configuration describes, with fresh weights, or around the given backbone, lifted in place.

    Raises:
        ValueError: for an unknown key, with the nearest known one, or a missing one; or if it needs a backbone.
    """
    described = {k: v for k, v in config.items() if k not in ("type", "notes")}
    if backbone is None and "backbone" in config and config["backbone"] is None:
        raise ValueError(
            "the backbone of this student is no `Backbone` and cannot be rebuilt from a configuration: pass one like it, "
            "load_student(..., backbone=)"
        )
    return build(_student, {**described, "net": backbone}, "the configuration of a student")


def _student(
    schedule: dict[str, object],
    times: Sequence[float],
    target: Target,
    kind: Kind,
    backbone: dict[str, Any],
    lift: dict[str, Any],
    data_std: float = 1.0,
    shape: Sequence[int] | None = None,
    classes: int | None = None,
    restarts: bool = False,
    net: nn.Module | None = None,
) -> TrajectoryStudent:
    lifted = _lift_again(net_from_config(backbone) if net is None else net, lift)
    path = schedule_from_config(schedule)
    return TrajectoryStudent(lifted, path, times, target, kind, data_std, shape, classes, restarts)


def _lift_again(net: nn.Module, config: Mapping[str, Any]) -> Lifted:
    if "phases" in config or not isinstance(net, Backbone):
        return install(net, build(Plan, config, "the configuration of a lift"))
    # Students of version 0.1 name the blocks with temporal layers alone.
    return build(_lift_named, {"net": net, **config}, "the configuration of a lift")


def _lift_named(
    net: nn.Module,
    temporal: Sequence[str],
    frames: int,
    modes: int,
    once: bool,
    activation: Activation,
    channel_dim: int,
    told: Told,
) -> Lifted:
    assert isinstance(net, Backbone)
    where: Any = (lambda name, shape: name in temporal) if temporal else "none"
    arguments = example(net, next(net.parameters()))
    return lift(net, arguments, net.blocks, frames, modes, where, once, activation, channel_dim=channel_dim, told=told)


def save_flow_map(folder: Path | str, made: FlowMap, **notes: object) -> Path:
    """Write a flow map of a `Backbone`: `config.json` and `model.safetensors`; `notes` go into the former.

    Raises:
        ValueError: if its network cannot be rebuilt from a configuration.
    """
    net = made.net
    if not isinstance(net, TwoTime) or not isinstance(net.backbone, Backbone):
        raise ValueError(
            f"a flow map of a {type(net).__name__} cannot be rebuilt from a file: save its state_dict yourself"
        )
    config = {
        "type": "flow map", "schedule": made.schedule.config, "kind": made.kind, "data_std": made.data_std,
        "backbone": net.backbone.config, "guidance": net.guidance is not None, "way": made.way, "steps": made.steps,
        "notes": notes,
    }  # fmt: skip
    return save_model(folder, config, made)


def load_flow_map(folder: Path | str) -> FlowMap:
    """Read what `save_flow_map` wrote.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the folder holds something else, or damaged or foreign weights.
    """

    def make(config: dict[str, Any]) -> tuple[FlowMap, nn.Module]:
        made = build(_flow_map, config, "the configuration of a flow map")
        return made, made

    return load_model(folder, "flow map", make).eval()


def _flow_map(
    schedule: dict[str, object],
    kind: Kind,
    data_std: float,
    backbone: dict[str, Any],
    guidance: bool,
    way: Way = "any",
    steps: int | None = None,
) -> FlowMap:
    net = two_time(net_from_config(backbone), guidance)
    return FlowMap(net, schedule_from_config(schedule), kind, data_std, way, steps)


def load_any(folder: Path | str) -> Student:
    """Read what `save_student` or `save_flow_map` wrote.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: as `load_student` and `load_flow_map` do.
    """
    config = read_json(Path(folder) / CONFIG)
    is_map = isinstance(config, dict) and config.get("type") == "flow map"
    return load_flow_map(folder) if is_map else load_student(folder)
