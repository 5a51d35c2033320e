"""Runs that version 0.1 began: where their checkpoints lie, and what it called their settings.

It regressed on trajectories in `training` itself, by settings of that method alone; every other stage had a folder of
its own, with settings that left out options at their defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import Any, cast

from dsno.distillation.stages import Given, Options, Stage
from dsno.snapshots import settings_of, snapshots_in
from dsno.students.flowmap import FlowMap
from dsno.students.operator import TrajectoryStudent
from dsno.students.samplers import Student

__all__ = ["begun"]

NAMED_APART = ("passes", "guidance", "derivative", "null", "features", "from_data")
"""Options that had a place of their own in the settings, or none."""


def begun(
    out: Path,
    stage: Stage,
    stages: Sequence[Stage],
    settings: Mapping[str, Any],
    options: Options,
    student: Student,
    given: Given,
) -> tuple[Path, Mapping[str, Any]]:
    """The folder of a stage and its settings: those of version 0.1, where it began this very run.

    Arguments:
        out: The student's folder.
        stage: The stage.
        stages: All of them, of which `stage` is one.
        settings: What the stage's settings are called now.
        options: Of the method.
        student: Before any training.
        given: What the method draws on.
    """
    own, together = out / "training" / stage.name, out / "training"
    if snapshots_in(together):
        # Where settings differ, `train` says which.
        return together, _regression(settings, options, student, given) or settings
    held = next(filter(None, map(settings_of, snapshots_in(own))), None)
    staged = _staged(stage, stages, settings, options, student, given)
    return own, staged if held == staged else settings


def _regression(settings: Mapping[str, Any], options: Options, student: Student, given: Given) -> dict[str, Any]:
    if not isinstance(student, TrajectoryStudent) or given.trajectories is None:
        return {}
    plain, (fingerprint, count) = _plain(settings), settings["trajectories"]
    return {
        **student.config,
        "trajectories": fingerprint,
        "count": count,
        "weights": plain.get("weights", "snr5"),
        "distance": plain["distance"],
        "batch": given.batch,
        "others": plain.get("others"),
        "inner_starts": plain.get("inner_starts", 0.0),
    }


def _staged(
    stage: Stage,
    stages: Sequence[Stage],
    settings: Mapping[str, Any],
    options: Options,
    student: Student,
    given: Given,
) -> dict[str, Any]:
    final = reduce(lambda made, stage: stage.became(made), stages, student)
    plain = _plain(settings)
    changed = [f.name for f in fields(cast(Any, options)) if getattr(options, f.name) != f.default]
    if isinstance(final, FlowMap):
        made = {"student": settings["student.net"], "kind": final.kind, "way": final.way}
    else:
        made = final.config
    copied = (
        "method",
        "batch",
        "data_seed",
        "schedule",
        "teacher",
        "samples",
        "labels",
        "trajectories",
    )
    return {
        **made,
        **{name: settings[name] for name in copied},
        "total_steps": given.steps,
        "passes": plain.get("passes", 1),
        "guidance": plain.get("guidance", [0.0, 4.0]),
        "derivative": plain["derivative"] if "derivative" in changed else None,
        **{name: str(getattr(options, name)) for name in changed if name not in NAMED_APART},
        **({"teacher": None, "distil": "False"} if plain.get("from_data") else {}),
        "stage": stage.name,
        "stage_steps": stage.steps,
    }


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("options."): v for name, v in settings.items() if name.startswith("options.")}
