r"""Blind deconvolution: the picture and the kernel that blurred it, from the blurred picture alone.

$$ y = k * x + \tau n, \qquad n \sim \mathcal N(0, I), \qquad k \text{ unknown}. $$

Expectation maximisation of $\log p(y \mid k)$ alternates between originals given the kernel (E) and the kernel given
the originals (M, `kernel_step`). The teacher is the prior of the originals; a restorer that knows its problem, DPS or
PiGDM, draws them:

| | E | M | calls |
|---|---|---|---|
| classic | n whole runs with the kernel of the round before | once a round, of L | L N |
| fast | none: $\hat x_0(x_t)$ of the one run under way | in every step | N |
| MAP | the one most probable original, of sparse gradients | once a round | none |

The fast kernel is estimated, coarse to fine, from originals as they take shape: at large t they are smooth, and so is
the kernel. $\hat x_0$ is a mean and no sample, so its variance $r_t^2 = \sigma_t^2 / (\alpha_t^2 + \sigma_t^2)$ may
enter the M-step in the share `spread`. After each M-step the kernel is centred, since a shift of it and the opposite
shift of the picture are one solution, and the next steps make the picture follow.

Nothing here finds the kernel if the prior of originals cannot tell it: for a Gaussian one the likelihood depends on
$|K|^2$ alone, so a kernel and its mirror image are equally likely.

Source: Laroche, Almansa & Coupete, 2023 (arXiv 2309.00287), algorithms 1 to 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from dsno.condition import Cond, map_cond
from dsno.cost import Cost, timed
from dsno.denoise import Denoiser
from dsno.grids import uniform
from dsno.inverse.backprop import PiGDM
from dsno.inverse.blur import Blur
from dsno.inverse.kernel_step import KernelStep
from dsno.inverse.kernels import centred
from dsno.inverse.problem import Problem
from dsno.inverse.restore import Restored, Revise
from dsno.schedule import Schedule
from dsno.seeds import as_seeds, mixed, noise

__all__ = ["ClassicEM", "Driven", "FastEM", "PlainMAP"]


class Driven(Protocol):
    """A restorer whose problem may be revised on the way, such as `DPS` and `PiGDM`."""

    def __call__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        problem: Problem,
        y: Tensor,
        z: Tensor,
        cond: Cond | None = None,
        seeds: Tensor | None = None,
        revise: Revise | None = None,
    ) -> Restored: ...


@dataclass(frozen=True)
class FastEM:
    r"""One run of the restorer, and an M-step at $\hat x_0$ in each of its steps.

    Attributes:
        sampler: What restores while the kernel changes.
        step: The M-step.
        spread: The share of $r_t^2$ that is the variance of $\hat x_0$ in the M-step; $\ge 0$.

    Raises:
        ValueError: when called, for a problem that is no circular `Blur` or has no noise to begin with, and as the
            sampler does.
    """

    sampler: Driven = PiGDM(uniform(100))
    step: KernelStep = KernelStep()
    spread: float = 0.1

    def __call__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        problem: Problem,
        y: Tensor,
        z: Tensor,
        cond: Cond | None = None,
        seeds: Sequence[int] | Tensor | None = None,
    ) -> Restored:
        """Restore `y` (B, C, *spatial); the kernel of `problem` is where the estimate begins, such as `delta(size)`."""
        blur = _start(problem)

        def revise(x0_hat: Tensor, t: float) -> Blur:
            nonlocal blur
            alpha_t, sigma_t = schedule.at(t)
            variance = self.spread * sigma_t**2 / (alpha_t**2 + sigma_t**2)
            found = self.step(blur, x0_hat[None], y, variance)
            blur = found.revised(centred(found.kernel))
            return blur

        made = self.sampler(denoiser, schedule, problem, y, z, cond, _rows(seeds), revise)
        return _restored(made.x, y, blur, made.cost)


@dataclass(frozen=True)
class ClassicEM:
    r"""`rounds` of `samples` whole runs each, and an M-step behind each round: what the paper compares itself with.

    The first run starts from the given noise; the noise of every other is drawn from the seeds. The restoration is the
    mean of the last round's samples.

    Attributes:
        sampler: What draws originals given the kernel.
        step: The M-step.
        rounds: L, of EM.
        samples: n, runs of a round, in one batch.

    Raises:
        ValueError: for no round or no sample; when called, without seeds, for a problem that is no circular `Blur` or
            has no noise to begin with, and as the sampler does.
    """

    sampler: Driven = PiGDM(uniform(100))
    step: KernelStep = KernelStep()
    rounds: int = 10
    samples: int = 1

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.samples < 1:
            raise ValueError(f"EM has a round and a sample or more, got {self.rounds} and {self.samples}")

    def __call__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        problem: Problem,
        y: Tensor,
        z: Tensor,
        cond: Cond | None = None,
        seeds: Sequence[int] | Tensor | None = None,
    ) -> Restored:
        """Restore `y` (B, C, *spatial); the kernel of `problem` is where the estimate begins, such as `delta(size)`."""
        blur, n = _start(problem), self.samples
        if seeds is None:
            raise ValueError("classic EM draws the noise of its rounds: give `seeds`, one for each row")
        rows, known = as_seeds(seeds).tolist(), None if cond is None else map_cond(lambda c: torch.cat([c] * n), cond)
        costs: list[Cost] = []
        for l in range(self.rounds):
            own = torch.tensor([mixed(seed, l, i, 1) for i in range(n) for seed in rows])
            start = noise(own, z.shape[1:], 0, z.dtype, z.device)
            if l == 0:
                start[: len(z)] = z
            each = blur.revised(torch.cat([blur.rows.to(y).expand(len(y), *blur.rows.shape[1:])] * n))
            made = self.sampler(
                denoiser, schedule, problem, torch.cat([y] * n), start, known, own, lambda x0_hat, t, each=each: each
            )
            x = made.x.reshape(n, *z.shape)
            found = self.step(blur, x, y)
            blur = found.revised(centred(found.kernel))
            costs.append(made.cost)
        total = {name: sum(getattr(c, name) for c in costs) for name in ("rounds", "rows", "vjps", "jvps", "gradients", "seconds")}
        return _restored(x.mean(0), y, blur, Cost(**total))


@dataclass(frozen=True)
class PlainMAP:
    r"""No teacher: the most probable original under sparse differences, and the kernel, in turn.

    $$ \min_{x, g, k} \; \tfrac12 \lVert y - k * x \rVert^2 + \tfrac\mu2 \sum_d \lVert \nabla_d x - g_d \rVert^2
       + w \lVert g \rVert_0 $$

    In each part everything else is constant: x is a division in Fourier space, $g$ keeps the differences of a pixel
    whose length is above $\sqrt{2 w / \mu}$, and k is the M-step on $\nabla x$ and $\nabla y$, for which the
    brightness says nothing. $\mu$ grows from round to round, so that the kernel is learned from the salient edges
    first; behind the last round x is the Wiener filter's, of differences as large as those found. The difficulty of every method of this kind stays: the likeliest solution under a sparse prior is often no
    blur (Levin, Weiss, Durand & Freeman, 2009).

    Attributes:
        step: The M-step.
        rounds: Of k.
        inner: Rounds of x and g for each of k.
        weight: w > 0.
        penalty: The first and the last $\mu$, evenly in the logarithm between.

    Raises:
        ValueError: for options out of range; when called, for a problem that is no circular `Blur` or has no noise.

    Source: Xu, Zheng & Jia, 2013 ("Unnatural L0 sparse representation for natural image deblurring"), in the splitting
    of Wang, Yang, Yin & Zhang, 2008.
    """

    step: KernelStep = KernelStep()
    rounds: int = 30
    inner: int = 4
    weight: float = 1e-3
    penalty: tuple[float, float] = (0.02, 2.0)

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.inner < 1 or not self.weight > 0 or not 0 < self.penalty[0] <= self.penalty[1]:
            raise ValueError(
                "plain MAP has a round or more of both kinds, a positive weight and a penalty that grows, got "
                f"{self.rounds}, {self.inner}, {self.weight} and {self.penalty}"
            )

    def __call__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        problem: Problem,
        y: Tensor,
        z: Tensor,
        cond: Cond | None = None,
        seeds: Sequence[int] | Tensor | None = None,
    ) -> Restored:
        """Restore `y` (B, C, *spatial); teacher and noise are not asked."""
        (x, blur), seconds = timed(self._run, _start(problem), y)
        return _restored(x, y, blur, Cost(seconds=seconds))

    @torch.no_grad()
    def _run(self, blur: Blur, y: Tensor) -> tuple[Tensor, Blur]:
        axes, spatial = tuple(range(-len(blur.size), 0)), y.shape[-len(blur.size) :]
        Y, x = torch.fft.rfftn(y, dim=axes), y
        impulse = torch.zeros(spatial, dtype=y.dtype, device=y.device)
        impulse[(0,) * len(axes)] = 1
        D = torch.fft.rfftn(_differences(impulse[None], axes), dim=axes)
        low, high = map(math.log, self.penalty)
        for n in range(self.rounds):
            mu = math.exp(low + (high - low) * n / max(self.rounds - 1, 1))
            K = blur.otf(spatial, y)
            for _ in range(self.inner):
                g = _differences(x, axes)
                # Differences of a pixel, in all directions and channels, are kept or dropped together.
                g = torch.where(g.square().sum((0, 2), keepdim=True) > 2 * self.weight / mu, g, 0.0)
                pulled = (D[:, None].conj() * torch.fft.rfftn(g, dim=axes)).sum(0)
                below = K.abs() ** 2 + mu * (D.abs() ** 2).sum(0)
                x = torch.fft.irfftn((K.conj() * Y + mu * pulled) / below, s=spatial, dim=axes)
            dx, dy = (_differences(v, axes).movedim(0, 1).flatten(1, 2) for v in (x, y))
            found = self.step(blur, dx[None], dy)
            blur = found.revised(centred(found.kernel), found.noise)
        # The picture that the kernel is learned from is a sketch. What it leaves of y is noise to the Wiener filter,
        # and how large its differences are is what that filter knows of pictures.
        K, left = blur.otf(spatial, y), (blur.A(x) - y).square().flatten(1).mean(1)
        mu = left / _differences(x, axes).square().mean((0, *range(2, y.ndim + 1)))
        below = K.abs() ** 2 + mu.reshape(-1, *[1] * (y.ndim - 1)) * (D.abs() ** 2).sum(0)
        return torch.fft.irfftn(K.conj() * Y / below, s=spatial, dim=axes), blur


def _differences(x: Tensor, axes: Sequence[int]) -> Tensor:
    """$x_n - x_{n-1}$ along each of the axes, stacked in front."""
    return torch.stack([x - x.roll(1, axis) for axis in axes])


def _start(problem: Problem) -> Blur:
    """The blur to begin with."""
    if not isinstance(problem, Blur) or not problem.circular:
        raise ValueError(
            "a blind method estimates the kernel of a circular Blur: state the problem as "
            "Blur(delta(size), noise=...), with the size of the largest kernel that may be"
        )
    if not problem.noise > 0:
        raise ValueError("a blind method weighs the picture by its noise: state a noise above 0, or let the M-step learn it")
    return problem


def _rows(seeds: Sequence[int] | Tensor | None) -> Tensor | None:
    return None if seeds is None else as_seeds(seeds)


def _restored(x: Tensor, y: Tensor, blur: Blur, cost: Cost) -> Restored:
    """What was found, with the residual of the last kernel."""
    with torch.no_grad():
        residual = (blur.A(x) - y).flatten(1).square().mean(1).sqrt()
    return Restored(x, cost, residual, kernel=blur.rows)
