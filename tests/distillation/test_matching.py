"""Matching distributions: the gradient is the divergence's, vanishes where laws agree, and stays on its own side."""

import math
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dsno.checkpoint import read_tensors
from dsno.cost import Meter
from dsno.denoise import Guided, Prediction
from dsno.distillation.matching import Matching, MatchingOptions, Pair, matching, student_denoiser
from dsno.distillation.regression import TrajectoryDistillation
from dsno.distillation.stages import Given
from dsno.grids import quadratic, uniform
from dsno.nets.unet import UNet
from dsno.schedule import Cosine, Schedule
from dsno.solvers.run import SolverSampler, initial_state
from dsno.students.files import load_student, save_student
from dsno.students.flowmap import FlowMap, flow_map_from_teacher
from dsno.students.operator import TrajectoryStudent, student_from_teacher
from dsno.teachers.closed import Gaussian
from dsno.train import TrainConfig, train
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectories.store import store
from gaussians import D64, MEAN, SCHEDULES, STD, Affine, NoAnchor, Normal, nodes

SHAPE, TIMES = (1, 8, 8), quadratic(4)[1:]


# On a Gaussian, where everything is known.


def gradients(pair: Pair, schedule: Schedule) -> tuple[float, float]:
    """The largest of the student's and of the denoiser's."""
    loss = Matching(NoAnchor(schedule), Gaussian(schedule, MEAN, STD), anchor=0.0)(pair, nodes(schedule))
    found = torch.autograd.grad(loss, [*pair.student.parameters(), *pair.fake.parameters()])
    return tuple(float(torch.cat(part).abs().max()) for part in (found[:2], found[2:]))


def pair_of(schedule: Schedule, m: Tensor = MEAN, k: Tensor = STD, told: tuple[Tensor, Tensor] | None = None) -> Pair:
    return Pair(FlowMap(Affine(schedule, m, k), schedule, "x0"), Normal(schedule, *(told or (m, k))))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_gradients_vanish_at_the_exact_pair_alone(schedule: Schedule) -> None:
    student, fake = gradients(pair_of(schedule), schedule)
    assert student < 1e-10 and fake < 1e-10
    # Another student whose denoiser is exact: that one has nothing to learn, the student has.
    student, fake = gradients(pair_of(schedule, MEAN + 0.1, 0.9 * STD), schedule)
    assert student > 1e-3 and fake < 1e-10
    # The right student, and a wrong denoiser of its samples.
    student, fake = gradients(pair_of(schedule, told=(MEAN + 0.1, 0.9 * STD)), schedule)
    assert student > 1e-3 and fake > 1e-3


def test_the_loss_of_the_denoiser_is_least_at_the_exact_one() -> None:
    schedule = Cosine()
    objective, batch = Matching(NoAnchor(schedule), Gaussian(schedule, MEAN, STD), anchor=0.0), nodes(schedule)
    exact = float(objective(pair_of(schedule), batch).detach())
    for m, k in ((MEAN + 0.05, STD), (MEAN, 1.05 * STD), (MEAN, 0.95 * STD)):
        assert float(objective(pair_of(schedule, told=(m, k)), batch).detach()) > exact + 1e-4


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_the_gradient_is_that_of_the_divergence(schedule: Schedule, level: float) -> None:
    """Up to the normaliser and sigma^2 / alpha^2, by which it is multiplied again here."""

    class Given(nn.Module):
        frames, target, times = 1, "x0", torch.zeros(1)

        def __init__(self, x: Tensor) -> None:
            super().__init__()
            self.schedule, self.x = schedule, nn.Parameter(x)

        def forward(self, *arguments: object) -> Tensor:
            return self.x.unsqueeze(1)

    m, k = (v.clone().requires_grad_() for v in (MEAN + 0.3, 0.8 * STD))
    batch, teacher = nodes(schedule, (level,)), Gaussian(schedule, MEAN, STD)
    z, t = batch["noise"], batch["t"]
    student = Given((m + k * z).detach())
    objective = Matching(NoAnchor(schedule), teacher, anchor=0.0)
    (g,) = torch.autograd.grad(objective(Pair(student, Normal(schedule, m.detach(), k.detach())), batch), student.x)
    alpha_t, sigma_t = (c[:, None] for c in schedule(t))
    # At one level the sines cancel.
    normaliser = (student.x - teacher(alpha_t * student.x + sigma_t * batch["eps"], t)).abs().mean()
    g = (g * g.numel() * normaliser * alpha_t**2 / sigma_t**2).detach()
    alpha, sigma = alpha_t[0], sigma_t[0]
    laws = [
        torch.distributions.Normal(alpha * a, (alpha**2 * b**2 + sigma**2).sqrt()) for a, b in ((m, k), (MEAN, STD))
    ]
    divergence = torch.distributions.kl_divergence(*laws).sum()
    expected = torch.autograd.grad(divergence, (m, k))
    assert torch.allclose(g.mean(0), expected[0], atol=1e-10)
    assert torch.allclose((g * z).mean(0), expected[1], atol=1e-10)


