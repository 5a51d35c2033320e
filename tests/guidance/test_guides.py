"""Guides are gradients of what they say, whatever they ask for it, and sums of them are sums."""

import pytest
import torch
from torch import Tensor, nn

from dsno.condition import Cond
from dsno.denoise import Guided, Prediction
from dsno.grids import uniform
from dsno.guidance.guides import (
    ClassifierFree,
    CleanClassifier,
    Counted,
    DensityGuide,
    LossGuide,
    NoisyClassifier,
    Sum,
    Untold,
)
from dsno.nets.classifier import Classifier
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule
from dsno.solvers.run import SolverSampler, solve
from dsno.solvers.splitting import STSP
from dsno.steer import Guide, Halves, Steered
from dsno.teachers.closed import Gaussian
from solving import states
from steering import posterior, ring, start

every_schedule = pytest.mark.parametrize("schedule", [Cosine(), VE(4), RectifiedFlow()], ids=["cosine", "ve", "flow"])


def slope(guide: Guide, schedule: Schedule, t: float, x: Tensor, cond: dict[str, Tensor], std: float = 0.5) -> Tensor:
    teacher = Gaussian(schedule, torch.zeros(x.shape[1:], dtype=x.dtype), std)
    found = Halves(Steered(teacher, guide, 1.0, schedule), cond).slope(x, t)
    assert found is not None
    return found


def to(x0_hat: Tensor, y: Tensor | None) -> Tensor:
    """Half of the squared distance."""
    assert y is not None
    return (x0_hat - y).square().flatten(1).sum(1) / 2


@every_schedule
@pytest.mark.parametrize("through", [True, False])
def test_of_gaussian_data_both_jacobians_are_exact(schedule: Schedule, through: bool) -> None:
    r"""$\hat x_0 = J x_t$ there, with $J = \alpha_t s^2 / (\alpha_t^2 s^2 + \sigma_t^2)$."""
    t, x, y = 0.4, states(), states().flip(0)
    alpha_t, sigma_t = schedule.at(t)
    J = alpha_t * 0.25 / (alpha_t**2 * 0.25 + sigma_t**2)
    guide = LossGuide(to, schedule, through)
    assert guide.reads == ("graph" if through else "x0_hat")
    torch.testing.assert_close(slope(guide, schedule, t, x, {"guide": y}), -J * (J * x - y))


def test_through_the_denoiser_a_guide_is_silent_where_the_jacobian_is_its_error_alone() -> None:
    """Of a trained denoiser, off by two hundredths of the state, the error would be pulled by 1 / alpha_t."""
    schedule, x, y = RectifiedFlow(), states(), states().flip(0)
    exact = Gaussian(schedule, torch.zeros(3, dtype=torch.float64), 0.5)

    def trained(x_t: Tensor, t: Tensor | float, cond: Cond | None = None) -> Tensor:
        return exact(x_t, torch.as_tensor(t, dtype=x_t.dtype)) + 0.02 * x_t

    model = Steered(trained, LossGuide(to, schedule), 1.0, schedule)
    for t in (0.9999, torch.full((len(x),), 0.9999, dtype=torch.float64)):
        assert torch.equal(model(x, t, {"guide": y}), model.denoiser(x, t))
    moved = [model(x, t, {"guide": y}) - model.denoiser(x, t) for t in (0.96, 0.95)]
    assert float(moved[0].abs().max()) == 0 and 0 < float(moved[1].abs().max()) < 3


def test_without_a_graph_the_answer_moves_by_the_posterior_variance() -> None:
    schedule, x, y = Cosine(), states(), states().flip(0)
    teacher = Gaussian(schedule, torch.zeros(3, dtype=torch.float64), 2.0)
    model = Steered(teacher, LossGuide(to, schedule, through=False, data_std=0.5), 1.0, schedule)
    for t in (0.1, 0.9, 1.0):
        alpha_t, sigma_t = schedule.at(t)
        x0_hat = teacher(x, torch.tensor(t, dtype=torch.float64))
        moved = sigma_t**2 * 0.25 / (alpha_t**2 * 0.25 + sigma_t**2) * (y - x0_hat)
        torch.testing.assert_close(Halves(model, {"guide": y})(x, t), x0_hat + moved)


@every_schedule
@pytest.mark.parametrize("kind", ["noisy", "clean", "past"])
def test_a_classifier_s_guide_is_the_difference_quotient_of_its_log_probability(schedule: Schedule, kind: str) -> None:
    torch.manual_seed(0)
    net = Classifier(1, 4, 3, (4, 8), noisy=kind == "noisy").double()
    nn.init.normal_(net.down[1].conv2.weight)
    t, x, label = 0.6, states(2, (1, 4, 4)), torch.tensor([2, 0])
    alpha_t, sigma_t = schedule.at(t)
    J = alpha_t * 0.25 / (alpha_t**2 * 0.25 + sigma_t**2)

    def log_p(x_t: Tensor) -> Tensor:
        logits = net(x_t, alpha_t, sigma_t) if kind == "noisy" else net(J * x_t)
        return logits.log_softmax(-1)[torch.arange(2), label]

    guide = NoisyClassifier(net, schedule) if kind == "noisy" else CleanClassifier(net, schedule, kind == "clean")
    found = slope(guide, schedule, t, x, {"guide": label})
    d = states(4, (1, 4, 4))[2:]
    with torch.no_grad():
        quotient = (log_p(x + 1e-5 * d) - log_p(x - 1e-5 * d)) / 2e-5
    torch.testing.assert_close((found * d).flatten(1).sum(1), quotient, rtol=1e-5, atol=1e-8)
    assert guide.config["classes"] == 3


