"""What a method is given says what is missing, and a stage leaves a student as it is."""

from dataclasses import replace

import pytest
import torch

from conditional import given
from dsno.denoise import Prediction
from dsno.distillation.stages import FlowMapOptions, Given, Stage
from dsno.schedule import Cosine
from dsno.students.flowmap import FlowMap
from dsno.trajectories.sets import TrajectorySet


def test_what_is_given_is_handed_out(teacher: Prediction, trajectories: TrajectorySet) -> None:
    drawn_on = given(teacher, trajectories)
    assert drawn_on.denoiser is teacher and drawn_on.samples is drawn_on.x and drawn_on.solved is trajectories


@pytest.mark.parametrize(
    ("missing", "asked", "message"),
    [
        ("teacher", "denoiser", r"asks the teacher at every step and there is none: give one, or take a method"),
        ("x", "samples", r"noises clean samples and there are none: give some as data, or trajectories"),
        ("trajectories", "solved", r"trajectories and there are none: make them, `generate\(...\)`, and give"),
    ],
)
def test_what_is_missing_is_said_where_it_is_asked_for(
    missing: str, asked: str, message: str, teacher: Prediction, trajectories: TrajectorySet
) -> None:
    without = replace(given(teacher, trajectories), **{missing: None})
    with pytest.raises(ValueError, match=message):
        getattr(without, asked)
    for other in {"denoiser", "samples", "solved"} - {asked}:
        assert getattr(without, other) is not None


def test_nothing_is_given_but_the_teacher_and_the_steps() -> None:
    drawn_on = Given(None, Cosine(), 10)
    assert (drawn_on.batch, drawn_on.seed, drawn_on.x, drawn_on.labels, drawn_on.trajectories) == (64, 0, *[None] * 3)


def test_a_stage_leaves_a_student_what_it_was_unless_it_says_otherwise(teacher: Prediction) -> None:
    student = torch.nn.Linear(2, 2)
    stage = Stage("one", 10, lambda student: (student, lambda model, batch: torch.zeros(())))
    assert stage.became(student) is student and stage.make(student)[0] is student
    assert (stage.lr, stage.says) == (1.0, "")


def test_options_of_flow_maps_make_one_and_take_no_exact_derivative(
    teacher: Prediction, trajectories: TrajectorySet
) -> None:
    options = FlowMapOptions()
    made = options.student(teacher, given(teacher, trajectories))
    assert type(made) is FlowMap and made.way == "any" and made.schedule is teacher.schedule
    assert made.net.backbone is not teacher.net and not options.exact
