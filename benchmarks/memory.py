"""What a distillation step holds in memory at its worst, over M times the backbone's own training step.

    python benchmarks/memory.py

Peak is the rise above what is there before a step (weights, gradients, batch) during forward and backward. On CUDA the
allocator counts it. On the CPU every operation's outputs are followed: a storage counts from the operation that makes
it until it is freed, so the figure is exact for tensors and leaves out workspaces inside an operation. Writes
benchmarks/results/memory.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from _common import claim, write
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dsno import Cosine, Prediction, grids, student_from_teacher
from dsno.nets.unet import UNet

FRAMES, BATCH, SHAPE, CHANNELS = 4, 16, (3, 32, 32), (32, 64, 64)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Live(TorchDispatchMode):
    """Follows the storages made under it; `peak` is the most bytes of them alive at once."""

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        self.before = {t.untyped_storage()._cdata for t in before}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage())._cdata not in self.before:
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: held for key, held in self.alive.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return output


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
    there = [*batch, *net.buffers()]
    there += [t for p in net.parameters() for t in (p, p.grad) if t is not None]
    with Live(there) as live:
        loss(*batch).backward()
    return live.peak


def measured(where: Any, once: bool, told: Any) -> dict[str, float]:
    """Peaks in bytes of the backbone and of a student, plain and with gradient checkpointing."""
    torch.manual_seed(0)
    net = UNet(SHAPE[0], SHAPE[1], CHANNELS).to(DEVICE)
    z, t = torch.randn(BATCH, *SHAPE, device=DEVICE), torch.rand(BATCH, device=DEVICE)
    target = torch.randn(BATCH, FRAMES, *SHAPE, device=DEVICE)
    teacher = Prediction(net, Cosine(), "v")
    student = student_from_teacher(teacher, grids.quadratic(FRAMES)[1:], where=where, once=once, told=told).to(DEVICE)
    found = {"backbone": peak(net, lambda z, t, y: (net(z, t) - y).abs().mean(), z, t, target[:, 0].contiguous())}

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return (student(z) - y).abs().mean()

    found["student"] = peak(student, loss, z, target)
    student.net.enable_gradient_checkpointing()
    found["student, checkpointed"] = peak(student, loss, z, target)
    return found


def main() -> None:
    torch.set_num_threads(1)
    claims, bytes_of = [], {}
    for name, options in {
        "layers everywhere": ("every", False, "output"),
        "layers in the bottleneck, first blocks once": ("mid", True, "input"),
    }.items():
        found = bytes_of[name] = measured(*options)
        whole = FRAMES * found["backbone"]
        claims += [
            claim(f"peak of a step over M x the backbone's, {name}", found["student"] / whole, 1.2, "<="),
            claim(
                f"peak with gradient checkpointing over M x the backbone's, {name}",
                found["student, checkpointed"] / whole, 0.5, "<=",
            ),
        ]  # fmt: skip
    for c in claims:
        print(f"{'ok  ' if c['holds'] else 'FAIL'} {c['name']}: {c['value']:.3f} ({c['direction']} {c['bound']})")
    how = "torch's allocator" if DEVICE.type == "cuda" else "storages made by each operation, followed until freed"
    write(
        "memory",
        f"U-Net {CHANNELS} on {SHAPE}, M = {FRAMES}, batch {BATCH}, float32, forward and backward of an L1 loss; "
        f"rise above weights, gradients and batch; {how}",
        claims,
        bytes=bytes_of,
    )


if __name__ == "__main__":
    main()
