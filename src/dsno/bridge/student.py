r"""A bridge in one pass: its trajectories as a set, and the student that is distilled from them.

What tells two samples of one $x_T$ apart is the noise $z$ of the start. So a trajectory of a bridge is a function of
$(x_T, z)$, and is stored as one of a teacher is: $z$ from its seed, $x_T$ as the condition `start`, and the frames.
From there on it is the road of every student, `distill` by `knowledge` or `operator`, which learns

$$ (z, x_T) \mapsto \hat x_0(x_{t_m}, t_m, x_T), \qquad m = 1 \dots M. $$

A student starts as the bridge itself: its network is shown $a_{t_1} x_T + c_{t_1} z$ and read as the bridge reads it
(`dsno.nets.paired.StartedUNet`). The schedule that sets and students note, `RectifiedFlow`, is that of a path from
noise; nothing is read off it but that the start is $z$.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsno.borrow import unwrapped
from dsno.bridge.coefficients import Bridge, BrownianBridge
from dsno.bridge.prediction import BridgePrediction, reading
from dsno.bridge.sampler import EXPONENT, BridgeSampler, cross
from dsno.condition import Cond
from dsno.denoise import Prediction
from dsno.grids import check_grid, through
from dsno.nets.backbone import net_from_config, tokens_of
from dsno.nets.paired import PairedUNet
from dsno.schedule import RectifiedFlow
from dsno.solvers.run import SolverSampler
from dsno.students.operator import TrajectoryStudent, student_from_teacher
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectories.store import store
from dsno.trajectory import Trajectory

__all__ = ["Crossing", "as_teacher", "generate_crossings", "starts_from_pictures", "student_from_bridge"]

SHOWN = 0.9
r"""$r_{t_1}^2$ of the state that a student is shown, where nothing else is asked for."""


@dataclass(frozen=True)
class Crossing(SolverSampler):
    """A bridge as a sampler of noise: `z` (B, *shape) is that of its start, and $x_T$ is `start` of the condition."""

    bridge: Bridge = field(default_factory=BrownianBridge)

    @classmethod
    def of(cls, sampler: BridgeSampler) -> Crossing:
        """A sampler of bridges as one of noise."""
        denoiser, bridge, grid, step = sampler.denoiser, sampler.bridge, sampler.grid, sampler.step
        return cls(denoiser, RectifiedFlow(), grid, step, sampler.keep, sampler.keep_x0, bridge)

    @torch.no_grad()
    def __call__(self, z: Tensor, cond: Cond | None = None, seeds: Tensor | None = None) -> Trajectory:
        if cond is None or isinstance(cond, Tensor) or "start" not in cond:
            raise ValueError('a bridge is told where it comes from: cond={"start": x_T}')
        others = {name: value for name, value in cond.items() if name != "start"}
        return cross(
            self.denoiser,
            self.bridge,
            cond["start"],
            self.grid,
            self.step,
            others,
            seeds,
            z=z,
            keep=self.keep,
            keep_x0=self.keep_x0,
        )


def generate_crossings(
    bridge: BridgePrediction,
    start: Tensor,
    out: Path | str,
    count: int,
    calls: int = 20,
    name: str = "odes3",
    times: Sequence[float] = (0.0,),
    t_1: float | None = None,
    exponent: float = EXPONENT,
    **options: Any,
) -> TrajectorySet:
    r"""Store `count` trajectories of a bridge in the folder `out`.

    Arguments:
        bridge: The bridge.
        start: What they start from, (N, *shape); trajectory i starts from number i modulo N.
        out: The folder.
        count: How many trajectories.
        calls: Network calls of each.
        name: The sampler, of `BRIDGE_STEPS`.
        times: The frames that are kept, decreasing in [0, 1); the grid is moved through them.
        t_1: Where the start ends.
        exponent: Of the grid.
        options: Of `store`: `batch`, `shard`, `dtype`, `targets`, `compute`, `accelerator`, `resume`, `progress`, ...

    Raises:
        ValueError: if the times do not decrease inside [0, 1), or as `BridgeSampler.of_calls` and `store`.
    """
    sampler = BridgeSampler.of_calls(bridge, bridge.bridge, calls, name, t_1, exponent)
    keep = check_grid([1.0, *times])[1:]
    made = Crossing.of(replace(sampler, grid=through(sampler.grid, keep), keep=keep))
    held = start.float().cpu()

    def told(seeds: Tensor) -> dict[str, Tensor]:
        return {"start": held[seeds.cpu() % len(held)]}

    description = {"bridge": bridge.bridge.config, "kind": bridge.kind, "moments": list(bridge.moments)}
    return store(made, held.shape[1:], out, count, label=told, description=description, **options)


def student_from_bridge(
    bridge: BridgePrediction,
    times: Sequence[float] = (0.0,),
    t_1: float | None = None,
    **options: Any,
) -> TrajectoryStudent:
    r"""A student of `len(times)` frames around a copy of a bridge, its weights included.

    Arguments:
        bridge: The bridge, whose network is a `PairedUNet`.
        times: Those of its frames, and of the set that it is to learn.
        t_1: The time at which it is shown $a x_T + c z$; where $r_{t_1}^2$ is `SHOWN` by default.
        options: Of `student_from_teacher`: `modes`, `where`, `once`, ...

    Raises:
        ValueError: for another network, a `t_1` outside (0, 1), or as `student_from_teacher`.
    """
    return student_from_teacher(as_teacher(bridge, t_1), times, "x0", **options)


def as_teacher(bridge: BridgePrediction, t_1: float | None = None) -> Prediction:
    """What a student of a bridge is lifted from: its network as one of noise, with a copy of the weights; arguments and
    errors as `student_from_bridge`."""
    net = unwrapped(bridge.net)
    if not isinstance(net, PairedUNet):
        raise ValueError(f"a student of a bridge is made of a PairedUNet, and this one has a {type(net).__name__}")
    coefficients, time = bridge.bridge, t_1
    if time is None:
        time = float(coefficients.time(torch.tensor(SHOWN, dtype=torch.float64)))
    if not 0 < time < 1:
        raise ValueError(f"t_1 is where the start ends, inside (0, 1), got {time}")
    a, _, c = coefficients.at(time)
    read = reading(coefficients, bridge.kind, torch.tensor(time, dtype=torch.float64, device="cpu"), bridge.moments)
    s, p, e, q = (float(value) for value in read)
    config = {"name": "StartedUNet", "net": net.config["net"], "t_1": time, "shown": (a, c, s), "read": (p, e, q)}
    started = net_from_config(config).to(next(net.parameters()))
    started.get_submodule("paired").load_state_dict(net.state_dict())
    return Prediction(started, RectifiedFlow(), "x0", shape=net.shape, classes=net.classes)


def starts_from_pictures(student: nn.Module) -> bool:
    """Whether a student is one of a bridge."""
    return isinstance(student, TrajectoryStudent) and "start" in tokens_of(student.lifted.backbone)