@every_schedule
def test_classifier_free_guidance_is_a_guide(schedule: Schedule) -> None:
    """`Guided` of a weight w is the scale 1 + w, and without a null label the posterior of the mixture is the guide."""
    mixture, (x, cond) = ring(schedule), start(schedule, 6)
    t = torch.tensor(0.6, dtype=torch.float64)
    found = Halves(Steered(mixture, ClassifierFree(mixture, schedule), 1.0, schedule), cond).slope(x, 0.6)
    exact = Halves(Steered(mixture, posterior(mixture), 1.0, schedule), cond).slope(x, 0.6)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-9)
    told = Steered(Untold(mixture, torch.tensor(1)), ClassifierFree(mixture, schedule), 3.0, schedule)
    torch.testing.assert_close(told(x, t, cond), Guided(mixture, torch.tensor(1), 2.0)(x, t, cond["guide"]))


def test_a_sum_is_a_sum_and_asks_for_what_its_parts_do() -> None:
    schedule, (x, cond) = Cosine(), start(Cosine(), 4)
    y = {"guide": cond["guide"]}
    parts: list[Guide] = [
        posterior(ring(schedule)),
        LossGuide(lambda x0_hat, _: x0_hat.square().sum(1), schedule),
        LossGuide(lambda x0_hat, _: x0_hat.sum(1).square(), schedule),
        LossGuide(lambda x0_hat, _: x0_hat.sin().sum(1), schedule, through=False),
    ]
    slopes = [slope(part, schedule, 0.5, x, y) for part in parts]
    whole = Sum(parts, [1.0, 0.5, 2.0, -1.0])
    torch.testing.assert_close(
        slope(whole, schedule, 0.5, x, y), slopes[0] + 0.5 * slopes[1] + 2 * slopes[2] - slopes[3]
    )
    assert whole.reads == "graph" and Sum([parts[0], parts[3]]).reads == "x0_hat" and Sum(parts[:1]).reads == "x_t"
    assert [part["class"] for part in whole.config["parts"]] == ["DensityGuide", *["LossGuide"] * 3]
    for guides, weights in (([], None), (parts, [1.0])):
        with pytest.raises(ValueError, match="a sum has a weight for each of one guide or more"):
            Sum(guides, weights)


def test_a_guide_of_no_target_leads_where_its_loss_is_least() -> None:
    """Towards the right of the ring, at one third of the loss of the unguided."""
    mixture, schedule = ring(Cosine()), Cosine()
    z = states(64, (2,))
    guide = Counted(LossGuide(lambda x0_hat, _: (2 - x0_hat[:, 0]).square(), schedule))
    free = SolverSampler(mixture, schedule, uniform(40))(z).sample
    led = SolverSampler(Steered(mixture, guide, 1.0, schedule), schedule, uniform(40), STSP())(z).sample
    losses = [float((2 - x[:, 0]).square().mean()) for x in (free, led)]
    assert losses[1] < losses[0] / 3
    # Silent nowhere on the cosine schedule: two gradients a step.
    assert (guide.gradients, guide.rows) == (80, 5120)


def test_what_does_not_fit_is_refused() -> None:
    schedule = Cosine()
    with pytest.raises(ValueError, match="this classifier knows clean samples alone: take CleanClassifier"):
        NoisyClassifier(Classifier(noisy=False), schedule)
    with pytest.raises(ValueError, match="data_std must be positive, got 0"):
        LossGuide(to, schedule, data_std=0)
    x, net = states(2, (1, 8, 8)).float(), Classifier()
    with pytest.raises(ValueError, match="the guide has no target"):
        slope(NoisyClassifier(net, schedule), schedule, 0.5, x, {})


def test_a_guide_runs_without_gradients_around_it_and_leaves_none_behind() -> None:
    net, schedule = Classifier(1, 8, 10, (4, 8)), Cosine()
    x, cond = states(2, (1, 8, 8)).float(), {"guide": torch.tensor([1, 2])}

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.w * x

    inner = Prediction(Half(), schedule, "v", shape=(1, 8, 8))
    for guide in (NoisyClassifier(net, schedule), CleanClassifier(net, schedule)):
        made = solve(Steered(inner, guide), schedule, x, uniform(3), STSP(), cond).sample
        with torch.no_grad():
            again = solve(Steered(inner, guide), schedule, x, uniform(3), STSP(), cond).sample
        assert torch.equal(again, made.detach())
    assert all(p.grad is None for p in [*net.parameters(), *inner.parameters()])
    assert DensityGuide(lambda x, t, y: x.flatten(1).sum(1)).config == {"density": "<lambda>"}
