"""MeanFlow on the pairs of trajectories: exact where the straight paths are, and which pairs it learns from."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conditional import same
from dsno.denoise import Prediction
from dsno.distillation.flowmaps import FlowMapMatching
from dsno.distillation.rectified import RectifiedOptions, nearest_pairs, rectified_meanflow
from dsno.distillation.run import distill
from dsno.nets.unet import UNet
from dsno.schedule import Cosine, Schedule
from dsno.students.flowmap import FlowMap, flow_map_from_teacher
from dsno.train import TrainConfig
from dsno.trajectories.sets import pairs_of, samples_of
from maps import D64, MEAN, SCHEDULES, STD, small
from stored import make


class Straight(nn.Module):
    """h of the map of straight paths from z to m + s z: on them z is known, and with it every other state."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule, self.wrong = schedule, nn.Parameter(torch.zeros((), dtype=D64))

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
        alpha_t, sigma_t = (c[:, None] for c in self.schedule(t))
        z = (x - alpha_t * MEAN) / (alpha_t * STD + sigma_t)
        # X = alpha_s x0 + sigma_s z lies on DDIM's step towards x0, whatever s is.
        return MEAN + STD * z + self.wrong * torch.sin(3 * x + t[:, None] + 2 * s[:, None])


@pytest.mark.parametrize("derivative", ["forward", "difference", "upwind"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_loss_vanishes_at_the_map_of_the_straight_paths_alone(schedule: Schedule, derivative: str) -> None:
    X = FlowMap(Straight(schedule), schedule, "x0")
    z = torch.randn(64, 3, dtype=D64)
    objective = FlowMapMatching(
        MEAN + STD * z, None, schedule, "meanflow", batch=64, derivative=derivative, floor=0.02, noise=z
    )
    batch = {name: rows.double() for name, rows in next(objective.batches(0)).items()}
    assert float(objective(X, batch).detach()) < (1e-10 if derivative == "forward" else 1e-6)
    # Of noise that the samples did not come from, the same map is not the flow's.
    free = FlowMapMatching(MEAN + STD * z, None, schedule, "meanflow", batch=64, derivative=derivative, floor=0.02)
    assert float(free(X, {n: r.double() for n, r in next(free.batches(0)).items()}).detach()) > 1e-2
    with torch.no_grad():
        X.net.wrong.fill_(0.05)
    assert float(objective(X, batch).detach()) > 1e-5


def test_the_pairs_are_those_of_the_trajectories_without_the_farthest(tmp_path: Path) -> None:
    data = make(tmp_path / "set", label=lambda seeds: seeds % 3)
    noises, ends, _ = pairs_of(data)
    assert torch.equal(samples_of(data)[0], ends)
    row = data[7]
    assert torch.equal(noises[7], row["noise"]) and torch.equal(ends[7], row["x0"][-1])
    x, z, labels = nearest_pairs(data, 0.25)
    assert len(x) == len(z) == len(labels) == 15
    far = (ends - noises).flatten(1).norm(dim=1)
    kept = [int((ends == row).flatten(1).all(1).nonzero()) for row in x]
    assert kept == sorted(kept) and float(far[kept].max()) <= min(float(far[i]) for i in range(20) if i not in kept)
    assert torch.equal(z, noises[kept]) and labels.tolist() == [i % 3 for i in kept]
    assert len(nearest_pairs(data, 0.0)[0]) == 20
    for drop in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"drop is the share of pairs .* in \[0, 1\), got {drop:g}"):
            nearest_pairs(data, drop)


def test_a_run_needs_no_teacher_behind_its_start_and_resumes_alike(tmp_path: Path) -> None:
    data = make(tmp_path / "set")
    torch.manual_seed(0)
    teacher = Prediction(UNet(1, 4, (8,), attention=()), Cosine(), "v", shape=(1, 4, 4)).eval()

    def run(out: str, steps: int = 4, *, resume: bool = False) -> FlowMap:
        config = TrainConfig(steps=steps, lr=1e-2, warmup=0, decay="constant", checkpoint_every=2)
        start = flow_map_from_teacher(teacher)
        return distill(None, data, tmp_path / out, "rectified-meanflow", config, batch=8, student=start, resume=resume)

    whole = run("whole")
    assert not same(whole, flow_map_from_teacher(teacher)) and whole.way == "any"
    assert same(run("whole", resume=True), whole)


def test_bad_input() -> None:
    student, given = small()
    with pytest.raises(ValueError, match="learns from the teacher's trajectories and there are none"):
        rectified_meanflow(student, given, RectifiedOptions())
    with pytest.raises(ValueError, match=r"noise is one for each sample, \(32, 1, 4, 4\), got \(31, 1, 4, 4\)"):
        FlowMapMatching(given.x, None, Cosine(), "meanflow", noise=torch.randn(31, 1, 4, 4))
