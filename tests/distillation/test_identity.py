"""Score identity distillation: its identities hold, its gradient vanishes at the exact pair alone, and falls there."""

import copy
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conditional import same, small_teacher
from dsno.condition import Cond
from dsno.cost import Meter
from dsno.denoise import Denoiser, Guided, Kind, Prediction, convert
from dsno.distillation.denoising import noised
from dsno.distillation.identity import Fresh, Identity, IdentityOptions, Stored, Twin, identity
from dsno.distillation.matching import Matching, Pair, made_by
from dsno.distillation.run import distill
from dsno.distillation.stages import Given
from dsno.nets.unet import UNet
from dsno.schedule import VE, Cosine, Schedule
from dsno.students.files import load_student, notes_of
from dsno.students.flowmap import FlowMap, flow_map_from_teacher
from dsno.students.operator import Target, student_from_teacher
from dsno.students.samplers import MultiPass
from dsno.teachers.closed import Gaussian, GaussianMixture
from dsno.train import TrainConfig
from dsno.trajectories.generate import generate
from dsno.trajectories.labels import uniform_labels, uniform_weights
from gaussians import D64, MEAN, SCHEDULES, STD, Affine, NoAnchor, Normal, nodes
from pretend import stop_at

OFF = MEAN + 0.2, 0.8 * STD


def twin_of(schedule: Schedule, m: Tensor = MEAN, k: Tensor = STD, told: tuple[Tensor, Tensor] | None = None) -> Twin:
    return Twin(FlowMap(Affine(schedule, m, k), schedule, "x0"), Normal(schedule, *(told or (m, k))))


def gradients(objective: Identity | Matching, pair: nn.Module, schedule: Schedule) -> list[Tensor]:
    """Of the student's m and k, and of the denoiser's."""
    return [
        *torch.autograd.grad(objective(pair, nodes(schedule)), [*pair.student.parameters(), *pair.fake.parameters()])
    ]


def judged(schedule: Schedule, a: float = 1.2, teacher: Denoiser | None = None) -> Identity:
    return Identity(NoAnchor(schedule), teacher or Gaussian(schedule, MEAN, STD), a)


@pytest.mark.parametrize("a", [0.0, 1.0, 1.2])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_gradients_vanish_at_the_exact_pair_alone(schedule: Schedule, a: float) -> None:
    def largest(twin: Twin) -> tuple[float, float]:
        m, k, *fake = gradients(judged(schedule, a), twin, schedule)
        return float(torch.cat([m, k]).abs().max()), float(torch.cat(fake).abs().max())

    student, fake = largest(twin_of(schedule))
    assert student < 1e-10 and fake < 1e-10
    # Another student whose denoiser is exact: that one has nothing to learn, the student has.
    student, fake = largest(twin_of(schedule, *OFF))
    assert student > 1e-3 and fake < 1e-10
    # The right student, and a wrong denoiser of its samples.
    student, fake = largest(twin_of(schedule, told=OFF))
    assert student > 1e-3 and fake > 1e-3


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_score_identities_hold(schedule: Schedule) -> None:
    """So the loss is (1 - a) times the weighted Fisher divergence, and with a = 1 it is 0 for every student."""
    batch = nodes(schedule)
    with torch.no_grad():
        x, x_t, D_G, own = twin_of(schedule, *OFF)(schedule.at(1.0)[1] * batch["noise"], None, batch["t"], batch["eps"])
        D = Gaussian(schedule, MEAN, STD)(x_t, batch["t"])
        assert torch.equal(D_G, own)
        # In each level alone: over its four nodes the means of quadratics are exact.
        by_level = [v.reshape(3, 4, 3).mean(1) for v in ((D - D_G) * (D_G - x), (D - D_G) * (D - x), (D - D_G) ** 2)]
    zero, mixed, fisher = by_level
    assert float(zero.abs().max()) < 1e-12 < 1e-6 < float(fisher.min())
    assert torch.allclose(mixed, fisher, atol=1e-12)


