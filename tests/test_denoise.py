"""One prediction is all predictions, guidance is linear in two of them, and any callable is a denoiser."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dsno.condition import Cond
from dsno.denoise import (
    KINDS,
    Denoiser,
    Guided,
    Kind,
    Prediction,
    Threshold,
    at_one_time,
    convert,
    each_row,
    evaluating,
    modules_of,
    scale_input,
    still,
    tensors_of,
    x0_from,
)
from dsno.schedule import VE, Cosine, Schedule
from dsno.teachers.closed import Gaussian

MEAN = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
STD = torch.tensor([0.5, 0.2, 1.5], dtype=torch.float64)
kinds = pytest.mark.parametrize("kind", KINDS)


def pair(B: int = 16, shape: tuple[int, ...] = (3,)) -> tuple[Tensor, Tensor]:
    return torch.randn(B, *shape, dtype=torch.float64), torch.randn(B, *shape, dtype=torch.float64)


# The table of relations


@kinds
def test_conversion_round_trips(kind: Kind, schedule: Schedule) -> None:
    x0_hat, x_t = pair()
    t = torch.linspace(0.02, 0.98, 16, dtype=torch.float64)
    output = convert(kind, x0_hat, x_t, t, schedule)
    # alpha_t >= 0.006 and sigma_t >= 0.01 here, so at most six digits of sixteen are lost.
    torch.testing.assert_close(x0_from(kind, output, x_t, t, schedule), x0_hat, rtol=1e-10, atol=1e-10)


@kinds
def test_kinds_are_what_their_names_say(kind: Kind, schedule: Schedule) -> None:
    x0, eps = pair()
    t = torch.linspace(0.1, 0.9, 16, dtype=torch.float64)
    (alpha_t, sigma_t), (d_alpha, d_sigma) = schedule(t[:, None]), schedule.derivative(t[:, None])
    truth = {
        "x0": x0,
        "eps": eps,
        "v": alpha_t * eps - sigma_t * x0,
        "flow": d_alpha * x0 + d_sigma * eps,
        "score": -eps / sigma_t,
        "edm": (sigma_t * x0 - alpha_t * eps) / (alpha_t**2 + sigma_t**2).sqrt(),
    }[kind]
    output = convert(kind, x0, alpha_t * x0 + sigma_t * eps, t, schedule)
    torch.testing.assert_close(output, truth, rtol=1e-9, atol=1e-9)


@kinds
@pytest.mark.parametrize("t", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_conversion_is_finite_at_both_ends(kind: Kind, schedule: Schedule, t: float, dtype: torch.dtype) -> None:
    x0_hat, x_t = (u.to(dtype) for u in pair())
    time = torch.tensor(t, dtype=dtype)
    output = convert(kind, x0_hat, x_t, time, schedule)
    assert output.isfinite().all()
    assert x0_from(kind, output, x_t, time, schedule).isfinite().all()


@kinds
def test_pure_data_is_its_own_denoised_sample(kind: Kind, schedule: Schedule) -> None:
    # An exact denoiser returns x at sigma = 0; what the network says there must not matter but for the truncation of
    # the cosine schedule (sigma = 4.5e-5, times an output of at most 1 / sigma for the score).
    x, _ = pair()
    time = torch.zeros((), dtype=torch.float64)
    output = convert(kind, x, x, time, schedule)
    torch.testing.assert_close(x0_from(kind, output, x, time, schedule), x, rtol=0, atol=1e-3)


@kinds
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_any_network_output_gives_no_nan_at_either_end(kind: Kind, schedule: Schedule, t: float) -> None:
    # eps and score say nothing about the data where alpha = 0: the result is useless there, but a number.
    x_t, output = pair()
    assert not x0_from(kind, output, x_t, torch.tensor(t, dtype=torch.float64), schedule).isnan().any()


@kinds
def test_one_time_for_all_or_one_for_each(kind: Kind, schedule: Schedule) -> None:
    x0_hat, x_t = pair(4, (2, 3, 3))
    t = torch.tensor(0.4, dtype=torch.float64)
    torch.testing.assert_close(
        convert(kind, x0_hat, x_t, t, schedule), convert(kind, x0_hat, x_t, t.expand(4), schedule), rtol=0, atol=0
    )


@kinds
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_number_is_the_time_of_all_rows(kind: Kind, schedule: Schedule, dtype: torch.dtype) -> None:
    output, x_t = (x.to(dtype) for x in pair(4, (2, 3, 3)))
    for t in (1.0, 0.4, 0.0):
        rows = each_row(t, x_t)
        for relation in (x0_from, lambda kind, _, *rest: scale_input(kind, *rest)):
            torch.testing.assert_close(
                relation(kind, output, x_t, t, schedule, 0.5),
                relation(kind, output, x_t, rows, schedule, 0.5),
                rtol=0,
                atol=0,
                equal_nan=True,
            )


@pytest.mark.parametrize("relation", [x0_from, convert])
def test_an_unknown_kind_is_refused(relation) -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="unknown prediction kind 'noise'"):
        relation("noise", x, x, torch.tensor(0.5), Cosine())


def test_edm_is_karras_preconditioning_on_the_ve_path() -> None:
    torch.manual_seed(0)
    schedule, sigma_d = VE(80.0), 0.5
    x, F, t = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64), torch.rand(6).double()
    sigma = 80 * t[:, None]
    c_skip, c_out = sigma_d**2 / (sigma**2 + sigma_d**2), sigma * sigma_d / (sigma**2 + sigma_d**2).sqrt()
    torch.testing.assert_close(x0_from("edm", F, x, t, schedule, sigma_d), c_skip * x + c_out * F)
    torch.testing.assert_close(convert("edm", c_skip * x + c_out * F, x, t, schedule, sigma_d), F)
    shown = []

    class Net(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            shown.append(x)
            return F

    teacher = Prediction(Net(), schedule, "edm", data_std=sigma_d)
    torch.testing.assert_close(teacher(x, t), c_skip * x + c_out * F)
    torch.testing.assert_close(shown[0], x / (sigma**2 + sigma_d**2).sqrt())


# Wrappers


@kinds
def test_prediction_turns_a_network_of_any_kind_into_the_denoiser(kind: Kind, schedule: Schedule) -> None:
    teacher = Gaussian(schedule, MEAN, STD)

    class Net(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            x_t = x_t / scale_input(kind, torch.ones_like(x_t), t, schedule)
            return convert(kind, teacher(x_t, t), x_t, t, schedule)

    x_t, _ = pair()
    t = torch.tensor(0.6, dtype=torch.float64)
    torch.testing.assert_close(Prediction(Net(), schedule, kind)(x_t, t), teacher(x_t, t), rtol=1e-10, atol=1e-10)


def test_prediction_hands_the_network_its_own_time_and_the_condition() -> None:
    seen = []

    class Net(nn.Module):
        def forward(self, x_t: Tensor, time: Tensor, cond: Tensor | None = None) -> Tensor:
            seen.append((time, cond))
            return x_t

    denoiser = Prediction(Net(), Cosine(), time=lambda t: 1000 * t - 1)
    labels = torch.tensor([3, 1])
    denoiser(torch.zeros(2, 3), torch.tensor(0.5))
    denoiser(torch.zeros(2, 3), torch.tensor(0.5), labels)
    assert seen[0][0].tolist() == [499, 499] and seen[0][1] is None
    assert seen[1][1] is labels


def test_a_denoiser_at_one_time_answers_as_it_does_to_that_time_of_each_row() -> None:
    class Net(nn.Module):
        def forward(self, x_t: Tensor, time: Tensor, cond: Tensor) -> Tensor:
            assert time.shape == x_t.shape[:1]
            return x_t.cos() * (time + cond)[:, None]

    prediction, calls = Prediction(Net(), Cosine(), "eps", time=lambda t: 10 * t, clip=0.7), []

    def foreign(x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        calls.append(t)
        return prediction(x_t, t, cond)

    x_t, cond = torch.randn(4, 3), torch.arange(4)
    for denoiser in (
        prediction,
        Guided(prediction, torch.tensor(7), 2.0),
        foreign,
        Guided(foreign, torch.tensor(7), 2.0),
    ):
        assert torch.equal(at_one_time(denoiser)(x_t, 0.4, cond), denoiser(x_t, torch.full((4,), 0.4), cond))
    assert [t.shape[0] for t in calls] == [4, 4, 8, 8]  # anyone else's is told each row's time


def test_a_compiled_denoiser_is_one_graph_at_all_times() -> None:
    class Net(nn.Module):
        def forward(self, x_t: Tensor, time: Tensor, cond: Tensor | None = None) -> Tensor:
            return x_t.cos() * time[:, None]

    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    prediction, x_t = Prediction(Net(), Cosine(), "eps"), torch.randn(4, 3)
    expected = [prediction(x_t, torch.tensor(t)) for t in (0.9, 0.5, 0.2)]
    prediction.compile(backend=backend)
    ask = at_one_time(prediction)
    assert all(torch.equal(ask(x_t, t, None), e) for t, e in zip((0.9, 0.5, 0.2), expected, strict=True))
    assert len(graphs) == 1


def test_prediction_clips() -> None:
    class Net(nn.Module):
        def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
            return 3 * x_t

    x_t = torch.tensor([[1.0], [-1.0], [0.1]])
    x0_hat = Prediction(Net(), Cosine(), clip=0.5)(x_t, torch.tensor(0.5))
    torch.testing.assert_close(x0_hat, torch.tensor([[0.5], [-0.5], [0.3]]))


def test_dynamic_thresholding_is_that_of_diffusers() -> None:
    from diffusers import DDIMScheduler

    x0 = 3 * torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.7)
    torch.testing.assert_close(Threshold(0.9, 1.7)(x0), scheduler._threshold_sample(x0))


def test_prediction_refuses_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match="unknown prediction kind"):
        Prediction(nn.Identity(), Cosine(), kind="epsilon")  # type: ignore[arg-type]


def test_half_precision_does_not_round_the_time() -> None:
    seen = []

    class Net(nn.Module):
        def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
            seen.append(float(time[0]))
            return x_t

    x0_hat = Prediction(Net(), Cosine())(torch.zeros(1, 2, dtype=torch.bfloat16), torch.tensor(0.999))
    assert seen == [pytest.approx(0.999, abs=1e-6)]  # bfloat16 would make it 1
    assert x0_hat.dtype == torch.bfloat16


# Guidance


class Labelled(nn.Module):
    """Linear in what it is told, so that guidance is arithmetic."""

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return x + cond[:, None]


def test_guidance_is_linear_in_its_two_terms() -> None:
    x, t, label = torch.randn(4, 3).double(), torch.tensor(0.5).double(), torch.tensor([0, 1, 2, 3])
    teacher = Prediction(Labelled(), Cosine(), "x0", classes=4)
    null, w = torch.tensor(9), 1.5
    guided = Guided(teacher, null, w)
    expected = (1 + w) * teacher(x, t, label) - w * teacher(x, t, null.expand(4))
    torch.testing.assert_close(guided(x, t, label), expected)
    torch.testing.assert_close(Guided(teacher, null, 0.0)(x, t, label), teacher(x, t, label))
    each = torch.tensor([0.0, 0.5, 1.0, 4.0]).double()
    by_row = Guided(Named(teacher), {"label": null})(x, t, {"label": label, "weight": each})
    for n in range(4):
        torch.testing.assert_close(
            by_row[n : n + 1], Guided(teacher, null, float(each[n]))(x[n : n + 1], t, label[n : n + 1])
        )


class Named:
    def __init__(self, teacher: Prediction) -> None:
        self.teacher = teacher

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        assert cond is not None and not isinstance(cond, Tensor)
        return self.teacher(x, t, cond["label"])


def test_guidance_comes_before_clipping() -> None:
    x, t, label = torch.zeros(2, 3), torch.tensor(0.5), torch.tensor([2, 4])
    guided = Guided(Prediction(Labelled(), Cosine(), clip=1.0), torch.tensor(3), 1.0)
    # Clipped terms would give 2 * 1 - 1; the guided value 2 * c - 3 is 1 and 5.
    torch.testing.assert_close(guided(x, t, torch.tensor([1, 4])), torch.tensor([[-1.0] * 3, [1.0] * 3]))
    with pytest.raises(ValueError, match="needs a condition"):
        guided(x, t)
    with pytest.raises(ValueError, match="no weight"):
        Guided(guided.denoiser, torch.tensor(3))(x, t, label)
    with pytest.raises(ValueError, match="must be alike"):
        Guided(guided.denoiser, {"text": torch.tensor(3)}, 1.0)(x, t, label)
    with pytest.raises(ValueError, match="at least 0"):
        Guided(guided.denoiser, torch.tensor(3), -1.0)


class Moves(TorchDispatchMode):
    """Counts copies from one device to another."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            self.count += args[0].device != made.device
        return made


