"""The objectives vanish at the exact solution, weigh the frames as they say, and are functions of the step alone."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dsno.denoise import Prediction
from dsno.distillation.regression import TrajectoryDistillation, frame_weights
from dsno.grids import uniform
from dsno.nets.unet import UNet
from dsno.schedule import Cosine, RectifiedFlow, Schedule
from dsno.solvers.run import initial_state
from dsno.students.blocks import Told
from dsno.students.operator import TrajectoryStudent, student_from_teacher
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectories.store import store
from operators import SAMPLER, SHAPE, TIMES, Solving, solving


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrajectorySet:
    out = tmp_path_factory.mktemp("trajectories")
    return store(SAMPLER, SHAPE, out / "set", 64, targets=("x0", "state"), batch=64, dtype=torch.float32)


def first(objective: TrajectoryDistillation, count: int, **where: int) -> list[dict]:
    return list(islice(objective.batches(0, **where), count))


def shares(schedule: Schedule, times: Sequence[float], name: str) -> list[float]:
    return frame_weights(schedule, torch.tensor(times, dtype=torch.float64), name).tolist()


def test_the_published_weights_give_the_last_frame_nearly_everything() -> None:
    weights = torch.tensor([1, 2.41, 10.15, 10000])
    made = torch.tensor(shares(Cosine(), [0.5625, 0.25, 0.0625, 0.0], "snr"))
    assert torch.allclose(made / made[0], weights, rtol=2e-3)
    assert round(100 * float(made[-1]), 2) == 99.86
    imagenet = torch.tensor(shares(Cosine(), [0.75, 0.5, 0.25, 0.0], "snr"))
    assert torch.allclose(imagenet / imagenet[0], torch.tensor([1, 1, 2.41, 10000]), rtol=2e-3)
    assert round(100 * float(imagenet[-1]), 2) == 99.96


def test_frame_weights() -> None:
    times = [0.5625, 0.25, 0.0625, 0.0]
    assert shares(Cosine(), times, "snr5") == pytest.approx([w / 13.414 for w in (1, 2.414, 5, 5)], rel=1e-3)
    assert shares(Cosine(), times, "uniform") == [0.25] * 4
    assert shares(Cosine(), times, "last") == [0, 0, 0, 1]
    # sigma = 0 at the end of a straight path: the clamp, not infinity.
    assert shares(RectifiedFlow(), [0.5, 0.0], "snr5") == pytest.approx([1 / 6, 5 / 6])
    for name in ("snr", "snr5", "snr2.5", "uniform", "last"):
        assert sum(shares(Cosine(), times, name)) == pytest.approx(1)
    for name in ("snr0.5", "snrx", "snrinf", "snrnan", "snr1e400", "min", ""):
        with pytest.raises(ValueError, match="unknown frame weighting"):
            shares(Cosine(), times, name)


@pytest.mark.parametrize("weights", ["snr", "snr5", "uniform", "last"])
@pytest.mark.parametrize(
    "options", [{}, {"others": 1.0}, {"inner_starts": 1.0}, {"others": 1.0, "inner_starts": 0.5}], ids=str
)
@pytest.mark.parametrize("target", ["x0", "state"])
def test_the_loss_vanishes_at_the_exact_flow(target: str, options: dict, weights: str, data: TrajectorySet) -> None:
    student = solving(target)
    objective = TrajectoryDistillation(data, student, weights, batch=32, **options)
    for batch in first(objective, 4):
        assert objective(student, batch).item() < 1e-5
        start, frames = student.net.asked[-1]
        assert start == ([1.0, *TIMES.tolist()][batch["first"]]) and frames == batch["frames"]
        assert frames[-1] == 3 and frames[0] >= batch["first"]


def test_the_loss_is_the_weighted_mean_of_the_frames(data: TrajectorySet) -> None:
    student = TrajectoryStudent(Solving("x0"), Cosine(), TIMES, "x0", "x0")
    objective = TrajectoryDistillation(data, student, "snr5", "l2", batch=32)
    (batch,) = first(objective, 1)
    off = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def shifted(x: Tensor, cond: Tensor | None, start: float, frames: Sequence[int]) -> Tensor:
        return student(x, cond, start, frames) + off[list(frames)].reshape(1, -1, 1, 1, 1)

    assert objective(shifted, batch).item() == pytest.approx(float((objective.shares * off**2).sum()), rel=1e-4)


@pytest.mark.parametrize("start", [0, 1])
def test_dropping_frames_keeps_the_expected_loss(start: int, data: TrajectorySet) -> None:
    student = solving("x0")
    objective = TrajectoryDistillation(data, student, "snr5", "l2", batch=32, others=1.0)
    (batch,) = first(objective, 1)
    off = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def shifted(x: Tensor, cond: Tensor | None, begin: float, frames: Sequence[int]) -> Tensor:
        return student(x, cond, begin, frames) + off[list(frames)].reshape(1, -1, 1, 1, 1)

    each = [
        objective(shifted, {**batch, "first": start, "frames": (m, 3), "boost": 3 - start}).item()
        for m in range(start, 3)
    ]
    assert sum(each) / len(each) == pytest.approx(float((objective.shares * off**2)[start:].sum()), rel=1e-4)
    drawn = {(b["frames"], b["boost"]) for b in first(objective, 40)}
    assert drawn == {((0, 3), 3), ((1, 3), 3), ((2, 3), 3)}


def test_frames_without_weight_are_not_computed(data: TrajectorySet) -> None:
    for others in (None, 0.5):
        (batch,) = first(TrajectoryDistillation(data, solving("x0"), "last", batch=16, others=others), 1)
        assert batch["frames"] == (3,) and batch["boost"] == 1


def test_batches_are_a_function_of_seed_step_and_rank(data: TrajectorySet) -> None:
    objective = TrajectoryDistillation(data, solving("x0"), batch=16, seed=5, others=1.0, inner_starts=0.5)
    straight = first(objective, 9)
    resumed = list(islice(objective.batches(6), 3))
    for a, b in zip(straight[6:], resumed, strict=True):
        assert torch.equal(a["seeds"], b["seeds"]) and (a["first"], a["frames"]) == (b["first"], b["frames"])
    ranks = [first(objective, 9, rank=r, world=2) for r in range(2)]
    for whole, left, right in zip(straight, *ranks, strict=True):
        assert torch.equal(torch.cat([left["seeds"], right["seeds"]]), whole["seeds"])
        assert left["frames"] == right["frames"] == whole["frames"] and left["first"] == right["first"]
    assert len({b["first"] for b in straight}) > 1


def test_what_does_not_fit_is_refused(data: TrajectorySet, tmp_path: Path) -> None:
    assert TrajectoryDistillation(data, solving("x0"), "snr", batch=16).describe() == (
        "loss shares by frame (snr): t = 0.5625: 0.01 %, t = 0.25: 0.02 %, t = 0.0625: 0.10 %, t = 0: 99.86 %"
    )
    with pytest.raises(ValueError, match="the trajectories are of Cosine.*, the student of RectifiedFlow"):
        TrajectoryDistillation(data, TrajectoryStudent(Solving("x0"), RectifiedFlow(), TIMES))
    with pytest.raises(ValueError, match="the trajectories have times"):
        TrajectoryDistillation(data, TrajectoryStudent(Solving("x0"), Cosine(), uniform(4)[1:]))
    only = store(SAMPLER, SHAPE, tmp_path / "x0", 4, targets=("x0",))
    with pytest.raises(ValueError, match="the student needs 'state': generate it"):
        TrajectoryDistillation(only, solving("state"))
    with pytest.raises(ValueError, match="4 rows do not fill one batch of 256: use a smaller batch or more rows"):
        TrajectoryDistillation(only, solving("x0"))
    with pytest.raises(
        ValueError, match=r"these hold \('x0',\): generate them with both, `generate\(..., targets=\('x0', 'state'\)\)`"
    ):
        TrajectoryDistillation(only, solving("x0"), batch=4, inner_starts=0.5)
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=rf"inner_starts is the share of steps .* in \[0, 1\], got {share}"):
            TrajectoryDistillation(data, solving("x0"), batch=16, inner_starts=share)
    with pytest.raises(ValueError, match="a student of one frame has none"):
        alone = TrajectorySet(data.folder, times=[0.0])
        TrajectoryDistillation(alone, student_from_teacher(small(), [0.0]), batch=16, inner_starts=0.5)


def small() -> Prediction:
    return Prediction(UNet(1, 4, (4, 8), attention=()), Cosine(), "v")


@pytest.mark.parametrize("once, told", [(True, "input"), (False, "input"), (True, "output"), (False, "output")])
def test_inner_starts_need_a_network_that_is_told_its_start(once: bool, told: Told, data: TrajectorySet) -> None:
    student = student_from_teacher(small(), TIMES, once=once, told=told, init="normal")
    assert (student.net.once, student.net.told) == (once, told)
    for p in student.parameters():
        nn.init.normal_(p, std=0.2)
    x = torch.randn(2, *SHAPE)
    hears = not torch.equal(student.net(x, TIMES, None, 1.0), student.net(x, TIMES, None, 0.25))
    assert hears == (once or told == "input")
    if hears:
        objective = TrajectoryDistillation(data, student, batch=16, inner_starts=1.0)
        assert all(objective(student, batch).isfinite() and batch["first"] for batch in first(objective, 3))
    else:
        with pytest.raises(ValueError, match=r"told its start: make it with told='input' or once=True"):
            TrajectoryDistillation(data, student, batch=16, inner_starts=0.5)


@pytest.mark.parametrize("options", [{}, {"others": 1.0, "inner_starts": 0.5}], ids=str)
@pytest.mark.parametrize("target", ["x0", "state"])
def test_a_student_learns(target: str, options: dict, data: TrajectorySet) -> None:
    student = student_from_teacher(small(), TIMES, target, init="normal")
    objective = TrajectoryDistillation(data, student, "uniform", "l2", batch=32, **options)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    losses = []
    for batch in first(objective, 40):
        loss = objective(student, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_noise_is_what_the_path_says(data: TrajectorySet) -> None:
    # The exact flow above starts from the noise of the set: one row by hand.
    row = data[5]
    made = SAMPLER(row["noise"][None])
    assert torch.allclose(made.x[0], row["state"], atol=1e-5) and torch.allclose(made.x0[0], row["x0"], atol=1e-5)
    assert torch.equal(initial_state(Cosine(), row["noise"]), Cosine().at(1.0)[1] * row["noise"])
