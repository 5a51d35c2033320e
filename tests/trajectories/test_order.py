"""The order of batches is a function of the seed and the step."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsno.trajectories.order import Order, batches
from dsno.trajectories.sets import TrajectorySet
from stored import SHAPE, labels, make


class Range:
    """Rows that are their own index."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        return {"i": torch.tensor(indices)}


class Windowed(TrajectorySet):
    """The like of a set whose shards are shuffled by windows."""

    def __init__(self, length: int, shard: int, window: int) -> None:
        self._count, self.manifest, self.window, self._shelf = length, {"shard": shard}, window, None

    def __getitems__(self, indices: Any) -> dict[str, Any]:
        return {"i": torch.tensor(indices)}


def take(steps: int, *arguments: Any, **options: Any) -> list[list[int]]:
    stream = batches(*arguments, **options)
    return [next(stream)["i"].tolist() for _ in range(steps)]


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.integers(0, 5), st.integers(0, 12))
def test_a_batch_is_a_function_of_seed_and_step(length: int, share: int, world: int, seed: int, start: int) -> None:
    size = share * world
    length = max(length, size)
    whole = take(start + 4, Range(length), size, seed)
    assert take(4, Range(length), size, seed, start) == whole[start:]
    ranks = [take(start + 4, Range(length), size, seed, 0, rank, world) for rank in range(world)]
    assert [[*itertools.chain(*parts)] for parts in zip(*ranks, strict=True)] == whole
    steps = length // size
    epoch = [*itertools.chain(*take(steps, Range(length), size, seed, steps))]
    assert len(set(epoch)) == len(epoch) == steps * size


def test_the_order_is_the_permutation_of_seed_and_epoch() -> None:
    seen = [*itertools.chain(*take(6, Range(30), 10, 5))]
    assert seen == [*itertools.chain(*(np.random.default_rng((5, epoch)).permutation(30).tolist() for epoch in (0, 1)))]


def test_windows_are_the_permutations_of_this_formula() -> None:
    # 22 rows in shards of 4, the last of 2; windows of 2 shards.
    (rows,) = take(1, Windowed(22, 4, 2), 22, 5)
    shards, expected = np.random.default_rng((5, 0)).permutation(6), []
    for w in range(3):
        of = np.concatenate([np.arange(4 * k, min(4 * k + 4, 22)) for k in shards[2 * w : 2 * w + 2]])
        expected += np.random.default_rng((5, 0, w + 1)).permutation(of).tolist()
    assert rows == expected


def test_an_order_makes_the_rows_of_any_positions() -> None:
    order, whole = Order(22, 4, 2, 5, 0), Order(22, 4, 2, 5, 0).rows(0, 22)
    assert sorted(whole) == [*range(22)] and order.ends[-1] == 22 and len(order.windows) == 3
    for first in range(0, 22, 3):
        for last in range(first + 1, 23, 5):
            assert order.rows(first, last) == whole[first:last]
    assert [order.at(n) for n in (0, order.ends[0] - 1, order.ends[0], 21)] == [0, 0, 1, 2]


def test_epochs_and_seeds_differ() -> None:
    orders = [take(1, Range(100), 100, seed, epoch)[0] for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    assert all(sorted(order) == list(range(100)) for order in orders)


@settings(max_examples=40)
@given(
    length=st.integers(1, 40),
    shard=st.integers(1, 9),
    window=st.integers(1, 5),
    share=st.integers(1, 4),
    world=st.integers(1, 3),
    seed=st.integers(0, 3),
    start=st.integers(0, 9),
)
def test_windows_keep_the_order_a_function(
    length: int, shard: int, window: int, share: int, world: int, seed: int, start: int
) -> None:
    size = share * world
    length = max(length, size)
    rows = Windowed(length, shard, window)
    whole = take(start + 6, rows, size, seed)
    assert take(6, rows, size, seed, start) == whole[start:]
    ranks = [take(start + 6, rows, size, seed, 0, rank, world) for rank in range(world)]
    assert [[*itertools.chain(*parts)] for parts in zip(*ranks, strict=True)] == whole
    epoch = [*itertools.chain(*take(length // size, rows, size, seed))]
    assert len(set(epoch)) == len(epoch) == length // size * size
    # The rows come window by window: each is used up before the next begins, but for the tail of the epoch.
    shards = [i // shard for i in epoch]
    first = [*dict.fromkeys(shards)]
    last = {k: len(shards) - 1 - shards[::-1].index(k) for k in first}
    alive = [sum(first.index(j) <= first.index(k) and last[j] >= i for j in first) for i, k in enumerate(shards)]
    assert max(alive) <= window


def test_windows_shuffle(tmp_path: Path) -> None:
    data = make(tmp_path / "set", count=64)
    plain = [next(batches(data, 64, seed))["seeds"].tolist() for seed in (0, 1)]
    windowed = TrajectorySet(tmp_path / "set", window=2)
    orders = [b["seeds"].tolist() for seed in (0, 1) for b in itertools.islice(batches(windowed, 64, seed), 2)]
    assert len({tuple(order) for order in (*plain, *orders)}) == 6
    assert all(sorted(order) == list(range(64)) for order in orders)
    inside = [i % 8 for i in orders[0][:16]]
    assert inside != sorted(inside), "the rows of a window are in order"
    assert len({i // 8 for i in orders[0][:16]}) == 2
    assert next(batches(windowed.head(12), 12, 0))["seeds"].sort().values.tolist() == list(range(12))
    with pytest.raises(ValueError, match="window must be at least 1 shard, got 0"):
        TrajectorySet(tmp_path / "set", window=0)


def test_batches_of_trajectories(tmp_path: Path) -> None:
    data = make(tmp_path / "set", label=labels)
    batch = next(batches(data, 6, seed=1, start_step=7))
    assert batch["noise"].shape == (6, *SHAPE)
    assert torch.equal(batch["cond"], labels(batch["seeds"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((11, 0), "10 rows do not fill one batch of 11"),
        ((0, 0), "batch_size >= 1"),
        ((4, -1), "seed >= 0"),
        ((4, 0, -1), "start_step >= 0"),
        ((4, 0, 0, 2, 2), "0 <= rank < world"),
        ((4, 0, 0, 0, 3), "shared evenly by 3"),
    ],
)
def test_batches_refuses(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batches(Range(10), *arguments)
