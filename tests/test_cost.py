"""Costs are counted exactly where they can be, and timed with a clock that the test turns."""

import pytest
import torch
from torch import Tensor, nn

from dsno.condition import Cond
from dsno.cost import Cost, Live, Meter, counting, flops, latency, throughput, timed, vjp
from dsno.denoise import Guided, Prediction
from dsno.schedule import Cosine


class Told(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * t.reshape(-1, 1)


def half(x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
    return x_t / 2


def test_a_meter_counts_calls_and_rows_and_changes_nothing() -> None:
    meter = Meter(half)
    for B in (4, 1, 7):
        x = torch.randn(B, 3)
        assert torch.equal(meter(x, torch.tensor(0.5)), half(x, torch.tensor(0.5)))
    assert (meter.rounds, meter.rows) == (3, 12)
    meter.reset()
    assert (meter.rounds, meter.rows) == (0, 0)


def test_guidance_costs_two_rows_for_each_however_often_it_is_measured() -> None:
    x, t, label = torch.randn(4, 3), torch.tensor(0.5), torch.tensor([0, 1, 2, 3])
    guided = Guided(half, torch.tensor(9), 1.5)
    inner, outer = Meter(guided), Meter(Meter(guided))
    for meter in (inner, outer):
        meter(x, t, label)
        assert (meter.rounds, meter.rows) == (1, 8)


def test_a_pullback_is_counted_whenever_it_is_called_and_leaves_no_graph() -> None:
    meter = Meter(lambda x, t, cond=None: x**3 * t)
    x, v = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    with torch.no_grad():
        x0_hat, pull = vjp(meter, x, torch.tensor(0.5))
        assert (meter.rounds, meter.rows, meter.vjps) == (1, 2, 0) and not x0_hat.requires_grad
        assert torch.equal(pull(v), 1.5 * x**2 * v) and torch.equal(pull(2 * v), 3 * x**2 * v)
    assert (meter.rounds, meter.rows, meter.vjps, meter.jvps) == (1, 2, 4, 0)
    guided = Meter(Guided(half, torch.tensor(9), 1.5))
    vjp(guided, x, torch.tensor(0.5), torch.tensor([0, 1]))[1](v)
    assert (guided.rows, guided.vjps) == (4, 4)
    meter.reset()
    assert (meter.rounds, meter.rows, meter.vjps, meter.jvps) == (0, 0, 0, 0)


def test_costs_add_up_and_the_higher_peak_stays() -> None:
    one, other = Cost(1, 2, 3, 4, 5, 0.5, None), Cost(10, 20, 30, 40, 50, 1.0, 7)
    assert one + other == Cost(11, 22, 33, 44, 55, 1.5, 7) and (one + one).peak is None
    assert (other + Cost(peak=9)).peak == 9


def test_a_meter_takes_one_time_of_all_rows_as_a_number() -> None:
    x = torch.randn(3, 2)
    net = Prediction(Told(), Cosine(), "v")
    for denoiser in (net, lambda x, t, cond=None: x * t.reshape(-1, 1)):
        assert torch.allclose(Meter(denoiser)(x, 0.3), Meter(denoiser)(x, torch.full((3,), 0.3)))


def test_calls_of_a_network_are_told_and_what_is_raised_then_ends_the_run() -> None:
    net = nn.Identity()
    guided = Guided(Prediction(net, Cosine(), "x0", shape=(2,), classes=3), torch.tensor(2), 1.0)
    told: list[int] = []

    def tell(done: int) -> None:
        told.append(done)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), counting(guided, tell):
        for _ in range(5):
            net(torch.zeros(1))
    net(torch.zeros(1))
    assert told == [1, 2, 3]
    with counting(lambda x_t, t, cond: x_t, tell):
        """What is no network has no calls to count."""


def test_flops_of_known_layers() -> None:
    assert flops(nn.Linear(30, 20), torch.randn(7, 30)) == 2 * 7 * 30 * 20
    assert flops(nn.Conv2d(3, 5, 3, padding=1), torch.randn(2, 3, 8, 8)) == 2 * 2 * 64 * 3 * 9 * 5
    assert flops(torch.add, torch.ones(3), torch.ones(3)) == 0


def test_latency_is_a_median_after_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = iter([0.0, 1.0, 10.0, 13.0, 20.0, 22.0]), []
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert latency(calls.append, 1, repeats=3, warmup=2) == 2.0
    assert len(calls) == 5
    with pytest.raises(ValueError, match="repeats"):
        latency(calls.append, 1, repeats=0)


def test_timed_returns_the_result() -> None:
    result, seconds = timed(lambda x: x + 1, 1)
    assert result == 2 and seconds >= 0


def test_throughput_stops_where_it_saturates(monkeypatch: pytest.MonkeyPatch) -> None:
    now, batches = [0.0], []

    def work(batch: int) -> None:
        batches.append(batch)
        now[0] += 1.0 + max(0, batch - 8)  # free up to 8 rows, then linear

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    rate, batch = throughput(work)
    assert (rate, batch) == (8.0, 8)
    assert max(batches) == 32
    assert throughput(work, limit=2) == (2.0, 2)
    with pytest.raises(ValueError, match="limit"):
        throughput(work, limit=0)


def test_throughput_stops_where_memory_does(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def work(batch: int) -> None:
        if batch > 4:
            raise torch.OutOfMemoryError
        now[0] += 1.0

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    assert throughput(work) == (4.0, 4)
    with pytest.raises(torch.OutOfMemoryError):
        throughput(lambda batch: work(9))


def test_bytes_are_those_of_the_worst_moment_on_any_device() -> None:
    with Live() as live:
        for _ in range(3):
            a = torch.zeros(100, device="meta")
            del a
        b = torch.zeros(10, device="meta")
        c = b.view(2, 5).t() + 1  # a view is no copy
        del b, c
        torch.zeros(60, dtype=torch.float64, device="meta")
    assert live.peak == max(4 * 100, 4 * 10 * 2, 8 * 60)