@pytest.mark.parametrize("d", [1, 2, 8])
def test_the_mean_gradient_points_where_the_divergences_does_in_any_dimension(d: int) -> None:
    """A normaliser of each sample's own, as in the papers, makes the scale of this student grow and not shrink."""
    schedule, g = Cosine(), torch.Generator().manual_seed(0)
    m, k = (torch.full((d,), value, dtype=D64) for value in (0.5, 1.2))
    # A grid of quantiles of (z, eps) in each coordinate, in another order.
    q = torch.special.ndtri((torch.arange(64, dtype=D64) + 0.5) / 64)
    grid = torch.cartesian_prod(q, q)
    z, eps = torch.stack([grid[torch.randperm(len(grid), generator=g)] for _ in range(d)], 1).unbind(2)
    t = schedule.from_phase(torch.full((len(z),), 0.9, dtype=D64))
    teacher = Gaussian(schedule, torch.zeros(d, dtype=D64), 1.0)
    pair = pair_of(schedule, m, k)
    loss = Matching(NoAnchor(schedule), teacher, anchor=0.0)(pair, {"noise": z, "eps": eps, "t": t, "frames": (-1,)})
    found = torch.cat(torch.autograd.grad(loss, [*pair.student.parameters()]))

    alpha, sigma = schedule.at(float(t[0]))
    m_, k_ = m.clone().requires_grad_(), k.clone().requires_grad_()
    made = torch.distributions.Normal(alpha * m_, (alpha**2 * k_**2 + sigma**2).sqrt())
    divergence = torch.distributions.kl_divergence(made, torch.distributions.Normal(0.0, math.hypot(alpha, sigma)))
    expected = torch.cat(torch.autograd.grad(divergence.sum(), (m_, k_)))
    assert bool((found * expected > 0).all())
    assert torch.allclose(found / found.norm(), expected / expected.norm(), rtol=0.05)

    with torch.no_grad():
        x = m + k * z
        x_t = alpha * x + sigma * eps
        D, D_G = teacher(x_t, t), pair.fake(x_t, t)
        own = (D_G - D) / (x - D).abs().mean(1, keepdim=True)
        assert float((own * z).mean()) < 0 < float(((D_G - D) * z).mean())


# With networks and trajectories.


def teacher_of(classes: int | None = None, null: bool = False) -> Prediction:
    torch.manual_seed(0)
    net = UNet(1, 8, (4, 8), attention=(), classes=classes, null=null)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return Prediction(net, Cosine(), "v", shape=SHAPE, classes=classes).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrajectorySet:
    sampler = SolverSampler(teacher_of(), Cosine(), uniform(16), keep=TIMES, keep_x0=True)
    return store(sampler, SHAPE, tmp_path_factory.mktemp("set") / "set", 32, targets=("x0", "state"), batch=32)


def given(data: TrajectorySet | None, **changes: object) -> Given:
    return Given(
        **{"teacher": teacher_of(), "schedule": Cosine(), "steps": 4, "batch": 8, "trajectories": data, **changes}
    )


def student_of(target: str = "x0") -> TrajectoryStudent:
    return student_from_teacher(teacher_of(), TIMES, target, init="normal")


def test_no_gradient_passes_between_the_two(data: TrajectorySet) -> None:
    (stage,) = matching(student := student_of(), given(data))
    pair, objective = stage.make(student)
    batch = next(objective.batches(0))
    made, x_t, D_G = pair(batch["noise"], None, 1.0, batch["frames"], batch["t"], batch["eps"])
    assert not x_t.requires_grad
    assert all(g is None for g in torch.autograd.grad(made.sum(), [*pair.fake.parameters()], allow_unused=True))
    assert all(g is None for g in torch.autograd.grad(D_G.sum(), [*student.parameters()], allow_unused=True))

    # Of the whole loss, too: each side's gradient is what it is with the other side frozen.
    def found(side: nn.Module) -> list[Tensor]:
        parameters = [p for p in side.parameters() if p.requires_grad]
        grads = torch.autograd.grad(objective(pair, batch), parameters, allow_unused=True)
        return [g for g in grads if g is not None]

    for side, other in ((pair.student, pair.fake), (pair.fake, pair.student)):
        whole = found(side)
        other.requires_grad_(False)
        alone = found(side)
        other.requires_grad_(True)
        assert len(whole) == len(alone) > 5 and all(
            torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(whole, alone, strict=True)
        )


