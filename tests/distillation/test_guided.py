"""Guided distillation: one student, told the weight, for all of them."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dsno.cost import Meter
from dsno.denoise import Guided, Prediction, expand_like
from dsno.distillation.denoising import Denoising
from dsno.distillation.guided import GuidedOptions, WeightedRows, guided, stochastic_sampler
from dsno.distillation.progressive import StepDistillation, ddim
from dsno.distillation.stages import Given
from dsno.grids import uniform
from dsno.nets.unet import UNet
from dsno.schedule import Cosine, RectifiedFlow, Schedule
from dsno.solvers.run import SolverSampler, solve
from dsno.students.flowmap import FlowMap, TwoTime, flow_map_from_teacher
from dsno.students.samplers import FlowMapSampler, passes_of
from dsno.teachers.closed import Gaussian
from dsno.train import TrainConfig, train

D64 = torch.float64
MEANS = torch.tensor([[0.5, -1.0, 0.2], [-0.7, 0.3, 0.9], [0.0, 0.1, -0.2]], dtype=D64)
STD = torch.tensor([0.3, 0.7, 1.4], dtype=D64)
NULL = torch.tensor(2)


def gaussian(schedule: Schedule) -> Guided:
    """Two classes; the third stands for none."""
    return Guided(Gaussian(schedule, MEANS, STD, classes=3), NULL)


def rows(low: float = 0.0, high: float = 4.0, batch: int = 32, name: str = "") -> WeightedRows:
    g = torch.Generator().manual_seed(0)
    x, labels = torch.randn(64, 3, dtype=D64, generator=g), torch.randint(2, (64,), generator=g)
    return WeightedRows(Denoising(x, Cosine(), "x0", labels, batch, 0), low, high, name)


def double(batch: dict) -> dict:
    cond = batch["cond"]
    return {k: v.double() for k, v in batch.items() if k != "cond"} | {
        "cond": {**cond, "weight": cond["weight"].double()}
    }


class Known(nn.Module):
    """h of the guided Gaussian's DDIM in `substeps` steps, off by `wrong` times a wave."""

    def __init__(self, schedule: Schedule, substeps: int) -> None:
        super().__init__()
        self.teacher, self.schedule, self.substeps = gaussian(schedule), schedule, substeps
        self.wrong = nn.Parameter(torch.zeros((), dtype=D64))

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        ends = []
        for i, (a, b) in enumerate(zip(t.tolist(), s.tolist(), strict=True)):
            p, q = self.schedule.phase(torch.tensor([a, b], dtype=D64)).tolist()
            grid = self.schedule.from_phase(torch.linspace(p, q, self.substeps + 1, dtype=D64))
            one = {k: v[i : i + 1] for k, v in cond.items()}
            ends.append(solve(self.teacher, self.schedule, x[i : i + 1], grid, cond=one).sample)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = ((c[:, None] for c in self.schedule(v)) for v in (t, s))
        h = (torch.cat(ends) - sigma_s / sigma_t * x) / (alpha_s - sigma_s / sigma_t * alpha_t)
        return h + self.wrong * torch.sin(3 * x + t[:, None] + 2 * s[:, None])


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("substeps", [1, 2])
@pytest.mark.parametrize("stochastic", [False, True])
def test_the_loss_vanishes_at_the_targets_alone(schedule: Schedule, substeps: int, stochastic: bool) -> None:
    loss_of = StepDistillation(ddim(gaussian(schedule), schedule), rows(), 4, substeps, stochastic)
    X = FlowMap(Known(schedule, substeps), schedule, "x0")
    batch = double(next(loss_of.batches(0)))
    loss = loss_of(X, batch)
    (gradient,) = torch.autograd.grad(loss, X.net.wrong)
    assert float(loss.detach()) < 1e-10 and abs(float(gradient)) < 1e-9
    with torch.no_grad():
        # Told another row's weight, the same map is wrong.
        told = {**batch["cond"], "weight": batch["cond"]["weight"].roll(1)}
        other = StepDistillation(ddim(_Deaf(schedule, told), schedule), rows(), 4, substeps, stochastic)
        assert float(other(X, batch)) > 1e-3
        X.net.wrong.fill_(0.05)
        assert float(loss_of(X, batch)) > 1e-5


