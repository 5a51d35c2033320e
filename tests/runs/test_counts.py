"""What is counted without numbers is what tensors with memory take."""

from dataclasses import replace

import pytest
import torch

from dsno.denoise import Prediction
from dsno.nets.unet import UNet
from dsno.runs.counts import Count, count_run, count_student, saved_bytes, teacher_arguments, teacher_to_count
from dsno.runs.workload import Workload
from dsno.schedule import Cosine


def small(classes: int | None = None) -> Prediction:
    return Prediction(UNet(1, 8, (8, 16), classes=classes), Cosine(), "v")


def test_the_published_networks_are_the_paper_s(published: tuple[Workload, Count]) -> None:
    work, count = published
    assert next(teacher_to_count(work).parameters()).is_meta
    # 35.8 GFLOP as published; its two convolutions of doubled images, 1024 and 256 pixels, take four ninths here.
    spared = 5 / 9 * 2 * 9 * 256**2 * (1024 + 256)
    assert count.evaluation + spared == pytest.approx(35.8e9, rel=2e-3)
    # Four such and the mixing: 153 GFLOP with a complex product in four real ones and an FFT; ours takes three and
    # none.
    assert count.sample + 4 * spared == pytest.approx(153e9, rel=0.04) and count.sample > 4 * count.evaluation


def test_bytes_kept_for_the_backward_pass_are_those_of_tensors_with_memory() -> None:
    teacher = small()
    x, t = torch.zeros(1, 1, 8, 8), torch.full((1,), 0.5)
    real = saved_bytes(teacher, lambda: teacher(x, t))
    with torch.device("meta"):
        meta = small()
    assert saved_bytes(meta, lambda: meta(x.to("meta"), t.to("meta"))) == pytest.approx(real, rel=0.02)


def test_what_is_kept_is_known_to_the_byte() -> None:
    net, x = torch.nn.Linear(3, 5), torch.randn(7, 3)
    # A product keeps its input and its weights, which are the network's own; a square keeps what it squares.
    assert saved_bytes(net, lambda: net(x).square()) == 4 * (7 * 3 + 7 * 5)
    assert saved_bytes(net, lambda: net(x).detach()) == 4 * 7 * 3


def test_a_small_teacher_is_counted_with_numbers_and_a_large_one_keeps_its_own() -> None:
    own = small()
    counted = teacher_to_count(Workload("small", lambda: own))
    assert counted is not own and not next(counted.parameters()).is_meta
    large = Prediction(UNet(1, 8, (128, 256)), Cosine(), "v")
    assert sum(p.numel() for p in large.parameters()) > 3e6
    assert all(p.is_meta for p in teacher_to_count(Workload("large", lambda: large)).parameters())
    assert not any(p.is_meta for p in large.parameters())


@pytest.mark.parametrize("classes", [None, 3])
def test_a_call_has_what_the_teacher_is_told(classes: int | None) -> None:
    teacher = small(classes)
    x, t, *cond = teacher_arguments(teacher, 4, torch.zeros(1))
    assert x.shape == (4, 1, 8, 8) and t.tolist() == [0.5] * 4
    assert [c.tolist() for c in cond] == ([] if classes is None else [[0] * 4])


def test_a_student_is_counted_in_the_mean_over_its_steps() -> None:
    frames, student = (0.75, 0.5, 0.25, 0.0), {"where": "every", "once": False}
    work = Workload("small", small, times=frames, others=0.25, student=student)
    teacher = teacher_to_count(work)
    count = count_run(work, teacher)
    last, another = (count_student(replace(work, others=share), teacher, count) for share in (0.0, 1.0))
    assert count.sample == pytest.approx(0.75 * last.sample + 0.25 * another.sample)
    assert count.evaluation < last.sample < another.sample == another.widest == last.widest == count.widest
    weights = sum(p.numel() for p in teacher.parameters())
    assert count.teacher_weights == weights < count.student_weights and 0 < count.trained <= count.student_weights
    alone = count_run(replace(work, train=None), teacher)
    assert (alone.sample, alone.student_weights, alone.training) == (0, 0, 0) and alone.evaluation == count.evaluation
