r"""The guidance weight as an input of a student: one student for every weight (Meng et al., 2023, arXiv 2210.03142).

A teacher under classifier-free guidance, $D_w = (1 + w) D(c) - w D(\varnothing)$, is another teacher for each $w$. A
student trained on trajectories of all of them is told which,

$$ e(w) = W\, \mathrm{silu}(V \phi(w) + b), \qquad
   \phi(w) = (\sin \omega_k w, \cos \omega_k w), \quad \omega_k \text{ geometric from } \tfrac1{16} \text{ to } 16, $$

added to the time embedding of its backbone, with $W = 0$ at the start: then it is the backbone, for any $w$.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["WeightEmbedding", "weight_features"]

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
