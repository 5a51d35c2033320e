"""Without guidance it is the plain sampler, on every schedule it is the same, and it counts what it costs."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsno.cost import Meter
from dsno.denoise import Guided, Prediction
from dsno.grids import check_grid, uniform
from dsno.inverse.backprop import DPS, PiGDM
from dsno.inverse.blur import Blur
from dsno.inverse.constrained import Constrained
from dsno.inverse.named import CHOICES, RESTORERS
from dsno.inverse.operators import Downsample, Function, Mask
from dsno.inverse.projected import MPGD, DiffPIR, Replacement
from dsno.inverse.restore import Restorer
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule
from dsno.seeds import noise, seed_range
from dsno.solvers.first_order import DDIM, Ancestral
from dsno.solvers.run import solve
from dsno.teachers.closed import GaussianMixture
from posteriors import Correlated

D64 = torch.float64
SHAPE = (2, 4, 4)
SIGHTED = {name: make for name, make in RESTORERS.items() if CHOICES[name].takes != "a blur"}
"""The restorers that know their problem."""


def mixture(schedule: Schedule) -> GaussianMixture:
    means = torch.randn(3, *SHAPE, dtype=D64, generator=torch.Generator().manual_seed(0))
    return GaussianMixture(schedule, means, 0.3)


def given(count: int = 3, dtype: torch.dtype = D64) -> tuple[Tensor, Tensor, Tensor]:
    seeds = seed_range(0, count)
    return noise(seeds, SHAPE, dtype=dtype), seeds, mixture(Cosine()).sample(count, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SIGHTED)
@pytest.mark.parametrize("steps", [1, 6])
def test_every_restorer_is_finite_on_every_schedule_and_grid(schedule: Schedule, name: str, steps: int) -> None:
    z, seeds, x = given(dtype=torch.float32)
    problems = [
        Mask.box(SHAPE),
        Downsample(2, noise=0.1),
        Function(lambda x: x.flatten(1).cumsum(1)[:, ::3], SHAPE, noise=0.1),
    ]
    for problem in problems:
        made = SIGHTED[name](uniform(steps))(mixture(schedule), schedule, problem, problem.A(x.float()), z, seeds=seeds)
        assert made.x.shape == z.shape and made.x.dtype == z.dtype and bool(made.x.isfinite().all())
        assert made.residual.shape == (3,) and bool(made.residual.isfinite().all())


UNGUIDED: dict[str, tuple[Callable[..., Any], float]] = {
    "constrained": (lambda grid, eta: Constrained(grid, inner=0, eta=eta), 0.5),
    "dps": (lambda grid, eta: DPS(grid, scale=0.0, eta=eta), 0.5),
    "pigdm": (lambda grid, eta: PiGDM(grid, scale=0.0, eta=eta), 0.5),
    "mpgd": (lambda grid, eta: MPGD(grid, scale=0.0, eta=eta), 0.5),
    "dps, no noise": (lambda grid, eta: DPS(grid, scale=0.0, eta=eta), 0.0),
}


@pytest.mark.parametrize("name", UNGUIDED)
def test_without_guidance_it_is_the_plain_sampler(schedule: Schedule, name: str) -> None:
    make, eta = UNGUIDED[name]
    z, seeds, x = given()
    teacher, grid, problem = mixture(schedule), uniform(7), Mask.box(SHAPE)
    made = make(grid, eta)(teacher, schedule, problem, problem.A(x), z, seeds=seeds)
    step = Ancestral(eta) if eta else DDIM()
    plain = solve(teacher, schedule, schedule.at(1.0)[1] * z, grid, step, seeds=seeds)
    assert torch.allclose(made.x, plain.sample, rtol=0, atol=1e-12 * float(plain.x.abs().max()))


def test_states_are_kept_where_they_are_asked_for() -> None:
    z, seeds, x = given()
    teacher, problem, grid = mixture(Cosine()), Mask.box(SHAPE), uniform(4)
    made = DPS(grid, keep=[1.0, 0.5, 0.0])(teacher, Cosine(), problem, problem.A(x), z, seeds=seeds)
    assert made.trajectory is not None
    assert made.trajectory.t.tolist() == [1.0, 0.5, 0.0] and made.trajectory.x.shape == (3, 3, *SHAPE)
    assert torch.equal(made.trajectory.sample, made.x) and torch.equal(made.trajectory.seeds, seeds)
    assert (made.trajectory.nfe, made.trajectory.rounds) == (4, 4)
    assert DPS(grid)(teacher, Cosine(), problem, problem.A(x), z, seeds=seeds).trajectory is None
    with pytest.raises(ValueError, match="t = 0.3 is not on the grid, so it cannot be kept"):
        DPS(grid, keep=[0.3])(teacher, Cosine(), problem, problem.A(x), z, seeds=seeds)


GUIDED: dict[str, Callable[[Tensor], Restorer]] = {
    "constrained": lambda grid: Constrained(grid, inner=2),
    "dps": DPS,
    "pigdm": PiGDM,
    "diffpir": DiffPIR,
    "replacement": lambda grid: Replacement(grid, resamples=2),
    "mpgd": MPGD,
}


@pytest.mark.parametrize("name", GUIDED)
def test_a_restoration_does_not_depend_on_how_the_schedule_runs(name: str) -> None:
    """Variance preserving, exploding and straight paths between equal signal-to-noise ratios, in sigma-free units."""
    log_snr = torch.linspace(-8, 8, 9, dtype=D64)
    made = []
    for schedule in (Cosine(), VE(80.0), RectifiedFlow()):
        data, grid = Correlated.of(8, schedule), check_grid(schedule.time(log_snr))
        keep = torch.arange(8) < 5
        x, seeds = data.sample(4), seed_range(0, 4)
        # The same start for all: in the scale of the variance preserving one.
        z = noise(seeds, (8,), dtype=D64)
        problem = Mask(keep, noise=0.05)
        restored = GUIDED[name](grid)(data.denoiser, schedule, problem, problem.A(x), z, seeds=seeds)
        alpha_s, _ = schedule.at(float(grid[-1]))
        made.append(restored.x / alpha_s)
    assert torch.allclose(made[1], made[0], atol=1e-8) and torch.allclose(made[2], made[0], atol=1e-8)


def test_samples_are_their_own_in_any_batch() -> None:
    z, seeds, x = given(4)
    teacher, problem = mixture(Cosine()), Downsample(2, noise=0.1)
    for make in SIGHTED.values():
        whole = make(uniform(4))(teacher, Cosine(), problem, problem.A(x), z, seeds=seeds).x
        alone = make(uniform(4))(teacher, Cosine(), problem, problem.A(x[2:]), z[2:], seeds=seeds[2:]).x
        assert torch.allclose(whole[2:], alone, atol=1e-8)


def test_a_meter_of_the_callers_goes_on_counting_and_guidance_counts_twice() -> None:
    z, seeds, x = given()
    problem, label = Mask.box(SHAPE), torch.zeros(3, dtype=torch.long)
    teacher = mixture(Cosine())
    meter = Meter(Guided(lambda x, t, c: teacher(x, t), torch.tensor(1), 0.5))
    for _ in range(2):
        made = DPS(uniform(4))(meter, Cosine(), problem, problem.A(x), z, label, seeds)
        assert (made.cost.rounds, made.cost.rows, made.cost.vjps, made.cost.jvps) == (4, 24, 24, 0)
    assert (meter.rounds, meter.rows, meter.vjps) == (8, 48, 48) and made.cost.seconds > 0


@pytest.mark.parametrize("name", SIGHTED)
def test_what_a_mask_hides_of_the_measurement_is_not_looked_at(name: str) -> None:
    z, seeds, x = given()
    teacher, problem = mixture(Cosine()), Mask.box(SHAPE)
    one, other = (SIGHTED[name](uniform(3))(teacher, Cosine(), problem, y, z, seeds=seeds) for y in (x, problem.A(x)))
    assert torch.equal(one.x, other.x) and torch.equal(one.residual, other.residual)


def test_a_problem_may_be_another_for_each_row() -> None:
    z, seeds, x = given()
    each = Blur(torch.rand(3, 1, 3, 3, dtype=D64))
    made = DPS(uniform(3))(mixture(Cosine()), Cosine(), each, each.A(x), z, seeds=seeds)
    assert made.x.shape == z.shape


def test_a_problem_may_be_revised_on_the_way() -> None:
    z, seeds, x = given()
    teacher, truth = mixture(Cosine()), Mask.half(SHAPE)
    told: list[float] = []

    def revise(x0_hat: Tensor, t: float) -> Mask:
        assert x0_hat.shape == z.shape and not x0_hat.requires_grad
        told.append(t)
        return truth

    for make in (DPS, PiGDM, Constrained, DiffPIR, MPGD):
        told.clear()
        wrong = Mask.half(SHAPE, axis=1)
        made = make(uniform(4))(teacher, Cosine(), wrong, truth.A(x), z, seeds=seeds, revise=revise)
        assert told == uniform(4).tolist()[:-1]
        known = make(uniform(4))(teacher, Cosine(), truth, truth.A(x), z, seeds=seeds)
        assert torch.allclose(made.x, known.x) and torch.allclose(made.residual, known.residual)


def test_a_trained_network_restores_without_a_graph() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.conv(x).tanh()

    teacher, problem = Prediction(Net(), Cosine(), "v", shape=(1, 8, 8)), Downsample(2)
    z, seeds = noise(range(2), (1, 8, 8)), seed_range(0, 2)
    for make in SIGHTED.values():
        made = make(uniform(3))(teacher, Cosine(), problem, torch.zeros(2, 1, 4, 4), z, seeds=seeds)
        assert not made.x.requires_grad and all(p.grad is None for p in teacher.parameters())
        if make not in (DPS, PiGDM):
            assert made.cost.vjps == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": None}, "DPS takes noise in its steps: give `seeds`, one for each row"),
        ({"seeds": [1, 2]}, "there are 2 seeds for 3 rows of noise"),
        ({"y": torch.zeros(3, 2, 4, 5)}, "what was measured of (2, 4, 4) is (3, 2, 4, 4) here, and y is (3, 2, 4, 5)"),
        ({"y": torch.full((3, 2, 4, 4), torch.nan)}, "what was measured must be finite, and y holds NaN or infinity"),
        ({"z": torch.full((3, 2, 4, 4), torch.inf)}, "noise must be finite"),
        ({"problem": Downsample(3)}, "a factor of 3 does not divide samples of 4 x 4"),
        ({"problem": Function(lambda x: x**2, SHAPE)}, "the adjoint of Function is none"),
    ],
)
def test_bad_input_is_one_line_before_the_network_runs(change: dict[str, Any], message: str) -> None:
    z, seeds, x = given()
    meter = Meter(mixture(Cosine()))
    call = {"problem": Mask.box(SHAPE), "y": Mask.box(SHAPE).A(x), "z": z, "seeds": seeds} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        DPS(uniform(4))(meter, Cosine(), **call)
    assert meter.rounds == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPS([0.0, 1.0]), "a grid must decrease strictly"),
        (lambda: DPS(uniform(2), scale=-1.0), "DPS takes scale >= 0 and eta in [0, 1], got -1 and 1"),
        (lambda: PiGDM(uniform(2), eta=1.5), "PiGDM takes scale >= 0 and eta in [0, 1], got 1 and 1.5"),
        (lambda: DiffPIR(uniform(2), fresh=2.0), "DiffPIR takes prior > 0 and fresh in [0, 1], got 1 and 2"),
        (lambda: DiffPIR(uniform(2), prior=0.0), "DiffPIR takes prior > 0 and fresh in [0, 1], got 0 and 1"),
        (lambda: Replacement(uniform(2), resamples=0), "each step is made at least once, got resamples=0"),
    ],
)
def test_options_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
