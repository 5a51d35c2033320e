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
embeddings, skips) that its place in the pass calls for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from dsno.denoise import Cond, map_cond
from dsno.students.temporal import Activation, Init, TemporalFourier

__all__ = ["Lifted", "find_blocks", "lift"]

Where = Literal["every", "low", "mid", "none"]
Told = Literal["output", "input"]


class _Rows:
    """Which rows of a folded batch a block sees. Shared by the hooks of one lifted network."""

    def __init__(self, frames: int, once: bool) -> None:
        self.frames, self.once = frames, once
        self.batch = 1
        self.select: tuple[int, ...] = tuple(range(frames))

    def pick(self, value: object, phase: int) -> object:
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        M, B = self.frames, self.batch
        rows = value.shape[0] // B
        given = M + 1 if self.once else M
        wanted: tuple[int, ...]
        if phase == 0:
            wanted = (0,)
        elif phase == 1:
            wanted = tuple(range(M))
        else:
            wanted = self.select
        if rows == 1 or (phase == 2 and rows == len(wanted) < M):
            source = None if rows == len(wanted) else (0,) * len(wanted)
        elif self.once and rows == given:
            source = wanted if phase == 0 else tuple(m + 1 for m in wanted)
        else:
            source = None if wanted == tuple(range(rows)) else wanted
        if source is None:
            return value
        folded = value.reshape(B, rows, *value.shape[1:])
        if len(set(source)) == 1 and len(source) > 1:
            return folded.expand(B, len(source), *value.shape[1:]).reshape(-1, *value.shape[1:])
        if source == tuple(range(source[0], source[0] + len(source))):
            return folded[:, source[0] : source[0] + len(source)].reshape(-1, *value.shape[1:])
        return folded[:, list(source)].reshape(-1, *value.shape[1:])


