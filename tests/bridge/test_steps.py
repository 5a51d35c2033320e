"""Steps on a bridge have the order that is said of them, and their formula is the published one."""

import math

import pytest
import torch

from crossing import exact_flow, one, paired
from dsno.bridge.coefficients import DDBMVE, DDBMVP, I2SB, Bridge, BrownianBridge, Pinned
from dsno.bridge.sampler import BRIDGE_STEPS, cross
from dsno.bridge.steps import Euler, ExponentialHeun, Hybrid
from dsno.grids import uniform
from dsno.seeds import noise, seed_range
from dsno.solvers.first_order import DDIM, Ancestral
from dsno.solvers.step import Step
from solving import order

ALL: dict[str, Bridge] = {"brownian": BrownianBridge(), "i2sb": I2SB(), "vp": DDBMVP(), "ve": DDBMVE()}
ORDERS = {"euler": 1, "dbim1": 1, "dbim2": 2, "dbim3": 3, "odes3": 2, "odes3-exponential": 2}


def seen(bridge: Bridge, step: Step) -> float:
    """The order from a state at 0.9 to 0.1, where the exact answer is known."""
    teacher, schedule = one(bridge), Pinned(bridge)
    start = torch.tensor([[0.7, -0.4]], dtype=torch.float64).expand(8, 2)
    y = bridge.at(0.9)[2] * noise(seed_range(0, 8), (2,), dtype=torch.float64)
    exact = exact_flow(teacher, schedule, start[:1], y, 0.9, 0.1)

    def error(N: int) -> float:
        made = cross(teacher, bridge, start, uniform(N, 0.9, 0.1), step, x=y + bridge.at(0.9)[0] * start)
        return float((made.sample - bridge.at(0.1)[0] * start - exact).abs().max())

    return order(error, (192, 384))


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("bridge", ["brownian", "vp", "ve"])
def test_every_deterministic_step_is_of_its_order(bridge: str, name: str) -> None:
    assert seen(ALL[bridge], BRIDGE_STEPS[name].make()) == pytest.approx(ORDERS[name], abs=0.2)


@pytest.mark.parametrize("name", ["dbim1", "odes3-exponential"])
def test_so_it_is_across_the_kink_of_i2sb(name: str) -> None:
    assert seen(I2SB(), BRIDGE_STEPS[name].make()) == pytest.approx(ORDERS[name], abs=0.2)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", ALL)
def test_dbim_is_written_as_its_authors_write_it(name: str, eta: float) -> None:
    """x_s = a_s x_T + b_s D + sqrt(c_s^2 - rho^2) (x_t - a_t x_T - b_t D) / c_t + rho z."""
    bridge, z = ALL[name], noise([5, 6], (2,), dtype=torch.float64)
    teacher, start, x = paired(bridge), z.flip(0), 0.5 * z - 0.1
    (a_t, b_t, c_t), (a_s, b_s, c_s) = bridge.at(0.8), bridge.at(0.5)
    rho = eta * c_s * math.sqrt(1 - (b_t * c_s / (b_s * c_t)) ** 2)
    D = teacher(x, 0.8, {"start": start})
    tape = noise([7, 8], (2,), dtype=torch.float64)[None]
    by_hand = a_s * start + b_s * D + math.sqrt(c_s**2 - rho**2) * (x - a_t * start - b_t * D) / c_t + rho * tape[0]
    found = cross(teacher, bridge, start, [0.8, 0.5], Ancestral(eta), x=x, tape=tape).sample
    torch.testing.assert_close(found, by_hand, rtol=1e-12, atol=1e-12)


def test_the_ancestral_step_draws_from_the_bridge_between_the_state_and_the_prediction() -> None:
    """I2SB's posterior: a bridge of variance rho_t^2 from x_0 to x_t, at rho_s^2; it does not look at x_T."""
    bridge, z = I2SB(), noise([5, 6], (2,), dtype=torch.float64)
    teacher, start, x = paired(bridge), z.flip(0), 0.5 * z - 0.1
    q_t, q_s = ((bridge.end * bridge.levels(torch.tensor(t, dtype=torch.float64))[1]) ** 2 for t in (0.8, 0.5))
    D, tape = teacher(x, 0.8, {"start": start}), z[None]
    by_hand = (q_s * x + (q_t - q_s) * D) / q_t + (q_s * (q_t - q_s) / q_t).sqrt() * z
    found = cross(teacher, bridge, start, [0.8, 0.5], Ancestral(), x=x, tape=tape).sample
    torch.testing.assert_close(found, by_hand, rtol=1e-12, atol=1e-12)


