"""Students on disk: one function that saves and one that loads, whatever kind a student is.

A folder holds `config.json`, which says its `type`, and `model.safetensors`:

| type | what | weights of |
|---|---|---|
| `student` | a `TrajectoryStudent` | all of it |
| `adapter` | a `TrajectoryStudent` around a teacher that is elsewhere | what lifting added |
| `flow map` | a `FlowMap` | all of it |
| `decoder` | a `ParallelDecoder` | all of it |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from dsno.borrow import borrowed, own_copy, unwrapped
from dsno.checkpoint import CONFIG, WEIGHTS, build, load_model, read_json, save_model, sha256_of
from dsno.denoise import Kind, Prediction
from dsno.hub import is_hub_id, local_copy
from dsno.nets.backbone import Backbone, example, net_from_config
from dsno.outside import Within
from dsno.schedule import schedule_from_config
from dsno.students.blocks import Told
from dsno.students.flowmap import FlowMap, TwoTime, Way, two_time
from dsno.students.heads import Headed, ParallelDecoder
from dsno.students.lift import Lifted, LiftPlan, install, lift
from dsno.students.operator import Target, TrajectoryStudent
from dsno.students.samplers import Student
from dsno.students.temporal import Activation

__all__ = [
    "build_student",
    "checked_weight",
    "load_student",
    "notes_of",
    "null_label",
    "save_student",
    "trained_for",
]


def save_student(folder: Path | str, student: Student, adapter_only: bool = False, **notes: object) -> Path:
    """Write a student: `config.json` and `model.safetensors`; `notes` go into the former.

    With `adapter_only`, only what lifting added to the teacher, and a fingerprint of the teacher's weights.

    Raises:
        ValueError: if only the adapter is to be written of a flow map or decoder, or of a student whose backbone is
            trained, too; for a flow map whose network cannot be rebuilt from a configuration; for weights that cannot
            be written.
    """
    student = borrowed(student)
    if isinstance(student, FlowMap):
        if adapter_only:
            raise ValueError("a flow map has no adapter: its whole network is trained, so save all of it")
        return save_model(folder, {"type": "flow map", **_described(student), "notes": notes}, student)
    if isinstance(student, ParallelDecoder):
        if adapter_only:
            raise ValueError("a decoder has no adapter: its whole network is trained, so save all of it")
        return save_model(folder, {"type": "decoder", **student.config, "notes": notes}, student)
    config = {"type": "student", **student.config, "notes": notes}
    if not adapter_only:
        return save_model(folder, config, student)
    added = student.net.added()
    own = set(added.parameters())
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and parameter not in own:
            raise ValueError(
                f"{name} is trained, too: freeze the backbone before training (`freeze_backbone`), or save the whole "
                "student"
            )
    return save_model(folder, {**config, "type": "adapter", "teacher": _fingerprint(student.net)}, added)


def load_student(
    ref: Path | str,
    backbone: nn.Module | None = None,
    teacher: Prediction | None = None,
    unchecked: bool = False,
) -> Student:
    """Read what `save_student` wrote, that is, what any method made.

    Arguments:
        ref: A folder, or the name of a repository on the Hub, `org/name` or `org/name@revision`.
        backbone: A network like the one that was lifted or given heads, where that was no `Backbone`; changed in place.
        teacher: The teacher that an adapter belongs to; its network is copied.
        unchecked: Open a folder that was changed since it was written.

    Raises:
        FileNotFoundError: if there is no such folder or repository, or a file of it is missing.
        ConnectionError: if the Hub cannot be reached and there is no copy of an earlier download.
        ValueError: if the folder holds something else, damaged or foreign weights, or what was changed since it was
            written; if it needs a backbone or a teacher and there is none, or the teacher is another.
    """
    folder = _folder(ref)
    if teacher is not None:
        return _load_adapter(folder, teacher, unchecked)
    config = read_json(folder / CONFIG)
    kind = config.get("type") if isinstance(config, dict) else None
    if kind == "adapter":
        raise ValueError(f"{folder} holds an adapter: pass the teacher it belongs to, load_student(..., teacher=)")
    makers: dict[str, Callable[[dict[str, Any]], Student]] = {
        "flow map": _build_flow_map,
        "decoder": lambda c: _build_decoder(c, _rehearsing(unwrapped(backbone))),
        "student": lambda c: build_student(c, _rehearsing(unwrapped(backbone))),
    }
    expected = kind if isinstance(kind, str) and kind in makers else "student"
    return load_model(folder, expected, _whole(makers[expected]), unchecked).eval()


def notes_of(ref: Path | str) -> dict[str, Any]:
    """What `save_student` was told to note: the method, its options, where teacher and data came from.

    Raises:
        FileNotFoundError: if there is no such folder or file.
    """
    config = read_json(_folder(ref) / CONFIG)
    notes: dict[str, Any] = config.get("notes", {}) if isinstance(config, dict) else {}
    return notes


def trained_for(ref: Path | str) -> tuple[float, float]:
    """The range of guidance weights that a student was trained for; all from 0 on where its notes name none, and one
    alone of a student that is told none and whose teacher was guided.

    Raises:
        FileNotFoundError: if there is no such folder or file.
    """
    notes = notes_of(ref)
    # Of its options, or of its trajectories; version 0.1 noted options beside the rest.
    noted = notes.get("options", {}).get("guidance", notes.get("guidance"))
    low, high = (0.0, math.inf) if noted is None else noted
    return low, high


def checked_weight(ref: Path | str, weight: float | None = None) -> float:
    """A guidance weight, if a student was trained for it; by default the least that it was.

    Raises:
        FileNotFoundError: if there is no such folder or file.
        ValueError: if it is outside the range, or not finite.
    """
    low, high = trained_for(ref)
    if weight is None:
        return low
    if not (low <= weight <= high and math.isfinite(weight)):
        most = f" to {high:g}" if high > low else ""
        expected = f"{low:g}{most}" if high < math.inf else "0 or more"
        raise ValueError(f"{ref} was not trained for the guidance weight {weight:g}: expected {expected}")
    return weight


def null_label(ref: Path | str) -> int | None:
    """The label that the teacher of a student was guided away from, which stands for no class; None if not noted.

    Raises:
        FileNotFoundError: if there is no such folder or file.
    """
    notes = notes_of(ref)
    null = notes.get("null", notes.get("options", {}).get("null"))
    return None if null is None else int(null)


def _folder(ref: Path | str) -> Path:
    """Where a student lies; whoever gives a path means this machine."""
    remote = isinstance(ref, str) and not Path(ref).exists() and is_hub_id(ref)
    return local_copy(ref, [CONFIG, WEIGHTS]) if remote else Path(ref)


def _whole(make: Callable[[dict[str, Any]], Student]) -> Callable[[dict[str, Any]], tuple[Student, nn.Module]]:
    """A student as `load_model` wants it: the object, and the module that its weights fill."""

    def made(config: dict[str, Any]) -> tuple[Student, nn.Module]:
        student = make(config)
        return student, student

    return made


# Operators, and adapters of them


def build_student(config: Mapping[str, Any], backbone: nn.Module | None = None) -> TrajectoryStudent:
    """The operator a configuration describes, with fresh weights, or around the given backbone, lifted in place.

    Raises:
        ValueError: for an unknown key, with the nearest known one, or a missing one; or if it needs a backbone.
    """
    return build(_operator, {**_around(config, backbone), "net": backbone}, "the configuration of a student")


def _around(config: Mapping[str, Any], backbone: nn.Module | None) -> dict[str, Any]:
    """What a configuration says of a student whose backbone is rebuilt, or given.

    Raises:
        ValueError: if it can only be given, and is not.
    """
    if backbone is None and "backbone" in config and config["backbone"] is None:
        raise ValueError(
            "the backbone of this student is no `Backbone` and cannot be rebuilt from a configuration: pass one like "
            "it, "
            "load_student(..., backbone=)"
        )
    return {k: v for k, v in config.items() if k not in ("type", "notes")}


def _load_adapter(folder: Path, teacher: Prediction, unchecked: bool) -> TrajectoryStudent:
    net = own_copy(teacher.net)

    def make(config: dict[str, Any]) -> tuple[TrajectoryStudent, nn.Module]:
        expected = config.pop("teacher", None)
        trial = _rehearsing(net)
        student = build_student(config, trial)
        if trial is net and _fingerprint(student.net) != expected:
            raise ValueError(f"{folder} is the adapter of another teacher: the weights of the one given differ")
        student.net.freeze_backbone()
        return student, student.net.added()

    return load_model(folder, "adapter", make, unchecked).eval()


def _rehearsing(net: nn.Module | None) -> nn.Module | None:
    """The network to lift in place; of a rehearsal (`dsno.outside.rehearsed`) a copy without memory."""
    if net is None or torch.get_default_device().type != "meta":
        return net
    return own_copy(net).to("meta")


def _fingerprint(net: Lifted) -> str:
    """SHA-256 over the backbone's weights: names, dtypes, shapes and bytes, in the order of the names."""
    added = tuple(f"{name}." for name in net.temporal_layers())
    own = sorted((name, x) for name, x in net.backbone.state_dict().items() if not name.startswith(added))
    return sha256_of((f"{name} {x.dtype} {tuple(x.shape)}", x) for name, x in own)


