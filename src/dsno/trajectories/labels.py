"""Conditions as functions of the seeds: labels, guidance weights, and what a sampler is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dsno.condition import Cond, flat
from dsno.seeds import noise
from dsno.trajectories.manifest import dtype_names, dtypes, join
from dsno.trajectories.sets import TrajectorySet

__all__ = ["Label", "checked_labels", "samples_of", "tell", "uniform_labels", "uniform_weights"]

Label = Callable[[Tensor], Cond]


def checked_labels(label: Label, seeds: Tensor) -> Cond:
    """The condition of `seeds`, on the host."""
    told = label(seeds)
    cond: Cond = (
        {k: torch.as_tensor(v).cpu() for k, v in told.items()}
        if isinstance(told, Mapping)
        else torch.as_tensor(told).cpu()
    )
    wrong = [
        f"{name} {tuple(c.shape)} of {c.dtype}"
        for name, c in flat(cond).items()
        if c.ndim < 1 or len(c) != len(seeds) or c.dtype not in dtype_names
    ]
    if wrong or not flat(cond):
        raise ValueError(
            f"label must return one row per seed, ({len(seeds)}, ...), of {', '.join(dtypes)}, or several such by name: "
            f"got {join(wrong, ', ') or 'none'}"
        )
    return cond


def tell(label: Label, rows: Mapping[str, Tensor]) -> Cond:
    """The condition of a batch, written to its rows."""
    cond = checked_labels(label, rows["seeds"])
    found = {name: (tuple(c.shape), c.dtype) for name, c in flat(cond).items()}
    first = {name: (tuple(x.shape), x.dtype) for name, x in rows.items() if name.split(".")[0] == "cond"}
    if found != first:
        raise ValueError(f"label must return the like for all seeds: expected {first}, as for the first, got {found}")
    for name, c in flat(cond).items():
        rows[name].copy_(c)
    return cond


LABEL_STREAM = 2**31 - 1
"""The noise stream labels are drawn from: streams 0, 1, 2, ... are the initial noise and the steps of a solver."""


def uniform_labels(classes: int) -> Callable[[Tensor], Tensor]:
    """Labels as a function of the seeds, (B,) to (B,) int64 in [0, `classes`): row i has the same label in any batch."""

    def label(seeds: Tensor) -> Tensor:
        # The uniform distribution from the sample's own counter-based noise, of a stream that no solver draws from.
        z = noise(seeds, (1,), stream=LABEL_STREAM, dtype=torch.float64)[:, 0]
        return (torch.special.ndtr(z) * classes).long().clamp(0, classes - 1)

    return label


def uniform_weights(low: float, high: float) -> Callable[[Tensor], Tensor]:
    """Guidance weights as a function of the seeds, (B,) to (B,) float32, uniform in [`low`, `high`]."""

    def weight(seeds: Tensor) -> Tensor:
        z = noise(seeds, (1,), stream=LABEL_STREAM - 1, dtype=torch.float64)[:, 0]
        return (low + (high - low) * torch.special.ndtr(z)).float()

    return weight


def samples_of(data: TrajectorySet) -> tuple[Tensor, Tensor | None]:
    """The ends of trajectories, (N, *shape) float32, and their labels (N,), if they have any: samples of the teacher.

    Raises:
        ValueError: if the trajectories do not end at t = 0, or are told more than a label.
    """
    if float(data.times[-1]) != 0:
        raise ValueError(
            f"{data.source} ends at t = {float(data.times[-1]):g}, where there is noise left: its ends are no samples"
        )
    told = data.manifest["cond"]
    told = told if told is None or data.manifest["format"] != 1 else {"label": told}
    more = sorted(name for name, c in (told or {}).items() if name != "label" or c["shape"])
    if more:
        raise ValueError(
            f"{data.source} is told {', '.join(more)} beside the state, and samples have labels alone: make trajectories "
            "without, give an image set, or distil with the method operator, which is told the same"
        )
    x, labels = torch.empty(len(data), *data.shape), torch.zeros(len(data), dtype=torch.int64)
    for rows in torch.arange(len(data)).split(1024):
        batch = data.__getitems__(rows.tolist())
        x[rows] = batch[data.targets[0]][:, -1]
        if told:
            labels[rows] = batch["cond"] if isinstance(batch["cond"], Tensor) else batch["cond"]["label"]
    return x, labels if told else None