def test_the_flow_is_what_ddbm_writes_in_score_and_pull() -> None:
    """x' = f x - g^2 (score / 2 - h), h the gradient of log p(x_T | x_t), on the diffusion that is pinned."""
    bridge = DDBMVP()
    teacher, start = paired(bridge), noise([1, 2], (2,), dtype=torch.float64)
    t, x = torch.tensor(0.6, dtype=torch.float64), 0.3 * start.flip(0) + 0.2
    (a, b, c), (alpha, r, _), beta = bridge(t), bridge.levels(t), 0.1 + 2 * t
    D = teacher(x, t, {"start": start})
    score = -(x - a * start - b * D) / c**2
    alpha_T, rho2_T, rho2 = bridge.alpha_T, bridge.end**2, (bridge.end * r) ** 2
    # p(x_T | x_t) = N(alpha_T / alpha x_t, alpha_T^2 (rho_T^2 - rho^2)).
    h = (alpha_T / alpha) * (start - alpha_T / alpha * x) / (alpha_T**2 * (rho2_T - rho2))
    by_hand = -beta / 2 * x - beta * (score / 2 - h)
    step = 1e-6
    made = cross(teacher, bridge, start, [0.6, 0.6 - step], Euler(), x=x).sample
    torch.testing.assert_close((x - made) / step, by_hand, rtol=1e-5, atol=1e-5)


def test_without_churn_the_hybrid_is_heun_but_for_an_evaluation() -> None:
    bridge = BrownianBridge()
    teacher, start = paired(bridge), noise([1, 2], (2,), dtype=torch.float64)
    x = 0.5 * start
    hybrid = cross(teacher, bridge, start, [0.8, 0.5, 0.0], Hybrid(0.0), x=x, seeds=torch.tensor([1, 2]))
    heun = cross(teacher, bridge, start, [0.8, 0.5, 0.0], x=x)
    torch.testing.assert_close(hybrid.sample, heun.sample, rtol=1e-12, atol=1e-12)
    assert (hybrid.rounds, heun.rounds) == (3 + 2, 2 + 1)
    with pytest.raises(ValueError, match=r"churn is the share of a step that is stochastic, in \[0, 1\), got 1"):
        Hybrid(1.0)


def test_the_hybrid_keeps_the_law_of_the_bridge() -> None:
    """Many fine steps of the SDE and the ODE together lead to p(x_0 | x_T) of a Gaussian."""
    bridge = BrownianBridge()
    teacher = one(bridge)
    start = torch.tensor([[0.7, -0.4]], dtype=torch.float64).expand(4000, 2)
    _, m, v = teacher.posterior(start[:1])
    grid = torch.cat([uniform(60, 1.0, 0.01), torch.zeros(1, dtype=torch.float64)])
    sample = cross(teacher, bridge, start, grid, Hybrid(0.5), seeds=seed_range(0, 4000)).sample @ teacher.V
    # Standard errors: 0.002 v^0.5 / 0.12.
    torch.testing.assert_close(sample.mean(0), m[0, 0], rtol=0, atol=0.05)
    torch.testing.assert_close(sample.std(0), v[0].sqrt(), rtol=0.06, atol=0)


@pytest.mark.parametrize("step", [Euler(), ExponentialHeun(), DDIM()])
def test_the_step_to_the_data_is_the_prediction(step: Step) -> None:
    bridge = DDBMVE()
    teacher, start = paired(bridge), noise([1, 2], (2,), dtype=torch.float64)
    x = 0.5 * start
    made = cross(teacher, bridge, start, [0.3, 0.0], step, x=x)
    torch.testing.assert_close(made.sample, teacher(x, 0.3, {"start": start}), rtol=1e-12, atol=1e-12)
    assert made.rounds == 1
