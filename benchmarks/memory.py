"""What a distillation step holds in memory at its worst, over M times the backbone's own training step.

    python benchmarks/memory.py

Claim: a student of M frames takes at most 1.2 times the peak of M steps of its backbone, and half of it with gradient
checkpointing; a larger ratio refutes it. Peak is the rise above what is there before a step (weights, gradients, batch)
during forward and backward. On CUDA the allocator counts it. On the CPU every operation's outputs are followed: a
storage counts from the operation that makes it until it is freed, so the figure is exact for tensors and leaves out
workspaces inside an operation. Writes benchmarks/results/memory.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from _common import Claim, claim, parse, parser, write
from torch import Tensor, nn

from dsno import Cosine, Prediction, grids, student_from_teacher
from dsno.cost import Live
from dsno.nets.unet import UNet

FRAMES = 4
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STUDENTS: dict[str, dict[str, Any]] = {
    "layers everywhere": {"where": "every", "once": False, "told": "output"},
    "layers in the bottleneck, first blocks once": {"where": "mid", "once": True, "told": "input"},
}


@dataclass(frozen=True)
class Size:
    """Of the backbone and its batch."""

    batch: int = 16
    shape: tuple[int, ...] = (3, 32, 32)
    channels: tuple[int, ...] = (32, 64, 64)


QUICK = Size(2, (3, 8, 8), (16, 16))


def peak(net: nn.Module, loss: Callable[..., Tensor], *batch: Tensor) -> int:
    """Bytes that one forward and backward adds at its worst; gradients are there from a step before."""
    loss(*batch).backward()
    net.zero_grad(set_to_none=False)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss(*batch).backward()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with Live() as live:
        loss(*batch).backward()
    return live.peak


def measured(size: Size, **options: Any) -> dict[str, int]:
    """Peaks in bytes of the backbone and of a student, plain and with gradient checkpointing."""
    torch.manual_seed(0)
    shape, batch = size.shape, size.batch
    net = UNet(shape[0], shape[1], size.channels).to(DEVICE)
    z, t = torch.randn(batch, *shape, device=DEVICE), torch.rand(batch, device=DEVICE)
    target = torch.randn(batch, FRAMES, *shape, device=DEVICE)
    teacher = Prediction(net, Cosine(), "v")
    student = student_from_teacher(teacher, grids.quadratic(FRAMES)[1:], **options).to(DEVICE)
    found = {"backbone": peak(net, lambda z, t, y: (net(z, t) - y).abs().mean(), z, t, target[:, 0].contiguous())}

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return (student(z) - y).abs().mean()

    found["student"] = peak(student, loss, z, target)
    student.net.enable_gradient_checkpointing()
    found["student, checkpointed"] = peak(student, loss, z, target)
    return found


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """Each student's peaks over M times the backbone's."""
    claims = []
    for name, found in numbers["bytes"].items():
        whole = FRAMES * found["backbone"]
        plain, checkpointed = found["student"] / whole, found["student, checkpointed"] / whole
        claims += [
            claim(f"peak of a step over M x the backbone's, {name}", plain, 1.2, "<="),
            claim(f"peak with gradient checkpointing over M x the backbone's, {name}", checkpointed, 0.5, "<="),
        ]
    return claims


def options() -> argparse.ArgumentParser:
    return parser(__file__, __doc__)


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    torch.set_num_threads(1)
    size = QUICK if arguments.quick else Size()
    numbers = {"bytes": {name: measured(size, **options) for name, options in STUDENTS.items()}}
    how = "torch's allocator" if DEVICE.type == "cuda" else "storages made by each operation, followed until freed"
    write(
        arguments,
        "memory",
        f"U-Net {size.channels} on {size.shape}, M = {FRAMES}, batch {size.batch}, float32, forward and backward of "
        f"an L1 loss; rise above weights, gradients and batch; {how}",
        judged(numbers),
        **numbers,
    )


if __name__ == "__main__":
    main()
