"""What the temporal layer and the lifted network cost, as ratios taken in one run.

    python benchmarks/layers.py

- the layer's two real products against its FFT form, M = 4, 128 and 256 channels;
- one training step of the lifted network against M times the backbone's step;
- the sample alone against the whole trajectory, for each placement of the layers;
- importing dsno against importing torch alone.

Each ratio is the median of repeats in which both sides alternate. Writes benchmarks/results/layers.json.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from _common import claim, write
from torch import Tensor

from dsno import Cosine, Prediction, grids, student_from_teacher
from dsno.cost import flops
from dsno.nets.unet import UNet
from dsno.students.temporal import TemporalFourier


def ratio(a: Callable[[], object], b: Callable[[], object], repeats: int = 15) -> float:
    """Median of time(a) / time(b) over alternating repeats."""
    a(), b()
    ratios = []
    for _ in range(repeats):
        t0 = time.perf_counter()
        a()
        t1 = time.perf_counter()
        b()
        ratios.append((t1 - t0) / (time.perf_counter() - t1))
    return statistics.median(ratios)


def fft_form(u: Tensor, weight: Tensor, frames: int) -> Tensor:
    """The official layer: rfft over the frames, a complex matrix per mode, irfft, on (B*M, C, H, W)."""
    B = u.shape[0] // frames
    folded = u.reshape(B, frames, *u.shape[1:])
    spectrum = torch.fft.rfft(folded, dim=1)
    mixed = torch.zeros_like(spectrum)
    modes = len(weight)
    mixed[:, :modes] = torch.einsum("bkihw,kio->bkohw", spectrum[:, :modes], weight)
    return u + torch.nn.functional.leaky_relu(torch.fft.irfft(mixed, n=frames, dim=1), 0.01).reshape(u.shape)


def layer_speed(channels: int) -> float:
    layer = TemporalFourier(channels, 4, 2, "leaky_relu", "normal")
    weight = torch.complex(layer.real.detach(), torch.stack([torch.zeros(channels, channels), layer.imag.detach()[0]]))
    u = torch.randn(4 * 8, channels, 16, 16)
    with torch.no_grad():
        difference = float((layer(u) - fft_form(u, weight, 4)).abs().max())
        assert difference < 1e-4, difference
        return ratio(lambda: fft_form(u, weight, 4), lambda: layer(u))


def step_ratio(where: str, once: bool, frames: int = 4, batch: int = 32) -> float:
    net = UNet(channels=(32, 64))
    student = student_from_teacher(
        Prediction(net, Cosine(), "v"), grids.quadratic(frames)[1:], where=where, once=once, told="output"
    )
    z, t = torch.randn(batch, 1, 8, 8), torch.rand(batch * frames)
    x = torch.randn(batch * frames, 1, 8, 8)

    def lifted() -> None:
        student.zero_grad()
        (student(z) - 1).square().mean().backward()

    def backbone() -> None:
        net.zero_grad()
        (net(x, t) - 1).square().mean().backward()

    return ratio(lifted, backbone)


def last_frame(where: str, once: bool) -> tuple[float, float]:
    """Time and FLOPs of the sample alone over those of the whole trajectory."""
    student = student_from_teacher(
        Prediction(UNet(channels=(32, 64)), Cosine(), "v"),
        grids.quadratic(4)[1:],
        where=where,
        once=once,
        told="output",
    ).eval()
    z = torch.randn(64, 1, 8, 8)

    def full() -> Tensor:
        with torch.no_grad():
            return student(z)

    return ratio(lambda: student.sample(z), full), flops(student.sample, z) / flops(full)


def import_ratio(repeats: int = 5) -> float:
    def seconds(module: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        return time.perf_counter() - began

    seconds("dsno"), seconds("torch")
    return statistics.median(seconds("dsno") / seconds("torch") for _ in range(repeats))


def main() -> None:
    torch.set_num_threads(1)
    claims = [
        claim(f"FFT form over the layer, {channels} channels, M = 4", layer_speed(channels), 2.0, ">=")
        for channels in (128, 256)
    ]
    placements = [("every", False), ("low", False), ("low", True)]
    for where, once in placements:
        name = f"layers {where}{', first blocks once' if once else ''}"
        claims.append(
            claim(
                f"lifted training step over M x the backbone's at the same batch, {name}",
                step_ratio(where, once),
                1.15,
                "<=",
            )
        )
    saved = {}
    for where, once in [*placements, ("none", False)]:
        seconds, operations = last_frame(where, once)
        saved[f"{where}, once={once}"] = {"time": seconds, "flops": operations}
        claims.append(
            claim(f"sample alone over whole trajectory, time, layers {where}, once={once}", seconds, 1.0, "<=")
        )
    claims.append(claim("import dsno over import torch", import_ratio(), 2.0, "<="))
    for c in claims:
        print(f"{'ok  ' if c['holds'] else 'FAIL'} {c['name']}: {c['value']:.3f} ({c['direction']} {c['bound']})")
    write(
        "layers",
        "one thread; medians of 15 alternating repeats; U-Net (32, 64) on 8x8, M = 4",
        claims,
        last_frame=saved,
    )


if __name__ == "__main__":
    main()
