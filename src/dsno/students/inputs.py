"""What a student is given, looked at before its network is: the noise, and the condition that goes with it.

A network may broadcast a shape it does not know, or never look at what it is told. So noise is compared with the shape
that the student makes, and a condition, name by name, with what its backbone says it reads; of a backbone that says
nothing only what holds of any is asked. A batch of any size is taken: none gives none, and more rows than memory holds
are run one part after another, each row being the same in any batch up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dsno.condition import Cond, map_cond, named
from dsno.nets.backbone import Backbone
from dsno.seeds import AT_ONCE, check_noise, rows_at_once

__all__ = ["check_inputs", "computing", "in_parts"]


def check_inputs(z: Tensor, cond: Cond | None, net: object, guided: bool) -> None:
    """Refuse noise or a condition that is not what a student of the backbone `net` takes.

    Raises:
        ValueError: for noise of another shape, of integers or not finite; for a condition of other names, rows or kinds
            of number, one that nobody reads, or none where one is needed.
    """
    check_noise(z, net.shape if isinstance(net, Backbone) else None)
    if not isinstance(cond, Tensor | Mapping | None):
        raise ValueError(f"the condition must be a tensor, or tensors by name, got a {type(cond).__name__}")
    given = named(cond)
    for name, value in given.items():
        what = f"the condition {name!r}" if name else "the condition"
        if not isinstance(value, Tensor) or value.ndim < 1 or len(value) != len(z):
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ValueError(f"{what} must be a tensor with a row for each of the {len(z)} of noise, got {found}")
        if value.is_floating_point() and not torch.compiler.is_compiling() and not bool(value.isfinite().all()):
            raise ValueError(f"{what} must be finite, and holds NaN or infinity")
    if ("weight" in given) != guided:
        raise ValueError(
            "this student is told a guidance weight: give `weight` (B,) in the condition"
            if guided
            else "this student takes no guidance weight: leave `weight` out, or make one with guidance=True"
        )
    if isinstance(net, Backbone):
        _check_names({name: value for name, value in given.items() if name != "weight"}, net)


def _check_names(given: dict[str, Tensor], net: Backbone) -> None:
    """Compare a condition, the guidance weight left out, with what a backbone says it is told."""
    known = [*(["label"] if net.classes is not None else []), *net.tokens]
    if not known:
        if given:
            raise ValueError(f"this student is told nothing, and nobody would read {_listed([*given])}: leave it out")
        return
    found = [name or known[0] for name in given] if len(known) == 1 else [*given]
    # Stable Diffusion XL may be told other image sizes than its own.
    spare = {"time_ids"} if "pooled" in known else set()
    if not found:
        # Some networks have a row for no class; whichever does not says so.
        return
    if {*found} - spare != {*known}:
        raise ValueError(f"this student is told {_listed(known)}, got {_listed([*given])}")
    if "label" in found:
        label = next(value for name, value in given.items() if name in ("", "label"))
        if label.is_floating_point() or label.dtype == torch.bool or label.ndim != 1:
            kind = str(label.dtype).removeprefix("torch.")
            raise ValueError(f"labels must be integers of shape (B,), got {kind} of shape {tuple(label.shape)}")


def _listed(names: list[str]) -> str:
    return " and ".join(f"`{name}`" if name else "one tensor without a name" for name in names)


@contextmanager
def computing(z: Tensor, net: nn.Module) -> Iterator[None]:
    """Run a network, and say so where it computes in another precision than that of the noise.

    Raises:
        ValueError: instead of what it raises, if none of its numbers are of the noise's kind.
    """
    try:
        yield
    except RuntimeError as error:
        kinds = {str(p.dtype).removeprefix("torch.") for p in net.parameters() if p.is_floating_point()}
        own = str(z.dtype).removeprefix("torch.")
        if not kinds or own in kinds:
            raise
        first = min(kinds)
        raise ValueError(
            f"noise of {own} was given to a network of {', '.join(sorted(kinds))}: pass it as such, z.to(torch.{first})"
        ) from error


def in_parts(run: Callable[[Tensor, Cond | None], Tensor], z: Tensor, cond: Cond | None) -> Tensor:
    """What `run` makes of noise (B, *shape) and its condition, in parts where there are many millions of numbers."""
    if len(z) == 0:
        return torch.empty_like(z)
    if z.numel() <= 2 * AT_ONCE:
        return run(z, cond)
    rows = rows_at_once(z[0].numel())
    parts = [range(n, min(n + rows, len(z))) for n in range(0, len(z), rows)]
    return torch.cat([run(*_rows(z, cond, part)) for part in parts])


def _rows(z: Tensor, cond: Cond | None, part: range) -> tuple[Tensor, Cond | None]:
    return z[part.start : part.stop], map_cond(lambda c: c[part.start : part.stop], cond)
