"""Splitting the guide off: what is left without it, what it does alone, orders, costs, and when it pays."""

import math

import pytest
import torch
from torch import Tensor

from dsno.cost import Meter
from dsno.grids import uniform
from dsno.guidance.guides import Counted, DensityGuide, LossGuide
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule
from dsno.solvers.adams import PLMS, noise_ratio
from dsno.solvers.first_order import DDIM
from dsno.solvers.named import SPLITTINGS, solver_named
from dsno.solvers.run import SolverSampler, solve
from dsno.solvers.splitting import LTSP, STSP, Strang2
from dsno.solvers.step import Step
from dsno.steer import Halves, Steered
from solving import order, states
from steering import even_ratios, fine, posterior, ring, start, steered

every_splitting = pytest.mark.parametrize("name", SPLITTINGS)


@pytest.mark.parametrize("schedule", [Cosine(), VE(), RectifiedFlow()], ids=["cosine", "ve", "flow"])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_at_scale_0_it_is_plms_bit_for_bit(schedule: Schedule, k: int) -> None:
    model, (x, cond) = steered(scale=0.0, schedule=schedule), start(schedule, 8)
    alone = solve(ring(schedule), schedule, x, uniform(9), PLMS(k)).sample
    for step in (LTSP(k), STSP(k)):
        assert torch.equal(solve(model, schedule, x, uniform(9), step, cond).sample, alone)


