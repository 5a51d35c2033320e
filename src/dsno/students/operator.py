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

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dsno.borrow import own_copy, unwrapped
from dsno.condition import Cond
from dsno.denoise import Kind, Prediction, expand_like, scale_input, x0_from
from dsno.nets.backbone import Backbone, example
from dsno.schedule import Schedule
from dsno.seeds import check_noise
from dsno.solvers.run import initial_state
from dsno.students.blocks import Blocks, Told, Where
from dsno.students.inputs import check_inputs, computing, in_parts
from dsno.students.lift import Lifted, lift
from dsno.students.temporal import Activation, Init

__all__ = ["Target", "TrajectoryStudent", "student_from_teacher"]

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
        fresh: Whether those were its samples noised again, and not states on their way.

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
        fresh: bool = False,
    ) -> None:
        super().__init__()
        # They are looked at, so they have numbers where a network is built without memory, too.
        t = torch.as_tensor(times, dtype=torch.float64, device=times.device if isinstance(times, Tensor) else "cpu")
        if t.shape != (frames := unwrapped(net).frames,):
            raise ValueError(f"the network has {frames} frames but {tuple(t.shape)} times were given")
        if not bool((t[1:] < t[:-1]).all()) or t.min() < 0 or t.max() >= 1:
            raise ValueError(f"output times must decrease strictly inside [0, 1), got {t.tolist()}")
        if target not in ("x0", "state"):
            raise ValueError(f"unknown target {target!r}: expected x0 or state")
        if kind not in ("x0", "eps", "v", "flow", "edm"):
            raise ValueError(f"no head for a teacher that predicts {kind!r}: expected x0, eps, v, flow or edm")
        self.net, self.schedule, self.times, self.target, self.kind = net, schedule, t, target, kind
        self.data_std, self.own_shape, self.own_classes = data_std, None if shape is None else tuple(shape), classes
        self.restarts, self.fresh = restarts, fresh
        with torch.device("cpu"):
            self.affine = self._affine()

    @property
    def lifted(self) -> Lifted:
        """The network without what is wrapped around it, which hides what it says of itself."""
        bare: Lifted = unwrapped(self.net)
        return bare

    @property
    def frames(self) -> int:
        """M."""
        return self.lifted.frames

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, (C, *spatial).

        Raises:
            ValueError: if the backbone does not say.
        """
        backbone = unwrapped(self.lifted.backbone)
        if isinstance(backbone, Backbone):
            return backbone.shape
        if self.own_shape is None:
            raise ValueError(
                f"a {type(backbone).__name__} does not say what it makes: pass shape=(C, ...) to TrajectoryStudent"
            )
        return self.own_shape

    @property
    def classes(self) -> int | None:
        """The number of classes of a class-conditional student, or None."""
        backbone = unwrapped(self.lifted.backbone)
        return backbone.classes if isinstance(backbone, Backbone) else self.own_classes

    @property
    def guided(self) -> bool:
        """Whether it is told a guidance weight, `weight` in its condition."""
        return self.lifted.guidance is not None

    def check_restarts(self) -> None:
        """Make sure that it can start from its inner states.

        Raises:
            ValueError: if it was trained from noise alone.
        """
        if not self.restarts:
            raise ValueError(
                "this student starts from noise alone, in one pass: for more, distil one with inner starts "
                "(`distill(..., inner_starts=0.5)`, on trajectories of `generate(..., targets=('x0', 'state'))`)"
            )

    def restarting(self, restarts: bool = True, fresh: bool = False) -> TrajectoryStudent:
        """The same student, its network shared, said to start from its inner states or not, and from which."""
        made = TrajectoryStudent(
            self.net,
            self.schedule,
            self.times,
            self.target,
            self.kind,
            self.data_std,
            self.own_shape,
            self.own_classes,
            restarts,
            fresh,
        )
        made.training = self.training
        return made

    def forward(
        self,
        x_t: Tensor,
        cond: Cond | None = None,
        start: Tensor | Sequence[float] | float = 1.0,
        select: Sequence[int] | None = None,
    ) -> Tensor:
        r"""$h$ for the selected frames (all by default): (B, *shape) to (B, len(select), *shape).

        `x_t` is the state at time `start`, a number or (B,); from pure noise, $x_1 = \sigma_1 z$ and 1.
        """
        start = start if isinstance(start, Tensor | float | int) else torch.as_tensor(start, dtype=torch.float64)
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

    def one_pass(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        """The sample alone, (B, *shape) from noise (B, *shape), with its graph: what exports trace.

        Blocks behind the last temporal layer run once.
        """
        a, b, c = self.affine
        return a * z + b * self.net(c * z, self.times, cond, 1.0, (-1,))[:, 0]

    @torch.no_grad()
    def sample(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        """`one_pass` without its graph, in parts where there are more rows than memory holds.

        Raises:
            ValueError: as `check_inputs` does.
        """
        self.check(z, cond)
        with computing(z, self):
            return in_parts(self.one_pass, z, cond)

    def check(self, z: Tensor, cond: Cond | None = None) -> None:
        """Refuse noise or a condition that it does not take, as `check_inputs` does."""
        net = unwrapped(self.net)
        if isinstance(net, Lifted):
            check_inputs(z, cond, unwrapped(net.backbone), net.guidance is not None)
        else:
            check_noise(z)

    @property
    def config(self) -> dict[str, object]:
        """Everything but the weights, JSON-able; `backbone` is None where it cannot be rebuilt."""
        backbone = unwrapped(self.lifted.backbone)
        known = isinstance(backbone, Backbone)
        own: dict[str, object] = {} if known else {"shape": self.own_shape, "classes": self.own_classes}
        # Left out of students that start from noise alone: their files stay as they were before there were others.
        own |= {name: True for name in ("restarts", "fresh") if getattr(self, name)}
        return {
            "schedule": self.schedule.config,
            "times": self.times.tolist(),
            "target": self.target,
            "kind": self.kind,
            "data_std": self.data_std,
            "backbone": backbone.config if known else None,
            "lift": self.lifted.config,
            **own,
        }


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
    teacher = unwrapped(teacher)
    net = own_copy(teacher.net)
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
        net,
        _example(teacher, net),
        blocks,
        len(times),
        min(2, len(times) // 2 + 1) if modes is None else modes,
        where,
        once,
        activation,
        init,
        told=told,
        guidance=embedding if guidance else (),
    )
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
