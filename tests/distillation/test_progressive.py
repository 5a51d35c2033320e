"""Progressive distillation: the target is exactly the teacher's two steps, and its loss vanishes there alone."""

import copy
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dsno.denoise import Prediction
from dsno.distillation.denoising import Denoising
from dsno.distillation.progressive import (
    ProgressiveOptions,
    StepDistillation,
    ddim,
    halved,
    progressive,
    shared,
    truncated_snr,
)
from dsno.distillation.stages import Given
from dsno.grids import uniform
from dsno.nets.unet import UNet
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule, VPLinear
from dsno.solvers.first_order import ddim_inverse
from dsno.solvers.run import SolverSampler, solve
from dsno.students.flowmap import FlowMap, flow_map_from_teacher
from dsno.students.samplers import passes_of
from dsno.teachers.closed import Gaussian
from dsno.train import TrainConfig, train

D64 = torch.float64
SCHEDULES = [Cosine(), RectifiedFlow(), VPLinear(), VE()]
MEAN, STD = torch.tensor([0.5, -1.0, 0.2], dtype=D64), torch.tensor([0.3, 0.7, 1.4], dtype=D64)


class Known(nn.Module):
    """h that takes x_t to where `move(x, t, s)` takes it, off by `wrong` times a wave."""

    def __init__(self, move, schedule: Schedule) -> None:
        super().__init__()
        self.move, self.schedule, self.wrong = move, schedule, nn.Parameter(torch.zeros((), dtype=D64))

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
        moved = torch.cat([self.move(x[i : i + 1], float(t[i]), float(s[i])) for i in range(len(x))])
        (alpha_t, sigma_t), (alpha_s, sigma_s) = ((c[:, None] for c in self.schedule(v)) for v in (t, s))
        h = (moved - sigma_s / sigma_t * x) / (alpha_s - sigma_s / sigma_t * alpha_t)
        return h + self.wrong * torch.sin(3 * x + t[:, None] + 2 * s[:, None])


def two_steps(schedule: Schedule):
    """DDIM's two half steps on the Gaussian, by the solver."""
    teacher = Gaussian(schedule, MEAN, STD)

    def end(x: Tensor, t: float, s: float) -> Tensor:
        middle = schedule.from_phase(schedule.phase(torch.tensor([t, s], dtype=D64)).mean())
        return solve(teacher, schedule, x, [t, float(middle), s]).sample

    return end


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.0), (1.0, 31 / 32), (0.5, 0.25), (1 / 32, 0.0)])
def test_one_step_to_the_target_is_the_two_half_steps(schedule: Schedule, t: float, s: float) -> None:
    x, end = torch.randn(6, 3, dtype=D64), two_steps(schedule)
    x_s = end(x, t, s)
    target = ddim_inverse(schedule, x_s, x, *(torch.full((6,), v, dtype=D64) for v in (t, s)))
    made = solve(lambda x_t, t, cond=None: target, schedule, x, [t, s]).sample
    assert float((made - x_s).abs().max()) < 1e-12
    # In float32 the target is the same up to rounding, which the length of the step divides.
    x, x_s, *times = (v.float() for v in (x, x_s, torch.full((6,), t), torch.full((6,), s)))
    single = ddim_inverse(schedule, x_s, x, *times)
    assert torch.allclose(single.double(), target, atol=2e-3 if isinstance(schedule, VE) else 2e-4)


def objective(schedule: Schedule, steps: int, teacher: FlowMap | None = None, **other) -> StepDistillation:
    x = MEAN + STD * torch.randn(64, 3, dtype=D64)
    teacher = ddim(Gaussian(schedule, MEAN, STD), schedule) if teacher is None else teacher
    return StepDistillation(teacher, Denoising(x, schedule, "x0", batch=32), steps, **other)


def double(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.double() for k, v in batch.items()}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.parametrize("first", [True, False], ids=["from DDIM", "from a map"])
def test_the_loss_vanishes_at_the_targets_alone(schedule: Schedule, steps: int, first: bool) -> None:
    """From DDIM the target is its two steps, from the exact flow the flow."""
    flow = Gaussian(schedule, MEAN, STD).flow
    X = FlowMap(Known(two_steps(schedule) if first else flow, schedule), schedule, "x0")
    loss_of = objective(schedule, steps, None if first else FlowMap(Known(flow, schedule), schedule, "x0"))
    batch = double(next(loss_of.batches(0)))
    loss = loss_of(X, batch)
    (gradient,) = torch.autograd.grad(loss, X.net.wrong)
    assert float(loss.detach()) < 1e-10 and abs(float(gradient)) < 1e-9
    with torch.no_grad():
        X.net.wrong.fill_(0.05)
        assert float(loss_of(X, batch)) > 1e-5


