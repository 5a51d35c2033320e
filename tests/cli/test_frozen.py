"""What is frozen behind a start: a teacher or a student, by what its folder says that it is."""

from pathlib import Path

import pytest
import torch

from dsno.cli.frozen import is_student, load_frozen
from dsno.denoise import Prediction
from dsno.inverse.start import OneJump
from dsno.nets.unet import UNet
from dsno.schedule import Cosine
from dsno.students.files import save_student
from dsno.students.flowmap import flow_map_from_teacher
from dsno.students.heads import decoder_from_teacher
from dsno.students.operator import student_from_teacher
from dsno.teachers.load import load_teacher


def test_a_teacher_is_itself_and_a_student_one_jump(tmp_path: Path) -> None:
    teacher = load_teacher("digits")
    made = load_frozen("digits")
    assert isinstance(made.denoiser, Prediction) and not is_student("digits")
    for name, student in (
        ("operator", student_from_teacher(teacher, [0.5, 0.0])),
        ("map", flow_map_from_teacher(teacher)),
        ("decoder", decoder_from_teacher(teacher, 4)),
    ):
        save_student(tmp_path / name, student)
        found = load_frozen(str(tmp_path / name), "cpu")
        assert is_student(str(tmp_path / name)) and isinstance(found.denoiser, OneJump)
        assert found.denoiser.from_noise == (name != "map") and not found.denoiser.training
        assert (found.shape, found.kind, found.schedule) == (made.shape, made.kind, student.schedule)
        assert (found.classes, found.tokens, found.latents) == (None, False, None)


def test_a_student_of_latents_has_the_autoencoder_of_its_teacher(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from pipelines import make_vae

    make_vae().save_pretrained(tmp_path / "pipeline" / "vae")
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    teacher = Prediction(UNet(4, 8, (8,), attention=()), Cosine(), "v")
    origin = {"teacher": {"name": str(tmp_path / "pipeline")}}
    save_student(tmp_path / "map", flow_map_from_teacher(teacher), origin=origin)
    latents = load_frozen(str(tmp_path / "map")).latents
    assert latents is not None and latents.decode(torch.zeros(1, 4, 8, 8)).shape == (1, 3, 8, 8)


def test_a_student_that_is_told_more_than_a_class_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = Prediction(UNet(1, 8, (8,), attention=(), classes=3), Cosine(), "v")
    save_student(tmp_path / "guided", flow_map_from_teacher(teacher, guidance=True))
    with pytest.raises(ValueError, match="guided is told a guidance weight, and a start is trained for a class at"):
        load_frozen(str(tmp_path / "guided"))
    save_student(tmp_path / "classes", flow_map_from_teacher(teacher))
    assert load_frozen(str(tmp_path / "classes")).classes == 3