@pytest.mark.parametrize("target", ["x0", "state"])
def test_the_anchor_is_the_regression(target: str, data: TrajectorySet) -> None:
    student = student_of(target)
    regression = TrajectoryDistillation(data, student, "snr100", batch=8, others=0.5, inner_starts=0.5)
    pair = Pair(student, student_denoiser(teacher_of()))
    seen = set()
    for batch in islice(Matching(regression, teacher_of()).batches(0), 8):
        seen.add((batch["first"], batch["frames"]))
        with torch.no_grad():
            free, held = (float(Matching(regression, teacher_of(), anchor)(pair, batch)) for anchor in (0.0, 2.0))
            expected = float(regression(student, batch))
        assert held - free == pytest.approx(2 * expected, rel=1e-3) and expected > 0
    assert len(seen) > 3


def test_the_anchor_alone_is_what_is_left_where_the_denoisers_agree(data: TrajectorySet) -> None:
    """At the start D_G is the teacher, so the first step of matching is one of regression."""
    (stage,) = matching(student := student_of(), given(data))
    pair, objective = stage.make(student)
    batch = next(objective.batches(0))
    moved, parameters = [], [p for p in student.parameters() if p.requires_grad]
    for loss in (objective(pair, batch), objective.regression(student, batch)):
        moved.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    for a, b in zip(*moved, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, atol=1e-6)


def test_batches_are_functions_of_the_step_and_shared_evenly(data: TrajectorySet) -> None:
    ((stage,), student) = matching(made := student_of(), given(data)), made
    _, objective = stage.make(student)
    whole = list(islice(objective.batches(0), 4))
    for step, batch in enumerate(whole):
        again = next(objective.batches(step))
        shares = [next(objective.batches(step, rank, 2)) for rank in range(2)]
        for name in ("noise", "t", "eps", "x0"):
            assert torch.equal(batch[name], again[name])
            assert torch.equal(batch[name], torch.cat([share[name] for share in shares]))
        alpha_t, sigma_t = Cosine()(batch["t"])
        level = torch.atan(sigma_t / alpha_t) * 2 / math.pi
        assert float(level.min()) >= 0.02 and float(level.max()) <= 0.98
        # One in each eighth of the range.
        assert ((level - 0.02) / 0.96 * 8).floor().clamp(0, 7).unique().numel() == 8
    assert not torch.equal(whole[0]["eps"], whole[1]["eps"])


def test_a_run_that_was_cut_short_ends_as_one_that_was_not(data: TrajectorySet, tmp_path: Path) -> None:
    def run(folder: Path, *lengths: int) -> tuple[nn.Module, dict[str, Tensor]]:
        for steps in lengths:
            (stage,) = matching(student := student_of(), given(data))
            pair, objective = stage.make(student)
            config = TrainConfig(steps, 1e-3, 1, "constant", ema=0.9, checkpoint_every=2)
            train(pair, objective, config, folder, resume=True)
        return student, read_tensors(max(folder.glob("step-*")) / "average.safetensors")

    (whole, average), (again, _) = run(tmp_path / "whole", 4), run(tmp_path / "again", 2, 4)
    before = student_of().state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    # What is left in the student is the average, and what is saved is the student alone.
    trained = {n: p for n, p in whole.named_parameters() if p.requires_grad}
    assert all(torch.equal(p, average[f"student.{n}"]) for n, p in trained.items())
    assert any(not torch.equal(p, before[n]) for n, p in trained.items())
    assert any(name.startswith("fake.") for name in average)
    save_student(tmp_path / "student", whole)
    z = torch.randn(2, *SHAPE)
    assert torch.equal(load_student(tmp_path / "student").sample(z), whole.sample(z))
    assert not any("fake" in name for name in read_tensors(tmp_path / "student" / "model.safetensors"))


def test_a_flow_map_is_matched_at_one_pass(data: TrajectorySet, tmp_path: Path) -> None:
    student = flow_map_from_teacher(teacher_of())
    (stage,) = matching(student, given(data))
    pair, objective = stage.make(student)
    z = torch.randn(2, *SHAPE)
    made, _, _ = pair(initial_state(Cosine(), z), None, 1.0, (0,), torch.full((2,), 0.5), torch.zeros(2, *SHAPE))
    assert made.shape == (2, 1, *SHAPE) and torch.equal(made[:, 0], student.sample(z))
    before = student.sample(z)
    train(pair, objective, TrainConfig(3, 1e-2, 1, "constant", ema=0.0), tmp_path / "training")
    assert not torch.equal(student.sample(z), before)