@pytest.mark.parametrize("a", [0.0, 1.0, 1.2])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_descending_it_brings_the_law_of_the_student_to_the_teachers(schedule: Schedule, a: float) -> None:
    m, k = OFF[0].clone(), OFF[1].clone()
    far = [float((m - MEAN).norm()), float((k - STD).norm())]
    for _ in range(400):
        g = gradients(judged(schedule, a), twin_of(schedule, m, k), schedule)  # with the exact denoiser of its samples
        m, k = m - 0.3 * g[0], k - 0.3 * g[1]
    assert float((m - MEAN).norm()) < 0.2 * far[0] and float((k - STD).norm()) < 0.4 * far[1]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_without_gradients_through_the_denoisers_it_is_matching(schedule: Schedule) -> None:
    class Stopped(nn.Module):
        def __init__(self, inner: Denoiser) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
            return self.inner(x_t.detach(), t, cond)

    m, k = OFF
    twin = Twin(FlowMap(Affine(schedule, m, k), schedule, "x0"), Stopped(Normal(schedule, MEAN, k)))
    pair = Pair(FlowMap(Affine(schedule, m, k), schedule, "x0"), Normal(schedule, MEAN, k))
    teacher = Gaussian(schedule, MEAN, STD)
    found = gradients(judged(schedule, 0.0, Stopped(teacher)), twin, schedule)
    expected = gradients(Matching(NoAnchor(schedule), teacher, anchor=0.0), pair, schedule)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, expected, strict=True))
    through = gradients(judged(schedule, 0.0), twin_of(schedule, m, k, (MEAN, k)), schedule)
    assert not torch.allclose(through[0], expected[0], rtol=1e-2)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_one_denoiser_of_all_passes_would_leave_each_of_them_off(schedule: Schedule) -> None:
    """Two passes whose laws are only together the teacher's: their common denoiser is the teacher's own."""

    class Common(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
            return teacher(x_t, t)

    m, k = MEAN + 0.3, torch.full_like(STD, 0.7)
    teacher = GaussianMixture(schedule, torch.stack([m, MEAN - 0.3]), 0.7)
    objective = judged(schedule, 1.0, teacher)

    def found(fake: nn.Module, later: nn.Module) -> float:
        twin = Twin(FlowMap(Affine(schedule, m, k), schedule, "x0"), fake, behind=later)
        rows = {name: torch.cat([nodes(schedule)[name]] * 2) for name in ("noise", "t", "eps")}
        # From t = 1 as if it were a pass behind: the same samples.
        batch = {**rows, "again": rows["noise"], "behind": torch.arange(len(rows["t"])) >= len(rows["t"]) // 2}
        return max(
            float(g.abs().max()) for g in torch.autograd.grad(objective(twin, batch), [*twin.student.parameters()])
        )

    def own() -> nn.Module:
        return Normal(schedule, m, k)

    assert found(Common(), Common()) == 0
    assert found(own(), Common()) > 1e-2 and found(Common(), own()) > 1e-2


# With networks


def teacher_of(classes: int | None = None) -> Prediction:
    torch.manual_seed(0)
    net = UNet(1, 4, (4, 8), attention=(), classes=classes, null=classes is not None)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return Prediction(net, Cosine(), "v", shape=(1, 4, 4), classes=classes).eval()


def given(teacher: Denoiser | None = None, **changes: object) -> Given:
    return Given(**{"teacher": teacher or teacher_of(), "schedule": Cosine(), "steps": 4, "batch": 8, **changes})


@pytest.mark.parametrize("kind", ["operator", "state", "flow map"])
def test_each_side_gets_its_own_gradient_and_the_teacher_none(kind: str) -> None:
    teacher = teacher_of()
    student = (
        flow_map_from_teacher(teacher)
        if kind == "flow map"
        else student_from_teacher(teacher, [0.5, 0.0], "state" if kind == "state" else "x0", init="normal")
    )
    (stage,) = identity(student, given(teacher))
    twin, objective = stage.make(student)
    with torch.no_grad():  # D_G as the teacher's copy would leave the student nothing to learn
        for p in twin.fake.parameters():
            p.mul_(1.1)
    batch = next(objective.batches(0))

    def found(side: nn.Module) -> list[Tensor]:
        parameters = [p for p in side.parameters() if p.requires_grad]
        return [g for g in torch.autograd.grad(objective(twin, batch), parameters, allow_unused=True) if g is not None]

    for side, other in ((twin.student, twin.fake), (twin.fake, twin.student)):
        whole = found(side)
        other.requires_grad_(False)
        alone = found(side)
        other.requires_grad_(True)
        assert len(whole) == len(alone) > 5 and float(torch.cat([g.flatten() for g in whole]).abs().max()) > 0
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(whole, alone, strict=True))
    objective(twin, batch).backward()
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())