class _Before:
    """Forward pre-hook; an object, not a closure, so that `deepcopy` of a lifted network copies its state with it."""

    def __init__(self, rows: _Rows, phase: int) -> None:
        self.rows, self.phase = rows, phase

    def __call__(
        self, block: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        pick, phase = self.rows.pick, self.phase
        return tuple(pick(a, phase) for a in args), {k: pick(a, phase) for k, a in kwargs.items()}


class _After:
    """Forward hook: the temporal layer, on all frames."""

    def __init__(self, rows: _Rows) -> None:
        self.rows = rows

    def __call__(self, block: nn.Module, args: tuple[object, ...], output: Tensor) -> Tensor:
        return block.temporal(self.rows.pick(output, 1))  # type: ignore[operator]


class Lifted(nn.Module):
    """A backbone of M frames; made by `lift`.

    Call: `lifted(x, times, cond, start, select)` with x (B, *shape) the noise, `times` (M,) the frames' output times,
    `start` () or (B,) the input's time (told to the blocks that run once, or to all), `cond` with first dimension B, and `select`
    the indices of the frames wanted (all by default). Returns (B, len(select), *shape), raw network outputs.
    """

    def __init__(self, backbone: nn.Module, rows: _Rows, config: dict[str, object], told: Told = "output") -> None:
        super().__init__()
        self.backbone, self.rows, self.config, self.told = backbone, rows, config, told
        self.frames, self.once = rows.frames, rows.once

    def temporal_layers(self) -> dict[str, TemporalFourier]:
        """The temporal layers by name, in the order of the modules."""
        return {n: m for n, m in self.backbone.named_modules() if isinstance(m, TemporalFourier)}

    def forward(
        self,
        x: Tensor,
        times: Tensor,
        cond: Cond | None = None,
        start: Tensor | float = 1.0,
        select: Sequence[int] | None = None,
    ) -> Tensor:
        B, M = x.shape[0], self.frames
        self.rows.batch = B
        wanted = range(M) if select is None else [range(M)[m] for m in select]
        self.rows.select = tuple(sorted(set(wanted)))
        # Half precision tells only a few hundred times apart, so times never go below float32.
        t = times.to(x.device, torch.promote_types(x.dtype, torch.float32)).reshape(1, M).expand(B, M)
        first = torch.as_tensor(start, device=t.device, dtype=t.dtype).reshape(-1, 1).expand(B, 1)
        if self.told == "input":
            t = first.expand(B, M)
        if self.once:
            t = torch.cat([first, t], 1)
        R = t.shape[1]

        def fold(value: Tensor) -> Tensor:
            return value.unsqueeze(1).expand(B, R, *value.shape[1:]).reshape(-1, *value.shape[1:])

        x_rows, t_rows = fold(x), t.reshape(-1)
        output = self.backbone(x_rows, t_rows) if cond is None else self.backbone(x_rows, t_rows, map_cond(fold, cond))
        output = cast(Tensor, self.rows.pick(output, 2))
        frames = output.reshape(B, len(self.rows.select), *output.shape[1:])
        if tuple(wanted) != self.rows.select:
            frames = frames[:, [self.rows.select.index(m) for m in wanted]]
        return frames


def find_blocks(
    backbone: nn.Module, example: Sequence[Cond], blocks: Iterable[str] | type | tuple[type, ...]
) -> dict[str, torch.Size]:
    """The blocks of a backbone in the order they run, with the shape of each one's output.

    One forward pass on `example` (the backbone's positional arguments, a batch of one) finds the order. `blocks` are
    module names, or the classes whose instances are blocks.

    Raises:
        ValueError: if a named block does not exist or none of the blocks runs.
    """
    modules = dict(backbone.named_modules())
    if isinstance(blocks, type | tuple):
        names = [n for n, m in modules.items() if isinstance(m, blocks)]
    else:
        names = list(blocks)
    for name in names:
        if name not in modules:
            raise ValueError(f"the backbone has no module {name!r}")
    order: dict[str, torch.Size] = {}

    def record(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            order[name] = output.shape

        return hook

    handles = [modules[n].register_forward_hook(record(n)) for n in names]
    training = backbone.training
    try:
        with torch.no_grad():
            backbone.eval()(*example)
    finally:
        backbone.train(training)
        for handle in handles:
            handle.remove()
    if not order:
        raise ValueError("none of the blocks runs in the backbone's forward pass")
    return order


def lift(
    backbone: nn.Module,
    example: Sequence[Cond],
    blocks: Iterable[str] | type | tuple[type, ...],
    frames: int = 4,
    modes: int = 2,
    where: Where | Callable[[str, torch.Size], bool] = "every",
    once: bool = False,
    activation: Activation = "silu",
    init: Init = "zero",
    channel_dim: int = 1,
    told: Told = "output",
) -> Lifted:
    r"""Add temporal layers to a backbone, in place, and return it as a network of M frames.

    Arguments:
        backbone: Called as `net(x, t)` or `net(x, t, cond)`.
        example: Arguments of one such call with a batch of one; finds the order and widths of the blocks.
        blocks: All blocks, by name or class, including those without a temporal layer.
        frames: M.
        modes: J, at most M // 2 + 1.
        where: Which blocks get a layer: `every` (the paper; not the resampling blocks, the stem or the head), `low`
            (those below the highest resolution), `mid` (those whose name starts with `mid`, as the bottleneck of a U-Net
            is called), `none`, or a function of name and output shape.
        once: Run the blocks before the first temporal layer once per sample, told the input's time.
        activation: See `TemporalFourier`.
        init: See `TemporalFourier`.
        channel_dim: See `TemporalFourier`.
        told: Which time a frame's blocks are told: its own `output` time (the paper), or the `input`'s, where the lifted
            network starts as the teacher at the noise it is given and the temporal layers tell the frames apart.

    Raises:
        ValueError: if the backbone is lifted already, a block is unknown, no block gets a layer though `where` is not
            `none`, or the modes do not fit the frames. The backbone is untouched then.
    """
    if any(isinstance(hook, _Before) for m in backbone.modules() for hook in m._forward_pre_hooks.values()):
        raise ValueError("this backbone is lifted already: lift a fresh copy")
    order = find_blocks(backbone, example, blocks)
    modules = dict(backbone.named_modules())
    names = list(order)
    widest = max(_pixels(shape, channel_dim) for shape in order.values())

    def chosen(name: str) -> bool:
        module, shape = modules[name], order[name]
        if callable(where):
            return where(name, shape)
        if where == "none" or not hasattr(module, "out_channels") or getattr(module, "resample", "") != "":
            return False
        if where == "mid":
            return name.startswith("mid")
        return where == "every" or _pixels(shape, channel_dim) < widest

    temporal = [n for n in names if chosen(n)]
    if not temporal and where != "none":
        raise ValueError(
            f"no block gets a temporal layer with where={where!r}: it takes blocks that have `out_channels` and do not "
            "resample; choose others by a function of name and output shape, or ask for 'none'"
        )
    layers = {
        n: TemporalFourier(
            order[n][channel_dim], frames, modes, activation, init, channel_dim, offset=told == "input"
        ).to(cast(Tensor, example[0]))
        for n in temporal
    }
    first = names.index(temporal[0]) if temporal else len(names)
    last = names.index(temporal[-1]) if temporal else -1
    rows = _Rows(frames, once)
    for i, name in enumerate(names):
        # Without temporal layers the frames never meet, so each one can run alone from the start. Frames told the same
        # time are the same until the first layer, so its block runs once, too.
        if i < first or (i == first and once and told == "input"):
            phase = 0 if once else (1 if temporal else 2)
        else:
            phase = 1 if i <= last else 2
        modules[name].register_forward_pre_hook(_Before(rows, phase), with_kwargs=True)
    for name, layer in layers.items():
        modules[name].add_module("temporal", layer)
        modules[name].register_forward_hook(_After(rows))
    config: dict[str, object] = {
        "frames": frames, "modes": modes, "once": once, "activation": activation, "temporal": temporal,
        "channel_dim": channel_dim, "told": told,
    }  # fmt: skip
    return Lifted(backbone, rows, config, told)


def _pixels(shape: torch.Size, channel_dim: int) -> int:
    spatial = list(shape[1:])
    del spatial[channel_dim - 1 if channel_dim > 0 else channel_dim]
    return int(torch.Size(spatial).numel())