class _Deaf:
    """The guided teacher with a condition of its own, whatever it is told."""

    def __init__(self, schedule: Schedule, cond: Mapping[str, Tensor]) -> None:
        self.teacher, self.own = gaussian(schedule), cond

    def __call__(self, x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.teacher(x_t, t, self.own)


def test_without_weight_the_target_is_the_conditional_models() -> None:
    schedule = Cosine()
    guided_loss = StepDistillation(ddim(gaussian(schedule), schedule), rows(0.0, 0.0), 4, 2)
    plain = Denoising(rows().rows.x, schedule, "x0", rows().rows.labels, 32, 0)
    plain_loss = StepDistillation(ddim(gaussian(schedule).denoiser, schedule), plain, 4, 2)
    a, b = double(next(guided_loss.batches(5))), next(plain_loss.batches(5))
    assert not a["cond"]["weight"].any() and torch.equal(a["cond"][""], b["cond"])
    x, t, s = a["x0"], a["t"], a["s"]
    with_guidance, without = guided_loss._taught(x, t, s, a["cond"]), plain_loss._taught(x, t, s, b["cond"])
    assert float((with_guidance - without).abs().max()) < 1e-12
    more = guided_loss._taught(x, t, s, {**a["cond"], "weight": a["cond"]["weight"] + 1})
    assert float((more - without).abs().max()) > 1e-2


def test_weights_cover_their_range_and_are_the_same_for_any_number_of_processes() -> None:
    made = rows(1.0, 3.0, batch=64)
    whole = next(made.batches(7))
    weight, t = whole["cond"]["weight"], whole["t"]
    assert float(weight.min()) >= 1 and float(weight.max()) <= 3
    assert (
        torch.bincount(((weight - 1) * 4).long(), minlength=8).tolist() == [8] * 8
        or torch.histc(weight, 8, 1, 3).min() >= 6
    )
    # Even together with the times, not on one diagonal.
    cells = torch.histc((weight - 1) / 2 * 0.999 // 0.25 * 4 + t * 0.999 // 0.25, 16, 0, 16)
    assert cells.min() >= 2
    shares = [next(made.batches(7, rank, 2)) for rank in range(2)]
    for k in ("", "weight"):
        assert torch.equal(torch.cat([share["cond"][k] for share in shares]), whole["cond"][k])
    assert torch.equal(list(islice(made.batches(6), 2))[1]["cond"]["weight"], weight)
    assert set(next(rows(name="label").batches(0))["cond"]) == {"label", "weight"}


def tiny() -> Prediction:
    torch.manual_seed(0)
    net = UNet(1, 4, (8,), attention=(), classes=3)
    for parameter in net.head.parameters():
        nn.init.normal_(parameter, std=0.1)
    return Prediction(net, Cosine(), "v", shape=(1, 4, 4), classes=3).eval()


def data() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    return {"x": torch.randn(64, 1, 4, 4, generator=g), "labels": torch.randint(2, (64,), generator=g)}


def test_stages_train_in_the_one_loop(tmp_path: Path) -> None:
    net = tiny()
    teacher, X = Meter(Guided(net, NULL)), flow_map_from_teacher(net, guidance=True)
    stages = guided(X, Given(teacher, Cosine(), 20, 8, **data()), GuidedOptions(passes=2, start=8, stochastic=True))
    assert [stage.name for stage in stages] == ["guidance", "steps-4", "steps-2"]
    assert sum(stage.steps for stage in stages) == 20 and X.way == "any"
    X = stages[-1].became(X)
    assert X.way == "grid" and X.steps == 2
    for stage in stages:
        config = TrainConfig(steps=stage.steps, lr=1e-3, warmup=1, ema=0.0)
        train(*stage.make(X), config, tmp_path / stage.name)
    # Half of the rows of the first stage are on either step; the later ones ask the student.
    assert teacher.rows == stages[0].steps * 8 * 2
    z, cond = torch.randn(4, *X.shape), {"": torch.tensor([0, 1, 0, 1]), "weight": torch.tensor([0.0, 1.0, 2.0, 4.0])}
    assert passes_of(X, 2)(z, cond).rounds == 2


class Perceptron(nn.Module):
    """A point's network that is told the time by a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.label = nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 32)), nn.Embedding(3, 32)
        self.stem, self.head = nn.Linear(3, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.head(nn.functional.silu(self.stem(x) * (1 + self.time(t)) + self.time(t) + self.label(cond)))


def test_it_learns_what_the_weight_does() -> None:
    torch.manual_seed(0)
    schedule = Cosine()
    teacher = Guided(Gaussian(schedule, MEANS.float(), 0.4, classes=3), NULL)
    X = FlowMap(TwoTime(Perceptron(), {"time": 32}, guidance=True), schedule, "v")
    labels = torch.randint(2, (1024,))
    x = MEANS.float()[labels] + 0.4 * torch.randn(1024, 3)
    for stage in guided(X, Given(teacher, schedule, 250, 64, 0, x, labels), GuidedOptions(start=8)):
        model, objective = stage.make(X)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for batch in islice(objective.batches(0), stage.steps):
            optimizer.zero_grad()
            objective(model, batch).backward()
            optimizer.step()
    z = torch.randn(512, 3)
    cond = {"": torch.arange(512) % 2, "weight": torch.arange(512) % 5 * 1.0}
    exact = SolverSampler(teacher, schedule, uniform(128))(z, cond).sample
    shuffled = {**cond, "weight": cond["weight"].roll(1)}
    told, other = (float((X.sample(z, c) - exact).square().mean().sqrt()) for c in (cond, shuffled))
    assert told < 0.5 * other, (told, other)


def test_the_stochastic_sampler_jumps_two_steps_and_noises_back() -> None:
    schedule = Cosine()
    asked = []

    def flow(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        asked.append((float(t[0]), float(s[0])))
        ends = exact.flow(x, float(t[0]), float(s[0]))
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.at(float(t[0])), schedule.at(float(s[0]))
        return (ends - sigma_s / sigma_t * x) / (alpha_s - sigma_s / sigma_t * alpha_t)

    class Flow(nn.Module):
        forward = staticmethod(flow)

    exact = Gaussian(schedule, MEANS[0], STD)
    sampler = stochastic_sampler(FlowMap(Flow(), schedule, "x0", way="grid", steps=4))
    z = torch.randn(20_000, 3, dtype=D64, generator=torch.Generator().manual_seed(0))
    sample = sampler(z, seeds=torch.arange(20_000)).sample
    assert asked == [(1.0, 0.5), (0.75, 0.25), (0.5, 0.0), (0.25, 0.0)]
    # An exact map keeps the law, not the path.
    assert torch.allclose(sample.mean(0), MEANS[0], atol=0.03) and torch.allclose(sample.std(0), STD, rtol=0.03)
    path = FlowMapSampler(sampler.map, uniform(4))(z).sample
    assert float((path - exact.flow(z, 1.0, 0.0)).abs().max()) < 1e-3 < float((path - sample).abs().mean())
    with pytest.raises(ValueError, match="trained for no grid"):
        stochastic_sampler(FlowMap(Flow(), schedule, "x0"))


def test_bad_input() -> None:
    net = tiny()
    X, plain = flow_map_from_teacher(net, guidance=True), flow_map_from_teacher(net)

    def given(teacher: object = None, **other) -> Given:
        return Given(teacher or Guided(net, NULL), Cosine(), **{"steps": 40, **data(), **other})

    for wrong in ((4.0, 0.0), (-1.0, 2.0), (2.0, 2.0), (0.0, float("nan")), (0.0, float("inf"))):
        with pytest.raises(ValueError, match="guidance is a range of weights, LOW HIGH with 0 <= LOW < HIGH, got"):
            guided(X, given(), GuidedOptions(guidance=wrong))
    for wrong, found in ((net, "a Prediction"), (Guided(net, NULL, 2.0), "one of a fixed weight")):
        with pytest.raises(ValueError, match=f"that reads its weight from the condition.*got {found}"):
            guided(X, given(wrong))
    with pytest.raises(ValueError, match="the teacher's condition has label, text"):
        guided(X, given(Guided(net, {"label": NULL, "text": NULL})))
    with pytest.raises(ValueError, match="flow_map_from_teacher\\(teacher, guidance=True\\)"):
        guided(plain, given())
    with pytest.raises(ValueError, match="needs the labels of the samples"):
        guided(X, given(labels=None))
    with pytest.raises(ValueError, match="not 3 passes"):
        guided(X, given(), GuidedOptions(passes=3))
    with pytest.raises(ValueError, match="5 training steps do not make 6 stages"):
        guided(X, given(steps=5))
    with pytest.raises(ValueError, match="share is the part of the steps"):
        guided(X, given(), GuidedOptions(share=1.0))
    assert X.way == "any"


def test_the_weight_expands_over_images() -> None:
    """Teacher and student read the same condition."""
    net = tiny()
    teacher, X = Guided(net, NULL), flow_map_from_teacher(net, guidance=True)
    z, w, label = torch.randn(2, 1, 4, 4), torch.tensor([0.0, 3.0]), torch.tensor([0, 1])
    cond = {"": label, "weight": w}
    t = torch.full((2,), 0.6)
    D = teacher(z, t, cond)
    expected = (1 + expand_like(w, z)) * net(z, t, label) - expand_like(w, z) * net(z, t, NULL.expand(2))
    assert torch.allclose(D, expected, atol=1e-5) and torch.allclose(X.x0(z, t, t, cond), net(z, t, label), atol=1e-5)
