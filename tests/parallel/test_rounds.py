"""Rounds and rows are what a meter counts, and a teacher that cannot be solved is refused."""

import math

import pytest
import torch
from torch import Tensor, nn

from chains import CHAINS, D64, METHODS, mixture, problem
from dsno.cost import Meter
from dsno.denoise import Prediction
from dsno.grids import uniform
from dsno.parallel.picard import Picard
from dsno.parallel.rounds import Rounds, System, rms, wide
from dsno.parallel.taa import ParaTAA
from dsno.schedule import Cosine
from dsno.solvers.chain import Chain
from dsno.solvers.run import initial_state


def test_seeds_give_the_tape_of_the_sequential_sampler() -> None:
    chain, teacher = Chain(Cosine(), uniform(20), 1.0), mixture(2)
    z, seeds = torch.randn(3, 2, dtype=D64), torch.tensor([7, 8, 9])
    reference = chain.run(teacher, initial_state(chain.schedule, z), chain.tape(seeds, (2,), D64))
    assert torch.allclose(ParaTAA(teacher, chain, tolerance=None)(z, seeds=seeds).x, reference.x, rtol=0, atol=1e-12)


def test_the_trace_is_what_a_meter_counts() -> None:
    chain, meter = CHAINS["ddpm"], Meter(mixture(2))
    x, tape = problem(chain, 2)
    for sampler in (Picard(meter, chain, window=9), ParaTAA(meter, chain)):
        meter.reset()
        made = sampler.solve(x, tape)
        assert made.trace is not None
        assert meter.rounds == made.rounds == len(made.trace.history)
        assert meter.rows == int(made.trace.rows.sum())
        assert made.nfe == math.ceil(meter.rows / len(x))
        assert torch.equal((~made.trace.history.isnan()).sum(0), made.trace.rounds)


class _Net(nn.Module):
    def __init__(self, p: float, always: bool = False) -> None:
        super().__init__()
        self.drop, self.always = nn.Dropout(p), always

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5) if self.always else self.drop(x)


def test_a_teacher_that_is_not_deterministic_is_refused() -> None:
    chain = CHAINS["ddim"]
    x, _ = problem(chain, 2)
    teacher = Prediction(_Net(0.3), Cosine(), "x0")
    with pytest.raises(ValueError, match=r"net\.drop \(Dropout\) of the denoiser is in training mode"):
        Picard(teacher, chain).solve(x)
    assert Picard(teacher.eval(), chain).solve(x).x.isfinite().all()
    with pytest.raises(ValueError, match="not deterministic: one state at one time gave two answers"):
        Picard(Prediction(_Net(0.0, always=True), Cosine(), "x0").eval(), chain).solve(x)


@pytest.mark.parametrize("name", ["picard", "taa", "k=3, m=3, window"])
def test_values_that_are_not_finite_name_the_sample_and_the_time(name: str) -> None:
    chain, exact = CHAINS["ddim"], mixture(2)
    x, _ = problem(chain, 2)
    at = float(chain.grid[5])

    def broken(x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        x0_hat = exact(x_t, t)
        row = (t - at).abs() < 1e-9
        if len(x_t) > 1 and bool(row.any()):
            x0_hat[row.nonzero().max()] = torch.nan
        return x0_hat

    with pytest.raises(FloatingPointError, match=rf"not finite for sample 7 at t = {at:g}"):
        METHODS[name](broken, chain, tolerance=None).solve(x)


def test_a_stochastic_chain_without_its_noise_is_refused() -> None:
    chain, teacher = CHAINS["ddpm"], mixture(2)
    x, _ = problem(CHAINS["ddim"], 2)
    with pytest.raises(ValueError, match="needs `seeds`"):
        Picard(teacher, chain)(x)
    with pytest.raises(ValueError, match="the tape has shape"):
        Picard(teacher, chain).solve(x, torch.zeros(3, 8, 2))


def test_a_step_of_the_system_is_the_chains_for_any_rows() -> None:
    chain, teacher = CHAINS["half"], mixture(2)
    x, tape = problem(chain, 2)
    system, path = System(chain, x, tape), chain.run(teacher, x, tape).x
    n, sample = torch.tensor([3, 0, 23, 3]), torch.tensor([7, 1, 4, 0])
    rows = path[sample, n]
    x0_hat = teacher(rows, chain.grid[n])
    torch.testing.assert_close(system.step(rows, x0_hat, n, sample), path[sample, n + 1], rtol=0, atol=1e-12)
    one = system.step(rows[:1], x0_hat[:1], 3, sample[:1])
    assert torch.equal(one, system.step(rows, x0_hat, n, sample)[:1]) and len(system) == len(chain)


def test_wide_views_broadcast_against_rows_and_windows_of_them() -> None:
    x = torch.zeros(5, 3, 2, 4)
    assert wide(torch.arange(5), x).shape == (5, 1, 1, 1) and wide(torch.zeros(5, 3), x).shape == (5, 3, 1, 1)
    assert rms(torch.full((5, 2, 4), 3.0)).tolist() == [3.0] * 5


def test_a_drafts_calls_are_counted_apart() -> None:
    chain = CHAINS["ddim"]
    x, _ = problem(chain, 2, 3)
    rounds = Rounds(mixture(2), chain, None, x)
    rounds(x, torch.zeros(3, dtype=torch.int64), torch.arange(3))
    rounds.tally(torch.tensor([0, 2]), 1, 4)
    made = rounds.trajectory(x[:, None], chain.grid[:1], None)
    assert made.trace is not None and (made.rounds, made.nfe) == (2, 4)  # 3 rows and 8 of the draft, of 3 samples
    assert made.trace.rounds.tolist() == [1, 1, 1] and made.trace.rows.tolist() == [1, 1, 1]
    assert made.trace.draft_rounds.tolist() == [1, 0, 1] and made.trace.draft_rows.tolist() == [4, 0, 4]
