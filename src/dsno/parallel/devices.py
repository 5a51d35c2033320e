r"""Several devices and little memory: one batched call as many network calls.

A round of an exact sampler is one call of many rows, N times the batch at worst. Split over R devices that hold the
same weights, and run in chunks of at most L rows where memory is short, a call of B rows takes

$$ \sum_{r=1}^{R} \Big\lceil \frac{B_r}{L} \Big\rceil \ \text{network calls}, \qquad
   B_1 + \dots + B_R = B, \quad |B_r - B/R| < 1, $$

of which those of one device follow each other. A round is one call still, so its serial cost is counted apart, in
`Replicas.calls`.

How many rows fit into a given memory is measured before the first call. The bytes alive at the worst moment of a call
of n rows are $f + n a$; calls of one and of two rows give $f$ and $a$, and
$L = \lfloor (\mathrm{memory} - f) / a \rfloor$.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dsno.condition import Cond, map_cond
from dsno.cost import Live, Metered
from dsno.denoise import Denoiser, each_row, modules_of

__all__ = ["Replicas"]

Device = torch.device | str


class Replicas(Metered):
    """A denoiser on several devices, called like one: rows are split over copies of it, and come back in order.

    Whatever takes a denoiser takes one of these. Guidance goes inside, `Replicas(Guided(teacher, ...))`: outside it, a
    teacher that clips does so before the guidance.

    Arguments:
        denoiser: The denoiser to copy. It serves the first device that it is on itself; the others get deep copies in
            evaluation mode, which later changes of its weights do not reach. What holds no module, as closed forms do,
            is called with tensors of each device.
        devices: Where; every accelerator there is by default, else the CPU. One process of several
            (`accelerate launch`) gives its own.
        limit: The most rows of one network call, a guided denoiser's pairs counted once; None is no limit.
        memory: The bytes on a device that one network call may take beside the weights; gives the `limit` before the
            first call, for samples of its shape. Workspace of the kernels is not counted.

    Where a device runs out of memory all the same, `limit` is halved for good, and the chunk tried again.

    Attributes:
        rounds: Calls.
        rows: Rows, twice if guided.
        calls: Network calls that these took: chunks on all devices, and the two that measured memory.

    Raises:
        ValueError: for no devices, limits that are not positive, two at once, or a denoiser that is on several devices
            itself; when called, if not even one row fits into the memory.
        torch.OutOfMemoryError: when called, if a device cannot hold one row.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        devices: Sequence[Device] | None = None,
        limit: int | None = None,
        memory: float | None = None,
    ) -> None:
        for name, value, least in (("limit", limit, 1), ("memory", memory, 1)):
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if limit is not None and memory is not None:
            raise ValueError(f"memory = {memory:g} gives the limit: leave out limit = {limit}, or memory")
        super().__init__(denoiser)
        # "cuda" is the current one of several: where a tensor ends up says which.
        found = _accelerators() if devices is None else [torch.empty(0, device=d).device for d in devices]
        if not found:
            raise ValueError("a denoiser needs a device: give at least one, or None for every accelerator there is")
        self.devices, self.limit, self.memory = found, limit, memory
        self._replicas = _replicas(denoiser, found)

    def reset(self) -> None:
        super().reset()
        self.calls = 0

    def answer(self, x_t: Tensor, t: Tensor | float, cond: Cond | None) -> Tensor:
        t = each_row(t, x_t) if isinstance(t, float) else t
        if self.memory is not None and self.limit is None and len(x_t):
            self.limit = self._rows_within(self.memory, x_t, t, cond)
        made: list[tuple[int, Tensor]] = []
        todo = deque(enumerate(_shares(len(x_t), len(self.devices))))
        while todo:
            n, rows = todo.popleft()
            if self.limit is not None and len(rows) > self.limit:
                # The rest waits for its turn behind the other devices, which are to work meanwhile.
                todo.append((n, rows[self.limit :]))
                rows = rows[: self.limit]
            try:
                made.append((rows.start, self._ask(n, *_picked(rows, x_t, t, cond))))
            except torch.OutOfMemoryError as error:
                if len(rows) == 1:
                    raise torch.OutOfMemoryError(
                        f"{self.devices[n]} cannot hold one row of shape {tuple(x_t.shape[1:])}: use half precision, "
                        "free memory there, or leave it out of `devices`"
                    ) from error
                self.limit = len(rows) // 2
                todo.appendleft((n, rows))
        made.sort(key=lambda answer: answer[0])
        parts = [_moved(x0_hat, x_t.device) for _, x0_hat in made]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _ask(self, n: int, x_t: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """One network call, on device n."""
        device = self.devices[n]
        cond = map_cond(lambda c: _moved(c, device), cond)
        # Kernels of other compilers start on the current device, wherever their arguments are.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            x0_hat = self._replicas[n](_moved(x_t, device), _moved(t, device), cond)
        self.calls += 1
        return x0_hat

    def _rows_within(self, memory: float, x_t: Tensor, t: Tensor, cond: Cond | None) -> int:
        peaks = []
        for rows in (1, 2):
            first = _picked([0] * rows, x_t, t, cond)
            try:
                with Live() as live:
                    self._ask(0, *first)
            except torch.OutOfMemoryError:
                return 1  # Where even that is too much, the call itself says so.
            peaks.append(live.peak)
        row = max(peaks[1] - peaks[0], 1)
        limit = int((memory - peaks[0]) // row) + 1
        if limit < 1:
            raise ValueError(f"memory = {memory:g} bytes do not hold one row, which takes {peaks[0]}: allow more")
        return limit


def _moved(x: Tensor, device: torch.device) -> Tensor:
    # A copy to the host that nobody waits for may be read before it has arrived.
    return x.to(device, non_blocking=device.type != "cpu")


def _accelerators() -> list[torch.device]:
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind is None:
        return [torch.device("cpu")]
    return [torch.device(kind.type, n) for n in range(torch.accelerator.device_count())]


def _replicas(denoiser: Denoiser, devices: Sequence[torch.device]) -> list[Denoiser]:
    held = {p.device for module in modules_of(denoiser).values() for p in module.parameters()}
    if len(held) > 1:
        raise ValueError(
            f"the denoiser is on {len(held)} devices itself ({', '.join(sorted(map(str, held)))}): use it as it is, or "
            "move it to one"
        )
    at = next(iter(held), devices[0])
    own = devices.index(at) if at in devices else -1
    return [denoiser if n == own else _copied(denoiser, device) for n, device in enumerate(devices)]


def _copied(denoiser: Denoiser, device: torch.device) -> Denoiser:
    # A copy that is moved afterwards would for a moment take the weights' room twice where they are.
    weights = [w for m in modules_of(denoiser).values() for w in (*m.parameters(), *m.buffers())]
    there: dict[int, Any] = {id(w): w.detach().to(device, copy=True) for w in weights if type(w) is Tensor}
    for w in weights:
        if type(w) is nn.Parameter:
            there[id(w)] = nn.Parameter(w.detach().to(device, copy=True), w.requires_grad)
    copied = copy.deepcopy(denoiser, there)
    for module in modules_of(copied).values():
        module.to(device).eval()
    return copied


def _shares(rows: int, count: int) -> list[range]:
    """`rows` in contiguous shares as equal as can be, none empty but that of no rows."""
    ends = [rows * n // count for n in range(count + 1)]
    return [range(a, b) for a, b in pairwise(ends) if a < b] or [range(0)]


def _picked(rows: range | list[int], x_t: Tensor, t: Tensor, cond: Cond | None) -> tuple[Tensor, Tensor, Cond | None]:
    """The arguments of a call at some of its rows."""
    index = slice(rows.start, rows.stop) if isinstance(rows, range) else rows
    return x_t[index], t[index] if t.ndim else t, map_cond(lambda c: c[index], cond)
