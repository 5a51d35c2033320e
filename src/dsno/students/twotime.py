r"""Flow maps of two times: $(x_t, t, s) \mapsto x_s$ along the probability-flow ODE, for any t and s.

One network $h(x_t, t, s)$, read as the constant of the ODE's exact linear form between the two times,

$$ X_{t \to s}(x) = \frac{\sigma_s}{\sigma_t} x + \Big( \alpha_s - \frac{\sigma_s}{\sigma_t} \alpha_t \Big) h(x, t, s), $$

is the identity at $s = t$ whatever h is; $h(x, t, t)$ is the denoiser, and $h = D(x, t)$ for every s is DDIM's step, which is
where a student made from a teacher starts. Backwards, to $s > t$, the same output is read as noise e, and nothing is divided by
a $\sigma_t$ near 0:

$$ X_{t \to s}(x) = \frac{\alpha_s}{\alpha_t} x + \Big( \sigma_s - \frac{\alpha_s}{\alpha_t} \sigma_t \Big) e(x, t, s), \qquad
   e = (x - \alpha_t h) / \sigma_t. $$

A teacher that predicts noise says nothing of h where all is noise: $h = (x - \sigma_t F) / \max(\alpha_t, 1/4)$ is its $\hat x_0$
but for the last quarter, where the map has to be learned from another start.

As a velocity it is $u = \dot\alpha_t h + \dot\sigma_t e$, on a straight path the average velocity, $X = x + (s - t) u$.

What a method wants of h is its loss: $s = 0$ alone is a consistency function, s on the next grid time progressive
distillation, all of $s \le t$ a flow map (Boffi et al., 2024, arXiv 2406.07507), whose average velocity MeanFlow learns (Geng
et al., 2025, arXiv 2505.13447).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from dsno.checkpoint import build, load_model, save_model
from dsno.denoise import Cond, Kind, Prediction, convert, expand_like, scale_input, x0_from
from dsno.noise import noise_tape
from dsno.schedule import Schedule, check_grid, even, schedule_from_config
from dsno.solve import initial_state
from dsno.students.blocks import embedding_dim, find_blocks
from dsno.students.guidance import WeightEmbedding, split_weight
from dsno.students.rows import AddWeight, Call, Rows
from dsno.teachers.nets import Backbone, example, net_from_config
from dsno.trajectory import Trajectory

__all__ = [
    "FlowMap",
    "FlowMapSampler",
    "TwoTime",
    "Way",
    "flow_map_from_teacher",
    "load_flow_map",
    "passes_of",
    "save_flow_map",
]

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
        net: Called as `net(x_t, t, s)` or `net(x_t, t, s, cond)`, t and s (B,) in [0, 1]; returns (B, *shape). A `TwoTime` is
            told the phase of s in its place.
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

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, (C, *spatial).

        Raises:
            ValueError: if the network does not say.
        """
        if isinstance(self.net, TwoTime) and isinstance(self.net.backbone, Backbone):
            return self.net.backbone.shape
        raise ValueError(f"a {type(self.net).__name__} does not say what shape it makes")

    @property
    def classes(self) -> int | None:
        """The number of classes of a class-conditional map, or None."""
        known = isinstance(self.net, TwoTime) and isinstance(self.net.backbone, Backbone)
        return cast(Backbone, cast(TwoTime, self.net).backbone).classes if known else None

    @property
    def guided(self) -> bool:
        """Whether it is told a guidance weight, `weight` in its condition."""
        return isinstance(self.net, TwoTime) and self.net.guidance is not None

    @torch.no_grad()
    def sample(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        """One pass: (B, *shape) from noise (B, *shape)."""
        return cast(Tensor, self(initial_state(self.schedule, z), 1.0, 0.0, cond))

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

    @property
    def affine(self) -> tuple[float, float, float]:
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
        later = self.schedule.phase(s) if isinstance(self.net, TwoTime) else s
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


@dataclass(frozen=True)
class FlowMapSampler:
    r"""A flow map on a grid as a `Sampler`: one network call for each of its steps.

    A step from $t_n$ jumps to $l_n \le t_{n+1}$ and, where that is short of $t_{n+1}$, noises the sample back up to it,

    $$ x_{t_{n+1}} = \frac{\alpha_{n+1}}{\alpha_l} X_{t_n \to l_n}(x_{t_n}) + \sqrt{\sigma_{n+1}^2 - (\alpha_{n+1} / \alpha_l)^2
       \sigma_l^2} \; \epsilon. $$

    Without `landings`, $l_n = t_{n+1}$: deterministic. Landing at 0 is the multistep sampler of consistency models (Song et
    al., 2023, arXiv 2303.01469, algorithm 1); $l_n = t_{n+2}$, one step further, the stochastic one of guided distillation
    (Meng et al., 2023, arXiv 2210.03142).

    Arguments:
        map: The flow map.
        grid: N + 1 decreasing times; `even(schedule, 1)` is one pass.
        landings: N times, each at most the grid's next one; the last is the grid's last.

    Raises:
        ValueError: for a grid that does not decrease, or landings that do not fit it; when called without seeds where fresh
            noise is needed.
    """

    map: FlowMap
    grid: Tensor
    landings: Tensor | None = None

    def __post_init__(self) -> None:
        grid = check_grid(self.grid)
        object.__setattr__(self, "grid", grid)
        ends = grid[1:]
        landings = ends if self.landings is None else torch.as_tensor(self.landings, dtype=torch.float64, device="cpu")
        fits = landings.shape == ends.shape and bool(((landings >= 0) & (landings <= ends)).all())
        if not fits or landings[-1] != ends[-1]:
            raise ValueError(
                f"a step lands between 0 and the grid's next time, the last on its end: grid {grid.tolist()}, landings "
                f"{landings.tolist()}"
            )
        object.__setattr__(self, "landings", landings)

    @torch.no_grad()
    def __call__(self, z: Tensor, cond: Cond | None = None, seeds: Tensor | None = None) -> Trajectory:
        times, landings, schedule = self.grid.tolist(), cast(Tensor, self.landings).tolist(), self.map.schedule
        tape = None
        if landings != times[1:]:
            if seeds is None:
                raise ValueError("this sampler draws fresh noise at every step: pass the seeds of the samples")
            tape = noise_tape(seeds, z.shape[1:], len(landings), z.dtype, z.device)
        x = [initial_state(schedule, z, times[0])]
        for n, (t, s) in enumerate(pairwise(times)):
            x_s = self.map(x[-1], t, landings[n], cond)
            if tape is not None and landings[n] < s:
                (alpha_s, sigma_s), (alpha_l, sigma_l) = schedule.at(s), schedule.at(landings[n])
                ratio = alpha_s / alpha_l
                x_s = ratio * x_s + (sigma_s**2 - (ratio * sigma_l) ** 2) ** 0.5 * tape[n]
            x.append(x_s)
        N = len(times) - 1
        return Trajectory(torch.stack(x, 1), self.grid, None, cond, seeds, nfe=N, rounds=N)


def passes_of(map: FlowMap, passes: int = 1) -> FlowMapSampler:
    """The sampler of so many passes that a map was trained for, on the even grid.

    Raises:
        ValueError: for no passes, or passes it was not trained for.
    """
    if passes < 1:
        raise ValueError(f"a sampler makes at least one pass, got {passes}")
    if map.way == "grid" and passes != map.steps:
        raise ValueError(
            f"this flow map was trained for the grid of {map.steps} step(s) alone and makes {map.steps} pass(es), got "
            f"{passes}: distil one for {passes}, or by a method that allows any number (`dsno methods`)"
        )
    grid = even(map.schedule, passes)
    return FlowMapSampler(map, grid, torch.zeros(passes) if map.way == "end" else None)


def flow_map_from_teacher(teacher: Prediction, guidance: bool = False) -> FlowMap:
    """A flow map around a copy of a teacher, its weights included: DDIM's step at the start, for any two times.

    Raises:
        ValueError: if the teacher's network is no `Backbone`, which says where its time embedding is, or has its own time
            units.
    """
    net = copy.deepcopy(teacher.net)
    if not isinstance(net, Backbone):
        raise ValueError(
            f"a {type(net).__name__} does not say which of its modules return the time embedding: build a `TwoTime` with "
            "their names, and a FlowMap of it"
        )
    if teacher.time is not None:
        raise ValueError("a student's network is told t in [0, 1]: put the teacher's `time` into its network's forward")
    return FlowMap(_two_time(net.requires_grad_(), guidance), teacher.schedule, teacher.kind, teacher.data_std)


def _two_time(net: nn.Module, guidance: bool) -> TwoTime:
    assert isinstance(net, Backbone)
    found = find_blocks(net, example(net, next(net.parameters())), net.embedding)
    return TwoTime(net, {name: embedding_dim(name, block) for name, block in found.items()}, guidance)


def save_flow_map(folder: Path | str, made: FlowMap, **notes: object) -> Path:
    """Write a flow map of a `Backbone`: `config.json` and `model.safetensors`; `notes` go into the former.

    Raises:
        ValueError: if its network cannot be rebuilt from a configuration.
    """
    net = made.net
    if not isinstance(net, TwoTime) or not isinstance(net.backbone, Backbone):
        raise ValueError(
            f"a flow map of a {type(net).__name__} cannot be rebuilt from a file: save its state_dict yourself"
        )
    config = {
        "type": "flow map", "schedule": made.schedule.config, "kind": made.kind, "data_std": made.data_std,
        "backbone": net.backbone.config, "guidance": net.guidance is not None, "way": made.way, "steps": made.steps,
        "notes": notes,
    }  # fmt: skip
    return save_model(folder, config, made)


def load_flow_map(folder: Path | str) -> FlowMap:
    """Read what `save_flow_map` wrote.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the folder holds something else, or damaged or foreign weights.
    """

    def make(config: dict[str, Any]) -> tuple[FlowMap, nn.Module]:
        made = build(_flow_map, config, "the configuration of a flow map")
        return made, made

    return load_model(folder, "flow map", make).eval()


def _flow_map(
    schedule: dict[str, object],
    kind: Kind,
    data_std: float,
    backbone: dict[str, Any],
    guidance: bool,
    way: Way = "any",
    steps: int | None = None,
) -> FlowMap:
    net = _two_time(net_from_config(backbone), guidance)
    return FlowMap(net, schedule_from_config(schedule), kind, data_std, way, steps)
