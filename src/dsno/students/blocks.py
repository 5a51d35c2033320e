"""What a backbone is made of: its blocks, and which of them get a temporal layer or run on which rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from dsno.condition import Cond
from dsno.denoise import evaluating

__all__ = ["Block", "Blocks", "Told", "Where", "embedding_dim", "find_blocks", "phases", "pixels", "place", "site"]

Where = Literal["every", "low", "mid", "none"]

Told = Literal["output", "input"]

Blocks = type[nn.Module] | Iterable[type[nn.Module] | str]


@dataclass(frozen=True)
class Block:
    """How a block ran.

    Attributes:
        shape: The shape of its output, or of the features in a tuple.
        index: Their place in the tuple; None of a single tensor, -1 where it cannot be told.
        given: The shape of its first tensor argument.
        runs: How often it ran.
    """

    shape: torch.Size
    index: int | None = None
    given: torch.Size = torch.Size()  # noqa: RUF009
    runs: int = 1


def find_blocks(backbone: nn.Module, example: Sequence[Cond], blocks: Blocks) -> dict[str, Block]:
    """The blocks of a backbone in the order they finish.

    One forward pass on `example` (the backbone's positional arguments, a batch of one) finds it. `blocks` are module
    names, or the classes whose instances are blocks, or both.

    Raises:
        ValueError: if a named block does not exist or none of the blocks runs.
    """
    modules = dict(backbone.named_modules())
    listed = [blocks] if isinstance(blocks, type) else list(blocks)
    classes = tuple(b for b in listed if isinstance(b, type))
    names = {b for b in listed if isinstance(b, str)}
    for name in sorted(names - modules.keys()):
        raise ValueError(f"the backbone has no module {name!r}")
    found: dict[str, Block] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = next((a.shape for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), torch.Size())
            shape, index = _features(output, given)
            found[name] = Block(shape, index, given, found[name].runs + 1 if name in found else 1)

        return hook

    handles = [
        module.register_forward_hook(record(name), with_kwargs=True)
        for name, module in modules.items()
        if name in names or isinstance(module, classes)
    ]
    try:
        with evaluating(backbone), torch.no_grad():
            backbone(*example)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ValueError("none of the blocks runs in the backbone's forward pass")
    return found


def _features(output: Any, given: torch.Size) -> tuple[torch.Size, int | None]:
    """The shape of a block's features and their place in its output: of a tuple, the one tensor shaped like the
    input."""
    if isinstance(output, Tensor):
        return output.shape, None
    tensors = {i: v.shape for i, v in enumerate(output) if isinstance(v, Tensor)} if type(output) is tuple else {}
    alike = [i for i, shape in tensors.items() if shape == given] or list(tensors)
    if len(alike) == 1:
        return tensors[alike[0]], alike[0]
    return given if given in tensors.values() else torch.Size(), -1


def pixels(shape: torch.Size, channel_dim: int) -> int:
    spatial = list(shape[1:])
    if spatial:
        del spatial[channel_dim - 1 if channel_dim > 0 else channel_dim]
    return int(torch.Size(spatial).numel())


def _within(name: str, blocks: Iterable[str]) -> str | None:
    """The outermost of the blocks that is the module `name` or holds it."""
    holders = [b for b in blocks if name == b or name.startswith(f"{b}.") or not b]
    return min(holders, key=len, default=None)


def place(
    backbone: nn.Module,
    found: Mapping[str, Block],
    blocks: Sequence[type[nn.Module] | str],
    where: Where | Callable[[str, torch.Size], bool],
    dims: Mapping[str, int],
    ndim: int,
) -> list[str]:
    """The blocks that get a temporal layer, in the order they finish; see `lift`.

    `dims` says where the channels of each block's features are, `ndim` how many dimensions a batch of samples has.

    Raises:
        ValueError: for an unknown `where`, or if no block gets a layer though it is not `none`.
    """
    if callable(where):
        names = [n for n, block in found.items() if where(n, block.shape)]
    else:
        names = _placed(_candidates(backbone, found, dims, blocks, ndim), found, dims, where)
    if not names and where != "none":
        raise ValueError(
            f"no block gets a temporal layer with where={where!r}: it takes blocks that have `out_channels`, or keep "
            "the "
            "shape of their tokens, and do not resample; choose others by a function of name and output shape, or ask "
            "for 'none'"
        )
    return names


def _candidates(
    backbone: nn.Module, found: Mapping[str, Block], dims: Mapping[str, int], listed: Sequence[type | str], ndim: int
) -> list[str]:
    """The residual blocks: those that keep the resolution and have `out_channels`, or keep the shape of their
    tokens."""
    classes = tuple(b for b in listed if isinstance(b, type))

    def residual(name: str, block: Block) -> bool:
        module = backbone.get_submodule(name)
        holds = any(other.startswith(f"{name}.") for other in found)
        if holds or not (isinstance(module, classes) or not classes):
            return False
        if hasattr(module, "out_channels"):
            return len(block.given) < 2 or pixels(block.shape, dims[name]) == pixels(block.given, dims[name])
        return len(block.shape) < ndim and block.shape == block.given

    return [name for name, block in found.items() if residual(name, block)]


def _placed(names: list[str], found: Mapping[str, Block], dims: Mapping[str, int], where: str) -> list[str]:
    if where not in ("every", "low", "mid", "none"):
        raise ValueError(f"unknown where {where!r}: expected every, low, mid, none, or a function of name and shape")
    size = {n: pixels(b.shape, dims[n]) for n, b in found.items()}
    if where == "low":
        return [n for n in names if size[n] < max(size.values())]
    if where == "mid":
        called = [n for n in names if any(part.startswith("mid") for part in n.split("."))]
        lowest = [n for n in names if size[n] == min(size[m] for m in names)]
        return called or lowest[len(lowest) // 3 : len(lowest) - len(lowest) // 3]
    return names if where == "every" else []


def site(name: str, found: Mapping[str, Block], channel_dim: int, output: int | None) -> dict[str, int | None]:
    block = found[name]
    index = block.index if block.index is None or output is None else output
    if index == -1:
        # Where text is as long as the image has tokens, the other blocks may tell: Stable Diffusion 3's last returns
        # one.
        known = {b.index for b in found.values()} - {None, -1}
        index = known.pop() if len(known) == 1 else -1
    if index == -1 or not block.shape:
        raise ValueError(f"the block {name!r} returns several tensors: say with `output` which one is its features")
    return {"channels": block.shape[channel_dim], "channel_dim": channel_dim, "index": index}


def embedding_dim(name: str, block: Block) -> int:
    if len(block.shape) != 2:
        raise ValueError(f"{name!r} is no time embedding (B, D): it returns shape {tuple(block.shape)}")
    return block.shape[1]


def phases(found: Mapping[str, Block], temporal: Sequence[str], once: bool, told: Told) -> dict[str, int]:
    units = [n for n in found if _within(n, found) == n]
    places = [units.index(cast(str, _within(n, units))) for n in temporal]
    first, last = min(places, default=len(units)), max(places, default=-1)
    phase = {}
    for i, name in enumerate(units):
        # Without temporal layers the frames never meet, so each one can run alone from the start. Frames told the same
        # time are the same until the first layer, so its block runs once, too.
        if i < first or (i == first and name in temporal and once and told == "input"):
            phase[name] = 0 if once else (1 if temporal else 2)
        else:
            phase[name] = 1 if i <= last else 2
    return phase
