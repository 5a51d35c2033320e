"""A teacher's folder holds its convention and its network, and what is read back is the same."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dsno.checkpoint import read_json, write_json
from dsno.denoise import Kind, Prediction, Threshold
from dsno.nets.backbone import sample_shape
from dsno.nets.unet import UNet
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule, linear_beta
from dsno.students.files import load_student
from dsno.students.flowmap import flow_map_from_teacher
from dsno.students.operator import student_from_teacher
from dsno.teachers.load import load_teacher
from dsno.teachers.native import load_native, save_teacher
from operators import teacher


def small(schedule: Schedule, kind: Kind, clip: float | Threshold | None = None, data_std: float = 1.0) -> Prediction:
    net = UNet(image_size=4, channels=(4,), attention=(), classes=3)
    return Prediction(net, schedule, kind, clip=clip, data_std=data_std, shape=net.shape, classes=3)


@pytest.mark.parametrize(
    "teacher",
    [
        small(Cosine(), "v"),
        small(linear_beta(num_steps=10), "eps", 1.0),
        small(VE(80.0), "edm", None, 0.5),
        small(RectifiedFlow(), "flow", Threshold(0.9, 2.0)),
    ],
    ids=["v", "clip", "edm", "threshold"],
)
def test_what_is_read_back_is_the_same(teacher: Prediction, tmp_path: Path) -> None:
    assert save_teacher(tmp_path / "t", teacher, data="mine", steps=3) == tmp_path / "t"
    assert read_json(tmp_path / "t" / "config.json")["notes"] == {"data": "mine", "steps": 3}
    again = load_native(tmp_path / "t")
    for name in ("schedule", "kind", "clip", "data_std", "shape", "classes"):
        assert getattr(again, name) == getattr(teacher, name)
    assert not again.training
    x, t, label = torch.randn(2, 1, 4, 4), torch.tensor([0.2, 0.9]), torch.tensor([0, 2])
    with torch.no_grad():
        assert torch.equal(again(x, t, label), teacher.eval()(x, t, label))


def test_what_is_no_teacher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a Linear does not say how to rebuild it: give it what `Backbone` asks for"):
        save_teacher(tmp_path, Prediction(nn.Linear(2, 2), Cosine()))
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        load_native(tmp_path)
    save_teacher(tmp_path, small(Cosine(), "v"))
    config = read_json(tmp_path / "config.json")
    write_json(tmp_path / "config.json", {**config, "clib": 1.0})
    with pytest.raises(ValueError, match="unknown key 'clib' in the configuration of a teacher: did you mean 'clip'"):
        load_native(tmp_path)
    write_json(tmp_path / "config.json", {k: v for k, v in config.items() if k != "net"})
    with pytest.raises(ValueError, match="the configuration of a teacher lacks net"):
        load_native(tmp_path)


def test_the_shape_is_what_the_teacher_states_else_what_its_backbone_does() -> None:
    net = UNet(image_size=4, channels=(4,), attention=())
    assert sample_shape(Prediction(net, Cosine())) == (1, 4, 4)
    assert sample_shape(Prediction(net, Cosine(), shape=[1, 8, 8])) == (1, 8, 8)
    with pytest.raises(ValueError, match=r"a Identity does not say what shape it makes: pass shape=\(C, ...\)"):
        sample_shape(Prediction(nn.Identity(), Cosine()))


def test_teachers_come_back_and_are_no_students(tmp_path: Path) -> None:
    source = teacher("v", classes=3)
    source.clip = 1.5
    save_teacher(tmp_path, source, steps=3)
    loaded = load_teacher(tmp_path)
    x, t, cond = torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([0, 2])
    assert torch.equal(loaded(x, t, cond), source(x, t, cond))
    assert (loaded.schedule, loaded.kind, loaded.clip) == (source.schedule, "v", 1.5)
    with pytest.raises(ValueError, match="holds a teacher, expected a student"):
        load_student(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(kinds="v"), "unknown key 'kinds' in the configuration of a teacher: did you mean 'kind'"),
        (lambda c: c.pop("net"), "the configuration of a teacher lacks net"),
        (lambda c: c["net"].update(clases=3), "unknown key 'clases' in .*UNet: did you mean 'classes'"),
        (lambda c: c.update(kind="w"), "the configuration of a teacher: kind must be one of 'x0', 'eps', .*got 'w'"),
        (
            lambda c: c["schedule"].update(log_snr_mx=3),
            "Cosine has log_snr_min, log_snr_max: got an unexpected .*'log_snr_mx'",
        ),
    ],
)
def test_a_wrong_configuration_of_a_teacher_is_explained(change, message: str, tmp_path: Path) -> None:
    save_teacher(tmp_path, teacher())
    config = read_json(tmp_path / "config.json")
    change(config)
    write_json(tmp_path / "config.json", config)
    with pytest.raises(ValueError, match=message):
        load_teacher(tmp_path)


@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel])
def test_a_wrapped_teacher_is_the_one_inside(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    made = teacher()
    assert load_teacher(nn.DataParallel(made)) is made
    wrapped, x = wrap(made), torch.randn(2, *sample_shape(made))
    expected = made(x, torch.tensor(0.5))
    assert torch.equal(load_teacher(save_teacher(tmp_path / "made", wrapped))(x, torch.tensor(0.5)), expected)
    assert student_from_teacher(wrapped, [0.5, 0.0]).shape == flow_map_from_teacher(wrapped).shape == x.shape[1:]
