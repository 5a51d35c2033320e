"""What a call costs: rounds and rows, derivatives, FLOPs, seconds, bytes.

A *round* is a network call, however many rows it has: rounds are serial, and are what one sample waits for. A *row*
is one evaluation of the network, so rows are the arithmetic. A parallel sampler trades one for the other, hence both
are counted. Derivatives are counted in rows, too: a row that is differentiated, backwards (`vjps`) or forwards
(`jvps`), is evaluated as well, so it is one of `rows` and of its own count. A vjp costs about two evaluations more and
keeps every layer's activations, a jvp about one more and keeps none.
"""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from dsno.condition import Cond
from dsno.denoise import Around, Denoiser, Prediction, at_one_time

__all__ = [
    "Cost",
    "Live",
    "Meter",
    "Metered",
    "Throughput",
    "counting",
    "evaluations",
    "flops",
    "latency",
    "throughput",
    "timed",
    "vjp",
]

T = TypeVar("T")


class Metered(nn.Module, ABC):
    """A denoiser that answers as another does and counts what that costs.

    `rounds` are its calls, and `rows` the rows of the network in them; `vjps` and `jvps` those of its rows that were
    differentiated, by whoever differentiates it (`vjp`). A guided denoiser evaluates two rows for each of the batch.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.evaluations = evaluations(denoiser)
        self.reset()

    def reset(self) -> None:
        """Count from zero again."""
        self.rounds = self.rows = self.vjps = self.jvps = 0

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Cond | None = None) -> Tensor:
        self.rounds += 1
        self.rows += len(x_t) * self.evaluations
        return self.answer(x_t, t, cond)

    @abstractmethod
    def answer(self, x_t: Tensor, t: Tensor | float, cond: Cond | None) -> Tensor:
        """What `denoiser` says of the states, asked here or elsewhere, at once or in parts."""


def evaluations(denoiser: Denoiser) -> int:
    """Rows of the network for each row of a call: two of a guided denoiser, one of others."""
    return denoiser.evaluations if isinstance(denoiser, Around | Metered) else 1


class Meter(Metered):
    """Counts what a denoiser costs, asked as it is; `t` may be a number, the time of all rows (`at_one_time`)."""

    def answer(self, x_t: Tensor, t: Tensor | float, cond: Cond | None) -> Tensor:
        return at_one_time(self.denoiser)(x_t, t, cond) if isinstance(t, float) else self.denoiser(x_t, t, cond)


@dataclass(frozen=True)
class Cost:
    """What a run cost.

    Attributes:
        rounds: Calls of the denoiser, one after another.
        rows: Its evaluations, of all samples together.
        vjps: Those of the rows that were differentiated backwards.
        jvps: Those that were differentiated forwards.
        gradients: Gradients of anything but the denoiser, in rows: of a guide, or through a decoder.
        seconds: Of the clock, the accelerator's queue included.
        peak: Bytes at the worst moment, where they were measured (`Live`).
    """

    rounds: int = 0
    rows: int = 0
    vjps: int = 0
    jvps: int = 0
    gradients: int = 0
    seconds: float = 0.0
    peak: int | None = None

    def __add__(self, other: Cost) -> Cost:
        """Of one run after another: sums, and the higher peak of those that were measured."""
        peaks = [peak for peak in (self.peak, other.peak) if peak is not None]
        names = ("rounds", "rows", "vjps", "jvps", "gradients", "seconds")
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Cost(**sums, peak=max(peaks, default=None))


def vjp(
    meter: Metered, x_t: Tensor, t: Tensor | float, cond: Cond | None = None
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    r"""$\hat x_0 = D(x_t, t)$, (B, *shape) without a graph, and its pullback $v \mapsto J^\top v$, J the Jacobian in
    $x_t$.

    The pullback takes and returns (B, *shape), and can be called again; the activations live as long as it does. Each
    of its calls is counted in `meter.vjps`.
    """
    with torch.enable_grad():
        x = x_t.detach().requires_grad_()
        x0_hat = meter(x, t, cond)

    def pull(v: Tensor) -> Tensor:
        meter.vjps += len(x) * meter.evaluations
        return torch.autograd.grad(x0_hat, x, v, retain_graph=True)[0]

    return x0_hat.detach(), pull


@contextmanager
def counting(model: object, tell: Callable[[int], None]) -> Iterator[None]:
    """Tell how often the network of a denoiser, or a student, was called inside, after each of its calls.

    What `tell` raises ends the run in which the network was called.
    """
    while isinstance(model, Around):
        model = model.denoiser
    net = model.net if isinstance(model, Prediction) else model
    done = 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        tell(done)

    handle = net.register_forward_hook(count) if isinstance(net, nn.Module) else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def flops(fn: Callable[..., object], *args: object) -> int:
    """Floating-point operations of `fn(*args)`, two per multiply-add.

    Matrix products, convolutions and attention are counted, elementwise work is not (`torch.utils.flop_counter`); a
    closed-form teacher therefore counts close to 0.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        fn(*args)
    return int(counter.get_total_flops())


def timed(fn: Callable[..., T], *args: object) -> tuple[T, float]:
    """`fn(*args)` and the seconds it took, the accelerator's queue included."""
    _synchronize()
    start = time.perf_counter()
    result = fn(*args)
    _synchronize()
    return result, time.perf_counter() - start


def latency(fn: Callable[..., object], *args: object, repeats: int = 10, warmup: int = 2) -> float:
    """Median seconds of `fn(*args)` over `repeats` calls after `warmup` calls, the accelerator's queue included.

    Raises:
        ValueError: if `repeats` is not positive.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    for _ in range(warmup):
        fn(*args)
    return statistics.median(timed(fn, *args)[1] for _ in range(repeats))


class Throughput(NamedTuple):
    """The best rate found and the batch that reached it."""

    samples_per_second: float
    batch: int


def throughput(fn: Callable[[int], object], limit: int = 4096, repeats: int = 3, gain: float = 0.05) -> Throughput:
    """Samples per second at a saturating batch, where `fn(B)` produces B samples.

    The batch doubles from 1 until two doublings in a row raise the best rate (each a median, after one warm-up) by less
    than `gain`, memory runs out, or `limit` is reached.

    Raises:
        ValueError: if `limit` or `repeats` is not positive.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    best, batch, misses = Throughput(0.0, 0), 1, 0
    while batch <= limit and misses < 2:
        try:
            rate = batch / latency(fn, batch, repeats=repeats, warmup=1)
        except torch.OutOfMemoryError:
            if not best.batch:
                raise
            break
        misses = misses + 1 if rate < best.samples_per_second * (1 + gain) else 0
        best = max(best, Throughput(rate, batch))
        batch *= 2
    return best


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors made inside it, `peak` at the worst moment; on any device, `meta` too."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        # Storages and not tensors: views of one take no room of their own.
        self._bytes = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = func(*args, **(kwargs or {}))
        for storage in (x.untyped_storage() for x in tree_leaves(made) if isinstance(x, Tensor)):
            # What lies in an argument's storage was counted where that was made, or is a weight.
            if storage._cdata not in given:
                self._bytes[storage] = storage.nbytes()
        self.peak = max(self.peak, sum(self._bytes.values()))
        return made


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
