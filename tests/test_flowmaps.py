"""Flow maps of two times: exact where the flow is known, and the losses vanish there and nowhere near it."""

import math
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dsno.denoise import Gaussian, GaussianMixture, Prediction
from dsno.distill.flowmaps import FlowMapMatching, jvp, velocity
from dsno.schedule import Cosine, RectifiedFlow, Schedule, VPLinear, quadratic, uniform
from dsno.solve import DDIM, SolverSampler
from dsno.students.flowmap import load_student
from dsno.students.twotime import FlowMap, FlowMapSampler, flow_map_from_teacher, load_flow_map, save_flow_map
from dsno.teachers.unet import UNet
from dsno.train import TrainConfig, train

D64 = torch.float64
SCHEDULES = [Cosine(), RectifiedFlow(), VPLinear()]
MEAN, STD = torch.tensor([0.5, -1.0, 0.2], dtype=D64), torch.tensor([0.3, 0.7, 1.4], dtype=D64)


class Exact(nn.Module):
    """h of a Gaussian's exact flow, off by `wrong` times a wave."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule, self.wrong = schedule, nn.Parameter(torch.zeros((), dtype=D64))

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = ((c[:, None] for c in self.schedule(v)) for v in (t, s))
        gain = ((alpha_s**2 * STD**2 + sigma_s**2) / (alpha_t**2 * STD**2 + sigma_t**2)).sqrt()
        moved, ratio = alpha_s * MEAN + gain * (x - alpha_t * MEAN), sigma_s / sigma_t
        off = self.wrong * torch.sin(3 * x + t[:, None] + 2 * s[:, None])
        # At s = t the quotient is 0 / 0, and its limit the denoiser.
        still = (t == s)[:, None]
        D = MEAN + alpha_t * STD**2 / (alpha_t**2 * STD**2 + sigma_t**2) * (x - alpha_t * MEAN)
        return torch.where(still, D, (moved - ratio * x) / torch.where(still, 1.0, alpha_s - ratio * alpha_t)) + off


def exact(schedule: Schedule) -> FlowMap:
    return FlowMap(Exact(schedule), schedule, "x0")


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_exact_h_gives_the_exact_flow(schedule: Schedule) -> None:
    X, teacher = exact(schedule), Gaussian(schedule, MEAN, STD)
    x = torch.randn(5, 3, dtype=D64)
    for t, s in ((1.0, 0.0), (0.8, 0.3), (0.31, 0.3)):
        assert torch.allclose(X(x, t, s), teacher.flow(x, t, s), atol=1e-10)
    assert torch.equal(X(x, 0.4, 0.4), x)
    between = X(X(x, 0.9, 0.5), 0.5, 0.1)
    assert torch.allclose(between, X(x, 0.9, 0.1), atol=1e-10)
    rows = torch.rand(5, dtype=D64) * 0.4 + 0.5
    apart = torch.cat([X(x[i : i + 1], float(t), 0.2) for i, t in enumerate(rows)])
    assert torch.allclose(X(x, rows, 0.2), apart, atol=1e-12)


@pytest.mark.parametrize("method", ["lagrangian", "eulerian", "semigroup"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("derivative", ["forward", "difference"])
def test_the_losses_vanish_at_the_exact_map_alone(method: str, schedule: Schedule, derivative: str) -> None:
    X, teacher = exact(schedule), Gaussian(schedule, MEAN, STD)
    x = MEAN + STD * torch.randn(64, 3, dtype=D64)
    objective = FlowMapMatching(x, teacher, schedule, method, batch=64, span=1e-9, derivative=derivative, floor=0.02)
    batch = {k: v.double() for k, v in next(objective.batches(0)).items()}
    loss = objective(X, batch)
    (gradient,) = torch.autograd.grad(loss, X.net.wrong)
    bound = 1e-10 if derivative == "forward" else 1e-6
    assert float(loss.detach()) < bound and abs(float(gradient)) < 10 * bound
    with torch.no_grad():
        X.net.wrong.fill_(0.05)
    assert float(objective(X, batch)) > 1e-5


def test_where_the_span_is_short_the_target_is_the_teachers_step() -> None:
    schedule = Cosine()
    teacher, X = Gaussian(schedule, MEAN, STD), exact(schedule)
    objective = FlowMapMatching(torch.zeros(4, 3, dtype=D64), teacher, schedule, "semigroup", batch=4, span=1.0)
    x, t, s = torch.randn(4, 3, dtype=D64), torch.full((4,), 0.7, dtype=D64), torch.full((4,), 0.4, dtype=D64)
    step, _ = DDIM()(lambda y, at: teacher(y, torch.tensor(at)), schedule, x, 0.7, 0.4, (), None)
    assert torch.allclose(X(x, t, s) - objective.residual(X, x, t, s, None), step)


@pytest.mark.parametrize("wrong", [0.02, 0.1])
def test_residuals_bound_the_distance_of_the_samples(wrong: float) -> None:
    """Eulerian: E |X_{1->0}(x_1) - flow|^2 <= int E |residual(t, 0)|^2 dt, by the derivative of X_{t->0}(x_t) in t."""
    schedule, count = Cosine(), 4000
    teacher, X = Gaussian(schedule, MEAN, STD), exact(schedule)
    with torch.no_grad():
        X.net.wrong.fill_(wrong)
    x_1 = torch.randn(count, 3, dtype=D64) * (schedule.at(1.0)[0] ** 2 * STD**2 + schedule.at(1.0)[1] ** 2).sqrt()
    distance = (X(x_1, 1.0, 0.0) - teacher.flow(x_1, 1.0, 0.0)).square().sum(1).mean()
    total, times = 0.0, (torch.arange(40, dtype=D64) + 0.5) / 40
    objective = FlowMapMatching(x_1, teacher, schedule, "eulerian", batch=1)
    for t in times:
        x_t, rows = teacher.flow(x_1, 1.0, float(t)), t.repeat(count)
        total += float(objective.residual(X, x_t, rows, torch.zeros_like(rows), None).square().sum(1).mean()) / 40
    assert 0 < float(distance) <= total


def test_a_flow_map_of_a_teacher_starts_as_ddim() -> None:
    torch.manual_seed(0)
    teacher = Prediction(UNet(1, 8, (8, 16), classes=3), Cosine(), "v", shape=(1, 8, 8), classes=3).eval()
    X, cond = flow_map_from_teacher(teacher), torch.tensor([0, 2])
    z = torch.randn(2, 1, 8, 8)
    made = FlowMapSampler(X, uniform(5))(z, cond)
    reference = SolverSampler(teacher, Cosine(), uniform(5))(z, cond)
    assert torch.allclose(made.sample, reference.sample, atol=1e-5) and made.rounds == made.nfe == 5
    assert torch.allclose(X.x0(z, 0.6, 0.6, cond), teacher(z, torch.tensor(0.6), cond), atol=1e-5)
    # Once something has been learned, the second time counts.
    for parameter in X.parameters():
        nn.init.normal_(parameter, std=0.2)
    assert not torch.allclose(X.x0(z, 0.9, 0.1, cond), X.x0(z, 0.9, 0.5, cond), atol=1e-4)
    with pytest.raises(ValueError, match="takes no guidance weight"):
        X(z, 0.9, 0.1, {"label": cond, "weight": torch.ones(2)})


@pytest.mark.parametrize("guidance", [False, True])
def test_a_flow_map_comes_back_from_its_folder(guidance: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = Prediction(UNet(1, 8, (8,), classes=3), Cosine(), "v", shape=(1, 8, 8), classes=3).eval()
    X = flow_map_from_teacher(teacher, guidance).eval()
    for parameter in X.parameters():
        nn.init.normal_(parameter, std=0.2)
    z, label = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    cond = {"": label, "weight": torch.tensor([0.0, 2.0])} if guidance else label
    save_flow_map(tmp_path / "map", X, steps=0)
    again = load_flow_map(tmp_path / "map")
    assert torch.equal(again(z, 0.9, 0.2, cond), X(z, 0.9, 0.2, cond))
    if guidance:
        assert not torch.allclose(
            X(z, 0.9, 0.2, {**cond, "weight": torch.tensor([0.0, 0.0])})[1], X(z, 0.9, 0.2, cond)[1]
        )
    with pytest.raises(ValueError, match="holds a flow map, expected a student"):
        load_student(tmp_path / "map")
    with pytest.raises(ValueError, match="a flow map of a MLP cannot be rebuilt from a file"):
        save_flow_map(tmp_path / "other", FlowMap(MLP(), Cosine()))


def test_a_flow_map_trains_in_the_one_loop(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = Prediction(UNet(1, 4, (8,), attention=()), Cosine(), "v", shape=(1, 4, 4)).eval()
    X = flow_map_from_teacher(teacher)
    objective = FlowMapMatching(torch.randn(32, 1, 4, 4), teacher, Cosine(), "lagrangian", batch=8, floor=0.01)
    before = X.net.later.heads[0].weight.detach().clone()
    train(X, objective, TrainConfig(steps=3, lr=1e-2, warmup=1, ema=0.0), tmp_path / "training")
    assert not torch.equal(X.net.later.heads[0].weight, before)


def test_derivatives_of_a_network_agree() -> None:
    torch.manual_seed(0)
    X = flow_map_from_teacher(Prediction(UNet(1, 8, (8, 16), attention=()), Cosine(), "v", shape=(1, 8, 8))).double()
    for head in X.net.later.heads:
        nn.init.normal_(head.weight, std=0.5)
    x, t, s = (
        torch.randn(2, 1, 8, 8, dtype=D64),
        torch.tensor([0.9, 0.5], dtype=D64),
        torch.tensor([0.3, 0.2], dtype=D64),
    )
    at, along = (x, t, s), (torch.randn_like(x), torch.ones_like(t), torch.ones_like(s))
    (value, forward), (same, difference) = (jvp(X, at, along, how) for how in ("forward", "difference"))
    assert torch.allclose(value, same) and torch.allclose(forward, difference, atol=1e-6, rtol=1e-5)


def test_the_velocity_is_the_slope_of_the_flow() -> None:
    teacher, x = Gaussian(VPLinear(), MEAN, STD), torch.randn(4, 3, dtype=D64)
    ahead, behind = teacher.flow(x, 0.5, 0.5 + 1e-6), teacher.flow(x, 0.5, 0.5 - 1e-6)
    b = velocity(teacher, VPLinear(), x, torch.full((4,), 0.5, dtype=D64))
    assert torch.allclose(b, (ahead - behind) / 2e-6, atol=1e-6)


class MLP(nn.Module):
    """A plane's worth of a network: Fourier features of both times."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 + 12, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        times = torch.stack([t, s], 1)
        waves = torch.cat([f(math.pi * k * times) for f in (torch.sin, torch.cos) for k in (0.5, 1, 2)], 1)
        return self.layers(torch.cat([x, waves], 1))


