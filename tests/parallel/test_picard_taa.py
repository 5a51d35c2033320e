"""Picard and ParaTAA: the chain's own samples, whatever was guessed, and what they may cost."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dsno.cost import Meter
from dsno.denoise import Guided, Prediction
from dsno.grids import karras, quadratic, uniform
from dsno.nets.unet import UNet
from dsno.parallel.draft import fill
from dsno.parallel.picard import Picard
from dsno.parallel.rounds import Exact, System
from dsno.parallel.taa import ParaTAA
from dsno.parallel.window import gains, shares
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule
from dsno.solvers.chain import Chain
from dsno.solvers.run import SolverSampler, initial_state
from dsno.students.operator import student_from_teacher
from dsno.students.samplers import OnePass
from dsno.teachers.closed import Gaussian, GaussianMixture
from dsno.trajectory import Trajectory

D64 = torch.float64


def mixture(d: int, schedule: Schedule | None = None) -> GaussianMixture:
    """Eight modes of standard deviation 0.2: on a ring, or standard normal."""
    if d == 2:
        angle = torch.arange(8, dtype=D64) * math.pi / 4
        means = torch.stack([angle.cos(), angle.sin()], 1)
    else:
        means = torch.randn(8, d, dtype=D64, generator=torch.Generator().manual_seed(0))
    return GaussianMixture(schedule or Cosine(), means, 0.2)


def problem(chain: Chain, d: int, count: int = 8, seed: int = 1) -> tuple[Tensor, Tensor | None]:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(count, d, dtype=D64, generator=g)
    tape = torch.randn(len(chain), count, d, dtype=D64, generator=g) if chain.eta > 0 else None
    return initial_state(chain.schedule, z, float(chain.grid[0])), tape


METHODS: dict[str, Callable[..., Exact]] = {
    "picard": Picard,
    "picard window": lambda D, c, **o: Picard(D, c, **{"window": 7, **o}),
    "taa": ParaTAA,
    "plain": lambda D, c, **o: ParaTAA(D, c, memory=1, **o),
    "m=4": lambda D, c, **o: ParaTAA(D, c, memory=4, **o),
    "k=1": lambda D, c, **o: ParaTAA(D, c, order=1, memory=1, **o),
    "k=3, m=3, window": lambda D, c, **o: ParaTAA(D, c, order=3, memory=3, window=6, **o),
    "D held": lambda D, c, **o: ParaTAA(D, c, data_std=1e-3, **o),
    "eps held": lambda D, c, **o: ParaTAA(D, c, data_std=1e3, **o),
}
CHAINS = {
    "ddim": Chain(Cosine(), uniform(24)),
    "ddpm": Chain(Cosine(), uniform(24), 1.0),
    "half": Chain(Cosine(), quadratic(24), 0.5),
    "flow": Chain(RectifiedFlow(), uniform(24), 0.7),
    "edm": Chain(VE(), karras(VE(), 24)),
    "one step": Chain(Cosine(), uniform(1), 1.0),
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("d", [2, 64])
def test_run_to_the_end_it_is_the_chain(method: Callable[..., Exact], chain: Chain, d: int) -> None:
    if len(chain) == 1 and method in (METHODS["k=3, m=3, window"],):
        pytest.skip("an order above N is refused")
    teacher, (x, tape) = mixture(d, chain.schedule), problem(chain, d)
    reference, made = chain.run(teacher, x, tape), method(teacher, chain, tolerance=None).solve(x, tape)
    scale = float(reference.x.abs().max())
    assert float((made.x - reference.x).abs().max()) <= 1e-12 * scale
    assert torch.equal(made.t, reference.t) and made.trace is not None
    assert made.rounds <= len(chain) and int(made.trace.rounds.max()) == made.rounds


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_after_r_rounds_the_first_r_states_are_exact(method: Callable[..., Exact]) -> None:
    chain, d = CHAINS["ddpm"], 2
    (x, tape), asked = problem(chain, d), []

    class Watched(GaussianMixture):
        """Notes the states it is asked about."""

        def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            asked.append((x_t.clone(), t.clone()))
            return super().__call__(x_t, t, cond)

    base = mixture(d)
    teacher = Watched(base.schedule, base.means, base.stds)
    reference = chain.run(base, x, tape)
    method(teacher, chain, tolerance=None).solve(x[:1], tape[:, :1])
    for r, (x_t, t) in enumerate(asked):
        for state, time in zip(x_t, t, strict=True):
            n = int((chain.grid - float(time)).abs().argmin())
            if n <= r:
                assert torch.allclose(state, reference.x[0, n], rtol=0, atol=1e-12)


def drafts(chain: Chain, x: Tensor, reference: Trajectory) -> dict[str, Trajectory]:
    g = torch.Generator().manual_seed(5)
    noise = torch.randn(reference.x.shape, dtype=D64, generator=g)
    ends = torch.tensor([0, 7, 15, len(chain)])
    return {
        "garbage": Trajectory(100 * noise, chain.grid),
        "garbage x0": Trajectory(noise, chain.grid, 1e3 * noise),
        "overflow": Trajectory(noise, chain.grid, 1e200 * noise),
        "near": Trajectory(reference.x + 0.01 * noise, chain.grid),
        "few times": Trajectory(reference.x[:, ends], chain.grid[ends]),
    }


@pytest.mark.parametrize("name", ["picard", "taa", "m=4", "k=3, m=3, window"])
@pytest.mark.parametrize("eta", ["ddim", "ddpm"])
def test_a_draft_never_changes_the_result(name: str, eta: str) -> None:
    chain = CHAINS[eta]
    (x, tape), teacher = problem(chain, 2), mixture(2)
    reference = chain.run(teacher, x, tape)
    for draft in drafts(chain, x, reference).values():
        made = METHODS[name](teacher, chain, tolerance=None, draft=draft).solve(x, tape)
        assert float((made.x - reference.x).abs().max()) <= 1e-12
        assert made.rounds <= len(chain)


@pytest.mark.parametrize("eta", ["ddim", "ddpm", "half"])
def test_the_solution_as_a_draft_is_verified_in_one_round(eta: str) -> None:
    chain = CHAINS[eta]
    (x, tape), teacher = problem(chain, 2), mixture(2)
    reference = chain.run(teacher, x, tape)
    for sampler in (Picard, ParaTAA):
        made = sampler(teacher, chain, tolerance=1e-6, draft=reference).solve(x, tape)
        assert made.rounds == 1 and made.nfe == len(chain)
        assert float((made.x - reference.x).abs().max()) < 1e-6


@pytest.mark.parametrize("name", ["picard", "taa", "plain", "m=4"])
@pytest.mark.parametrize(("d", "steps", "eta"), [(2, 100, 0.0), (2, 60, 1.0), (64, 100, 0.0), (64, 30, 0.5)])
def test_a_tolerance_bounds_the_error_of_the_sample(name: str, d: int, steps: int, eta: float) -> None:
    chain = Chain(Cosine(), uniform(steps), eta)
    (x, tape), teacher = problem(chain, d, 32), mixture(d)
    reference = chain.run(teacher, x, tape)
    cost = []
    for tolerance in (1e-2, 1e-4):
        made = METHODS[name](teacher, chain, tolerance=tolerance).solve(x, tape)
        assert float((made.sample - reference.sample).square().mean(1).sqrt().max()) <= tolerance
        cost.append(made.nfe)
    assert cost[0] <= cost[1]


def test_the_tolerance_is_shared_out() -> None:
    for chain in CHAINS.values():
        alpha, sigma = chain.schedule(chain.grid[1:])
        allowed = shares(chain)
        assert float((allowed / (alpha**2 + sigma**2).sqrt()).sum()) == pytest.approx(1)
        assert bool((allowed > 0).all())


def test_the_gain_is_the_derivative_of_a_gaussians_step() -> None:
    chain, std = CHAINS["half"], 0.5
    teacher, zero = Gaussian(Cosine(), torch.zeros(1, dtype=D64), std), torch.zeros(1, 1, dtype=D64)
    system = System(chain, zero, torch.zeros(len(chain), 1, 1, dtype=D64))
    one, sample = torch.ones(1, 1, dtype=D64), torch.zeros(1, dtype=torch.int64)
    steps = [float(system.step(one, teacher(one, t), n, sample)) for n, t in enumerate(chain.grid[:-1])]
    assert gains(chain, std).tolist() == pytest.approx(steps, rel=1e-12)
    # s = 0 is the chain with D held; a large s the ODE with the noise held.
    assert torch.allclose(gains(chain, 1e-9), chain.coefficients()[:, 0])
    ode, (alpha, _) = CHAINS["ddim"], Cosine()(CHAINS["ddim"].grid)
    assert torch.allclose(gains(ode, 1e9), alpha[1:] / alpha[:-1])


def test_on_a_gaussian_with_its_own_scale_two_rounds_solve_everything() -> None:
    chain = Chain(Cosine(), uniform(50), 1.0)
    teacher, (x, tape) = Gaussian(Cosine(), torch.full((6,), 0.3, dtype=D64), 0.7), problem(chain, 6)
    made = ParaTAA(teacher, chain, memory=1, data_std=0.7, tolerance=1e-9).solve(x, tape)
    assert made.rounds == 2
    assert torch.allclose(made.x, chain.run(teacher, x, tape).x, rtol=0, atol=1e-12)


def test_a_sample_costs_the_same_in_any_company() -> None:
    chain, teacher = Chain(Cosine(), uniform(40), 1.0), mixture(2)
    z, seeds = torch.randn(6, 2, dtype=D64), torch.arange(6)
    for sampler in (Picard(teacher, chain, window=15), ParaTAA(teacher, chain)):
        together, alone = sampler(z, seeds=seeds), sampler(z[4:5], seeds=seeds[4:5])
        assert together.trace is not None and alone.trace is not None
        assert torch.allclose(together.x[4], alone.x[0], rtol=0, atol=1e-12)
        assert int(together.trace.rounds[4]) == int(alone.trace.rounds[0]) == alone.rounds
        assert int(together.trace.rows[4]) == int(alone.trace.rows[0]) == alone.nfe
        # A sample that is done leaves the rounds of the others.
        assert len(set(together.trace.rounds.tolist())) > 1


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


def test_conditions_and_guidance_reach_their_rows() -> None:
    chain = CHAINS["ddim"]
    means = torch.randn(3, 4, dtype=D64, generator=torch.Generator().manual_seed(2))
    teacher = GaussianMixture(Cosine(), means, 0.3, labels=[0, 1, 2])
    cond, (x, _) = torch.tensor([2, 0, 1, 1, 0, 2, 0, 1]), problem(chain, 4)
    reference = chain.run(teacher, x, cond=cond)
    assert torch.allclose(ParaTAA(teacher, chain, tolerance=None).solve(x, cond=cond).x, reference.x, atol=1e-12)
    net = UNet(1, 4, (8,), classes=3, null=True).double().eval()
    guided = Guided(Prediction(net, Cosine(), "v", shape=(1, 4, 4), classes=3).eval(), torch.tensor(3))
    told = {"label": cond[:3], "weight": torch.tensor([0.0, 1.0, 2.0], dtype=D64)}
    guided.null = {"label": torch.tensor(3)}
    guided.denoiser.net = _Named(net)
    x = torch.randn(3, 1, 4, 4, dtype=D64)
    made, reference = ParaTAA(guided, chain, tolerance=None).solve(x, cond=told), chain.run(guided, x, cond=told)
    assert torch.allclose(made.x, reference.x, atol=1e-12)
    assert made.trace is not None and int(made.trace.rows.min()) >= 2 * len(chain)


class _Named(nn.Module):
    """A network that is told its label by name."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.net(x, t, cond["label"])