def test_without_a_denoiser_it_is_pure_gradient_flow() -> None:
    r"""With $\hat\epsilon = 0$ and $\log p = -|x_t|^2 / 2$ on VE, $d x / d r = r \, w x$ and
    $x_s = x_t \exp(-w (r_t^2 - r_s^2) / 2)$."""
    schedule, w = VE(2), 0.7

    def nothing(x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return x_t

    model = Steered(nothing, DensityGuide(lambda x, t, y: -x.square().sum(1) / 2), w, schedule)
    x, (r_t, r_s) = states(4, (2,)), (noise_ratio(schedule, t) for t in (0.9, 0.1))
    exact = x * math.exp(-w * (r_t**2 - r_s**2) / 2)

    def error(step: Step) -> float:
        return float((solve(model, schedule, x, uniform(400, 0.9, 0.1), step).sample - exact).abs().max())

    assert error(LTSP()) < 5e-3 and error(STSP()) < 5e-3 and error(Strang2()) < 5e-5


ORDERS = {"ltsp4": 1, "stsp1": 1, "stsp4": 1, "strang2": 2}


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("schedule", [Cosine(), VE(), RectifiedFlow()], ids=["cosine", "ve", "flow"])
def test_its_order_is_that_of_the_guide_s_rule(schedule: Schedule, name: str) -> None:
    """Order 4 of the denoiser's half does not make the whole of order 4, and says so."""
    model, (x, cond) = steered(scale=1.0, schedule=schedule), start(schedule, 16)
    exact = fine(model, x, cond, 200)

    def error(N: int) -> float:
        made = solve(model, schedule, x, even_ratios(schedule, N), SPLITTINGS[name](), cond).sample
        return float((made - exact).norm(dim=1).median())

    assert order(error, (64, 128)) == pytest.approx(ORDERS[name], abs=0.25)


def error_of(share: float, N: int, *steps: Step) -> list[float]:
    """The median error at scale 5, of a guide that is told a `share` of the noise."""
    model, (x, cond) = steered(share), start(VE())
    exact = fine(model, x, cond, 300)
    made = [solve(model, VE(), x, even_ratios(VE(), N), step, cond).sample for step in steps]
    assert all(x.isfinite().all() for x in made)
    return [float((x - exact).norm(dim=1).median()) for x in made]


def test_with_a_rough_guide_splitting_stays_where_multistep_blows_up() -> None:
    plms, stsp = error_of(0.3, 30, PLMS(), STSP())
    assert plms > 1 and stsp < 0.05


def test_with_a_smooth_guide_multistep_is_better() -> None:
    plms, stsp, ltsp = error_of(1.0, 30, PLMS(), STSP(), LTSP())
    assert 2 * plms < stsp < ltsp


@every_splitting
def test_no_schedule_and_no_grid_gives_a_nan(schedule: Schedule, name: str) -> None:
    x = schedule.at(1.0)[1] * states(8, (2,))
    cond = {"guide": torch.arange(8) % 2}
    for N in (1, 2, 9):
        made = solve(steered(1.0, 1.0, schedule), schedule, x, uniform(N), SPLITTINGS[name](), cond).sample
        assert made.isfinite().all() and made.abs().max() < 8


COSTS = {"ltsp": (1, 1), "stsp": (1, 2), "strang2": (2, 4)}


@every_splitting
def test_calls_and_gradients_are_counted(name: str) -> None:
    calls, gradients = COSTS[name if name == "strang2" else name[:-1]]
    mixture, (x, cond) = ring(VE()), start(VE(), 3)
    meter, guide = Meter(mixture), Counted(posterior(mixture))
    grid = even_ratios(VE(), 6)
    made = solve(Steered(meter, guide, 1.0, VE()), VE(), x, grid, SPLITTINGS[name](), cond)
    assert (meter.rounds, meter.rows, guide.gradients, guide.rows) == (
        6 * calls,
        18 * calls,
        6 * gradients,
        18 * gradients,
    )
    assert made.rounds == made.nfe == 6 * calls


def test_a_guide_of_the_clean_sample_costs_a_call_for_each_gradient() -> None:
    meter, (x, cond) = Meter(ring(VE())), start(VE(), 3)
    guide = Counted(LossGuide(lambda x0_hat, y: x0_hat.square().sum(1), VE()))
    for step, rounds in ((DDIM(), 6), (LTSP(), 12), (STSP(), 18)):
        meter.reset(), guide.reset()
        solve(Steered(meter, guide, 0.1, VE()), VE(), x, even_ratios(VE(), 6), step, cond)
        assert (meter.rounds, guide.gradients) == (rounds, rounds if step == DDIM() else rounds - 6)


@every_splitting
def test_what_is_kept_of_x0_is_the_steered_denoiser_s_to_first_order(name: str) -> None:
    model, (x, cond) = steered(scale=1.0), start(VE(), 8)
    grid = even_ratios(VE(), 256)
    made = solve(model, VE(), x, grid, SPLITTINGS[name](), cond, keep=grid[[0, 200, 256]], keep_x0=True)
    for n, t in enumerate(made.t.tolist()[:2]):
        torch.testing.assert_close(made.x0[:, n], Halves(model, cond)(made.x[:, n], t), rtol=0, atol=0.05)


def test_a_row_is_the_same_in_any_batch() -> None:
    model, (x, cond) = steered(), start(VE(), 6)
    whole = solve(model, VE(), x, even_ratios(VE(), 20), STSP(), cond).sample
    part = solve(model, VE(), x[4:], even_ratios(VE(), 20), STSP(), {"guide": cond["guide"][4:]}).sample
    torch.testing.assert_close(part, whole[4:], rtol=1e-12, atol=1e-12)


@every_splitting
def test_a_splitting_needs_a_guide(name: str) -> None:
    mixture = ring(VE())
    with pytest.raises(ValueError, match="this solver splits a guide off its denoiser and there is none"):
        SolverSampler(Meter(steered()), VE(), uniform(4), SPLITTINGS[name]())(states(2, (2,)))
    with pytest.raises(ValueError, match=f"the solver {name} splits a guide off, and this teacher has none"):
        solver_named(name, mixture)
    assert solver_named(name, steered()) == SPLITTINGS[name]()
    with pytest.raises(ValueError, match="unknown solver 'stps4': expected one of ddim, .*, stsp4, strang2"):
        solver_named("stps4", steered())
    for kind in (LTSP, STSP):
        with pytest.raises(ValueError, match="orders 1 to 4 here, got 5"):
            kind(5)
