"""How fast this machine samples and trains: one call of growing size until its rate is known."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dsno.cost import timed
from dsno.denoise import Prediction
from dsno.runs.counts import arguments, like, selections, student_of, weighted
from dsno.runs.workload import Workload

__all__ = ["Bench", "Rate", "distilling", "solving", "teaching"]


@dataclass(frozen=True)
class Rate:
    """Seconds of a floating-point operation of one stage, and how that was found."""

    seconds: float
    how: str


class Bench:
    """A machine on which calls are timed for a few seconds."""

    def __init__(self, device: torch.device, patience: float) -> None:
        self.device, self.patience = device, patience
        x, conv = torch.randn(8, 128, 16, 16, device=device), nn.Conv2d(128, 128, 3, padding=1).to(device)
        with torch.no_grad():
            conv(x)
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
        """How many rows of the run's batch can be tried twice."""
        quick = self.patience / (2 * max(flop, 1.0) * self.probe)
        held = (self.room() - fixed_bytes) / max(row_bytes, 1.0)
        most = int(min(quick, held, wanted))
        return most if most in (0, wanted) else 2 ** int(math.log2(most))

    def __call__(self, make: Callable[[], Callable[[int], object]], wanted: int, flop: float, rows: int) -> Rate:
        """`flop` is of one row; `make` builds what is called with a number of rows."""
        if rows == 0:
            return Rate(
                self.probe, f"the rate of a convolution here, {1e-9 / self.probe:.3g} GFLOP/s: one row is too much"
            )
        call = make()
        call(rows)
        seconds = timed(call, rows)[1]
        how = f"measured, {seconds:.2g} s for {rows} rows" + (f" (of {wanted})" if rows < wanted else "")
        return Rate(seconds / (max(flop, 1.0) * rows), how)


def _autocast(device: torch.device, precision: str) -> Any:
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, dtypes[precision]) if precision in dtypes else nullcontext()


def solving(teacher: Prediction, device: torch.device, precision: str = "no") -> Callable[[int], object]:
    teacher = teacher.to(device).eval()

    def call(rows: int) -> object:
        with torch.no_grad(), _autocast(device, precision):
            return teacher(*arguments(teacher, rows, like(teacher)))

    return call


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


def teaching(teacher: Prediction, device: torch.device, precision: str) -> Callable[[int], object]:
    teacher = teacher.to(device).requires_grad_()
    return _training(teacher, lambda rows: arguments(teacher, rows, like(teacher)), device, precision)


def distilling(work: Workload, teacher: Prediction, device: torch.device, precision: str) -> Callable[[int], object]:
    student = student_of(work, teacher).to(device)
    select = selections(work)[-1][1]

    def call(rows: int) -> tuple[Any, ...]:
        x, _, *cond = arguments(teacher, rows, like(student))
        return x, weighted(cond[0] if cond else None, work, x), 1.0, select

    return _training(student, call, device, precision)
