r"""Is this network the denoiser it is said to be? Asked before hours are spent on its trajectories.

A teacher is a network and a convention: a schedule, a prediction kind, units of time, a range of values, labels. A
wrong convention raises no error: the solver runs, and the samples are noise. But it cannot denoise. At most noise
levels it loses to estimates that know nothing but the mean and the deviation of the data (`denoising`), and the right
convention is found by trying: the network's output is read as every other kind, with either sign, with its time
reversed or in other units, on other schedules, for data of another range (`readings`). Where one of these denoises
clearly better than the stated one, the verdict names it.

Without data the teacher's own samples take their place. That is weaker: a teacher may denoise its own nonsense well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dsno.condition import Cond
from dsno.cost import flops, latency, timed
from dsno.denoise import Denoiser, evaluating
from dsno.teachers.check.calls import check_call, check_ends, check_labels, check_range, check_repeats
from dsno.teachers.check.denoising import check_denoising, check_sampling, check_schedule, denoise
from dsno.teachers.check.readings import check_readings
from dsno.teachers.check.subject import Subject, subject_of
from dsno.teachers.check.verdict import Finding, Level, Verdict

__all__ = ["check_teacher"]


@torch.no_grad()
def check_teacher(
    teacher: Denoiser,
    data: Tensor | None = None,
    cond: Cond | None = None,
    seed: int = 0,
    levels: int = 12,
    rows: int | None = None,
    patience: float = 60.0,
    null: int | None = None,
) -> Verdict:
    """Look at a teacher from all sides; it is left as it was, its mode, buffers and the random state included.

    Arguments:
        teacher: A `Prediction`, or any denoiser that has a `schedule`. Other readings are tried of a `Prediction` only.
        data: Samples of what it was trained on, (N, *shape) with N of 16 or more, in the range it is to be used with.
        cond: The condition of each row of `data` (or of `rows` samples), first dimension N; labels are drawn by
            default.
        seed: Determines which rows and which noise.
        levels: Noise levels, 2 or more.
        rows: Rows at each level, 4 or more; 64 by default, 16 where a call takes long.
        patience: Seconds after which no further reading is begun.
        null: The label that stands for no class, which is not drawn.

    Raises:
        ValueError: if the teacher has no schedule, says no shape while there is no data, or sizes do not fit.
    """
    if levels < 2 or (rows is not None and rows < 4):
        raise ValueError(f"a check needs 2 or more levels and 4 or more rows, got {levels} and {rows}")
    subject, findings = subject_of(teacher, data, cond, seed, rows or 64, null)
    with _unchanged(subject.modules):
        called, seconds = timed(check_call, subject)
        findings += called
        if called[-1].state == "failure":
            return Verdict(str(subject), subject.source, tuple(findings))
        if rows is None and seconds > 2:
            subject = subject.first(16)
        findings += check_repeats(subject)
        with evaluating(*subject.modules):
            findings += check_ends(subject) + check_labels(subject) + check_schedule(subject)
            samples, sampled = check_sampling(subject)
            findings += sampled
            found: list[Level] = []
            beaten = data is None and samples is None
            if not beaten:
                if data is None and samples is not None:
                    subject = subject.showing(samples)
                found = denoise(subject, subject.levels(levels))
                findings += check_denoising(subject, found)
                beaten = findings[-1].state == "failure"
            findings += check_readings(subject, beaten, patience) + check_range(subject)
            priced, cost = _cost(subject)
    return Verdict(str(subject), subject.source, (*findings, priced), tuple(found), cost)


@contextmanager
def _unchanged(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put buffers (running statistics) and the random state back."""
    buffers = [(b, b.clone()) for module in modules for b in module.buffers()]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for b, held in buffers:
            b.copy_(held)


def _cost(subject: Subject) -> tuple[Finding, dict[str, float]]:
    """Floating-point operations and seconds of a call, of one row and of all."""
    x_t, t = subject.noised(subject.middle)

    def call(rows: int) -> Tensor:
        return subject(x_t[:rows], t[:rows])

    work = flops(call, 1)
    one = latency(call, 1, repeats=3, warmup=1)
    many = latency(call, len(x_t), repeats=1, warmup=0)
    text = f"{1e3 * one:.3g} ms alone, {1e3 * many:.3g} ms for {len(x_t)} rows ({len(x_t) / many:.3g} rows/s)"
    if work:
        text += f"; {work / 1e9:.3g} GFLOP a row"
    cost = {"flop_per_row": float(work), "rows": float(len(x_t)), "seconds_1": one, "seconds_rows": many}
    return Finding("cost", "ok", text), cost
