"""As many rows are timed as there is time and room for, and a rate says how it was found."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from dsno.denoise import Prediction
from dsno.nets.unet import UNet
from dsno.runs.bench import Bench, Rate, measure_rates
from dsno.runs.counts import Count
from dsno.runs.workload import Workload
from dsno.schedule import Cosine
from dsno.train import TrainConfig

CPU = torch.device("cpu")


@pytest.fixture
def bench() -> Bench:
    """One that takes 1 ns for an operation, has a second, and 1000 bytes."""
    made = Bench(CPU, 1.0)
    made.probe = 1e-9
    made.room = lambda: 1000.0  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize(
    "wanted, flop, row_bytes, fixed, rows",
    [
        (100, 1e6, 1, 0, 100),  # all of them
        (100, 1e7, 1, 0, 32),  # half a second, as each call is made twice, is 50 rows: the power of two below
        (100, 1e6, 20, 100, 32),  # 45 rows fit beside what is fixed
        (100, 6e8, 1, 0, 0),
        (100, 1e6, 1, 2000, 0),
        (1, 5e8, 1000, 0, 1),
    ],
)
def test_the_rows_that_can_be_tried(
    bench: Bench, wanted: int, flop: float, row_bytes: float, fixed: float, rows: int
) -> None:
    assert bench.rows(wanted, flop, row_bytes, fixed) == rows


def test_a_call_that_can_be_tried_is_made_twice_and_timed_once(bench: Bench) -> None:
    called: list[int] = []
    rate = bench(lambda: called.append, 100, 1e7, 1, 0)
    assert called == [32, 32]
    assert rate.how.startswith("measured, ") and rate.how.endswith(" s for 32 rows (of 100)") and rate.seconds > 0
    assert bench(lambda: called.append, 8, 1e7, 1, 0).how.endswith(" s for 8 rows")


def test_what_is_too_much_is_not_even_built(bench: Bench) -> None:
    def never() -> Callable[[int], object]:
        raise AssertionError("built")

    assert bench(never, 100, 6e8, 1, 0) == Rate(1e-9, "the rate of a convolution here, 1 GFLOP/s: one row is too much")


def test_a_stage_that_is_too_much_takes_the_rate_of_one_that_was_tried() -> None:
    config = TrainConfig(steps=1)
    work = Workload("small", lambda: Prediction(UNet(1, 8, (4, 8)), Cosine(), "v"), batch=2, train=config, teach=config)
    count = Count((1, 8, 8), None, 1e6, 1, 1, 1000, sample=1e20, widest=1e20, training=1)
    rates = measure_rates(work, count, CPU, 0.3)
    assert [*rates] == ["generate", "teach", "distill"]
    assert rates["generate"].how.startswith("measured") and rates["teach"].how.startswith("measured")
    told = f"the rate of the call that was {rates['generate'].how}"
    assert rates["distill"] == Rate(rates["generate"].seconds, told)
    assert [*measure_rates(replace(work, count=0, teach=None), count, CPU, 0.01)] == ["distill"]
