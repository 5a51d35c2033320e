"""Chains, problems on them, and the fixed-point samplers that solve them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dsno.grids import karras, quadratic, uniform
from dsno.parallel.picard import Picard
from dsno.parallel.rounds import Exact
from dsno.parallel.taa import ParaTAA
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule
from dsno.solvers.chain import Chain
from dsno.solvers.run import initial_state
from dsno.teachers.closed import GaussianMixture
from dsno.trajectory import Trajectory

D64 = torch.float64


def mixture(d: int, schedule: Schedule | None = None) -> GaussianMixture:
    """Eight modes of standard deviation 0.2: on a ring, or standard normal."""
    if d == 2:
        angle = torch.arange(8, dtype=D64) * math.pi / 4
        means = torch.stack([angle.cos(), angle.sin()], 1)
    else:
        means = torch.randn(8, d, dtype=D64, generator=torch.Generator().manual_seed(0))
    return GaussianMixture(schedule or Cosine(), means, 0.2)


def problem(chain: Chain, d: int, count: int = 8, seed: int = 1) -> tuple[Tensor, Tensor | None]:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(count, d, dtype=D64, generator=g)
    tape = torch.randn(len(chain), count, d, dtype=D64, generator=g) if chain.eta > 0 else None
    return initial_state(chain.schedule, z, float(chain.grid[0])), tape


METHODS: dict[str, Callable[..., Exact]] = {
    "picard": Picard,
    "picard window": lambda D, c, **o: Picard(D, c, **{"window": 7, **o}),
    "taa": ParaTAA,
    "plain": lambda D, c, **o: ParaTAA(D, c, memory=1, **o),
    "m=4": lambda D, c, **o: ParaTAA(D, c, memory=4, **o),
    "k=1": lambda D, c, **o: ParaTAA(D, c, order=1, memory=1, **o),
    "k=3, m=3, window": lambda D, c, **o: ParaTAA(D, c, order=3, memory=3, window=6, **o),
    "D held": lambda D, c, **o: ParaTAA(D, c, data_std=1e-3, **o),
    "eps held": lambda D, c, **o: ParaTAA(D, c, data_std=1e3, **o),
    "published": lambda D, c, **o: ParaTAA(D, c, data_std=1e3, repeat_noise=True, **o),
}


CHAINS = {
    "ddim": Chain(Cosine(), uniform(24)),
    "ddpm": Chain(Cosine(), uniform(24), 1.0),
    "half": Chain(Cosine(), quadratic(24), 0.5),
    "flow": Chain(RectifiedFlow(), uniform(24), 0.7),
    "edm": Chain(VE(), karras(VE(), 24)),
    "one step": Chain(Cosine(), uniform(1), 1.0),
}


def drafts(chain: Chain, x: Tensor, reference: Trajectory) -> dict[str, Trajectory]:
    g = torch.Generator().manual_seed(5)
    noise = torch.randn(reference.x.shape, dtype=D64, generator=g)
    ends = torch.tensor([0, 7, 15, len(chain)])
    return {
        "garbage": Trajectory(100 * noise, chain.grid),
        "garbage x0": Trajectory(noise, chain.grid, 1e3 * noise),
        "overflow": Trajectory(noise, chain.grid, 1e200 * noise),
        "near": Trajectory(reference.x + 0.01 * noise, chain.grid),
        "few times": Trajectory(reference.x[:, ends], chain.grid[ends]),
    }
