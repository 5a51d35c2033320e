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
from dsno.schedule import Schedule

__all__ = ["Denoising"]


class Denoising:
    """The objective of a network `net(x_t, t)` or `net(x_t, t, cond)` that predicts `kind`.

    Arguments:
        x: Clean samples, shape (N, *shape).
        schedule: The path to train on.
        kind: What the network predicts.
        labels: (N,) integer labels for a conditional network, or None.
        batch: Samples per step, over all processes.
        seed: With the step, determines the batch, times and noise.

    Raises:
        ValueError: if `batch` is not positive.
    """

    def __init__(
        self,
        x: Tensor,
        schedule: Schedule,
        kind: Kind = "v",
        labels: Tensor | None = None,
        batch: int = 128,
        seed: int = 0,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.x, self.schedule, self.kind, self.labels, self.batch, self.seed = x, schedule, kind, labels, batch, seed

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Tensor]]:
        """Batches from step `start` on; each is the share of `rank` in one that is a function of (seed, step).

        Raises:
            ValueError: if the batch cannot be shared evenly.
        """
        if self.batch % world:
            raise ValueError(f"a batch of {self.batch} cannot be shared evenly by {world} processes: use a multiple")
        share, step = self.batch // world, start
        mine = slice(rank * share, (rank + 1) * share)
        while True:
            g = torch.Generator().manual_seed((self.seed << 40) + (step << 12))
            i = torch.randint(len(self.x), (self.batch,), generator=g)
            # One stratum per sample: the times of a batch cover [0, 1] evenly.
            t = (torch.rand(1, generator=g) + torch.arange(self.batch) / self.batch) % 1
            eps = torch.randn(self.batch, *self.x.shape[1:], generator=g)
            batch = {"x0": self.x[i[mine]], "t": t[mine], "eps": eps[mine]}
            if self.labels is not None:
                batch["cond"] = self.labels[i[mine]]
            yield batch
            step += 1

    def __call__(self, net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The loss of one batch, a scalar."""
        x0, t = batch["x0"], batch["t"]
        alpha_t, sigma_t = (expand_like(c, x0) for c in self.schedule(t))
        x_t = alpha_t * x0 + sigma_t * batch["eps"]
        output = net(x_t, t, batch["cond"]) if "cond" in batch else net(x_t, t)
        return (output - convert(self.kind, x0, x_t, t, self.schedule)).square().mean()
