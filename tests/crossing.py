"""What tests of bridges cross: pairs in closed form, and how far two laws are apart."""

import torch
from torch import Tensor

from dsno.bridge.closed import PairedMixture
from dsno.bridge.coefficients import Bridge
from dsno.teachers.closed import Gaussian

MEANS = torch.tensor([[1.0, 0.2], [-1.0, 0.6], [0.1, -1.1], [0.2, 1.3]], dtype=torch.float64)
A = torch.tensor([[0.9, 0.3], [-0.2, 0.15]], dtype=torch.float64)
NOISE = 0.3


def paired(bridge: Bridge, std: float = 0.2, dtype: torch.dtype = torch.float64) -> PairedMixture:
    return PairedMixture(bridge, MEANS.to(dtype), std, A.to(dtype), NOISE)


def scattered(bridge: Bridge, d: int = 2) -> PairedMixture:
    """Eight narrow components anywhere, seen through a matrix of any kind."""
    g = torch.Generator().manual_seed(0)
    means = torch.randn(8, d, dtype=torch.float64, generator=g)
    return PairedMixture(bridge, means, 0.05, 0.7 * torch.randn(d, d, dtype=torch.float64, generator=g) / d**0.5, 0.3)


def one(bridge: Bridge) -> PairedMixture:
    """A single Gaussian, on axes of its own."""
    scale = torch.tensor([[1.2, 0.0], [0.0, 0.3]], dtype=torch.float64)
    return PairedMixture(bridge, MEANS[:1], 0.8, scale, NOISE)


def exact_flow(teacher: PairedMixture, schedule, start: Tensor, y: Tensor, t: float, s: float) -> Tensor:
    """Of a single Gaussian, y at `s` of that at `t`; one `start` (1, d) for all rows."""
    _, m, v = teacher.posterior(start)
    return Gaussian(schedule, m[0, 0] @ teacher.V.mT, (v[0].sqrt() @ teacher.V.mT.abs())).flow(y, t, s)


def sliced(x: Tensor, y: Tensor) -> float:
    """2-Wasserstein distance of equally many points of the plane, root mean square over 64 directions."""
    angle = torch.pi * torch.arange(64, dtype=x.dtype) / 64
    directions = torch.stack([angle.cos(), angle.sin()])
    return float(((x @ directions).sort(0).values - (y @ directions).sort(0).values).square().mean().sqrt())
