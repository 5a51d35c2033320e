"""A call on several devices, or in chunks, is the call: the same rows in the same order, and every network call
counted."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from dsno.condition import Cond
from dsno.cost import Live, Meter
from dsno.denoise import Guided, Prediction
from dsno.grids import uniform
from dsno.parallel.devices import Replicas
from dsno.parallel.rounds import Rounds
from dsno.schedule import Cosine
from dsno.solvers.chain import Chain
from dsno.solvers.run import SolverSampler
from dsno.teachers.closed import GaussianMixture
from dsno.trajectories.manifest import describe

CPUS = ["cpu", "cpu", "cpu"]


class Net(nn.Module):
    """A small network that reads its state, its time and, named or not, its condition."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
        self.drop, self.table = nn.Dropout(dropout), nn.Embedding(5, 8)
        self.register_buffer("offset", torch.ones(8))
        self.double()

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        h = self.first(x) + (t[:, None] * self.offset).reshape(-1, 8, 1, 1)
        if cond is not None:
            label = cond if isinstance(cond, Tensor) else cond["label"]
            h = h + self.table(label)[:, :, None, None]
        if isinstance(cond, dict):
            h = h + cond["text"].mean((1, 2)).reshape(-1, 1, 1, 1)
        return self.last(self.drop(torch.tanh(h)))


def teacher(dropout: float = 0.0) -> Prediction:
    return Prediction(Net(dropout), Cosine(), "v", shape=(2, 4, 4), classes=4).eval()


def question(rows: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 2, 4, 4, dtype=torch.float64), torch.rand(rows, dtype=torch.float64)


@pytest.fixture
def still() -> Iterator[None]:
    with torch.no_grad():
        yield


CONDITIONS: dict[str, Callable[[int], Cond | None]] = {
    "none": lambda B: None,
    "label": lambda B: torch.arange(B) % 4,
    "named": lambda B: {"label": torch.arange(B) % 4, "text": torch.randn(B, 3, 2, dtype=torch.float64)},
}


@pytest.mark.parametrize("cond", CONDITIONS.values(), ids=CONDITIONS.keys())
@pytest.mark.parametrize("each", [True, False], ids=["times", "time"])
@pytest.mark.parametrize("limit", [None, 1, 2, 100])
@pytest.mark.parametrize("devices", [["cpu"], CPUS], ids=len)
def test_a_split_call_is_the_call(
    devices: list[str], limit: int | None, each: bool, cond: Callable[[int], Cond | None]
) -> None:
    plain = teacher()
    spread = Replicas(plain, devices, limit)
    for rows in (7, 1, 2):
        (x_t, t), condition = question(rows), cond(rows)
        t = t if each else t[0]
        x0_hat = spread(x_t, t, condition)
        assert x0_hat.shape == x_t.shape and torch.allclose(x0_hat, plain(x_t, t, condition), rtol=0, atol=1e-12)


def test_calls_are_what_a_round_was_cut_into() -> None:
    # Shares of 10 rows over 3 devices: 3, 3 and 4, in chunks of at most 2.
    spread = Replicas(teacher(), CPUS, limit=2)
    spread(*question(10))
    assert (spread.rounds, spread.rows, spread.calls) == (1, 10, 6)
    spread(*question(2))
    assert (spread.rounds, spread.rows, spread.calls) == (2, 12, 8)
    spread.reset()
    assert (spread.rounds, spread.rows, spread.calls) == (0, 0, 0)


def test_no_rows_are_no_rows() -> None:
    assert Replicas(teacher(), CPUS, memory=1e6)(*question(0)).shape == (0, 2, 4, 4)


def test_copies_have_weights_of_their_own_and_the_first_is_the_teacher() -> None:
    plain = teacher()
    spread = Replicas(plain, CPUS)
    x_t, t = question(6)
    before = plain(x_t, t)
    with torch.no_grad():
        for p in plain.parameters():
            p.zero_()
        plain.net.offset.zero_()
    after = spread(x_t, t)
    assert torch.equal(after[:2], plain(x_t[:2], t[:2])) and not torch.allclose(after[:2], before[:2])
    assert torch.allclose(after[2:], before[2:], rtol=0, atol=1e-12)


def test_a_copy_keeps_its_ties_and_what_is_trained() -> None:
    plain = teacher()
    plain.net.last.bias = nn.Parameter(torch.zeros(2, dtype=torch.float64), requires_grad=False)
    plain.net.again = plain.net.last
    copied = Replicas(plain, ["cpu", "cpu"])._replicas[1]
    assert isinstance(copied, Prediction) and copied.net.again is copied.net.last is not plain.net.last
    assert {n: p.requires_grad for n, p in copied.named_parameters()} == {
        n: p.requires_grad for n, p in plain.named_parameters()
    }
    assert all(torch.equal(v, copied.state_dict()[k]) for k, v in plain.state_dict().items())