# Drafts


def test_a_draft_says_x0_at_every_step() -> None:
    chain, teacher = CHAINS["ddim"], mixture(2)
    x, _ = problem(chain, 2)
    path = chain.run(teacher, x)
    system = System(chain, x, None)
    denoised = torch.stack([teacher(path.x[:, n], t) for n, t in enumerate(chain.grid[:-1])], 1)
    assert torch.allclose(fill(path, system, x), denoised, atol=1e-9)
    # With x0 at half the times: exact there, between the neighbours in the middle.
    kept = SolverSampler(teacher, Cosine(), chain.grid, keep=chain.grid[::2], keep_x0=True)(x)
    filled = fill(kept, system, x)
    assert torch.allclose(filled[:, ::2], denoised[:, ::2], atol=1e-9)
    assert torch.allclose(filled[:, 1], (denoised[:, 0] + denoised[:, 2]) / 2, atol=1e-9)
    # With states alone: the constant that leads from one to the next, so the recursion passes through them.
    states = Trajectory(path.x[:, ::8], chain.grid[::8])
    y, every, filled = x, torch.arange(len(x)), fill(states, system, x)
    for n in range(len(chain)):
        y = system.step(y, filled[:, n], n, every)
        if (n + 1) % 8 == 0:
            assert torch.allclose(y, path.x[:, n + 1], atol=1e-9)


