"""A model is opened whatever it is, and told what it is told."""

import math
import shutil
from pathlib import Path

import pytest
import torch

import planned
from dsno.app.models import Ask, Model, open_model
from dsno.app.pipeline import DSNOPipeline
from dsno.app.places import Places
from dsno.bridge.coefficients import I2SB
from dsno.bridge.prediction import BridgePrediction
from dsno.bridge.student import student_from_bridge
from dsno.denoise import Guided, Prediction
from dsno.nets.paired import PairedUNet
from dsno.nets.unet import UNet
from dsno.schedule import Cosine
from dsno.seeds import seed_range
from dsno.students.files import save_student
from dsno.students.operator import student_from_teacher
from dsno.students.origin import origin_to_note
from dsno.teachers.load import load_teacher
from dsno.teachers.native import save_teacher
from dsno.teachers.prompts import encode_prompts
from dsno.trajectories.labels import uniform_labels

SEEDS = seed_range(0, 3)


def opened(folder: Path, name: str) -> Model:
    return open_model(str(folder / name), Places((folder,)))


def test_students_of_every_kind_are_opened_with_the_passes_they_make(tmp_path: Path) -> None:
    kinds = {"operator": (1, 2, 3, 4), "flow_map": (1, 2, 4, 8), "decoder": (1, 2, 4)}
    for kind, passes in kinds.items():
        save_student(tmp_path / kind, getattr(planned, kind)())
        model = opened(tmp_path, kind)
        assert model.teacher is None and model.shape == (1, 4, 4) and model.passes == passes
        assert not model.guided and model.told(Ask(), SEEDS) is None and not model.of.training
        assert not any(parameter.requires_grad for parameter in model.of.parameters())
        with pytest.raises(ValueError, match=f"{kind} is a student: take a teacher"):
            model.denoiser()


def test_a_student_is_told_a_class_and_a_weight_that_it_was_trained_for(tmp_path: Path) -> None:
    save_student(tmp_path / "told", planned.told()[0], options={"guidance": [0.5, 3.0]}, null=2)
    model = opened(tmp_path, "told")
    assert (model.classes, model.null, model.weights, model.guided) == (3, 2, (0.5, 3.0), True)
    cond = model.told(Ask(guidance=2.0), SEEDS)
    assert isinstance(cond, dict) and cond["weight"].tolist() == [2.0] * 3
    assert torch.equal(cond["label"], uniform_labels(3, 2)(SEEDS))
    assert model.told(Ask(guidance=2.0, label=1), SEEDS)["label"].tolist() == [1] * 3  # type: ignore[index,call-overload]
    for ask, message in (
        (Ask(), "told takes the guidance weight 0 not: expected 0.5 to 3"),
        (Ask(guidance=9.0), "takes the guidance weight 9 not"),
        (Ask(guidance=math.nan), "takes the guidance weight nan not"),
        (Ask(guidance=1.0, label=3), "label 3 is outside the classes of .*told: expected 0 to 2"),
        (Ask(guidance=1.0, prompt="a cat"), "told is told no text: leave the prompt out"),
    ):
        with pytest.raises(ValueError, match=message):
            model.told(ask, SEEDS)
    # What another model is asked is brought to what this one may be.
    asked = Ask(label=7, prompt="a cat", guidance=9.0, passes=9)
    assert model.suited(asked) == Ask(guidance=3.0) and model.suited(Ask()).guidance == 0.5


def test_a_pipeline_of_ours_is_its_student(tmp_path: Path) -> None:
    DSNOPipeline.from_student(planned.told()[0]).save_pretrained(tmp_path / "pipe")
    model = opened(tmp_path, "pipe")
    assert model.passes == (1, 2, 3, 4) and model.weights == (0.0, math.inf) and model.latents is None
    cond = model.told(Ask(label=1, guidance=7.0), SEEDS)
    assert isinstance(cond, dict) and {*cond} == {"label", "weight"}


def test_a_teacher_is_guided_where_it_knows_what_no_class_is(tmp_path: Path) -> None:
    save_teacher(tmp_path / "teacher", planned.teacher(classes=3, null=True))
    save_teacher(tmp_path / "plain", planned.teacher(classes=3))
    model, plain = opened(tmp_path, "teacher"), opened(tmp_path, "plain")
    assert model.teacher is model.of and model.passes == () and model.null == 3 and model.guided
    assert model.denoiser() is model.of
    guided = model.denoiser(1.5)
    assert isinstance(guided, Guided) and guided.weight == 1.5 and int(guided.null) == 3  # type: ignore[arg-type]
    labels = model.told(Ask(guidance=1.5), SEEDS)
    assert isinstance(labels, torch.Tensor) and labels.dtype == torch.int64
    with pytest.raises(ValueError, match="plain does not say which label stands for none"):
        plain.denoiser(1.0)
    with pytest.raises(ValueError, match="digits takes the guidance weight 1 not: expected none"):
        open_model("digits", Places()).told(Ask(guidance=1.0), SEEDS)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_text_to_image_pipeline_is_told_its_prompt_and_decodes_its_latents(pipelines: dict[str, Path]) -> None:
    folder = pipelines["sd"].parent
    model = opened(folder, "sd")
    assert model.prompted and model.guided and model.latents is not None and model.shape == (4, 8, 8)
    cond = model.told(Ask(prompt="a cat"), SEEDS)
    assert isinstance(cond, dict)
    assert torch.equal(cond["text"], encode_prompts(folder / "sd", "a cat")["text"].expand(3, -1, -1))
    assert isinstance(model.denoiser(2.0), Guided)
    with pytest.raises(ValueError, match="sd is told a text: give a prompt"):
        model.told(Ask(), SEEDS)
    # Its student takes text encoder and decoder from there, if that may be opened.
    teacher = load_teacher(folder / "sd")
    student = student_from_teacher(teacher, [0.5, 0.0])
    student.net.freeze_backbone()
    note = {"origin": origin_to_note(folder / "student", teacher, str(folder / "sd"), None)}
    save_student(folder / "student", student, adapter_only=True, **note)
    made = opened(folder, "student")
    assert made.prompted and made.latents is not None and made.told(Ask(prompt="a cat"), SEEDS) is not None
    shutil.copytree(folder / "student", folder / "alone" / "student")
    with pytest.raises(FileNotFoundError, match="the teacher of .*student is needed"):
        opened(folder / "alone", "student")


def test_what_makes_no_pictures_or_starts_from_one_is_refused(tmp_path: Path) -> None:
    save_teacher(tmp_path / "signal", Prediction(UNet(2, [16], (4, 8), attention=()), Cosine(), "v"))
    with pytest.raises(ValueError, match=r"signal makes samples of shape \(2, 16\), which are no pictures, and"):
        opened(tmp_path, "signal")
    net = PairedUNet({"in_channels": 1, "image_size": 4, "channels": [4], "attention": []})
    bridge = BridgePrediction(net, I2SB(), "x0", (0.7, 0.6, 0.2), None, (1, 4, 4))
    save_student(tmp_path / "crossing", student_from_bridge(bridge))
    with pytest.raises(ValueError, match="crossing starts from a picture: `dsno sample --input` gives it one"):
        opened(tmp_path, "crossing")
