r"""MeanFlow on straightened paths: from the noise of a stored trajectory straight to its end (Re-MeanFlow).

The paths $x_t = \alpha_t x_0 + \sigma_t \epsilon$ of noise and data that have nothing to do with each other cross
everywhere, and the velocity $b_t(x) = \mathbb E[\dot x_t \mid x_t = x]$ bends where they do. Of the pairs $(x_0,
\epsilon)$ of one solved trajectory they hardly cross (one rectification: Liu et al., 2022, arXiv 2209.03003): $b_t$ is
nearly $\dot x_t$ itself, its flow leads from $\epsilon$ to $x_0$ or close by, and the mean velocity of that flow is
learned by `dsno.distillation.flowmaps` without asking the teacher. The pairs that are farthest apart bend most: the
share `drop` of them is left out.

Source: Zhang et al., 2025 (arXiv 2511.23342).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dsno.distillation.flowmaps import EulerianOptions, FlowMapMatching
from dsno.distillation.stages import Given, Stage
from dsno.students.flowmap import FlowMap
from dsno.trajectories.sets import TrajectorySet, pairs_of

__all__ = ["RectifiedOptions", "nearest_pairs", "rectified_meanflow"]


def nearest_pairs(data: TrajectorySet, drop: float = 0.1) -> tuple[Tensor, Tensor, Tensor | None]:
    """The ends of trajectories and their noises, both (N, *shape), and their labels (N,), if any, without the share
    `drop` of those that are farthest apart.

    Raises:
        ValueError: for a share outside [0, 1); as `samples_of` does.
    """
    if not 0 <= drop < 1:
        raise ValueError(f"drop is the share of pairs that is left out, in [0, 1), got {drop:g}")
    noise, x, labels = pairs_of(data)
    kept = max(round((1 - drop) * len(x)), 1)
    near = (x - noise).flatten(1).norm(dim=1).argsort()[:kept].sort().values
    return x[near], noise[near], None if labels is None else labels[near]


@dataclass(frozen=True)
class RectifiedOptions(EulerianOptions):
    """Options of `rectified-meanflow`."""

    rest: float = 0.25
    """Share of rows with s = t, in [0, 1)."""
    power: float = 1.0
    """Power of the adaptive weight."""
    drop: float = 0.1
    """Share of the pairs that is left out, those whose end is farthest from its noise, in [0, 1)."""


def rectified_meanflow(student: FlowMap, given: Given, options: RectifiedOptions = RectifiedOptions()) -> list[Stage]:
    """MeanFlow on the pairs of a trajectory set, in one stage.

    Raises:
        ValueError: if there are no trajectories, or for a share outside [0, 1).
    """
    x, noise, labels = nearest_pairs(given.solved, options.drop)
    objective = FlowMapMatching(
        x,
        None,
        given.schedule,
        "meanflow",
        labels if student.classes else None,
        given.batch,
        given.seed,
        options.derivative,
        options.width,
        options.rest,
        options.power,
        noise=noise,
    )
    return [Stage("rectified-meanflow", given.steps, lambda X: (X, objective), lambda X: X.trained_for("any"))]
