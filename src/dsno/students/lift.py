r"""Lift any backbone to an operator on trajectories: M frames in one pass.

A backbone `net(x, t, cond)` made of residual or transformer blocks becomes a network of M frames by folding the frames
into its batch, (B, M, C, *spatial) as (B*M, C, *spatial), telling frame m its own output time $t_m$, and adding a
`TemporalFourier` layer behind chosen blocks (Zheng et al., 2023, arXiv 2211.13449). The layers are submodules of the
blocks and run by hooks: names, state dict, `deepcopy`, compile and export of the backbone stay what they were, and with
the layers' zero initialisation the lifted network *is* the backbone.

Frames only meet in the temporal layers, which splits a pass in three:

| blocks | rows per sample |
|---|---|
| before the first temporal layer | 1 if `once` (they are told the input's time), else M |
| between the first and the last | M |
| after the last temporal layer | the frames asked for: the last alone when only the sample is wanted |

The split is exact. It is done by the same hooks: each block is handed the rows of every tensor argument (features,
embeddings, skips) that its place in the pass calls for. That needs blocks that do their own joining: a network that
adds or concatenates features of different blocks outside of them would meet different numbers of rows there. `lift`
tries one pass and, where that fails, runs all blocks on all frames and selects at the end, which is the same function.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn

from dsno.condition import Cond, map_cond, named, split_weight
from dsno.denoise import evaluating
from dsno.outside import Within
from dsno.students.blocks import Blocks, Told, Where, embedding_dim, find_blocks, phases, place, site
from dsno.students.rows import AddWeight, After, Before, Call, Checkpointed, Rows
from dsno.students.temporal import Activation, Init, TemporalFourier
from dsno.students.weight import WeightEmbedding

__all__ = ["LiftPlan", "Lifted", "install", "lift"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiftPlan:
    """What `lift` decided, JSON-able: enough to lift the same backbone again without running it.

    Attributes:
        temporal: The blocks with a temporal layer in the order they run, with its `channels` and `channel_dim`, and the
            `index` of the features where the block returns a tuple.
        phases: The hooked blocks: 0 before the first temporal layer, 1 between, 2 after the last.
        guidance: The modules that return time embeddings (B, D) to which a weight embedding is added, with D.
    """

    temporal: Mapping[str, Mapping[str, int | None]]
    phases: Mapping[str, int]
    frames: Annotated[int, Within(1, 4096)]
    modes: int
    once: bool
    activation: Activation
    told: Told
    guidance: Mapping[str, int] = field(default_factory=dict)


class Lifted(nn.Module):
    """A backbone of M frames; made by `lift`.

    Call: `lifted(x, times, cond, start, select)` with x (B, *shape) the noise, `times` (M,) the frames' output times,
    `start` () or (B,) the input's time (told to the blocks that run once, or to all), `cond` with first dimension B,
    and `select` the indices of the frames wanted (all by default). Returns (B, len(select), *shape), raw network
    outputs. A network with guidance reads its weight from `cond["weight"]`; the backbone is told the rest.
    """

    def __init__(self, backbone: nn.Module, rows: Rows, plan: LiftPlan) -> None:
        super().__init__()
        self.backbone, self.rows, self.plan = backbone, rows, plan
        self.frames, self.once, self.told = plan.frames, plan.once, plan.told
        self.guidance = WeightEmbedding(list(plan.guidance.values())) if plan.guidance else None

    @property
    def config(self) -> dict[str, Any]:
        """The plan, JSON-able."""
        return asdict(self.plan)

    def temporal_layers(self) -> dict[str, TemporalFourier]:
        """The temporal layers by name, in the order of the modules."""
        return {n: m for n, m in self.backbone.named_modules() if isinstance(m, TemporalFourier)}

    def added(self) -> nn.ModuleList:
        """What lifting added: the temporal layers and the weight embedding."""
        return nn.ModuleList([*self.temporal_layers().values(), *([] if self.guidance is None else [self.guidance])])

    def freeze_backbone(self) -> None:
        """Leave only what lifting added to train."""
        self.requires_grad_(False)
        self.added().requires_grad_(True)

    def enable_gradient_checkpointing(self) -> None:
        """Keep only the input of each block and temporal layer for the backward pass, and compute the rest again.

        The gradients are the same; a step costs one more forward pass. Copies made later have it too.
        """
        self.disable_gradient_checkpointing()
        for module in self._checkpointed():
            module.forward = Checkpointed(self.rows, module.forward)

    def disable_gradient_checkpointing(self) -> None:
        """Undo `enable_gradient_checkpointing`."""
        for module in self._checkpointed():
            module.__dict__.pop("forward", None)

    def _checkpointed(self) -> list[nn.Module]:
        # A temporal layer inside a hooked block is computed again with it.
        blocks = [self.backbone.get_submodule(n) for n in self.plan.phases]
        layers = [self.backbone.get_submodule(f"{n}.temporal") for n in self.plan.temporal if n in self.plan.phases]
        return blocks + layers

    def forward(
        self,
        x: Tensor,
        times: Tensor,
        cond: Cond | None = None,
        start: Tensor | float = 1.0,
        select: Sequence[int] | None = None,
    ) -> Tensor:
        B, M = x.shape[0], self.frames
        weight, cond = split_weight(cond, self.guidance is not None)
        wanted = range(M) if select is None else [range(M)[m] for m in select]
        chosen = tuple(sorted(set(wanted)))
        embedded = () if self.guidance is None or weight is None else self.guidance(weight)
        # Half precision tells only a few hundred times apart, so times never go below float32.
        dtype = torch.promote_types(x.dtype, torch.float32)
        if isinstance(start, Tensor):
            first = start.to(x.device, dtype).reshape(-1, 1).expand(B, 1)
        else:
            first = x.new_full((1, 1), start, dtype=dtype).expand(B, 1)
        if self.told == "input":
            # Until they meet, frames told the same are the same.
            t = first.expand(B, 1 if self.once else M)
        else:
            t = times.to(x.device, dtype).reshape(1, M).expand(B, M)
            t = torch.cat([first, t], 1) if self.once else t
        R = t.shape[1]

        def fold(value: Tensor) -> Tensor:
            if R == 1:
                return value
            return value.unsqueeze(1).expand(B, R, *value.shape[1:]).reshape(-1, *value.shape[1:]).contiguous()

        self.rows.call = Call(B, chosen, embedded)
        try:
            x_rows, t_rows = fold(x), t.reshape(-1)
            output = (
                self.backbone(x_rows, t_rows) if cond is None else self.backbone(x_rows, t_rows, map_cond(fold, cond))
            )
            output = self.rows.pick(output, 2)
        finally:
            # The embeddings belong to this pass, and so does its graph.
            self.rows.call = Call(B, chosen)
        frames = output.reshape(B, len(chosen), *output.shape[1:])
        if tuple(wanted) != chosen:
            frames = frames[:, [chosen.index(m) for m in wanted]]
        return cast(Tensor, frames)


def lift(
    backbone: nn.Module,
    example: Sequence[Cond],
    blocks: Blocks,
    frames: int = 4,
    modes: int = 2,
    where: Where | Callable[[str, torch.Size], bool] = "every",
    once: bool = False,
    activation: Activation = "silu",
    init: Init = "zero",
    channel_dim: int | None = None,
    told: Told = "output",
    output: int | None = None,
    guidance: Sequence[str] = (),
) -> Lifted:
    r"""Add temporal layers to a backbone, in place, and return it as a network of M frames.

    Arguments:
        backbone: Called as `net(x, t)` or `net(x, t, cond)`, t in [0, 1].
        example: Arguments of one such call with a batch of one; finds the order and widths of the blocks.
        blocks: All blocks, including those without a temporal layer: classes whose instances are blocks, or names.
            Names beside classes are modules that only need their rows (a stem, a head). Of blocks inside blocks the
            outermost gets the rows; any may get a layer.
        frames: M.
        modes: J, at most M // 2 + 1.
        where: Which blocks get a layer: `every` (the paper; not the resampling blocks, the stem or the head), `low`
            (those below the highest resolution), `mid` (those with a part of their name that starts with `mid`, as the
            bottleneck of a U-Net is called; where there are none, the middle third of the blocks at the lowest
            resolution, of a transformer that of all), `none`, or a function of name and output shape.
        once: Run the blocks before the first temporal layer once per sample, told the input's time.
        activation: See `TemporalFourier`.
        init: See `TemporalFourier`.
        channel_dim: See `TemporalFourier`; by default 1, and -1 for features of fewer dimensions than x, that is
            tokens.
        told: Which time a frame's blocks are told: its own `output` time (the paper), or the `input`'s, where the
            lifted network starts as the teacher at the noise it is given and the temporal layers tell the frames apart.
        output: Of blocks that return tuples, the place of the features; by default that of the tensor shaped like the
            block's first argument.
        guidance: Names of modules whose output (B, D) is a time embedding, to which an embedding of the guidance weight
            is added (`WeightEmbedding`).

    Raises:
        ValueError: if the backbone is lifted already, a block is unknown, no block gets a layer though `where` is not
            `none`, the modes do not fit the frames, or blocks cannot run once. The backbone is untouched then.
    """
    if any(isinstance(hook, Before) for m in backbone.modules() for hook in m._forward_pre_hooks.values()):
        raise ValueError("this backbone is lifted already: lift a fresh copy")
    listed = [blocks] if isinstance(blocks, type) else list(blocks)
    found = find_blocks(backbone, example, listed)
    x = cast(Tensor, example[0])
    dims = {n: channel_dim or (-1 if len(b.shape) < x.ndim else 1) for n, b in found.items()}
    temporal = place(backbone, found, listed, where, dims, x.ndim)
    sites = {n: site(n, found, dims[n], output) for n in temporal}
    modules = dict(backbone.named_modules())
    for name in sites:
        if hasattr(modules[name], "temporal"):
            raise ValueError(f"the block {name!r} has a module called `temporal` of its own: rename it")
    plan = LiftPlan(
        sites,
        phases(found, temporal, once, told),
        frames,
        modes,
        once,
        activation,
        told,
        {n: embedding_dim(n, b) for n, b in find_blocks(backbone, example, guidance).items()} if guidance else {},
    )
    made = install(backbone, plan, init, x)
    if all(block.runs == 1 for block in found.values()) and _separable(made, example):
        return made
    _uninstall(backbone, plan)
    if once and told == "output":
        raise ValueError(
            "this backbone joins features of different blocks outside of them, so its first blocks cannot run once: "
            "pass once=False, told='input', or name as blocks modules that do their own joining"
        )
    logger.info("a %s joins features outside its blocks: all of them run on all frames", type(backbone).__name__)
    return install(backbone, replace(plan, once=False, phases=dict.fromkeys(plan.phases, 1)), init, x)


def install(backbone: nn.Module, plan: LiftPlan, init: Init = "zero", like: Tensor | None = None) -> Lifted:
    """Lift a backbone, in place, as a plan says; the new layers are of the dtype and on the device of `like`.

    Raises:
        ValueError: if the backbone has no such module, or the modes do not fit the frames. It is untouched then.
    """
    modules = dict(backbone.named_modules())
    for name in (*plan.phases, *plan.temporal, *plan.guidance):
        if name not in modules:
            raise ValueError(f"the backbone has no module {name!r}")
    like = next(backbone.parameters()) if like is None else like
    layers = {}
    for name, at in plan.temporal.items():
        channels, dim = cast(int, at["channels"]), cast(int, at["channel_dim"])
        layers[name] = TemporalFourier(
            channels, plan.frames, plan.modes, plan.activation, init, dim, offset=plan.told == "input"
        ).to(like)
    rows = Rows(plan.frames, plan.once)
    for name, phase in plan.phases.items():
        modules[name].register_forward_pre_hook(Before(rows, phase), with_kwargs=True)
    for name, layer in layers.items():
        modules[name].add_module("temporal", layer)
        modules[name].register_forward_hook(After(rows, plan.temporal[name]["index"]))
    for i, name in enumerate(plan.guidance):
        modules[name].register_forward_hook(AddWeight(rows, i))
    made = Lifted(backbone, rows, plan)
    if made.guidance is not None:
        made.guidance.to(like)
    return made


def _uninstall(backbone: nn.Module, plan: LiftPlan) -> None:
    for name in plan.temporal:
        del backbone.get_submodule(name).temporal
    for module in backbone.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [k for k, hook in hooks.items() if isinstance(hook, Before | After | AddWeight)]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)


def _separable(made: Lifted, example: Sequence[Cond]) -> bool:
    """Whether a pass runs with different numbers of rows: what was joined outside the blocks would not fit."""
    first, *_ = example
    rows, cond = (
        None if c is None else map_cond(lambda v: v.expand(2, *v.shape[1:]), c)
        for c in (first, example[2] if len(example) > 2 else None)
    )
    x = cast(Tensor, rows)
    if made.guidance is not None:
        cond = {**named(cond), "weight": x.new_zeros(2)}
    times = torch.zeros(made.frames, device=x.device)
    try:
        with evaluating(made), torch.no_grad():
            for select in (None, (-1,)):
                made(x, times, cond, 1.0, select)
            return True
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return False
