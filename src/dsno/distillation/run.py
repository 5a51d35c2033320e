"""The one road from a teacher to a student: every method, stage by stage, into one folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsno.checkpoint import tensor_sha
from dsno.distillation.distances import Distance
from dsno.distillation.distances import distance as named_distance
from dsno.distillation.registry import METHODS
from dsno.distillation.regression import TrajectoryDistillation
from dsno.distillation.stages import Given
from dsno.nets.features import FeatureNet
from dsno.students.files import save_flow_map, save_student
from dsno.students.flowmap import FlowMap, TwoTime
from dsno.students.operator import TrajectoryStudent
from dsno.train import Report, TrainConfig, prepare_run, quiet, stage_progress, train
from dsno.trajectories.manifest import describe
from dsno.trajectories.sets import TrajectorySet

__all__ = ["distill", "distill_by"]


def distill(
    student: TrajectoryStudent,
    data: TrajectorySet,
    out: Path | str,
    config: TrainConfig = TrainConfig(),  # noqa: B008 (frozen)
    weights: str = "snr5",
    distance: str = "l1",
    batch: int = 256,
    others: float | None = None,
    inner_starts: float = 0.0,
    features: FeatureNet | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report: Report = quiet,
) -> TrajectoryStudent:
    """Train a student on trajectories and write it to `out`; see `TrajectoryDistillation` and `train`.

    `features` is the network of a perceptual `distance`. With `inner_starts` the student `restarts` afterwards.
    """
    objective = TrajectoryDistillation(
        data, student, weights, _distance(distance, features, student), batch, config.seed, others, inner_starts
    )
    settings = {
        **student.config, "trajectories": data.manifest["fingerprint"], "count": len(data), "weights": weights,
        "distance": distance, "batch": batch, "others": others, "inner_starts": inner_starts,
    }  # fmt: skip
    prepare_run(out, resume, overwrite)
    report("distill", 0, config.steps, objective.describe())
    train(
        student, objective, config, Path(out) / "training", resume, overwrite, progress=stage_progress("distill", report),
        settings=settings,
    )  # fmt: skip
    student.restarts = inner_starts > 0
    save_student(
        out, student, training=dataclasses.asdict(config), weights=weights, distance=distance, batch=batch,
        method="knowledge" if student.frames == 1 else "operator", **_origin(data),
    )  # fmt: skip
    return student


def distill_by(
    method: str,
    student: nn.Module,
    given: Given,
    out: Path | str,
    config: TrainConfig | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report: Report = quiet,
    sources: Mapping[str, str] | None = None,
    features: FeatureNet | None = None,
    **options: Any,
) -> nn.Module:
    """Train a student by any method, stage by stage, and write it to `out`; see `dsno.distillation.registry` and `train`.

    Each stage has a folder, `training/NAME` in `out`, and a warm-up and decay of its own. A stage that is complete is not
    trained again, so a run that is resumed equals one that was not interrupted.

    Arguments:
        method: A name in `METHODS`.
        student: What the method trains (`dsno.distillation.registry.student_of`); trained in place.
        given: What the method draws on; its `steps` are those of all stages together.
        out: Folder for the student.
        config: How to train; its `steps` are not read, and its warm-up is at most a tenth of a stage. By default Adam with
            the method's own learning rate.
        resume: Continue what is in `out`, of the same settings.
        overwrite: Throw away what is in `out`.
        report: Told of the progress.
        sources: Where teacher and data came from, in words, for the notes of the student.
        features: The network of a perceptual `distance`.
        options: Further keywords of the method's function.

    Raises:
        ValueError: for an unknown method, or one that is not given what it needs, or a student or settings that do not fit.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
    chosen = METHODS[method]
    chosen.check(given)
    chosen.check_student(student, given)
    assert isinstance(student, TrajectoryStudent | FlowMap)
    if config is None:
        config = TrainConfig(lr=1e-3, seed=given.seed)
    told = dict(options)
    if features is not None:
        told["distance"] = _distance(options.get("distance"), features, student)
    stages = chosen.stages(student, given, **told)
    settings = _settings(method, student, given, options)
    prepare_run(out, resume, overwrite)
    if isinstance(given.teacher, nn.Module):
        given.teacher.to(_training_device(student))
    for n, stage in enumerate(stages):
        # What a stage adds to the student starts from the seed, whichever stages ran in this process.
        torch.manual_seed((config.seed << 8) + n)
        trained, objective = stage.make(student)
        own = replace(config, steps=stage.steps, lr=config.lr * stage.lr, warmup=min(config.warmup, stage.steps // 10))
        train(
            trained, objective, own, Path(out) / "training" / stage.name, resume, overwrite,
            progress=stage_progress(stage.name, report), settings={**settings, "stage": stage.name, "stage_steps": stage.steps},
        )  # fmt: skip
    notes: dict[str, Any] = {
        "method": method, "references": list(chosen.references), "steps": given.steps, "batch": given.batch,
        "training": dataclasses.asdict(config), "sources": dict(sources or {}), **options,
        **({"passes": given.passes} if given.passes > 1 else {}),
        **({"guidance": list(given.guidance)} if method == "guided" else {}),
        **({} if given.trajectories is None else _origin(given.trajectories)),
    }  # fmt: skip
    notes = {name: value for name, value in notes.items() if not callable(value)}
    if isinstance(student, FlowMap):
        save_flow_map(out, student, **notes)
    else:
        save_student(out, student, **notes)
    return student


def _distance(name: str | None, features: FeatureNet | None, student: nn.Module) -> Distance:
    """A distance by name; its features where the student is trained.

    Raises:
        ValueError: for an unknown name, or if it needs features that are not there, or the other way round.
    """
    if features is None:
        return named_distance(name or "l1")
    if "perceptual" not in (name or ""):
        raise ValueError(
            f"features are of a perceptual distance, and this one is {name or 'the default'}: name one "
            "(`--distance l1+perceptual`), or leave them out"
        )
    return named_distance(name or "l1", features.requires_grad_(False).to(_training_device(student)).maps)


def _training_device(model: nn.Module) -> torch.device:
    """Where `train` is going to train it: what a loss calls beside the model has to be there, too."""
    from accelerate import PartialState

    cpu = next(model.parameters()).device.type == "cpu" and not torch.cuda.is_available()
    return torch.device(PartialState(cpu=cpu).device)


def _settings(
    method: str, student: TrajectoryStudent | FlowMap, given: Given, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides the updates of every stage, JSON-able."""
    trajectories = given.trajectories
    if isinstance(student, FlowMap):
        net = student.net.backbone if isinstance(student.net, TwoTime) else student.net
        made: dict[str, Any] = {"student": type(net).__name__, "kind": student.kind, "way": student.way}
    else:
        made = student.config
    return {
        **made, "method": method, "total_steps": given.steps, "batch": given.batch, "data_seed": given.seed,
        "schedule": given.schedule.config, "teacher": None if given.teacher is None else describe(given.teacher, {}),
        "samples": None if given.x is None else tensor_sha(given.x)[:16],
        "labels": None if given.labels is None else tensor_sha(given.labels)[:16],
        "trajectories": None if trajectories is None else [trajectories.manifest["fingerprint"], len(trajectories)],
        "passes": given.passes, "guidance": list(given.guidance), "derivative": given.derivative,
        # A function has no text that is the same in another process.
        **{name: str(value) for name, value in options.items() if not callable(value)},
    }  # fmt: skip


def _origin(data: TrajectorySet) -> dict[str, Any]:
    """What made the trajectories a student learned from: what `dsno cite` needs of it."""
    made, teacher = data.manifest, data.manifest["teacher"]
    return {"solver": made["solver"]["name"], "guided": teacher["class"] == "Guided", "trajectories": len(data)}
