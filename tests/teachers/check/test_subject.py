"""What a teacher is shown, and what cannot be shown to any."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dsno.denoise import Denoiser, Guided
from dsno.schedule import Cosine
from dsno.teachers.check.run import check_teacher
from dsno.teachers.check.subject import SPAN, Subject, subject_of
from exact import SHAPE, Exact, data, mixture, stated


def test_what_cannot_be_checked_is_refused() -> None:
    def bare(x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return x

    teacher = stated(Exact("v", Cosine()))
    cases: list[tuple[Denoiser, dict[str, object], str]] = [
        (bare, {"data": data()}, "does not say which schedule"),
        (mixture(Cosine()), {}, "does not say what shape"),
        (teacher, {"data": data()[:3]}, "N of 16 or more"),
        (teacher, {"data": torch.zeros(20, *SHAPE)}, "constant"),
        (teacher, {"data": data(), "cond": torch.zeros(3)}, "the condition has 3 rows, the data 256"),
        (teacher, {"levels": 1}, "2 or more levels"),
    ]
    for denoiser, arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            check_teacher(denoiser, **arguments)  # type: ignore[arg-type]


def test_levels_are_even_in_the_log_snr_of_the_data_as_far_as_the_schedule_goes() -> None:
    x = data(low=-9.0, high=9.0)
    subject, _ = subject_of(mixture(Cosine()), x, None, 0, 16)
    log_snr = 2 * math.log(subject.spread)

    def levels(subject: Subject, count: int, span: float = SPAN) -> list[float]:
        t = torch.tensor(subject.levels(count, span), dtype=torch.float64)
        return (subject.schedule.log_snr(t) + log_snr).tolist()

    assert levels(subject, 3) == pytest.approx([7, 0, -7], abs=1e-4)
    assert levels(subject, 5, 4.0) == pytest.approx([4, 2, 0, -2, -4], abs=1e-4)
    short = Cosine(-8, 2)
    at_0, at_1 = (float(short.log_snr(torch.tensor(t))) + log_snr for t in (0.0, 1.0))
    assert levels(replace(subject, schedule=short), 2) == pytest.approx([min(at_0, 7), max(at_1, -7)], abs=1e-4)
    alpha_t, sigma_t = subject.schedule.at(subject.middle)
    assert alpha_t * subject.spread == pytest.approx(sigma_t, rel=1e-4)


def test_what_a_subject_is_shown_changes_as_one_and_the_subject_itself_does_not() -> None:
    x = data()
    subject, _ = subject_of(mixture(Cosine()), x, None, 3, 32)
    assert subject.x_0.shape == subject.z.shape == (32, *SHAPE) and subject.source == "data"
    assert subject.limits == (float(x.min()), float(x.max()))
    x_t, t = subject.noised(0.4)
    alpha_t, sigma_t = Cosine().at(0.4)
    assert torch.equal(x_t, alpha_t * subject.x_0 + sigma_t * subject.z) and t.tolist() == [pytest.approx(0.4)] * 32
    scaled = subject.rescaled(2.0, 1.0)
    assert torch.equal(scaled.x_0, 2 * subject.x_0 + 1) and torch.equal(scaled.mean, 2 * subject.mean + 1)
    assert scaled.spread == 2 * subject.spread
    few = subject.first(5)
    assert torch.equal(few.x_0, subject.x_0[:5]) and torch.equal(few.z, subject.z[:5])
    own = subject.showing(torch.cat([torch.zeros(2, *SHAPE), torch.ones(2, *SHAPE)]))
    assert own.spread == 0.5 and own.limits == (0.0, 1.0) and torch.equal(own.mean, torch.full((1, *SHAPE), 0.5))
    again, _ = subject_of(mixture(Cosine()), x, None, 3, 32)
    assert torch.equal(again.x_0, subject.x_0) and torch.equal(again.z, subject.z)


def test_conditions_are_drawn_where_none_are_given_and_that_is_said() -> None:
    class Told(nn.Module):
        classes = 3

        def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            return x * cond[:, None, None, None]

    subject, [warned] = subject_of(stated(Told()), data(), None, 0, 64)
    assert warned.check == "condition" and "random ones" in warned.text
    assert isinstance(subject.cond, Tensor) and subject.cond.unique().tolist() == [0, 1, 2]
    known, _ = subject_of(stated(Told()), data(), None, 0, 64, null=1)
    assert isinstance(known.cond, Tensor) and known.cond.unique().tolist() == [0, 2]
    # Called with fewer rows it is told the conditions of the first.
    x_t, t = subject.noised(0.4)
    assert torch.equal(subject(x_t[:7], t[:7]), subject(x_t, t)[:7])
    guided, _ = subject_of(Guided(stated(Told()), torch.tensor(3)), data(), None, 0, 16)
    assert guided.cond is not None and set(guided.cond) == {"label", "weight"}
    assert str(guided).startswith("Guided v of a Told on Cosine(")
    assert subject_of(stated(Told()), None, None, 0, 16)[1] == []
