"""Sets of trajectories as the tests make them."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsno import grids
from dsno.schedule import Cosine
from dsno.solvers.first_order import DDIM
from dsno.solvers.run import SolverSampler
from dsno.teachers.closed import GaussianMixture
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectories.store import store

COSINE, SHAPE = Cosine(), (1, 4, 4)
KEEP = [1.0, 0.5, 0.25, 0.0]


def mixture() -> GaussianMixture:
    """Three blobs, one of each label."""
    means = torch.linspace(-1, 1, 3 * 16).reshape(3, *SHAPE)
    return GaussianMixture(COSINE, means, 0.3, labels=[0, 1, 2])


def sampler(denoiser: Any = None, **changes: Any) -> SolverSampler:
    made = SolverSampler(denoiser or mixture(), COSINE, grids.uniform(8), DDIM(), torch.tensor(KEEP))
    return dataclasses.replace(made, **changes)


def labels(seeds: Tensor) -> Tensor:
    return seeds % 3


def named_labels(seeds: Tensor) -> dict[str, Tensor]:
    return {"label": seeds % 3, "weight": seeds.float() / 2}


def make(folder: Path, count: int = 20, **options: Any) -> TrajectorySet:
    """Three shards of 8, 8 and 4 rows in batches of 3, unless told otherwise."""
    solver = options.pop("sampler", None) or sampler()
    shape = options.pop("shape", SHAPE)
    return store(solver, shape, folder, count, **{"shard": 8, "batch": 3, "targets": ("x0", "state"), **options})


def make_shared(folder: Path, count: int = 44, **options: Any) -> TrajectorySet:
    """Six shards of 8 rows, the last of 4, of two frames and a condition by name."""
    solver = SolverSampler(mixture(), COSINE, grids.uniform(4), DDIM(), grids.uniform(2))
    return store(solver, SHAPE, folder, count, **{"shard": 8, "batch": 8, "label": named_labels, **options})


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder but for locks."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.name.endswith(".lock")}


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two batches are the same, bit for bit."""
    if a.keys() != b.keys():
        return False
    return all(equal(x, b[k]) if isinstance(x, dict) else torch.equal(x, b[k]) for k, x in a.items())


class Unwanted:
    """A denoiser that must not be called, with the fingerprint of the mixture."""

    def __init__(self) -> None:
        self.__dict__.update(vars(mixture()))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        raise AssertionError("the denoiser was called")


Unwanted.__name__ = "GaussianMixture"


class Net(nn.Module):
    """A small network with dropout, so that eval mode matters."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.Dropout(0.5), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x)


class LabelledNet(Net):
    """That is told a label, alone or by name."""

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        label = cond["label"] if isinstance(cond, dict) else cond
        return self.net(x) + label[:, None, None, None] / 10


class Diverging:
    """Finite until `after`, then `value` for the odd rows."""

    def __init__(self, value: float, after: float) -> None:
        self.value, self.after = value, after

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        output = torch.zeros_like(x_t)
        if float(t[0]) <= self.after:
            output[1::2] = self.value
        return output
