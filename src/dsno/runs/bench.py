"""How fast this machine samples and trains: the calls of a run, timed for a few seconds.

A call is timed at the run's own batch where that is quick and fits into memory, else at fewer rows; where one row is
too much, its rate is that of another stage that was timed, else that of a convolution. A `Rate` says which it was.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dsno.cost import timed
from dsno.denoise import Prediction
from dsno.runs.counts import Count, parameter_of, student_arguments, teacher_arguments
from dsno.runs.workload import Workload

__all__ = ["BACKWARD", "Bench", "Rate", "measure_rates"]

BACKWARD = 3
"""Forward passes that a training step costs: a backward pass is taken for two of them."""


@dataclass(frozen=True)
class Rate:
    """Seconds of a floating-point operation of one stage, and how that was found."""

    seconds: float
    how: str


class Bench:
    """A machine on which calls are timed for a few seconds.

    Arguments:
        device: Where the calls run.
        patience: Seconds for one call, made twice.
    """

    def __init__(self, device: torch.device, patience: float) -> None:
        self.device, self.patience = device, patience
        x, conv = torch.randn(8, 128, 16, 16, device=device), nn.Conv2d(128, 128, 3, padding=1).to(device)
        with torch.no_grad():
            conv(x)
            # Seconds of an operation, of which each of 9 x 128 x 128 weights takes two at each of 8 x 256 pixels.
            self.probe = timed(lambda: [conv(x) for _ in range(3)])[1] / (3 * 2 * 8 * 256 * 128 * 128 * 9)

    def room(self) -> float:
        """Bytes to work in: half of what is free."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0] / 2
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
        except (ValueError, OSError, AttributeError):
            return 4e9

    def rows(self, wanted: int, flop: float, row_bytes: float, fixed_bytes: float) -> int:
        """How many of the `wanted` rows can be tried twice: all, a power of two, or none."""
        quick = self.patience / (2 * max(flop, 1.0) * self.probe)
        held = (self.room() - fixed_bytes) / max(row_bytes, 1.0)
        most = max(0, int(min(quick, held, wanted)))
        return most if most in (0, wanted) else 2 ** int(math.log2(most))

    def __call__(
        self,
        make: Callable[[], Callable[[int], object]],
        wanted: int,
        flop: float,
        row_bytes: float,
        fixed_bytes: float,
    ) -> Rate:
        """The rate of a call.

        Arguments:
            make: Builds what is called with a number of rows.
            wanted: The rows of the run's own batch.
            flop: Floating-point operations of one row.
            row_bytes: Bytes that it takes.
            fixed_bytes: Bytes that any number of rows takes.
        """
        rows = self.rows(wanted, flop, row_bytes, fixed_bytes)
        if rows == 0:
            return Rate(
                self.probe, f"the rate of a convolution here, {1e-9 / self.probe:.3g} GFLOP/s: one row is too much"
            )
        call = make()
        call(rows)
        seconds = timed(call, rows)[1]
        how = f"measured, {seconds:.2g} s for {rows} rows" + (f" (of {wanted})" if rows < wanted else "")
        return Rate(seconds / (max(flop, 1.0) * rows), how)


def measure_rates(work: Workload, count: Count, device: torch.device, seconds: float) -> dict[str, Rate]:
    """The rate of each stage of a run, `generate`, `teach` and the one that `trains`, found in some `seconds`."""
    stages = sum(bool(stage) for stage in (work.teach, work.count, work.train))
    bench = Bench(device, seconds / max(stages, 1))
    rates: dict[str, Rate] = {}
    if work.count:
        rates["generate"] = bench(
            lambda: _solving(work.own_teacher(), device),
            work.batch * work.pairs,
            count.evaluation,
            count.solving,
            4 * count.teacher_weights,
        )
    if work.teach is not None:
        precision = work.teach.precision
        rates["teach"] = bench(
            lambda: _teaching(work.own_teacher(), device, precision),
            work.teach_batch,
            BACKWARD * count.evaluation,
            count.teaching,
            8 * count.teacher_weights,
        )
    if work.train is not None:
        precision = work.train.precision
        # The widest kind of step, whose work per row is known.
        rates[work.trains] = bench(
            lambda: _distilling(work, work.own_teacher(), device, precision),
            work.train_batch,
            BACKWARD * count.widest,
            count.training,
            4 * (count.student_weights + 2 * count.trained),
        )
    # A row that was tried beats a convolution that is none of its own.
    known = [rate for rate in rates.values() if rate.how.startswith("measured")]
    if known:
        for name, rate in rates.items():
            if rate not in known:
                rates[name] = Rate(known[0].seconds, f"the rate of the call that was {known[0].how}")
    return rates


def _solving(teacher: Prediction, device: torch.device) -> Callable[[int], object]:
    teacher = teacher.to(device).eval()

    @torch.no_grad()
    def call(rows: int) -> object:
        return teacher(*teacher_arguments(teacher, rows, parameter_of(teacher)))

    return call


def _teaching(teacher: Prediction, device: torch.device, precision: str) -> Callable[[int], object]:
    teacher = teacher.to(device).requires_grad_()
    return _training(teacher, lambda rows: teacher_arguments(teacher, rows, parameter_of(teacher)), device, precision)


def _distilling(work: Workload, teacher: Prediction, device: torch.device, precision: str) -> Callable[[int], object]:
    student, (_, frames) = work.student_of(teacher).to(device), work.supervised[-1]
    return _training(
        student,
        lambda rows: student_arguments(work, teacher, rows, parameter_of(student), frames),
        device,
        precision,
    )


def _training(
    module: nn.Module, arguments: Callable[[int], tuple[Any, ...]], device: torch.device, precision: str
) -> Callable[[int], object]:
    module.train()

    def call(rows: int) -> None:
        with _autocast(device, precision):
            output = module(*arguments(rows))
        output.float().square().mean().backward()
        module.zero_grad(set_to_none=True)

    return call


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, dtypes[precision]) if precision in dtypes else nullcontext()
