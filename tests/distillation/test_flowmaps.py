"""The losses over flow maps of two times vanish where the flow is known exactly, and nowhere near it."""

import copy
import math
from itertools import islice, product
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from dsno.denoise import Prediction
from dsno.distillation import flowmaps
from dsno.distillation.flowmaps import FlowMapMatching, ProgressiveMapOptions, velocity
from dsno.grids import quadratic, uniform
from dsno.nets.unet import UNet
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule, VPLinear, linear_beta
from dsno.solvers.first_order import DDIM
from dsno.solvers.run import SolverSampler
from dsno.students.flowmap import FlowMap, flow_map_from_teacher
from dsno.students.samplers import FlowMapSampler
from dsno.teachers.closed import Gaussian, GaussianMixture
from dsno.train import TrainConfig, train
from maps import D64, MEAN, MLP, SCHEDULES, STD, Frozen, exact, small

EVERY = ["lagrangian", "eulerian", "meanflow", "shortcut", "progressive_map", "direct"]
DERIVATIVES = [*product(EVERY, ["forward", "difference"]), ("eulerian", "upwind"), ("meanflow", "upwind")]


@pytest.mark.parametrize(("method", "derivative"), DERIVATIVES)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_losses_vanish_at_the_exact_map_alone(method: str, schedule: Schedule, derivative: str) -> None:
    X, teacher = exact(schedule), Gaussian(schedule, MEAN, STD)
    data = MEAN + STD * torch.randn(64, 3, dtype=D64)
    objective = FlowMapMatching(
        data,
        teacher,
        schedule,
        method,
        batch=64,
        derivative=derivative,
        floor=0.02,
        span=1 / 16,
        before=exact(schedule),
    )
    batch = {k: v.double() for k, v in next(objective.batches(0)).items()}
    # No step is so short that it is made of DDIM's, and differences are as good as derivatives.
    objective.span, objective.width = 0.0, 1e-8
    at = batch["s" if method == "direct" else "t"]
    alpha, sigma = (c[:, None] for c in schedule(at))
    x = alpha * batch["x0"] + sigma * batch["eps"]

    def loss() -> Tensor:
        b = velocity(teacher, schedule, x, at) if method == "direct" else None
        return objective.residual(X, x, batch["t"], batch["s"], None, b).square().mean()

    right = loss()
    gradients = torch.autograd.grad(right, [X.net.wrong, X.net.affine])
    bound = 1e-10 if derivative == "forward" or method in ("shortcut", "progressive_map") else 1e-6
    assert float(right.detach()) < bound and all(float(g.abs().max()) < 10 * bound for g in gradients)
    if method != "direct":
        assert torch.allclose(objective(X, batch), right)
    with torch.no_grad():
        X.net.wrong.fill_(0.05)
    assert float(loss().detach()) > 1e-5


class Turned(nn.Module):
    """What a network on the `Cosine` path says, on another path of the same angles."""

    def __init__(self, net: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        self.net, self.schedule = net, schedule

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
        alpha, sigma = self.schedule(t)
        return self.net(x / (alpha**2 + sigma**2).sqrt()[:, None], self.schedule.phase(t), self.schedule.phase(s))


@pytest.mark.parametrize(("method", "derivative"), [d for d in DERIVATIVES if "difference" not in d])
def test_neither_loss_nor_gradient_knows_how_the_schedule_runs_nor_scales(method: str, derivative: str) -> None:
    """The paths of VE(80) and of `Cosine` from the same signal-to-noise ratio are one, but for time and scale."""
    ve, cosine = VE(80.0), Cosine(-2 * math.log(80.0), 80.0)
    data, wrong = MEAN + STD * torch.randn(64, 3, dtype=D64), exact(cosine)
    with torch.no_grad():
        wrong.net.wrong.fill_(0.05)
    losses, gradients = [], []
    for schedule, X in ((cosine, wrong), (ve, FlowMap(Turned(wrong.net, ve), ve, "x0"))):
        objective = FlowMapMatching(
            data, Gaussian(schedule, MEAN, STD), schedule, method, batch=64, derivative=derivative
        )
        batch = {k: v.double() for k, v in next(objective.batches(0)).items()}
        drawn = FlowMapMatching(data, Gaussian(cosine, MEAN, STD), cosine, method, batch=64, derivative=derivative)
        phases = next(drawn.batches(0))
        for name in ("t", "s"):
            assert torch.allclose(schedule.phase(batch[name]), phases[name].double(), atol=1e-5)
            batch[name] = schedule.from_phase(phases[name].double())
        loss = objective(X, batch)
        losses.append(float(loss.detach()))
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(wrong.parameters()))]))
    assert losses[0] > 1e-5 and losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert torch.allclose(*gradients, rtol=1e-5)


