"""What decides the cost of a run, as data."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsno.bridge.coefficients import BrownianBridge
from dsno.bridge.prediction import BridgePrediction
from dsno.bridge.student import as_teacher, generate_crossings, student_from_bridge
from dsno.denoise import Prediction
from dsno.inverse.start_net import NoisePredictor
from dsno.nets.paired import PairedUNet
from dsno.nets.unet import UNet
from dsno.runs.workload import Crossings, Starts, Workload
from dsno.schedule import Cosine
from dsno.train import TrainConfig


def small(classes: int | None = None) -> Prediction:
    return Prediction(UNet(1, 8, (8, 16), classes=classes), Cosine(), "v")


def test_evaluations_count_heun_twice_and_guidance_again() -> None:
    work = Workload("small", small, count=10, steps=8)
    assert [replace(work, solver=s).evaluations for s in ("ddim", "dpm2", "heun")] == [8, 8, 15]
    assert replace(work, guided=True).evaluations == 16


@pytest.mark.parametrize(
    "times, others, kinds",
    [
        ((0.5, 0.25, 0.0), None, [(1.0, (0, 1, 2))]),
        ((0.5, 0.25, 0.0), 0.25, [(0.75, (2,)), (0.25, (0, 2))]),
        ((0.0,), 0.25, [(1.0, (0,))]),
    ],
)
def test_a_step_supervises_all_frames_or_the_last_and_sometimes_another(
    times: tuple[float, ...], others: float | None, kinds: list[tuple[float, tuple[int, ...]]]
) -> None:
    assert Workload("small", small, times=times, others=others).supervised == kinds


def test_a_trajectory_takes_its_numbers_and_what_it_was_told() -> None:
    work = Workload("small", small, times=(0.5, 0.0), targets=("x0",))
    # A seed of 8 bytes, and noise and two frames of halves.
    assert work.trajectory_bytes((1, 8, 8), None) == 8 + 3 * 64 * 2
    assert work.trajectory_bytes((1, 8, 8), 10) == 8 + 3 * 64 * 2 + 8
    both = replace(work, targets=("x0", "state"), stored="float32", guided=True)
    assert both.trajectory_bytes((1, 8, 8), 10) == 8 + 5 * 64 * 4 + 8 + 4


def test_its_teacher_may_be_changed_and_its_student_is_of_its_times() -> None:
    teacher = small()
    work = Workload("small", lambda: teacher, times=(0.5, 0.0), student={"target": "state"})
    own = work.own_teacher()
    assert own is not teacher and all(map(torch.equal, own.state_dict().values(), teacher.state_dict().values()))
    made = work.student_of(teacher)
    assert made.times.tolist() == [0.5, 0.0] and made.target == "state"


def test_a_crossing_stores_what_it_starts_from(tmp_path: Path) -> None:
    net = PairedUNet({"in_channels": 1, "image_size": 8, "channels": [4], "attention": []})
    bridge = BridgePrediction(net, BrownianBridge(), shape=(1, 8, 8))
    work = Crossings("bridge", lambda: as_teacher(bridge), count=40, calls=4)
    assert work.evaluations == 4
    made = generate_crossings(bridge, torch.zeros(3, 1, 8, 8), tmp_path / "set", 40, calls=4)
    written = sum(p.stat().st_size for p in (tmp_path / "set").glob("shard-*"))
    told = 40 * work.trajectory_bytes((1, 8, 8), None)
    assert len(made) == 40 and told <= written <= told + 4000  # headers
    # Its student is the bridge's.
    student = work.student_of(work.own_teacher())
    assert student.times.tolist() == [0.0] and {*student.state_dict()} == {*student_from_bridge(bridge).state_dict()}


def test_what_is_trained_of_a_start_is_the_predictor_and_its_critic() -> None:
    work = Starts("start", small, channels=(8,), train=TrainConfig(steps=3))
    teacher = work.own_teacher()
    step = work.student_of(teacher)
    x = torch.randn(2, 1, 8, 8)
    step(x, None, 1.0, (0,)).square().mean().backward()
    parts = {"net": step.learner.net, "critic": step.learner.critic, "teacher": step.teacher}
    grads = {name for name, part in parts.items() if any(p.grad is not None for p in part.parameters())}
    assert grads == {"net", "critic"} and not any(p.requires_grad for p in step.teacher.parameters())
    net = NoisePredictor({"in_channels": 1, "image_size": 8, "channels": [8]})
    assert work.written(step) == sum(p.numel() for p in net.parameters())
    with torch.device("meta"):
        assert step.to("meta")(x.to("meta"), None, 1.0, (0,)).shape == (4 * 2, 1, 8, 8)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"teach_batch": -1}, "teach_batch must be at least 1, got -1"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"count": -1}, "0 or more trajectories of 1 or more frames, got -1 of"),
        ({"solver": "rk9"}, "unknown solver 'rk9': expected one of ddim"),
        ({"times": ()}, "1 or more frames, got 20000 of \\(\\)"),
    ],
)
def test_what_is_no_run_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Workload("small", small, **change)  # type: ignore[arg-type]
