"""What a call costs: rounds and rows, FLOPs, seconds, bytes.

A *round* is a network call, however many rows it has: rounds are serial, and are what one sample waits for. A *row*
is one evaluation of the network, so rows are the arithmetic. A parallel sampler trades one for the other, hence both
are counted.
"""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from dsno.condition import Cond
from dsno.denoise import Around, Denoiser

__all__ = ["Live", "Meter", "Metered", "Throughput", "evaluations", "flops", "latency", "throughput", "timed"]

T = TypeVar("T")


class Metered(nn.Module, ABC):
    """A denoiser that answers as another does and counts what that costs.

    `rounds` are its calls, and `rows` the rows of the network in them. A guided denoiser evaluates two rows for each
    of the batch.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.evaluations = evaluations(denoiser)
        self.reset()

    def reset(self) -> None:
        """Count from zero again."""
        self.rounds = self.rows = 0

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        self.rounds += 1
        self.rows += len(x_t) * self.evaluations
        return self.answer(x_t, t, cond)

    @abstractmethod
    def answer(self, x_t: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """What `denoiser` says of the states, asked here or elsewhere, at once or in parts."""


def evaluations(denoiser: Denoiser) -> int:
    """Rows of the network for each row of a call: two of a guided denoiser, one of others."""
    return denoiser.evaluations if isinstance(denoiser, Around | Metered) else 1


class Meter(Metered):
    """Counts what a denoiser costs, asked as it is."""

    def answer(self, x_t: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        return self.denoiser(x_t, t, cond)


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
