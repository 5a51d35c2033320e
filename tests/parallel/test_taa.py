"""ParaTAA: what its linear part knows, and what it takes."""

from typing import Any

import pytest
import torch

from chains import CHAINS, D64, mixture, problem
from dsno.grids import uniform
from dsno.parallel.taa import ParaTAA
from dsno.report.compare import HELD_OUT
from dsno.schedule import Cosine
from dsno.seeds import noise, seed_range
from dsno.solvers.chain import Chain
from dsno.teachers.closed import Gaussian


def test_on_a_gaussian_with_its_own_scale_two_rounds_solve_everything() -> None:
    chain = Chain(Cosine(), uniform(50), 1.0)
    teacher, (x, tape) = Gaussian(Cosine(), torch.full((6,), 0.3, dtype=D64), 0.7), problem(chain, 6)
    made = ParaTAA(teacher, chain, memory=1, data_std=0.7, tolerance=1e-9).solve(x, tape)
    assert made.rounds == 2
    assert torch.allclose(made.x, chain.run(teacher, x, tape).x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("memory", "published", "held"), [(1, 17.8, 22.8), (2, 9.3, 14.6), (3, 9.0, 13.6)])
def test_the_published_first_guess_is_the_repeated_noise_and_needs_fewer_rounds(
    memory: int, published: float, held: float
) -> None:
    """The rounds that `benchmarks/parallel.py` reports of two dimensions, from the same noises."""
    chain, teacher, seeds = Chain(Cosine(), uniform(100)), mixture(2), seed_range(HELD_OUT, 64)
    z = noise(seeds, (2,), dtype=D64)

    def rounds(**options: Any) -> float:
        trace = ParaTAA(teacher, chain, memory=memory, tolerance=1e-4, **options)(z, seeds=seeds).trace
        assert trace is not None
        return float(trace.rounds.double().mean())

    assert rounds(data_std=1e3, repeat_noise=True) == pytest.approx(published, abs=0.05)
    assert rounds(data_std=1e3) == pytest.approx(held, abs=0.05)
    # Ours, from the guess of the right scale, is ahead of either.
    assert rounds() < 0.75 * published


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs(dtype: torch.dtype) -> None:
    chain = Chain(Cosine(), uniform(8))
    x, _ = problem(chain, 2)
    made = ParaTAA(mixture(2), chain, tolerance=0.1).solve(x.to(dtype))
    reference = chain.run(mixture(2), x.to(dtype))
    assert made.x.dtype == dtype and float((made.x - reference.x).abs().max()) < 0.2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"order": 25}, "order must be from 1 to the chain's 24 steps, got 25"),
        ({"order": 0}, "order must be from 1"),
        ({"memory": 0}, "memory must be at least 1"),
        ({"ridge": 0.0}, "ridge must be positive"),
        ({"data_std": 0.0}, "data_std must be positive"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParaTAA(mixture(2), CHAINS["ddim"], **options)