@pytest.mark.parametrize("method", ["lagrangian", "eulerian", "semigroup"])
def test_training_on_a_ring_beats_the_teachers_step(method: str) -> None:
    """A few hundred steps take one pass from DDIM's error to well below it."""
    torch.manual_seed(0)
    angle = torch.arange(8) * math.pi / 4
    teacher = GaussianMixture(RectifiedFlow(), 2 * torch.stack([angle.cos(), angle.sin()], 1), 0.3)
    x = teacher.sample(4096, torch.Generator().manual_seed(1))
    X = FlowMap(MLP(), RectifiedFlow(), "flow")
    objective = FlowMapMatching(x, teacher, RectifiedFlow(), method, batch=128, floor=1e-3)
    optimizer = torch.optim.Adam(X.parameters(), 3e-3)
    for batch in islice(objective.batches(0), 250):
        optimizer.zero_grad()
        objective(X, batch).backward()
        optimizer.step()
    z = torch.randn(512, 2, generator=torch.Generator().manual_seed(2))
    reference = SolverSampler(teacher, RectifiedFlow(), quadratic(200))(z).sample
    one = FlowMapSampler(X, uniform(1))(z).sample
    euler = SolverSampler(teacher, RectifiedFlow(), uniform(1))(z).sample
    error = [float((y - reference).square().sum(1).mean().sqrt()) for y in (one, euler)]
    assert error[0] < 0.6 * error[1], error


def test_bad_input() -> None:
    x, teacher = torch.zeros(4, 3), Gaussian(Cosine(), MEAN, STD)
    with pytest.raises(ValueError, match="unknown method 'euler': expected one of lagrangian, eulerian, semigroup"):
        FlowMapMatching(x, teacher, Cosine(), "euler")
    with pytest.raises(ValueError, match=r"span must be in \(0, 1\], got 0"):
        FlowMapMatching(x, teacher, Cosine(), span=0)
    with pytest.raises(ValueError, match="build a `TwoTime` with their names"):
        flow_map_from_teacher(Prediction(nn.Linear(2, 2), Cosine()))