def test_batches_are_on_the_grid_and_the_same_for_any_number_of_processes() -> None:
    plain, both = objective(Cosine(), 4), objective(Cosine(), 4, stochastic=True)
    batch, doubles = next(plain.batches(3)), next(both.batches(3))
    assert set(batch["t"].tolist()) == {0.25, 0.5, 0.75, 1.0} and torch.equal(batch["s"], batch["t"] - 0.25)
    lengths = (doubles["t"] - doubles["s"]) * 4
    assert set(lengths[doubles["t"] == 0.25].tolist()) == {1.0}
    assert set(lengths[doubles["t"] > 0.25].tolist()) == {1.0, 2.0} and float(doubles["s"].min()) == 0
    for make in (plain, both):
        whole = next(make.batches(3))
        shares = [next(make.batches(3, rank, 2)) for rank in range(2)]
        assert all(torch.equal(torch.cat([a[k], b[k]]), whole[k]) for a, b in [shares] for k in whole)
        assert torch.equal(list(islice(make.batches(2), 2))[1]["t"], whole["t"])
    later = objective(Cosine(), 4, first=3)
    later.rows = plain.rows
    assert torch.equal(next(later.batches(0))["eps"], batch["eps"])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_steps_are_learned_where_they_are_made(schedule: Schedule) -> None:
    batch = next(objective(schedule, 4).batches(3))
    net = UNet(1, 8, (4, 8), attention=())
    X = flow_map_from_teacher(Prediction(net, schedule, "v"))
    X.way, X.steps = "grid", 4
    grid = passes_of(X, 4).grid
    for name, times in (("t", grid[:-1]), ("s", grid[1:])):
        assert torch.allclose(batch[name].unique().flip(0).double(), times, rtol=1e-5, atol=1e-7)


def test_the_weight_is_the_truncated_snr() -> None:
    t = torch.tensor([0.01, 0.5, 1.0], dtype=D64)
    weight = truncated_snr(t, RectifiedFlow())
    assert torch.allclose(weight, torch.tensor([99.0**2, 1.0, 1.0], dtype=D64))


def test_halving_and_sharing() -> None:
    assert halved(32, 1) == [16, 8, 4, 2, 1] and halved(24, 3) == [12, 6, 3] and halved(2, 1) == [1]
    assert shared(70, [1.0, 1.0, 1.0, 2.0, 2.0]) == [10, 10, 10, 20, 20]
    for steps in range(5, 40):
        own = shared(steps, [1.0, 1.0, 1.0, 2.0, 2.0])
        assert sum(own) == steps and min(own) >= 1
    with pytest.raises(ValueError, match="4 training steps do not make 5 stages"):
        shared(4, [1.0] * 5)


def tiny(classes: int | None = None) -> Prediction:
    torch.manual_seed(0)
    net = UNet(1, 4, (8,), attention=(), classes=classes)
    for parameter in net.head.parameters():
        nn.init.normal_(parameter, std=0.1)
    return Prediction(net, Cosine(), "v", shape=(1, 4, 4), classes=classes).eval()


class Cut:
    """An objective that stops after so many batches."""

    def __init__(self, inner: StepDistillation, after: int) -> None:
        self.inner, self.after = inner, after

    def batches(self, start: int, rank: int = 0, world: int = 1):
        yield from islice(self.inner.batches(start, rank, world), self.after)
        raise KeyboardInterrupt

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return self.inner(model, batch)


