"""What ships is there and works, or its absence says how to make it."""

import shutil
from pathlib import Path

import pytest
import torch

import dsno
from dsno.checkpoint import read_json
from dsno.data.load import load_data
from dsno.distillation.run import distill
from dsno.measure.features import class_accuracy
from dsno.nets.features import load_feature_net
from dsno.runs.shipped import ship, shipped
from dsno.seeds import noise
from dsno.students.files import load_student
from dsno.students.origin import find_teacher, origin_of
from dsno.teachers.load import load_teacher
from dsno.train import TrainConfig
from dsno.trajectories.generate import generate


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


@pytest.mark.skipif(not (Path(dsno.__file__).parent / "weights" / "digits-classes").is_dir(), reason="no weights ship")
def test_the_shipped_digits_on_demand_are_of_their_classes() -> None:
    folder = shipped("digits-classes")
    student, net = load_student(folder / "student"), load_feature_net(folder / "features")
    assert student.classes == 10 and student.guided and find_teacher(folder / "student") == str(folder / "teacher")
    assert load_teacher("digits-classes").classes == 10
    z, labels, found = noise([*range(320)], student.shape), torch.arange(320) % 10, []
    for weight in (0.0, 2.0):
        x = student.sample(z, {"label": labels, "weight": torch.full((320,), weight)})
        found.append(class_accuracy(net, x.clamp(-1, 1), labels))
    # By a network that is right about 0.99 of real digits.
    assert found[0] > 0.9 and found[1] > 0.97


def test_what_ships_says_nothing_of_where_it_lay_and_finds_its_teacher(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for part in ("teacher", "features"):
        shutil.copytree(shipped() / part, run / part)
    teacher = load_teacher(run / "teacher")
    data = generate(teacher, run / "set", 8, times=[0.5, 0.0], steps=2, batch=8)
    config = TrainConfig(steps=1, warmup=0)
    distill(teacher, data, run / "student", config=config, batch=8, sources={"teacher": str(run / "teacher")})
    assert str(tmp_path) in (run / "student" / "config.json").read_text()
    ship(run, tmp_path / "out")
    assert not any(str(tmp_path) in path.read_text() for path in (tmp_path / "out").rglob("config.json"))
    assert find_teacher(tmp_path / "out" / "student") == str(tmp_path / "out" / "teacher")
    assert origin_of(tmp_path / "out" / "student").seeds == (0, 8)
    z = noise([0, 1], (1, 8, 8))
    assert torch.equal(load_student(tmp_path / "out" / "student").sample(z), load_student(run / "student").sample(z))
    shipped_again = read_json(tmp_path / "out" / "teacher" / "config.json")
    assert {**read_json(shipped() / "teacher" / "config.json"), "sha256": None} == {**shipped_again, "sha256": None}


def test_the_shipped_weights_say_nothing_of_where_they_lay() -> None:
    notes = [read_json(path)["notes"] for path in shipped().parent.rglob("config.json")]
    assert len(notes) == 6
    assert not any("sources" in note or "path" in note.get("origin", {}).get("teacher", {}) for note in notes)
