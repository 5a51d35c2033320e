r"""The colours of a restoration, set to those of what was measured: the colour fix of super-resolution.

A teacher that is asked once or a few times may miss the colour of a whole picture while its details are right. Where
the measurement says the colours, $y_0$, they can be put back. By `moments` each channel gets the mean and the standard
deviation of that of $y_0$,

$$ x' = \frac{\mathrm{std} \, y_0}{\mathrm{std} \, x} \, (x - \mathrm{mean} \, x) + \mathrm{mean} \, y_0, $$

by `wavelet` its low frequencies, whatever is coarser than the picture's details: with $B_l$ the binomial kernel
$(1, 2, 1) / 4$ along each axis, its taps $2^l$ pixels apart, the à trous wavelets $w_l$ add up to the picture again,

$$ c_0 = x, \qquad c_{l+1} = B_l c_l, \qquad w_l = c_l - c_{l+1}, \qquad x = c_L + \sum_{l < L} w_l, $$

and the coarse part is replaced,

$$ x' = c_L(y_0) + \sum_{l < L} w_l(x). $$

This is honest only where $y_0$ is a picture with the right colours, which fewer pixels and a blur leave, and a mask and
a loss of colour do not (`colours_of`). Even then `moments` takes away contrast: a picture that lost its details has a
smaller standard deviation than what is behind it. And a restoration that fits what was measured needs neither.

Sources: Wang, Yue, Zhou, Chan & Loy, 2024 (arXiv 2305.07015), and for the moments Huang & Belongie, 2017 (arXiv
1703.06868); wavelets with holes are of Holschneider et al., 1989.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dsno.inverse.problem import Problem, check_problem

__all__ = ["FIXES", "ColourFix", "coarse_and_details", "colours_of", "moments", "wavelet"]

ColourFix = Literal["wavelet", "moments"]

LEVELS = 5
"""Of the wavelets, where the size holds as many: what is coarser than some 32 pixels is colour."""

ALIKE = 1e-3
"""To within which colours in [-1, 1] are the same."""

LEAST = 0.05
"""Of a pixel that was measured: its share of the measurement, of the largest share that there is."""


def moments(x: Tensor, y0: Tensor) -> Tensor:
    r"""$x'$ with the mean and the standard deviation of each channel of $y_0$, both (B, C, H, W).

    A channel of one value has no deviation to be scaled, and becomes the mean of $y_0$.

    Raises:
        ValueError: for pictures of different shapes.
    """
    _check_alike(x, y0)
    (mean, std), (mean_0, std_0) = _moments_of(x), _moments_of(y0)
    return std_0 / std.clamp_min(torch.finfo(x.dtype).tiny) * (x - mean) + mean_0


def wavelet(x: Tensor, y0: Tensor, levels: int | None = None) -> Tensor:
    r"""$x' = c_L(y_0) + \sum_{l < L} w_l(x)$, the details of x upon the coarse part of $y_0$, both (B, C, H, W).

    Arguments:
        x: What was restored.
        y0: What has the right colours.
        levels: $L$; by default 5, or as many as the size holds: $2^L$ is no more than the shorter side.

    Raises:
        ValueError: for pictures of different shapes, or a number of levels that they do not hold.
    """
    _check_alike(x, y0)
    _, *details = coarse_and_details(x, levels)
    coarse, *_ = coarse_and_details(y0, levels)
    return coarse + torch.stack(details).sum(0)


FIXES: dict[ColourFix, Callable[[Tensor, Tensor], Tensor]] = {"wavelet": wavelet, "moments": moments}
"""The two by name."""


def coarse_and_details(x: Tensor, levels: int | None = None) -> list[Tensor]:
    r"""$c_L, w_{L-1}, \dots, w_0$ of (B, C, H, W), each of its shape, whose sum it is; `levels` as in `wavelet`.

    Beyond its border a picture goes on as it is there.

    Raises:
        ValueError: for a number of levels that it does not hold.
    """
    most = min(x.shape[2:]).bit_length() - 1
    L = min(LEVELS, most) if levels is None else levels
    if not 1 <= L <= most:
        raise ValueError(
            f"pictures of {' x '.join(map(str, x.shape[2:]))} pixels hold {most} levels of wavelets, got {L}: take "
            "as many as they hold, 1 at least, or moments"
        )
    details = []
    for radius in (2**level for level in range(L)):
        smoothed = _binomial(x, radius)
        details.append(x - smoothed)
        x = smoothed
    return [x, *reversed(details)]


def colours_of(problem: Problem, y: Tensor) -> Tensor:
    r"""$y_0$, a picture (B, C, H, W) of the colours that a restoration is to have, from what was measured of it.

    It is $y$ (B, *measured) itself, where that is such a picture and colours stay what they are, as they do in a blur.
    Else each pixel is the mean of what was measured of it,

    $$ y_0 = A^\top y \, / \, A^\top A \mathbf 1, $$

    which of means of blocks is $A^+ y$, and of one colour is that colour. Noise is not taken out.

    Raises:
        ValueError: if pixels were not measured, or their channels not apart: nobody knows their colours then.
    """
    like = problem.A_adjoint(y[:1])
    check_problem(problem, like.shape[1:], y.dtype, y.device)
    C = like.shape[1]
    each = torch.eye(C).to(like).reshape(C, C, *[1] * (like.ndim - 2)).expand(C, *like.shape[1:])
    measured = problem.A(each)
    if measured.shape == each.shape and torch.allclose(measured, each, atol=ALIKE):
        return y
    back = problem.A_adjoint(measured)
    share = back.sum(0)
    if not float(share.min()) > LEAST * float(share.max()) or not torch.allclose(back / share, each, atol=ALIKE):
        raise ValueError(
            f"{type(problem).__name__} leaves pixels or colours out, so what was measured does not say what colours a "
            "restoration should have: leave the colour fix out"
        )
    return problem.A_adjoint(y) / share


def _moments_of(x: Tensor) -> tuple[Tensor, Tensor]:
    axes = tuple(range(2, x.ndim))
    return x.mean(axes, keepdim=True), x.std(axes, correction=0, keepdim=True)


def _binomial(x: Tensor, radius: int) -> Tensor:
    """$B_l x$ with taps `radius` = $2^l$ apart."""
    for axis in range(2, x.ndim):
        here = torch.arange(x.shape[axis], device=x.device)
        before, behind = (x.index_select(axis, (here + d).clamp(0, len(here) - 1)) for d in (-radius, radius))
        x = (before + 2 * x + behind) / 4
    return x


def _check_alike(x: Tensor, y0: Tensor) -> None:
    if x.shape != y0.shape:
        raise ValueError(
            f"the colours of {tuple(y0.shape)} are none of restorations {tuple(x.shape)}: give a picture of each one's "
            "shape"
        )
