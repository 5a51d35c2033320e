"""Gaussian data whose coordinates speak of each other, and what is known of the ones that nobody saw."""

from typing import NamedTuple

import torch
from torch import Tensor

from dsno.condition import Cond
from dsno.denoise import Denoiser
from dsno.schedule import Cosine, Schedule
from dsno.teachers.closed import Gaussian

D64 = torch.float64


class Correlated(NamedTuple):
    r"""$x_0 \sim \mathcal N(0, Q \, \mathrm{diag}(s^2) \, Q^\top)$ in d dimensions, with its exact denoiser."""

    schedule: Schedule
    basis: Tensor
    std: Tensor

    @classmethod
    def of(cls, d: int, schedule: Schedule | None = None) -> "Correlated":
        g = torch.Generator().manual_seed(3)
        basis = torch.linalg.qr(torch.randn(d, d, dtype=D64, generator=g)).Q
        return cls(schedule or Cosine(), basis, torch.linspace(0.15, 1.2, d, dtype=D64))

    @property
    def covariance(self) -> Tensor:
        return self.basis * self.std**2 @ self.basis.T

    @property
    def denoiser(self) -> Denoiser:
        alone = Gaussian(self.schedule, torch.zeros_like(self.std), self.std)

        def D(x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
            return alone(x_t @ self.basis, t) @ self.basis.T

        return D

    def jacobian(self, t: float) -> Tensor:
        alpha_t, sigma_t = self.schedule.at(t)
        return self.basis * (alpha_t * self.std**2 / (alpha_t**2 * self.std**2 + sigma_t**2)) @ self.basis.T

    def sample(self, count: int, seed: int = 1) -> Tensor:
        z = torch.randn(count, len(self.std), dtype=D64, generator=torch.Generator().manual_seed(seed))
        return z * self.std @ self.basis.T

    def posterior(self, keep: Tensor, y: Tensor, tau: float = 0.0) -> tuple[Tensor, Tensor]:
        """Mean (B, hidden) and spread (hidden,) of the hidden coordinates, given `y` (B, d) at the others."""
        C = self.covariance
        seen = C[keep][:, keep] + tau**2 * torch.eye(int(keep.sum()), dtype=D64)
        gain = torch.linalg.solve(seen, C[keep][:, ~keep]).T
        return y[:, keep] @ gain.T, (C[~keep][:, ~keep] - gain @ C[keep][:, ~keep]).diagonal().sqrt()
