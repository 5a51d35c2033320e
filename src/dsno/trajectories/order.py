r"""Shuffled batches in an order that is a function of the step, whole or window by window.

An order that training can resume at any step is a function, not a state. With all rows at hand it is one permutation an
epoch. Shards that are fetched when they are needed ask for one that stays among a few at a time: let $\sigma_e$ permute
the shards in epoch $e$, cut it into windows of W shards, and shuffle the rows of each window,

$$ \pi_e = \big( \tau_{e, 0}(R_{\sigma_e(0)} \cup \dots \cup R_{\sigma_e(W - 1)}), \;
                 \tau_{e, 1}(R_{\sigma_e(W)} \cup \dots), \; \dots \big), $$

with $R_k$ the rows of shard $k$ and $\sigma_e$, $\tau_{e, w}$ drawn from (seed, $e$) and (seed, $e$, $w$) alone. As
rows are independent draws to begin with, the windows lose little.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from dsno.trajectories.sets import TrajectorySet

__all__ = ["Batched", "Order", "batches"]


class Batched(Protocol):
    """Anything that gives many rows at once as a dict of tensors."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: list[int], /) -> dict[str, Any]: ...


class Order:
    r"""The order of the rows in one epoch, $\pi_e$, made window by window.

    Arguments:
        n: Rows.
        shard: Rows of a shard.
        window: Shards of a window, or None: all rows are one window.
        seed: With `epoch`, determines the order.
        epoch: Which epoch.
    """

    def __init__(self, n: int, shard: int, window: int | None, seed: int, epoch: int) -> None:
        self.key, self.windows, sizes = (seed, epoch), [np.arange(0)], [n]
        self._n, self._shard, self._made = n, shard, {} if window else {0: self._draw().permutation(n)}
        if window:
            shards = self._draw().permutation(-(-n // shard))
            self.windows = [shards[i : i + window] for i in range(0, len(shards), window)]
            sizes = [sum(len(self._rows(k)) for k in shards.tolist()) for shards in self.windows]
        self.ends = np.cumsum(sizes).tolist()

    def _draw(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng((*self.key, *stream))

    def _rows(self, k: int) -> range:
        return range(k * self._shard, min((k + 1) * self._shard, self._n))

    def at(self, position: int) -> int:
        """The window of a position."""
        return bisect.bisect_right(self.ends, position)

    def rows(self, first: int, last: int) -> list[int]:
        """The rows at the positions from `first` to `last`, which is not one of them."""
        found: list[int] = []
        for w in range(self.at(first), self.at(last - 1) + 1):
            start = self.ends[w - 1] if w else 0
            found += self._window(w)[max(first - start, 0) : last - start].tolist()
        return found

    def _window(self, w: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        if w not in self._made:
            rows = np.concatenate([np.arange(r.start, r.stop) for r in map(self._rows, self.windows[w].tolist())])
            # numpy takes (seed, epoch, 0) for (seed, epoch), which permuted the shards.
            self._made = {v: held for v, held in self._made.items() if v == w - 1}
            self._made[w] = self._draw(w + 1).permutation(rows)
        return self._made[w]


def batches(
    dataset: Batched, batch_size: int, seed: int, start_step: int = 0, rank: int = 0, world: int = 1
) -> Iterator[dict[str, Any]]:
    r"""Shuffled batches without end and without state: step $k$'s batch is a function of `seed` and $k$ alone.

    With $S = \lfloor n / B \rfloor$ steps per epoch and $\pi_e$ the permutation of the $n$ rows drawn from `(seed, e)`,

    $$ \mathrm{batch}_k = \pi_e[jB : (j + 1)B], \qquad e = \lfloor k / S \rfloor, \; j = k \bmod S, $$

    of which each rank takes its contiguous share of $B$ / `world` rows. So training resumes exactly at any step, and
    the ranks together see the rows that one process would. The ragged tail of an epoch is dropped. For a
    `TrajectorySet` with a `window`, $\pi_e$ is the one of this module's beginning, and the shards of the next window
    are fetched meanwhile.

    Arguments:
        dataset: A `TrajectorySet`, or anything with `__len__` and `__getitems__`.
        batch_size: The global batch size $B$.
        seed: Determines the order; non-negative.
        start_step: The first step.
        rank: Which share.
        world: How many shares.

    Raises:
        ValueError: if there are fewer rows than one batch, or the batch cannot be shared evenly.
    """
    if batch_size < 1 or start_step < 0 or seed < 0 or not 0 <= rank < world:
        raise ValueError(
            "expected batch_size >= 1, start_step >= 0, seed >= 0 and 0 <= rank < world, "
            f"got {batch_size}, {start_step}, {seed}, {rank} and {world}"
        )
    if batch_size % world:
        raise ValueError(f"a batch of {batch_size} cannot be shared evenly by {world} processes: use a multiple")
    n = len(dataset)
    if n < batch_size:
        raise ValueError(f"{n} rows do not fill one batch of {batch_size}: use a smaller batch or more rows")
    held = dataset if isinstance(dataset, TrajectorySet) else None
    shard, window = (held.manifest["shard"], held.window) if held is not None else (n, None)

    def stream() -> Iterator[dict[str, Any]]:
        share, steps = batch_size // world, n // batch_size
        epoch, j = divmod(start_step, steps)
        order = Order(n, shard, window, seed, epoch)
        while True:
            following, now = Order(n, shard, window, seed, epoch + 1) if window else None, -1
            for i in range(j, steps):
                first = i * batch_size
                if held is not None and following is not None and now != order.at(first):
                    now = order.at(first)
                    then = [*order.windows, *following.windows][now + 1]
                    held.prefetch(order.windows[now].tolist(), then.tolist())
                yield dataset.__getitems__(order.rows(first + rank * share, first + (rank + 1) * share))
            epoch, j = epoch + 1, 0
            order = following or Order(n, shard, window, seed, epoch)

    return stream()
