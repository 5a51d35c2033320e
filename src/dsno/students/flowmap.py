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
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dsno.checkpoint import CONFIG, build, load_model, read_json, save_model
from dsno.denoise import Cond, Kind, Prediction, expand_like, scale_input, x0_from
from dsno.noise import noise_tape
from dsno.schedule import Schedule, schedule_from_config
from dsno.solve import initial_state
from dsno.students.lift import Blocks, Lifted, Plan, Told, Where, install, lift
from dsno.students.temporal import Activation, Init
from dsno.teachers.nets import Backbone, example, net_from_config
from dsno.trajectory import Trajectory

__all__ = [
    "MultiPass",
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
        shape: The shape of one sample, (C, *spatial), of a backbone that does not say.
        classes: The number of classes it may be told, of a backbone that does not say.
        restarts: Whether it was trained to start from its inner states, too, not from noise alone (see `MultiPass`).

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
        shape: Sequence[int] | None = None,
        classes: int | None = None,
        restarts: bool = False,
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
        self.data_std, self.own_shape, self.own_classes = data_std, None if shape is None else tuple(shape), classes
        self.restarts = restarts
        self.affine = self._affine()

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
        if isinstance(self.net.backbone, Backbone):
            return self.net.backbone.shape
        if self.own_shape is None:
            raise ValueError(
                f"a {type(self.net.backbone).__name__} does not say what it makes: pass shape=(C, ...) to TrajectoryStudent"
            )
        return self.own_shape

    @property
    def classes(self) -> int | None:
        """The number of classes of a class-conditional student, or None."""
        return self.net.backbone.classes if isinstance(self.net.backbone, Backbone) else self.own_classes

    @property
    def guided(self) -> bool:
        """Whether it is told a guidance weight, `weight` in its condition."""
        return self.net.guidance is not None

    def check_restarts(self) -> None:
        """Make sure that it can start from its inner states.

        Raises:
            ValueError: if it was trained from noise alone.
        """
        if not self.restarts:
            raise ValueError(
                "this student starts from noise alone, in one pass: for more, distil one with inner starts "
                "(`dsno distill --inner-starts 0.5`, on trajectories generated with the targets x0 and state)"
            )

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
        return self._read(x_t, self.net(shown, self.times, cond, start, select), t)

    def _read(self, x_t: Tensor, F: Tensor, t: Tensor) -> Tensor:
        """$h$ from raw outputs (B, K, *shape), the table above."""
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

    def _affine(self) -> tuple[float, float, float]:
        r"""$(a, b, c)$ of a sample from noise, $a z + b F(c z)$, computed in float64 on the host."""
        one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        t = torch.ones((), dtype=torch.float64)

        def last(z: Tensor, F: Tensor) -> float:
            x_1 = initial_state(self.schedule, z)
            h = self._read(x_1, F.unsqueeze(1), t)
            return float(self.states(x_1, h, select=(-1,)) if self.target == "state" else h)

        shown = scale_input(self.kind, initial_state(self.schedule, one), t, self.schedule, self.data_std)
        return last(one, zero), last(zero, one), float(shown)

    @torch.no_grad()
    def sample(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        """The sample alone, (B, *shape) from noise (B, *shape): blocks behind the last temporal layer run once."""
        a, b, c = self.affine
        return a * z + b * self.net(c * z, self.times, cond, 1.0, (-1,))[:, 0]

    @property
    def config(self) -> dict[str, object]:
        """Everything but the weights, JSON-able; `backbone` is None where it cannot be rebuilt."""
        known = isinstance(self.net.backbone, Backbone)
        own: dict[str, object] = {} if known else {"shape": self.own_shape, "classes": self.own_classes}
        # Left out of students that start from noise alone: their files stay as they were before there were others.
        own |= {"restarts": True} if self.restarts else {}
        return {
            "schedule": self.schedule.config, "times": self.times.tolist(), "target": self.target, "kind": self.kind,
            "data_std": self.data_std, "backbone": self.net.backbone.config if known else None, "lift": self.net.config,
            **own,
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

    def __call__(self, z: Tensor, cond: Cond | None = None, seeds: Tensor | None = None) -> Trajectory:
        return MultiPass(self.student, 1, self.whole)(z, cond, seeds)


@dataclass(frozen=True)
class MultiPass:
    r"""Draft, move to an inner frame, draft again: a student as a `Sampler` of one to M passes.

    Pass $i$ starts from the state $x_{t_j}$ that the pass before it made, with noise ($t = 1$) the first, and makes the
    frames up to the next inner one,

    $$ x_{t_m} = \alpha_m h_m + \sigma_m (x_{t_j} - \alpha_j h_m) / \sigma_j, \qquad h_m = h_m(x_{t_j}, t_j), \quad m > j; $$

    the last pass makes the rest. With the exact $h$ of `target="state"` this is the ODE's solution, whatever is passed
    through; with `target="x0"` an inner state is DDIM's, one step from the last start with the $\hat x_0$ of its own time,
    and the sample is exact for the state that the last pass starts from. One pass is `OnePass`.

    With `fresh` noise a pass makes its sample $x$, too, and the next one starts from that sample noised again,

    $$ x_{t_j} = \alpha_j x + \sigma_j \epsilon, $$

    as consistency models do (Song et al., 2023, arXiv 2303.01469, algorithm 1): no ODE's solution, but what a pass gets wrong
    is drowned in noise instead of handed on.

    Arguments:
        student: A student that was trained from inner starts, if it is to make more than one pass.
        through: The number of passes, 1 to M, whose inner frames are spread evenly; or the inner frames themselves,
            indices increasing in [0, M - 2].
        whole: Whether all frames are kept; else only those passed through and the last, and the blocks behind the last
            temporal layer run for them alone.
        fresh: Whether inner passes start from the sample of the pass before, noised again.

    Raises:
        ValueError: for more passes than the student has frames, frames that do not increase or are not inner ones, or more
            than one pass of a student that starts from noise alone; when called without seeds where fresh noise is needed.
    """

    student: TrajectoryStudent
    through: Sequence[int] | int
    whole: bool = True
    fresh: bool = False

    def __post_init__(self) -> None:
        M = self.student.frames
        if isinstance(self.through, int) and not 1 <= self.through <= M:
            if M == 1:
                raise ValueError(
                    f"a student of one frame makes one pass alone, got {self.through}: for more, distil one of several frames "
                    "with inner starts (`dsno distill --inner-starts 0.5`), or by a method that makes more (`dsno methods`)"
                )
            raise ValueError(f"a student of {M} frames makes 1 to {M} passes, got {self.through}")
        if any(not i < j < M - 1 for i, j in pairwise((-1, *self.inner))):
            raise ValueError(
                f"inner frames must increase within [0, {M - 2}], the last of {M} being the sample: got {list(self.inner)}"
            )
        if self.passes > 1:
            self.student.check_restarts()

    @property
    def inner(self) -> tuple[int, ...]:
        """The inner frames that passes start from."""
        if not isinstance(self.through, int):
            return tuple(self.through)
        # Noise and the M frames are M + 1 places: i M / k, to the nearest, is the place of the i-th restart of k passes.
        k, M = self.through, self.student.frames
        return tuple((2 * i * M + k) // (2 * k) - 1 for i in range(1, k))

    @property
    def passes(self) -> int:
        """Network calls: one more than inner frames."""
        return len(self.inner) + 1

    @torch.no_grad()
    def __call__(self, z: Tensor, cond: Cond | None = None, seeds: Tensor | None = None) -> Trajectory:
        student, first, start = self.student, 0, 1.0
        end, noises = student.frames - 1, iter(self._noises(z, seeds))
        x_t = initial_state(student.schedule, z)
        x, hs, kept = [x_t.unsqueeze(1)], list[Tensor](), list[int]()
        for last in (*self.inner, end):
            frames = range(first, last + 1) if self.whole else (last,)
            # Where the next pass starts from the sample, that frame is asked for in place of its own.
            again = self.fresh and last < end
            asked = (*frames[:-1], end) if again else frames
            h = student(x_t, cond, start, asked)
            states = student.states(x_t, h, start, asked)
            if student.target == "x0" and asked[-1] == end:
                # The sample is h itself; the formula would add sigma_M times the noise where a schedule is truncated.
                states[:, -1] = h[:, -1]
            if again:
                alpha_j, sigma_j = student.schedule.at(float(student.times[last]))
                states[:, -1] = alpha_j * states[:, -1] + sigma_j * next(noises)
            x, hs, kept = [*x, states], [*hs, h], [*kept, *frames]
            x_t, first, start = states[:, -1], last + 1, float(student.times[last])
        h, states = torch.cat(hs, 1), torch.cat(x, 1)
        t = torch.cat([torch.ones(1, dtype=torch.float64), student.times[kept]])
        # A state student's h is no prediction at the frame's state: it leads there from the start of its pass. Nor is any h
        # one at a state that was noised again.
        told = student.target == "x0" and not (self.fresh and self.inner)
        x0 = torch.cat([h[:, :1], h], 1) if told else None
        return Trajectory(states, t, x0, cond, seeds, nfe=self.passes, rounds=self.passes)

    def _noises(self, z: Tensor, seeds: Tensor | None) -> Sequence[Tensor] | Tensor:
        """The noise of each restart, (B, *shape); streams 1, 2, ... of the seeds."""
        if not (self.fresh and self.inner):
            return ()
        if seeds is None:
            raise ValueError("this sampler draws fresh noise at every restart: pass the seeds of the samples")
        return noise_tape(seeds, z.shape[1:], len(self.inner), z.dtype).to(z.device)


def student_from_teacher(
    teacher: Prediction,
    times: Sequence[float] | Tensor,
    target: Target = "x0",
    modes: int | None = None,
    where: Where | Callable[[str, torch.Size], bool] = "mid",
    once: bool = True,
    activation: Activation = "silu",
    init: Init = "zero",
    told: Told = "input",
    guidance: bool = False,
    train_only: Literal["all", "temporal"] = "all",
    blocks: Blocks | None = None,
) -> TrajectoryStudent:
    """A student of `len(times)` frames around a copy of a teacher, its weights included.

    `modes` is 2 by default, 1 of one frame. `guidance` makes the guidance weight an input, `weight` in the condition.
    `train_only="temporal"` freezes what came from the teacher. A network that is no `Backbone` needs `blocks`, its
    blocks as in `lift`, and a teacher that says its `shape`. The other arguments are those of `lift`; the defaults are
    what did best on the digits (`benchmarks/digits.py`). The published operator is
    `where="every", once=False, told="output"`.

    Raises:
        ValueError: if the teacher's network does not say which of its modules are blocks (or time embeddings, for
            guidance) or has its own time units, or as `lift` does.
    """
    if train_only not in ("all", "temporal"):
        raise ValueError(f"unknown train_only {train_only!r}: expected all or temporal")
    net = copy.deepcopy(teacher.net)
    embedding: Sequence[str] = ()
    if isinstance(net, Backbone):
        blocks, embedding = net.blocks if blocks is None else blocks, net.embedding
    if blocks is None:
        raise ValueError(
            f"a {type(net).__name__} does not say which of its modules are blocks: pass `blocks`, or use `lift` and "
            "TrajectoryStudent"
        )
    if guidance and not embedding:
        raise ValueError(
            f"a {type(net).__name__} does not say which of its modules return the time embedding: use `lift` with "
            "`guidance` and TrajectoryStudent"
        )
    if teacher.time is not None:
        raise ValueError("a student's network is told t in [0, 1]: put the teacher's `time` into its network's forward")
    if not any(p.requires_grad for p in net.parameters()):
        net.requires_grad_()
    made = lift(
        net, _example(teacher, net), blocks, len(times), min(2, len(times) // 2 + 1) if modes is None else modes,
        where, once, activation, init, told=told, guidance=embedding if guidance else (),
    )  # fmt: skip
    if train_only == "temporal":
        made.freeze_backbone()
    return TrajectoryStudent(
        made, teacher.schedule, times, target, teacher.kind, teacher.data_std, teacher.shape, teacher.classes
    )


def _example(teacher: Prediction, net: nn.Module) -> tuple[Cond, ...]:
    like = next(net.parameters())
    if isinstance(net, Backbone):
        return example(net, like)
    if teacher.shape is None:
        raise ValueError(f"a {type(net).__name__} does not say what shape it makes: pass shape=(C, ...) to Prediction")
    x, t = like.new_zeros(1, *teacher.shape), like.new_zeros(1)
    label = torch.zeros(1, dtype=torch.int64, device=like.device)
    return (x, t) if teacher.classes is None else (x, t, label)


# On disk


def save_student(folder: Path | str, student: TrajectoryStudent, adapter_only: bool = False, **notes: object) -> Path:
    """Write a student: `config.json` and `model.safetensors`; `notes` go into the former.

    With `adapter_only`, only what lifting added to the teacher, and a fingerprint of the teacher's weights.

    Raises:
        ValueError: if only the adapter is to be written of a student whose backbone is trained, too.
    """
    config = {"type": "student", **student.config, "notes": notes}
    if not adapter_only:
        return save_model(folder, config, student)
    added = student.net.added()
    own = set(added.parameters())
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and parameter not in own:
            raise ValueError(
                f"{name} is trained, too: freeze the backbone before training (`freeze_backbone`), or save the whole student"
            )
    return save_model(folder, {**config, "type": "adapter", "teacher": _fingerprint(student.net)}, added)


def load_student(
    folder: Path | str, backbone: nn.Module | None = None, teacher: Prediction | None = None
) -> TrajectoryStudent:
    """Read what `save_student` wrote.

    Arguments:
        folder: What `save_student` wrote.
        backbone: A network like the one that was lifted, where that was no `Backbone`; lifted in place.
        teacher: The teacher that an adapter belongs to; its network is copied.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the folder holds something else, or damaged or foreign weights; if it needs a backbone or a teacher
            and there is none, or the teacher is another.
    """
    folder = Path(folder)
    if teacher is None:
        config = read_json(folder / CONFIG)
        if isinstance(config, dict) and config.get("type") == "adapter":
            raise ValueError(f"{folder} holds an adapter: pass the teacher it belongs to, load_student(..., teacher=)")

        def whole(config: dict[str, Any]) -> tuple[TrajectoryStudent, nn.Module]:
            student = build_student(config, backbone)
            return student, student

        return load_model(folder, "student", whole).eval()
    net = copy.deepcopy(teacher.net)

    def adapter(config: dict[str, Any]) -> tuple[TrajectoryStudent, nn.Module]:
        expected = config.pop("teacher", None)
        student = build_student(config, net)
        if _fingerprint(student.net) != expected:
            raise ValueError(f"{folder} is the adapter of another teacher: the weights of the one given differ")
        student.net.freeze_backbone()
        return student, student.net.added()

    return load_model(folder, "adapter", adapter).eval()


def _fingerprint(net: Lifted) -> str:
    """sha256 of the backbone's weights: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    added = tuple(f"{name}." for name in net.temporal_layers())
    for name, value in sorted(net.backbone.state_dict().items()):
        if not name.startswith(added):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def build_student(config: Mapping[str, Any], backbone: nn.Module | None = None) -> TrajectoryStudent:
    """The student a configuration describes, with fresh weights, or around the given backbone, lifted in place.

    Raises:
        ValueError: for an unknown key, with the nearest known one, or a missing one; or if it needs a backbone.
    """
    described = {k: v for k, v in config.items() if k not in ("type", "notes")}
    if backbone is None and "backbone" in config and config["backbone"] is None:
        raise ValueError(
            "the backbone of this student is no `Backbone` and cannot be rebuilt from a configuration: pass one like it, "
            "load_student(..., backbone=)"
        )
    return build(_student, {**described, "net": backbone}, "the configuration of a student")


def _student(
    schedule: dict[str, object],
    times: Sequence[float],
    target: Target,
    kind: Kind,
    backbone: dict[str, Any],
    lift: dict[str, Any],
    data_std: float = 1.0,
    shape: Sequence[int] | None = None,
    classes: int | None = None,
    restarts: bool = False,
    net: nn.Module | None = None,
) -> TrajectoryStudent:
    lifted = _lift_again(net_from_config(backbone) if net is None else net, lift)
    path = schedule_from_config(schedule)
    return TrajectoryStudent(lifted, path, times, target, kind, data_std, shape, classes, restarts)


def _lift_again(net: nn.Module, config: Mapping[str, Any]) -> Lifted:
    if "phases" in config or not isinstance(net, Backbone):
        return install(net, build(Plan, config, "the configuration of a lift"))
    # Students of version 0.1 name the blocks with temporal layers alone.
    return build(_lift_named, {"net": net, **config}, "the configuration of a lift")


def _lift_named(
    net: nn.Module,
    temporal: Sequence[str],
    frames: int,
    modes: int,
    once: bool,
    activation: Activation,
    channel_dim: int,
    told: Told,
) -> Lifted:
    assert isinstance(net, Backbone)
    where: Any = (lambda name, shape: name in temporal) if temporal else "none"
    arguments = example(net, next(net.parameters()))
    return lift(net, arguments, net.blocks, frames, modes, where, once, activation, channel_dim=channel_dim, told=told)
