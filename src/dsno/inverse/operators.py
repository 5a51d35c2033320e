r"""What is measured of samples: parts of them, fewer pixels, no colour, or what a function of the user's says.

| problem | $A$ | $A A^\top$ |
|---|---|---|
| `Mask` | $m \odot x$ with $m$ of 0 and 1 | $m$ |
| `Downsample` | $\bigotimes_i M_i$, a short matrix for each axis | $\bigotimes_i M_i M_i^\top$ |
| `Grey` | $\sum_c w_c x_c$ | $\lvert w \rvert^2$ |

So $A A^\top$ is diagonal at once or after a change of basis on each axis apart, and pseudo-inverse and proximal map are

$$ A^+ = A^\top (A A^\top)^+, \qquad
   \mathrm{prox}(z, y, \gamma) = z + \gamma A^\top (I + \gamma A A^\top)^{-1} (y - A z) $$

in closed form, on signals, images and volumes alike. `Composition` and `Function` have neither: what needs them solves
by conjugate gradients (`problem.posterior_mean`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dsno.inverse.problem import Problem, noise_of
from dsno.seeds import generator

__all__ = ["Composition", "Downsample", "Function", "Grey", "Mask"]


@dataclass(frozen=True, eq=False)
class Mask:
    r"""$y = m \odot x + \tau n$: what is seen of a sample, in its own shape, and 0 elsewhere.

    Arguments:
        keep: $m$, 1 or True where the sample is seen and 0 where it is hidden; broadcastable to (*shape), (H, W) of an
            image say.
        noise: $\tau$.

    Raises:
        ValueError: for a mask that is not of 0 and 1, or hides everything; for negative noise; when called, for samples
            it does not fit.
    """

    keep: Tensor
    noise: float = 0.0

    def __post_init__(self) -> None:
        noise_of(self)
        if not bool(((self.keep == 0) | (self.keep == 1)).all()):
            raise ValueError("a mask must be of 0 (hidden) and 1 (seen), and holds other values: threshold it first")
        if not bool(self.keep.any()):
            raise ValueError("a mask that hides everything leaves nothing to restore from: 1 is what is seen")

    @classmethod
    def box(cls, shape: Sequence[int], share: float = 0.5, noise: float = 0.0) -> Mask:
        """Hide a box in the middle of samples (C, *spatial), of `share` of every side.

        Raises:
            ValueError: unless the share is in (0, 1).
        """
        _between(share, "the share of a side that a box hides")
        keep = torch.ones(*shape[1:], dtype=torch.bool)
        sides = [max(1, round(n * share)) for n in shape[1:]]
        keep[tuple(slice((n - k) // 2, (n - k) // 2 + k) for n, k in zip(shape[1:], sides, strict=True))] = False
        return cls(keep, noise)

    @classmethod
    def half(cls, shape: Sequence[int], axis: int = -1, noise: float = 0.0) -> Mask:
        """Hide the second half of an axis of samples (C, *spatial): the right one of images, by default."""
        size = shape[1:][axis] if axis < 0 else shape[axis]
        keep = torch.arange(size) < (size + 1) // 2
        along = axis if axis < 0 else axis - len(shape)
        return cls(keep.reshape(-1, *[1] * (-along - 1)).expand(shape[1:]), noise)

    @classmethod
    def random(cls, shape: Sequence[int], hidden: float = 0.7, seed: int = 0, noise: float = 0.0) -> Mask:
        """Hide a share of the pixels of samples (C, *spatial), in all channels alike, drawn by `seed`.

        Raises:
            ValueError: unless the share is in (0, 1).
        """
        _between(hidden, "the share of pixels that is hidden")
        count = math.prod(shape[1:])
        order = torch.randperm(count, generator=generator(seed))
        keep = torch.ones(count, dtype=torch.bool)
        keep[order[: min(count - 1, round(count * hidden))]] = False
        return cls(keep.reshape(*shape[1:]), noise)

    def A(self, x: Tensor, /) -> Tensor:
        sides = zip(reversed(self.keep.shape), reversed(x.shape[1:]), strict=False)
        if self.keep.ndim >= x.ndim or any(k not in (1, n) for k, n in sides):
            raise ValueError(f"the mask is {tuple(self.keep.shape)}, and samples are {tuple(x.shape[1:])}: resize one")
        return x * self.keep.to(x)

    def A_adjoint(self, y: Tensor, /) -> Tensor:
        return self.A(y)

    def A_dagger(self, y: Tensor, /) -> Tensor:
        return self.A(y)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float, /) -> Tensor:
        return z + gamma / (1 + gamma) * self.A(y - z)


@dataclass(frozen=True, eq=False)
class Downsample:
    r"""$y = (M_1 \otimes \dots \otimes M_d) \, x + \tau n$: every spatial axis of (B, C, *spatial) shorter by a factor.

    $$ M_{ij} \propto k\big( (j - c_i) / f \big), \qquad c_i = (i + \tfrac12) f - \tfrac12, \qquad \sum_j M_{ij} = 1, $$

    with $k$ the box of width 1 (`average`: the mean of each block) or the cubic kernel with $a = -1/2$, stretched by
    $f$ so that nothing is aliased (`bicubic`, as torch and Pillow resize). Weights beyond the edge are left out.

    Arguments:
        factor: $f$, a whole number of 2 or more that divides the axes.
        kind: `average` or `bicubic`.
        noise: $\tau$.

    Raises:
        ValueError: for another kind, a factor below 2, or negative noise; when called, for axes it does not divide.

    Source of the kernel: Keys, 1981, eq. 15.
    """

    factor: int
    kind: Literal["average", "bicubic"] = "average"
    noise: float = 0.0

    def __post_init__(self) -> None:
        noise_of(self)
        if self.kind not in ("average", "bicubic"):
            raise ValueError(f"unknown downsampling {self.kind!r}: expected average or bicubic")
        if isinstance(self.factor, bool) or not isinstance(self.factor, int) or self.factor < 2:
            raise ValueError(f"a factor of downsampling is a whole number of 2 or more, got {self.factor!r}")

    def A(self, x: Tensor, /) -> Tensor:
        return _each_axis(x, [axis.M for axis in self._axes(x, x.shape[2:])])

    def A_adjoint(self, y: Tensor, /) -> Tensor:
        return _each_axis(y, [axis.M.mT for axis in self._axes(y, self._large(y))])

    def A_dagger(self, y: Tensor, /) -> Tensor:
        return _each_axis(y, [axis.dagger for axis in self._axes(y, self._large(y))])

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float, /) -> Tensor:
        axes = self._axes(z, z.shape[2:])
        # In the basis where every M M^T is diagonal, A A^T is the product of the eigenvalues.
        eigenvalues = functools.reduce(lambda one, other: one[..., None] * other, [axis.eigenvalues for axis in axes])
        rest = _each_axis(y - self.A(z), [axis.basis.mT for axis in axes]) / (1 + gamma * eigenvalues)
        return z + gamma * self.A_adjoint(_each_axis(rest, [axis.basis for axis in axes]))

    def _large(self, y: Tensor) -> list[int]:
        return [n * self.factor for n in y.shape[2:]]

    def _axes(self, x: Tensor, sizes: Sequence[int]) -> list[_Axis]:
        if not sizes or any(n % self.factor for n in sizes):
            raise ValueError(
                f"a factor of {self.factor} does not divide samples of {' x '.join(map(str, sizes)) or 'no axes'}: "
                "crop or resize them, or take another"
            )
        return [_axis(n, self.factor, self.kind, x.dtype, x.device) for n in sizes]


@dataclass(frozen=True, eq=False)
class _Axis:
    """$M$ (n/f, n) of one axis, its pseudo-inverse, and the eigenvectors (columns) and eigenvalues of $M M^\\top$."""

    M: Tensor
    dagger: Tensor
    basis: Tensor
    eigenvalues: Tensor


@functools.lru_cache(maxsize=64)
def _axis(n: int, factor: int, kind: str, dtype: torch.dtype, device: torch.device) -> _Axis:
    centre = (torch.arange(n // factor, dtype=torch.float64) + 0.5) * factor - 0.5
    u = ((torch.arange(n, dtype=torch.float64) - centre[:, None]) / factor).abs()
    M = (u < 0.5).double()
    if kind == "bicubic":
        M = torch.where(u < 1, 1.5 * u**3 - 2.5 * u**2 + 1, torch.where(u < 2, -0.5 * u**3 + 2.5 * u**2 - 4 * u + 2, 0))
    M = M / M.sum(1, keepdim=True)
    eigenvalues, basis = torch.linalg.eigh(M @ M.mT)
    return _Axis(*(c.to(device, dtype) for c in (M, torch.linalg.pinv(M), basis, eigenvalues)))


def _each_axis(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """A matrix (m, n) for each spatial axis of (B, C, *spatial), applied to it."""
    for axis, matrix in enumerate(matrices, start=2):
        x = (x.movedim(axis, -1) @ matrix.mT).movedim(-1, axis)
    return x


@dataclass(frozen=True)
class Grey:
    r"""$y = \sum_c w_c x_c + \tau n$: (B, C, *spatial) to (B, 1, *spatial).

    Arguments:
        weights: $w$, one for each channel; by default how bright red, green and blue are (ITU-R BT.601).
        noise: $\tau$.

    Raises:
        ValueError: for weights that are all 0, or negative noise; when called, for another number of channels.
    """

    weights: tuple[float, ...] = (0.299, 0.587, 0.114)
    noise: float = 0.0

    def __post_init__(self) -> None:
        noise_of(self)
        if not any(self.weights):
            raise ValueError("the weights of a grey are all 0: give each channel its share")

    def A(self, x: Tensor, /) -> Tensor:
        if x.ndim < 2 or x.shape[1] != len(self.weights):
            raise ValueError(f"a grey of {len(self.weights)} channels takes no samples of shape {tuple(x.shape[1:])}")
        return (x * self._w(x)).sum(1, keepdim=True)

    def A_adjoint(self, y: Tensor, /) -> Tensor:
        return y * self._w(y)

    def A_dagger(self, y: Tensor, /) -> Tensor:
        return self.A_adjoint(y) / self._square

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float, /) -> Tensor:
        return z + gamma / (1 + gamma * self._square) * self.A_adjoint(y - self.A(z))

    @property
    def _square(self) -> float:
        return sum(w * w for w in self.weights)

    def _w(self, x: Tensor) -> Tensor:
        return x.new_tensor(self.weights).reshape(-1, *[1] * (x.ndim - 2))


@dataclass(frozen=True)
class Composition:
    r"""$y = A_k \cdots A_1 x + \tau n$: one measurement after another, a blur and then fewer pixels say.

    Arguments:
        problems: $A_1, \dots, A_k$; their own noise is not read.
        noise: $\tau$.

    Raises:
        ValueError: for no problems, or negative noise.
    """

    problems: tuple[Problem, ...]
    noise: float = 0.0

    def __post_init__(self) -> None:
        noise_of(self)
        if not self.problems:
            raise ValueError("a composition needs at least one problem")

    def A(self, x: Tensor, /) -> Tensor:
        for problem in self.problems:
            x = problem.A(x)
        return x

    def A_adjoint(self, y: Tensor, /) -> Tensor:
        for problem in reversed(self.problems):
            y = problem.A_adjoint(y)
        return y


@dataclass(frozen=True)
class Function:
    r"""$y = f(x) + \tau n$ with a linear function of the user's; its adjoint is the pullback of f at 0.

    Arguments:
        f: (B, *shape) to (B, *measured), of torch's operations. One that is not linear fails `check_problem`.
        shape: The shape of one sample.
        noise: $\tau$.

    Raises:
        ValueError: for negative noise.
    """

    f: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    noise: float = 0.0

    def __post_init__(self) -> None:
        noise_of(self)

    def A(self, x: Tensor, /) -> Tensor:
        return self.f(x)

    def A_adjoint(self, y: Tensor, /) -> Tensor:
        with torch.enable_grad():
            x = y.new_zeros(len(y), *self.shape).requires_grad_()
            return torch.autograd.grad(self.f(x), x, y)[0]


def _between(share: float, what: str) -> None:
    if not 0 < share < 1:
        raise ValueError(f"{what} must be in (0, 1), got {share:g}")
