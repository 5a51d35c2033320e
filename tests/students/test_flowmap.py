"""Flow maps of two times: exact where the flow is known, in both directions, and DDIM at the start."""

import pytest
import torch
from torch import nn

from dsno.denoise import KINDS, Prediction, convert, x0_from
from dsno.grids import uniform
from dsno.nets.unet import UNet
from dsno.schedule import VE, Cosine, Schedule
from dsno.solvers.run import SolverSampler, initial_state
from dsno.students.flowmap import FlowMap, flow_map_from_teacher
from dsno.students.samplers import FlowMapSampler
from dsno.teachers.closed import Gaussian
from maps import D64, MEAN, SCHEDULES, STD, Frozen, exact


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_exact_h_gives_the_exact_flow(schedule: Schedule) -> None:
    X, teacher = exact(schedule), Gaussian(schedule, MEAN, STD)
    x = torch.randn(5, 3, dtype=D64)
    for t, s in ((1.0, 0.0), (0.8, 0.3), (0.31, 0.3)):
        assert torch.allclose(X(x, t, s), teacher.flow(x, t, s), atol=1e-10)
    assert torch.equal(X(x, 0.4, 0.4), x)
    between = X(X(x, 0.9, 0.5), 0.5, 0.1)
    assert torch.allclose(between, X(x, 0.9, 0.1), atol=1e-10)
    rows = torch.rand(5, dtype=D64) * 0.4 + 0.5
    apart = torch.cat([X(x[i : i + 1], float(t), 0.2) for i, t in enumerate(rows)])
    assert torch.allclose(X(x, rows, 0.2), apart, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_backwards_the_exact_h_is_the_exact_flow_too(schedule: Schedule) -> None:
    X, teacher = exact(schedule), Gaussian(schedule, MEAN, STD)
    x = torch.randn(5, 3, dtype=D64)
    for t, s in ((0.1, 0.9), (0.02, 1.0), (0.3, 0.31)):
        assert torch.allclose(X(x, t, s), teacher.flow(x, t, s), atol=1e-9)
        assert torch.allclose(X(X(x, t, s), s, t), x, atol=1e-8)
    # Rows of both directions in one call.
    t, s = torch.tensor([0.2, 0.7, 0.4], dtype=D64), torch.tensor([0.8, 0.1, 0.4], dtype=D64)
    assert torch.allclose(X(x[:3], t, s)[0], X(x[:1], 0.2, 0.8)[0]) and torch.equal(X(x[:3], t, s)[2], x[2])


@pytest.mark.parametrize("schedule", [*SCHEDULES, VE(5.0)], ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_a_map_reads_its_output_alike_in_both_directions(kind: str, schedule: Schedule) -> None:
    F, x = torch.randn(4, 3, dtype=D64), torch.randn(4, 3, dtype=D64)
    X, t, s = FlowMap(Frozen(F), schedule, kind, 0.7), 0.3, torch.tensor([0.1, 0.2, 0.7, 0.95], dtype=D64)
    h, rows = X.x0(x, t, s), torch.full((4,), t, dtype=D64)
    assert torch.allclose(h, x0_from(kind, F, x, rows, schedule, 0.7))
    assert torch.allclose(X(x, t, s, returns="velocity"), convert("flow", h, x, rows, schedule))
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.at(t), (c[:, None] for c in schedule(s))
    assert torch.allclose(X(x, t, s), sigma_s / sigma_t * x + (alpha_s - sigma_s / sigma_t * alpha_t) * h)


@pytest.mark.parametrize("kind", ["eps", "v", "flow", "edm"])
def test_backwards_nothing_is_divided_by_the_noise_that_is_not_there(kind: str) -> None:
    F, x = torch.randn(4, 3), torch.randn(4, 3)
    for t in (0.0, 1e-5):
        low, high = (FlowMap(Frozen(F), Cosine(), kind)(v, t, 0.5) for v in (x, x.double()))
        assert torch.allclose(low.double(), high, atol=1e-5)


@pytest.mark.parametrize("schedule", [*SCHEDULES, VE(5.0)], ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_is_the_step_from_noise_to_data_and_keeps_its_graph(kind: str, schedule: Schedule) -> None:
    F, z = torch.randn(4, 3, dtype=D64, requires_grad=True), torch.randn(4, 3, dtype=D64)
    X = FlowMap(Frozen(F), schedule, kind, 0.7)
    x = X.one_pass(z)
    assert torch.allclose(x, X(initial_state(schedule, z), 1.0, 0.0)) and torch.allclose(x, X.sample(z))
    a, b, c = X.affine
    assert torch.allclose(x, a * z + b * F) and c > 0
    assert torch.allclose(torch.autograd.grad(x.sum(), F)[0], torch.full_like(F, b))


def test_the_semigroup_defect_is_zero_for_the_flow_alone() -> None:
    X, x = exact(Cosine()), torch.randn(6, 3, dtype=D64)
    t, u, s = torch.rand(3, 6, dtype=D64).sort(0, descending=True).values
    assert float((X(x, t, s) - X(X(x, t, u), u, s)).detach().abs().max()) < 1e-10
    with torch.no_grad():
        X.net.wrong.fill_(0.05)
    assert float((X(x, t, s) - X(X(x, t, u), u, s)).detach().abs().max()) > 1e-4


def test_a_two_time_network_is_told_the_phase() -> None:
    teacher = Prediction(UNet(1, 8, (4, 8), attention=()), VE(80.0), "v")
    X, told = flow_map_from_teacher(teacher), []
    X.net.later.register_forward_pre_hook(lambda module, args: told.append(args[0]))
    X(torch.randn(2, 1, 8, 8), 1.0, torch.tensor([0.0, 0.5]))
    assert torch.allclose(told[0], 16 * VE(80.0).phase(torch.tensor([0.0, 0.5]))) and float(told[0][1]) > 15


def test_a_flow_map_of_a_teacher_starts_as_ddim() -> None:
    torch.manual_seed(0)
    teacher = Prediction(UNet(1, 8, (8, 16), classes=3), Cosine(), "v", shape=(1, 8, 8), classes=3).eval()
    X, cond = flow_map_from_teacher(teacher), torch.tensor([0, 2])
    z = torch.randn(2, 1, 8, 8)
    made = FlowMapSampler(X, uniform(5))(z, cond)
    reference = SolverSampler(teacher, Cosine(), uniform(5))(z, cond)
    assert torch.allclose(made.sample, reference.sample, atol=1e-5) and made.rounds == made.nfe == 5
    assert torch.allclose(X.x0(z, 0.6, 0.6, cond), teacher(z, torch.tensor(0.6), cond), atol=1e-5)
    # Once something has been learned, the second time counts.
    for parameter in X.parameters():
        nn.init.normal_(parameter, std=0.2)
    assert not torch.allclose(X.x0(z, 0.9, 0.1, cond), X.x0(z, 0.9, 0.5, cond), atol=1e-4)
    with pytest.raises(ValueError, match="takes no guidance weight"):
        X(z, 0.9, 0.1, {"label": cond, "weight": torch.ones(2)})


def test_a_map_of_a_noise_teacher_is_told_something_at_pure_noise() -> None:
    """Divided by alpha = 0, nothing that the network learns would count."""
    torch.manual_seed(0)
    teacher = Prediction(UNet(1, 8, (8,)), Cosine(), "eps", shape=(1, 8, 8)).eval()
    X, z = flow_map_from_teacher(teacher), torch.randn(4, 1, 8, 8)
    for t in (0.2, 0.8):
        assert torch.allclose(X.x0(z, t, t), teacher(z, torch.tensor(t)), atol=1e-4)
    h = X.x0(z, 1.0, 0.0)
    assert float((h - 4 * (z - X.net.backbone(z, torch.ones(4)))).abs().max()) < 1e-3
    assert torch.allclose(X.sample(z), h, atol=1e-3) and float(h.abs().max()) < 100


def test_a_network_that_does_not_say_where_its_time_is_embedded_is_refused() -> None:
    with pytest.raises(ValueError, match="build a `TwoTime` with their names"):
        flow_map_from_teacher(Prediction(nn.Linear(2, 2), Cosine()))
