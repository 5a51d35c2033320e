"""What the temporal layer and the lifted network cost, as ratios taken in one run.

    python benchmarks/layers.py

- the layer's two real products against its FFT form, M = 4, 128 and 256 channels: twice as fast;
- one training step of the lifted network against M times the backbone's step: at most 1.15;
- the sample alone against the whole trajectory, for each placement of the layers: no more;
- importing dsno against importing torch alone: at most twice.

A ratio on the other side of its bound refutes the claim. Each is the median of repeats in which both sides alternate.
Writes benchmarks/results/layers.json.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from _common import Claim, alternating, claim, parse, parser, write
from torch import Tensor

from dsno import Cosine, Prediction, grids, student_from_teacher
from dsno.cost import flops
from dsno.nets.unet import UNet
from dsno.students.operator import TrajectoryStudent
from dsno.students.temporal import TemporalFourier

FRAMES = 4
PLACEMENTS: dict[str, dict[str, Any]] = {
    f"{where}, once={once}": {"where": where, "once": once}
    for where, once in (("every", False), ("low", False), ("low", True), ("none", False))
}


@dataclass(frozen=True)
class Size:
    """How often all is timed, and how large it is."""

    repeats: int = 15
    imports: int = 5
    widths: tuple[int, ...] = (128, 256)
    """Channels of the layer."""
    channels: tuple[int, ...] = (32, 64)
    """Of the backbone."""
    batch: int = 32


QUICK = Size(1, 1, (8, 16), (16, 16), 2)


def ratio(a: Callable[[], object], b: Callable[[], object], repeats: int) -> float:
    """Median of time(a) / time(b)."""
    return statistics.median(x / y for x, y in alternating(a, b, repeats=repeats))


def fft_form(u: Tensor, weight: Tensor, frames: int) -> Tensor:
    """The official layer: rfft over the frames, a complex matrix per mode, irfft, on (B*M, C, H, W)."""
    B = u.shape[0] // frames
    folded = u.reshape(B, frames, *u.shape[1:])
    spectrum = torch.fft.rfft(folded, dim=1)
    mixed = torch.zeros_like(spectrum)
    modes = len(weight)
    mixed[:, :modes] = torch.einsum("bkihw,kio->bkohw", spectrum[:, :modes], weight)
    return u + torch.nn.functional.leaky_relu(torch.fft.irfft(mixed, n=frames, dim=1), 0.01).reshape(u.shape)


def layer_speed(channels: int, size: Size) -> float:
    layer = TemporalFourier(channels, FRAMES, 2, "leaky_relu", "normal")
    weight = torch.complex(layer.real.detach(), torch.stack([torch.zeros(channels, channels), layer.imag.detach()[0]]))
    u = torch.randn(FRAMES * 8, channels, 16, 16)
    with torch.no_grad():
        difference = float((layer(u) - fft_form(u, weight, FRAMES)).abs().max())
        assert difference < 1e-4, difference
        return ratio(lambda: fft_form(u, weight, FRAMES), lambda: layer(u), size.repeats)


def lifted(size: Size, where: str, once: bool) -> tuple[UNet, TrajectoryStudent]:
    """A backbone, and the student made of it."""
    net = UNet(channels=size.channels)
    times = grids.quadratic(FRAMES)[1:]
    teacher = Prediction(net, Cosine(), "v")
    return net, student_from_teacher(teacher, times, where=where, once=once, told="output")


def step_ratio(size: Size, **placement: Any) -> float:
    net, student = lifted(size, **placement)
    z, t = torch.randn(size.batch, 1, 8, 8), torch.rand(size.batch * FRAMES)
    x = torch.randn(size.batch * FRAMES, 1, 8, 8)

    def ours() -> None:
        student.zero_grad()
        (student(z) - 1).square().mean().backward()

    def backbone() -> None:
        net.zero_grad()
        (net(x, t) - 1).square().mean().backward()

    return ratio(ours, backbone, size.repeats)


def last_frame(size: Size, **placement: Any) -> dict[str, float]:
    """Time and FLOPs of the sample alone over those of the whole trajectory."""
    student = lifted(size, **placement)[1].eval()
    z = torch.randn(2 * size.batch, 1, 8, 8)

    def whole() -> Tensor:
        with torch.no_grad():
            return student(z)

    return {
        "time": ratio(lambda: student.sample(z), whole, size.repeats),
        "flops": flops(student.sample, z) / flops(whole),
    }


def import_ratio(repeats: int) -> float:
    def importing(module: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

    return ratio(importing("dsno"), importing("torch"), repeats)


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """The ratios, each beside its bound."""

    def placed(name: str) -> str:
        where, once = name.split(", once=")
        return f"layers {where}{', first blocks once' if once == 'True' else ''}"

    return [
        *(
            claim(f"FFT form over the layer, {channels} channels, M = 4", speed, 2.0, ">=")
            for channels, speed in numbers["layer"].items()
        ),
        *(
            claim(f"lifted training step over M x the backbone's at the same batch, {placed(name)}", over, 1.15, "<=")
            for name, over in numbers["step"].items()
        ),
        *(
            claim(f"sample alone over whole trajectory, time, layers {name}", saved["time"], 1.0, "<=")
            for name, saved in numbers["last_frame"].items()
        ),
        claim("import dsno over import torch", numbers["import"], 2.0, "<="),
    ]


def options() -> argparse.ArgumentParser:
    return parser(__file__, __doc__)


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    torch.set_num_threads(1)
    size = QUICK if arguments.quick else Size()
    numbers = {
        "layer": {str(channels): layer_speed(channels, size) for channels in size.widths},
        # A student without layers is its backbone, and nothing to compare.
        "step": {
            n: step_ratio(size, **placement) for n, placement in PLACEMENTS.items() if placement["where"] != "none"
        },
        "last_frame": {name: last_frame(size, **placement) for name, placement in PLACEMENTS.items()},
        "import": import_ratio(size.imports),
    }
    write(
        arguments,
        "layers",
        f"one thread; medians of {size.repeats} alternating repeats; U-Net {size.channels} on 8x8, M = {FRAMES}",
        judged(numbers),
        **numbers,
    )


if __name__ == "__main__":
    main()
