r"""Students: flow maps $(x_t, t, s) \mapsto x_s$, all output times at once.

`TrajectoryStudent` maps noise to a whole trajectory in one pass. For each of its times $t_1 > \dots > t_M$ its network
emits $h_m$, a clean-sample-like quantity, and

$$ x_{t_m} = \alpha_m h_m + \sigma_m z, \qquad z = (x_t - \alpha_t h_m) / \sigma_t, $$

which is exact at the start by construction. What $h$ is depends on the target it was trained on: with `target="x0"` it
is the teacher's $\hat x_0(x_{t_m}, t_m)$, what the published DSNO numbers used; with `target="state"` it is the value
for which the formula gives the teacher's *state* $x_{t_m}$. At $t_M = 0$ the two are the same sample.

The network's raw output $F$ is read as the teacher's prediction at the input's time:

| teacher predicts | $h$ |
|---|---|
| `x0` | $F$ |
| `v` | $(\alpha_t x_t - \sigma_t F) / (\alpha_t^2 + \sigma_t^2)$ |
| `flow` | $(\dot\sigma_t x_t - \sigma_t F) / (\dot\sigma_t \alpha_t - \sigma_t \dot\alpha_t)$ |
| `edm` | $\alpha_t \sigma_d^2 / s_t^2 \; x_t + \sigma_t \sigma_d / s_t \; F$, and the network is shown $x_t / s_t$ |
| `eps` | $x_t - \sigma_t F$: division by $\alpha_1 \approx 0$ would be blind, so it is left out |
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dsno.checkpoint import build, load_model, save_model
from dsno.denoise import Cond, Kind, Prediction, expand_like, scale_input, x0_from
from dsno.schedule import Schedule, schedule_from_config
from dsno.solve import initial_state
from dsno.students.lift import Lifted, Told, Where, lift
from dsno.students.temporal import Activation, Init
from dsno.teachers.nets import Backbone, example, net_from_config
from dsno.trajectory import Trajectory

__all__ = [
    "OnePass",
    "Target",
    "TrajectoryStudent",
    "build_student",
    "load_student",
    "save_student",
    "student_from_teacher",
]

Target = Literal["x0", "state"]


class TrajectoryStudent(nn.Module):
    r"""One pass from noise to M frames (`OnePass` makes it a `Sampler`).

    Arguments:
        net: A lifted backbone of M frames.
        schedule: The teacher's path.
        times: The output times, shape (M,), decreasing in [0, 1); the last is the sample's, usually 0.
        target: What the frames are trained on.
        kind: What the backbone's teacher predicts, so how its raw output is read.
        data_std: $\sigma_d$ of the kind `edm`.

    Raises:
        ValueError: if the times do not fit the network's frames or do not decrease.
    """

    def __init__(
        self,
        net: Lifted,
        schedule: Schedule,
        times: Sequence[float] | Tensor,
        target: Target = "x0",
        kind: Kind = "v",
        data_std: float = 1.0,
    ) -> None:
        super().__init__()
        t = torch.as_tensor(times, dtype=torch.float64)
        if t.shape != (net.frames,):
            raise ValueError(f"the network has {net.frames} frames but {tuple(t.shape)} times were given")
        if not bool((t[1:] < t[:-1]).all()) or t.min() < 0 or t.max() >= 1:
            raise ValueError(f"output times must decrease strictly inside [0, 1), got {t.tolist()}")
        if target not in ("x0", "state"):
            raise ValueError(f"unknown target {target!r}: expected x0 or state")
        if kind not in ("x0", "eps", "v", "flow", "edm"):
            raise ValueError(f"no head for a teacher that predicts {kind!r}: expected x0, eps, v, flow or edm")
        self.net, self.schedule, self.times, self.target, self.kind = net, schedule, t, target, kind
        self.data_std = data_std

    @property
    def frames(self) -> int:
        """M."""
        return self.net.frames

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, (C, *spatial).

        Raises:
            ValueError: if the backbone does not say.
        """
        return self._backbone.shape

    @property
    def classes(self) -> int | None:
        """The number of classes of a class-conditional student, or None.

        Raises:
            ValueError: if the backbone does not say.
        """
        return self._backbone.classes

    @property
    def _backbone(self) -> Backbone:
        if not isinstance(self.net.backbone, Backbone):
            raise ValueError(f"a {type(self.net.backbone).__name__} does not say what it makes: it is no `Backbone`")
        return self.net.backbone

    def forward(
        self,
        x_t: Tensor,
        cond: Cond | None = None,
        start: Tensor | float = 1.0,
        select: Sequence[int] | None = None,
    ) -> Tensor:
        r"""$h$ for the selected frames (all by default): (B, *shape) to (B, len(select), *shape).

        `x_t` is the state at time `start`, a number or (B,); from pure noise, $x_1 = \sigma_1 z$ and 1.
        """
        t = torch.as_tensor(start, dtype=x_t.dtype, device=x_t.device)
        shown = scale_input(self.kind, x_t, t, self.schedule, self.data_std)
        F = self.net(shown, self.times, cond, start, select)
        B, K = F.shape[:2]
        if self.kind == "eps":
            _, sigma_t = self.schedule(t)
            return x_t.unsqueeze(1) - expand_like(sigma_t, F) * F
        rows = x_t.unsqueeze(1).expand_as(F).reshape(-1, *F.shape[2:])
        t_rows = t.expand(B).repeat_interleave(K) if t.ndim else t
        return x0_from(self.kind, F.reshape_as(rows), rows, t_rows, self.schedule, self.data_std).reshape(F.shape)

    def states(
        self, x_t: Tensor, h: Tensor, start: Tensor | float = 1.0, select: Sequence[int] | None = None
    ) -> Tensor:
        r"""$x_{t_m} = \alpha_m h_m + \sigma_m (x_t - \alpha_t h_m)/\sigma_t$ for frames (B, K, *shape)."""
        times = self.times if select is None else self.times[list(select)]
        alpha_m, sigma_m = (c.to(h).reshape(1, -1, *[1] * (h.ndim - 2)) for c in self.schedule(times))
        t = torch.as_tensor(start, dtype=h.dtype, device=h.device)
        alpha_t, sigma_t = (expand_like(c, h) for c in self.schedule(t))
        return alpha_m * h + sigma_m * (x_t.unsqueeze(1) - alpha_t * h) / sigma_t

    @torch.no_grad()
    def sample(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        """The sample alone, (B, *shape) from noise (B, *shape): blocks behind the last temporal layer run once."""
        x_1 = initial_state(self.schedule, z)
        h = self(x_1, cond, select=(-1,))
        return (self.states(x_1, h, select=(-1,)) if self.target == "state" else h)[:, 0]

    @property
    def config(self) -> dict[str, object]:
        """Everything but the weights, JSON-able."""
        return {
            "schedule": self.schedule.config, "times": self.times.tolist(), "target": self.target, "kind": self.kind,
            "data_std": self.data_std, "backbone": self._backbone.config, "lift": self.net.config,
        }  # fmt: skip


@dataclass(frozen=True)
class OnePass:
    r"""A student as a `Sampler`: noise to trajectory in one network call.

    The trajectory's states are noise and the student's frames; a `x0` student's states are the formula's with its
    $\hat x_0$ in place of $h$, exact at the last frame. Without `whole` the sample is the only frame, and the blocks
    behind the last temporal layer run for it alone.
    """

    student: TrajectoryStudent
    whole: bool = True

    @torch.no_grad()
    def __call__(self, z: Tensor, cond: Cond | None = None, seeds: Tensor | None = None) -> Trajectory:
        student = self.student
        frames = range(student.frames) if self.whole else (student.frames - 1,)
        x_1 = initial_state(student.schedule, z)
        h = student(x_1, cond, select=frames)
        x = torch.cat([x_1.unsqueeze(1), student.states(x_1, h, select=frames)], 1)
        if student.target == "x0":
            # The sample is h itself; the formula would add sigma_M times the noise where a schedule is truncated.
            x[:, -1] = h[:, -1]
        t = torch.cat([torch.ones(1, dtype=torch.float64), student.times[list(frames)]])
        return Trajectory(x, t, torch.cat([h[:, :1], h], 1), cond, seeds, nfe=1, rounds=1)


def student_from_teacher(
    teacher: Prediction,
    times: Sequence[float] | Tensor,
    target: Target = "x0",
    modes: int | None = None,
    where: Where = "mid",
    once: bool = True,
    activation: Activation = "silu",
    init: Init = "zero",
    told: Told = "input",
) -> TrajectoryStudent:
    """A student of `len(times)` frames around a copy of a teacher, its weights included.

    `modes` is 2 by default, 1 of one frame. The other arguments are those of `lift`; the defaults are what did best on
    the digits (`benchmarks/digits.py`). The published operator is `where="every", once=False, told="output"`.

    Raises:
        ValueError: if the teacher's network is no `Backbone` (lift other modules with `lift`), or as `lift` does.
    """
    if not isinstance(teacher.net, Backbone):
        raise ValueError(
            f"a {type(teacher.net).__name__} does not say which of its modules are blocks: use `lift` and TrajectoryStudent"
        )
    modes = min(2, len(times) // 2 + 1) if modes is None else modes
    config = {"frames": len(times), "modes": modes, "once": once, "activation": activation}
    net = _lift(copy.deepcopy(teacher.net), {**config, "where": where, "init": init, "told": told})
    return TrajectoryStudent(net, teacher.schedule, times, target, teacher.kind, teacher.data_std)


def _lift(net: nn.Module, arguments: dict[str, Any]) -> Lifted:
    assert isinstance(net, Backbone)
    return lift(net, example(net, next(net.parameters())), net.blocks, **arguments)


def save_student(folder: Path | str, student: TrajectoryStudent, **notes: object) -> Path:
    """Write a student whose backbone is a `Backbone`: `config.json` and `model.safetensors`; `notes` go into the former."""
    return save_model(folder, {"type": "student", **student.config, "notes": notes}, student)


def load_student(folder: Path | str) -> TrajectoryStudent:
    """Read what `save_student` wrote.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the folder holds something else, or damaged or foreign weights.
    """
    return load_model(folder, "student", lambda config: (student := build_student(config), student)).eval()


def build_student(config: Mapping[str, Any]) -> TrajectoryStudent:
    """The student a configuration describes, with fresh weights.

    Raises:
        ValueError: for an unknown key, with the nearest known one, or a missing one.
    """
    described = {k: v for k, v in config.items() if k not in ("type", "notes")}
    return build(_student, described, "the configuration of a student")


def _student(
    schedule: dict[str, object],
    times: Sequence[float],
    target: Target,
    kind: Kind,
    backbone: dict[str, Any],
    lift: dict[str, Any],
    data_std: float = 1.0,
) -> TrajectoryStudent:
    net = build(_lift_again, {"net": net_from_config(backbone), **lift}, "the configuration of a lift")
    return TrajectoryStudent(net, schedule_from_config(schedule), times, target, kind, data_std)


def _lift_again(
    net: nn.Module,
    temporal: Sequence[str],
    frames: int,
    modes: int,
    once: bool,
    activation: Activation,
    channel_dim: int,
    told: Told,
) -> Lifted:
    arguments = {
        "frames": frames, "modes": modes, "once": once, "activation": activation, "channel_dim": channel_dim,
        "told": told,
    }  # fmt: skip
    return _lift(net, {**arguments, "where": (lambda name, shape: name in temporal) if temporal else "none"})
