"""A bridge comes back from its folder as it was, and is not taken for a teacher that starts from noise."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dsno.bridge.coefficients import I2SB, BrownianBridge
from dsno.bridge.files import load_bridge, save_bridge
from dsno.bridge.prediction import BridgePrediction
from dsno.checkpoint import CONFIG, read_json, write_json
from dsno.denoise import Prediction
from dsno.nets.paired import PairedUNet
from dsno.nets.unet import UNet
from dsno.schedule import Cosine
from dsno.teachers.load import load_teacher
from dsno.teachers.native import save_teacher

NET = {"in_channels": 1, "image_size": 4, "channels": [8], "attention": []}


def made() -> BridgePrediction:
    net = PairedUNet(NET)
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return BridgePrediction(net, I2SB(0.1, 1.0), "i2sb", (0.7, 0.6, 0.2), 1.0, (1, 4, 4)).eval()


def test_a_bridge_comes_back_as_it_was(tmp_path: Path) -> None:
    bridge, (x, start) = made(), torch.randn(2, 3, 1, 4, 4)
    save_bridge(tmp_path, bridge, pairs="mine")
    again = load_bridge(tmp_path)
    assert (again.bridge, again.kind, again.moments) == (bridge.bridge, bridge.kind, bridge.moments)
    assert (again.clip, again.shape) == (1.0, (1, 4, 4))
    assert torch.equal(again(x, 0.4, {"start": start}), bridge(x, 0.4, {"start": start}))
    assert read_json(tmp_path / CONFIG)["notes"] == {"pairs": "mine"}


def test_what_was_changed_is_refused_unless_asked_for(tmp_path: Path) -> None:
    save_bridge(tmp_path, made())
    config = read_json(tmp_path / CONFIG)
    write_json(tmp_path / CONFIG, {**config, "kind": "x0"})
    with pytest.raises(ValueError, match="config.json or model.safetensors was changed"):
        load_bridge(tmp_path)
    assert load_bridge(tmp_path, unchecked=True).kind == "x0"
    write_json(tmp_path / CONFIG, {**config, "moments": [1.0]})
    with pytest.raises(ValueError, match="the moments of pairs are three numbers, got 1"):
        load_bridge(tmp_path, unchecked=True)


def test_a_bridge_is_no_teacher_and_a_teacher_no_bridge(tmp_path: Path) -> None:
    save_bridge(tmp_path / "bridge", made())
    with pytest.raises(ValueError, match="holds a bridge, expected a teacher"):
        load_teacher(tmp_path / "bridge")
    teacher = Prediction(UNet(1, 4, (8,), attention=()), Cosine(), "v")
    save_teacher(tmp_path / "teacher", teacher)
    with pytest.raises(ValueError, match="holds a teacher, expected a bridge"):
        load_bridge(tmp_path / "teacher")
    with pytest.raises(FileExistsError, match="holds a bridge, not a teacher"):
        save_teacher(tmp_path / "bridge", teacher)
    with pytest.raises(ValueError, match="a Identity does not say how to rebuild it"):
        save_bridge(tmp_path / "new", BridgePrediction(nn.Identity(), BrownianBridge()))
