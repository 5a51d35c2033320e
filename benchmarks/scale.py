"""What a second process is worth: trajectories per second of two processes over one, each on one core.

    python benchmarks/scale.py [--quick]

Both are `accelerate launch` of the same work, taken in turn. Every process notes the time after each batch; the rate is
that of the time in which all of them work, so that starting up and the first batch do not count. Writes
benchmarks/results/scale.json. Needs as many idle cores as processes.
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
from pathlib import Path

import torch
from _common import claim, write

from dsno import Cosine, Prediction, SolverSampler, grids
from dsno.nets.unet import UNet
from dsno.trajectories.store import store

SHAPE, KEEP, STEPS = (1, 8, 8), grids.quadratic(4), 16


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
        sampler, SHAPE, folder / "set", batches * batch * accelerator.num_processes, batch=batch, shard=2 * batch,
        accelerator=accelerator, progress=lambda rows, total: done.append((time.time(), rows)),
    )  # fmt: skip
    (folder / f"times-{accelerator.process_index}.json").write_text(json.dumps(done))


def rate(processes: int, batches: int, batch: int) -> float:
    """Trajectories per second of all processes together, while all of them work."""
    with tempfile.TemporaryDirectory() as folder:
        launch = ["-m", "accelerate.commands.launch", "--num_processes", str(processes), "--main_process_port", "0"]
        several = ["--multi_gpu"] if processes > 1 else ["--cpu"]
        own = [__file__, "--work", folder, str(batches), str(batch)]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one repeat, nothing written")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        return work(Path(given.work[0]), int(given.work[1]), int(given.work[2]))
    batches, batch, repeats = (6, 16, 1) if given.quick else (20, 64, 3)
    one, two = [], []
    for _ in range(repeats):
        one.append(rate(1, batches, batch))
        two.append(rate(2, batches, batch))
        print(f"one process {one[-1]:.1f}, two processes {two[-1]:.1f} trajectories per second", flush=True)
    ratios = [b / a for a, b in zip(one, two, strict=True)]
    c = claim("two processes over one, trajectories per second", statistics.median(ratios), 1.8, ">=")
    print(f"{'ok  ' if c['holds'] else 'FAIL'} {c['name']}: {c['value']:.3f} ({c['direction']} {c['bound']})")
    if not given.quick:
        write(
            "scale",
            f"accelerate launch, one thread a process; medians of {repeats} alternating runs; U-Net (32, 64) on 8x8, "
            f"batch {batch}, {batches} batches a process, {STEPS} DDIM steps, M = 4, float16, checksums and fsync "
            "included; rates while all processes work, after the first batch",
            [c],
            per_second={"one": one, "two": two},
            ratios=ratios,
        )


if __name__ == "__main__":
    main()