@pytest.mark.parametrize("target", ["x0", "state"])
def test_a_student_drafts_at_times_of_its_own(target: str) -> None:
    torch.manual_seed(0)
    teacher = Prediction(UNet(1, 8, (8, 16)), Cosine(), "v", shape=(1, 8, 8)).eval()
    student = student_from_teacher(teacher, quadratic(4)[1:], target).eval()
    chain, z = Chain(Cosine(), uniform(12)), torch.randn(3, 1, 8, 8)
    reference = chain.run(teacher, initial_state(chain.schedule, z))
    for draft in (student, OnePass(student)):
        made = ParaTAA(teacher, chain, tolerance=None, draft=draft)(z)
        assert torch.allclose(made.x, reference.x, atol=1e-4)
        assert made.trace is not None and made.trace.draft_rounds.tolist() == [1, 1, 1]
    # The states of its frames are on the recursion through what was filled in.
    frames, system = OnePass(student)(z), System(chain, z, None)
    x0 = fill(frames, system, initial_state(chain.schedule, z))
    assert x0.shape == (3, 12, 1, 8, 8)
    if target == "x0":
        assert frames.x0 is not None and torch.allclose(x0[:, 0], frames.x0[:, 1])
    else:
        assert torch.allclose(x0[:, 0], x0[:, 4])  # one constant before the first frame, t > 0.5625


