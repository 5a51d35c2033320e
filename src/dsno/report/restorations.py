r"""Restored pictures: how good they are, the files they are written to, and a page to look at.

One answer of an inverse problem is a guess. Of several samples $x_1, \dots, x_S$ the page shows mean and spread,

$$ \bar x = \frac1S \sum_j x_j, \qquad s = \Big( \frac{1}{S - 1} \sum_j (x_j - \bar x)^2 \Big)^{1/2}, $$

in which what the measurement leaves open is bright. The mean is nearer to the reference than the samples are on
average, in squares, and is no sample: it is as blurred as they disagree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dsno.data.originals import as_png
from dsno.measure.fidelity import psnr, ssim
from dsno.report.page import Picture, Section, html_report
from dsno.report.pictures import enlarged, image_grid

__all__ = ["Restoration", "restoration_report"]

SIDE = 256
"""Pixels of a side on the page, at twice the size it is shown at, that smaller pictures are enlarged to."""

FEW = 8
"""Samples of a picture on the page."""

MAGNIFIED = 2.0
"""A difference, or a spread, is shown so many times as bright as it is."""


@dataclass(frozen=True)
class Restoration:
    """A picture, restored.

    Attributes:
        name: What it is called.
        y: What was measured, (C', h, w) in [-1, 1] but for noise.
        x: Its restorations, (S, C, H, W) in [-1, 1].
        residual: Of each, (S,): `dsno.inverse.restore.Restored.residual`.
        seeds: Of each.
        reference: What should have come out, (C, H, W), where it is known.
        kernel: The kernels that were estimated, (S, h, w), of a blind method.
        measured: Whether `y` was made of the reference, and is written, too.
    """

    name: str
    y: Tensor
    x: Tensor
    residual: Tensor
    seeds: tuple[int, ...]
    reference: Tensor | None = None
    kernel: Tensor | None = None
    measured: bool = False

    @property
    def mean(self) -> Tensor:
        r"""$\bar x$, (C, H, W)."""
        return self.x.mean(0)

    @property
    def spread(self) -> Tensor:
        """$s$, (C, H, W); of one sample 0."""
        return self.x.std(0) if len(self.x) > 1 else torch.zeros_like(self.x[0])

    @property
    def plain(self) -> Tensor:
        """What was measured at the size and in the channels of a restoration, (C, H, W), nothing restored."""
        C, H, W = self.x.shape[1:]
        return F.interpolate(self.y[None].expand(-1, C, -1, -1), size=(H, W), mode="nearest")[0]

    def measures(self) -> dict[str, Any]:
        """How good it is: numbers, or a list of one for each sample; infinite ones are None."""
        C, H, W = self.x.shape[1:]
        held: dict[str, Any] = {"name": self.name, "size": [H, W], "mode": "L" if C == 1 else "RGB"}
        held |= {"seeds": [*self.seeds], "residual": _numbers(self.residual)}
        if len(self.x) > 1:
            held["spread"] = float(self.spread.square().mean().sqrt())
        if self.reference is not None:
            one = self.reference[None]
            for name, measure in (("psnr", psnr), ("ssim", ssim)):
                held[name] = _numbers(measure(self.x, one.expand_as(self.x)))
                held[f"{name}_of_input"] = _numbers(measure(self.plain[None], one))[0]
                if len(self.x) > 1:
                    held[f"{name}_of_mean"] = _numbers(measure(self.mean[None], one))[0]
        return held

    def files(self) -> dict[str, bytes]:
        """What is written of it, by name: a PNG of each sample; of several their mean and their spread, black where
        they agree; what was measured, if it was made; kernels, as numbers and as pictures."""
        several = len(self.x) > 1
        marks = [f"-seed-{seed}" if several else "" for seed in self.seeds]
        held = {f"{self.name}{mark}.png": as_png(x) for mark, x in zip(marks, self.x, strict=True)}
        if several:
            held |= {
                f"{self.name}-mean.png": as_png(self.mean),
                f"{self.name}-spread.png": as_png(_bright(self.spread)),
            }
        if self.measured:
            held[f"{self.name}-input.png"] = as_png(self.y)
        for mark, kernel in zip(marks, () if self.kernel is None else self.kernel, strict=self.kernel is not None):
            held[f"{self.name}{mark}-kernel.npy"] = _npy(kernel)
            held[f"{self.name}{mark}-kernel.png"] = as_png(enlarged(_kernel(kernel), SIDE))
        return held

    def section(self) -> Section:
        """Its part of the page."""
        several = len(self.x) > 1
        best = self.mean if several else self.x[0]
        tiles = {"input": self.plain, "mean" if several else "restored": best}
        if several:
            tiles["spread"] = _bright(self.spread)
        if self.reference is not None:
            tiles |= {"reference": self.reference, "difference": _bright((best - self.reference).abs())}
        pictures = [_side_by_side(tiles, _said(self.measures()))]
        if several:
            shown = {f"seed {seed}": x for seed, x in zip(self.seeds[:FEW], self.x, strict=False)}
            rest = f"; {len(self.x) - FEW} more are in the folder" if len(self.x) > FEW else ""
            pictures.append(_side_by_side(shown, f"Samples, by seed{rest}."))
        if self.kernel is not None:
            shown = {f"kernel {seed}": _kernel(k) for seed, k in zip(self.seeds[:FEW], self.kernel, strict=False)}
            pictures.append(_side_by_side(shown, "The kernel that was estimated, its largest weight white."))
        return Section(self.name, pictures=pictures)


def restoration_report(
    path: Path, title: str, summary: str, restorations: Sequence[Restoration], more: int = 0
) -> Path:
    """Write the page: of each picture the input, the samples, the reference and the difference side by side.

    Arguments:
        path: The file.
        title: Its headline.
        summary: What was done, and how good it is.
        restorations: The pictures that are shown.
        more: How many others there are.
    """
    legend = (
        f"A difference or a spread is shown {MAGNIFIED:g} times as bright as it is: black is none. Small pictures are "
        "enlarged by whole factors, and nothing is smoothed."
    )
    rest = f"\n\n{more} more pictures are in the folder and not on this page." if more else ""
    return html_report(path, title, [r.section() for r in restorations], f"{summary}\n\n{legend}{rest}")


def _side_by_side(tiles: Mapping[str, Tensor], caption: str) -> Picture:
    """Pictures of one size in rows of five, each with its name below."""
    row = torch.stack([enlarged(tile, SIDE) for tile in tiles.values()])
    return Picture(image_grid(row, columns=min(len(row), 5), captions=[*tiles]), caption)


def _said(measures: Mapping[str, Any]) -> str:
    """The measures of a picture in a sentence or two; of several samples the median."""

    def middle(name: str, form: str) -> str:
        known = [v for v in measures[name] if v is not None]
        return format(float(np.median(known)), form) if known else "∞"

    size = " x ".join(map(str, measures["size"]))
    said = [f"{size} pixels, residual {middle('residual', '.3g')}"]
    if "psnr" in measures:
        of_input = measures["psnr_of_input"]
        said.append(f"PSNR {middle('psnr', '.2f')} dB (input {'∞' if of_input is None else format(of_input, '.2f')})")
        said.append(f"SSIM {middle('ssim', '.3f')} (input {measures['ssim_of_input']:.3f})")
    if "spread" in measures:
        mean = measures.get("psnr_of_mean")
        said.append(f"spread {measures['spread']:.3g}" + (f", PSNR of the mean {mean:.2f} dB" if mean else ""))
    return ("Medians: " if "spread" in measures else "") + ", ".join(said) + "."


def _numbers(values: Tensor) -> list[float | None]:
    """JSON has no infinity."""
    return [float(v) if math.isfinite(v) else None for v in values.tolist()]


def _bright(difference: Tensor) -> Tensor:
    """What is 0 or more as a picture: 0 is black."""
    return (MAGNIFIED * difference - 1).clamp(-1, 1)


def _kernel(kernel: Tensor) -> Tensor:
    """A kernel (h, w) as a picture (1, h, w), its largest weight white."""
    return (2 * kernel / kernel.max() - 1).clamp(-1, 1)[None]


def _npy(array: Tensor) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array.numpy().astype(np.float32))
    return buffer.getvalue()