def test_gradients_flow_through_a_split_call() -> None:
    plain = teacher()
    (x_t, t), grads = question(5), []
    for denoiser in (plain, Replicas(plain, CPUS, limit=1)):
        x = x_t.clone().requires_grad_()
        denoiser(x, t).square().sum().backward()
        grads.append(x.grad)
    assert torch.allclose(*grads, rtol=0, atol=1e-12)


@pytest.mark.parametrize("limit", [None, 2])
def test_a_sampler_takes_it_for_the_teacher(limit: int | None) -> None:
    mixture = GaussianMixture(Cosine(), torch.randn(3, 4, dtype=torch.float64), 0.3, labels=[0, 1, 1])
    z, cond = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1])
    spread = Replicas(mixture, CPUS, limit)
    made, plain = (SolverSampler(d, Cosine(), uniform(6))(z, cond) for d in (spread, mixture))
    assert torch.allclose(made.x, plain.x, rtol=0, atol=1e-12)
    assert (made.nfe, made.rounds) == (plain.nfe, plain.rounds) == (6, 6)
    assert spread.calls == 6 * 3 and spread.rows == 30


def test_guidance_inside_and_outside() -> None:
    plain = teacher()
    guided = Guided(plain, torch.tensor(4), 1.5)
    x_t, t = question(5)
    label = torch.arange(5) % 4
    inside, outside = Replicas(guided, CPUS), Guided(Replicas(plain, CPUS, limit=3), torch.tensor(4), 1.5)
    for denoiser in (inside, outside):
        assert torch.allclose(denoiser(x_t, t, label), guided(x_t, t, label), rtol=0, atol=1e-12)
        # Two rows of the network for each, wherever the guidance is.
        meter = Meter(denoiser)
        meter(x_t, t, label)
        assert meter.rows == 10
    assert inside.evaluations == 2 and (inside.rounds, inside.rows, inside.calls) == (2, 20, 6)


def test_a_set_records_the_teacher_itself() -> None:
    plain = teacher()
    assert describe(Replicas(plain, CPUS), {}) == describe(plain, {})


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: Replicas(d, CPUS),
        lambda d: Guided(Replicas(d, CPUS), torch.tensor(4), 1.0),
        lambda d: Replicas(Guided(d, torch.tensor(4), 1.0), CPUS),
        lambda d: Guided(Meter(d), torch.tensor(4), 1.0),
    ],
    ids=["alone", "guidance outside", "guidance inside", "metered"],
)
def test_random_layers_are_found_in_it(wrap: Callable[[Prediction], nn.Module]) -> None:
    chain, x = Chain(Cosine(), uniform(4)), question(2)[0]
    label = torch.tensor([0, 1])
    wrong = teacher(0.5)
    denoiser = wrap(wrong)
    assert Rounds(denoiser, chain, label, x).unproved
    wrong.train()
    with pytest.raises(ValueError, match=r"net\.drop \(Dropout\) of the denoiser is in training mode"):
        Rounds(denoiser, chain, label, x)


def test_copies_are_in_evaluation_mode() -> None:
    spread = Replicas(teacher(0.5).train(), CPUS)
    x_t, t = question(9)
    first, again = spread(x_t, t), spread(x_t, t)
    assert torch.equal(first[3:], again[3:]) and not torch.equal(first[:3], again[:3])


def test_a_round_is_one_call_however_it_is_cut(still: None) -> None:
    chain = Chain(Cosine(), uniform(4))
    plain, x = teacher(), question(3)[0]
    spread = Replicas(plain, CPUS, limit=2)
    n, sample = torch.arange(4).repeat(3), torch.arange(3).repeat_interleave(4)
    answers = []
    for denoiser in (plain, spread):
        rounds = Rounds(denoiser, chain, None, x)
        # 13 rows: the first call asks one question twice.
        answers.append(rounds(x[sample], n, sample))
        assert rounds.calls == 1 and rounds.rows.tolist() == [5, 4, 4]
    assert torch.allclose(*answers, rtol=0, atol=1e-12) and spread.calls == 2 + 2 + 3


# Memory


class Small(nn.Module):
    """A device that holds some rows and no more."""

    def __init__(self, holds: int) -> None:
        super().__init__()
        self.holds, self.asked = holds, list[int]()

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        self.asked.append(len(x_t))
        if len(x_t) > self.holds:
            raise torch.OutOfMemoryError(f"{len(x_t)} rows")
        return x_t + t.reshape(-1, 1)


