"""Plans: the arithmetic of the paper's run, what a run really writes, and what fits a budget."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsno.cost import flops, timed
from dsno.denoise import Prediction
from dsno.distillation.identity import IdentityOptions, identity
from dsno.distillation.stages import Given
from dsno.inverse.start_net import NoisePredictor
from dsno.nets.unet import UNet
from dsno.precision import best_precision
from dsno.runs.bench import Rate
from dsno.runs.counts import Count
from dsno.runs.plan import Estimate, StageCost, plan, stage_costs
from dsno.runs.recipes import RECIPES
from dsno.runs.workload import Starts, Workload
from dsno.schedule import Cosine
from dsno.train import TrainConfig
from dsno.trajectories.generate import generate

PUBLISHED = {"where": "every", "once": False, "told": "output"}
QUICK = {"seconds": 0.05, "device": "cpu"}


def small(classes: int | None = None) -> Prediction:
    return Prediction(UNet(1, 8, (8, 16), classes=classes), Cosine(), "v")


def of(made: Estimate, stage: str) -> StageCost:
    return next(s for s in made.stages if s.name == stage)


def test_the_published_run_is_the_paper_s(published: tuple[Workload, Count]) -> None:
    work, count = published
    rates = dict.fromkeys(("generate", "distill"), Rate(1e-12, "1 TFLOP/s"))
    generate, distill = stage_costs(work, count, rates, 8)
    assert generate.evaluations == 524_288_000 and generate.flop == pytest.approx(1.9e19, rel=0.04)
    assert distill.flop == pytest.approx(4.7e19, rel=0.06)
    assert distill.hours == pytest.approx(distill.flop / 1e12 / 8 / 3600)
    # Noise and four frames of 3 x 32 x 32 halves and a seed.
    assert generate.disk == 1_024_000 * (5 * 3 * 32 * 32 * 2 + 8)
    # 65 million weights with gradient, two moments and average: 1.3 GB, and activations of 32 samples beyond.
    assert 20 * 64e6 + 32 * 2e8 < distill.memory < 64e9


def test_what_is_too_large_to_run_is_known_by_a_rate() -> None:
    # 150 MFLOP a row, and no time to run one.
    def wide() -> Prediction:
        return Prediction(UNet(1, 16, (32, 64)), Cosine(), "v")

    made = plan(Workload("wide", wide, student=PUBLISHED), seconds=1e-4, device="cpu")
    assert all("rate of a convolution" in s.how for s in made.stages)
    assert 1e7 < made.flop / (made.hours * 3600) < 1e14


def test_a_costly_run_is_told_what_would_be_cheaper() -> None:
    made = plan(Workload("small", small, solver="ddim", steps=512, student=PUBLISHED), **QUICK)  # type: ignore[arg-type]
    changes = {o.change: o.hours for o in made.alternatives}
    assert any("--solver unipc3" in c for c in changes) and any("--where mid" in c for c in changes)
    assert all(hours < made.hours for hours in changes.values())
    assert changes["all of these"] == min(changes.values())


@pytest.mark.parametrize("classes", [None, 10])
@pytest.mark.parametrize("targets", [("x0",), ("x0", "state")])
def test_the_bytes_are_those_of_a_set(classes: int | None, targets: tuple[str, ...], tmp_path: Path) -> None:
    work = Workload("small", lambda: small(classes), count=300, steps=6, targets=targets, train=None)
    told = of(plan(work, **QUICK), "generate")  # type: ignore[arg-type]
    label = (lambda seeds: seeds % 10) if classes else None
    times = torch.tensor(work.times, dtype=torch.float64)
    generate(
        small(classes).eval(),
        tmp_path / "set",
        300,
        shape=(1, 8, 8),
        times=times,
        targets=targets,
        steps=6,
        label=label,
    )
    written = sum(p.stat().st_size for p in (tmp_path / "set").glob("shard-*"))
    assert told.disk <= written <= told.disk + 4000  # headers
    assert told.evaluations == 300 * 6


def test_hours_follow_from_a_call_that_was_timed() -> None:
    work = Workload("small", small, count=100_000, batch=32, train=TrainConfig(steps=1000), train_batch=16)
    made = plan(work, seconds=0.5, device="cpu")
    generate, distill = made.stages
    assert generate.how.startswith("measured") and distill.how.startswith("measured") and "32 rows" in generate.how
    call = torch.zeros(32, 1, 8, 8), torch.zeros(32)
    teacher = small().eval()
    with torch.no_grad():
        teacher(*call)
        seconds = min(timed(teacher, *call)[1] for _ in range(5))
    # One call each on a machine that others share: the order of magnitude.
    assert 0.1 < generate.hours * 3600 / (seconds / 32 * 100_000 * 16) < 50
    assert made.hours == pytest.approx(generate.hours + distill.hours)
    assert made.fits and str(made).count("\n") >= 2
    two = plan(work, seconds=0.5, device="cpu", devices=2)
    assert two.device == "2 x cpu"


def test_supervising_fewer_frames_costs_less() -> None:
    work = Workload("small", small, count=0)
    every, fewer, one = (
        plan(replace(work, **change), **QUICK).per_sample  # type: ignore[arg-type]
        for change in ({}, {"others": 0.25}, {"times": (0.0,)})
    )
    assert one < fewer < every
    assert [s.name for s in plan(work, **QUICK).stages] == ["distill"]  # type: ignore[arg-type]


def test_memory_grows_with_the_batch_and_is_that_of_the_tensors() -> None:
    work = Workload("small", small, count=100)
    made = [plan(replace(work, batch=b, train_batch=b), **QUICK) for b in (64, 128)]  # type: ignore[arg-type]
    weights = 4 * sum(p.numel() for p in small().parameters())
    for stage, fixed in (("generate", weights), ("distill", 5 * weights)):
        a, b = (of(m, stage).memory for m in made)
        assert a > fixed and 1.2 < b / a <= 2


def test_a_budget_is_met_by_the_options_that_say_so() -> None:
    work = Workload("small", small, count=2_000_000, solver="ddim", steps=128, train=TrainConfig(steps=200_000))
    free = plan(work, **QUICK)  # type: ignore[arg-type]
    made = plan(work, budget_hours=free.hours / 10, **QUICK)  # type: ignore[arg-type]
    assert not made.fits and "over the budget" in made.summary
    fitting = [o for o in made.alternatives if o.fits]
    assert any("--count" in o.change and "--train-steps" in o.change for o in fitting)
    assert all((o.hours <= made.budget_hours) == o.fits for o in made.alternatives)  # type: ignore[operator]
    assert [o.fits for o in made.alternatives] == sorted((o.fits for o in made.alternatives), reverse=True)
    assert plan(work, budget_hours=10 * free.hours, **QUICK).fits  # type: ignore[arg-type]


def test_recipes_have_a_workload() -> None:
    work = RECIPES["digits"].workload()
    made = plan(work, **QUICK)  # type: ignore[arg-type]
    assert [s.name for s in made.stages] == ["teach", "generate", "distill", "finish"]
    assert of(made, "generate").evaluations == 32_768 * 16
    assert json.loads(json.dumps(made.to_dict(), allow_nan=False))["stages"][0]["name"] == "teach"


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_finish_is_counted_as_what_its_steps_do(share: float) -> None:
    work = replace(RECIPES["digits"].workload(), others=None, student={"where": "none"}, finish_inner=share)
    work = replace(work, times=(0.5, 0.0) if share else (0.0,))
    assert work.finish is not None
    teacher = work.own_teacher()
    student = work.student_of(teacher)
    given = Given(teacher, teacher.schedule, 1, 8)
    (stage,) = identity(student, given, IdentityOptions(inner_starts=share))
    twin, objective = stage.make(student)
    step = flops(lambda: objective(twin, next(objective.batches(0))).backward()) / 8
    counted = of(plan(work, **QUICK), "finish").flop / (work.finish.steps * work.finish_batch)  # type: ignore[arg-type]
    assert counted == pytest.approx(step, rel=0.1)


def test_planning_touches_neither_the_teacher_nor_the_random_state() -> None:
    teacher = small().eval()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    plan(Workload("mine", lambda: teacher, count=10), **QUICK)  # type: ignore[arg-type]
    assert torch.equal(torch.rand(1), wanted) and not teacher.training
    assert all(torch.equal(v, before[k]) and not v.is_meta for k, v in teacher.state_dict().items())


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        plan(Workload("small", small), budget_hours=0)


def test_a_plan_is_in_the_precision_that_the_run_would_take() -> None:
    best, why = best_precision(torch.device("cpu"))
    made = plan(Workload("small", small, train=TrainConfig(precision="auto")), **QUICK)  # type: ignore[arg-type]
    said = f"training in {'fp32' if best == 'no' else best}: {why}"
    assert made.precision == said and said in str(made) and made.to_dict()["precision"] == said
    half, full = (plan(Workload("small", small, train=TrainConfig(precision=p)), **QUICK) for p in ("bf16", "no"))  # type: ignore[arg-type]
    assert half.precision == full.precision == ""
    memory = {"bf16": half, "no": full}[best]
    assert of(made, "distill").memory == of(memory, "distill").memory
    wish = RECIPES["imagenet64"].workload()
    assert wish.train is not None and wish.train.precision == ("fp16" if torch.cuda.is_available() else "auto")


def test_a_start_costs_its_predictor_its_teacher_and_its_critic() -> None:
    work = Starts("start", small, train=TrainConfig(steps=10), train_batch=4, channels=(8, 16))
    made = plan(work, **QUICK)  # type: ignore[arg-type]
    (start,) = made.stages
    unet = flops(small(), torch.zeros(1, 1, 8, 8), torch.zeros(1))
    # Of one width, five passes: predictor, teacher, critic of both sides and of the predictor, whose head is wider.
    assert start.name == "start" and start.evaluations == 40
    assert 5 * unet < made.per_sample < 5.2 * unet and start.flop == pytest.approx(3 * 40 * made.per_sample)
    weights = sum(
        p.numel() for p in NoisePredictor({"in_channels": 1, "image_size": 8, "channels": [8, 16]}).parameters()
    )
    assert start.disk == 4 * weights and start.memory > 4 * 3 * weights and "measured" in start.how
    wide = plan(Starts("start", lambda: Prediction(UNet(1, 8, (128, 256)), Cosine(), "v")), **QUICK)  # type: ignore[arg-type]
    assert wide.per_sample > 20 * made.per_sample