@pytest.mark.parametrize("schedule", [*SCHEDULES, linear_beta(), VE(80.0)], ids=repr)
def test_down_to_the_floor_the_loss_is_that_of_the_exact_map(schedule: Schedule) -> None:
    """Where the slope of a beta schedule grows without end, too."""
    teacher = Gaussian(schedule, MEAN, STD)
    objective = FlowMapMatching(MEAN.repeat(4, 1), teacher, schedule, "lagrangian", batch=4)
    batch = {k: v.double() for k, v in next(objective.batches(0)).items()}
    batch["s"] = schedule.from_phase(torch.full((4,), objective.floor, dtype=D64))
    assert float(objective(exact(schedule), batch).detach()) < 1e-9


@pytest.mark.parametrize("method", ["meanflow", "shortcut", "direct"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_on_data_alone_the_expected_gradient_vanishes_at_the_exact_map(method: str, schedule: Schedule) -> None:
    """The residual at the exact map is linear in (x0, eps), and so is its gradient in an affine map's parameters: what
    they multiply to needs second moments alone, and the nodes mean +- std, +-1 have those of the Gaussian."""
    X, signs = exact(schedule), torch.tensor(list(product((1, -1), (1, -1))), dtype=D64)
    objective = FlowMapMatching(
        torch.zeros(4, 3, dtype=D64),
        None,
        schedule,
        method,
        batch=32,
        derivative="forward",
        floor=0.02,
        rest=0.5,
        span=1 / 16,
    )
    drawn, objective.span = next(objective.batches(0)), 0.0
    t, s = drawn["t"].double(), drawn["s"].double()
    gradients = []
    for off in (0.0, 0.1):
        with torch.no_grad():
            X.net.affine.fill_(off)
        # The mean over nodes of the gradients of each: rows at rest stay behind the others.
        losses = [
            objective(X, {"x0": (MEAN + a * STD).expand(32, 3), "eps": b.expand(32, 3), "t": t, "s": s})
            for a, b in signs
        ]
        gradients.append(torch.autograd.grad(sum(losses) / 4, X.net.affine)[0])
        if off == 0:
            assert float(losses[0].detach()) > 1e-3, "a single velocity is not the mean"
    assert float(gradients[0].abs().max()) < 1e-10 < 1e-3 < float(gradients[1].abs().max())


def test_on_a_straight_path_meanflow_is_theirs() -> None:
    """Geng et al., 2025, algorithm 1, with their t, r: u - sg(v - (t - r) du/dt), and its adaptive weight."""
    torch.manual_seed(0)
    schedule, net = RectifiedFlow(), MLP().double()
    X = FlowMap(net, schedule, "flow")
    objective = FlowMapMatching(
        torch.randn(64, 2, dtype=D64),
        None,
        schedule,
        "meanflow",
        batch=32,
        derivative="forward",
        rest=0.25,
        power=1.0,
        floor=0.05,
    )
    batch = {k: v.double() for k, v in next(objective.batches(0)).items()}
    t, r, x0, eps = batch["t"], batch["s"], batch["x0"], batch["eps"]
    assert int((t == r).sum()) == 8
    v, z = eps - x0, (1 - t)[:, None] * x0 + t[:, None] * eps
    u, dudt = torch.func.jvp(net, (z, t, r), (v, torch.ones_like(t), torch.zeros_like(r)))
    # Ours is in units of the scale and the angle: (1 - t)^2 + t^2 is the square of the one, and over the other's speed.
    scale_t, scale_r = (((1 - at) ** 2 + at**2).sqrt()[:, None] for at in (t, r))
    E = v - (t - r)[:, None] * dudt - u
    theirs = (scale_t * (u - (u + scale_t / scale_r * E).detach())).square().mean(1)
    theirs, ours = (theirs / (theirs.detach() + 1e-3)).mean(), objective(X, batch)
    assert torch.allclose(ours, theirs)
    gradients = (torch.autograd.grad(loss, list(net.parameters())) for loss in (ours, theirs))
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_first_progressive_target_is_two_of_the_teachers_steps(schedule: Schedule) -> None:
    teacher = Gaussian(schedule, MEAN, STD)
    objective = FlowMapMatching(torch.zeros(4, 3), teacher, schedule, "progressive_map", batch=4, span=0.5)
    x, t, s = torch.randn(4, 3, dtype=D64), torch.full((4,), 0.7, dtype=D64), torch.full((4,), 0.4, dtype=D64)
    y, middle = x, float(schedule.from_phase((schedule.phase(t) + schedule.phase(s)) / 2)[0])
    for a, b in ((0.7, middle), (middle, 0.4)):
        y, _ = DDIM()(lambda y, at: teacher(y, torch.tensor(at)), schedule, y, a, b, (), None)
    X = FlowMap(Frozen(objective._twice(objective.before, x, t, s, None)), schedule, "flow")
    assert torch.allclose(X(x, 0.7, 0.4), y, atol=1e-10)


def test_shortcut_steps_are_powers_of_two_on_their_grid_and_made_of_ddim_at_last() -> None:
    schedule = Cosine()
    teacher, X = Gaussian(schedule, MEAN, STD), exact(schedule)
    objective = FlowMapMatching(
        torch.zeros(4, 3, dtype=D64), teacher, schedule, "shortcut", batch=256, rest=0.25, span=1 / 8
    )
    batch = next(objective.batches(3))
    t, s = batch["t"][:192], batch["s"][:192]
    steps = 1 / (t - s)
    assert set(steps.round().tolist()) == {1.0, 2.0, 4.0, 8.0} and torch.allclose(t * steps, (t * steps).round())
    assert torch.equal(batch["t"][192:], batch["s"][192:]) and (batch["t"][192:] * 8 % 1).std() > 0.2
    # 1/8 is made of two of the denoiser's steps, 1/4 of the map's.
    x = torch.randn(2, 3, dtype=D64)
    for length, error in ((1 / 8, False), (1 / 4, True)):
        t, s = torch.full((2,), 0.75, dtype=D64), torch.full((2,), 0.75 - length, dtype=D64)
        objective.rest = 0.0
        with torch.no_grad():
            made = bool(objective.residual(X, x, t, s, None).abs().max() < 1e-12)
        assert made is error


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_at_the_default_span_shortcut_leaves_of_the_exact_map_the_error_of_two_ddim_steps(schedule: Schedule) -> None:
    r"""Two DDIM steps over an angle delta are off by (delta^2 / 4) |dD / d theta| / sin theta along the flow, and so is
    the velocity by (delta / 4) |dD / d theta| / sin theta, of a Gaussian (delta / 4) s^2 |z| / v^(3 / 2)."""
    X, teacher = exact(schedule), Gaussian(schedule, MEAN, STD)
    torch.manual_seed(0)
    data = MEAN + STD * torch.randn(4096, 3, dtype=D64)
    objective = FlowMapMatching(data, teacher, schedule, "shortcut", batch=4096)
    batch = {k: v.double() for k, v in next(objective.batches(0)).items()}
    t, s = batch["t"], batch["s"]
    alpha, sigma = (c[:, None] for c in schedule(t))
    x = alpha * batch["x0"] + sigma * batch["eps"]
    with torch.no_grad():
        rows = objective.residual(X, x, t, s, None).square().mean(1)
        assert torch.allclose(objective(X, batch), rows.mean())
    length = schedule.phase(t) - schedule.phase(s)
    short = (length > 0) & (length < 1.5 / 64)
    # One level in seven, of the three quarters that move. What is longer, and what rests, is exact.
    assert float(short.double().mean()) == pytest.approx(0.75 / 7, rel=0.1) and float(rows[~short].max()) < 1e-18
    v = alpha**2 * STD**2 + sigma**2
    z = (x - alpha * MEAN) / v.sqrt()
    delta, v = math.pi / 2 / 64, v / (alpha**2 + sigma**2)
    expected = (delta / 4 * STD**2 * z / v**1.5).square().mean(1)
    assert float(rows.mean()) == pytest.approx(float(expected[short].sum() / len(rows)), rel=0.05)
    assert 5e-6 < float(rows.mean()) < 5e-5


@pytest.mark.parametrize("wrong", [0.02, 0.1])
def test_residuals_bound_the_distance_of_the_samples(wrong: float) -> None:
    """Eulerian: E |X_{1->0}(x_1) - flow|^2 <= int E |residual(t, 0)|^2 dt, by the derivative of X_{t->0}(x_t) in t.

    Lagrangian: <= exp(1 + 2 L) int E |residual(1, s)|^2 ds, by Gronwall; L is the largest slope of b."""
    schedule, count = Cosine(), 1000
    teacher, X = Gaussian(schedule, MEAN, STD), exact(schedule)
    with torch.no_grad():
        X.net.wrong.fill_(wrong)
    x_1 = torch.randn(count, 3, dtype=D64) * (schedule.at(1.0)[0] ** 2 * STD**2 + schedule.at(1.0)[1] ** 2).sqrt()
    distance = (X(x_1, 1.0, 0.0) - teacher.flow(x_1, 1.0, 0.0)).square().sum(1).mean()
    times, zero, one = (
        (torch.arange(20, dtype=D64) + 0.5) / 20,
        torch.zeros(count, dtype=D64),
        torch.ones(count).double(),
    )
    along, at, lipschitz = 0.0, 0.0, 0.0
    for t in times:
        speed = math.hypot(*schedule.slope(float(t)))
        x_t, rows = teacher.flow(x_1, 1.0, float(t)), t.repeat(count)
        for method in ("eulerian", "lagrangian"):
            objective = FlowMapMatching(x_1, teacher, schedule, method, batch=1, derivative="difference")
            args = (x_t, rows, zero) if method == "eulerian" else (x_1, one, rows)
            term = float((speed * objective.residual(X, *args, None)).detach().square().sum(1).mean()) / 20
            along, at = (along + term, at) if method == "eulerian" else (along, at + term)
        (alpha, sigma), (d_alpha, d_sigma) = schedule.at(float(t)), schedule.slope(float(t))
        slopes = (d_alpha * alpha * STD**2 + d_sigma * sigma) / (alpha**2 * STD**2 + sigma**2)
        lipschitz = max(lipschitz, float(slopes.abs().max()))
    assert 0 < float(distance.detach()) <= along
    assert float(distance.detach()) <= math.exp(1 + 2 * lipschitz) * at


def test_a_flow_map_trains_in_the_one_loop(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = Prediction(UNet(1, 4, (8,), attention=()), Cosine(), "v", shape=(1, 4, 4)).eval()
    X = flow_map_from_teacher(teacher)
    objective = FlowMapMatching(torch.randn(32, 1, 4, 4), teacher, Cosine(), "lagrangian", batch=8, floor=0.01)
    before = X.net.later.heads[0].weight.detach().clone()
    train(X, objective, TrainConfig(steps=3, lr=1e-2, warmup=1, ema=0.0), tmp_path / "training")
    assert not torch.equal(X.net.later.heads[0].weight, before)


@pytest.mark.parametrize("method", ["eulerian", "meanflow"])
def test_the_default_derivative_passes_over_waves_of_t(method: str) -> None:
    """A map off by a wave of a hundredth, 150 turns to a path: its exact derivative is the wave's, the default not."""
    X, teacher = exact(RectifiedFlow()), Gaussian(RectifiedFlow(), MEAN, STD)
    net = X.net

    class Waves(nn.Module):
        def forward(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return net(x, t, s) + 0.01 * torch.sin(2 * math.pi * 150 * t)[:, None]

    waved = FlowMap(Waves(), RectifiedFlow(), "x0")
    losses = []
    for derivative in (None, "forward"):
        objective = FlowMapMatching(
            torch.zeros(256, 3), teacher, RectifiedFlow(), method, derivative=derivative, floor=0.05
        )
        batch = {k: v.double() for k, v in next(objective.batches(0)).items()}
        losses.append(float(objective(waved, batch).detach()))
    assert losses[0] < losses[1] / 30, losses


@pytest.mark.parametrize("method", ["eulerian", "meanflow"])
@pytest.mark.parametrize("schedule", [*SCHEDULES, VE(80.0)], ids=repr)
def test_differences_along_the_flow_are_of_first_order(method: str, schedule: Schedule) -> None:
    """The loss of the exact map falls with the square of the width or faster, by default far below a DDIM step's."""
    teacher = Gaussian(schedule, MEAN, STD)

    class Step(nn.Module):
        def forward(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return teacher(x, t)

    def loss(X: FlowMap, width: float) -> float:
        objective = FlowMapMatching(MEAN.repeat(256, 1), teacher, schedule, method, batch=256, width=width, floor=0.02)
        drawn = {k: v.double() for k, v in next(objective.batches(0)).items()}
        moving = drawn["s"] < drawn["t"]
        drawn["t"] = schedule.from_phase((torch.arange(256, dtype=D64) + 1) / 257)
        drawn["s"] = torch.where(moving, torch.zeros_like(drawn["t"]), drawn["t"])
        return float(objective(X, drawn).detach())

    coarse, fine = loss(exact(schedule), 0.05), loss(exact(schedule), 0.0125)
    assert coarse > 8 * fine
    assert coarse < 0.1 * loss(FlowMap(Step(), schedule, "x0"), 0.05)


def test_the_velocity_is_the_slope_of_the_flow() -> None:
    teacher, x = Gaussian(VPLinear(), MEAN, STD), torch.randn(4, 3, dtype=D64)
    ahead, behind = teacher.flow(x, 0.5, 0.5 + 1e-6), teacher.flow(x, 0.5, 0.5 - 1e-6)
    b = velocity(teacher, VPLinear(), x, torch.full((4,), 0.5, dtype=D64))
    assert torch.allclose(b, (ahead - behind) / 2e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["lagrangian", "eulerian", "shortcut"])
def test_training_on_a_ring_beats_the_teachers_step(method: str) -> None:
    """A few hundred steps take one pass from DDIM's error to well below it."""
    torch.manual_seed(0)
    angle = torch.arange(8) * math.pi / 4
    teacher = GaussianMixture(RectifiedFlow(), 2 * torch.stack([angle.cos(), angle.sin()], 1), 0.3)
    x = teacher.sample(4096, torch.Generator().manual_seed(1))
    X = FlowMap(MLP(), RectifiedFlow(), "flow")
    objective = FlowMapMatching(x, teacher, RectifiedFlow(), method, batch=128, derivative="difference")
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


@pytest.mark.parametrize("method", EVERY)
def test_every_method_is_stages_of_the_one_loop(method: str, tmp_path: Path) -> None:
    X, given = small()
    AcceleratorState._reset_state()
    X = X.trained_for("grid", 1)
    stages = getattr(flowmaps, method)(X, given)
    assert X.steps == 1 and sum(stage.steps for stage in stages) == 14
    assert all((made := stage.became(X)).way == "any" and made.steps is None for stage in stages)
    for stage in stages[:2]:
        before = copy.deepcopy(X.state_dict())
        trained, objective = stage.make(X)
        train(trained, objective, TrainConfig(steps=2, lr=1e-2, warmup=1, precision="bf16"), tmp_path / stage.name)
        assert any(not torch.equal(v, before[k]) for k, v in X.state_dict().items())


def test_in_a_stage_of_progressive_map_the_teacher_is_the_student_as_it_was() -> None:
    X, given = small()
    stages = flowmaps.progressive_map(X, given, ProgressiveMapOptions(1 / 4))
    assert [stage.name for stage in stages] == ["span-0.25", "span-0.5", "span-1"]
    assert [stage.steps for stage in stages] == [3, 3, 8]
    nn.init.normal_(X.net.backbone.head.conv.weight)
    _, objective = stages[1].make(X)
    z, label = torch.randn(2, 1, 4, 4), torch.tensor([0, 1])
    made = X(z, 0.8, 0.2, label)
    assert torch.equal(objective.before(z, 0.8, 0.2, label), made) and objective.span == 0.5
    nn.init.normal_(X.net.backbone.head.conv.weight)
    assert torch.equal(objective.before(z, 0.8, 0.2, label), made) and not torch.equal(X(z, 0.8, 0.2, label), made)
    assert not any(p.requires_grad for p in objective.before.parameters())
    batch = next(objective.batches(0))
    assert float((batch["t"] - batch["s"]).max()) <= 0.5 and float(batch["s"].min()) >= 0
    with pytest.raises(ValueError, match="in 3 stages: it takes at least 4 optimiser steps, got 3"):
        flowmaps.progressive_map(X, small(steps=3)[1], ProgressiveMapOptions(1 / 4))


@pytest.mark.parametrize("method", EVERY)
def test_batches_are_a_function_of_the_step_and_shared_by_processes(method: str) -> None:
    objective = FlowMapMatching(torch.randn(32, 2), Gaussian(Cosine(), MEAN, STD), Cosine(), method, batch=8, seed=3)
    ahead, later = list(islice(objective.batches(0), 3)), next(objective.batches(2))
    assert all(torch.equal(ahead[2][k], later[k]) for k in later)
    shares = [next(objective.batches(2, rank, 2)) for rank in (0, 1)]
    assert all(len(share["t"]) == 4 for share in shares)
    # Together they are the batch, row by row.
    rows = [torch.cat([b["x0"], b["eps"], b["t"][:, None], b["s"][:, None]], 1) for b in (later, *shares)]
    assert sorted(rows[0].tolist()) == sorted(torch.cat(rows[1:]).tolist())
    with pytest.raises(ValueError, match=r"a batch of 8, .* cannot be shared evenly by 3 processes: use a multiple"):
        next(objective.batches(0, 0, 3))
    times = torch.cat([share["t"] for share in shares])
    assert float(times.min()) > 0 and float(times.max()) <= 1 and len(set(times.tolist())) > 4
    for share in shares:
        moving = share["s"] != share["t"]
        assert int(moving.sum()) == (3 if method in ("meanflow", "shortcut") else 4)
        assert method == "direct" or bool((share["s"][moving] < share["t"][moving]).all())


def test_bad_input() -> None:
    x, teacher = torch.zeros(4, 3), Gaussian(Cosine(), MEAN, STD)
    with pytest.raises(ValueError, match="unknown residual 'euler': expected one of lagrangian, eulerian, meanflow"):
        FlowMapMatching(x, teacher, Cosine(), "euler")
    with pytest.raises(ValueError, match="lagrangian distils a teacher, and there is none: give it, or take meanflow"):
        FlowMapMatching(x, None, Cosine())
    with pytest.raises(ValueError, match=r"span must be in \(0, 1\], .* got 0"):
        FlowMapMatching(x, teacher, Cosine(), span=0)
    with pytest.raises(ValueError, match=r"of shortcut a power of 1/2, got 0.3"):
        FlowMapMatching(x, teacher, Cosine(), "shortcut", span=0.3)
    with pytest.raises(ValueError, match=r"rest is the share of rows with s = t, in \[0, 1\), got 1"):
        FlowMapMatching(x, teacher, Cosine(), "meanflow", rest=1)
    with pytest.raises(
        ValueError, match="derivative 'upwind': lagrangian takes none along the flow, expected one of forward, d"
    ):
        FlowMapMatching(x, teacher, Cosine(), derivative="upwind")
    with pytest.raises(ValueError, match="derivative 'exact': meanflow knows no other, expected one of .*, upwind"):
        FlowMapMatching(x, teacher, Cosine(), "meanflow", derivative="exact")
    for width in (0.0, 1e-4, 1.5):
        with pytest.raises(ValueError, match=rf"a difference is a share of the path in \[0.001, 1\], got {width:g}"):
            FlowMapMatching(x, teacher, Cosine(), "eulerian", width=width)