def test_batches_are_functions_of_the_step_and_shared_evenly() -> None:
    starts = Fresh(Cosine(), (1, 4, 4), classes=3, null=2, batch=8, seed=1)
    objective = Identity(starts, teacher_of())
    whole = list(islice(objective.batches(0), 16))
    for step, batch in enumerate(whole):
        again = next(objective.batches(step))
        shares = [next(objective.batches(step, rank, 2)) for rank in range(2)]
        for name in ("noise", "cond", "t", "eps"):
            assert torch.equal(batch[name], again[name])
            assert torch.equal(batch[name], torch.cat([share[name] for share in shares]))
    assert {int(label) for batch in whole for label in batch["cond"]} == {0, 1}
    assert not torch.equal(whole[0]["noise"], whole[1]["noise"])
    with pytest.raises(ValueError, match="a batch of 8 cannot be shared evenly by 3 processes"):
        next(objective.batches(0, 0, 3))


@pytest.mark.parametrize("kind", ["operator", "flow map"])
def test_a_student_goes_on_without_data_and_a_run_that_was_cut_short_ends_alike(kind: str, tmp_path: Path) -> None:
    teacher = small_teacher()

    def start() -> nn.Module:
        torch.manual_seed(1)
        return flow_map_from_teacher(teacher) if kind == "flow map" else student_from_teacher(teacher, [0.5, 0.0])

    def run(out: Path, **how: Any) -> nn.Module:
        config = TrainConfig(steps=4, lr=1e-2, warmup=0, checkpoint_every=2, log_every=1)
        return distill(teacher, None, out, "identity", config, batch=8, student=start(), **how)

    whole = run(tmp_path / "whole")
    assert not same(whole, start())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again", report=stop_at("identity", 3))
    assert [p.name for p in (tmp_path / "again" / "training" / "identity").glob("step-*")] == ["step-00000002"]
    assert same(run(tmp_path / "again", resume=True), whole)
    made = load_student(tmp_path / "whole")
    assert not isinstance(made, FlowMap) or (made.way, made.steps) == ("grid", 1)
    assert notes_of(tmp_path / "whole")["references"] == ["zhou2024score", "yin2024improved"]


@pytest.mark.parametrize("target", ["x0", "state"])
def test_an_inner_start_is_the_second_pass_of_the_sampler(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    student = student_from_teacher(teacher_of(), [0.5, 0.0], target, init="normal")
    (stage,) = identity(student, given(), IdentityOptions(inner_starts=0.5))
    twin, objective = stage.make(student)
    batch = next(objective.batches(0))
    z, behind, again = batch["noise"], batch["behind"], batch["again"]
    assert batch["start"] == 0.5 and behind.sum() == 4
    x = twin(*objective.told(batch))[0]
    monkeypatch.setattr("dsno.students.samplers.noise_tape", lambda *_: again.unsqueeze(0))
    second = MultiPass(stage.became(student), 2)(z, seeds=torch.arange(8)).sample
    assert torch.allclose(x, torch.where(behind[:, None, None, None], second, student.sample(z)), atol=1e-5)
    assert not torch.allclose(second, student.sample(z), atol=1e-2)
    # No gradient reaches the pass before.
    twin.student.zero_grad()
    x[behind].sum().backward()
    found = [p.grad for p in student.parameters() if p.grad is not None]
    x_j = noised(Cosine(), student.sample(z), again, torch.full((8,), 0.5))[behind]
    alone = torch.autograd.grad(
        made_by(student, x_j, None, 0.5, (-1,)).sum(), [*student.parameters()], allow_unused=True
    )
    own = [g for g in alone if g is not None]
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(found, own, strict=True))


