"""What ships is there and works, or its absence says how to make it."""

from pathlib import Path

import pytest

import dsno
from dsno.data.load import load_data
from dsno.nets.features import load_feature_net
from dsno.runs.shipped import shipped
from dsno.seeds import noise
from dsno.students.files import load_student
from dsno.teachers.load import load_teacher


def test_missing_weights_are_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights named 'letters' ship .*weights/letters\): train them"):
        shipped("letters")


def test_the_shipped_digits() -> None:
    if not (Path(dsno.__file__).parent / "weights" / "digits").is_dir():
        with pytest.raises(
            FileNotFoundError, match="no weights named 'digits' ship with this package .*dsno reproduce"
        ):
            shipped()
        return
    teacher, student = load_teacher(shipped() / "teacher"), load_student(shipped() / "student")
    assert load_feature_net(shipped() / "features").features(load_data("digits").x[:2]).isfinite().all()
    assert student.schedule == teacher.schedule
    calls: list[object] = []
    student.net.register_forward_hook(lambda *call: calls.append(call))
    images = student.sample(noise([*range(16)], (1, 8, 8)))
    assert len(calls) == 1 and images.shape == (16, 1, 8, 8) and bool(images.isfinite().all())
