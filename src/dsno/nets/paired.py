r"""U-Nets that see two pictures: the state of a bridge, and what the bridge starts from, as channels side by side.

`PairedUNet` is the network of a bridge. `StartedUNet` is the same network as a function of noise, which the student of
a bridge is made of: it is shown a state that the noise makes of $x_T$, and what it says is read as the bridge reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dsno.checkpoint import build
from dsno.condition import Cond
from dsno.nets.unet import Block, Head, Stem, UNet

__all__ = ["PairedUNet", "StartedUNet", "start_like"]


class PairedUNet(nn.Module):
    r"""A `UNet` of 2 C channels, $(x_t, x_T)$, of whose output the first C count; a `Backbone`.

    Arguments:
        net: The arguments of a `UNet` for samples of C channels.

    Call: `(x, t, cond)` with x (B, C, *spatial), t (B,) in [0, 1] and $x_T$ (B, C, *spatial), bare or under `start` of
        the condition; labels (B,) beside it under `label`, where the network knows classes; returns (B, C, *spatial).

    Raises:
        ValueError: for arguments that a `UNet` refuses; when called, without $x_T$ or with one of another shape.

    Source: Liu et al., 2023 (arXiv 2302.05872), `cond_x1`; Zhou et al., 2023 (arXiv 2309.16948).
    """

    blocks: tuple[type[nn.Module], ...] = (Stem, Block, Head)
    embedding = ("unet.emb",)

    def __init__(self, net: Mapping[str, Any]) -> None:
        super().__init__()
        channels = net.get("in_channels", 1)
        self.unet = build(UNet, {**net, "in_channels": 2 * channels}, "the arguments of a UNet")
        self.shape = (channels, *self.unet.shape[1:])
        self.classes, self.label_count = self.unet.classes, self.unet.label_count
        self.tokens: Mapping[str, tuple[int, ...]] = {"start": self.shape}
        self.config: dict[str, Any] = {
            "name": "PairedUNet",
            "net": {**self.unet.config, "in_channels": channels},
        }

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        start = start_like(x, cond)
        label = None if isinstance(cond, Tensor) or cond is None else cond.get("label")
        return self.unet(torch.cat([x, start], 1), t, label)[:, : self.shape[0]]


def start_like(x: Tensor, cond: Cond | None) -> Tensor:
    r"""$x_T$ of a condition, in the dtype of `x`.

    Raises:
        ValueError: if there is none, or one of another shape than `x`.
    """
    start = cond if cond is None or isinstance(cond, Tensor) else cond.get("start")
    if start is None or start.shape != x.shape:
        found = "nothing" if start is None else f"shape {tuple(start.shape)}"
        raise ValueError(f'this network is told where it comes from: cond={{"start": x_T}} like x_t, got {found}')
    return start.to(x)


class StartedUNet(nn.Module):
    r"""A bridge's network as one of noise: from $z$ and $x_T$ to $\hat x_0$; a `Backbone`.

    $$ \tilde x = a \, x_T + c \, z, \qquad
       \hat x_0 = p \, \tilde x + e \, x_T + q F(s \, \tilde x, t_1 t, x_T) $$

    With a bridge's coefficients at $t_1$ and the reading of its network there, this is the bridge's own prediction from
    a state that lacks $b_{t_1} x_0$: where a student of one pass starts.

    Arguments:
        net: The arguments of a `UNet` for samples of C channels, as those of `PairedUNet`.
        t_1: The time that the network is told at t = 1.
        shown: $(a, c, s)$.
        read: $(p, e, q)$.

    Call: `(z, t, cond)`, as a `PairedUNet`.

    Raises:
        ValueError: as `PairedUNet` does.
    """

    blocks: tuple[type[nn.Module], ...] = (Stem, Block, Head)
    embedding = ("paired.unet.emb",)

    def __init__(
        self,
        net: Mapping[str, Any],
        t_1: float,
        shown: tuple[float, float, float],
        read: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.paired = PairedUNet(net)
        self.t_1, self.shown, self.read = t_1, tuple(shown), tuple(read)
        self.shape, self.tokens = self.paired.shape, self.paired.tokens
        self.classes, self.label_count = self.paired.classes, self.paired.label_count
        self.config: dict[str, Any] = {
            "name": "StartedUNet",
            "net": self.paired.config["net"],
            "t_1": t_1,
            "shown": list(shown),
            "read": list(read),
        }

    def forward(self, z: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        (a, c, s), (p, e, q) = self.shown, self.read
        start = start_like(z, cond)
        x = a * start + c * z
        F = self.paired(s * x, self.t_1 * t, cond)
        # `lift` may have made several frames of a row on the way.
        rest, frames = p * x + e * start, F.unflatten(0, (z.shape[0], -1))
        return (rest[:, None] + q * frames).flatten(0, 1)
