"""`dsno sample`: a student's samples, in one pass or several."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dsno.checkpoint import read_json, read_tensors
from dsno.runs.shipped import shipped
from dsno.seeds import noise, seed_range
from dsno.students.files import load_student, save_student
from dsno.students.operator import student_from_teacher
from dsno.students.origin import origin_to_note
from dsno.students.samplers import sampler_of
from dsno.teachers.load import load_teacher
from refusals import Spoil, edit, refusals, refuses
from shell import dsno


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_a_student_of_inner_starts_makes_several_passes(share: float, runs: Path) -> None:
    out = f"student-{share}"
    ran = dsno("distill", "--inner-starts", share, "--out", out, "--batch", 16, "--train.steps", 4, at=runs)
    assert ran.code == 0 and load_student(runs / out).restarts == (share > 0)
    assert ("restarts" in read_json(runs / out / "config.json")) == (share > 0)
    sample = ("sample", "--student", out, "--count", 4, "--device", "cpu", "--overwrite")
    ran = dsno(*sample, at=runs)
    assert ran.code == 0 and "4 samples in one pass, " in ran.said
    picture = (runs / "samples.png").read_bytes()
    ran = dsno(*sample, "--passes", 3, at=runs)
    if share:
        assert ran.code == 0 and "4 samples in 3 passes, " in ran.said
        assert (runs / "samples.png").read_bytes() != picture
    else:
        assert ran.code == 2 and "from noise alone, in one pass" in ran.said


@pytest.mark.parametrize(
    "passes, message",
    [
        (5, "a student of 4 frames makes 1 to 4 passes, got 5"),
        (0, "a student of 4 frames makes 1 to 4 passes, got 0"),
    ],
)
def test_the_shipped_student_makes_one_to_four_passes(passes: int, message: str, tmp_path: Path) -> None:
    ran = dsno("sample", "--passes", passes, "--count", 2, "--device", "cpu", at=tmp_path)
    assert ran.code == 2 and message in ran.said and len(ran.said.splitlines()) == 1
    assert not [*tmp_path.iterdir()]


def test_passes_are_made_with_fresh_noise_where_they_were_trained_so_or_where_it_is_said(tmp_path: Path) -> None:
    seeds, told = seed_range(0, 2), {"label": torch.tensor([3, 3]), "weight": torch.tensor([1.0, 1.0])}
    for name, options, cond, fresh in (
        ("digits", (), None, True),
        ("digits", ("--fresh",), None, True),
        ("digits-classes", ("--guidance", 1, "--label", 3), told, False),
        ("digits-classes", ("--guidance", 1, "--label", 3, "--fresh"), told, True),
    ):
        out = ("--count", 2, "--passes", 2, "--device", "cpu", "--out", "a.npy", "--overwrite")
        assert dsno("sample", "--student", name, *options, *out, at=tmp_path).code == 0
        sampler = sampler_of(load_student(shipped(name) / "student"), 2, fresh=fresh)
        expected = sampler(noise(seeds, (1, 8, 8)), cond, seeds).sample.clamp(-1, 1)
        assert np.abs(np.load(tmp_path / "a.npy") - expected.numpy()).max() < 1e-4


def test_the_students_that_ship_are_named(tmp_path: Path) -> None:
    sample = ("sample", "--student", "digits-classes", "--label", 3, "--count", 2, "--device", "cpu", "--out", "a.npy")
    ran = dsno(*sample, at=tmp_path)
    assert ran.code == 2 and "digits-classes/student is told a guidance weight: give --guidance" in ran.err
    ran = dsno(*sample, "--guidance", 2, at=tmp_path)
    assert ran.code == 0 and "2 samples in one pass, " in ran.said
    assert ran.following == ["evaluate", "--student", "digits-classes", "--guidance", "2.0"]
    student, cond = load_student(shipped("digits-classes") / "student"), {"weight": torch.tensor([2.0, 2.0])}
    expected = student.sample(noise([0, 1], (1, 8, 8)), {"label": torch.tensor([3, 3]), **cond})
    assert np.abs(np.load(tmp_path / "a.npy") - expected.clamp(-1, 1).numpy()).max() < 1e-4
    assert dsno("sample", "--student", "digits", "--count", 1, "--out", "b.npy", at=tmp_path).code == 0
    # A folder of that name is one when it is said so.
    ran = dsno("sample", "--student", "./digits", "--count", 1, "--out", "c.npy", at=tmp_path)
    assert ran.code == 2 and "no folder digits: expected a model folder" in ran.err


def test_a_guided_student_is_trained_and_told_its_weight(classes: Path) -> None:
    student = load_student(classes / "runs" / "student")
    assert student.guided and student.classes == 10
    teacher = read_tensors(classes / "runs" / "teacher" / "model.safetensors")
    own = student.net.backbone.state_dict()
    assert all(torch.equal(own[k], v) for k, v in teacher.items())
    sample = ("sample", "--student", "runs/student", "--count", 4, "--out")
    assert dsno(*sample, "a.png", "--guidance", 1, "--label", 3, at=classes).code == 0
    ran = dsno(*sample, "b.png", "--label", 3, at=classes)
    assert ran.code == 2 and "is told a guidance weight: give --guidance" in ran.err
    ran = dsno(*sample, "b.png", "--guidance", 9, at=classes)
    assert ran.code == 2 and "was not trained for the guidance weight 9: expected 0." in ran.err
    ran = dsno(*sample, "b.png", "--guidance", 1, "--label", 10, at=classes)
    assert ran.code == 2 and "label 10 is outside the classes of runs/student: expected 0 to 9" in ran.err
    assert (classes / "a.png").is_file() and not (classes / "b.png").exists()


# Refusals


def truncated(here: Path) -> None:
    weights = here / "runs" / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def another_architecture(here: Path) -> None:
    backbone = read_json(here / "runs" / "student" / "config.json")["backbone"]
    edit(here / "runs" / "student" / "config.json", backbone={**backbone, "channels": [8, 8]})


def without_student(here: Path) -> None:
    shutil.rmtree(here / "runs" / "student")


@refusals(
    ("sample --student runs/student", None, "samples.png exists already: pass --overwrite to replace it"),
    ("sample --student runs/student --out samples.png/new.png", None, "samples.png is a file: expected a folder"),
    (
        "sample --student runs/student --out n.png --label 3",
        None,
        "label 3 is outside the classes of runs/student: it has no",
    ),
    ("sample --student runs/student --out n.png --guidance 1", None, "runs/student is told no guidance weight"),
    ("sample --student runs/student --out new.png", truncated, "model.safetensors is truncated or damaged"),
    ("sample --student runs/student --out new.png", another_architecture, "holds another architecture than its conf"),
    ("sample --student runs/student --out new.png", without_student, "no folder runs/student: expected a model folder"),
    ("sample --student runs/teacher --out new.png", None, "runs/teacher holds a teacher, expected a student"),
    ("sample --student runs/student --count 0", None, "count must be at least 1, got 0"),
)
def test_a_failure_is_one_line_and_touches_nothing(command: str, spoil: Spoil, message: str, here: Path) -> None:
    refuses(command, spoil, message, at=here)


def test_a_latent_student_s_prompts_and_pictures_are_its_teacher_s(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from pipelines import write_pipelines

    teacher = write_pipelines(tmp_path)["sd"]
    student = student_from_teacher(load_teacher(teacher), (0.5, 0.0))
    save_student(tmp_path / "student", student, origin=origin_to_note(tmp_path / "student", None, str(teacher), None))
    (tmp_path / "prompts.txt").write_text("a cat\ntwo owls\n")
    sample = ("sample", "--student", "student", "--prompts", "prompts.txt", "--count", 4, "--device", "cpu", "--out")
    assert dsno(*sample, "found.png", at=tmp_path).code == 0
    assert dsno(*sample, "given.png", "--teacher", teacher, at=tmp_path).code == 0
    assert (tmp_path / "found.png").read_bytes() == (tmp_path / "given.png").read_bytes()
    shutil.rmtree(teacher)
    ran = dsno(*sample, "none.png", at=tmp_path)
    assert ran.code == 2 and "--prompts needs --teacher, whose text encoder reads them" in ran.err
    assert not (tmp_path / "none.png").exists()
