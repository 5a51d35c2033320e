"""The one road from a teacher to a student: any method, stage by stage, into one folder.

`distill` is what `dsno distill` calls: it puts together what the method draws on, makes the student and hands both to
`run_stages`, which trains and writes it. In the folder of a student:

| | |
|---|---|
| `config.json`, `model.safetensors` | the student, with notes of method, options, teacher and data |
| `training/STAGE` | checkpoints and the log of a stage |

A stage has a warm-up, of at most a tenth of it, and a decay of its own. One that is complete is not trained again, so a
run that is resumed equals one that was not interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dsno.borrow import unwrapped
from dsno.checkpoint import CONFIG, tensor_sha
from dsno.condition import Cond, named
from dsno.config import settled
from dsno.data.samples import Samples
from dsno.denoise import Around, Denoiser, Guided, Prediction, innermost
from dsno.distillation.earlier import begun
from dsno.distillation.registry import Method, method_named
from dsno.distillation.regression import LiftOptions, has_weight, weights_in
from dsno.distillation.stages import Given, Options, Stage
from dsno.engine import training_device
from dsno.nets.backbone import check_null, own_null
from dsno.nets.features import load_feature_net
from dsno.nets.unet import UNet, with_classes
from dsno.outputs import STUDENT, claimed
from dsno.snapshots import changes_of, settings_of, snapshots_in
from dsno.students.files import notes_of, save_student
from dsno.students.flowmap import FlowMap, TwoTime
from dsno.students.origin import origin_to_note
from dsno.students.samplers import Student
from dsno.train import Report, TrainConfig, check_finished, quiet, stage_progress, train
from dsno.trajectories.manifest import describe
from dsno.trajectories.sets import TrajectorySet, samples_of

__all__ = ["check_batch", "distill", "drawn_on", "guided_as", "null_of_set", "run_stages"]


def distill(
    teacher: Prediction | Around | None,
    data: TrajectorySet | Samples | None,
    out: Path | str,
    method: str = "operator",
    config: TrainConfig = TrainConfig(steps=4000, lr=1e-3),  # noqa: B008 (frozen)
    *,
    batch: int | None = None,
    student: Student | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report: Report = quiet,
    sources: Mapping[str, str] | None = None,
    **options: Any,
) -> Student:
    """Distil a teacher into a student of one pass or a few, by any method, and write it to `out`.

    Arguments:
        teacher: Where the student starts, and what methods ask that need a teacher while they train; guided as its
            trajectories were, if it comes without. None where a `student` is given and the method asks no teacher. Of
            trajectories that a guide steered the student is told the target as its label, though the teacher knows
            none: give the `Steered` teacher or the one inside.
        data: Its trajectories; or, of a method that needs clean samples alone, a data set. The ends of trajectories are
            samples, too. None for a method that needs neither.
        out: Folder for the student.
        method: A name in `METHODS`; `dsno methods` says when to take which.
        config: How to train; its steps are those of all stages together, its seed is that of the batches, too.
        batch: Rows per step, over all processes; by default the method's own.
        student: What to train instead of a student that is made here; its weights change.
        resume: Continue what is in `out`, of the same method and settings; the learning rate may differ, and is noted.
        overwrite: Throw away what an earlier run wrote to `out`.
        report: Told of the progress.
        sources: Where teacher and data came from, in words, for the notes of the student.
        options: Those of the method (`METHODS[method].described()`).

    Returns:
        The student, in evaluation mode; it shares its network with `student`, if that was given.

    Raises:
        BlockingIOError: if another run is writing to `out`.
        FileExistsError: if `out` has something in it and neither `resume` nor `overwrite` is set; if it holds teacher
            or data, or anything but a student.
        FloatingPointError: if the loss is not finite.
        ValueError: for an unknown method or option, a method that is not given what it needs, a student that does not
            fit, trajectories of another teacher, or a run of other settings in `out`.
    """
    check_batch(batch)
    chosen = method_named(method)
    settled = chosen.configured(**options)
    if teacher is None and student is None:
        raise ValueError("a student starts from a teacher: give it, or a student to train")
    given = drawn_on(chosen, teacher, data, config, batch, settled, student)
    if student is not None and isinstance(settled, LiftOptions) and (made := settled.changed()):
        raise ValueError(f"{made[0]} is an option of making a student, and one is given: leave it out, or the student")
    if student is None:
        torch.manual_seed(config.seed)
        student = settled.student(told_target(cast(Prediction, teacher), data), given)
    return run_stages(chosen, settled, student, given, out, config, resume, overwrite, report, sources)


def check_batch(batch: int | None) -> None:
    """Refuse a step of no rows.

    Raises:
        ValueError: if `batch` is less than 1; None is the method's own.
    """
    if batch is not None and batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")


def drawn_on(
    method: Method,
    teacher: Prediction | Around | None,
    data: TrajectorySet | Samples | None,
    config: TrainConfig,
    batch: int | None,
    options: Options,
    student: Student | None = None,
) -> Given:
    """What a method draws on, of a teacher and data; without a teacher, of the schedule and classes of a student.

    Raises:
        ValueError: for trajectories of another teacher, or of another guidance; if the method needs what is not there.
    """
    trajectories = data if isinstance(data, TrajectorySet) else None
    method.check_data(trajectories is not None, getattr(data, "name", ""))
    denoiser: Denoiser | None = teacher
    if trajectories is not None and trajectories.guide is not None and "teacher" in method.needs:
        raise ValueError(
            f"{method.name} asks the teacher while it trains, and {trajectories.source} was steered by a guide: take a "
            "method that learns from trajectories alone, operator or knowledge"
        )
    if trajectories is not None and teacher is not None:
        # The guidance that a method distils is not that of the trajectories.
        solved_by = guided_as(trajectories, _unguided(teacher) if method.guides else teacher)
        trajectories.check_teacher(solved_by)
        denoiser = teacher if method.guides else solved_by
    if method.guides and isinstance(teacher, Prediction):
        denoiser = Guided(teacher, torch.tensor(_null(teacher, options)))
    known = student if teacher is None else told_target(teacher, data)
    assert known is not None
    x, labels = None, None
    if data is not None and {"samples", "data"} & method.asks(options):
        x, labels = samples_of(data) if isinstance(data, TrajectorySet) else (data.x, data.labels)
        labels = labels if known.classes else None
    rows = batch or method.batch
    return Given(denoiser, known.schedule, config.steps, rows, config.seed, x, labels, trajectories)


def told_target(teacher: Prediction | Around, data: TrajectorySet | Samples | None) -> Prediction:
    """The teacher without guidance; of trajectories that a guide of classes steered, told these, which change nothing
    yet.

    Raises:
        ValueError: if its network cannot be told classes.
    """
    inner = _unguided(teacher)
    classes = data.guide.get("classes") if isinstance(data, TrajectorySet) and data.guide is not None else None
    if classes is None or inner.classes is not None:
        return inner
    net = unwrapped(inner.net)
    if not isinstance(net, UNet):
        raise ValueError(
            f"the student is told which of {classes} classes it was steered towards, and a {type(net).__name__} cannot "
            "be told one: give a student that can, distill(..., student=...)"
        )
    told = with_classes(net, classes)
    return Prediction(
        told, inner.schedule, inner.kind, inner.time, inner.clip, inner.data_std, inner.shape, classes
    ).train(inner.training)


def guided_as(data: TrajectorySet, teacher: Prediction | Around) -> Prediction | Around:
    """The teacher, guided as it was when the set was made.

    Raises:
        ValueError: if it was guided away from something that is no label: give the `Guided` itself.
    """
    found = data.manifest["teacher"]
    if isinstance(teacher, Around) or found["class"] != "Guided":
        return teacher
    null = null_of_set(data)
    if null is None:
        raise ValueError(
            f"{data.source} was made under guidance away from an embedding, which its manifest does not hold: give the "
            "guided teacher, Guided(teacher, null)"
        )
    return Guided(teacher, null, found["weight"])


def null_of_set(data: TrajectorySet) -> Cond | None:
    """The label that trajectories were guided away from, or None: there was no guidance, or it was an embedding."""
    null = data.manifest["teacher"].get("null")
    if isinstance(null, int):
        return torch.tensor(null)
    if isinstance(null, dict) and isinstance(null.get("label"), int):
        return {"label": torch.tensor(null["label"])}
    return None


def run_stages(
    method: Method,
    options: Options,
    student: Student,
    given: Given,
    out: Path | str,
    config: TrainConfig | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report: Report = quiet,
    sources: Mapping[str, str] | None = None,
) -> Student:
    """Train a student by a method, stage by stage, and write it to `out`: `distill` without putting things together.

    Arguments:
        method: Which.
        options: Its options.
        student: What it trains; its weights change.
        given: What it draws on; its `steps` are those of all stages together.
        out: Folder for the student.
        config: How to train; its `steps` are not read. By default Adam at 1e-3.
        resume: Continue what is in `out`, of the same method and settings; the learning rate may differ, and is noted.
        overwrite: Throw away what an earlier run wrote to `out`.
        report: Told of the progress.
        sources: Where teacher and data came from, in words.

    Raises:
        ValueError: if the method is not given what it needs, or the student or settings do not fit.
    """
    method.check(given)
    method.check_student(student, given, options)
    if config is None:
        config = TrainConfig(lr=1e-3, seed=given.seed)
    untrained, stages = student, method.stages(student, given, options)
    settings = _settings(method, options, student, given)
    out, plain = Path(out), _plain(options)
    read = [*(sources or {}).values(), plain.get("features")]
    if given.trajectories is not None:
        read.append(given.trajectories.source)
    with claimed(out, STUDENT, resume, overwrite, read):
        if resume:
            _check_begun(out, method, stages, given, config)
        if isinstance(given.teacher, nn.Module):
            given.teacher.to(training_device(student))
        begun_in = [out / "training", *(out / "training" / stage.name for stage in stages)]
        config, said = settled(config, training_device(student), *begun_in)
        if said:
            report(stages[0].name, 0, stages[0].steps, said)
        changes: dict[str, Any] = {}
        for n, stage in enumerate(stages):
            # What a stage adds to the student starts from the seed, whichever stages ran in this process.
            torch.manual_seed((config.seed << 8) + n)
            free = [p for p in student.parameters() if p.requires_grad]
            trained, objective = stage.make(student)
            warmup = min(config.warmup, stage.steps // 10)
            own = replace(config, steps=stage.steps, lr=config.lr * stage.lr, warmup=warmup)
            if stage.says:
                report(stage.name, 0, stage.steps, stage.says)
            length = {} if method.extends else {"total_steps": given.steps, "stage_steps": stage.steps}
            named: Mapping[str, Any] = {**settings, "stage": stage.name, **length}
            folder = out / "training" / stage.name
            if resume:
                folder, named = begun(out, stage, stages, named, options, untrained, given)
            progress = stage_progress(stage.name, report)
            # What was to be overwritten is gone.
            train(trained, objective, own, folder, resume=True, progress=progress, settings=named)
            for parameter in free:
                parameter.requires_grad_()
            if changed := changes_of(folder):
                changes[stage.name] = changed
            student = stage.became(student)
        notes = _notes(method, options, given, config, sources)
        made_of = sources or {}
        notes["origin"] = origin_to_note(
            out, given.teacher, made_of.get("teacher"), given.trajectories, made_of.get("student")
        )
        if changes:
            notes["changes"] = changes
        save_student(out, student, **notes)
    return student.eval()


def _check_begun(out: Path, method: Method, stages: Sequence[Stage], given: Given, config: TrainConfig) -> None:
    """Refuse to resume what another method or other stages began; `train` compares the settings of each stage.

    Raises:
        ValueError: if it is of others, or complete and of another learning rate.
    """
    training, names = out / "training", [stage.name for stage in stages]
    found = notes_of(out).get("method") if (out / CONFIG).is_file() else None
    for path in [path for place in (training, *training.glob("*")) for path in snapshots_in(place)]:
        held = settings_of(path)
        found = held.get("method", found)
        if held.get("stage") == path.parent.name and found == method.name and path.parent.name not in names:
            raise ValueError(
                f"{path.parent} is a stage that {method.name} does not have with these options ({', '.join(names)}): "
                "resume with the options that began it, choose another folder, or overwrite it"
            )
    if found not in (None, method.name):
        raise ValueError(
            f"{out} holds a run of {found}, not of {method.name}: a run is resumed by the method that began it; choose "
            "another folder, or overwrite it"
        )
    check_finished(out, config, given.steps)


def _notes(
    method: Method, options: Options, given: Given, config: TrainConfig, sources: Mapping[str, str] | None
) -> dict[str, Any]:
    """What the folder of a student says of its making; `dsno cite` and `dsno sample` read it."""
    notes: dict[str, Any] = {
        "method": method.name,
        "references": list(method.references),
        "options": _plain(options),
        "steps": given.steps,
        "batch": given.batch,
        "training": asdict(config),
        "sources": dict(sources or {}),
    }
    if isinstance(given.teacher, Guided) and (null := _null_label(given.teacher)) is not None:
        notes["null"] = null
    if isinstance(given.teacher, Guided) and given.teacher.weight is not None:
        # The student is told none, and is compared with its teacher at the one that it was made for.
        notes["guidance"] = [given.teacher.weight, given.teacher.weight]
    if given.trajectories is not None:
        made = given.trajectories.manifest
        notes |= {
            "solver": made["solver"]["name"],
            "guided": made["teacher"]["class"] == "Guided",
            **({} if given.trajectories.guide is None else {"guide": given.trajectories.guide["class"]}),
            "trajectories": len(given.trajectories),
        }
        if has_weight(given.trajectories):
            notes["guidance"] = weights_in(given.trajectories)
    return notes


def _settings(method: Method, options: Options, student: Student, given: Given) -> dict[str, Any]:
    """What decides the updates of every stage, JSON-able: a run is resumed by no others."""
    trajectories, plain = given.trajectories, _plain(options)
    if plain.get("features") is not None:
        # The network, not where it lies.
        state = load_feature_net(cast(Any, options).features).state_dict()
        plain["features"] = [tensor_sha(value)[:16] for value in state.values()]
    return {
        "method": method.name,
        **{f"options.{name}": value for name, value in plain.items()},
        **{f"student.{name}": value for name, value in _described(student).items()},
        "batch": given.batch,
        "data_seed": given.seed,
        "schedule": given.schedule.config,
        "teacher": None if given.teacher is None else describe(given.teacher, {}),
        "samples": _sha(given.x),
        "labels": _sha(given.labels),
        "trajectories": None if trajectories is None else [trajectories.manifest["fingerprint"], len(trajectories)],
    }


def _plain(options: Options) -> dict[str, Any]:
    """The options, JSON-able."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(cast(Any, options)), default=str))
    return plain


def _sha(x: Tensor | None) -> str | None:
    return None if x is None else tensor_sha(x)[:16]


def _described(student: Student) -> dict[str, Any]:
    """What a student is before it is trained."""
    if not isinstance(student, FlowMap):
        return student.config
    net = student.net.backbone if isinstance(student.net, TwoTime) else student.net
    return {"net": type(net).__name__, "kind": student.kind}


def _unguided(teacher: Prediction | Around) -> Prediction:
    inner = innermost(teacher)
    if not isinstance(inner, Prediction):
        raise ValueError(f"a student starts from a network, and a {type(inner).__name__} is no Prediction of one")
    return inner


def _null_label(teacher: Guided) -> int | None:
    """The label that stands for no class, where it is a label."""
    absent = named(teacher.null)
    null = absent.get("label", absent.get(""))
    return None if null is None or null.ndim or null.is_floating_point() else int(null)


def _null(teacher: Prediction, options: Options) -> int:
    null = asdict(cast(Any, options)).get("null")
    null = own_null(teacher) if null is None else null
    if null is None:
        raise ValueError(
            "this teacher does not say which label stands for none: give it "
            f"(null={teacher.classes or 0}), if the network was trained with one"
        )
    return check_null(teacher, int(null))
