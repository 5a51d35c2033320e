"""A student comes back from its folder as it was, and a folder that is wrong says why."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from dsno.checkpoint import read_json, read_tensors, write_json, write_tensors
from dsno.denoise import Prediction
from dsno.nets.unet import UNet
from dsno.schedule import Cosine, RectifiedFlow, Schedule, linear_beta
from dsno.students.files import checked_weight, load_student, save_student
from dsno.students.flowmap import FlowMap, flow_map_from_teacher
from dsno.students.operator import student_from_teacher
from dsno.students.samplers import OnePass
from maps import MLP
from operators import TIMES, restartable, student, teacher


def test_a_folder_says_that_a_student_restarts_and_else_nothing(tmp_path: Path) -> None:
    for name, made in (("plain", student()), ("again", restartable())):
        save_student(tmp_path / name, made)
        loaded = load_student(tmp_path / name)
        assert loaded.restarts == made.restarts == (name == "again") and loaded.config == made.config
    plain, again = (read_json(tmp_path / name / "config.json") for name in ("plain", "again"))
    assert plain.pop("sha256") != again.pop("sha256")
    assert "restarts" not in plain and again == {**plain, "restarts": True}


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"target": "state"},
        {"classes": 3},
        {"where": "every", "once": False},
        {"where": "none"},
        {"activation": "leaky_relu", "modes": 3},
    ],
    ids=str,
)
def test_a_student_comes_back_from_its_folder(arguments: dict[str, object], tmp_path: Path) -> None:
    made = student(**arguments)
    save_student(tmp_path / "student", made, steps=7)
    loaded = load_student(tmp_path / "student")
    assert not any(m.training for m in loaded.modules())
    assert loaded.config == made.config and torch.equal(loaded.times, made.times)
    z, cond = torch.randn(2, 1, 8, 8), torch.tensor([0, 2]) if "classes" in arguments else None
    assert torch.equal(OnePass(loaded, True)(z, cond).x, OnePass(made, True)(z, cond).x)
    assert read_json(tmp_path / "student" / "config.json")["notes"] == {"steps": 7}


@pytest.mark.parametrize("made", [Cosine(-10, 12), RectifiedFlow(), linear_beta(num_steps=10)], ids=repr)
def test_its_schedule_and_kind_come_back_too(made: Schedule, tmp_path: Path) -> None:
    save_student(tmp_path, student_from_teacher(teacher("eps", schedule=made), TIMES, "state"))
    loaded = load_student(tmp_path)
    assert loaded.schedule == made and loaded.kind == "eps" and loaded.target == "state"


@pytest.mark.parametrize("guidance", [False, True])
def test_a_flow_map_comes_back_from_its_folder(guidance: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = Prediction(UNet(1, 8, (8,), classes=3), Cosine(), "v", shape=(1, 8, 8), classes=3).eval()
    X = flow_map_from_teacher(teacher, guidance).eval()
    for parameter in X.parameters():
        nn.init.normal_(parameter, std=0.2)
    z, label = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    cond = {"": label, "weight": torch.tensor([0.0, 2.0])} if guidance else label
    save_student(tmp_path / "map", X, steps=0)
    again = load_student(tmp_path / "map")
    assert torch.equal(again(z, 0.9, 0.2, cond), X(z, 0.9, 0.2, cond))
    if guidance:
        assert not torch.allclose(
            X(z, 0.9, 0.2, {**cond, "weight": torch.tensor([0.0, 0.0])})[1], X(z, 0.9, 0.2, cond)[1]
        )
    assert type(again) is FlowMap
    with pytest.raises(ValueError, match="a flow map has no adapter"):
        save_student(tmp_path / "map", X, adapter_only=True)
    with pytest.raises(ValueError, match="a flow map of a MLP cannot be rebuilt from a file"):
        save_student(tmp_path / "other", FlowMap(MLP(), Cosine()))


def edit(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    write_json(folder / "config.json", config)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda c: c.update(tmies=[0.0]),
            "unknown key 'tmies' in the configuration of a student: did you mean 'times'",
        ),
        (lambda c: c["backbone"].update(chanels=[4]), "unknown key 'chanels' in .*UNet: did you mean 'channels'"),
        (lambda c: c["lift"].update(mods=2), "unknown key 'mods' in the configuration of a lift: did you mean 'modes'"),
        (lambda c: c["schedule"].update(name="Cosin"), "unknown schedule 'Cosin'"),
        (lambda c: c.pop("lift"), "the configuration of a student lacks lift"),
        (lambda c: c["lift"].pop("temporal"), "the configuration of a lift lacks temporal"),
        (lambda c: c.update(times=[0.5, 0.0]), r"has 4 frames but \(2,\) times"),
        (lambda c: c["backbone"].update(channels=[8, 8]), "holds another architecture than its configuration says"),
        (lambda c: c.update(type="teacher"), "holds a teacher, expected a student"),
    ],
)
def test_a_wrong_configuration_is_explained(change, message: str, tmp_path: Path) -> None:
    save_student(tmp_path, student())
    edit(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        load_student(tmp_path)


def test_broken_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        load_student(tmp_path / "nowhere")
    save_student(tmp_path, student())
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or damaged"):
        load_student(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors \(it has config\.json\)"):
        load_student(tmp_path)


@pytest.mark.parametrize(
    "notes, least, inside, outside, expected",
    [
        ({}, 0.0, 1e6, -0.1, "0 or more"),
        ({"options": {"guidance": [0.5, 4]}}, 0.5, 4.0, 4.1, "0.5 to 4"),
        ({"guidance": [2.0, 2.0]}, 2.0, 2.0, 0.0, "2$"),
    ],
)
def test_a_weight_is_one_that_the_student_was_trained_for(
    notes: dict[str, object], least: float, inside: float, outside: float, expected: str, tmp_path: Path
) -> None:
    save_student(tmp_path, student(), **notes)
    assert checked_weight(tmp_path) == least and checked_weight(tmp_path, inside) == inside
    for weight in (outside, float("nan"), float("inf")):
        with pytest.raises(
            ValueError, match=f"was not trained for the guidance weight {weight:g}: expected {expected}"
        ):
            checked_weight(tmp_path, weight)


def test_weights_of_another_student_are_refused(tmp_path: Path) -> None:
    save_student(tmp_path / "a", student(modes=3))
    save_student(tmp_path / "b", student(modes=2))
    write_tensors(tmp_path / "a" / "model.safetensors", read_tensors(tmp_path / "b" / "model.safetensors"))
    with pytest.raises(ValueError, match=r"a holds another architecture than its configuration says: .*temporal"):
        load_student(tmp_path / "a")


def test_what_is_stored_is_tried_out_before_it_takes_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    monkeypatch.setattr("dsno.outside.try_out", lambda make, *_: built.append(_on_meta(make)))
    save_student(tmp_path / "operator", student())
    save_student(tmp_path / "map", flow_map_from_teacher(teacher()))
    for name in ("operator", "map"):
        load_student(tmp_path / name)
    assert built == ["meta", "meta"]


def _on_meta(make: Callable[[], tuple[object, nn.Module]]) -> str:
    with torch.device("meta"):
        (device,) = {p.device.type for p in make()[1].parameters()}
    return device


@pytest.mark.parametrize(
    "dtype, expected",
    [
        (torch.float32, "157609c05d07f014462cb5b640e2997fcbe671f36326bbadcab82282d57996ff"),
        (torch.bfloat16, "0a43fbafe903ee6f82250e05d014a2cb960eec67111e543f2eeb6ff0e9aab6dd"),
    ],
    ids=str,
)
def test_an_adapter_knows_its_teacher_by_the_hash_that_it_always_had(
    dtype: torch.dtype, expected: str, tmp_path: Path
) -> None:
    net = UNet(1, 4, (4,), blocks=1, attention=())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape) / 8)
    made = student_from_teacher(Prediction(net.to(dtype), Cosine(), "v"), [0.5, 0.0])
    made.net.freeze_backbone()
    save_student(tmp_path, made, adapter_only=True)
    assert read_json(tmp_path / "config.json")["teacher"] == expected
