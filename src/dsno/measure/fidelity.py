r"""How near a picture is to the one it should be: measures of pairs, where a reference is known.

$$ \mathrm{PSNR} = 10 \log_{10} \frac{L^2}{\mathrm{mean} (x - y)^2}, \qquad
   \mathrm{SSIM} = \mathrm{mean} \, \frac{(2 \mu_x \mu_y + c_1) (2 s_{xy} + c_2)}
   {(\mu_x^2 + \mu_y^2 + c_1) (s_x^2 + s_y^2 + c_2)}, $$

of light from 0 to $L = 1$, which samples in $[-1, 1]$ are brought to: a structural similarity depends on where black
is. Means $\mu$, variances $s^2$ and the covariance $s_{xy}$ are local, under a Gaussian window of 1.5 pixels, cut off
at 5, of the picture mirrored at its borders; $c_1 = 0.01^2$, $c_2 = 0.03^2$; the mean is over pixels and channels.

Both reward a blurred answer over a sharp one that is a little off, so of restorations that are samples they say less
than of means. Neither is a distance between laws: for that see `dsno.measure.metrics`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["psnr", "ssim"]

WIDTH, REACH = 1.5, 5


def psnr(x: Tensor, reference: Tensor) -> Tensor:
    """The peak signal-to-noise ratio of each picture in decibels, (B,) float64; infinite for equal ones.

    Raises:
        ValueError: unless both have one shape (B, *shape).
    """
    _check(x, reference)
    error = (_light(x) - _light(reference)).square().flatten(1).mean(1)
    return -10 * error.log10()


def ssim(x: Tensor, reference: Tensor) -> Tensor:
    """The structural similarity of each picture, (B,) float64; 1 for equal ones.

    Mirrored at the borders, as torchmetrics does it, so that of small pictures every pixel counts. A side of fewer than
    6 pixels has a window that ends where the mirror does.

    Source: Wang, Bovik, Sheikh & Simoncelli, 2004, "Image quality assessment: from error visibility to structural
    similarity", eq. 13.

    Raises:
        ValueError: unless both have one shape (B, C, H, W).
    """
    _check(x, reference)
    if x.ndim != 4:
        raise ValueError(f"structural similarity is of pictures (B, C, H, W), got {tuple(x.shape)}")
    B, C, H, W = x.shape
    x, y = (_light(v).reshape(B * C, 1, H, W) for v in (x, reference))
    rows, columns = (_window(n, x) for n in (H, W))
    window, sides = (rows[:, None] * columns)[None, None], [len(w) // 2 for w in (columns, columns, rows, rows)]
    x, y = (F.pad(v, sides, mode="reflect") for v in (x, y))
    mu_x, mu_y, xx, yy, xy = (F.conv2d(v, window) for v in (x, y, x * x, y * y, x * y))
    var_x, var_y, cov = xx - mu_x**2, yy - mu_y**2, xy - mu_x * mu_y
    c_1, c_2 = 0.01**2, 0.03**2
    likeness = (2 * mu_x * mu_y + c_1) * (2 * cov + c_2) / ((mu_x**2 + mu_y**2 + c_1) * (var_x + var_y + c_2))
    return likeness.reshape(B, -1).mean(1)


def _light(x: Tensor) -> Tensor:
    """[-1, 1] to [0, 1] in float64; nothing is clamped, so that an overshoot is an error, too."""
    return (x.double() + 1) / 2


def _window(n: int, like: Tensor) -> Tensor:
    """The Gaussian weights, of sum 1, in a direction of $n$ pixels."""
    reach = min(REACH, n - 1)
    offset = torch.arange(-reach, reach + 1, dtype=like.dtype, device=like.device)
    weight = torch.exp(-(offset**2) / (2 * WIDTH**2))
    return weight / weight.sum()


def _check(x: Tensor, reference: Tensor) -> None:
    if x.shape != reference.shape or x.ndim < 2:
        raise ValueError(f"pairs have one shape (B, *shape), got {tuple(x.shape)} and {tuple(reference.shape)}")
