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

Source: Laroche, Almansa & Coupeté, 2023 (arXiv 2309.00287).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from dsno.condition import Cond, map_cond
from dsno.cost import Cost, timed
from dsno.denoise import Denoiser, expand_like
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
    r"""One run of a restorer, and an M-step at $\hat x_0$ in each of its steps.

    $$ k \leftarrow M_{s_t}(k; \hat x_0(x_t), y), \qquad x_s = \text{the restorer's step from } x_t \text{ given } k,
       \qquad s_t = s_0 + (s_1 - s_0) \frac{\sigma_t}{\sqrt{\alpha_t^2 + \sigma_t^2}} $$

    The level $s_t$ of the kernel's prior falls with the noise: an original that is hardly there says little of it.
    `samples` runs of a picture, side by side, have one kernel, whose M-step is over all of them: one that goes astray
    is outvoted. The restoration is their mean.

    Attributes:
        grid: N + 1 decreasing times.
        sampler: Called with the grid, what restores while the kernel changes: `PiGDM`, `DPS`, or one with options,
            `partial(PiGDM, eta=0.5)`.
        step: The M-step; its level is $s_0$, 0.001 for a learned prior.
        coarse: $s_1 \ge 0$, 0.02 for a learned prior.
        spread: The share of $r_t^2$ that is the variance of $\hat x_0$ in the M-step; $\ge 0$.
        samples: Runs of one picture, in one batch.

    Raises:
        ValueError: for options out of range; when called, for a problem that is no circular `Blur` or has no noise to
            begin with, more samples without seeds, and as the sampler does.
    """

    grid: Tensor
    sampler: Callable[[Tensor], Driven] = field(default=PiGDM, kw_only=True)
    step: KernelStep = field(default_factory=KernelStep, kw_only=True)
    coarse: float = field(default=0.05, kw_only=True)
    spread: float = field(default=0.0, kw_only=True)
    samples: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        if self.samples < 1 or not self.coarse >= 0 or not self.spread >= 0:
            raise ValueError(
                "fast EM has a sample or more, and a coarse level and a spread of at least 0, got "
                f"{self.samples}, {self.coarse} and {self.spread}"
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
        """Restore `y` (B, C, *spatial); the kernel of `problem` is where the estimate begins, such as `delta(size)`."""
        blur, n = _start(problem, y), self.samples

        def revise(x0_hat: Tensor, t: float) -> Blur:
            nonlocal blur
            alpha_t, sigma_t = schedule.at(t)
            r2 = sigma_t**2 / (alpha_t**2 + sigma_t**2)
            level = self.step.level + (self.coarse - self.step.level) * math.sqrt(r2)
            step = replace(self.step, level=level)
            # A teacher may overshoot the range of pictures by far while the kernel is wrong.
            x = x0_hat.clamp(-1, 1).unflatten(0, (n, len(y)))
            blur = _centred(step(blur, x, y, self.spread * r2))
            return _each(blur, n)

        several = _Copies(y, z, cond, seeds, n)
        made = several.run(self.sampler(self.grid), denoiser, schedule, _each(blur, n), revise)
        return _restored(made.x.unflatten(0, (n, len(y))).mean(0), y, blur, made.cost)


@dataclass(frozen=True)
class ClassicEM:
    r"""`rounds` of `samples` whole runs each, and an M-step behind each round: what fast EM is compared with.

    $$ x_1, \dots, x_n \sim p(x \mid y, k_l), \qquad k_{l+1} = M(k_l; x_1, \dots, x_n, y) $$

    The first run starts from the given noise; that of every other is drawn from the seeds. The restoration is the mean
    of the last round's samples.

    Attributes:
        grid: N + 1 decreasing times, of each run.
        sampler: Called with the grid, what draws originals given the kernel.
        step: The M-step.
        rounds: L, of EM.
        samples: n, runs of one picture in a round, in one batch.

    Raises:
        ValueError: for no round or no sample; when called, without seeds, for a problem that is no circular `Blur` or
            has no noise to begin with, and as the sampler does.
    """

    grid: Tensor
    sampler: Callable[[Tensor], Driven] = field(default=PiGDM, kw_only=True)
    step: KernelStep = field(default_factory=KernelStep, kw_only=True)
    rounds: int = field(default=10, kw_only=True)
    samples: int = field(default=1, kw_only=True)

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
        (x, blur, cost), seconds = timed(self._rounds, denoiser, schedule, _start(problem, y), y, z, cond, seeds)
        return _restored(x.mean(0), y, blur, replace(cost, seconds=seconds))

    def _rounds(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        blur: Blur,
        y: Tensor,
        z: Tensor,
        cond: Cond | None,
        seeds: Sequence[int] | Tensor | None,
    ) -> tuple[Tensor, Blur, Cost]:
        """The last round's samples (n, B, C, *spatial), the kernel behind it, and what the runs cost."""
        sampler, cost = self.sampler(self.grid), Cost()
        for turn in range(self.rounds):
            several = _Copies(y, z, cond, seeds, self.samples, turn)
            made = several.run(sampler, denoiser, schedule, _each(blur, self.samples))
            x, cost = made.x.unflatten(0, (self.samples, len(y))), cost + made.cost
            blur = _centred(self.step(blur, x.clamp(-1, 1), y))
        return x, blur, cost


class _Copies:
    """Runs of the same pictures from other noises: (n * B) rows, all pictures of the first run first.

    Raises:
        ValueError: for noise that is to be drawn without seeds.
    """

    def __init__(
        self, y: Tensor, z: Tensor, cond: Cond | None, seeds: Sequence[int] | Tensor | None, n: int, turn: int = 0
    ) -> None:
        self.y, self.z, self.cond, self.seeds = y, z, cond, None if seeds is None else as_seeds(seeds)
        if (n, turn) == (1, 0):
            return
        if self.seeds is None:
            raise ValueError("several runs of one picture draw their own noise: give `seeds`, one for each row")
        rows = self.seeds.tolist()
        # Zeros at the end of a key do not count: the last number keeps those before it.
        drawn = [[mixed(seed, turn, i, 1) for seed in rows] for i in range(n)]
        self.seeds = torch.tensor([rows, *drawn[1:]] if turn == 0 else drawn).flatten()
        own = noise(self.seeds, z.shape[1:], 0, z.dtype, z.device)
        self.z = torch.cat([z, own[len(z) :]]) if turn == 0 else own
        self.y, self.cond = torch.cat([y] * n), None if cond is None else map_cond(lambda c: torch.cat([c] * n), cond)

    def run(
        self, sampler: Driven, denoiser: Denoiser, schedule: Schedule, problem: Problem, revise: Revise | None = None
    ) -> Restored:
        return sampler(denoiser, schedule, problem, self.y, self.z, self.cond, self.seeds, revise)


@dataclass(frozen=True)
class PlainMAP:
    r"""No teacher: the most probable original under sparse differences, and the kernel, in turn.

    $$ \min_{x, g, k} \; \tfrac12 \lVert y - k * x \rVert^2 + \tfrac\mu2 \sum_d \lVert \nabla_d x - g_d \rVert^2
       + w \lVert g \rVert_0 $$

    In each part everything else is constant: x is a division in Fourier space, $g$ keeps the differences of a pixel
    whose length is above $\sqrt{2 w / \mu}$, and k is the M-step on $\nabla x$ and $\nabla y$, for which the
    brightness says nothing. $\mu$ grows from round to round, so that the kernel is learned from the salient edges
    first; behind the last round x is the Wiener filter's. The difficulty of every method of this kind stays: the
    likeliest solution under a sparse prior is often no blur (Levin, Weiss, Durand & Freeman, 2009).

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

    step: KernelStep = field(default_factory=KernelStep)
    rounds: int = 30
    inner: int = 4
    weight: float = 4e-3
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
        (x, blur), seconds = timed(self._run, _start(problem, y), y)
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
            blur = _centred(self.step(blur, dx[None], dy))
        # The picture that the kernel is learned from is a sketch. What it leaves of y is noise to the Wiener filter,
        # and how large its differences are is what that filter knows of pictures.
        K, left = blur.otf(spatial, y), (blur.A(x) - y).square().flatten(1).mean(1)
        strength = _differences(x, axes).square().mean((0, *range(2, y.ndim + 1))).clamp_min(1e-12)
        below = K.abs() ** 2 + expand_like(left / strength, y) * (D.abs() ** 2).sum(0)
        return torch.fft.irfftn(K.conj() * Y / below, s=spatial, dim=axes), blur


def _differences(x: Tensor, axes: Sequence[int]) -> Tensor:
    """$x_n - x_{n-1}$ along each of the axes, stacked in front."""
    return torch.stack([x - x.roll(1, axis) for axis in axes])


def _start(problem: Problem, y: Tensor) -> Blur:
    """The blur to begin with, one kernel for each picture."""
    if not isinstance(problem, Blur) or not problem.circular:
        raise ValueError(
            "a blind method estimates the kernel of a circular Blur: state the problem as Blur(delta(size), noise=...) "
            "with the size of the largest kernel that may be"
        )
    if not problem.noise > 0:
        raise ValueError(
            "a blind method weighs the picture by its noise: state one above 0, and let the M-step learn it if it is "
            "unknown (learn_noise)"
        )
    problem.A(y)  # which refuses a kernel that is larger than the pictures
    return problem.revised(problem.rows.to(y).expand(len(y), *problem.rows.shape[1:]))


def _centred(blur: Blur) -> Blur:
    return blur.revised(centred(blur.kernel))


def _each(blur: Blur, n: int) -> Blur:
    """The blur of n runs of the same pictures."""
    return blur.revised(torch.cat([blur.kernel] * n))


def _restored(x: Tensor, y: Tensor, blur: Blur, cost: Cost) -> Restored:
    """What was found, with the residual of the last kernel."""
    with torch.no_grad():
        residual = (blur.A(x) - y).flatten(1).square().mean(1).sqrt()
    return Restored(x, cost, residual, kernel=blur.kernel)
