r"""Denoising: how a teacher is trained.

$$ L = \mathbb E_{t, x_0, \epsilon} \big\| F(x_t, t) - y \big\|^2, \qquad x_t = \alpha_t x_0 + \sigma_t \epsilon, $$

with $y$ the quantity the network predicts. For $y = v = \alpha_t \epsilon - \sigma_t x_0$ and uniform $t$ this weighs
$\hat x_0$ by SNR + 1 (Salimans & Ho, 2022, arXiv 2202.00512).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dsno.denoise import Kind, convert, expand_like
from dsno.engine import share_of
from dsno.schedule import Schedule
from dsno.seeds import generator, strata

__all__ = ["Denoising", "noised"]


def noised(schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    r"""$x_t = \alpha_t x_0 + \sigma_t \epsilon$, (B, *shape); t (B,)."""
    alpha_t, sigma_t = (expand_like(c, x0) for c in schedule(t))
    return alpha_t * x0 + sigma_t * eps


class Denoising:
    """The objective of a network `net(x_t, t)` or `net(x_t, t, cond)` that predicts `kind`.

    Arguments:
        x: Clean samples, shape (N, *shape).
        schedule: The path to train on.
        kind: What the network predicts.
        labels: (N,) integer labels for a conditional network, or None.
        batch: Samples per step, over all processes.
        seed: With the step, determines the batch, times and noise.
        null: The label that stands for none; every label becomes it with probability `drop`, so that one network learns
            both terms of guidance (Ho & Salimans, 2022, arXiv 2207.12598, algorithm 1).
        drop: That probability, in [0, 1).
        noise: (N, *shape), what each sample is noised with; by default drawn anew in every batch.

    Raises:
        ValueError: if `batch` is not positive, the noise is not one for each sample, or labels are to be dropped and
            there are none, or none to drop them to.
    """

    def __init__(
        self,
        x: Tensor,
        schedule: Schedule,
        kind: Kind = "v",
        labels: Tensor | None = None,
        batch: int = 128,
        seed: int = 0,
        null: int | None = None,
        drop: float = 0.0,
        noise: Tensor | None = None,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        if not 0 <= drop < 1:
            raise ValueError(f"drop is the share of labels that is dropped, in [0, 1), got {drop}")
        if drop and (labels is None or null is None):
            raise ValueError("labels can only be dropped where there are labels and a `null` one that stands for none")
        if noise is not None and noise.shape != x.shape:
            raise ValueError(f"noise is one for each sample, {tuple(x.shape)}, got {tuple(noise.shape)}")
        self.null, self.drop, self.noise = null, drop, noise
        self.x, self.schedule, self.kind, self.labels, self.batch, self.seed = x, schedule, kind, labels, batch, seed

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Tensor]]:
        """Batches from step `start` on; each is the share of `rank` in one that is a function of (seed, step).

        Raises:
            ValueError: if the batch cannot be shared evenly.
        """
        mine, step = share_of(self.batch, rank, world), start
        while True:
            g = generator(self.seed, step)
            i = torch.randint(len(self.x), (self.batch,), generator=g)
            # One stratum per sample: the times of a batch cover [0, 1] evenly.
            t = strata(self.batch, g)
            eps = torch.randn(self.batch, *self.x.shape[1:], generator=g) if self.noise is None else self.noise[i]
            batch = {"x0": self.x[i[mine]], "t": t[mine], "eps": eps[mine]}
            if self.labels is not None:
                label = self.labels[i]
                if self.null is not None and self.drop:
                    label = label.masked_fill(torch.rand(self.batch, generator=g) < self.drop, self.null)
                batch["cond"] = label[mine]
            yield batch
            step += 1

    def __call__(self, net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The loss of one batch, a scalar."""
        x0, t = batch["x0"], batch["t"]
        x_t = noised(self.schedule, x0, batch["eps"], t)
        output = net(x_t, t, batch["cond"]) if "cond" in batch else net(x_t, t)
        return (output - convert(self.kind, x0, x_t, t, self.schedule)).square().mean()