@pytest.mark.parametrize("stochastic", [False, True])
def test_stages_train_in_the_one_loop_and_resume(stochastic: bool, tmp_path: Path) -> None:
    teacher, x = tiny(), torch.randn(32, 1, 4, 4)

    def run(folder: Path, cut: bool) -> FlowMap:
        torch.manual_seed(1)
        X = flow_map_from_teacher(teacher)
        stages = progressive(X, Given(teacher, Cosine(), 12, 8, 0, x), ProgressiveOptions(2, 8, stochastic))
        became = stages[-1].became(X)
        assert became.way == "grid" and became.steps == 2 and X.way == "any"
        assert [stage.name for stage in stages] == ["steps-4", "steps-2"]
        for stage in stages:
            config = TrainConfig(steps=stage.steps, lr=2e-3, warmup=1, ema=0.0, checkpoint_every=3)
            if cut and stage.name == "steps-2":
                held = copy.deepcopy(X)
                model, loss = stage.make(X)
                with pytest.raises(KeyboardInterrupt):
                    train(model, Cut(loss, 4), config, folder / stage.name)
                # What a new process has: the student as the stage before left it, and the checkpoint of step 3.
                X = held
            train(*stage.make(X), config, folder / stage.name, resume=cut)
        return became if not cut else stages[-1].became(X)

    X, again = run(tmp_path / "a", False), run(tmp_path / "b", True)
    assert all(torch.equal(a, b) for a, b in zip(X.parameters(), again.parameters(), strict=True))
    with pytest.raises(ValueError, match="trained for the grid of 2 step"):
        passes_of(X, 1)
    assert passes_of(X, 2)(torch.randn(4, 1, 4, 4)).rounds == 2


def test_the_student_before_teaches_as_it_was() -> None:
    teacher = tiny()
    X = flow_map_from_teacher(teacher)
    stages = progressive(X, Given(teacher, Cosine(), 12, 8, 0, torch.randn(32, 1, 4, 4)), ProgressiveOptions(2, 8))
    _, first = stages[0].make(X)
    model, second = stages[1].make(X)
    batch = next(second.batches(0))
    # It starts as DDIM, so to begin with both are taught alike.
    args = (batch["x0"], batch["t"], batch["s"], None)
    before = second._taught(*args)
    assert model is X and torch.allclose(first._taught(*args), before, atol=1e-5)
    second(X, batch).backward()
    assert all(p.grad is None for p in (*second.teacher.parameters(), *teacher.parameters()))
    with torch.no_grad():
        for parameter in X.parameters():
            parameter.add_(0.1)
    assert torch.equal(second._taught(*args), before)


def test_halving_beats_the_teacher_of_as_many_steps() -> None:
    """On a Gaussian, one pass after a few small stages is nearer to the flow than DDIM's two."""
    schedule, mean = Cosine(), torch.tensor([1.0, -0.5])
    teacher = Gaussian(schedule, mean, 0.4)
    torch.manual_seed(0)

    class Affine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.told = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 4))

        def forward(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            scale, shift = self.told(torch.stack([t, s], 1)).chunk(2, 1)
            return scale * x + shift

    X = FlowMap(Affine(), schedule, "x0")
    x = mean + 0.4 * torch.randn(512, 2)
    for stage in progressive(X, Given(teacher, schedule, 200, 64, 0, x), ProgressiveOptions(start=8)):
        model, objective = stage.make(X)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for batch in islice(objective.batches(0), stage.steps):
            optimizer.zero_grad()
            objective(model, batch).backward()
            optimizer.step()
    z = torch.randn(512, 2)
    exact = teacher.flow(z, 1.0, 0.0)
    errors = [
        float((y - exact).square().mean().sqrt())
        for y in (X.sample(z), SolverSampler(teacher, schedule, uniform(2))(z).sample)
    ]
    assert errors[0] < errors[1], errors


def test_bad_input() -> None:
    teacher, x = tiny(), torch.randn(8, 1, 4, 4)
    X = flow_map_from_teacher(teacher)

    def given(**other) -> Given:
        return Given(teacher, Cosine(), **{"steps": 40, "x": x, **other})

    with pytest.raises(ValueError, match="halving the teacher's 32 steps gives 16, 8, 4, 2, 1, not 3 passes"):
        progressive(X, given(), ProgressiveOptions(3))
    with pytest.raises(ValueError, match="halving the teacher's 1 steps gives nothing, not 1 passes"):
        progressive(X, given(), ProgressiveOptions(start=1))
    with pytest.raises(ValueError, match="3 training steps do not make 5 stages"):
        progressive(X, given(steps=3))
    with pytest.raises(ValueError, match="there are none: give some as data"):
        progressive(X, given(x=None))
    assert X.way == "any" and X.steps is None
