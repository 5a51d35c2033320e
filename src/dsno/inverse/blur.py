r"""Blur with a known kernel: a linear operator that Fourier space makes diagonal.

A kernel $k$ with its centre $c$, the pixel `size // 2` of each side, blurs a picture by

$$ (k * x)_n = \sum_m k_m \, x_{n - (m - c)}, $$

in every channel alike. Beyond its border the picture goes on from the other side (*circular*) or is zero. With the
discrete Fourier transform $F$ and the kernel rolled so that $c$ lies at the origin, $K = F k$ is the optical transfer
function, and

$$ A x = F^{-1} (K \cdot F x), \qquad A^\top y = F^{-1} (\bar K \cdot F y), $$

$$ A^\dagger y = F^{-1} (K^{-1} \cdot F y), \qquad
   \arg\min_x \tfrac\gamma2 |A x - y|^2 + \tfrac12 |x - z|^2
   = F^{-1} \frac{\gamma \bar K \cdot F y + F z}{\gamma |K|^2 + 1}. $$

A border of zeros is a circular blur of the padded picture, cut: $A = C \, A_\circ P$ on a grid of
$N + \text{size} - 1$ pixels, where nothing comes round. With $P = C^\top$ its adjoint $C A_\circ^\top P$ is exact; the
linear systems are then not diagonal any more, and are solved by conjugate gradients, preconditioned by the circular
solution on that grid, cut.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Blur"]

ITERATIONS = 100
"""Of conjugate gradients: a number and no test, since nothing is to be read back from a device."""

REGULARISED = 1e-4
r"""$\epsilon$ of the regularised inverse with zeros around."""


class Blur:
    r"""Convolution with a kernel, as a problem of `dsno.inverse`.

    Arguments:
        kernel: $k$, in real numbers of positive sum: (l,) of signals or (h, w) of pictures, or one for each row of a
            batch, (B, 1, l) or (B, 1, h, w). Of an even side the centre is the right one of the two pixels.
        circular: Whether a sample goes on from the other side beyond its border; it is zero there otherwise.
        noise: The standard deviation of the noise of $y$, in the units of the samples, $\ge 0$.

    Raises:
        ValueError: for a kernel of another shape, that is not finite or whose sum is not positive, or a negative noise;
            when called, for samples smaller than the kernel, or of another number of rows than there are kernels.
    """

    def __init__(self, kernel: Tensor, circular: bool = True, noise: float = 0.0) -> None:
        if kernel.ndim not in (1, 2, 3, 4) or 0 in kernel.shape or (kernel.ndim > 2 and kernel.shape[1] != 1):
            raise ValueError(
                "a kernel is (l,) or (h, w), or one for each row (B, 1, l) or (B, 1, h, w), got the shape "
                f"{tuple(kernel.shape)}"
            )
        if not kernel.is_floating_point() or not bool(kernel.isfinite().all()):
            raise ValueError("a kernel must be of finite real numbers: take what is NaN or infinite out of it")
        self.kernel, self.circular, self.noise = kernel, circular, float(noise)
        if not bool((self.rows.flatten(1).sum(1) > 0).all()):
            total = float(self.rows.flatten(1).sum(1).min())
            raise ValueError(f"a kernel must have a positive sum (1 keeps the brightness), got {total:g}")
        if not noise >= 0:
            raise ValueError(f"noise is a standard deviation of at least 0, got {noise}")
        self._otf: dict[object, Tensor] = {}

    @property
    def size(self) -> tuple[int, ...]:
        """The sides of the kernel: one of signals, two of pictures."""
        return tuple(self.kernel.shape[2:] if self.kernel.ndim > 2 else self.kernel.shape)

    @property
    def rows(self) -> Tensor:
        """The kernels, (B, 1, *size), or (1, 1, *size) where all rows have one."""
        return self.kernel if self.kernel.ndim > 2 else self.kernel[None, None]

    def revised(self, kernel: Tensor, noise: float | None = None) -> Blur:
        """This blur with another kernel, and noise where it is given; not checked, so nothing waits for the device."""
        made = copy.copy(self)
        made.kernel, made.noise, made._otf = kernel, self.noise if noise is None else noise, {}
        return made

    def otf(self, grid: Sequence[int], like: Tensor) -> Tensor:
        r"""$K$ on a grid of pixels, as `rfftn` orders frequencies: to multiply that of samples `like` (B, ..., *grid).

        It is of the dtype of `like`, float32 at least, and on its device.
        """
        key = (*grid, like.ndim, like.dtype, like.device)
        if key not in self._otf:
            axes = tuple(range(-len(grid), 0))
            rows = self.rows.to(like.device, torch.promote_types(like.dtype, torch.float32))
            room = [r for k, n in zip(self.size[::-1], tuple(grid)[::-1], strict=True) for r in (0, n - k)]
            padded = F.pad(rows, room).reshape(len(rows), *[1] * (like.ndim - 1 - len(grid)), *grid)
            self._otf[key] = torch.fft.rfftn(padded.roll([-(n // 2) for n in self.size], axes), dim=axes)
        return self._otf[key]

    def A(self, x: Tensor) -> Tensor:
        """$k * x$, of the shape of `x` (B, ..., *spatial)."""
        return self._filtered(x, lambda K: K)

    def A_adjoint(self, y: Tensor) -> Tensor:
        r"""$A^\top y$, of the shape of `y`."""
        return self._filtered(y, lambda K: K.conj())

    def A_dagger(self, y: Tensor) -> Tensor:
        r"""$A^\dagger y$ without what the blur took away, of the shape of `y`.

        Circular: the pseudo-inverse that passes frequencies of $|K| > c \max |K|$ and drops the others, $c$ being the
        square root of the dtype's rounding; noise is divided by $|K|$, so of a noisy $y$ `prox_l2` says more. With
        zeros around: $(A^\top A + \epsilon)^{-1} A^\top y$ of $\epsilon$ = 1e-4.
        """
        if not self.circular:
            return self.prox_l2(torch.zeros_like(y), y, 1 / REGULARISED)
        c = torch.finfo(torch.promote_types(y.dtype, torch.float32)).eps ** 0.5

        def inverse(K: Tensor) -> Tensor:
            passed = K.abs() > c * K.abs().flatten(1).amax(1).reshape(-1, *[1] * (K.ndim - 1))
            return torch.where(passed, 1 / torch.where(passed, K, 1), 0)

        return self._filtered(y, inverse)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor:
        r"""$\arg\min_x \tfrac\gamma2 |A x - y|^2 + \tfrac12 |x - z|^2$, of the shape of `z`; `gamma` $\ge 0$.

        Circular it is exact, with zeros around to `ITERATIONS` steps of conjugate gradients: for `gamma` up to 1e4 and
        kernels of nine pixels to some 1e-5 of its length.
        """
        b = z + gamma * self.A_adjoint(y)

        def solved(r: Tensor) -> Tensor:
            return self._filtered(r, lambda K: 1 / (gamma * K.abs() ** 2 + 1))

        return solved(b) if self.circular else _conjugate_gradients(self._normal(gamma), b, solved)

    def _normal(self, gamma: float) -> Callable[[Tensor], Tensor]:
        r"""$x \mapsto (\gamma A^\top A + 1) x$."""
        return lambda x: x + gamma * self.A_adjoint(self.A(x))

    def _filtered(self, x: Tensor, gain: Callable[[Tensor], Tensor]) -> Tensor:
        r"""$C F^{-1} (g \cdot F P x)$ with what `gain` makes of $K$, of the shape and dtype of `x`."""
        spatial, axes = x.shape[-len(self.size) :], tuple(range(-len(self.size), 0))
        if x.ndim <= len(self.size) or any(k > n for k, n in zip(self.size, spatial, strict=True)):
            raise ValueError(
                f"a kernel {self.size} blurs samples (B, ..., *spatial) that are at least as large, got "
                f"{tuple(x.shape)}: crop the kernel"
            )
        if len(self.rows) not in (1, len(x)):
            raise ValueError(f"there are {len(self.rows)} kernels for {len(x)} samples: give one, or one for each")
        grid = spatial if self.circular else tuple(n + k - 1 for n, k in zip(spatial, self.size, strict=True))
        real = x.to(torch.promote_types(x.dtype, torch.float32))
        made = torch.fft.irfftn(gain(self.otf(grid, x)) * torch.fft.rfftn(real, s=grid, dim=axes), s=grid, dim=axes)
        return made[(..., *map(slice, spatial))].to(x.dtype)


def _conjugate_gradients(
    apply: Callable[[Tensor], Tensor], b: Tensor, precondition: Callable[[Tensor], Tensor]
) -> Tensor:
    """Solve `apply(x) = b`, symmetric and positive, for each row apart (Hestenes & Stiefel, 1952)."""

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (u * v).flatten(1).sum(1).reshape(-1, *[1] * (u.ndim - 1))

    tiny = torch.finfo(b.dtype).tiny
    x = torch.zeros_like(b)
    r, p = b, precondition(b)
    rho = dot(r, p)
    for _ in range(ITERATIONS):
        q = apply(p)
        step = rho / dot(p, q).clamp_min(tiny)
        x, r = x + step * p, r - step * q
        z = precondition(r)
        rho, before = dot(r, z), rho
        p = z + rho / before.clamp_min(tiny) * p
    return x
