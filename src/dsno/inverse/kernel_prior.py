r"""What is known of a kernel before any picture is seen: priors, as the map that takes noise off a kernel.

A prior $R$ enters half-quadratic splitting through its proximal map alone,

$$ \mathrm{prox}_{\lambda R / \beta}(k) = \arg\min_z \tfrac12 \lVert k - z \rVert^2 + \tfrac\lambda\beta R(z), $$

the most probable clean kernel behind one with noise of level $s = \sqrt{\lambda / \beta}$. Of $R(z) = |z|_1$ it shrinks
every value by $s^2$; of a prior that only examples tell it is a network that has learned to denoise them (*plug and
play*). The network here is a DnCNN told the level: five convolutions on the kernel and a map of $s$, which estimate
its noise. Its kernels are made, not collected: paths of motion and Gaussians of any width and direction, in several
sizes; minutes on one core.

Source: Zhang, Zuo, Chen, Meng & Zhang, 2017 (arXiv 1608.03981), figure 1; with the map of Zhang, Zuo & Zhang, 2018
(arXiv 1710.04026); as a prior of kernels Laroche, Almansa & Coupeté, 2023 (arXiv 2309.00287).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from dsno.checkpoint import load_net, save_model
from dsno.inverse.kernels import gaussian, motion
from dsno.outputs import KERNELS, claimed
from dsno.seeds import generator
from dsno.train import Report, TrainConfig, quiet, stage_progress, train

__all__ = [
    "KernelDenoiser",
    "KernelPrior",
    "Shrink",
    "load_kernel_denoiser",
    "save_kernel_denoiser",
    "train_kernel_denoiser",
]

SCALE = 10.0
"""The network sees kernels times this: values of a kernel of nine pixels are around 0.1."""

LEVELS = (1e-3, 0.1)
"""The range of noise that it is trained on, evenly in the logarithm."""

SIZES = (5, 7, 9, 11, 13)


class KernelPrior(Protocol):
    r"""$\mathrm{prox}_{s^2 R}$: kernels (B, 1, *size) of sum 1 and the level $s \\ge 0$ to kernels of that shape."""

    def __call__(self, kernel: Tensor, level: float, /) -> Tensor: ...


@dataclass(frozen=True)
class Shrink:
    r"""The prior $|z|_1$ of kernels that are not negative: $z = \max(k - s^2, 0)$, which empties their faint pixels."""

    def __call__(self, kernel: Tensor, level: float) -> Tensor:
        return (kernel - level**2).clamp_min(0)


class KernelDenoiser(nn.Module):
    r"""$z = k - s N(k, s)$: a small convolutional network that estimates the noise of a kernel, in units of its level.

    `layers` convolutions of 3x3 with rectifiers between them, on $k$ and a map of $s$; kernels of any size, since
    beyond the border both are zero.

    Arguments:
        width: Channels between the layers.
        layers: At least two.

    Raises:
        ValueError: for impossible sizes; when called, for kernels that are not of pictures.
    """

    def __init__(self, width: int = 32, layers: int = 5) -> None:
        super().__init__()
        if width < 1 or layers < 2:
            raise ValueError(f"a kernel denoiser needs a channel and two layers or more, got {width} and {layers}")
        self.config: dict[str, object] = {"width": width, "layers": layers}
        widths = [2, *[width] * (layers - 1), 1]
        convs = [nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(widths)]
        for conv in convs[:-1]:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        # It begins as the identity.
        nn.init.zeros_(convs[-1].weight)
        nn.init.zeros_(cast(Tensor, convs[-1].bias))
        self.convs = nn.ModuleList(convs)

    def forward(self, kernel: Tensor, level: float | Tensor) -> Tensor:
        """Kernels (B, 1, h, w) of sum 1, and the level of all or of each (B,), to kernels (B, 1, h, w)."""
        if kernel.ndim != 4 or kernel.shape[1] != 1:
            raise ValueError(f"this prior knows kernels of pictures (B, 1, h, w), got {tuple(kernel.shape)}")
        s = torch.as_tensor(level, dtype=kernel.dtype, device=kernel.device).reshape(-1, 1, 1, 1).expand_as(kernel)
        h = SCALE * torch.cat([kernel, s], 1).to(next(self.parameters()))
        for conv in self.convs[:-1]:
            h = conv(h).relu()
        return kernel - s * self.convs[-1](h).to(kernel)


@dataclass(frozen=True)
class _Denoise:
    r"""$\lVert D(k + s n, s) - k \rVert^2 / s^2$: the share of the noise that is left, whatever its level."""

    batch: int
    seed: int
    sizes: tuple[int, ...]

    def batches(self, start: int, rank: int, world: int) -> Iterator[dict[str, Tensor]]:
        step = start
        while True:
            g = generator(self.seed, step)
            side = self.sizes[int(torch.randint(len(self.sizes), (), generator=g))]
            clean = _examples(side, self.batch, g)
            low, high = map(math.log, LEVELS)
            level = torch.exp(low + (high - low) * torch.rand(self.batch, generator=g))
            noisy = clean + level[:, None, None, None] * torch.randn(clean.shape, generator=g)
            yield {k: v.chunk(world)[rank] for k, v in (("clean", clean), ("noisy", noisy), ("level", level))}
            step += 1

    def __call__(self, net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        left = net(batch["noisy"], batch["level"]) - batch["clean"]
        return (left / batch["level"][:, None, None, None]).square().mean()


def _examples(side: int, count: int, g: torch.Generator) -> Tensor:
    """Kernels (count, 1, side, side), three of motion to one Gaussian, in float32."""
    smooth = count // 4
    moved = motion((side, side), torch.randint(2**62, (count - smooth,), generator=g), share=(0.2, 1.0))
    stds = (0.3 + (side / 4 - 0.3) * torch.rand(smooth, 2, generator=g)).tolist()
    angles = (math.pi * torch.rand(smooth, generator=g)).tolist()
    blurs = [gaussian((side, side), (s[0], s[1]), angle)[None, None] for s, angle in zip(stds, angles, strict=True)]
    return torch.cat([moved, *blurs]).float()


def train_kernel_denoiser(
    out: Path | str,
    steps: int = 1500,
    seed: int = 0,
    batch: int = 64,
    sizes: Sequence[int] = SIZES,
    report: Report = quiet,
    resume: bool = True,
    overwrite: bool = False,
) -> KernelDenoiser:
    """Train a `KernelDenoiser` on kernels that are made for it, and write it to `out`.

    Arguments:
        out: The network's folder.
        steps: Training steps.
        seed: Of the weights and the kernels.
        batch: Kernels a step, at least 4.
        sizes: Sides of the square kernels; those of a step are of one size.
        report: Told of the progress.
        resume: Continue what is in `out`.
        overwrite: Throw away what is in `out`; wins over `resume`.

    Raises:
        BlockingIOError: if another run is writing to `out`.
        FileExistsError: if `out` has something in it and neither `resume` nor `overwrite` is set, or holds anything
            but a kernel denoiser.
        ValueError: for a batch too small, or what is to be resumed with other settings.
    """
    if batch < 4:
        raise ValueError(f"a batch of kernels has at least 4, of which one is a Gaussian, got {batch}")
    torch.manual_seed(seed)
    net = KernelDenoiser()
    config = TrainConfig(steps=steps, lr=4e-3, warmup=min(50, steps), ema=0.99, checkpoint_every=steps, seed=seed)
    objective = _Denoise(batch, seed, tuple(sizes))
    settings = {"batch": batch, "sizes": list(sizes)}
    with claimed(out, KERNELS, resume and not overwrite, overwrite):
        progress = stage_progress("kernels", report)
        train(net, objective, config, Path(out) / "training", resume=True, progress=progress, settings=settings)
        save_kernel_denoiser(out, net, steps=steps, **settings)
    return net.requires_grad_(False)


def save_kernel_denoiser(folder: Path | str, net: KernelDenoiser, **notes: object) -> Path:
    """Write `config.json` and `model.safetensors`; `notes` go into the former."""
    return save_model(folder, {"type": "kernel denoiser", "net": net.config, "notes": notes}, net)


def load_kernel_denoiser(folder: Path | str) -> KernelDenoiser:
    """Read what `save_kernel_denoiser` wrote.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the folder holds something else, or damaged or foreign weights.
    """
    return load_net(folder, "kernel denoiser", KernelDenoiser, "a kernel denoiser").requires_grad_(False)
