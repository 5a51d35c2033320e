"""Adaptive weights: they learn what each time's loss is, and a run with them trains the same student."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dsno.distillation.adaptive import Weighed, adapted
from dsno.distillation.consistency import ContinuousConsistencyOptions, continuous_consistency
from dsno.distillation.registry import METHODS
from dsno.distillation.run import run_stages
from dsno.schedule import Cosine, RectifiedFlow, Schedule
from dsno.students.files import load_student
from dsno.train import TrainConfig
from maps import small


class Echo(nn.Module):
    def forward(self, x_t: Tensor, t: Tensor, *told: object) -> Tensor:
        return x_t


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=repr)
def test_the_weight_becomes_one_over_the_loss_of_its_time(schedule: Schedule) -> None:
    """Of losses that are a known function of the phase, times noise of mean one."""
    torch.manual_seed(0)
    model = Weighed(Echo(), schedule)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)

    def loss_of(t: Tensor) -> Tensor:
        return torch.exp(3 * torch.cos(torch.pi * schedule.phase(t)))

    for step in range(400):
        t = schedule.from_phase(torch.rand(256))
        rows = loss_of(t) * torch.empty(256).exponential_()
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 400)
        optimizer.zero_grad()
        adapted(rows, model(t, t)[1]).backward()
        optimizer.step()
    t = schedule.from_phase(torch.linspace(0.05, 0.95, 19))
    with torch.no_grad():
        x, w = model(t, t)
    assert torch.equal(x, t) and float((w + loss_of(t).log()).abs().max()) < 0.4


def test_at_the_start_it_is_the_loss_without() -> None:
    student, given = small()
    (plain,) = continuous_consistency(student, given)
    (weighed,) = continuous_consistency(student, given, ContinuousConsistencyOptions(adaptive=True))
    (model, objective), (same_model, other) = weighed.make(student), plain.make(student)
    batch = next(objective.batches(5))
    assert isinstance(model, Weighed) and same_model is student
    assert torch.allclose(objective(model, batch), other(student, batch))
    gradients = [
        torch.autograd.grad(o(m, batch), [*student.parameters()]) for o, m in ((objective, model), (other, student))
    ]
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*gradients, strict=True))


def test_a_run_keeps_the_student_alone(tmp_path: Path) -> None:
    student, given = small(steps=4)
    method = METHODS["continuous-consistency"]
    config = TrainConfig(lr=1e-2, warmup=0, checkpoint_every=2)
    made = run_stages(method, ContinuousConsistencyOptions(adaptive=True), student, given, tmp_path / "out", config)
    held = load_student(tmp_path / "out").state_dict()
    assert held.keys() == made.state_dict().keys() and not any("student" in name for name in held)
