"""The law is the chain's whatever the draft, no sample costs more than the chain, and a good draft makes it cheap."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from scipy.stats import ks_2samp, kstest
from torch import Tensor, nn

from dsno.cost import Meter
from dsno.denoise import Guided, Prediction, expand_like
from dsno.grids import quadratic, uniform
from dsno.nets.unet import UNet
from dsno.parallel import speculative
from dsno.parallel.speculative import STREAM, Speculative, reflect
from dsno.schedule import Cosine, RectifiedFlow, Schedule
from dsno.seeds import noise, noise_tape, seed_range
from dsno.solvers.chain import Chain
from dsno.solvers.first_order import Ancestral
from dsno.solvers.run import SolverSampler, initial_state
from dsno.students.operator import TrajectoryStudent, student_from_teacher
from dsno.students.samplers import OnePass
from dsno.teachers.closed import Gaussian, GaussianMixture
from dsno.trajectory import Trajectory

MANY, D = 40_000, 4
STD = torch.tensor([0.1, 0.3, 0.5, 1.0], dtype=torch.float64)
GAUSSIAN = Gaussian(Cosine(), torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=torch.float64), STD)
ANGLE = torch.arange(8, dtype=torch.float64) * math.pi / 4
MIXTURE = GaussianMixture(Cosine(), torch.stack([ANGLE.cos(), ANGLE.sin()], 1), 0.2)


def chain(steps: int, eta: float = 1.0, schedule: Schedule = GAUSSIAN.schedule) -> Chain:
    return Chain(schedule, uniform(steps), eta)


def run(sampler: Speculative, count: int, shape: Sequence[int] = (D,), cond: Tensor | None = None) -> Trajectory:
    seeds = seed_range(7, count)
    return sampler(noise(seeds, shape, 0, torch.float64), cond, seeds)


def garbage(chain: Chain, count: int, size: float, shape: Sequence[int] = (D,)) -> Trajectory:
    """A path of x0 that is noise."""
    path = size * torch.randn(count, len(chain) + 1, *shape, dtype=torch.float64)
    return Trajectory(torch.zeros_like(path), chain.grid, path)


def scores(made: Trajectory, chain: Chain, inner: int) -> Tensor:
    """Means and covariances of an inner state and the last, together, in standard errors from the chain's own."""
    a, b, s = (c.unsqueeze(1) for c in chain.coefficients().unbind(1))
    alpha, sigma = (c.unsqueeze(1) for c in chain.schedule(chain.grid[:-1]))
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    slope, shift = a + b * gain, b * (1 - gain * alpha) * GAUSSIAN.mean
    mean, var = torch.zeros(D, dtype=torch.float64), torch.full((D,), chain.schedule.at(1.0)[1] ** 2).double()
    kept, carried = {}, torch.ones(D, dtype=torch.float64)
    for n in range(len(chain)):
        if n == inner:
            kept["mean"], kept["var"], carried = mean, var, torch.ones(D, dtype=torch.float64)
        mean, var, carried = slope[n] * mean + shift[n], slope[n] ** 2 * var + s[n] ** 2, slope[n] * carried
    mean = torch.cat([kept["mean"], mean])
    cov = torch.diag(torch.cat([kept["var"], var]))
    cov[range(D), range(D, 2 * D)] = cov[range(D, 2 * D), range(D)] = carried * kept["var"]
    x = torch.cat([made.x[:, inner], made.sample], 1)
    diag = cov.diag()
    z_mean = (x.mean(0) - mean) / (diag / len(x)).sqrt()
    z_cov = (torch.cov(x.T) - cov) / ((diag[:, None] * diag + cov**2) / len(x)).sqrt()
    return torch.cat([z_mean, z_cov[torch.ones_like(cov).triu().bool()]]).abs()


@pytest.mark.parametrize("distance", [0.1, 1.0, 3.0, 8.0])
def test_the_coupling_has_both_laws_and_agrees_as_often_as_they_do(distance: float) -> None:
    e = torch.tensor([[0.6, 0.0], [0.0, 0.8]], dtype=torch.float64)
    m_q, s = torch.randn(MANY, 2, 2, dtype=torch.float64), torch.rand(MANY, dtype=torch.float64) + 0.1
    m_p = m_q + distance * s[:, None, None] * e
    z, u = torch.randn(MANY, 2, 2, dtype=torch.float64), torch.rand(MANY, dtype=torch.float64)
    x, accepted = reflect(m_p, m_q, s, z, u)
    residual = (x - m_q) / s[:, None, None]
    across = torch.tensor([[0.8, 0.0], [0.0, -0.6]], dtype=torch.float64)
    for direction in (e, across):
        assert kstest((residual * direction).sum((1, 2)).numpy(), "norm").pvalue > 1e-3
    share = 2 * torch.special.ndtr(torch.tensor(-distance / 2, dtype=torch.float64))
    error = (share * (1 - share) / MANY).sqrt()
    assert abs(accepted.double().mean() - share) < 4 * error
    drafted = m_p + s[:, None, None] * z
    assert torch.equal(x[accepted], drafted[accepted]) and not bool((x[~accepted] == drafted[~accepted]).all(1).any())


