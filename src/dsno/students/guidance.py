r"""The guidance weight as an input of a student: one student for every weight (Meng et al., 2023, arXiv 2210.03142).

A teacher under classifier-free guidance, $D_w = (1 + w) D(c) - w D(\varnothing)$, is another teacher for each $w$. A student
trained on trajectories of all of them is told which,

$$ e(w) = W\, \mathrm{silu}(V \phi(w) + b), \qquad
   \phi(w) = (\sin \omega_k w, \cos \omega_k w), \quad \omega_k \text{ geometric from } \tfrac1{16} \text{ to } 16, $$

added to the time embedding of its backbone, with $W = 0$ at the start: then it is the backbone, for any $w$.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dsno.denoise import Cond

__all__ = ["WeightEmbedding", "split_weight", "weight_features"]

FEATURES = 64


def weight_features(w: Tensor, dim: int = FEATURES) -> Tensor:
    r"""$\phi(w)$: (B,) to (B, dim), float32 or the precision of `w` where that is higher."""
    w = w.to(torch.promote_types(w.dtype, torch.float32))
    power = torch.arange(dim // 2, device=w.device, dtype=w.dtype) / (dim // 2 - 1)
    angle = w[:, None] * torch.exp(math.log(256) * power) / 16
    return torch.cat([angle.sin(), angle.cos()], 1)


class WeightEmbedding(nn.Module):
    """$e(w)$ for each time embedding of a backbone: (B,) to one tensor (B, D) for each D of `dims`."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        width = min(max(dims), 512)
        self.hidden = nn.Linear(FEATURES, width)
        self.heads = nn.ModuleList(nn.Linear(width, dim, bias=False) for dim in dims)
        for head in self.heads:
            nn.init.zeros_(head.weight)  # type: ignore[arg-type]

    def forward(self, w: Tensor) -> tuple[Tensor, ...]:
        h = nn.functional.silu(self.hidden(weight_features(w).to(self.hidden.weight.dtype)))
        return tuple(head(h) for head in self.heads)


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
    return cond["weight"], rest.get("", rest) if rest else None
