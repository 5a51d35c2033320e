r"""Kernels of a blur: how they are made, centred and compared.

A kernel is $k \ge 0$ with $\sum_m k_m = 1$, so a blur keeps the brightness, and its centre is the pixel $c$ = `size //
2` of each side. Nobody can tell a shift of the kernel from the opposite shift of the picture,

$$ k * x = (S_d k) * (S_{-d} x), $$

so a blind method puts the centre of mass at $c$, and kernels and pictures are compared after the shift at which they
agree best,

$$ e(\hat k, k) = \min_d \frac{\lVert S_d \hat k - k \rVert}{\lVert k \rVert}. $$

Kernels of no parameters but random ones are drawn by seed. All are made in float64; a `Blur` takes them to its samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dsno.seeds import noise

__all__ = ["aligned", "box", "centred", "delta", "disc", "gaussian", "kernel_error", "motion", "normalised"]

POINTS, MEMORY = 128, 0.95
"""Of a path of motion: how many points it has, and how much of its velocity each step keeps."""

FINE = 8
"""Points along each side of a pixel, of shapes whose edges cross it."""


# Kernels


def delta(size: Sequence[int]) -> Tensor:
    """No blur: all mass at the centre, shape `size`.

    Raises:
        ValueError: for another number of sides than one or two, or a side without a pixel.
    """
    k = torch.zeros(_sides(size), dtype=torch.float64)
    k[tuple(n // 2 for n in size)] = 1
    return k


def gaussian(size: Sequence[int], std: float | tuple[float, float], angle: float = 0.0) -> Tensor:
    r"""$k_m \propto \exp(-\tfrac12 |\mathrm{diag}(s)^{-1} R (m - c)|^2)$, shape `size`.

    Arguments:
        size: (l,) or (h, w).
        std: $s > 0$ in pixels; two of them along the axes that `angle` turns.
        angle: Of the first axis against the rows, in radians.

    Raises:
        ValueError: for a size that is none, or a `std` that is not positive.
    """
    stds = (std, std) if isinstance(std, int | float) else tuple(std)
    if not min(stds) > 0:
        raise ValueError(f"the standard deviations of a kernel must be positive, got {std}")
    m = [torch.arange(n, dtype=torch.float64) - n // 2 for n in _sides(size)]
    if len(size) == 1:
        return normalised(torch.exp(-((m[0] / stds[0]) ** 2) / 2)[None, None])[0, 0]
    v, u = torch.meshgrid(*m, indexing="ij")
    along, across = math.cos(angle) * v + math.sin(angle) * u, math.cos(angle) * u - math.sin(angle) * v
    return normalised(torch.exp(-((along / stds[0]) ** 2 + (across / stds[1]) ** 2) / 2)[None, None])[0, 0]


def box(size: Sequence[int], width: float) -> Tensor:
    """Constant over `width` pixels of each side around the centre, shape `size`; each pixel by the share covered.

    Raises:
        ValueError: for a size that is none, or a width that is not positive or does not fit.
    """
    _check_extent(size, width / 2, "width")
    k = torch.ones((), dtype=torch.float64)
    for n in size:
        m = torch.arange(n, dtype=torch.float64) - n // 2
        k = k[..., None] * ((m + 0.5).clamp(max=width / 2) - (m - 0.5).clamp(min=-width / 2)).clamp_min(0) / width
    return k


def disc(size: Sequence[int], radius: float) -> Tensor:
    """Constant inside a circle around the centre, as a lens out of focus has it, shape `size`, (h, w).

    Raises:
        ValueError: for a size that is none of a picture, or a radius that is not positive or does not fit.
    """
    if len(size) != 2:
        raise ValueError(f"a disc is a kernel of pictures, (h, w), got the size {tuple(size)}")
    _check_extent(size, radius, "radius")
    offset = (torch.arange(FINE, dtype=torch.float64) + 0.5) / FINE - 0.5
    v, u = ((torch.arange(n, dtype=torch.float64) - n // 2)[:, None] + offset for n in size)
    inside = v[:, None, :, None] ** 2 + u[None, :, None, :] ** 2 <= radius**2
    return normalised(inside.double().mean((2, 3))[None, None])[0, 0]


def motion(size: Sequence[int], seeds: Sequence[int] | Tensor, share: tuple[float, float] = (0.4, 1.0)) -> Tensor:
    r"""The path of a camera that shakes, one for each seed: (B, 1, *size), each centred.

    A velocity that remembers, $v_{n+1} = \rho v_n + \sqrt{1 - \rho^2} z_n$, is summed to a path $p$ of `POINTS` points,
    whose mean is put at the centre, and which is scaled so that its farthest point is at a part of the half side, drawn
    uniformly from `share`. A point lights the pixels around it by linear interpolation,
    $k_m = \sum_n \prod_i \max(0, 1 - |m - p_n|_i)$, which keeps the mean where it is.

    Raises:
        ValueError: for a size that is none, a `share` outside (0, 1], or bad seeds.
    """
    sides, axes = _sides(size), len(size)
    if not 0 < share[0] <= share[1] <= 1:
        raise ValueError(f"the share of the half side is a range inside (0, 1], got {share}")
    n = torch.arange(POINTS, dtype=torch.float64)
    decay = (n[:, None] - n[None, :]).clamp_min(0)
    kept = torch.where(n[:, None] >= n[None, :], MEMORY**decay, 0.0) * math.sqrt(1 - MEMORY**2)
    kept[:, 0] /= math.sqrt(1 - MEMORY**2)
    path = (kept @ noise(seeds, (POINTS, axes), 0, torch.float64)).cumsum(1)
    path = path - path.mean(1, keepdim=True)
    uniform = torch.special.ndtr(noise(seeds, (1, 1), 1, torch.float64))
    half = torch.tensor([(side - 1) // 2 for side in sides], dtype=torch.float64)
    reach = (path.abs() / half.clamp_min(1)).amax((1, 2), keepdim=True).clamp_min(1e-12)
    path = path / reach * (share[0] + (share[1] - share[0]) * uniform) * (half > 0)
    k = torch.ones(*path.shape[:2], dtype=torch.float64)
    for i, side in enumerate(sides):
        m = torch.arange(side, dtype=torch.float64) - side // 2
        tent = (1 - (m - path[:, :, i, None]).abs()).clamp_min(0)
        k = k[..., None] * tent.reshape(*tent.shape[:2], *[1] * i, side)
    return normalised(k.sum(1)[:, None])


# Their form


def normalised(kernel: Tensor) -> Tensor:
    r"""$\max(k, 0) / \sum \max(k, 0)$ of kernels (B, 1, *size); a delta where nothing is left."""
    positive = kernel.clamp_min(0)
    axes = tuple(range(2, kernel.ndim))
    total = positive.sum(axes, keepdim=True)
    none = centre = torch.zeros_like(kernel)
    for axis in axes:
        centre = centre.narrow(axis, kernel.shape[axis] // 2, 1)
    centre.fill_(1)
    return torch.where(total > 0, positive / torch.where(total > 0, total, 1.0), none)


def centred(kernel: Tensor) -> Tensor:
    """Kernels (B, 1, *size) moved by whole pixels so that their centre of mass is nearest to the centre.

    What leaves the support is lost, and the rest normalised.
    """
    size = kernel.shape[2:]
    k = normalised(kernel)
    moves = []
    for i, n in enumerate(size):
        mass = k.sum((1, *(2 + j for j in range(len(size)) if j != i)))
        moves.append((n // 2 - mass @ torch.arange(n, dtype=k.dtype, device=k.device)).round().long())
    # Room for what moves, so that nothing comes round.
    room = [length for n in reversed(size) for length in (n // 2, n - 1 - n // 2)]
    moved = _rolled(F.pad(k, room), torch.stack(moves, 1))
    for axis, n in enumerate(size, start=2):
        moved = moved.narrow(axis, n // 2, n)
    return normalised(moved)


def aligned(x: Tensor, reference: Tensor, reach: int | None = None) -> Tensor:
    r"""`x` (B, C, *spatial), moved circularly by the whole pixels $d$ at which $\langle S_d x, r \rangle$ is largest.

    Arguments:
        x: What is moved.
        reference: $r$, of its shape.
        reach: The farthest move along each side; any by default.
    """
    spatial, axes = x.shape[2:], tuple(range(2, x.ndim))
    product = torch.fft.rfftn(x, dim=axes).conj() * torch.fft.rfftn(reference, dim=axes)
    agreement = torch.fft.irfftn(product, s=spatial, dim=axes).sum(1)
    if reach is not None:
        for i, n in enumerate(spatial):
            d = torch.arange(n, device=x.device)
            near = torch.minimum(d, n - d) <= reach
            agreement = agreement.masked_fill(~near.reshape(n, *[1] * (len(spatial) - 1 - i)), -math.inf)
    best = agreement.flatten(1).argmax(1)
    moves = []
    for n in reversed(spatial):
        moves.append(best % n)
        best = best // n
    return _rolled(x, torch.stack(moves[::-1], 1))


def kernel_error(estimate: Tensor, truth: Tensor) -> Tensor:
    r"""$e(\hat k, k)$ of the formula above, (B,), of kernels (B, 1, *size) of any two sizes; `truth` may be one."""
    truth = truth.to(estimate).expand(len(estimate), *truth.shape[1:])
    grid = [n + m for n, m in zip(estimate.shape[2:], truth.shape[2:], strict=True)]
    a, b = (_padded(k, grid) for k in (estimate, truth))
    return (aligned(a, b) - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)


def _padded(kernel: Tensor, grid: Sequence[int]) -> Tensor:
    """Kernels (B, 1, *size) with zeros behind them, (B, 1, *grid)."""
    room = [r for n, m in zip(kernel.shape[2:], grid, strict=True) for r in (m - n, 0)]
    return F.pad(kernel, room[::-1])


def _rolled(x: Tensor, moves: Tensor) -> Tensor:
    """Each row of `x` (B, C, *spatial) rolled by its own `moves` (B, axes), which stay on the device."""
    for i in range(moves.shape[1]):
        n = x.shape[2 + i]
        index = (torch.arange(n, device=x.device) - moves[:, i, None]) % n
        shape = [len(x), *[1] * (x.ndim - 1)]
        shape[2 + i] = n
        x = x.gather(2 + i, index.reshape(shape).expand(x.shape))
    return x


def _sides(size: Sequence[int]) -> tuple[int, ...]:
    if len(size) not in (1, 2) or min(size) < 1:
        raise ValueError(f"the size of a kernel is (l,) or (h, w) in pixels, got {tuple(size)}")
    return tuple(size)


def _check_extent(size: Sequence[int], half: float, name: str) -> None:
    if not 0 < half <= min((n - 1) // 2 for n in _sides(size)) + 0.5:
        raise ValueError(f"the {name} must be positive and fit into a kernel of {tuple(size)}, got {half} either way")
