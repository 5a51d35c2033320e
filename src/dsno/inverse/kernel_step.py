r"""The M-step of blind deconvolution: the kernel that explains a blurred picture, given what its original may be.

With originals $x_1, \dots, x_n$ of one picture $y$, whose spectra have the variance $V$ around them, and a kernel prior
$R$ split off by $z$ with the penalty $\beta$ (half-quadratic splitting),

$$ \min_{k, z} \; \frac1{2\tau^2} \, \frac1n \sum_i \mathbb E \lVert y - k * x_i \rVert^2
   + \frac\beta2 \lVert k - z \rVert^2 + \lambda R(z), $$

the two halves are, with $\alpha = \tau^2 \beta$ and in Fourier space,

$$ K = \frac{\tfrac1n \sum_i \bar X_i Y + \alpha Z}{\tfrac1n \sum_i (|X_i|^2 + V) + \alpha}, \qquad
   z = \mathrm{prox}_{\lambda R / \beta}(k). $$

That $K$ fills the whole picture; a kernel does not. On its support the same equations are those of a small matrix,

$$ \sum_{m'} (r_{m - m'} + \alpha \delta_{m m'}) \, k_{m'} = b_m + \alpha z_m, \qquad
   r = F^{-1} \tfrac1n \sum_i (|X_i|^2 + V), \quad b = F^{-1} \tfrac1n \sum_i \bar X_i Y, $$

the autocorrelation of the originals and their correlation with $y$: the exact minimiser among kernels of that size,
where cutting $K$ to it is none. Sums over channels are left out; the step is circular, as the Fourier transform is.

$V$ is what makes this an M-step: with a posterior *mean* in place of $x$ and no $V$ the likelihood may fall, and the
kernel stays at no blur. With $V$ the noise level has an M-step of its own,

$$ \tau^2 = \tfrac1N \, \tfrac1n \sum_i \mathbb E \lVert y - k * x_i \rVert^2. $$

Source: Laroche, Almansa & Coupeté, 2023 (arXiv 2309.00287); the splitting of Geman & Yang, 1995.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dsno.inverse.blur import Blur
from dsno.inverse.kernel_prior import KernelPrior, Shrink
from dsno.inverse.kernels import normalised

__all__ = ["KernelStep", "Moments", "moments"]


@dataclass(frozen=True)
class Moments:
    r"""What the kernel needs to know of originals and blurred pictures.

    Attributes:
        power: $\tfrac1n \sum_i (|X_i|^2 + V)$, summed over channels, (B, *frequencies).
        cross: $\tfrac1n \sum_i \bar X_i Y$, (B, *frequencies).
        energy: $\lVert y \rVert^2$, (B,).
        spatial: The sides of the pictures.
        values: N, the number of values of one picture: channels times pixels.
    """

    power: Tensor
    cross: Tensor
    energy: Tensor
    spatial: tuple[int, ...]
    values: int

    def system(self, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        r"""The matrix $r_{m - m'}$, (B, S, S), and $b_m$, (B, S), on a support of S pixels; the formula above."""
        axes = tuple(range(1, 1 + len(size)))
        r, b = (
            torch.fft.irfftn(F, s=self.spatial, dim=axes).flatten(1) for F in (self.power.to(self.cross), self.cross)
        )
        m = torch.cartesian_prod(*(torch.arange(n, device=r.device) - n // 2 for n in size)).reshape(-1, len(size))
        between = m[:, None] - m[None, :]
        return r[:, self._pixel(between)], b[:, self._pixel(m)]

    def error(self, kernel: Tensor) -> Tensor:
        r"""$\tfrac1n \sum_i \mathbb E \lVert y - k * x_i \rVert^2 = k^\top r k - 2 b^\top k + |y|^2$, (B,)."""
        r, b = self.system(kernel.shape[2:])
        k = kernel.flatten(1).to(b)
        return ((r @ k[..., None])[..., 0] * k).sum(1) - 2 * (b * k).sum(1) + self.energy

    def _pixel(self, m: Tensor) -> Tensor:
        """The number of the pixel at offsets `m` (..., axes) from the origin."""
        n = torch.zeros_like(m[..., 0])
        for i, side in enumerate(self.spatial):
            n = n * side + m[..., i] % side
        return n


def moments(x: Tensor, y: Tensor, axes: int, variance: float | Tensor = 0.0) -> Moments:
    r"""Moments in float64 of originals `x` (n, B, C, *spatial), and blurred pictures `y` (B, C, *spatial).

    Arguments:
        x: n originals of each picture.
        y: The pictures.
        axes: How many of the sides are spatial.
        variance: Of the originals around them, of every value alike; or of each frequency, as $V$ divided by the
            number of pixels, (*frequencies) in the order of `rfftn`.
    """
    # Sums over a picture of squares, of which a small residual is the difference; one device has no float64.
    real = torch.float32 if x.device.type == "mps" else torch.float64
    over = tuple(range(-axes, 0))
    X, Y = (torch.fft.rfftn(image.to(real), dim=over) for image in (x, y))
    spatial = tuple(y.shape[-axes:])
    white = variance * math.prod(spatial) * math.prod(y.shape[1:-axes])
    power = (X.real**2 + X.imag**2).mean(0).flatten(1, -axes - 1).sum(1) + white
    cross = (X.mean(0).conj() * Y).flatten(1, -axes - 1).sum(1)
    energy = y.to(real).square().flatten(1).sum(1)
    return Moments(power, cross, energy, spatial, math.prod(y.shape[1:]))


@dataclass(frozen=True)
class KernelStep:
    r"""An M-step: `rounds` of half-quadratic splitting on the support of the kernel.

    Attributes:
        prior: What is called $\mathrm{prox}_{\lambda R / \beta}$, told the level $\sqrt{\lambda / \beta}$.
        beta: $\beta > 0$: $\alpha = \tau^2 \beta$ is what the prior weighs, against the squares of a picture.
        level: $\sqrt{\lambda / \beta} \ge 0$, the noise that the prior takes off a kernel of sum 1; the default is for
            `Shrink`, a learned prior takes about 0.01.
        rounds: Of the two halves, at least one.
        learn_noise: Also estimate $\tau$, one for all pictures; reading it back makes the host wait for the device.

    Raises:
        ValueError: for a number out of its range.
    """

    prior: KernelPrior = field(default_factory=Shrink)
    beta: float = 1e5
    level: float = 0.05
    rounds: int = 10
    learn_noise: bool = False

    def __post_init__(self) -> None:
        if not self.beta >= 0 or not self.level >= 0 or self.rounds < 1:
            raise ValueError(
                f"an M-step has beta and level of at least 0 and a round or more, got {self.beta}, {self.level} and "
                f"{self.rounds}"
            )

    def __call__(self, blur: Blur, x: Tensor, y: Tensor, variance: float | Tensor = 0.0) -> Blur:
        r"""The blur with the kernel of each picture, (B, 1, *size), estimated from originals `x` (n, B, C, *spatial).

        Arguments:
            blur: The current estimate, whose kernel is the first $z$ and whose noise is $\tau$.
            x: n originals of each picture, such as samples of its posterior.
            y: The blurred pictures (B, C, *spatial).
            variance: Of the originals around `x` (`moments`).
        """
        found = moments(x, y, len(blur.size), variance)
        z = blur.rows.to(y).expand(len(y), *blur.rows.shape[1:])
        kernel = self.solve(found, z, blur.noise)
        noise = float((found.error(kernel).mean() / found.values).clamp_min(0).sqrt()) if self.learn_noise else None
        return blur.revised(kernel.to(y), noise)

    def solve(self, found: Moments, z: Tensor, tau: float) -> Tensor:
        r"""The splitting from $z$ (B, 1, *size), $k \ge 0$ of sum 1; with $\alpha$ = 0 the first half's answer."""
        r, b = found.system(z.shape[2:])
        z = z.to(b)
        alpha = tau**2 * self.beta
        # What rounding leaves of a picture without texture, such as a constant one, has no inverse.
        floor = torch.finfo(r.dtype).eps * r.diagonal(dim1=1, dim2=2).mean(1)
        eye = torch.eye(r.shape[1], dtype=r.dtype, device=r.device)
        factor, _ = torch.linalg.cholesky_ex(r + (alpha + floor)[:, None, None] * eye)
        for _ in range(self.rounds if alpha > 0 else 1):
            k = torch.cholesky_solve((b + alpha * z.flatten(1))[..., None], factor).reshape(z.shape)
            z = normalised(self.prior(normalised(k), self.level)) if alpha > 0 else normalised(k)
        return z
