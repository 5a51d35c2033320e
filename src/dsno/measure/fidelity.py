r"""How near a picture is to the one it should be: measures of pairs, where a reference is known.

$$ \mathrm{PSNR} = 10 \log_{10} \frac{L^2}{\mathrm{mean} (x - y)^2}, \qquad
   \mathrm{SSIM} = \mathrm{mean} \, \frac{(2 \mu_x \mu_y + c_1) (2 s_{xy} + c_2)}
   {(\mu_x^2 + \mu_y^2 + c_1) (s_x^2 + s_y^2 + c_2)}, $$

with the range $L = 2$ of samples in $[-1, 1]$. Means $\mu$, variances $s^2$ and the covariance $s_{xy}$ are local, under
a Gaussian window of $1.5$ pixels, cut off at 5; $c_1 = (0.01 L)^2$, $c_2 = (0.03 L)^2$; and the mean is over windows
that lie in the picture, and over channels.

Both reward a blurred answer over a sharp one that is a little off, so of restorations that are samples they say less
than of means. Neither is a distance between laws: for that see `dsno.measure.metrics`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["psnr", "ssim"]

RANGE = 2.0
"""$L$, of samples in [-1, 1]."""

WIDTH, REACH = 1.5, 5


def psnr(x: Tensor, reference: Tensor) -> Tensor:
    """The peak signal-to-noise ratio of each picture in decibels, (B,) float64; infinite for equal ones.

    Raises:
        ValueError: unless both have one shape (B, *shape).
    """
    _check(x, reference)
    error = (x.double() - reference.double()).square().flatten(1).mean(1)
    return 20 * math.log10(RANGE) - 10 * error.log10()


def ssim(x: Tensor, reference: Tensor) -> Tensor:
    """The structural similarity of each picture, (B,) float64; 1 for equal ones.

    Of a side shorter than the window of 11 pixels the window is as long as it is, an odd number of pixels.

    Source: Wang, Bovik, Sheikh & Simoncelli, 2004, "Image quality assessment: from error visibility to structural
    similarity", eq. 13.

    Raises:
        ValueError: unless both have one shape (B, C, H, W).
    """
    _check(x, reference)
    if x.ndim != 4:
        raise ValueError(f"structural similarity is of pictures (B, C, H, W), got {tuple(x.shape)}")
    B, C, H, W = x.shape
    x, y = (v.double().reshape(B * C, 1, H, W) for v in (x, reference))
    rows, columns = (_window(n, x) for n in (H, W))
    window = (rows[:, None] * columns)[None, None]
    mu_x, mu_y, xx, yy, xy = (F.conv2d(v, window) for v in (x, y, x * x, y * y, x * y))
    var_x, var_y, cov = xx - mu_x**2, yy - mu_y**2, xy - mu_x * mu_y
    c_1, c_2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
    likeness = (2 * mu_x * mu_y + c_1) * (2 * cov + c_2) / ((mu_x**2 + mu_y**2 + c_1) * (var_x + var_y + c_2))
    return likeness.reshape(B, -1).mean(1)


def _window(n: int, like: Tensor) -> Tensor:
    """The Gaussian weights, of sum 1, of as many pixels as there are of $n$."""
    reach = min(REACH, (n - 1) // 2)
    offset = torch.arange(-reach, reach + 1, dtype=like.dtype, device=like.device)
    weight = torch.exp(-(offset**2) / (2 * WIDTH**2))
    return weight / weight.sum()


def _check(x: Tensor, reference: Tensor) -> None:
    if x.shape != reference.shape or x.ndim < 2:
        raise ValueError(f"pairs have one shape (B, *shape), got {tuple(x.shape)} and {tuple(reference.shape)}")