def test_the_ends_of_the_coupling() -> None:
    m, z = torch.randn(6, D, dtype=torch.float64), torch.randn(6, D, dtype=torch.float64)
    u = torch.tensor([0.0, 1e-300, 0.5, 0.5, 1.0, 1.0], dtype=torch.float64)
    s = torch.full((6,), 0.3, dtype=torch.float64)
    x, accepted = reflect(m, m.clone(), s, z, u)
    assert bool(accepted.all()) and torch.equal(x, m + 0.3 * z)
    x, accepted = reflect(m + 1, m, torch.zeros_like(s), z, u)
    assert not bool(accepted.any()) and torch.equal(x, m)
    x, accepted = reflect(m, m, torch.zeros_like(s), z, u)
    assert not bool(accepted.any()) and torch.equal(x, m)
    for far in (1e200, math.inf, math.nan):
        x, accepted = reflect(m + far, m, s, z, u)
        assert bool(x.isfinite().all()) and not bool(accepted[1:].any())
        x, accepted = reflect(m, m + 1e-200, s, z, u)
        assert bool(accepted.all())
    half, accepted = reflect((m + 1).half(), m.half(), s.half(), z.half(), u.float())
    assert half.dtype == torch.float16 and bool(half.isfinite().all())


VARIANTS = {
    "one call": {},
    "two calls": {"refresh": True},
    "adaptive": {"adaptive": True},
    "frozen": {"reuse": False},
    "published": {"reuse": False, "refresh": True},
    "all": {"adaptive": True, "refresh": True},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_law_is_the_chains(options: dict) -> None:
    solved = chain(12)
    made = run(Speculative(GAUSSIAN, solved, 5, **options), MANY)
    assert float(scores(made, solved, 6).max()) < 4
    assert made.trace is not None and float(made.trace.rounds.double().mean()) < 0.8 * len(solved)


@pytest.mark.parametrize(("steps", "eta"), [(50, 1.0), (12, 0.5)])
def test_the_law_is_the_chains_of_any_length_and_eta(steps: int, eta: float) -> None:
    solved = chain(steps, eta)
    assert float(scores(run(Speculative(GAUSSIAN, solved, 10), MANY), solved, steps // 2).max()) < 4


@pytest.mark.parametrize("size", [0.1, 100.0])
def test_a_bad_draft_leaves_the_law(size: float) -> None:
    solved = chain(12)
    made = run(Speculative(GAUSSIAN, solved, 4, draft=garbage(solved, MANY, size)), MANY)
    assert float(scores(made, solved, 6).max()) < 4
    assert made.trace is not None and int(made.trace.rounds.max()) <= 12


def test_the_controls_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(m_p: Tensor, m_q: Tensor, s: Tensor, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        x, accepted = reflect(m_p, m_q, s, z, u)
        return torch.where(accepted[:, None], x, m_q + s[:, None] * z), accepted

    solved = chain(12)
    with monkeypatch.context() as patch:
        patch.setattr(speculative, "reflect", careless)
        made = run(Speculative(GAUSSIAN, solved, 4, draft=garbage(solved, MANY, 0.1)), MANY)
        assert float(scores(made, solved, 6).max()) > 8
    # A draft made of the chain's tape knows no noise of the steps; were they to share streams, it would.
    tape = noise_tape(seed_range(7, MANY), (D,), 12, torch.float64).transpose(0, 1)
    path = 0.2 * torch.cat([tape, tape[:, :1]], 1)
    sampler = Speculative(GAUSSIAN, solved, 4, draft=Trajectory(path, solved.grid, path))
    assert float(scores(run(sampler, MANY), solved, 6).max()) < 4
    monkeypatch.setattr(speculative, "STREAM", 1)
    assert float(scores(run(sampler, MANY), solved, 6).max()) > 8


@pytest.mark.parametrize("options", [{}, {"reuse": False, "refresh": True}], ids=["one call", "published"])
def test_the_law_is_the_chains_where_the_denoiser_is_not_affine(options: dict) -> None:
    solved, count = chain(40), 6000
    made = run(Speculative(MIXTURE, solved, 10, **options), count, (2,))
    seeds = seed_range(2**40, count)
    tape = noise_tape(seeds, (2,), 40, torch.float64)
    reference = solved.run(MIXTURE, initial_state(Cosine(), noise(seeds, (2,), 0, torch.float64)), tape)
    for n, m in ((20, 20), (40, 40), (30, 33)):
        for k in range(2):
            # Of two times their difference, too: the law is of paths.
            a, b = (y.x[:, m, k] - (y.x[:, n, k] if m > n else 0) for y in (made, reference))
            assert ks_2samp(a.numpy(), b.numpy()).pvalue > 1e-3


def test_windows_of_one_step_are_the_chain(schedule: Schedule) -> None:
    solved = Chain(schedule, uniform(12), 0.7)
    gaussian = Gaussian(schedule, GAUSSIAN.mean, STD)
    seeds = seed_range(3, 5)
    z = noise(seeds, (D,), 0, torch.float64)
    tape = torch.stack([noise(seeds, (D + 1,), STREAM + n, torch.float64)[:, :D] for n in range(12)])
    reference = solved.run(gaussian, initial_state(schedule, z), tape)
    made = Speculative(gaussian, solved, 1)(z, seeds=seeds)
    assert torch.allclose(made.x, reference.x, rtol=1e-12, atol=1e-12) and torch.equal(made.t, solved.grid)
    assert made.trace is not None and made.trace.rounds.tolist() == [12] * 5 == made.trace.rows.tolist()
    wide = Speculative(gaussian, solved, 6)(z, seeds=seeds)
    assert bool(wide.x.isfinite().all()) and wide.rounds < 12


def test_a_draft_that_is_right_is_accepted_and_asks_each_state_once() -> None:
    target = torch.tensor([0.3, -0.2, 0.0, 1.0], dtype=torch.float64)

    def constant(x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return target.expand_as(x_t)

    made = run(Speculative(constant, chain(20), 5), 3)
    assert made.trace is not None and made.trace.rounds.tolist() == [5] * 3 and made.trace.rows.tolist() == [20] * 3
    assert made.trace.history[0].isnan().all() and made.trace.history[1:].eq(1).all() and made.rounds == 5
    # A right path needs no evaluation to freeze.
    path = target.expand(3, 21, D).clone()
    drafted = run(Speculative(constant, chain(20), 5, draft=Trajectory(path, chain(20).grid, path)), 3)
    assert drafted.trace is not None and drafted.trace.rounds.tolist() == [4] * 3
    assert torch.allclose(drafted.x, made.x, atol=1e-12)


@pytest.mark.parametrize("refresh", [False, True])
@pytest.mark.parametrize("window", [2, 3, 50])
@pytest.mark.parametrize("draft", ["none", "garbage"])
def test_no_sample_costs_more_rounds_than_the_chain(draft: str, window: int, refresh: bool) -> None:
    for steps in (1, 2, 3, 17):
        solved, meter = chain(steps), Meter(MIXTURE)
        given = garbage(solved, 200, 10.0, (2,)) if draft == "garbage" else None
        made = run(Speculative(meter, solved, window, refresh=refresh, draft=given), 200, (2,))
        trace = made.trace
        assert trace is not None and int(trace.rounds.max()) == meter.rounds == made.rounds <= steps
        assert int(trace.rows.sum()) == meter.rows and made.nfe == -(-meter.rows // 200)
        assert trace.history.shape == (meter.rounds, 200) and bool(((trace.history >= 0) | trace.history.isnan()).all())
        assert float(trace.history.nan_to_num().max()) <= 1 and not bool(made.x.isnan().any())


def test_what_saves_what() -> None:
    def cost(window: int = 20, **options: bool) -> tuple[float, float]:
        trace = run(Speculative(MIXTURE, chain(200), window, **options), 60, (2,)).trace
        assert trace is not None
        return float(trace.rounds.double().mean()), float(trace.rows.double().mean())

    ours, twice, frozen, published = cost(), cost(refresh=True), cost(reuse=False), cost(reuse=False, refresh=True)
    assert ours[0] < 14 and twice[0] < 16 and frozen[0] < 18 and published[0] < 24
    assert ours[0] < twice[0] < published[0] and ours[0] < 0.85 * frozen[0] and ours[1] < 0.9 * frozen[1]
    wide, adaptive = cost(60, reuse=False), cost(60, reuse=False, adaptive=True)
    assert adaptive[1] < 0.95 * wide[1] and adaptive[0] < 1.1 * wide[0]


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_sample_is_the_same_in_any_batch(options: dict) -> None:
    sampler, seeds = Speculative(MIXTURE, chain(60), 8, **options), seed_range(0, 40)
    z = noise(seeds, (2,), 0, torch.float64)
    whole = sampler(z, seeds=seeds)
    rows = torch.tensor([31, 4, 17])
    some = sampler(z[rows], seeds=seeds[rows])
    assert whole.trace is not None and some.trace is not None
    assert torch.allclose(some.x, whole.x[rows], rtol=1e-9, atol=1e-9)
    assert torch.equal(some.trace.rounds, whole.trace.rounds[rows]) and len(set(whole.trace.rounds.tolist())) > 1
    assert torch.equal(some.trace.rows, whole.trace.rows[rows])


def test_conditions_reach_their_rows() -> None:
    mixture = GaussianMixture(Cosine(), 3 * MIXTURE.means, 0.2, labels=range(8))
    labels, sampler = torch.arange(40) % 8, Speculative(mixture, chain(50), 10)
    made = run(sampler, 40, (2,), labels)
    assert torch.equal((made.sample[:, None] - mixture.means).norm(dim=2).argmin(1), labels)
    guided = Guided(lambda x_t, t, cond: mixture(x_t, t, cond % 8), torch.tensor(8), 0.0)
    same = run(replace(sampler, denoiser=guided), 40, (2,), labels)
    assert torch.allclose(same.x, made.x, atol=1e-9) and made.trace is not None and same.trace is not None
    # One row is asked twice, for a proof that one question has one answer.
    assert torch.equal(same.trace.rows[1:], 2 * made.trace.rows[1:])


class Flow(nn.Module):
    """In place of a lifted network: solves the Gaussian's ODE from where each row is told to start."""

    frames, once, guidance, backbone = 6, True, None, None

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target, self.starts = target, []

    def forward(
        self, x: Tensor, times: Tensor, cond: Tensor | None, start: Tensor | float, select: Sequence[int] | None
    ) -> Tensor:
        t = torch.as_tensor(start, dtype=torch.float64).expand(len(x))
        self.starts.append(t)
        alpha_t, sigma_t = (c.unsqueeze(1) for c in GAUSSIAN.schedule(t))
        h = []
        for s in times.tolist():
            alpha_s, sigma_s = GAUSSIAN.schedule.at(s)
            gain = ((alpha_s**2 * STD**2 + sigma_s**2) / (alpha_t**2 * STD**2 + sigma_t**2)).sqrt()
            x_s = alpha_s * GAUSSIAN.mean + gain * (x - alpha_t * GAUSSIAN.mean)
            ratio = sigma_s / sigma_t
            state = (x_s - ratio * x) / (alpha_s - ratio * alpha_t)
            h.append(GAUSSIAN(x_s, torch.tensor(s)) if self.target == "x0" else state)
        return torch.stack(h, 1)


@pytest.mark.parametrize(("target", "many"), [("x0", MANY), ("state", 2000)])
def test_a_student_drafts_from_where_each_window_starts(target: str, many: int) -> None:
    solved = chain(12, 0.3)
    student = TrajectoryStudent(Flow(target), Cosine(), uniform(6)[1:], target, "x0", shape=(4,), restarts=True)
    made = run(Speculative(GAUSSIAN, solved, 6, draft=student), many)
    assert float(scores(made, solved, 6).max()) < 4
    trace = made.trace
    assert trace is not None and torch.equal(trace.draft_rounds, trace.draft_rows) and int(trace.draft_rounds.min()) > 0
    # Rows that start at different times share a call, and a student is not asked for a sample that is done.
    assert len(student.net.starts[1].unique()) > 2 and len(student.net.starts[-1]) < many
    assert int(trace.draft_rows.sum()) == sum(len(s) for s in student.net.starts)
    count, rounds = 500, {}
    known = {
        "restarts": student,
        "once": OnePass(student, whole=True),
        "none": None,
        "garbage": garbage(solved, count, 1.0),
    }
    for name, draft in known.items():
        trace = run(Speculative(GAUSSIAN, solved, 10, draft=draft, reuse=False), count).trace
        rounds[name] = float(trace.rounds.double().mean())
    assert rounds["restarts"] < rounds["garbage"] and rounds["once"] < rounds["garbage"]
    assert rounds["restarts"] <= rounds["none"]


@pytest.mark.parametrize("target", ["x0", "state"])
def test_a_lifted_student_drafts_for_a_network(target: str) -> None:
    teacher = Prediction(UNet(1, 4, (4, 8), attention=()), Cosine(), "v").eval()
    student = student_from_teacher(teacher, quadratic(4)[1:], target, init="normal").eval()
    student.restarts = True
    seeds = seed_range(0, 6)
    z = noise(seeds, (1, 4, 4))
    meter = Meter(teacher)
    made = Speculative(meter, chain(16), 4, draft=student)(z, seeds=seeds)
    assert made.trace is not None and bool(made.x.isfinite().all()) and int(made.trace.rows.sum()) == meter.rows
    assert int(made.trace.draft_rounds.max()) == made.rounds - meter.rounds > 1
    student.restarts = False
    once = Speculative(teacher, chain(16), 4, draft=student)(z, seeds=seeds)
    assert once.trace is not None and once.trace.draft_rounds.tolist() == [1] * 6


def test_another_sampler_drafts() -> None:
    coarse = SolverSampler(MIXTURE, Cosine(), uniform(10), Ancestral(), keep=uniform(10), keep_x0=True)
    made = run(Speculative(MIXTURE, chain(50), 10, draft=coarse), 50, (2,))
    assert made.trace is not None and made.trace.draft_rounds.tolist() == [10] * 50 and made.x.shape == (50, 51, 2)


def test_a_state_far_off_where_the_network_overflows_is_a_guess() -> None:
    def fragile(x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.where(x_t.abs().amax(1, keepdim=True) > 20, math.nan, GAUSSIAN(x_t, t))

    solved = chain(20)
    made = run(Speculative(fragile, solved, 30, draft=garbage(solved, 50, 1e6)), 50)
    assert made.trace is not None and made.trace.rounds.tolist() == [20] * 50
    # Every step is refused, and a reflection keeps the length of the noise.
    for n, (a, b, s) in enumerate(solved.coefficients().tolist()):
        moved = made.x[:, n + 1] - a * made.x[:, n] - b * GAUSSIAN(made.x[:, n], solved.grid[n])
        drawn = noise(seed_range(7, 50), (D + 1,), STREAM + n, torch.float64)[:, :D]
        assert torch.allclose(moved.norm(dim=1), s * drawn.norm(dim=1), rtol=1e-6)


def test_a_denoiser_that_breaks_is_named() -> None:
    def broken(x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        bad = (cond == 2) & (t.expand(len(x_t)) < 0.5)
        return torch.where(expand_like(bad, x_t).bool(), math.inf, GAUSSIAN(x_t, t))

    with pytest.raises(FloatingPointError, match=r"not finite for sample 2 at t = 0\.4[0-9]*$"):
        run(Speculative(broken, chain(50), 10), 4, cond=torch.arange(4))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="window must be at least 1 step, got 0"):
        Speculative(GAUSSIAN, chain(10), 0)
    with pytest.raises(ValueError, match="chain with noise, got eta = 0: take Picard, ParaTAA or SRDS"):
        Speculative(GAUSSIAN, Chain(Cosine(), uniform(10)))
    sampler, z = Speculative(GAUSSIAN, chain(10)), torch.zeros(3, D, dtype=torch.float64)
    with pytest.raises(ValueError, match="one for each of the 3 samples, got none"):
        sampler(z)
    with pytest.raises(ValueError, match="one for each of the 3 samples, got 2"):
        sampler(z, seeds=seed_range(0, 2))
    with pytest.raises(ValueError, match="the draft's states have shape"):
        run(replace(sampler, draft=garbage(chain(10), 2, 1.0)), 3)
    with pytest.raises(ValueError, match="no time of the chain"):
        run(replace(sampler, draft=garbage(chain(7), 3, 1.0)), 3)
    flow = Gaussian(RectifiedFlow(), GAUSSIAN.mean, STD)
    with pytest.raises(ValueError, match="eval"):
        run(Speculative(Prediction(nn.Sequential(nn.Dropout()), Cosine()), chain(10)), 3)
    assert run(Speculative(flow, Chain(RectifiedFlow(), uniform(10), 1.0), 4), 0).x.shape == (0, 11, D)