def test_the_null_condition_is_copied_to_a_device_once_and_stays_what_it_is() -> None:
    null = {"label": torch.tensor(3)}
    guided = Guided(lambda x, t, cond: x + cond["label"][:, None], null, 1.0)
    fresh = vars(Guided(guided.denoiser, null, 1.0)).keys()
    x, t = (c.to("meta") for c in (torch.zeros(2, 3), torch.tensor(0.5)))
    cond = {"label": torch.tensor([1, 2]).to("meta")}
    counts = []
    for _ in range(3):
        with Moves() as moves:
            assert guided(x, t, cond).device.type == "meta"
        counts.append(moves.count)
    assert counts == [1, 0, 0]
    assert guided.null is null and vars(guided).keys() == fresh and not guided.state_dict()
    # A copy has its own, another null condition is looked up anew, and the first device still answers.
    twin = copy.deepcopy(guided)
    twin.null["label"].fill_(4)
    here = {"label": torch.tensor([1, 2])}
    assert guided(torch.zeros(2, 3), torch.tensor(0.5), here)[:, 0].tolist() == [2 * 1 - 3, 2 * 2 - 3]
    assert twin(torch.zeros(2, 3), torch.tensor(0.5), here)[:, 0].tolist() == [2 * 1 - 4, 2 * 2 - 4]
    guided.null = {"label": torch.tensor(5)}
    with Moves() as moves:
        guided(x, t, cond)
    assert moves.count == 1


