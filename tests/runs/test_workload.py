"""What decides the cost of a run, as data."""

from dataclasses import replace

import pytest
import torch

from dsno.denoise import Prediction
from dsno.nets.unet import UNet
from dsno.runs.workload import Workload
from dsno.schedule import Cosine


def small(classes: int | None = None) -> Prediction:
    return Prediction(UNet(1, 8, (8, 16), classes=classes), Cosine(), "v")


def test_evaluations_count_heun_twice_and_guidance_again() -> None:
    work = Workload("small", small, count=10, steps=8)
    assert [replace(work, solver=s).evaluations for s in ("ddim", "dpm2", "heun")] == [8, 8, 15]
    assert replace(work, guided=True).evaluations == 16


@pytest.mark.parametrize(
    "times, others, kinds",
    [
        ((0.5, 0.25, 0.0), None, [(1.0, (0, 1, 2))]),
        ((0.5, 0.25, 0.0), 0.25, [(0.75, (2,)), (0.25, (0, 2))]),
        ((0.0,), 0.25, [(1.0, (0,))]),
    ],
)
def test_a_step_supervises_all_frames_or_the_last_and_sometimes_another(
    times: tuple[float, ...], others: float | None, kinds: list[tuple[float, tuple[int, ...]]]
) -> None:
    assert Workload("small", small, times=times, others=others).supervised == kinds


def test_a_trajectory_takes_its_numbers_and_what_it_was_told() -> None:
    work = Workload("small", small, times=(0.5, 0.0), targets=("x0",))
    # A seed of 8 bytes, and noise and two frames of halves.
    assert work.trajectory_bytes((1, 8, 8), None) == 8 + 3 * 64 * 2
    assert work.trajectory_bytes((1, 8, 8), 10) == 8 + 3 * 64 * 2 + 8
    both = replace(work, targets=("x0", "state"), stored="float32", guided=True)
    assert both.trajectory_bytes((1, 8, 8), 10) == 8 + 5 * 64 * 4 + 8 + 4


def test_its_teacher_may_be_changed_and_its_student_is_of_its_times() -> None:
    teacher = small()
    work = Workload("small", lambda: teacher, times=(0.5, 0.0), student={"target": "state"})
    own = work.own_teacher()
    assert own is not teacher and all(map(torch.equal, own.state_dict().values(), teacher.state_dict().values()))
    made = work.student_of(teacher)
    assert made.times.tolist() == [0.5, 0.0] and made.target == "state"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"teach_batch": -1}, "teach_batch must be at least 1, got -1"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"count": -1}, "0 or more trajectories of 1 or more frames, got -1 of"),
        ({"solver": "rk9"}, "unknown solver 'rk9': expected one of ddim"),
        ({"times": ()}, "1 or more frames, got 20000 of \\(\\)"),
    ],
)
def test_what_is_no_run_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Workload("small", small, **change)  # type: ignore[arg-type]