# Bad input


def test_bad_input_is_refused_before_any_work() -> None:
    teacher, chain = mixture(2), CHAINS["ddim"]
    x, _ = problem(chain, 2)
    for options, message in (
        ({"tolerance": 0.0}, "tolerance must be positive, or None to run to the end, got 0"),
        ({"tolerance": -1.0}, "tolerance must be positive"),
        ({"tolerance": math.nan}, "tolerance must be positive"),
        ({"window": 0}, "window must be at least 1 step"),
    ):
        for sampler in (Picard, ParaTAA):
            with pytest.raises(ValueError, match=message):
                sampler(teacher, chain, **options)
    for options, message in (
        ({"order": 25}, "order must be from 1 to the chain's 24 steps, got 25"),
        ({"order": 0}, "order must be from 1"),
        ({"memory": 0}, "memory must be at least 1"),
        ({"ridge": 0.0}, "ridge must be positive"),
        ({"data_std": 0.0}, "data_std must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            ParaTAA(teacher, chain, **options)
    path = chain.run(teacher, x)
    for draft, message in (
        (Trajectory(path.x[:4], path.t), r"states have shape \(4, 25, 2\), expected \(8, 25, 2\)"),
        (Trajectory(path.x[..., :1], path.t), "expected"),
        (Trajectory(path.x, path.t, path.x[:, :3]), "x0 have shape"),
        (Trajectory(path.x, uniform(24, 0.99)), "the draft has a state at t = 0.99, which is no time of the chain"),
        (Trajectory(path.x[:, :20], path.t[:20]), "expected some from 1 to 0, the chain's ends"),
    ):
        with pytest.raises(ValueError, match=message):
            ParaTAA(teacher, chain, draft=draft).solve(x)
    stochastic = CHAINS["ddpm"]
    with pytest.raises(ValueError, match="needs `seeds`"):
        Picard(teacher, stochastic)(x)
    with pytest.raises(ValueError, match="the tape has shape"):
        Picard(teacher, stochastic).solve(x, torch.zeros(3, 8, 2))
    started = Chain(Cosine(), uniform(4, 0.5))
    with pytest.raises(ValueError, match="this draft starts from pure noise, the chain starts at t = 0.5"):
        Picard(teacher, started, draft=SolverSampler(teacher, Cosine(), uniform(4))).solve(x)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs(dtype: torch.dtype) -> None:
    chain = Chain(Cosine(), uniform(8))
    x, _ = problem(chain, 2)
    made = ParaTAA(mixture(2), chain, tolerance=0.1).solve(x.to(dtype))
    reference = chain.run(mixture(2), x.to(dtype))
    assert made.x.dtype == dtype and float((made.x - reference.x).abs().max()) < 0.2


@pytest.mark.parametrize("name", ["picard", "taa"])
def test_a_network_may_answer_in_another_precision(name: str) -> None:
    chain, exact = CHAINS["ddim"], mixture(2)
    x, _ = problem(chain, 2)

    def rough(x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return exact(x_t, t).bfloat16()

    made = METHODS[name](rough, chain, tolerance=None).solve(x)
    # The sequential solver multiplies in the answer's precision, and then in its own.
    assert made.x.dtype == D64 and torch.allclose(made.x, chain.run(rough, x).x, atol=0.02)


@pytest.mark.parametrize("name", ["near", "few times"])
def test_a_draft_that_is_near_keeps_to_the_tolerance(name: str) -> None:
    chain, teacher = Chain(Cosine(), uniform(24)), mixture(2)
    x, _ = problem(chain, 2, 16)
    reference = chain.run(teacher, x)
    draft = drafts(chain, x, reference)[name]
    for sampler in (Picard, ParaTAA):
        made = sampler(teacher, chain, tolerance=1e-3, draft=draft).solve(x)
        assert float((made.sample - reference.sample).square().mean(1).sqrt().max()) <= 1e-3


def test_a_student_of_another_shape_is_refused() -> None:
    torch.manual_seed(0)
    teacher = Prediction(UNet(1, 8, (8,)), Cosine(), "v", shape=(1, 8, 8)).eval()
    student = student_from_teacher(teacher, quadratic(4)[1:]).eval()
    with pytest.raises(ValueError, match=r"samples of shape \(1, 8, 8\), the chain's have \(2,\)"):
        ParaTAA(mixture(2), CHAINS["ddim"], draft=student).solve(problem(CHAINS["ddim"], 2)[0].float())
