"""Conditions: what a denoiser is told beside the state, one tensor or several by name.

The names are free: `label`, `text` and `pooled` are what networks know, `weight` is the weight of guidance. Every
tensor has first dimension B. A tensor alone bears the name `""` where names are needed, so that nothing else has to
ask for its type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, overload

from torch import Tensor

__all__ = ["Cond", "flat", "label_of", "map_cond", "named", "nested", "rows_like", "split_weight", "unnamed"]

Cond = Tensor | Mapping[str, Tensor]
"""One tensor (labels, embeddings), or several by name (`label`, `text`, `pooled`, `weight`, ...), each with first
dimension B."""


def named(cond: Cond | None) -> dict[str, Tensor]:
    """The tensors of a condition by name: `""` for one that has none."""
    if cond is None:
        return {}
    return {"": cond} if isinstance(cond, Tensor) else dict(cond)


def unnamed(tensors: Mapping[str, Tensor]) -> Cond | None:
    """What `named` was given: the tensor without a name alone, several by name, None for nothing."""
    return tensors.get("", tensors) if tensors else None


@overload
def map_cond(fn: Callable[[Tensor], Tensor], cond: Cond) -> Cond: ...


@overload
def map_cond(fn: Callable[[Tensor], Tensor], cond: Cond | None) -> Cond | None: ...


def map_cond(fn: Callable[[Tensor], Tensor], cond: Cond | None) -> Cond | None:
    """Apply `fn` to every tensor of a condition; None stays None."""
    if cond is None or isinstance(cond, Tensor):
        return None if cond is None else fn(cond)
    return {name: fn(value) for name, value in cond.items()}


def label_of(cond: Cond | None) -> Tensor | None:
    """The labels (B,) of a condition, which are all of it or have the name `label`; None of none.

    Raises:
        KeyError: if there are names, and `label` is not among them.
    """
    return cond if cond is None or isinstance(cond, Tensor) else cond["label"]


def split_weight(cond: Cond | None, guided: bool) -> tuple[Tensor | None, Cond | None]:
    """The guidance weight (B,) of a condition, and the rest, which is what the backbone is told.

    A rest of one tensor without a name (`{"": labels, "weight": w}`) is that tensor.

    Raises:
        ValueError: if a network that is `guided` gets no weight, or one that is not gets one.
    """
    given = isinstance(cond, Mapping) and "weight" in cond
    if given != guided:
        raise ValueError(
            "this student is told a guidance weight: give `weight` (B,) in the condition"
            if guided
            else "this student takes no guidance weight: leave `weight` out, or make one with guidance=True"
        )
    if not isinstance(cond, Mapping) or not guided:
        return None, cond
    rest = {name: c for name, c in cond.items() if name != "weight"}
    return cond["weight"], unnamed(rest)


def rows_like(null: Cond, cond: Cond) -> dict[str, Tensor]:
    """The null condition, which has no batch dimension, once for each row of `cond`: (B, ...) by name.

    Raises:
        ValueError: if the two have not the same names.
    """
    absent, present = named(null), named(cond)
    if set(absent) != set(present):
        known = [sorted(names) for names in (absent, present)]
        raise ValueError(f"the null condition names {known[0]}, the condition {known[1]}: they must be alike")
    return {name: absent[name].to(c).expand_as(c) for name, c in present.items()}


def flat(cond: Cond | None) -> dict[str, Tensor]:
    """The tensors of a condition under the names they have in a shard: `cond` alone, `cond.NAME` by name."""
    if cond is None:
        return {}
    return {"cond": cond} if isinstance(cond, Tensor) else {f"cond.{name}": x for name, x in cond.items()}


def nested(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of a shard with their named conditions gathered under `cond`, as they were given."""
    gathered = {name.removeprefix("cond."): x for name, x in rows.items() if name.startswith("cond.")}
    others = {name: x for name, x in rows.items() if not name.startswith("cond.")}
    return {**others, "cond": gathered} if gathered else others
