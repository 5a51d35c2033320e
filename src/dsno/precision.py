r"""Which precision to train in, where it is left open: what is quick here, found out in a tenth of a second.

Mixed precision saves time where a device multiplies bfloat16 natively. A processor that does not takes several times as
long as in float32, and says nothing; which of them do is not written on them. So on a CPU two convolutions of the size
of a small U-Net's are trained in either, a few times by turns, and bf16 has to be `GAIN` times as fast. A GPU is asked.
"""

from __future__ import annotations

import functools
import time
from typing import Literal

import torch
from torch import nn

__all__ = ["Precision", "best_precision", "wished"]

Precision = Literal["no", "bf16", "fp16", "auto"]
"""What a run is trained in; `auto` is settled where it begins."""

GAIN = 1.1
"""How much faster bf16 has to be: what it gains otherwise is less than what it rounds."""


def best_precision(device: torch.device) -> tuple[Precision, str]:
    """`bf16` or `no`, and why, in words: what trains faster on `device`; the same for the life of the process."""
    if device.type == "cpu":
        return _on_cpu()
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "this GPU computes in it"
    return "no", f"this {device.type} device does not say that it computes in bf16"


def wished(precision: Precision) -> Precision:
    """What a wish for one becomes: mixed precision where that is quick; fp16, which GPUs scale losses for, on them."""
    if precision == "no" or (precision == "fp16" and torch.cuda.is_available()):
        return precision
    return "auto"


@functools.cache
def _on_cpu() -> tuple[Precision, str]:
    full, half = _seconds()
    ratio = full / half
    if ratio >= GAIN:
        return "bf16", f"{ratio:.1f} times as fast as fp32 on this CPU"
    than = f"{1 / ratio:.1f} times slower than fp32" if ratio < 1 / GAIN else "no faster than fp32"
    return "no", f"bf16 is {than} on this CPU"


def _seconds(channels: int = 32, rows: int = 32, repeats: int = 4) -> tuple[float, float]:
    """The least seconds of a training step of two convolutions in float32 and in mixed precision, on one core.

    They are the core's own seconds: what else runs on the machine must not decide.
    """
    with torch.random.fork_rng(devices=()), torch.device("cpu"):
        net = nn.Sequential(*(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)))
        x = torch.randn(rows, channels, 8, 8)
    took: dict[bool, list[float]] = {False: [], True: []}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(1 + repeats):
            for half, each in took.items():
                began = time.thread_time()
                with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                    net(x).float().square().mean().backward()
                each.append(time.thread_time() - began)
    finally:
        torch.set_num_threads(threads)
    # The first call of each makes plans.
    return min(took[False][1:]), min(took[True][1:])