@pytest.mark.parametrize("adversary", [0.0, 1.0])
def test_a_step_of_both_passes_is_that_of_each_alone(adversary: float) -> None:
    """Every row and its real sample are told to the denoiser of its pass, and no other learns of it."""
    student = student_from_teacher(teacher_of(), [0.5, 0.0], init="normal")
    told = given(x=torch.randn(16, 1, 4, 4)) if adversary else given()
    (stage,) = identity(student, told, IdentityOptions(inner_starts=0.5, adversary=adversary, r1=0.1))
    twin, objective = stage.make(student)
    with torch.no_grad():  # of two networks, or they would say the same
        for p in twin.behind.parameters():
            p.mul_(1.1)
    batch = next(objective.batches(0))
    behind = batch["behind"]
    assert behind.sum() == 4
    reals = (batch["real"], None, batch["real"] + 0.1) if adversary else ()
    whole = objective.told(batch)
    both = twin(*whole, *reals)
    assert len(both) == (8 if adversary else 4)
    x_1, cond, t, eps, _, start, again = whole
    z = student.sample(x_1)
    starts = torch.where(behind[:, None, None, None], noised(Cosine(), z, again, torch.full((8,), start)), x_1)
    for rows, fake, other, s in ((~behind, twin.fake, twin.behind, 1.0), (behind, twin.behind, twin.fake, start)):
        with torch.no_grad():
            alone = twin.of_pass(fake, s, starts[rows], cond, *(r if r is None else r[rows] for r in (t, eps, *reals)))
        for made, expected in zip(both, alone, strict=True):
            assert torch.allclose(made[rows], expected, atol=1e-5)
        twin.zero_grad()
        sum(part[rows].sum() for part in both).backward(retain_graph=True)
        assert any(bool((p.grad != 0).any()) for p in fake.parameters() if p.grad is not None)
        assert all(not p.grad.any() for p in other.parameters() if p.grad is not None)
    (stage,) = identity(student, told, IdentityOptions(adversary=adversary))
    assert stage.make(student)[0].behind is None


def test_the_weight_of_a_row_is_that_of_the_student_s_loss_alone() -> None:
    student = student_from_teacher(teacher_of(), [0.5, 0.0], init="normal")
    told = given(x=torch.randn(16, 1, 4, 4))
    (stage,) = identity(student, told, IdentityOptions(inner_starts=0.25, adversary=1.0))
    twin, objective = stage.make(student)
    with torch.no_grad():
        for p in [*twin.fake.parameters(), *twin.behind.parameters()]:
            p.mul_(1.1)
    batch = next(objective.batches(0))

    def gradients(weight: Tensor) -> list[Tensor]:
        sides = [*student.parameters()], [*twin.fake.parameters(), *twin.behind.parameters()]
        loss = objective(twin, {**batch, "weight": weight})
        return [
            torch.cat(
                [
                    g.flatten()
                    for g in torch.autograd.grad(loss, side, retain_graph=True, allow_unused=True)
                    if g is not None
                ]
            )
            for side in sides
        ]

    (own, fake), (first, same), (later, _) = (
        gradients(w * batch["weight"]) for w in (1, ~batch["behind"], batch["behind"])
    )
    assert torch.allclose(own, first + later, rtol=1e-3, atol=1e-5) and torch.equal(fake, same)
    assert float(first.abs().max()) > 1e-3 and float(later.abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["v", "x0"])
def test_the_denoiser_of_the_samples_learns_by_the_error_of_its_network(kind: Kind) -> None:
    teacher = Prediction(teacher_of().net, Cosine(), kind, shape=(1, 4, 4)).eval()
    starts, t = Fresh(Cosine(), (1, 4, 4), batch=8), torch.linspace(0.05, 0.95, 8)
    x, own, eps = torch.randn(3, 8, 1, 4, 4)
    x_t = noised(Cosine(), x, eps, t)
    with torch.no_grad():
        D = teacher(x_t, t)
    # Where both denoisers agree it is all that is left.
    loss = Identity(starts, Meter(teacher)).of((x, x_t, D, own), {"t": t})
    error = convert(kind, own, x_t, t, Cosine()) - convert(kind, x, x_t, t, Cosine())
    assert torch.allclose(loss, error.square().mean(), rtol=1e-4)


@pytest.mark.parametrize("share", [0.25, 0.4, 0.7])
def test_inner_starts_are_a_share_of_the_rows_alike_for_all_processes(share: float) -> None:
    objective = Identity(Fresh(Cosine(), (1, 4, 4), batch=8), teacher_of(), inner_starts=share, times=(0.6, 0.3))
    batches = [*islice(objective.batches(0), 400)]
    rows = torch.stack([batch["behind"] for batch in batches]).double()
    # As many in every step as can be, and each row, so each of the levels, as often as any; a pass weighs a half.
    assert float((rows.sum(1) - 8 * share).abs().max()) < 1
    weights = torch.stack([batch["weight"] for batch in batches]).double()
    assert float((weights * rows).sum(1).mean()) == pytest.approx(4, rel=0.03)
    assert float((weights * (1 - rows)).sum(1).mean()) == pytest.approx(4, rel=0.03)
    assert float((rows.mean(0) - share).abs().max()) < 0.1
    drawn = [batch["start"] for batch in batches]
    assert min(drawn.count(0.6), drawn.count(0.3)) > 150
    for step in range(8):
        whole, *shares = (next(objective.batches(step, *place)) for place in ((0, 1), (0, 2), (1, 2)))
        for name in ("behind", "weight", "again"):
            assert torch.equal(whole[name], torch.cat([share[name] for share in shares]))
        assert {share["start"] for share in shares} == {whole["start"]}


