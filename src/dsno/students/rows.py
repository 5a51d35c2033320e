"""Which rows of a folded batch a block sees: the hooks of a lifted network, and what they share.

Hooks are objects, not closures, so that `deepcopy` of a lifted network copies their state with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["AddWeight", "After", "Before", "Call", "Checkpointed", "Rows"]


@dataclass(frozen=True)
class Call:
    """One pass: its samples B, the frames wanted of it in ascending order, and the weight embeddings (B, D), if any."""

    batch: int
    select: tuple[int, ...]
    weight: tuple[Tensor, ...] = ()


class Rows:
    """The rows of one lifted network's passes, shared by its hooks.

    Attributes:
        frames: M.
        once: Whether blocks before the first temporal layer run once per sample.
        call: The pass that runs now.
    """

    def __init__(self, frames: int, once: bool) -> None:
        self.frames, self.once = frames, once
        self.call = Call(1, tuple(range(frames)))

    def pick(self, value: Any, phase: int) -> Any:
        """The rows of `value` for a block before (0), between (1) or after (2) the temporal layers.

        Tensors inside tuples, lists and dictionaries are picked from, too. A tensor whose first dimension is no number
        of rows that a pass can have is not batched (a table of positions, say) and stays as it is.
        """
        if isinstance(value, Tensor):
            return self._rows(value, phase)
        if type(value) in (tuple, list):
            return type(value)(self.pick(v, phase) for v in value)
        if type(value) is dict:
            return {k: self.pick(v, phase) for k, v in value.items()}
        return value

    def _rows(self, value: Tensor, phase: int) -> Tensor:
        M, B, select = self.frames, self.call.batch, self.call.select
        if value.ndim == 0 or value.shape[0] % B != 0:
            return value
        rows = value.shape[0] // B
        given = M + 1 if self.once else M
        if rows not in (1, M, given, len(select)):
            return value
        wanted = ((0,), tuple(range(M)), select)[phase]
        source: tuple[int, ...] | None
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
            chosen = folded.expand(B, len(source), *value.shape[1:])
        elif source == tuple(range(source[0], source[0] + len(source))):
            chosen = folded[:, source[0] : source[0] + len(source)]
        else:
            chosen = folded[:, list(source)]
        # Rows that share memory (one sample, expanded) would mislead what looks at strides; images keep their layout.
        last = value.ndim == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)
        return chosen.reshape(-1, *value.shape[1:]).contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format
        )


class Before:
    """Forward pre-hook of a block: hands it the rows that its place in the pass calls for."""

    def __init__(self, rows: Rows, phase: int) -> None:
        self.rows, self.phase = rows, phase

    def __call__(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.rows.pick(args, self.phase), self.rows.pick(kwargs, self.phase)


class After:
    """Forward hook of a block: its temporal layer, on all frames of its output or of the tensor `index` of a tuple."""

    def __init__(self, rows: Rows, index: int | None = None) -> None:
        self.rows, self.index = rows, index

    def __call__(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        features = output if self.index is None else output[self.index]
        mixed = cast(nn.Module, block.temporal)(self.rows.pick(features, 1))
        if self.index is None:
            return mixed
        return (*output[: self.index], mixed, *output[self.index + 1 :])


class AddWeight:
    """Forward hook of a time embedding: adds the weight embedding `index`, the same for all rows of a sample."""

    def __init__(self, rows: Rows, index: int) -> None:
        self.rows, self.index = rows, index

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if not self.rows.call.weight:
            return output
        added = self.rows.call.weight[self.index].to(output.dtype)
        B, R = added.shape[0], output.shape[0] // added.shape[0]
        return output + added.unsqueeze(1).expand(B, R, -1).reshape(B * R, -1)


class Checkpointed:
    """In place of a module's `forward`: keeps its input alone and computes the rest again when gradients are wanted.

    Chen et al., 2016 (arXiv 1604.06174). The hooks inside see the pass that they saw the first time.
    """

    def __init__(self, rows: Rows, forward: Callable[..., Any]) -> None:
        self.rows, self.forward = rows, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        call = self.rows.call

        def run(*args: Any, **kwargs: Any) -> Any:
            now, self.rows.call = self.rows.call, call
            try:
                return self.forward(*args, **kwargs)
            finally:
                self.rows.call = now

        return checkpoint(run, *args, use_reentrant=False, **kwargs)
