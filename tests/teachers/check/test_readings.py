"""Each wrong convention is caught, and the right one called by its name."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dsno.denoise import Prediction
from dsno.schedule import Cosine, RectifiedFlow, linear_beta
from dsno.teachers.check.readings import Reading, check_readings, other_ranges
from dsno.teachers.check.run import check_teacher
from dsno.teachers.check.subject import subject_of
from exact import Exact, data, mixture, said, stated, worst_of

WRONG: list[tuple[str, Callable[[], Prediction], str]] = [
    ("x0 for v", lambda: stated(Exact("v", Cosine()), "x0"), "v"),
    ("eps for v", lambda: stated(Exact("v", Cosine()), "eps"), "v"),
    ("v for eps", lambda: stated(Exact("eps", Cosine()), "v"), "eps"),
    ("v for x0", lambda: stated(Exact("x0", Cosine()), "v"), "x0"),
    ("v for flow", lambda: stated(Exact("flow", RectifiedFlow()), "v", RectifiedFlow()), "flow"),
    ("the sign", lambda: stated(Exact("v", Cosine(), sign=-1)), "minus"),
    ("time in thousandths", lambda: stated(Exact("v", Cosine(), lambda t: t / 1000)), "told 1000 t"),
    ("time in thousands", lambda: stated(Exact("v", Cosine(), lambda t: 1000 * t)), "told t / 1000"),
    ("time reversed", lambda: stated(Exact("v", Cosine(), lambda t: 1 - t)), "told 1 - t"),
    ("the schedule", lambda: stated(Exact("eps", linear_beta()), "eps", RectifiedFlow()), "on (Tabulated|VPLinear)"),
    ("kind and schedule", lambda: stated(Exact("v", Cosine()), "x0", linear_beta()), "v, on Cosine"),
    ("kind and time", lambda: stated(Exact("eps", Cosine(), lambda t: 1 - t), "v"), "eps, told 1 - t"),
]


@pytest.mark.parametrize("make, name", [(m, n) for _, m, n in WRONG], ids=[w for w, _, _ in WRONG])
def test_a_wrong_convention_fails_and_the_right_one_is_named(make: Callable[[], Prediction], name: str) -> None:
    verdict = check_teacher(make(), data(), levels=6, rows=24)
    # A network told a constant time may be a linear estimate, as good as trivial and no worse.
    assert not verdict.ok and worst_of(verdict, "reading") == "failure" and worst_of(verdict, "denoising") != "ok"
    assert re.search(f"denoises much better read as {name}", said(verdict)), said(verdict)
    assert "reading" in verdict.summary


@pytest.mark.parametrize("low, high, name", [(0.0, 1.0, "[0, 1]"), (0.0, 255.0, "[0, 255]")])
def test_a_teacher_of_another_range_is_caught(low: float, high: float, name: str) -> None:
    inside = (low + 0.05 * (high - low), low + 0.95 * (high - low))
    verdict = check_teacher(
        stated(Exact("eps", Cosine(), denoiser=mixture(Cosine(), *inside)), "eps"), data(), levels=6
    )
    assert worst_of(verdict, "range") == "failure" and f"for data in {name}" in said(verdict), said(verdict)
    # The teacher is right and the data are wrong: the same, the other way round.
    verdict = check_teacher(stated(Exact("eps", Cosine()), "eps"), data(256, *inside), levels=6)
    assert worst_of(verdict, "range") == "failure" and "for data in [-1, 1]" in said(verdict), said(verdict)


def test_a_wrong_convention_is_found_without_data_as_well() -> None:
    verdict = check_teacher(stated(Exact("v", Cosine()), "x0"), levels=6, rows=16)
    assert not verdict.ok and "v" in said(verdict), said(verdict)
    verdict = check_teacher(stated(Exact("v", Cosine(), lambda t: 1 - t)), levels=6, rows=16)
    assert not verdict.ok and "told 1 - t" in said(verdict), said(verdict)


def test_an_untrained_teacher_fails_without_a_reading_to_blame() -> None:
    class Untrained(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.sin(5 * x.roll(1, -1))

    verdict = check_teacher(stated(Untrained()), data(), levels=6, rows=32)
    assert worst_of(verdict, "denoising") == "failure" and worst_of(verdict, "reading") == "warning"
    assert "not trained?" in said(verdict)


def test_a_reading_says_what_it_changes_and_how_to_mend_it() -> None:
    stated = Reading("v")
    assert (stated.changes, stated.describe("v"), stated.remedy("v")) == (0, "", "")
    other = Reading("eps", -1, "1 - t", Cosine(), "[0, 1]")
    assert other.changes == 4
    assert other.describe("v") == f"minus eps, told 1 - t, on {Cosine()!r}, for data in [0, 1]"
    assert other.remedy("v").startswith(
        "kind='eps', a network that returns minus its output, tell it 1 - t for t, sched"
    )
    assert Reading("v", -1).describe("v") == "minus v" and Reading("eps").describe("v") == "eps"


@pytest.mark.parametrize("low, high, held", [(-0.9, 0.8, "[-1, 1]"), (0.05, 0.99, "[0, 1]"), (3, 240, "[0, 255]")])
def test_other_ranges_map_the_ends_of_the_one_that_is_held(low: float, high: float, held: str) -> None:
    ranges = {"[-1, 1]": (-1, 1), "[0, 1]": (0, 1), "[0, 255]": (0, 255)}
    found = other_ranges(low, high)
    assert found.keys() == ranges.keys() - {held}
    for name, (factor, offset) in found.items():
        assert tuple(factor * end + offset for end in ranges[held]) == pytest.approx(ranges[name])


def test_of_readings_that_are_alike_the_one_that_changes_least_is_named_and_patience_leaves_some_out() -> None:
    wrong = stated(Exact("v", Cosine()), "x0")
    subject, _ = subject_of(wrong, data(), None, 0, 16)
    # One evaluation and one of `edm` are 12 readings; 4 times, 4 other schedules and 2 other ranges.
    for patience, count in ((0.0, 12), (60.0, 12 * (4 + 4 + 2))):
        [finding] = check_readings(subject, False, patience)
        assert finding.state == "failure" and finding.mend == "kind='v'"
        [finding] = check_readings(replace(subject, inner=stated(Exact("v", Cosine()))), False, patience)
        assert finding.text.startswith(f"of {count} readings none denoises clearly better")
    assert check_readings(replace(subject, inner=mixture(Cosine())), False, 60.0) == []
