"""Batches on their way from the device to a shard: solved, copied, checked, written.

On a GPU nothing that starts a batch waits for it: kernels and copies are queued, the copies on a stream of their own
and into pinned memory, so that the device solves the next batch while the host waits for this one to land. A batch is
checked on the host: what is not finite, or has left the range of the storage dtype, is refused before a shard is
written. Shards are written by a thread, one at a time, while the next one is solved.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from dsno.condition import map_cond
from dsno.seeds import noise, seed_range
from dsno.solvers.run import SolverSampler
from dsno.trajectories.format import layout, rows_of, shard_count, write_shard
from dsno.trajectories.labels import Label, write_labels
from dsno.trajectories.manifest import TARGETS, Manifest, join

__all__ = ["Flight", "Writer", "flights", "landed"]

log = logging.getLogger(__name__)


@dataclass
class Flight:
    """A batch on its way from the device to its rows of a shard.

    Attributes:
        k: The number of the shard.
        shard: Its tensors, on the host.
        rows: The part of them that this batch fills, (B, ...).
        last: Whether it is the shard's last batch.
        times: The frames, (M,).
        outputs: What was solved, by name, where it was solved.
        held: Copies in pinned memory, as far as they are made.
        copied: Recorded behind the copies; None where nothing needs copying.
    """

    k: int
    shard: dict[str, Tensor]
    rows: dict[str, Tensor]
    last: bool
    times: Tensor
    outputs: dict[str, Tensor]
    held: dict[str, Tensor]
    copied: Any = None

    def land(self) -> None:
        """Wait for the copy, if it is still under way, and look at it.

        Raises:
            FloatingPointError: if something is not finite.
        """
        if self.copied is not None:
            self.copied.synchronize()
        for name, output in self.outputs.items():
            row = self.rows[name]
            row.copy_(self.held.get(name, output))
            # On the host, after the copy: no synchronisation of its own, and overflow of the storage dtype shows, too.
            if name in TARGETS and not bool((finite := row.isfinite().reshape(*row.shape[:2], -1).all(-1)).all()):
                _refuse(name, output, finite, self.rows["seeds"], self.times, row.dtype)
        self.outputs, self.held = {}, {}


def flights(
    manifest: Manifest,
    shards: Sequence[int],
    sampler: SolverSampler,
    label: Label | None,
    device: torch.device,
    channels_last: bool,
) -> Iterator[Flight]:
    """Start one batch after the other: nothing here waits for the device."""
    copier = torch.cuda.Stream(device) if device.type == "cuda" else None
    size = manifest["batch"]
    for k in shards:
        count = rows_of(manifest, k)
        shard = {name: torch.empty(shape, dtype=dtype) for name, (dtype, shape) in layout(manifest, k).items()}
        shard["seeds"].copy_(seed_range(manifest["first_seed"] + k * manifest["shard"], count))
        for start in range(0, count, size):
            rows = {name: x[start : start + size] for name, x in shard.items()}
            seeds = rows["seeds"]
            z = noise(seeds, rows["noise"].shape[1:], device=device).to(rows["noise"].dtype)
            x = z.float()
            if channels_last and x.ndim == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            cond = None if label is None else write_labels(label, rows)
            # From pinned memory a copy is queued like a kernel.
            cond = map_cond(lambda c: (c if copier is None else c.pin_memory()).to(device, non_blocking=True), cond)
            made = sampler(x, cond, seeds)
            outputs = {"noise": z}
            for name, output in (("x0", made.x0), ("state", made.x)):
                if name not in rows or output is None:
                    continue
                if output.shape != rows[name].shape:
                    expected, got = tuple(rows[name].shape), tuple(output.shape)
                    raise ValueError(f"expected {name} of shape {expected} from the sampler, got {got}")
                outputs[name] = output
            flight = Flight(k, shard, rows, start + size >= count, made.t, outputs, {})
            if copier is not None:
                _copy(flight, copier, device)
            yield flight


def _copy(flight: Flight, copier: torch.cuda.Stream, device: torch.device) -> None:
    """Queue the copies of a batch into pinned memory, beside the work of the next one."""
    copier.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(copier):
        for name, output in flight.outputs.items():
            row = flight.rows[name]
            stored = output.to(row.dtype).contiguous()
            flight.held[name] = torch.empty(row.shape, dtype=row.dtype, pin_memory=True)
            flight.held[name].copy_(stored, non_blocking=True)
            output.record_stream(copier)
        flight.copied = copier.record_event()


def landed(flights: Iterable[Flight], ahead: int) -> Iterator[Flight]:
    """The flights in their order, each when `ahead` more have been started."""
    aloft: deque[Flight] = deque()
    for flight in flights:
        aloft.append(flight)
        if len(aloft) > ahead:
            yield aloft.popleft()
    yield from aloft


class Writer:
    """Writes shards in a thread, one at a time; an error is raised at the next call."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._pool = ThreadPoolExecutor(1, "dsno-write")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if error is None and self._writing is not None:
            self._writing.result()

    def check(self) -> None:
        """Raise what went wrong, if something has."""
        if self._writing is not None and self._writing.done():
            self._writing.result()

    def write(self, k: int, tensors: Mapping[str, Tensor]) -> None:
        """Write shard `k` as soon as the one before is written."""
        if self._writing is not None:
            self._writing.result()
        self._writing = self._pool.submit(self._write, k, tensors)

    def _write(self, k: int, tensors: Mapping[str, Tensor]) -> None:
        write_shard(self.folder, self.manifest, k, tensors)
        log.info("%s: wrote shard %d of %d", self.folder, k + 1, shard_count(self.manifest))


def _refuse(name: str, output: Tensor, finite: Tensor, seeds: Tensor, times: Tensor, dtype: torch.dtype) -> None:
    """Name the first frame that is not `finite` (B, M), and the seeds for which it is not."""
    m = int((~finite).any(0).nonzero()[0])
    bad = [str(seed) for seed in seeds[~finite[:, m]].tolist()]
    why = "is not finite: the denoiser or the solver diverged"
    if bool(output.isfinite().all()):
        why = f"(up to {float(output.abs().max()):.3g}) exceeds the range of {dtype}: store it with dtype=torch.float32"
    raise FloatingPointError(
        f"{name} at t = {float(times[m]):g} of seeds {join(bad, ', ')} {why}; no shard was written"
    )
