r"""Flow maps of two times: $(x_t, t, s) \mapsto x_s$ along the probability-flow ODE, for any t and s.

One network $h(x_t, t, s)$, read as the constant of the ODE's exact linear form between the two times,

$$ X_{t \to s}(x) = \frac{\sigma_s}{\sigma_t} x
   + \Big( \alpha_s - \frac{\sigma_s}{\sigma_t} \alpha_t \Big) h(x, t, s), $$

is the identity at $s = t$ whatever h is; $h(x, t, t)$ is the denoiser, and $h = D(x, t)$ for every s is DDIM's step,
which is where a student made from a teacher starts. Backwards, to $s > t$, the same output is read as noise e, and
nothing is divided by a $\sigma_t$ near 0:

$$ X_{t \to s}(x) = \frac{\alpha_s}{\alpha_t} x
   + \Big( \sigma_s - \frac{\alpha_s}{\alpha_t} \sigma_t \Big) e(x, t, s), \qquad
   e = (x - \alpha_t h) / \sigma_t. $$

A teacher that predicts noise says nothing of h where all is noise: $h = (x - \sigma_t F) / \max(\alpha_t, 1/4)$ is its
$\hat x_0$ but for the last quarter, where the map has to be learned from another start.

As a velocity it is $u = \dot\alpha_t h + \dot\sigma_t e$, on a straight path the average velocity, $X = x + (s - t) u$.

What a method wants of h is its loss: $s = 0$ alone is a consistency function, s on the next grid time progressive
distillation, all of $s \le t$ a flow map (Boffi et al., 2024, arXiv 2406.07507), whose average velocity MeanFlow learns
(Geng et al., 2025, arXiv 2505.13447).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn

from dsno.borrow import own_copy, unwrapped
from dsno.condition import Cond, split_weight
from dsno.denoise import Kind, Prediction, convert, expand_like, scale_input, x0_from
from dsno.grids import even
from dsno.nets.backbone import Backbone, example
from dsno.schedule import Schedule
from dsno.solvers.run import initial_state
from dsno.students.blocks import embedding_dim, find_blocks
from dsno.students.rows import AddWeight, Call, Rows
from dsno.students.weight import WeightEmbedding

__all__ = ["FlowMap", "TwoTime", "Way", "flow_map_from_teacher", "two_time"]

Way = Literal["any", "end", "grid"]
"""Which steps a map was trained for: any, those to s = 0 alone, or those of one grid."""


class TwoTime(nn.Module):
    """A backbone that is told a second time: an embedding of the phase of s, zero at the start, is added to that of t.

    Call: `net(x, t, p, cond)` with t and the phase p of s (B,), in [0, 1]. With `guidance` it reads its weight from
    `cond["weight"]`.
    """

    def __init__(self, backbone: nn.Module, embedding: dict[str, int], guidance: bool = False) -> None:
        super().__init__()
        self.backbone, self.embedding, self.rows = backbone, dict(embedding), Rows(1, False)
        self.later = WeightEmbedding(list(embedding.values()))
        self.guidance = WeightEmbedding(list(embedding.values())) if guidance else None
        for i, name in enumerate(embedding):
            backbone.get_submodule(name).register_forward_hook(AddWeight(self.rows, i))

    def forward(self, x: Tensor, t: Tensor, p: Tensor, cond: Cond | None = None) -> Tensor:
        weight, cond = split_weight(cond, self.guidance is not None)
        # The embedding's slowest wave is an eighth of a turn per unit; a phase in [0, 1] needs to be told finer.
        embedded = self.later(16 * p)
        if self.guidance is not None and weight is not None:
            embedded = tuple(a + b for a, b in zip(embedded, self.guidance(weight), strict=True))
        self.rows.call = Call(x.shape[0], (0,), embedded)
        try:
            return cast(Tensor, self.backbone(x, t) if cond is None else self.backbone(x, t, cond))
        finally:
            # The embeddings belong to this pass, and so does its graph.
            self.rows.call = Call(x.shape[0], (0,))


class FlowMap(nn.Module):
    r"""$X_{t \to s}$ of a network, the formula above.

    Arguments:
        net: Called as `net(x_t, t, s)` or `net(x_t, t, s, cond)`, t and s (B,) in [0, 1]; returns (B, *shape). A
            `TwoTime` is told the phase of s in its place.
        schedule: The teacher's path.
        kind: How the raw output is read as h: as a prediction of this kind at $(x_t, t)$.
        data_std: $\sigma_d$ of the kind `edm`.
        way: Which steps it was trained for; `passes_of` samples accordingly.
        steps: The steps of the even grid (`schedule.even`) it was trained for, of the way `grid`.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        kind: Kind = "v",
        data_std: float = 1.0,
        way: Way = "any",
        steps: int | None = None,
    ) -> None:
        super().__init__()
        if (way == "grid") != (steps is not None):
            raise ValueError(f"a map of the way 'grid', and no other, has `steps`: got {way!r} and {steps}")
        self.net, self.schedule, self.kind, self.data_std = net, schedule, kind, data_std
        self.way, self.steps = way, steps
        self.two_time = isinstance(unwrapped(net), TwoTime)
        with torch.device("cpu"):  # it has numbers where a network is built without memory, too
            self.affine = self._affine()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, (C, *spatial).

        Raises:
            ValueError: if the network does not say.
        """
        if (backbone := self._backbone()) is not None:
            return backbone.shape
        raise ValueError(f"a {type(unwrapped(self.net)).__name__} does not say what shape it makes")

    @property
    def classes(self) -> int | None:
        """The number of classes of a class-conditional map, or None."""
        backbone = self._backbone()
        return None if backbone is None else backbone.classes

    def _backbone(self) -> Backbone | None:
        """The network that says what it makes and is told, if it does."""
        backbone = unwrapped(unwrapped(self.net).backbone) if self.two_time else None
        return backbone if isinstance(backbone, Backbone) else None

    @property
    def guided(self) -> bool:
        """Whether it is told a guidance weight, `weight` in its condition."""
        return self.two_time and unwrapped(self.net).guidance is not None

    def trained_for(self, way: Way, steps: int | None = None) -> FlowMap:
        """The same map, its network shared, said to be trained for these steps."""
        made = FlowMap(self.net, self.schedule, self.kind, self.data_std, way, steps)
        made.training = self.training
        return made

    def one_pass(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        """The sample of one pass, (B, *shape) from noise (B, *shape), with its graph: what exports trace."""
        a, b, c = self.affine
        t, s = (z.new_full((z.shape[0],), time, dtype=torch.float32) for time in (1.0, 0.0))
        F = self.net(c * z, t, s) if cond is None else self.net(c * z, t, s, cond)
        return a * z + b * F

    @torch.no_grad()
    def sample(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        """The sample, (B, *shape) from noise (B, *shape): in one pass, or in those of the grid it was trained for."""
        x = initial_state(self.schedule, z)
        for t, s in pairwise(even(self.schedule, self.steps or 1).tolist()):
            x = self(x, t, s, cond)
        return x

    def x0(self, x_t: Tensor, t: Tensor | float, s: Tensor | float, cond: Cond | None = None) -> Tensor:
        r"""$h(x_t, t, s)$, (B, *shape); at s = t the denoiser's $\hat x_0$."""
        return self._read(self._output(x_t, t, s, cond), x_t, _rows(t, x_t))[0]

    def forward(
        self,
        x_t: Tensor,
        t: Tensor | float,
        s: Tensor | float,
        cond: Cond | None = None,
        returns: Literal["state", "velocity"] = "state",
    ) -> Tensor:
        r"""$x_s$, (B, *shape) from $x_t$ (B, *shape); t and s numbers or (B,), in [0, 1].

        `returns="velocity"`: $u$ instead, what h is as a velocity at $(x_t, t)$.
        """
        t, s = _rows(t, x_t), _rows(s, x_t)
        F = self._output(x_t, t, s, cond)
        if returns == "velocity":
            h, e = self._read(F, x_t, t)
            d_alpha, d_sigma = (expand_like(c, x_t) for c in self.schedule.derivative(t))
            return d_alpha * h + d_sigma * e
        return self._moved(F, x_t, t, s)

    def _affine(self) -> tuple[float, float, float]:
        r"""$(a, b, c)$ of one pass, $x_0 = a z + b F(c z)$, computed in float64 on the host."""
        one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        t, s = one[0], zero[0]

        def end(z: Tensor, F: Tensor) -> float:
            return float(self._moved(F, initial_state(self.schedule, z), t, s))

        shown = scale_input(self.kind, initial_state(self.schedule, one), t, self.schedule, self.data_std)
        return end(one, zero), end(zero, one), float(shown)

    def _moved(self, F: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        h, e = self._read(F, x_t, t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = ((expand_like(c, x_t) for c in self.schedule(time)) for time in (t, s))
        # Nothing moves from t = 0 on, where a straight path has no noise to divide by, nor back from its end.
        down, up, later = _ratio(sigma_s, sigma_t), _ratio(alpha_s, alpha_t), expand_like(s <= t, x_t).bool()
        kept = torch.where(later, down, up)
        added = torch.where(later, alpha_s - down * alpha_t, sigma_s - up * sigma_t)
        return kept * x_t + added * torch.where(later, h, e)

    def _output(self, x_t: Tensor, t: Tensor | float, s: Tensor | float, cond: Cond | None) -> Tensor:
        t, s = _rows(t, x_t), _rows(s, x_t)
        shown = scale_input(self.kind, x_t, t, self.schedule, self.data_std)
        later = self.schedule.phase(s) if self.two_time else s
        return cast(Tensor, self.net(shown, t, later) if cond is None else self.net(shown, t, later, cond))

    def _read(self, output: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        r"""An output as h and as e; the latter without dividing by $\sigma_t$ where the kind allows."""
        kind, schedule = self.kind, self.schedule
        alpha_t, sigma_t = (expand_like(c, x_t) for c in schedule(t))
        if kind in ("eps", "score"):
            e = output if kind == "eps" else -sigma_t * output
            return (x_t - sigma_t * e) / alpha_t.clamp_min(0.25), e
        h = x0_from(kind, output, x_t, t, schedule, self.data_std)
        if kind == "v":
            return h, (sigma_t * x_t + alpha_t * output) / (alpha_t**2 + sigma_t**2)
        if kind == "flow":
            d_alpha, d_sigma = (expand_like(c, x_t) for c in schedule.derivative(t))
            return h, (alpha_t * output - d_alpha * x_t) / (d_sigma * alpha_t - sigma_t * d_alpha)
        if kind == "edm":
            s2 = alpha_t**2 * self.data_std**2 + sigma_t**2
            return h, (sigma_t * x_t - alpha_t * self.data_std * s2.sqrt() * output) / s2
        return h, convert("eps", h, x_t, t, schedule)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 1.0)


def _rows(time: Tensor | float, x: Tensor) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.as_tensor(time, dtype=dtype, device=x.device).expand(len(x))


def flow_map_from_teacher(teacher: Prediction, guidance: bool = False) -> FlowMap:
    """A flow map around a copy of a teacher, its weights included: DDIM's step at the start, for any two times.

    Raises:
        ValueError: if the teacher's network is no `Backbone`, which says where its time embedding is, or has its own
            time units.
    """
    teacher = unwrapped(teacher)
    net = own_copy(teacher.net)
    if not isinstance(net, Backbone):
        raise ValueError(
            f"a {type(net).__name__} does not say which of its modules return the time embedding: build a `TwoTime` "
            "with "
            "their names, and a FlowMap of it"
        )
    if teacher.time is not None:
        raise ValueError("a student's network is told t in [0, 1]: put the teacher's `time` into its network's forward")
    return FlowMap(two_time(net.requires_grad_(), guidance), teacher.schedule, teacher.kind, teacher.data_std)


def two_time(net: nn.Module, guidance: bool) -> TwoTime:
    assert isinstance(net, Backbone)
    found = find_blocks(net, example(net, next(net.parameters())), net.embedding)
    return TwoTime(net, {name: embedding_dim(name, block) for name, block in found.items()}, guidance)
