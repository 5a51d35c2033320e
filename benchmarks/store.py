"""What storing trajectories costs: generating against the bare network, fetching or streaming a batch against a training step.

    python benchmarks/store.py [--quick]

All claims are ratios of times taken in turn in one run, medians over the repeats. The network is the recipes' U-Net on
8x8 images. Writes benchmarks/results/store.json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _common import claim, write
from torch import nn

from dsno import Cosine, Gaussian, Prediction, SolverSampler, grids
from dsno.nets.unet import UNet
from dsno.trajectories.order import batches
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectories.share import push
from dsno.trajectories.store import store

SHAPE, KEEP = (1, 8, 8), grids.quadratic(4)


def network() -> UNet:
    torch.manual_seed(0)
    return UNet(channels=(32, 64), blocks=1)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratios(first: Callable[[], object], second: Callable[[], object], repeats: int) -> list[float]:
    """Time of `first` over time of `second`, alternating, after one warm-up of each."""
    first(), second()
    return [seconds(first) / seconds(second) for _ in range(repeats)]


def generation(folder: Path, steps: int, batch: int, calls: int, repeats: int) -> list[float]:
    """Network rows per second of `generate`, files and checksums included, over those of the network alone."""
    net = network().eval()
    grid = grids.through(grids.uniform(steps), KEEP[1:])
    sampler = SolverSampler(Prediction(net, Cosine()), Cosine(), grid, keep=KEEP)
    x, t = torch.randn(batch, *SHAPE), torch.full((batch,), 0.5)

    @torch.no_grad()
    def bare() -> None:
        for _ in range(calls * steps):
            net(x, t)

    def stored() -> None:
        store(sampler, SHAPE, folder / "generation", calls * batch, batch=batch, overwrite=True)

    return ratios(bare, stored, repeats)


def trajectories(folder: Path, rows: int) -> TrajectorySet:
    exact = Gaussian(Cosine(), torch.zeros(SHAPE), 0.5)
    return store(SolverSampler(exact, Cosine(), KEEP, keep=KEEP), SHAPE, folder / "set", rows, batch=4096)


def fetching(data: TrajectorySet, batch: int, repeats: int) -> list[float]:
    """Time to fetch a shuffled batch (noise and four frames) over the time of a training step of the same batch."""
    data.__getitems__(range(len(data)))  # the page cache, and that of a stream, is warm
    stream = batches(data, batch, seed=0)
    net, t = network(), torch.full((batch,), 0.5)

    def step() -> None:
        net.zero_grad()
        nn.functional.l1_loss(net(x, t), target).backward()

    fetched = next(stream)
    x, target = fetched["noise"], fetched["x0"][:, -1]
    return ratios(lambda: next(stream), step, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few repeats, nothing written")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    steps, batch, calls, rows, repeats = (16, 32, 1, 2000, 3) if quick else (16, 256, 2, 20_000, 9)
    with tempfile.TemporaryDirectory() as folder:
        data = trajectories(Path(folder), rows)
        fetched = fetching(data, batch, 5 * repeats)
        url = push(data.folder, f"file://{folder}/far")
        streamed = fetching(TrajectorySet(url, window=2, cache=Path(folder) / "cache"), batch, 5 * repeats)
        generated = generation(Path(folder), steps, batch, calls, repeats)
    claims = [
        claim("fetching a batch over a training step, time", statistics.median(fetched), 0.10, "<="),
        claim(
            "streaming a batch from a warm cache over a training step, time", statistics.median(streamed), 0.10, "<="
        ),
        claim("generating over the bare network, rows per second", statistics.median(generated), 0.90, ">="),
    ]
    for c in claims:
        print(f"{'ok  ' if c['holds'] else 'FAIL'} {c['name']}: {c['value']:.4f} ({c['direction']} {c['bound']})")
    if not quick:
        write(
            "store",
            f"one thread; U-Net (32, 64) on 8x8, batch {batch}; medians of {repeats} alternating repeats for generating "
            f"({calls * batch} trajectories of {steps} DDIM steps, M = 4, float16, fsync) and {5 * repeats} for fetching and "
            f"streaming (from {rows} trajectories in shards of 4096, page cache warm, windows of two shards for the stream; "
            "forward and backward as the step)",
            claims,
            quartiles={
                "fetching": statistics.quantiles(fetched, n=4),
                "streaming": statistics.quantiles(streamed, n=4),
                "generating": statistics.quantiles(generated, n=4),
            },
        )


if __name__ == "__main__":
    main()
