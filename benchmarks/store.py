"""What storing trajectories costs: generating against the bare network, fetching or streaming a batch against a step.

    python benchmarks/store.py

Claim: files cost a tenth of the network's rate at most, and a batch a tenth of a training step; a larger share refutes
it. All are ratios of times taken in turn in one run, medians over the repeats. The network is the recipes' U-Net on 8x8
images. Writes benchmarks/results/store.json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _common import Claim, alternating, claim, parse, parser, write
from torch import nn

from dsno import Cosine, Gaussian, Prediction, SolverSampler, grids
from dsno.nets.unet import UNet
from dsno.trajectories.order import batches
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectories.share import push
from dsno.trajectories.store import store

SHAPE, KEEP, STEPS = (1, 8, 8), grids.quadratic(4), 16


@dataclass(frozen=True)
class Size:
    """How much is made and how often it is timed."""

    batch: int = 256
    calls: int = 2
    """Batches that are generated."""
    rows: int = 20_000
    """Trajectories that are fetched from."""
    repeats: int = 9
    """Of generating; five times as many of fetching."""


QUICK = Size(8, 1, 64, 2)


def network() -> UNet:
    torch.manual_seed(0)
    return UNet(channels=(32, 64), blocks=1)


def ratios(first: Callable[[], object], second: Callable[[], object], repeats: int) -> list[float]:
    """Time of `first` over time of `second`."""
    return [a / b for a, b in alternating(first, second, repeats=repeats)]


def generation(folder: Path, size: Size) -> list[float]:
    """Network rows per second of `store`, files and checksums included, over those of the network alone."""
    net = network().eval()
    grid = grids.through(grids.uniform(STEPS), KEEP[1:])
    sampler = SolverSampler(Prediction(net, Cosine()), Cosine(), grid, keep=KEEP)
    x, t = torch.randn(size.batch, *SHAPE), torch.full((size.batch,), 0.5)

    @torch.no_grad()
    def bare() -> None:
        for _ in range(size.calls * STEPS):
            net(x, t)

    def stored() -> None:
        store(sampler, SHAPE, folder, size.calls * size.batch, batch=size.batch, overwrite=True)

    return ratios(bare, stored, size.repeats)


def trajectories(folder: Path, rows: int) -> TrajectorySet:
    exact = Gaussian(Cosine(), torch.zeros(SHAPE), 0.5)
    return store(SolverSampler(exact, Cosine(), KEEP, keep=KEEP), SHAPE, folder, rows, batch=4096)


def fetching(data: TrajectorySet, size: Size) -> list[float]:
    """Time to fetch a shuffled batch (noise and four frames) over the time of a training step of the same batch."""
    data.__getitems__(range(len(data)))  # the page cache, and that of a stream, is warm
    stream = batches(data, size.batch, seed=0)
    net, t = network(), torch.full((size.batch,), 0.5)
    fetched = next(stream)
    x, target = fetched["noise"], fetched["x0"][:, -1]

    def step() -> None:
        net.zero_grad()
        nn.functional.l1_loss(net(x, t), target).backward()

    return ratios(lambda: next(stream), step, 5 * size.repeats)


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """The medians."""
    median = {name: quartiles[1] for name, quartiles in numbers["quartiles"].items()}
    return [
        claim("fetching a batch over a training step, time", median["fetching"], 0.10, "<="),
        claim("streaming a batch from a warm cache over a training step, time", median["streaming"], 0.10, "<="),
        claim("generating over the bare network, rows per second", median["generating"], 0.90, ">="),
    ]


def options() -> argparse.ArgumentParser:
    return parser(__file__, __doc__)


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    torch.set_num_threads(1)
    size = QUICK if arguments.quick else Size()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = trajectories(folder / "set", size.rows)
        found = {"fetching": fetching(data, size)}
        url = push(data.folder, f"file://{folder}/far")
        found["streaming"] = fetching(TrajectorySet(url, window=2, cache=folder / "cache"), size)
        found["generating"] = generation(folder / "generation", size)
    numbers = {"quartiles": {name: statistics.quantiles(ratios, n=4) for name, ratios in found.items()}}
    write(
        arguments,
        "store",
        f"one thread; U-Net (32, 64) on 8x8, batch {size.batch}; medians of {size.repeats} alternating repeats for "
        f"generating ({size.calls * size.batch} trajectories of {STEPS} DDIM steps, M = 4, float16, fsync) and "
        f"{5 * size.repeats} for fetching and streaming (from {size.rows} trajectories in shards of 4096, page cache "
        "warm, windows of two shards for the stream; forward and backward as the step)",
        judged(numbers),
        **numbers,
    )


if __name__ == "__main__":
    main()
