"""A bridge's trajectories go into a set, and a student of one pass learns them by the road of every student."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dsno.bridge.coefficients import I2SB, BrownianBridge
from dsno.bridge.prediction import BridgePrediction
from dsno.bridge.sampler import BridgeSampler, bridge_grid
from dsno.bridge.student import Crossing, generate_crossings, student_from_bridge
from dsno.distillation.run import distill
from dsno.nets.paired import PairedUNet
from dsno.schedule import RectifiedFlow
from dsno.seeds import noise, seed_range
from dsno.students.files import load_student
from dsno.train import TrainConfig

SHAPE = (1, 8, 8)
NET = {"in_channels": 1, "image_size": 8, "channels": [8, 8], "attention": []}
START = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))


def made(kind: str = "ddbm") -> BridgePrediction:
    torch.manual_seed(0)
    net = PairedUNet(NET)
    for p in net.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return BridgePrediction(net, I2SB(), kind, (0.7, 0.6, 0.2), None, SHAPE).eval()


@pytest.mark.parametrize("kind", ["x0", "flow", "i2sb", "ddbm"])
def test_a_student_starts_as_the_bridge_at_a_state_that_noise_makes(kind: str) -> None:
    bridge, z = made(kind), noise(seed_range(0, 3), SHAPE)
    student = student_from_bridge(bridge, t_1=0.8)
    a, _, c = bridge.bridge.at(0.8)
    expected = bridge(a * START + c * z, 0.8, {"start": START})
    torch.testing.assert_close(student.sample(z, {"start": START}), expected, rtol=1e-4, atol=1e-4)


def test_frames_all_start_so() -> None:
    student, z = student_from_bridge(made(), (0.4, 0.0)), noise(seed_range(0, 3), SHAPE)
    frames = student(z, {"start": START})
    assert frames.shape == (3, 2, *SHAPE)
    torch.testing.assert_close(frames[:, 0], frames[:, 1], rtol=1e-5, atol=1e-5)


def test_a_set_holds_what_the_sampler_makes(tmp_path: Path) -> None:
    bridge = made()
    data = generate_crossings(bridge, START, tmp_path, 7, 6, times=(0.4, 0.0), batch=4, dtype=torch.float32)
    rows = data.__getitems__(range(7))
    assert torch.equal(rows["cond"]["start"], START[torch.arange(7) % 3])
    assert torch.equal(rows["noise"], noise(seed_range(0, 7), SHAPE))
    sampler = BridgeSampler.of_calls(bridge, bridge.bridge, 6)
    # The grid is moved through the frames, so the end is near, and the same where there is none to move to.
    alone = generate_crossings(bridge, START, tmp_path / "alone", 7, 6, dtype=torch.float32)
    found = sampler(START[torch.arange(7) % 3], seeds=seed_range(0, 7)).sample
    torch.testing.assert_close(alone.__getitems__(range(7))["x0"][:, -1], found, rtol=1e-4, atol=1e-4)
    assert data.manifest["teacher"]["description"]["bridge"] == bridge.bridge.config
    assert data.manifest["solver"]["name"] == "Heun" and data.schedule == RectifiedFlow()


def test_a_student_is_distilled_from_it_and_comes_back(tmp_path: Path) -> None:
    bridge = made()
    data = generate_crossings(bridge, START, tmp_path / "set", 32, 4, batch=16)
    student, z = student_from_bridge(bridge), noise(seed_range(0, 3), SHAPE)
    before = student.sample(z, {"start": START})
    config = TrainConfig(steps=40, lr=2e-3, warmup=2)
    distill(None, data, tmp_path / "student", "knowledge", config, batch=16, student=student)
    again = load_student(tmp_path / "student")
    found, wanted = again.sample(z, {"start": START}), data.__getitems__(range(3))["x0"][:, -1].float()
    assert float((found - wanted).square().mean()) < 0.5 * float((before - wanted).square().mean())
    with pytest.raises(ValueError, match="this student is told `start`"):
        again.sample(z, {"label": torch.zeros(3, dtype=torch.int64)})


def test_what_has_no_student_is_refused() -> None:
    with pytest.raises(ValueError, match="made of a PairedUNet, and this one has a Identity"):
        student_from_bridge(BridgePrediction(nn.Identity(), BrownianBridge()))
    with pytest.raises(ValueError, match=r"t_1 is where the start ends, inside \(0, 1\), got 1"):
        student_from_bridge(made(), t_1=1.0)
    crossing = Crossing(made(), RectifiedFlow(), bridge_grid(I2SB(), 3), bridge=I2SB())
    with pytest.raises(ValueError, match="told where it comes from"):
        crossing(torch.zeros(1, *SHAPE))