def test_a_guided_denoiser_is_exported_as_it_is() -> None:
    guided = Guided(Prediction(Labelled(), Cosine()), torch.tensor(3), 1.0)
    x, t, label = torch.randn(2, 3), torch.rand(2), torch.tensor([1, 2])
    program = torch.export.export(guided, (x, t, label), strict=False)
    torch.testing.assert_close(program.module()(x, t, label), guided(x, t, label))


# Any callable is one


class Held:
    """A denoiser that is no module and holds some."""

    def __init__(self) -> None:
        self.net, self.scale, self.name = nn.Linear(2, 2), torch.ones(3), "held"

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return self.net(x_t)


def test_any_callable_is_a_denoiser() -> None:
    assert isinstance(lambda x_t, t, cond=None: x_t, Denoiser)


def test_the_modules_and_the_weights_of_any_denoiser_are_found() -> None:
    held, net = Held(), nn.Linear(2, 2)
    assert modules_of(net) == {"": net} and modules_of(held) == {"net.": held.net}
    assert modules_of(lambda x_t, t, cond=None: x_t) == {} and tensors_of(lambda x_t, t, cond=None: x_t) == {}
    assert tensors_of(net).keys() == {"weight", "bias"}
    assert tensors_of(held).keys() == {"scale", "net.weight", "net.bias"}


