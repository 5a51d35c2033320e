"""Of a stage in pieces the best student is kept, whatever comes behind it, and no piece is made twice."""

from pathlib import Path

import pytest
import torch

from dsno.checkpoint import read_json
from dsno.data.load import load_data
from dsno.runs.finish import FIRST, distance_to, kept_best
from dsno.runs.shipped import shipped
from dsno.students.files import load_student, notes_of, save_student
from dsno.students.operator import TrajectoryStudent
from dsno.students.samplers import Student

DISTANCES = {2: 3.0, 4: 1.0, 6: 2.0}


def marked(student: Student, step: int) -> Student:
    """The student with a number among its weights."""
    with torch.no_grad():
        next(student.parameters()).flatten()[0] = float(step)
    return student


def mark(student: Student) -> int:
    return int(next(student.parameters()).flatten()[0])


def test_the_nearest_is_kept(tmp_path: Path) -> None:
    trained: list[int] = []

    def train(step: int) -> Student:
        trained.append(step)
        student = marked(load_student(shipped() / "student"), step)
        save_student(tmp_path / "finish", student, steps=step)
        if trained == [2, 4, 6]:
            raise KeyboardInterrupt
        return student

    given = (tmp_path / "finish", tmp_path / "student", [*DISTANCES], train, lambda s: DISTANCES[mark(s)])
    with pytest.raises(KeyboardInterrupt):
        kept_best(*given)
    assert not (tmp_path / "student").exists()
    kept_best(*given)
    assert trained == [2, 4, 6, 6] and mark(load_student(tmp_path / "student")) == 4
    looks = {str(step): distance for step, distance in DISTANCES.items()}
    assert read_json(tmp_path / "finish" / "looks.json") == looks
    assert notes_of(tmp_path / "student") == {"steps": 4, "looks": looks}


def test_a_distance_is_of_the_students_own_samples() -> None:
    data, net = load_data("digits"), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
    student, seen = load_student(shipped() / "student"), []
    assert isinstance(student, TrajectoryStudent)
    distance = distance_to(data, net, count=64)
    near = distance(student)
    student.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    assert near == distance(student) and sum(seen) >= 64 and FIRST > 2**38
    # Of several numbers of passes the farthest counts.
    of = {n: distance_to(data, net, count=64, passes=n)(student) for n in ((1,), (2,), (1, 2))}
    assert of[1,] == near != of[2,] and of[1, 2] == max(of[1,], of[2,])
    assert distance(marked(student, 100)) > near
