"""Parareal gives the chain's own samples, from any guess, at the cost its formulas say."""

from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor

from dsno.condition import Cond
from dsno.cost import Meter
from dsno.denoise import Denoiser, Guided
from dsno.grids import uniform
from dsno.parallel.srds import SRDS
from dsno.schedule import Cosine, RectifiedFlow, Schedule
from dsno.seeds import noise, seed_range
from dsno.solvers.chain import Chain
from dsno.solvers.run import SolverSampler, initial_state, solve
from dsno.teachers.closed import Gaussian, GaussianMixture
from dsno.trajectory import Trajectory

UNEVEN = (5, 1, 4, 2)


def mixture(d: int, schedule: Schedule | None = None, seed: int = 0, labels: Sequence[int] | None = None) -> Denoiser:
    means = torch.randn(8, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return GaussianMixture(schedule or Cosine(), means, 0.2, labels=labels)


def start(chain: Chain, B: int, shape: Sequence[int], first: int = 0) -> tuple[Tensor, Tensor | None]:
    """The states at the chain's start and the noise of its steps."""
    seeds = seed_range(first, B)
    x = initial_state(chain.schedule, noise(seeds, shape, dtype=torch.float64), float(chain.grid[0]))
    return x, chain.tape(seeds, shape, torch.float64) if chain.eta > 0 else None


def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@cache
def arrival(lengths: tuple[int, ...], i: int, p: int, drafted: bool = False) -> int:
    """T(i, p): the rounds after which the pipelined schedule has the state behind block i in iteration p."""
    if i == 0:
        return 0
    if p == 0:
        return 0 if drafted else i
    before = arrival(lengths, i - 1, p - 1, drafted) + lengths[i - 1]
    return max(before, arrival(lengths, i - 1, p, drafted) + 1)


def iterations_of(made: Trajectory) -> list[int]:
    assert made.trace is not None
    return (~made.trace.history.isnan()).sum(0).tolist()


# Exactness


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=["cosine", "flow"])
@pytest.mark.parametrize("blocks", [None, 4, 1, 12, UNEVEN, (1, 1, 1, 9), (9, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_run_to_the_end_it_is_the_chain(schedule: Schedule, blocks: int | tuple[int, ...] | None, eta: float) -> None:
    chain, teacher = Chain(schedule, uniform(12), eta), mixture(2, schedule)
    x, tape = start(chain, 4, (2,))
    exact = chain.run(teacher, x, tape)
    for pipelined in (True, False):
        sampler = SRDS(teacher, chain, blocks, tolerance=None, pipelined=pipelined)
        made = sampler.solve(x, tape)
        edges = [0, *accumulate(sampler.lengths)]
        assert torch.equal(made.t, chain.grid[edges])
        assert error(made.x, exact.x[:, edges]) <= 1e-12
        assert not pipelined or made.rounds <= 12


def test_the_exact_rule_waits_for_the_last_bit() -> None:
    chain, teacher = Chain(Cosine(), uniform(64)), mixture(64)
    x, _ = start(chain, 8, (64,))
    made = SRDS(teacher, chain, tolerance=None).solve(x)
    assert error(made.sample, chain.run(teacher, x).sample) <= 1e-12
    assert made.trace is not None
    for change, k in zip(made.trace.history.T, iterations_of(made), strict=True):
        assert k == 8 or change[k - 1] == 0

    def steps(x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return x_t.sign()

    # The last state of such a teacher is a sign: it rests from the start, and the states before it do not.
    made = SRDS(steps, chain, tolerance=None).solve(x[:, :1])
    assert made.trace is not None
    assert bool((made.trace.history[0] == 0).all()) and min(iterations_of(made)) > 1
    assert error(made.x, chain.run(steps, x[:, :1]).x[:, ::8]) <= 1e-12


def test_samples_of_any_shape_and_from_noise_and_seeds() -> None:
    chain = Chain(Cosine(), uniform(9), 1.0)
    means = torch.randn(3, 2, 3, dtype=torch.float64)
    teacher, seeds = GaussianMixture(Cosine(), means, 0.3), torch.tensor([7, 3])
    z = noise(seeds, (2, 3), dtype=torch.float64)
    made = SRDS(teacher, chain, tolerance=None)(z, seeds=seeds)
    tape = chain.tape(seeds, (2, 3), torch.float64)
    exact = chain.run(teacher, initial_state(Cosine(), z), tape)
    assert made.x.shape == (2, 4, 2, 3) and error(made.sample, exact.sample) <= 1e-12
    assert made.seeds is seeds
    single = SRDS(teacher, chain, tolerance=1e-4).solve(initial_state(Cosine(), z).float(), tape.float())
    assert single.x.dtype == torch.float32 and error(single.sample, exact.sample) < 1e-3
    assert SRDS(teacher, chain)(z[:0], seeds=seeds[:0]).x.shape == (0, 4, 2, 3)


def test_a_chain_may_start_and_stop_inside() -> None:
    chain, teacher = Chain(RectifiedFlow(), uniform(8, 0.9, 0.2)), mixture(2, RectifiedFlow())
    x, _ = start(chain, 3, (2,))
    assert error(SRDS(teacher, chain, tolerance=None).solve(x).sample, chain.run(teacher, x).sample) <= 1e-12


def parareal(teacher: Denoiser, chain: Chain, lengths: Sequence[int], x: Tensor, tape: Tensor | None, k: int) -> Tensor:
    """The textbook's loops, one sample path at a time: the states at the boundaries after k iterations."""
    rows, edges = chain.coefficients().tolist(), [0, *accumulate(lengths)]

    def across(x: Tensor, i: int, hold: bool) -> Tensor:
        D = None
        for n in range(edges[i], edges[i + 1]):
            D = D if hold and D is not None else teacher(x, chain.grid[n].expand(len(x)))
            a, b, s = rows[n]
            x = a * x + b * D + (0 if tape is None else s * tape[n])
        return x

    U = [x]
    for i in range(len(lengths)):
        U.append(across(U[i], i, hold=True))
    for _ in range(k):
        new = [x]
        for i in range(len(lengths)):
            new.append(across(U[i], i, False) + across(new[i], i, True) - across(U[i], i, True))
        U = new
    return torch.stack(U, 1)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_iterations_are_parareals(eta: float) -> None:
    chain, teacher = Chain(Cosine(), uniform(12), eta), mixture(2)
    x, tape = start(chain, 4, (2,))
    for k in (1, 2, 3):
        made = SRDS(teacher, chain, UNEVEN, tolerance=None, iterations=k).solve(x, tape)
        assert error(made.x, parareal(teacher, chain, UNEVEN, x, tape, k)) <= 1e-12


def test_the_coarse_map_of_the_ode_is_one_ddim_step() -> None:
    chain, teacher = Chain(Cosine(), uniform(12)), mixture(2)
    x, _ = start(chain, 4, (2,))
    coarse = parareal(teacher, chain, UNEVEN, x, None, 0)
    edges = [0, *accumulate(UNEVEN)]
    assert error(coarse, solve(teacher, Cosine(), x, chain.grid[edges], keep=chain.grid[edges]).x) <= 1e-12


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_after_p_iterations_p_blocks_are_exact(eta: float, draft: bool) -> None:
    chain, teacher, lengths = Chain(Cosine(), uniform(24), eta), mixture(2), (6, 4, 4, 4, 6)
    x, tape = start(chain, 4, (2,))
    edges = [0, *accumulate(lengths)]
    exact = chain.run(teacher, x, tape).x[:, edges]
    garbage = Trajectory(torch.randn(4, 25, 2, dtype=torch.float64), chain.grid) if draft else None
    for p in range(1, 6):
        made = SRDS(teacher, chain, lengths, None, iterations=p, draft=garbage).solve(x, tape).x
        assert error(made[:, : p + 1], exact[:, : p + 1]) <= 1e-13
        assert p == 5 or error(made[:, p + 1], exact[:, p + 1]) > 1e-9


# The schedules, and what they cost


@pytest.mark.parametrize("drafted", [False, True])
@pytest.mark.parametrize("blocks", [4, 2, 12, UNEVEN, (1, 1, 1, 9)], ids=str)
def test_pipelined_and_plain_agree_bit_for_bit(blocks: int | tuple[int, ...], drafted: bool) -> None:
    chain, teacher = Chain(Cosine(), uniform(12), 0.5), mixture(2)
    x, tape = start(chain, 3, (2,))
    draft = Trajectory(torch.randn(3, 13, 2, dtype=torch.float64), chain.grid) if drafted else None
    rules = [{"tolerance": None, "iterations": k} for k in (1, 2, 3)] + [{"tolerance": 1e-2}]
    for rule in rules:
        fast, slow = (
            SRDS(teacher, chain, blocks, pipelined=p, draft=draft, **rule).solve(x, tape) for p in (True, False)
        )
        assert torch.equal(fast.x, slow.x)
        assert fast.trace is not None and slow.trace is not None
        assert torch.equal(fast.trace.history.nan_to_num(-1), slow.trace.history.nan_to_num(-1))
        assert fast.rounds <= slow.rounds


@pytest.mark.parametrize("M, P", [(4, 6), (6, 4), (3, 8), (12, 2), (1, 24)])
def test_rounds_and_evaluations_of_even_blocks(M: int, P: int) -> None:
    chain, teacher = Chain(Cosine(), uniform(24)), mixture(2)
    x, _ = start(chain, 2, (2,))
    draft = Trajectory(torch.randn(2, 25, 2, dtype=torch.float64), chain.grid)
    for k in range(1, min(M, 4) + 1):
        evaluations = sum((M - p) * P for p in range(k)) + M - k
        rounds = {
            (True, False): k * P + M - k,
            (True, True): k * P + M - k,
            (False, False): M + k * (P - 1) + sum(M - p for p in range(1, k + 1)),
            (False, True): 1 + k * (P - 1) + sum(M - p for p in range(1, k + 1)),
        }
        for (pipelined, drafted), expected in rounds.items():
            sampler = SRDS(teacher, chain, M, None, pipelined, draft if drafted else None, iterations=k)
            made = sampler.solve(x)
            assert made.rounds == expected
            assert made.nfe == evaluations


def test_blocks_of_one_step_and_an_exact_draft_need_one_iteration() -> None:
    # Nothing changes, to the last bit, so the exact rule stops too: after the serial rounds; after one pass over a
    # block.
    chain, teacher = Chain(Cosine(), uniform(24), 1.0), mixture(2)
    x, tape = start(chain, 2, (2,))
    made = SRDS(teacher, chain, 24, tolerance=None).solve(x, tape)
    assert iterations_of(made) == [1, 1] and made.rounds == 24
    exact = chain.run(teacher, x, tape)
    for blocks in (4, 6):
        path = Trajectory(exact.x, chain.grid, x0=solve_x0(teacher, exact))
        made = SRDS(teacher, chain, blocks, tolerance=None, draft=path).solve(x, tape)
        assert iterations_of(made) == [1, 1] and made.rounds == 24 // blocks + blocks - 1


def solve_x0(teacher: Denoiser, path: Trajectory) -> Tensor:
    return torch.stack([teacher(path.x[:, n], t.expand(len(path.x))) for n, t in enumerate(path.t)], 1)


@pytest.mark.parametrize("drafted", [False, True])
@pytest.mark.parametrize("blocks", [10, (15, 15, 14, 14, 14, 14, 14), (2, 60, 1, 1, 36), (50, 25, 15, 9, 1)], ids=str)
def test_each_sample_costs_its_own_iterations(blocks: int | tuple[int, ...], drafted: bool) -> None:
    chain, teacher = Chain(Cosine(), uniform(100)), mixture(2)
    x, _ = start(chain, 16, (2,))
    draft = Trajectory(x[:, None].expand(-1, 101, -1), chain.grid) if drafted else None
    meter = Meter(teacher)
    sampler = SRDS(meter, chain, blocks, draft=draft)
    made, lengths = sampler.solve(x), sampler.lengths
    assert made.trace is not None
    M, ks = len(lengths), iterations_of(made)
    ends = [arrival(lengths, M, k, drafted) for k in ks]
    assert made.trace.rounds.tolist() == ends and made.rounds == max(ends) <= 100
    for end, rows in zip(ends, made.trace.rows.tolist(), strict=True):
        # Block i of iteration p is begun when its start is there, and stays a step a round; an exact start begins once.
        begun = [(end - arrival(lengths, i - 1, p, drafted), lengths[i - 1]) for i in range(1, M + 1) for p in range(i)]
        assert rows == sum(min(max(time, 0), length) for time, length in begun)
    assert (meter.rounds, meter.rows) == (made.rounds, int(made.trace.rows.sum()))
    assert blocks != 10 or len(set(ks)) > 1, "the samples should stop apart, or this test says little"


def test_plain_begins_nothing_it_may_not_need() -> None:
    chain, teacher = Chain(Cosine(), uniform(36)), mixture(2)
    x, _ = start(chain, 12, (2,))
    made = SRDS(teacher, chain, 6, pipelined=False).solve(x)
    assert made.trace is not None and len(set(iterations_of(made))) > 1
    assert made.trace.rows.tolist() == [sum((6 - p) * 6 for p in range(k)) + 6 - k for k in iterations_of(made)]


def test_a_sample_does_not_depend_on_the_others() -> None:
    chain, teacher = Chain(Cosine(), uniform(36), 1.0), mixture(2)
    x, tape = start(chain, 12, (2,))
    assert tape is not None
    together = SRDS(teacher, chain).solve(x, tape)
    assert together.trace is not None and len(set(iterations_of(together))) > 1
    for i in range(0, 12, 3):
        alone = SRDS(teacher, chain).solve(x[i : i + 1], tape[:, i : i + 1])
        assert alone.trace is not None
        assert error(alone.x[0], together.x[i]) <= 1e-12
        assert (alone.rounds, alone.nfe) == (int(together.trace.rounds[i]), int(together.trace.rows[i]))


# Drafts


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_draft_changes_the_cost_and_never_the_result(eta: float) -> None:
    chain, teacher = Chain(Cosine(), uniform(16), eta), mixture(2)
    x, tape = start(chain, 4, (2,))
    exact = chain.run(teacher, x, tape)
    drafts = {
        "states": Trajectory(100 * torch.randn(4, 17, 2, dtype=torch.float64), chain.grid),
        "x0": Trajectory(exact.x, chain.grid, x0=100 * torch.randn(4, 17, 2, dtype=torch.float64)),
        "exact": exact,
    }
    for draft in drafts.values():
        for pipelined in (True, False):
            made = SRDS(teacher, chain, tolerance=None, pipelined=pipelined, draft=draft).solve(x, tape)
            assert error(made.sample, exact.sample) <= 1e-12
            assert not pipelined or made.rounds <= 16
    made = SRDS(teacher, chain, tolerance=1e-10, draft=exact).solve(x, tape)
    assert iterations_of(made) == [1] * 4 and error(made.sample, exact.sample) <= 1e-10


def test_another_sampler_drafts_and_is_counted() -> None:
    chain, teacher = Chain(Cosine(), uniform(16)), mixture(2)
    z = noise(seed_range(0, 4), (2,), dtype=torch.float64)
    made = SRDS(teacher, chain, draft=SolverSampler(teacher, Cosine(), uniform(8), keep=uniform(8)))(z)
    assert made.trace is not None
    assert made.trace.draft_rounds.tolist() == made.trace.draft_rows.tolist() == [8] * 4
    assert made.rounds == int(made.trace.rounds.max()) + 8
    assert error(made.sample, chain.run(teacher, initial_state(Cosine(), z)).sample) < 1e-3


# When to stop


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("d, N", [(2, 100), (2, 256), (64, 100), (64, 256)])
def test_the_tolerance_bounds_the_error_at_the_end(d: int, N: int, eta: float) -> None:
    chain, teacher = Chain(Cosine(), uniform(N), eta), mixture(d)
    x, tape = start(chain, 8, (d,))
    exact = chain.run(teacher, x, tape).sample
    made = SRDS(teacher, chain).solve(x, tape)
    assert float((made.sample - exact).abs().mean(1).max()) < 1e-3
    # The published rule looks at less, so it is never later; its change is what is kept.
    early = SRDS(teacher, chain, stop="last").solve(x, tape)
    assert early.trace is not None
    assert all(a <= b for a, b in zip(iterations_of(early), iterations_of(made), strict=True))
    for i, k in enumerate(iterations_of(early)):
        assert all(float(early.trace.history[p, i]) >= 1e-3 for p in range(k - 1))
        assert float(early.trace.history[k - 1, i]) < 1e-3
    assert float((early.sample - exact).abs().mean(1).median()) < 1e-3


def test_the_last_state_may_rest_while_the_path_moves() -> None:
    # A sample between two modes: the published rule stops 18 tolerances away, the sum over the path does not.
    chain, teacher = Chain(Cosine(), uniform(25), 1.0), mixture(2, seed=2)
    x, tape = start(chain, 1, (2,), first=101)
    exact = chain.run(teacher, x, tape).sample
    early, late = (SRDS(teacher, chain, tolerance=1e-2, stop=rule).solve(x, tape) for rule in ("last", "path"))
    assert float((early.sample - exact).abs().mean()) > 0.1
    assert float((late.sample - exact).abs().mean()) < 1e-5


def test_the_history_is_the_last_states_change() -> None:
    chain, teacher = Chain(Cosine(), uniform(16)), mixture(2)
    x, _ = start(chain, 3, (2,))
    last = [parareal(teacher, chain, (4,) * 4, x, None, k)[:, -1] for k in range(4)]
    made = SRDS(teacher, chain, 4, None, iterations=3).solve(x)
    assert made.trace is not None
    expected = torch.stack([(b - a).abs().mean(1) for a, b in pairwise(last)])
    assert error(made.trace.history, expected) < 1e-12


# Conditions and guidance


def test_conditions_follow_their_samples() -> None:
    means = torch.tensor([[-3.0, 0.0], [0.0, 3.0], [3.0, -3.0]], dtype=torch.float64)
    teacher, chain = Gaussian(Cosine(), means, 0.5, classes=3), Chain(Cosine(), uniform(20), 0.5)
    x, tape = start(chain, 6, (2,))
    label = torch.tensor([2, 0, 1, 1, 0, 2])
    exact = chain.run(teacher, x, tape, label)
    for tolerance in (None, 1e-4):
        made = SRDS(teacher, chain, tolerance=tolerance).solve(x, tape, label)
        assert error(made.sample, exact.sample) < (1e-12 if tolerance is None else 1e-4)
        assert made.cond is label
    named = SRDS(teacher, chain, tolerance=None).solve(x, tape, {"label": label})
    assert error(named.sample, exact.sample) < 1e-12


def test_guidance_counts_two_rows_for_each() -> None:
    teacher = mixture(2, labels=[0, 0, 0, 0, 1, 1, 1, 1])
    chain = Chain(Cosine(), uniform(16))
    x, _ = start(chain, 4, (2,))
    label = torch.tensor([0, 1, 1, 0])
    guided = Guided(teacher, torch.tensor(0), 0.5)
    made = SRDS(guided, chain, 4, None, iterations=2).solve(x, cond=label)
    conditional = SRDS(teacher, chain, 4, None, iterations=2).solve(x, cond=label)
    assert made.trace is not None and conditional.trace is not None
    twice = torch.tensor([2, 0, 0, 0])  # a module is asked its first question twice: two answers would be an error
    assert torch.equal(made.trace.rows, 2 * conditional.trace.rows + twice)
    assert made.rounds == conditional.rounds
    full = SRDS(guided, chain, tolerance=None).solve(x, cond=label)
    assert error(full.sample, chain.run(guided, x, cond=label).sample) <= 1e-12


# Values that are not finite


class Breaks:
    """A teacher that fails for the states and times it is told."""

    def __init__(self, beyond: float = torch.inf, at: float | None = None, label: int = 1) -> None:
        self.inner, self.beyond, self.at, self.label = mixture(2), beyond, at, label

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        fails = x_t.abs().amax(1) > self.beyond
        if self.at is not None:
            assert isinstance(cond, Tensor)
            fails |= ((t - self.at).abs() < 1e-9) & (cond == self.label)
        return torch.where(fails[:, None], torch.nan, self.inner(x_t, t))


@pytest.mark.parametrize("options", [{}, {"tolerance": None}, {"tolerance": 1e9}, {"iterations": 1}], ids=str)
@pytest.mark.parametrize("pipelined", [True, False])
def test_a_value_that_is_not_finite_is_never_in_a_result(pipelined: bool, options: dict[str, float | None]) -> None:
    # t = 3/16 is met inside a block that is a guess in all iterations but the last: no sooner stop may hide it.
    chain = Chain(Cosine(), uniform(16))
    x, _ = start(chain, 3, (2,))
    sampler = SRDS(Breaks(at=0.1875), chain, 4, pipelined=pipelined, **options)
    with pytest.raises(FloatingPointError, match=r"not finite for sample 2 at t = 0\.1875"):
        sampler.solve(x, cond=torch.tensor([0, 0, 1]))


def test_a_guess_at_which_the_teacher_overflows_does_no_harm() -> None:
    chain, teacher = Chain(Cosine(), uniform(16)), Breaks(beyond=20.0)
    x, _ = start(chain, 4, (2,))
    draft = Trajectory(1000 * torch.randn(4, 17, 2, dtype=torch.float64), chain.grid)
    exact = chain.run(teacher, x).sample
    assert error(SRDS(teacher, chain, tolerance=None, draft=draft).solve(x).sample, exact) <= 1e-12
    assert error(SRDS(teacher, chain, tolerance=1e-6, draft=draft).solve(x).sample, exact) <= 1e-5


# What it is told


def test_blocks_are_even_unless_they_are_given() -> None:
    def lengths(N: int, blocks: int | Sequence[int] | None = None) -> tuple[int, ...]:
        return SRDS(mixture(2), Chain(Cosine(), uniform(N)), blocks).lengths

    assert lengths(100) == (10,) * 10 and lengths(1) == (1,)
    assert lengths(11) == (4, 4, 3) and lengths(1000) == (32,) * 8 + (31,) * 24
    assert lengths(12, 3) == (4, 4, 4) and lengths(12, [7, 5]) == (7, 5)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"blocks": 7},
            r"7 blocks cannot share the 100 steps .* take 2, 4, 5, 10 blocks, .*\(15, 15, 14, \.\.\.\), with sum 100",
        ),
        ({"blocks": 0}, "0 blocks cannot share the 100 steps .* take 1, 2, 4, 5 blocks"),
        ({"blocks": 101}, "101 blocks cannot share the 100 steps .* take 20, 25, 50, 100 blocks"),
        ({"blocks": (50, 49)}, "have 99 in all: a chain of 100 steps"),
        ({"blocks": (101, -1)}, "positive lengths that sum to 100"),
        ({"blocks": ()}, "have 0 in all"),
        ({"tolerance": 0.0}, "tolerance must be positive, got 0"),
        ({"tolerance": -1e-3}, "tolerance must be positive, got -0.001"),
        ({"tolerance": float("nan")}, "tolerance must be positive, got nan"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"stop": "first"}, "stop must be 'path' .* got 'first'"),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_any_work(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SRDS(mixture(2), Chain(Cosine(), uniform(100)), **options)


def test_a_stochastic_chain_needs_its_noise() -> None:
    chain = Chain(Cosine(), uniform(9), 1.0)
    x, tape = start(chain, 2, (2,))
    assert tape is not None
    with pytest.raises(ValueError, match="needs `seeds`"):
        SRDS(mixture(2), chain)(x)
    with pytest.raises(ValueError, match="the tape has shape"):
        SRDS(mixture(2), chain).solve(x, tape[:5])


def test_bad_drafts_are_refused() -> None:
    chain, teacher = Chain(Cosine(), uniform(9)), mixture(2)
    x, _ = start(chain, 2, (2,))
    exact = chain.run(teacher, x)
    with pytest.raises(ValueError, match="no time of the chain"):
        SRDS(teacher, chain, draft=Chain(Cosine(), uniform(7)).run(teacher, x)).solve(x)
    with pytest.raises(ValueError, match="the draft's states have shape"):
        SRDS(teacher, chain, draft=Trajectory(exact.x[:1], exact.t)).solve(x)