def test_a_student_told_a_weight_goes_on_from_the_noises_of_its_trajectories(tmp_path: Path) -> None:
    teacher = small_teacher()
    label, weight = uniform_labels(2), uniform_weights(0.0, 2.0)

    def told(seeds: Tensor) -> Cond:
        return {"label": label(seeds), "weight": weight(seeds)}

    solved = Guided(teacher, {"label": torch.tensor(2)})
    data = generate(solved, tmp_path / "set", 32, shape=(1, 4, 4), times=[0.5, 0.0], steps=4, label=told, batch=16)
    student = student_from_teacher(teacher, [0.5, 0.0], guidance=True)
    before = copy.deepcopy(student)
    made = distill(solved, data, tmp_path / "out", "identity", TrainConfig(steps=3, lr=1e-1), batch=8, student=student)
    assert not same(made, before) and load_student(tmp_path / "out").guided
    rows, stored = next(Stored(data, Cosine(), 8).batches(0)), data.__getitems__([*range(32)])
    for z, c, w in zip(rows["noise"], rows["cond"]["label"], rows["cond"]["weight"], strict=True):
        (at,) = (stored["noise"] == z).flatten(1).all(1).nonzero().flatten().tolist()
        assert (c, w) == (stored["cond"]["label"][at], stored["cond"]["weight"][at])
    with pytest.raises(ValueError, match="the trajectories are of Cosine"):
        Stored(data, VE(), 8)
    with pytest.raises(ValueError, match="real samples have no guidance weight"):
        identity(student, given(solved, trajectories=data, x=rows["noise"]), IdentityOptions(adversary=1.0))


def test_bad_input(tmp_path: Path) -> None:
    teacher = teacher_of(2)
    student = student_from_teacher(teacher, [0.0])
    with pytest.raises(ValueError, match="identity goes on from a student that another method trained: give it"):
        distill(teacher, None, tmp_path / "out", "identity")
    assert not (tmp_path / "out").exists()
    for a in (-0.1, 1.3):
        with pytest.raises(ValueError, match=rf"a is the share .* in \[0, 1.2\], got {a:g}"):
            identity(student, given(teacher), IdentityOptions(a=a))
    with pytest.raises(ValueError, match="a Gaussian is no Prediction that can be copied"):
        identity(student, given(Gaussian(Cosine(), torch.zeros(1, 4, 4, dtype=D64), 1.0)))
    with pytest.raises(ValueError, match="trains a TrajectoryStudent, FlowMap or ParallelDecoder, got a Linear"):
        identity(nn.Linear(2, 2), given(teacher))
    guided = student_from_teacher(teacher, [0.0], guidance=True)
    with pytest.raises(ValueError, match="this student is told a guidance weight: give its trajectories, too"):
        identity(guided, given(Guided(teacher, torch.tensor(2), 1.0)))
    for share in (0.1, 0.95):
        with pytest.raises(ValueError, match=f"inner_starts={share} of the 8 rows of a process leaves none for one"):
            identity(student_from_teacher(teacher, [0.5, 0.0]), given(teacher), IdentityOptions(inner_starts=share))
    objective = Identity(Fresh(Cosine(), (1, 4, 4), batch=8), teacher, inner_starts=0.25, times=(0.5,))
    with pytest.raises(ValueError, match="of the 2 rows of a process leaves none"):
        next(objective.batches(0, 0, 4))
    with pytest.raises(ValueError, match=r"in \[0, 1\), got 0.5 and 0 inner frames: distil a student of more frames"):
        identity(student, given(teacher), IdentityOptions(inner_starts=0.5))
    with pytest.raises(ValueError, match="pace is the learning rate of the denoiser"):
        identity(student, given(teacher), IdentityOptions(pace=0.0))[0].make(student)
