"""Where a run that version 0.1 began has its checkpoints, and under which settings it is gone on with."""

from pathlib import Path
from typing import Any

import pytest

from conditional import given
from dsno.checkpoint import read_json, write_json
from dsno.denoise import Prediction
from dsno.distillation.consistency import ConsistencyOptions, ContinuousConsistencyOptions
from dsno.distillation.earlier import begun
from dsno.distillation.regression import KnowledgeOptions, OperatorOptions
from dsno.distillation.stages import Options, Stage
from dsno.trajectories.sets import TrajectorySet

HELD = Path(__file__).parents[1] / "fixtures" / "v0_1" / "runs"
STAGE = Stage("consistency", 8, lambda X: (X, lambda model, batch: batch["x0"]), lambda X: X.trained_for("end"))
COPIED: dict[str, Any] = {
    "method": "consistency",
    "total_steps": 8,
    "batch": 4,
    "data_seed": 5,
    "schedule": {"name": "Cosine"},
    "teacher": {"class": "Prediction"},
    "samples": "0123",
    "labels": "4567",
    "trajectories": ["89ab", 32],
}
STAGED: dict[str, Any] = {
    **COPIED,
    "student": "UNet",
    "kind": "v",
    "way": "end",
    "passes": 1,
    "guidance": [0.0, 4.0],
    "derivative": None,
    "stage": "consistency",
    "stage_steps": 8,
}
"""What version 0.1 called the settings of a stage of consistency distillation with all options at their defaults."""


@pytest.fixture
def found(teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path) -> Any:
    """`begun` of a run by these options: the folder, whether its settings are today's, and what they are."""

    def of(options: Options, **named: Any) -> tuple[str, bool, dict[str, Any]]:
        drawn_on = given(teacher, trajectories)
        today = {**COPIED, "student.net": "UNet", **{f"options.{name}": value for name, value in named.items()}}
        student = options.student(teacher, drawn_on)
        folder, settings = begun(tmp_path, STAGE, [STAGE], today, options, student, drawn_on)
        return str(folder.relative_to(tmp_path)), settings is today, dict(settings)

    return of


def write(folder: Path, settings: dict[str, Any]) -> None:
    (folder / "step-00000004").mkdir(parents=True)
    write_json(folder / "step-00000004" / "state.json", {"step": 4, "settings": settings})


def test_a_new_run_has_a_folder_for_each_stage(found: Any) -> None:
    assert found(ConsistencyOptions(), intervals=40)[:2] == ("training/consistency", True)


def test_a_stage_that_version_0_1_began_keeps_its_settings(found: Any, tmp_path: Path) -> None:
    write(tmp_path / "training" / "consistency", STAGED)
    assert found(ConsistencyOptions(), intervals=40) == ("training/consistency", False, STAGED)
    # Where they are others, the run is today's, and `train` says what differs.
    assert found(ConsistencyOptions(intervals=20), intervals=20)[:2] == ("training/consistency", True)


def test_options_that_were_changed_were_settings_in_words(found: Any, tmp_path: Path) -> None:
    write(tmp_path / "training" / "consistency", {**STAGED, "intervals": "20", "levels": "None"})
    assert not found(ConsistencyOptions(intervals=20, levels=None), intervals=20, levels=None)[1]
    assert found(ConsistencyOptions(intervals=20), intervals=20)[1]


def test_a_run_on_data_alone_had_no_teacher(found: Any, tmp_path: Path) -> None:
    settings = {**STAGED, "teacher": None, "distil": "False", "derivative": "forward", "warmup": "0.2"}
    write(tmp_path / "training" / "consistency", settings)
    changed: dict[str, Any] = {"from_data": True, "derivative": "forward", "warmup": 0.2}
    options = ContinuousConsistencyOptions(**changed)
    assert found(options, **changed) == ("training/consistency", False, settings)
    # A teacher that is asked is another run.
    changed["from_data"] = False
    assert found(ContinuousConsistencyOptions(**changed), **changed)[1]


def test_regression_lay_in_the_folder_of_all_stages(
    found: Any, teacher: Prediction, trajectories: TrajectorySet, tmp_path: Path
) -> None:
    write(tmp_path / "training", {})
    named = {"weights": "snr", "distance": "l2", "others": 0.25, "inner_starts": 0.5}
    folder, today, settings = found(OperatorOptions(**named), **named)
    student = OperatorOptions(**named).student(teacher, given(teacher, trajectories))
    expected = {**student.config, **named, "trajectories": "89ab", "count": 32, "batch": 8}
    assert (folder, today) == ("training", False) and settings == expected
    # Of one frame there was nothing to weigh.
    plain = found(KnowledgeOptions(), distance="l1")[2]
    assert [plain[k] for k in ("weights", "distance", "others", "inner_starts")] == ["snr5", "l1", None, 0.0]
    # A flow map never lay there: its settings are today's, which `train` compares with what it finds.
    assert found(ConsistencyOptions(), intervals=40)[:2] == ("training", True)


def test_these_are_the_names_that_version_0_1_wrote() -> None:
    wrote = read_json(HELD / "consistency" / "training" / "consistency" / "step-00000008" / "state.json")["settings"]
    assert wrote.keys() == STAGED.keys()
    wrote = read_json(HELD / "operator" / "training" / "step-00000008" / "state.json")["settings"]
    names = {"trajectories", "count", "weights", "distance", "batch", "others", "inner_starts"}
    assert names < wrote.keys() and {"schedule", "times", "lift"} < wrote.keys()
