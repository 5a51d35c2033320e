"""A steered denoiser is again a denoiser: Bayes' rule, its limits, its cost, and what is said of a bad gradient."""

import math

import pytest
import torch
from torch import Tensor, nn

from dsno.cost import Meter, evaluations
from dsno.denoise import Guided, Prediction
from dsno.grids import uniform
from dsno.guidance.guides import Counted, DensityGuide
from dsno.parallel import Picard
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule
from dsno.solvers.chain import Chain
from dsno.solvers.first_order import DDIM
from dsno.solvers.run import SolverSampler, solve
from dsno.steer import Halves, Steered, as_label, target_of, untold
from solving import states
from steering import posterior, ring, start, steered


@pytest.mark.parametrize("schedule", [Cosine(), VE(4), RectifiedFlow()], ids=["cosine", "ve", "flow"])
@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_at_scale_1_it_is_the_conditional_denoiser(schedule: Schedule, t: float) -> None:
    """Bayes' rule: the guide is the posterior of the mixture's own classes."""
    mixture, (x, cond) = ring(schedule), start(schedule, 6)
    exact = mixture(x, torch.tensor(t, dtype=torch.float64), cond["guide"])
    model = Steered(mixture, posterior(mixture), 1.0, schedule)
    for time in (t, torch.tensor(t, dtype=torch.float64), torch.full((6,), t, dtype=torch.float64)):
        torch.testing.assert_close(model(x, time, cond), exact, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(Halves(model, cond)(x, t), exact, rtol=1e-9, atol=1e-9)
    # In noises: eps - sigma_t w grad.
    alpha_t, sigma_t = schedule.at(t)
    slope = Halves(model, cond).slope(x, t)
    eps, eps_w = (
        (x - alpha_t * x0_hat) / sigma_t for x0_hat in (mixture(x, torch.tensor(t, dtype=torch.float64)), exact)
    )
    torch.testing.assert_close(eps_w, eps - sigma_t * slope, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [Cosine(), VE(4), RectifiedFlow()], ids=["cosine", "ve", "flow"])
def test_where_there_is_nothing_to_say_the_guide_is_silent(schedule: Schedule) -> None:
    def never(x_t: Tensor, t: Tensor | float, label: Tensor | None) -> Tensor:
        return x_t.sum(1) * math.nan

    mixture, (x, cond) = ring(schedule), start(schedule, 4)
    model = Steered(mixture, DensityGuide(never), 1.0, schedule)
    ends = [t for t in (0.0, 1.0) if math.prod(schedule.at(t)) == 0]
    assert {type(schedule): len(ends)} == {type(schedule): {Cosine: 0, VE: 1, RectifiedFlow: 2}[type(schedule)]}
    for t in ends:
        unguided = mixture(x, torch.tensor(t, dtype=torch.float64))
        for time in (t, torch.tensor(t, dtype=torch.float64)):
            assert torch.equal(model(x, time, cond), unguided)
        assert Halves(model, cond).slope(x, t) is None
    assert not model(x, torch.full((4,), 0.5).double(), cond).isfinite().any()


def test_the_denoiser_is_told_the_rest_and_a_solver_asks_both_once_a_step() -> None:
    heard = []

    def denoiser(x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
        heard.append(cond)
        return 0.5 * x_t

    guide = Counted(posterior(ring(VE())))
    x, cond = start(VE(), 4)
    made = solve(Steered(denoiser, guide, 2.0, VE()), VE(), x, uniform(5), DDIM(), cond)
    assert heard == [None] * 5 and (guide.gradients, guide.rows) == (5, 20)
    assert (made.nfe, made.rounds) == (5, 5)
    label = torch.tensor([1, 2, 3, 4])
    solve(Steered(denoiser, guide, 2.0, VE()), VE(), x, uniform(1), DDIM(), {**cond, "label": label})
    assert torch.equal(heard[-1]["label"], label) and [*heard[-1]] == ["label"]
    guide.reset()
    assert guide.gradients == guide.rows == 0


def test_a_condition_has_a_target_a_rest_and_a_label_for_the_student() -> None:
    label = torch.arange(3)
    assert untold({"guide": label}) is None and untold(None) is None and torch.equal(untold(label), label)
    assert torch.equal(as_label({"guide": label, "weight": label})["label"], label)
    assert as_label(None) is None and torch.equal(as_label(label), label)
    assert torch.equal(target_of({"guide": label}), label)
    for cond in (None, label, {"label": label}):
        with pytest.raises(ValueError, match="the guide has no target: give one for each row, cond={'guide': labels}"):
            target_of(cond)


def test_guidance_inside_costs_what_it_costs_and_the_whole_is_a_denoiser_to_anyone() -> None:
    mixture = ring(Cosine())
    guided = Guided(mixture, torch.tensor(0), 1.0)
    assert evaluations(Steered(guided, posterior(mixture), 1.0, Cosine())) == 2
    x, cond = start(Cosine(), 4)
    z = x / Cosine().at(1.0)[1]
    model, chain = steered(schedule=Cosine()), Chain(Cosine(), uniform(8))
    exact = Picard(model, chain, tolerance=None)(z, cond).sample
    torch.testing.assert_close(exact, SolverSampler(model, Cosine(), uniform(8))(z, cond).sample)
    meter = Meter(mixture)
    solve(Steered(meter, posterior(mixture), 1.0, Cosine()), Cosine(), x, uniform(4), DDIM(), cond)
    assert (meter.rounds, meter.rows) == (4, 16)


def test_a_gradient_that_is_not_finite_is_named_with_its_time() -> None:
    def breaks(x_t: Tensor, t: Tensor | float, label: Tensor | None) -> Tensor:
        return x_t.square().sum(1) * (math.inf if t < 0.5 else -1e-3)

    x, cond = start(VE(), 4)
    model = Steered(ring(VE()), DensityGuide(breaks), 1.0, VE())
    message = r"gradient 4 of 5 of the guide DensityGuide, at t = 0.4, is not finite: take more steps, a smaller scale"
    with pytest.raises(FloatingPointError, match=message):
        solve(model, VE(), x, uniform(5), DDIM(), cond)
    solve(model, VE(), x, uniform(5, 1.0, 0.5), DDIM(), cond)


def test_states_are_projected_after_each_step() -> None:
    known, arrived = torch.tensor([0.25]).double(), []

    def keep(x_s: Tensor, s: float) -> Tensor:
        arrived.append(s)
        return torch.cat([known.expand(len(x_s), 1), x_s[:, 1:]], 1)

    x, cond = start(VE(), 4)
    made = solve(
        Steered(ring(VE()), posterior(ring(VE())), 1.0, VE(), keep), VE(), x, uniform(4), keep=uniform(4), cond=cond
    )
    assert arrived == [0.75, 0.5, 0.25, 0.0] and bool((made.x[:, 1:, 0] == 0.25).all())


def test_its_network_runs_with_the_coefficients_of_a_number() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return 0.5 * x

    inner = Prediction(Half(), Cosine(), "v", shape=(2,))
    model = Steered(inner, posterior(ring(Cosine())), 2.0)
    assert model.schedule is inner.schedule
    x = states(3, (2,))
    cond = {"guide": torch.arange(3) % 2}
    rows = torch.full((3,), 0.3, dtype=torch.float64)
    torch.testing.assert_close(model(x, 0.3, cond), model(x, rows, cond), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [-1.0, math.inf, math.nan])
def test_a_scale_is_a_finite_number_of_0_or_more(scale: float) -> None:
    with pytest.raises(ValueError, match="the scale of a guide is a finite number of 0 or more"):
        steered(scale=scale)


def test_somebody_has_to_say_the_schedule() -> None:
    with pytest.raises(ValueError, match=r"a GaussianMixture does not say its schedule: give Steered\(..., schedule="):
        Steered(ring(VE()), posterior(ring(VE())))