@pytest.mark.parametrize("limit", [None, 9])
@pytest.mark.parametrize("each", [True, False], ids=["times", "time"])
def test_out_of_memory_halves_the_chunks(limit: int | None, each: bool) -> None:
    small, x_t, t = Small(3), torch.randn(11, 2), torch.rand(11)
    spread = Replicas(small, ["cpu"], limit)
    t = t if each else t[0]
    assert torch.equal(spread(x_t, t), x_t + t.reshape(-1, 1))
    assert spread.limit == 2 and spread.calls == 6
    # It remembers: what did not fit is not tried again.
    small.asked.clear()
    spread(x_t, t)
    assert max(small.asked) == 2 and spread.calls == 12


def test_one_row_too_much_is_explained() -> None:
    spread = Replicas(Small(0), ["cpu"])
    with pytest.raises(torch.OutOfMemoryError, match=r"cpu cannot hold one row of shape \(2,\): use half precision"):
        spread(torch.randn(8, 2), torch.rand(8))
    with pytest.raises(torch.OutOfMemoryError, match="cannot hold one row"):
        Replicas(Small(0), ["cpu"], memory=1e9)(torch.randn(8, 2), torch.rand(8))


def conv(widths: tuple[int, ...] = (1, 8, 16, 1)) -> nn.Sequential:
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_peak_is_that_of_a_network_done_by_hand(rows: int, device: str) -> None:
    net, x = conv().to(device), torch.zeros(rows, 1, 8, 8, device=device)
    # Maps of 8 x 8 floats: the worst moment has the 16 of the second layer twice, before and after its ReLU; where the
    # backward pass needs them, the 8 of the first ReLU as well.
    for grad, maps in ((False, 16 + 16), (True, 8 + 16 + 16)):
        with torch.set_grad_enabled(grad), Live() as live:
            net(x)
        assert live.peak == rows * maps * 64 * 4


def test_views_and_weights_take_no_memory() -> None:
    linear, x = nn.Linear(6, 6), torch.zeros(3, 6)
    with torch.no_grad(), Live() as live:
        linear.weight.t()[:2]
        x.reshape(6, 3).unsqueeze(0)
        made = x + 1
        made.view(-1)[3:].mul_(2)
    assert live.peak == 18 * 4


class Flat(nn.Module):
    """The network above, of one channel and any time."""

    def __init__(self) -> None:
        super().__init__()
        self.net = conv()

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return self.net(x_t)


@pytest.mark.parametrize("devices", [["cpu"], CPUS], ids=len)
def test_memory_gives_the_limit(devices: list[str], still: None) -> None:
    row = 32 * 64 * 4
    spread = Replicas(Flat(), devices, memory=5.5 * row)
    x, t = torch.randn(32, 1, 8, 8), torch.rand(())
    assert torch.allclose(spread(x, t), spread.denoiser(x, t), atol=1e-6)
    # Two calls to measure; then 32 rows on one device by fives, or 10, 11 and 11 on three.
    assert spread.limit == 5 and spread.calls == 2 + (7 if devices == ["cpu"] else 2 + 3 + 3)
    assert (spread.rounds, spread.rows) == (1, 32)
    with Live() as live:
        spread(x[:5], t)
    assert live.peak <= spread.memory


def test_memory_for_no_row_is_refused(still: None) -> None:
    with pytest.raises(ValueError, match=r"memory = 8000 bytes do not hold one row, which takes 8192: allow more"):
        Replicas(Flat(), ["cpu"], memory=8000)(torch.randn(3, 1, 8, 8), torch.rand(3))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"devices": []}, "a denoiser needs a device: give at least one, or None"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"memory": 0}, "memory must be at least 1, got 0"),
        ({"limit": 4, "memory": 1e9}, r"memory = 1e\+09 gives the limit: leave out limit = 4"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Replicas(teacher(), **options)


def test_a_denoiser_on_two_devices_is_refused() -> None:
    split = teacher()
    split.net.last.to("meta")
    with pytest.raises(ValueError, match=r"on 2 devices itself \(cpu, meta\): use it as it is, or move it to one"):
        Replicas(split, CPUS)


def test_by_default_it_takes_what_there_is() -> None:
    devices = Replicas(teacher()).devices
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert kind is not None and {d.type for d in devices} == {kind.type}
    assert len(devices) == max(torch.accelerator.device_count(), 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_accelerators() -> None:
    plain = teacher()
    (x_t, t), label = question(9), torch.arange(9) % 4
    expected = plain(x_t, t, label)
    every = [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    for devices in (None, every, ["cpu", *every], ["cuda", "cuda"]):
        spread = Replicas(plain, devices, limit=2)
        assert torch.allclose(spread(x_t, t, label), expected, rtol=0, atol=1e-10)
        assert spread(x_t.cuda(), t.cuda(), label).device.type == "cuda"