def _operator(
    schedule: dict[str, object],
    times: Sequence[float],
    target: Target,
    kind: Kind,
    backbone: dict[str, Any] | None,
    lift: dict[str, Any],
    data_std: float = 1.0,
    shape: Sequence[int] | None = None,
    classes: int | None = None,
    restarts: bool = False,
    fresh: bool = False,
    net: nn.Module | None = None,
) -> TrajectoryStudent:
    lifted = _lift_again(net_from_config(backbone or {}) if net is None else net, lift)
    solved_on = schedule_from_config(schedule)
    return TrajectoryStudent(lifted, solved_on, times, target, kind, data_std, shape, classes, restarts, fresh)


def _lift_again(net: nn.Module, config: Mapping[str, Any]) -> Lifted:
    if "phases" in config or not isinstance(net, Backbone):
        return install(net, build(LiftPlan, config, "the configuration of a lift"))
    # The first students of version 0.1, the shipped one among them, name the blocks with temporal layers alone.
    return build(_lift_named, {"net": net, **config}, "the configuration of a lift")


def _lift_named(
    net: nn.Module,
    temporal: Sequence[str],
    frames: Annotated[int, Within(1, 4096)],
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


# Flow maps


def _described(student: FlowMap) -> dict[str, object]:
    """The configuration of a flow map.

    Raises:
        ValueError: if its network cannot be rebuilt from one.
    """
    net = student.net
    if not isinstance(net, TwoTime) or not isinstance(net.backbone, Backbone):
        raise ValueError(
            f"a flow map of a {type(net).__name__} cannot be rebuilt from a file: save its state_dict yourself"
        )
    return {
        "schedule": student.schedule.config,
        "kind": student.kind,
        "data_std": student.data_std,
        "backbone": net.backbone.config,
        "guidance": net.guidance is not None,
        "way": student.way,
        "steps": student.steps,
    }


def _build_flow_map(config: dict[str, Any]) -> FlowMap:
    return build(_flow_map, config, "the configuration of a flow map")


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


# Parallel decoders


def _build_decoder(config: dict[str, Any], backbone: nn.Module | None) -> ParallelDecoder:
    return build(_decoder, {**_around(config, backbone), "net": backbone}, "the configuration of a decoder")


def _decoder(
    schedule: dict[str, object],
    grid: Sequence[float],
    kind: Kind,
    data_std: float,
    least: int,
    most: int,
    last: str,
    backbone: dict[str, Any] | None,
    shape: Sequence[int] | None = None,
    classes: int | None = None,
    net: nn.Module | None = None,
) -> ParallelDecoder:
    net = net_from_config(backbone or {}) if net is None else net
    if last not in dict(net.named_modules()):
        raise ValueError(f"the backbone has no module {last!r}, whose place the heads are to take")
    headed = Headed(net, last, len(grid) - 1)
    return ParallelDecoder(headed, schedule_from_config(schedule), grid, kind, data_std, least, most, shape, classes)
