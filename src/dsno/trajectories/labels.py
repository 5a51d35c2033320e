r"""Conditions as functions of the seeds.

A row is a function of its seed, so its condition must be one, too: a `Label` maps seeds (B,) int64 to a condition whose
first dimension is B. What is drawn at random is drawn from the seed's own counter-based noise, in streams that no
solver takes noise from. With $z$ such a number and $\Phi$ the normal distribution, $\Phi(z)$ is uniform in [0, 1], so

$$ \text{label} = \lfloor C \, \Phi(z) \rfloor, \qquad w = w_0 + (w_1 - w_0) \, \Phi(z'); $$

and where class k has the share $p_k$, not $1 / C$, the label is the number of sums $p_0 + \dots + p_k$ that are at most
$\Phi(z)$.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dsno.condition import Cond, flat, map_cond
from dsno.seeds import noise
from dsno.trajectories.manifest import dtype_names, dtypes, join

__all__ = ["Label", "checked_labels", "shared_labels", "uniform_labels", "uniform_weights", "weighted", "write_labels"]

Label = Callable[[Tensor], Cond]

LABEL_STREAM = 2**31 - 1
"""The noise stream labels are drawn from, that of weights is the one before it: streams 0, 1, 2, ... are the initial
noise and the steps of a solver."""


def uniform_labels(classes: int, null: int | None = None) -> Callable[[Tensor], Tensor]:
    """Labels as a function of the seeds, (B,) to (B,) int64 in [0, `classes`); never `null`, which stands for no class.

    Raises:
        ValueError: if no class is left.
    """
    skipped = null if null is not None and 0 <= null < classes else classes
    count = classes - (skipped < classes)
    if count < 1:
        raise ValueError(f"there is no class to draw: {classes} in all, and the null label is {null}")

    def label(seeds: Tensor) -> Tensor:
        drawn = (_uniform(seeds, LABEL_STREAM) * count).long().clamp(0, count - 1)
        return drawn + (drawn >= skipped)

    return label


def shared_labels(shares: Tensor) -> Callable[[Tensor], Tensor]:
    """Labels as a function of the seeds, (B,) to (B,) int64: class k as often as its part in the sum of `shares` (C,),
    numbers of samples say; never one of none.

    Raises:
        ValueError: if there is a negative share, or none above 0.
    """
    if bool((shares < 0).any()) or not bool(shares.any()):
        raise ValueError(f"there is no class to draw: the shares are {shares.tolist()}, expected some above 0")
    sums = (shares.double() / shares.sum()).cumsum(0)
    # The sum of all may be off 1 by round-off.
    last = int(shares.nonzero().max())

    def label(seeds: Tensor) -> Tensor:
        return torch.bucketize(_uniform(seeds, LABEL_STREAM), sums, right=True).clamp(max=last)

    return label


def uniform_weights(low: float, high: float) -> Callable[[Tensor], Tensor]:
    """Guidance weights as a function of the seeds, (B,) to (B,) float32, uniform in [`low`, `high`]."""

    def weight(seeds: Tensor) -> Tensor:
        return (low + (high - low) * _uniform(seeds, LABEL_STREAM - 1)).float()

    return weight


def weighted(label: Label, low: float, high: float) -> Label:
    """A condition, and beside it under `weight` a guidance weight, uniform in [`low`, `high`]; a bare label is under
    `label`."""
    weight = uniform_weights(low, high)

    def told(seeds: Tensor) -> Cond:
        cond = label(seeds)
        return {**({"label": cond} if isinstance(cond, Tensor) else cond), "weight": weight(seeds)}

    return told


def _uniform(seeds: Tensor, stream: int) -> Tensor:
    r"""$\Phi(z)$, (B,) float64."""
    return torch.special.ndtr(noise(seeds, (1,), stream=stream, dtype=torch.float64)[:, 0])


def checked_labels(label: Label, seeds: Tensor) -> Cond:
    """The condition of `seeds`, on the host.

    Raises:
        ValueError: unless it has a row for each seed, of a dtype that can be stored.
    """
    made = label(seeds)
    # What is no tensor yet may become one.
    cond = map_cond(lambda c: torch.as_tensor(c).cpu(), made if isinstance(made, Mapping) else torch.as_tensor(made))
    wrong = [
        f"{name} {tuple(c.shape)} of {c.dtype}"
        for name, c in flat(cond).items()
        if c.ndim < 1 or len(c) != len(seeds) or c.dtype not in dtype_names
    ]
    if wrong or not flat(cond):
        raise ValueError(
            f"label must return one row per seed, ({len(seeds)}, ...), of {', '.join(dtypes)}, or several such by "
            f"name: got {join(wrong, ', ') or 'none'}"
        )
    return cond


def write_labels(label: Label, rows: Mapping[str, Tensor]) -> Cond:
    """The condition of a batch, written to its rows in a shard.

    Raises:
        ValueError: unless it is like that of the first rows, which the shard is laid out for.
    """
    cond = checked_labels(label, rows["seeds"])
    found = {name: (tuple(c.shape), c.dtype) for name, c in flat(cond).items()}
    first = {name: (tuple(x.shape), x.dtype) for name, x in rows.items() if name.split(".")[0] == "cond"}
    if found != first:
        raise ValueError(f"label must return the like for all seeds: expected {first}, as for the first, got {found}")
    for name, c in flat(cond).items():
        rows[name].copy_(c)
    return cond