@pytest.mark.parametrize("guided", [False, True])
def test_a_denoiser_that_is_still_passes_gradients_to_the_state_and_none_to_its_weights(guided: bool) -> None:
    net = Prediction(Labelled(), Cosine())
    denoiser = Guided(net, torch.tensor(3), 1.0) if guided else net
    x, t, label = torch.randn(2, 3), torch.rand(2), torch.tensor([1, 2])
    states = x.clone().requires_grad_(), x.clone().requires_grad_()
    still(denoiser, states[0], t, label).sum().backward()
    assert all(p.grad is None and p.requires_grad for p in denoiser.parameters())
    answer = denoiser(states[1], t, label)
    answer.sum().backward()
    assert states[0].grad is not None and torch.equal(states[0].grad, states[1].grad)
    assert torch.equal(still(denoiser, x, t, label), answer)
    assert still(lambda x_t, t, cond=None: 2 * x_t, x, t).equal(2 * x)


def test_evaluation_gives_every_submodule_its_mode_back() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.Dropout())).train()
    net[1][0].eval()
    before = [m.training for m in net.modules()]
    with pytest.raises(KeyError), evaluating(net, other := nn.Dropout()):
        assert not other.training and not any(m.training for m in net.modules())
        raise KeyError
    assert [m.training for m in net.modules()] == before and other.training
