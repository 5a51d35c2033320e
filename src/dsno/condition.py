"""Conditions: one tensor, or several by name; labels, texts, weights of guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, overload

from torch import Tensor

__all__ = ["Cond", "flat", "label_of", "map_cond", "named", "nested", "rows_like", "split_weight", "unnamed"]

Cond = Tensor | Mapping[str, Tensor]
"""What a denoiser is told beside the state: one tensor (labels, embeddings) or several by name (`label`, `text`, `pooled`,
`weight`, ...), each with first dimension B."""


@overload
def map_cond(fn: Callable[[Tensor], Tensor], cond: Cond) -> Cond: ...


@overload
def map_cond(fn: Callable[[Tensor], Tensor], cond: Cond | None) -> Cond | None: ...


def map_cond(fn: Callable[[Tensor], Tensor], cond: Cond | None) -> Cond | None:
    """Apply `fn` to every tensor of a condition; None stays None."""
    if cond is None or isinstance(cond, Tensor):
        return None if cond is None else fn(cond)
    return {name: fn(value) for name, value in cond.items()}


def named(cond: Cond | None) -> dict[str, Tensor]:
    """The tensors of a condition by name: `""` for one that has none."""
    if cond is None:
        return {}
    return {"": cond} if isinstance(cond, Tensor) else dict(cond)


def unnamed(told: Mapping[str, Tensor]) -> Cond | None:
    """What `named` was given: the tensor without a name alone, several by name, None for nothing."""
    return told.get("", told) if told else None


def label_of(cond: Cond | None) -> Tensor | None:
    """The labels of a condition, alone or by name."""
    return cond if cond is None or isinstance(cond, Tensor) else cond["label"]


def rows_like(null: Cond, cond: Cond) -> dict[str, Tensor]:
    """One row of `null` for each of `cond`, by name."""
    absent, told = named(null), named(cond)
    if set(absent) != set(told):
        known = [sorted(names) for names in (absent, told)]
        raise ValueError(f"the null condition names {known[0]}, the condition {known[1]}: they must be alike")
    return {name: absent[name].to(c).expand_as(c) for name, c in told.items()}


def flat(cond: Cond | None) -> dict[str, Tensor]:
    """The tensors of a condition under the names they have in a shard."""
    if cond is None:
        return {}
    return {"cond": cond} if isinstance(cond, Tensor) else {f"cond.{name}": x for name, x in cond.items()}


def nested(rows: Mapping[str, Tensor]) -> dict[str, Any]:
    """Rows with their named conditions gathered under `cond`, as they were given."""
    named = {name.removeprefix("cond."): x for name, x in rows.items() if name.startswith("cond.")}
    others = {name: x for name, x in rows.items() if not name.startswith("cond.")}
    return {**others, "cond": named} if named else others


def split_weight(cond: Cond | None, told: bool) -> tuple[Tensor | None, Cond | None]:
    """The guidance weight (B,) of a condition, and the rest, which is what the backbone is told.

    A rest of one tensor without a name (`{"": labels, "weight": w}`) is told as that tensor.

    Raises:
        ValueError: if a network that is `told` a weight gets none, or one that is not gets one.
    """
    named = isinstance(cond, Mapping) and "weight" in cond
    if named != told:
        raise ValueError(
            "this student is told a guidance weight: give `weight` (B,) in the condition"
            if told
            else "this student takes no guidance weight: leave `weight` out, or make one with guidance=True"
        )
    if not isinstance(cond, Mapping) or not told:
        return None, cond
    rest = {name: c for name, c in cond.items() if name != "weight"}
    return cond["weight"], unnamed(rest)
