"""What the temporal layer costs in bfloat16, on a CPU that multiplies in it and on one that does not.

    python benchmarks/precision.py

C = 256, M = 4, two modes, 8x8, in both layouts of images, forwards alone and with the derivatives of features and
weights. The layer in bfloat16 is held against itself in float32, and against the official layer (FFT in float32, its
result cast back) on the same features. Where products in bfloat16 are emulated the layer is to be mixed in float32, so
the claims are of both machines: at most 1.1 of float32's time, which leaves the casts a tenth, and no more than the
official layer's. A larger ratio refutes one. Each is the worst over layouts and batches of medians of repeats in which
the sides alternate, in seconds of the processor, which other processes on the machine disturb less.

The machine without products in bfloat16 is this one with oneDNN and ATen limited to AVX2 (`ONEDNN_MAX_CPU_ISA`,
`ATEN_CPU_CAPABILITY`), in a process of its own. Writes benchmarks/results/precision.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _common import Claim, alternating, claim, parse, parser, write
from layers import FRAMES, fft_form
from torch import Tensor

from dsno.students.temporal import NATIVE, TemporalFourier

BATCHES, REPEATS = (1, 2, 8, 32), 31
MACHINES: dict[str, dict[str, str]] = {
    "as it is": {},
    "limited to AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
BOUNDS = {"float32": 1.1, "official": 1.0}


def official(u: Tensor, weight: Tensor) -> Tensor:
    """The official layer on features of any precision."""
    return fft_form(u.float(), weight, FRAMES).to(u.dtype)


def measured(batch: int, layout: torch.memory_format, channels: int, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of the sides, and the layer's ratios to the others in bfloat16, forwards and in both directions."""
    single = TemporalFourier(channels, FRAMES, 2, "leaky_relu", "normal")
    half = copy.deepcopy(single).bfloat16()
    imag = torch.cat([torch.zeros(1, channels, channels), single.imag.detach()])
    weight = torch.complex(single.real.detach(), imag).requires_grad_()
    u = torch.randn(FRAMES * batch, channels, 8, 8).to(memory_format=layout)
    sides: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
        "bfloat16": (half, u.bfloat16()),
        "float32": (single, u.clone()),
        "official": (lambda x: official(x, weight), u.bfloat16()),
    }

    def forward(layer: Callable[[Tensor], Tensor], x: Tensor) -> None:
        with torch.no_grad():
            layer(x)

    def both(layer: Callable[[Tensor], Tensor], x: Tensor) -> None:
        x = x.detach().requires_grad_()
        torch.autograd.backward(layer(x), x.detach())

    found: dict[str, dict[str, float]] = {}
    for name, run in (("forward", forward), ("both directions", both)):
        found[name] = {}
        # In pairs: what a third side leaves of the allocator's memory would be paid by the one behind it.
        for other in ("official", "float32"):
            pair = partial(run, *sides["bfloat16"]), partial(run, *sides[other])
            taken = alternating(*pair, repeats=repeats, clock=time.process_time)
            found[name] |= {
                "bfloat16": 1e3 * statistics.median(ours for ours, _ in taken),
                other: 1e3 * statistics.median(theirs for _, theirs in taken),
                f"over {other}": statistics.median(ours / theirs for ours, theirs in taken),
            }
    return found


def all_measured(quick: bool) -> dict[str, Any]:
    """Every layout and batch on this machine, and whether it multiplies in bfloat16."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    channels, repeats, batches = (8, 1, (1, 2)) if quick else (256, REPEATS, BATCHES)
    return {
        "native": bool(NATIVE[torch.bfloat16]),
        "times": {
            name: {str(batch): measured(batch, layout, channels, repeats) for batch in batches}
            for name, layout in LAYOUTS.items()
        },
    }


def elsewhere(limits: Mapping[str, str], quick: bool) -> dict[str, Any]:
    """`all_measured` in a process with these limits."""
    command = [sys.executable, __file__, "--measure", *["--quick"] * quick]
    made = subprocess.run(command, env={**os.environ, **limits}, cwd=Path.cwd(), check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(made.stdout)
    return found


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """The worst ratios of each machine, beside their bounds."""

    def worst(machine: Mapping[str, Any], way: str, side: str) -> float:
        return max(found[way][f"over {side}"] for batches in machine["times"].values() for found in batches.values())

    return [
        claim(f"bfloat16 over {side}, {way}, CPU {name}, worst", worst(machine, way, side), bound, "<=")
        for name, machine in numbers["machines"].items()
        for way in ("forward", "both directions")
        for side, bound in BOUNDS.items()
    ]


def options() -> argparse.ArgumentParser:
    made = parser(__file__, __doc__)
    made.add_argument("--measure", action="store_true", help="print the times of this process alone")
    return made


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    if arguments.measure:
        print(json.dumps(all_measured(arguments.quick)))
        return
    torch.set_num_threads(1)
    numbers = {"machines": {name: elsewhere(limits, arguments.quick) for name, limits in MACHINES.items()}}
    write(
        arguments,
        "precision",
        f"one thread; C = 256, M = {FRAMES}, 8x8, batches {BATCHES}; medians of {REPEATS} alternating repeats; "
        "milliseconds of the processor",
        judged(numbers),
        **numbers,
    )


if __name__ == "__main__":
    main()
