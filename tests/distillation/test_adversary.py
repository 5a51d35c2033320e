"""The adversary: what its losses are worth, whom they train, and the run of a student that is held to real samples."""

import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor, nn

from conditional import same, small_teacher
from dsno.data.samples import Samples
from dsno.denoise import Prediction
from dsno.distillation.adversary import DELTA, Judging, Reals, adversarial
from dsno.distillation.identity import Adversarial, Fresh, IdentityOptions, identity
from dsno.distillation.run import distill
from dsno.distillation.stages import Given
from dsno.nets.unet import UNet
from dsno.schedule import Cosine
from dsno.students.operator import student_from_teacher
from dsno.train import TrainConfig
from pretend import stop_at


def teacher_of(classes: int | None = None) -> Prediction:
    torch.manual_seed(0)
    net = UNet(1, 8, (4, 8), attention=(), classes=classes)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return Prediction(net, Cosine(), "v", shape=(1, 8, 8), classes=classes).eval()


def reals(labels: bool = False) -> Reals:
    g = torch.Generator().manual_seed(5)
    x = torch.rand(32, 1, 8, 8, generator=g)
    return Reals(x, torch.arange(32) % 3 if labels else None)


def given(teacher: Prediction, **changes: Any) -> Given:
    return Given(**{"teacher": teacher, "schedule": Cosine(), "steps": 4, "batch": 8, "x": reals().x, **changes})


def test_the_losses_are_least_at_the_odds_of_the_two_laws() -> None:
    """On two Gaussians of one variance, whose odds are known, by quadrature."""
    z, w = (torch.from_numpy(v) for v in hermegauss(60))
    w = w / w.sum()

    def discriminating(slope: float, shift: float) -> float:
        # The law of the samples is N(1, 1), that of the data N(-1, 1): their log-odds are -2 x.
        return sum(
            float((w * nn.functional.softplus(sign * (-2 * slope * (z + mean) + shift))).sum())
            for sign, mean in ((1, 1.0), (-1, -1.0))
        )

    best = discriminating(1.0, 0.0)
    assert best < min(discriminating(s, b) for s, b in ((0.8, 0.0), (1.2, 0.0), (1.0, 0.2), (1.0, -0.2)))
    zero = torch.zeros(4)
    assert float(adversarial(zero, zero, zero)) == pytest.approx(3 * math.log(2))  # 2 log 2 of one law, and L_G


def test_the_slope_is_that_of_the_logit_at_real_samples() -> None:
    g = torch.Generator().manual_seed(0)
    weight, (y, n) = torch.randn(5, generator=g), torch.randn(2, 200_000, 5, generator=g)
    zero, real = torch.zeros(len(y)), y @ weight
    with_r1 = adversarial(zero, zero, real, (y + DELTA * n) @ weight, r1=3.0) - adversarial(zero, zero, real)
    assert float(with_r1) == pytest.approx(1.5 * float(weight.square().sum()), rel=0.02)


def test_the_judge_says_what_its_denoiser_says_and_sees_its_input() -> None:
    teacher = teacher_of()
    judge = Judging(teacher)
    nn.init.normal_(judge.head.weight)
    x, t = torch.randn(6, 1, 8, 8), torch.full((6,), 0.4)
    D_G, logit = judge(x, t)
    assert torch.equal(D_G, teacher(x, t)) and logit.shape == (6,)
    assert len(set(logit.tolist())) == 6 and not any(m._forward_hooks for m in judge.modules())
    # From the smallest block: 4 x 4 of 8 channels, not the 8 x 8 of 4.
    assert judge.head.in_features == 8
    with pytest.raises(ValueError, match="a Flatten does not say what its blocks are: leave adversary at 0"):
        Judging(Prediction(nn.Flatten(), Cosine(), "v"))


