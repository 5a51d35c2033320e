r"""Bridging: how a bridge is learned from pairs.

$$ L = \mathbb E_{t, (x_0, x_T), z} \Big\| F(s \, x_t, t, x_T) - \frac{x_0 - p \, x_t - e \, x_T}{q} \Big\|^2, \qquad
   x_t = a_t x_T + b_t x_0 + c_t z, \qquad t \sim U(0, 1], $$

with $(s, p, e, q)$ of the kind that the network predicts (`prediction`). For `ddbm` that is DDBM's weight of
$\| D - x_0 \|^2$, and for `i2sb` I2SB's.

Source: Liu et al., 2023 (arXiv 2302.05872), eq. 12; Zhou et al., 2023 (arXiv 2309.16948).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from dsno.bridge.coefficients import Bridge
from dsno.bridge.prediction import BridgeKind, Moments, reading
from dsno.bridge.sampler import told
from dsno.denoise import expand_like
from dsno.engine import share_of
from dsno.inverse.problem import Dagger, Problem, check_problem, noise_of
from dsno.seeds import generator, noise, seed_range, strata

__all__ = ["Bridging", "at_full_size", "degraded", "moments_of"]

LEAST = 1e-3
"""The least time that is drawn: at 0, where nothing is left to learn, the targets of `i2sb` and `ddbm` are 0 / 0."""


def moments_of(start: Tensor, x: Tensor) -> Moments:
    r"""$(\sigma_0, \sigma_T, \sigma_{0T})$ of pairs, each (N, *shape), over all their values; the covariance stays
    below what the preconditioning bears, so that equal pictures are pairs, too."""
    x_0, x_T = (p.double() - p.double().mean() for p in (x, start))
    sigma_0, sigma_T = float(x_0.square().mean().sqrt()), float(x_T.square().mean().sqrt())
    bound = 0.999 * sigma_0 * sigma_T
    return sigma_0, sigma_T, max(-bound, min(bound, float((x_0 * x_T).mean())))


class Bridging:
    """The objective of a network `net(x_t, t, {"start": x_T})` that predicts `kind`.

    Arguments:
        start: Degraded samples $x_T$, shape (N, *shape).
        x: Clean samples $x_0$, the same shape: row for row a pair.
        bridge: The bridge to train on.
        kind: What the network predicts.
        moments: Of the pairs, which the kind `ddbm` needs.
        batch: Pairs per step, over all processes.
        seed: With the step, determines the batch, times and noise.

    Raises:
        ValueError: if `batch` is not positive, or the pairs are none.
    """

    def __init__(
        self,
        start: Tensor,
        x: Tensor,
        bridge: Bridge,
        kind: BridgeKind = "ddbm",
        moments: Moments | None = None,
        batch: int = 128,
        seed: int = 0,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        if start.shape != x.shape:
            raise ValueError(f"pairs have one shape, got {tuple(start.shape)} and {tuple(x.shape)}")
        self.start, self.x, self.bridge, self.kind, self.batch, self.seed = start, x, bridge, kind, batch, seed
        self.moments = moments_of(start, x) if moments is None else moments

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Tensor]]:
        """Batches from step `start` on; each is the share of `rank` in one that is a function of (seed, step).

        Raises:
            ValueError: if the batch cannot be shared evenly.
        """
        mine, step = share_of(self.batch, rank, world), start
        while True:
            g = generator(self.seed, step)
            i = torch.randint(len(self.x), (self.batch,), generator=g)[mine]
            # One stratum per sample: the times of a batch cover (0, 1] evenly.
            t = 1 - strata(self.batch, g)
            z = torch.randn(self.batch, *self.x.shape[1:], generator=g)
            yield {"x0": self.x[i], "start": self.start[i], "t": t[mine].clamp_min(LEAST), "z": z[mine]}
            step += 1

    def __call__(self, net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The loss of one batch, a scalar."""
        x0, x_T, t = batch["x0"], batch["start"], batch["t"]
        a_t, b_t, c_t = (expand_like(c, x0) for c in self.bridge(t))
        x_t = a_t * x_T + b_t * x0 + c_t * batch["z"]
        s, p, e, q = (expand_like(c, x0) for c in reading(self.bridge, self.kind, t, self.moments))
        output = net(s * x_t, t, told(x_T))
        return (output - (x0 - p * x_t - e * x_T) / q).square().mean()


def degraded(problem: Problem, x: Tensor, seed: int = 0, batch: int = 1024) -> Tensor:
    r"""What an inverse problem makes of clean samples (N, *shape), of the same shape: the other half of pairs.

    It is `at_full_size` of $y = A x_0 + \tau n$, the noise of row n that of the seed `seed` + n.

    Raises:
        ValueError: if the problem is not one of samples of this shape, or its adjoint is none (`check_problem`).
    """
    measured, tau = check_problem(problem, x.shape[1:], x.dtype, x.device), noise_of(problem)
    made = []
    for begin in range(0, len(x), batch):
        y = problem.A(x[begin : begin + batch])
        if tau > 0:
            y = y + tau * noise(seed_range(seed + begin, len(y)), measured, 0, y.dtype, y.device)
        made.append(at_full_size(problem, y, x.shape[1:]))
    return torch.cat(made)


def at_full_size(problem: Problem, y: Tensor, shape: Sequence[int]) -> Tensor:
    r"""$x_T$, (N, *shape), of what was measured (N, *measured): itself where that is a sample's shape; else $A^+ y$, of
    a lower resolution the picture at full size, or where the problem knows none, $A^\top y$."""
    if y.shape[1:] == torch.Size(shape):
        return y
    return problem.A_dagger(y) if isinstance(problem, Dagger) else problem.A_adjoint(y)
