"""What a second process is worth: trajectories per second of two processes over one, each on one core.

    python benchmarks/scale.py

Claim: two processes make 1.8 times as many or more; less refutes it. Both are `accelerate launch` of the same work,
taken in turn. Every process notes the time after each batch; the rate is that of the time in which all of them work, so
that starting up and the first batch do not count. Writes benchmarks/results/scale.json. Needs as many idle cores as
processes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _common import Claim, claim, parse, parser, write

from dsno import Cosine, Prediction, SolverSampler, grids
from dsno.nets.unet import UNet
from dsno.trajectories.store import store

SHAPE, KEEP, STEPS = (1, 8, 8), grids.quadratic(4), 16


@dataclass(frozen=True)
class Size:
    """How much is made and how often it is timed."""

    batches: int = 20
    """Of each process."""
    batch: int = 64
    repeats: int = 3


QUICK = Size(3, 8, 1)


def work(folder: Path, batches: int, batch: int) -> None:
    """One process's part: `batches` batches for each process, and the times they were done."""
    from accelerate import Accelerator

    torch.set_num_threads(1)
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    grid = grids.through(grids.uniform(STEPS), KEEP[1:])
    sampler = SolverSampler(Prediction(UNet(channels=(32, 64)).eval(), Cosine()), Cosine(), grid, keep=KEEP)
    done: list[tuple[float, int]] = []
    store(
        sampler,
        SHAPE,
        folder / "set",
        batches * batch * accelerator.num_processes,
        batch=batch,
        shard=2 * batch,
        accelerator=accelerator,
        progress=lambda rows, total: done.append((time.time(), rows)),
    )
    (folder / f"times-{accelerator.process_index}.json").write_text(json.dumps(done))


def rate(processes: int, size: Size) -> float:
    """Trajectories per second of all processes together, while all of them work."""
    with tempfile.TemporaryDirectory() as folder:
        launch = ["-m", "accelerate.commands.launch", "--num_processes", str(processes), "--main_process_port", "0"]
        several = ["--multi_gpu"] if processes > 1 else ["--cpu"]
        own = [__file__, "--work", folder, str(size.batches), str(size.batch)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        subprocess.run(
            [sys.executable, *launch, *several, *own], env=environment, check=True, stderr=subprocess.DEVNULL
        )
        times = [json.loads((Path(folder) / f"times-{rank}.json").read_text()) for rank in range(processes)]
    began, ended = max(done[0][0] for done in times), min(done[-1][0] for done in times)

    def rows_at(done: list[tuple[float, int]], when: float) -> float:
        """Rows of a process at a moment between two batches, in proportion."""
        for (t0, n0), (t1, n1) in itertools.pairwise(done):
            if t0 <= when <= t1:
                return n0 + (n1 - n0) * (when - t0) / (t1 - t0)
        raise AssertionError(f"{when} is not within the work")

    return sum(rows_at(done, ended) - rows_at(done, began) for done in times) / (ended - began)


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """The median of the repeats."""
    return [claim("two processes over one, trajectories per second", statistics.median(numbers["ratios"]), 1.8, ">=")]


def options() -> argparse.ArgumentParser:
    made = parser(__file__, __doc__)
    made.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    return made


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    if arguments.work:
        folder, batches, batch = arguments.work
        return work(Path(folder), int(batches), int(batch))
    size = QUICK if arguments.quick else Size()
    one, two = [], []
    for _ in range(size.repeats):
        one.append(rate(1, size))
        two.append(rate(2, size))
        print(f"one process {one[-1]:.1f}, two processes {two[-1]:.1f} trajectories per second", flush=True)
    numbers = {"per_second": {"one": one, "two": two}, "ratios": [b / a for a, b in zip(one, two, strict=True)]}
    write(
        arguments,
        "scale",
        f"accelerate launch, one thread a process; medians of {size.repeats} alternating runs; U-Net (32, 64) on 8x8, "
        f"batch {size.batch}, {size.batches} batches a process, {STEPS} DDIM steps, M = 4, float16, checksums and "
        "fsync included; rates while all processes work, after the first batch",
        judged(numbers),
        **numbers,
    )


if __name__ == "__main__":
    main()