def test_conditions_and_guidance_weights_reach_all_three(tmp_path: Path) -> None:
    teacher = Guided(teacher_of(3, null=True), {"label": torch.tensor(3)})
    sampler = SolverSampler(teacher, Cosine(), quadratic(4), keep=TIMES, keep_x0=True)

    def label(seeds: Tensor) -> dict[str, Tensor]:
        return {"label": seeds % 3, "weight": (seeds % 5) / 5}

    data = store(sampler, SHAPE, tmp_path / "set", 16, batch=16, label=label)
    student = student_from_teacher(teacher.denoiser, TIMES, guidance=True)
    (stage,) = matching(student, given(data, teacher=teacher))
    pair, objective = stage.make(student)
    for parameter in pair.fake.parameters():
        nn.init.normal_(parameter, std=0.2)
    batch = next(objective.batches(0))
    loss = float(objective(pair, batch).detach())
    asked = (batch["noise"], batch["cond"], 1.0, (3,), batch["t"], batch["eps"])
    for name, other in (("label", (batch["cond"]["label"] + 1) % 3), ("weight", batch["cond"]["weight"] + 1)):
        changed = {**batch["cond"], name: other}
        assert float(objective(pair, {**batch, "cond": changed}).detach()) != loss
        with torch.no_grad():
            assert not torch.allclose(pair(asked[0], changed, *asked[2:])[2], pair(*asked)[2])


def test_the_denoiser_starts_as_the_teacher() -> None:
    teacher = teacher_of()
    teacher.clip = 0.5
    fake, x, t = student_denoiser(Meter(teacher)), torch.randn(2, *SHAPE), torch.tensor([0.3, 0.8])
    assert torch.equal(fake(x, t), teacher.unclipped(x, t)) and all(p.requires_grad for p in fake.parameters())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_bad_input(data: TrajectorySet) -> None:
    student = student_of()
    with pytest.raises(ValueError, match="learns from the teacher's trajectories and there are none: make them"):
        matching(student, given(None))
    with pytest.raises(ValueError, match="a Gaussian is no Prediction that can be copied"):
        matching(student, given(data, teacher=Gaussian(Cosine(), torch.zeros(SHAPE), 1.0)))
    with pytest.raises(ValueError, match="trains a TrajectoryStudent, FlowMap or ParallelDecoder, got a Linear"):
        matching(nn.Linear(2, 2), given(data))
    with pytest.raises(ValueError, match="anchor is the weight of the regression, at least 0, got -1"):
        matching(student, given(data), MatchingOptions(anchor=-1))
    regression = TrajectoryDistillation(data, student, batch=8)
    for low, high in ((0.0, 0.9), (0.5, 0.5), (0.1, 1.0)):
        with pytest.raises(ValueError, match=rf"0 < low < high < 1, got {low:g} and {high:g}"):
            Matching(regression, teacher_of(), low=low, high=high)
    with pytest.raises(ValueError, match="do not fill one batch of 64"):
        matching(student, given(data, batch=64))


def test_the_pace_moves_the_denoiser_alone_and_that_much_faster(data: TrajectorySet) -> None:
    x, t = torch.randn(2, *SHAPE), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        assert torch.allclose(Pair(student_of(), student_denoiser(teacher_of()), 8.0).fake(x, t), teacher_of()(x, t))

    def moved(pace: float) -> tuple[float, float]:
        """How far one step of Adam goes, in the student and in the weights that the denoiser computes with."""
        (stage,) = matching(student := student_of(), given(data), MatchingOptions(pace=pace))
        pair, objective = stage.make(student)
        sides = (pair.student, 1.0), (pair.fake, pace)
        before = [[p.detach().clone() for p in side.parameters()] for side, _ in sides]
        optimizer = torch.optim.Adam(pair.parameters(), 1e-3, eps=1e-12)
        objective(pair, next(objective.batches(0))).backward()
        optimizer.step()
        after = [list(side.parameters()) for side, _ in sides]
        return tuple(
            scale * max(float((b - a).detach().abs().max()) for a, b in zip(*both, strict=True))
            for both, (_, scale) in zip(zip(before, after, strict=True), sides, strict=True)
        )

    assert moved(1.0) == pytest.approx((1e-3, 1e-3), rel=1e-2)
    assert moved(8.0) == pytest.approx((1e-3, 8e-3), rel=1e-2)
    for pace in (0.0, -1.0):
        with pytest.raises(ValueError, match="rate of the denoiser over the student's, above 0, got"):
            matching(student_of(), given(data), MatchingOptions(pace=pace))
