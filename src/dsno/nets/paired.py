"""A U-Net that sees two pictures: the state of a bridge, and what the bridge starts from, as channels side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dsno.checkpoint import build
from dsno.condition import Cond
from dsno.nets.unet import Block, Head, Stem, UNet

__all__ = ["PairedUNet"]


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
        start = cond if cond is None or isinstance(cond, Tensor) else cond.get("start")
        if start is None or start.shape != x.shape:
            found = "nothing" if start is None else f"shape {tuple(start.shape)}"
            raise ValueError(f'this network is told where it comes from: cond={{"start": x_T}} like x_t, got {found}')
        label = None if isinstance(cond, Tensor) or cond is None else cond.get("label")
        return self.unet(torch.cat([x, start.to(x)], 1), t, label)[:, : self.shape[0]]
