"""A teacher is trained into a folder of its own, resumed alike, and what does not fit together is refused at once."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsno.checkpoint import read_json
from dsno.data.load import load_data
from dsno.data.samples import Samples
from dsno.denoise import Guided
from dsno.distillation.denoising import Denoising
from dsno.nets.backbone import own_null
from dsno.nets.unet import UNet
from dsno.runs.teach import teach
from dsno.schedule import Cosine
from dsno.seeds import noise
from dsno.teachers.load import load_teacher
from dsno.teachers.native import class_names
from dsno.train import TrainConfig
from pretend import stop_at

DIGITS = load_data("digits")
TEACH = TrainConfig(steps=4, lr=1e-3, warmup=2, checkpoint_every=2, log_every=1)


def test_a_models_folder_is_not_touched_unasked(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already: pass resume=True"):
        teach(DIGITS, tmp_path, (8, 8), TEACH, 16)
    with pytest.raises(FileExistsError, match=r"holds other files \(thesis\.tex\) and not a teacher"):
        teach(DIGITS, tmp_path, (8, 8), TEACH, 16, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    for _ in range(2):
        teach(DIGITS, tmp_path / "own", (8, 8), replace(TEACH, steps=1), 16, overwrite=True)
    assert sorted(p.name for p in (tmp_path / "own").iterdir()) == ["config.json", "model.safetensors", "training"]


def test_a_teacher_that_is_complete_stays_what_it_is(tmp_path: Path) -> None:
    alike = {"images": DIGITS, "out": tmp_path, "channels": (8, 8), "batch": 16, "resume": True}
    teach(**alike, config=TEACH)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"is complete, trained with lr = 0\.001, now 0\.01: resume alike"):
        teach(**alike, config=replace(TEACH, lr=1e-2))
    assert (tmp_path / "config.json").read_bytes() == before
    teach(**alike, config=replace(TEACH, lr=1e-2, steps=6))
    assert read_json(tmp_path / "config.json")["notes"]["changes"] == [{"step": 4, "lr": [0.001, 0.01]}]
    shutil.rmtree(tmp_path / "training")
    with pytest.raises(ValueError, match="holds a finished model and no checkpoint to go on from"):
        teach(**alike, config=TEACH)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch": 8}, "was trained with batch = 16, now 8: resume alike"),
        ({"kind": "x0"}, "with kind = v, now x0"),
        ({"conditional": True}, "with conditional = False, now True"),
        ({"images": replace(DIGITS, name="others")}, "with images = digits, now others"),
        ({"channels": (8, 12)}, "holds another architecture"),
        ({"config": replace(TEACH, seed=1)}, "with seed = 0, now 1"),
    ],
)
def test_a_teacher_is_resumed_alike(change: dict[str, object], message: str, tmp_path: Path) -> None:
    alike = {"images": DIGITS, "out": tmp_path, "channels": (8, 8), "config": TEACH, "batch": 16}
    with pytest.raises(KeyboardInterrupt):
        teach(**alike, report=stop_at("teach", 3))
    with pytest.raises(ValueError, match=message):
        teach(**{**alike, **change}, resume=True)
    teach(**alike, resume=True)


def test_a_patch_passes_through_the_channels_or_is_refused(tmp_path: Path) -> None:
    """Noise that a network cannot represent stays in what it samples: a patch of 16 numbers in 8 channels."""
    config = replace(TEACH, steps=1)
    with pytest.raises(ValueError, match=r"a patch of 16 numbers does not pass through 8 channels.*: take 16 or more"):
        teach(DIGITS, tmp_path / "v", (8, 8), config, 16, patch=4)
    assert not (tmp_path / "v").exists()
    for kind, channels in (("v", (16, 8)), ("x0", (8, 8))):
        teach(DIGITS, tmp_path / kind, channels, config, 16, kind, patch=4)


@pytest.mark.parametrize(
    "images, options, message",
    [
        (DIGITS.x[:0], {}, "here is empty"),
        (torch.zeros(4, 1, 8, 8), {}, "here is constant"),
        (DIGITS.x * 200, {}, r"here has values in \[-200, 200\] with standard deviation .*, expected about 1"),
        (DIGITS.x[:, 0, 0], {}, r"here must have shape \(N, C, \*spatial\)"),
        (DIGITS.x[..., :7], {}, "images of 7 pixels cannot be halved 1 times"),
        (DIGITS.x, {"conditional": True}, "here has no labels: train an unconditional teacher"),
        (DIGITS.x, {"channels": (8, 8, 8, 8, 8)}, "images of 8 pixels cannot be halved 4 times"),
        (DIGITS.x, {"batch": 0}, "batch must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_taught_is_refused(images: torch.Tensor, options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        teach(Samples(images, None, "here"), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_names_of_classes_are_in_the_folder_and_empty_ones_are_said(tmp_path: Path) -> None:
    said: list[str] = []
    named = replace(DIGITS, labels=DIGITS.labels % 2, names=("even", "odd", "neither"))
    teacher = teach(
        named, tmp_path, (8,), TEACH, 16, conditional=True, report=lambda stage, done, total, text: said.append(text)
    )
    assert teacher.classes == 3 and class_names(tmp_path) == ("even", "odd", "neither")
    assert read_json(tmp_path / "config.json")["notes"]["class_names"] == ["even", "odd", "neither"]
    assert "1 of 3 classes have no sample (2)" in said
    assert class_names(tmp_path / "elsewhere") is None


def test_a_teacher_that_sometimes_is_not_told_can_be_guided(tmp_path: Path) -> None:
    config = replace(TEACH, steps=3)
    teacher = teach(DIGITS, tmp_path / "t", (8, 16), config, 16, conditional=True, drop=0.5)
    assert teacher.classes == 10 and teacher.net.label.num_embeddings == 11
    z, label = noise([0, 1], (1, 8, 8)), torch.tensor([3, 4])
    with torch.no_grad():
        teacher.net.label.weight.normal_()
        teacher.net.emb.requires_grad_(False)
        guided = Guided(teacher, torch.tensor(10), 1.0)(z, torch.tensor(0.5), label)
        told, untold = (teacher(z, torch.tensor(0.5), c) for c in (label, torch.full_like(label, 10)))
    torch.testing.assert_close(guided, 2 * told - untold)
    drawn = next(Denoising(DIGITS.x, Cosine(), labels=DIGITS.labels, batch=1000, null=10, drop=0.3).batches(0))["cond"]
    assert 230 < int((drawn == 10).sum()) < 370
    with pytest.raises(ValueError, match="labels can only be dropped where there are labels"):
        teach(DIGITS, tmp_path / "u", (8, 16), config, 16, drop=0.5)


def test_a_conditional_teacher_learns_what_stands_for_no_class_unless_told_otherwise(tmp_path: Path) -> None:
    config = replace(TEACH, steps=1)
    for name, options, null in (("by", {}, 10), ("not", {"drop": 0.0}, None), ("un", {"conditional": False}, None)):
        teacher = teach(DIGITS, tmp_path / name, (8, 8), config, 16, **{"conditional": True, **options})
        assert own_null(teacher) == own_null(load_teacher(tmp_path / name)) == null
    net = UNet(1, 8, (8, 8), classes=10)
    assert own_null(teach(DIGITS, tmp_path / "given", config=config, batch=16, conditional=True, net=net)) is None
