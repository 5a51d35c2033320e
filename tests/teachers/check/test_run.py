"""A teacher that is what it is said to be passes, and is left as it was."""

import pytest
import torch

from dsno.cost import Meter
from dsno.denoise import Kind
from dsno.schedule import VE, Cosine, Schedule
from dsno.teachers.check.run import check_teacher
from dsno.teachers.closed import Gaussian
from dsno.teachers.load import load_teacher
from exact import SHAPE, Exact, data, mixture, said, stated


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "flow", "score", "edm"])
def test_an_exact_teacher_of_any_kind_passes(kind: Kind) -> None:
    # Short of pure noise, where eps would have to be exact to 1e-5.
    schedule = Cosine(-8, 20)
    verdict = check_teacher(stated(Exact(kind, schedule), kind, schedule), data(), levels=6)
    assert verdict.ok and verdict.state == "ok", said(verdict)
    assert {f.check for f in verdict.findings} == {
        "output",
        "determinism",
        "batch",
        "ends",
        "schedule",
        "sampling",
        "denoising",
        "reading",
        "range",
        "cost",
    }
    assert len(verdict.levels) == 6 and all(level.ratio < 1.03 for level in verdict.levels)
    assert verdict.levels[2].ratio < 0.8


def test_an_exact_teacher_passes_on_any_schedule(schedule: Schedule) -> None:
    for teacher in (mixture(schedule), Gaussian(schedule, torch.zeros(SHAPE), 0.7), Meter(mixture(schedule))):
        x = torch.randn(256, *SHAPE) * 0.7 if isinstance(teacher, Gaussian) else data()
        verdict = check_teacher(teacher, x, levels=6)
        assert verdict.ok, said(verdict)


def test_without_data_it_looks_at_its_own_samples_and_says_so() -> None:
    verdict = check_teacher(stated(Exact("v", Cosine())), levels=6)
    assert verdict.state == "ok", said(verdict)
    assert verdict.source == "own samples"
    assert any("weaker" in f.text for f in verdict.findings if f.check == "denoising")


def test_the_digits_teacher_that_ships_passes() -> None:
    from dsno.data.load import load_data

    verdict = check_teacher(load_teacher("digits"), load_data("digits").x, levels=5, rows=16, patience=0)
    assert verdict.state == "ok", said(verdict)
    # 3x3 convolutions of an 8x8 image: known from the benchmark.
    assert verdict.cost["flop_per_row"] > 1e7 and 0 < verdict.cost["seconds_1"] < 10


def test_eval_runs_on_ve_far_from_the_ends() -> None:
    assert check_teacher(stated(Exact("x0", VE()), "x0", VE()), data(), levels=4, patience=0).ok


def test_the_random_state_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    check_teacher(stated(Exact("v", Cosine())), data(), levels=2, rows=8, patience=0)
    assert torch.equal(torch.rand(1), wanted)