def test_each_side_gets_the_gradient_of_its_own_loss() -> None:
    teacher = teacher_of()
    student = student_from_teacher(teacher, [0.5, 0.0], init="normal")
    options = IdentityOptions(adversary=2.0, r1=0.1)
    (stage,) = identity(student, given(teacher), options)
    twin, objective = stage.make(student)
    nn.init.normal_(twin.fake.net.head.weight)
    batch = next(objective.batches(0))

    def found(side: nn.Module, weight: float) -> list[Tensor]:
        objective.adversary = weight
        loss = objective(twin, batch)
        return [*torch.autograd.grad(loss, [*side.parameters()], allow_unused=True)]

    for side in (twin.student, twin.fake):
        none, whole = found(side, 0.0), found(side, 2.0)
        assert max(float((a - b).abs().max()) for a, b in zip(none, whole, strict=True) if a is not None) > 1e-6
    # The head is trained by the adversary alone, and not by the student's loss.
    head = [*twin.fake.net.head.parameters()]
    objective.adversary = 2.0
    whole = torch.autograd.grad(objective(twin, batch), head)
    for p in twin.student.parameters():
        p.requires_grad_(False)
    alone = torch.autograd.grad(objective(twin, batch), head)
    assert all(torch.allclose(a, b) and float(a.abs().max()) > 0 for a, b in zip(whole, alone, strict=True))
    assert all(p.grad is None for p in teacher.parameters())


def test_batches_are_functions_of_the_step_and_shared_evenly() -> None:
    objective = Adversarial(Fresh(Cosine(), (1, 8, 8), batch=8, seed=1), teacher_of(), reals(labels=True), 1.0)
    for step, batch in enumerate(islice(objective.batches(0), 3)):
        again = next(objective.batches(step))
        shares = [next(objective.batches(step, rank, 2)) for rank in range(2)]
        for name in ("noise", "t", "real", "real_eps", "real_cond", "slope"):
            assert torch.equal(batch[name], again[name])
            assert torch.equal(batch[name], torch.cat([share[name] for share in shares]))
        rows = [int((objective.reals.x == row).flatten(1).all(1).nonzero()) for row in batch["real"]]
        assert [row % 3 for row in rows] == batch["real_cond"].tolist()


def test_a_run_with_data_that_was_cut_short_ends_alike_and_leaves_frozen_kernels(tmp_path: Path) -> None:
    teacher = small_teacher()
    data = Samples(torch.rand(16, *teacher.net.shape), torch.arange(16) % 2, "noise")

    def start() -> nn.Module:
        torch.manual_seed(1)
        return student_from_teacher(teacher, [0.5, 0.0])

    def run(out: Path, **how: Any) -> nn.Module:
        config = TrainConfig(steps=4, lr=1e-2, warmup=0, checkpoint_every=2, log_every=1)
        options = {"adversary": 0.1, "r1": 0.1, "frozen": True}
        return distill(teacher, data, out, "identity", config, batch=8, student=start(), **how, **options)

    whole = run(tmp_path / "whole")
    assert not same(whole, start())
    before = dict(start().named_modules())
    kernels = {name: m for name, m in whole.named_modules() if isinstance(m, nn.Conv2d)}
    assert kernels and all(torch.equal(m.weight, before[name].weight) for name, m in kernels.items())  # type: ignore[arg-type]
    assert all(m.weight.requires_grad for m in kernels.values())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again", report=stop_at("identity", 3))
    assert [p.name for p in (tmp_path / "again" / "training" / "identity").glob("step-*")] == ["step-00000002"]
    assert same(run(tmp_path / "again", resume=True), whole)


def test_bad_input() -> None:
    teacher = teacher_of()
    student = student_from_teacher(teacher, [0.0])
    with pytest.raises(ValueError, match="there are none: give some as data"):
        identity(student, given(teacher, x=None), IdentityOptions(adversary=1.0))
    for name in ("adversary", "r1"):
        options = IdentityOptions(**{"adversary": 1.0, name: -1.0})
        with pytest.raises(ValueError, match=f"{name} is the weight of a loss, at least 0, got -1"):
            identity(student, given(teacher), options)
    told = teacher_of(3)
    with pytest.raises(ValueError, match="told one of 3 classes, and the data have no labels"):
        identity(student_from_teacher(told, [0.0]), given(told), IdentityOptions(adversary=1.0))
