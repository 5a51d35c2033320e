"""A trained bridge on disk: its network, its coefficients and its convention, as `config.json` and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from dsno.borrow import unwrapped
from dsno.bridge.coefficients import bridge_from_config
from dsno.bridge.prediction import BridgeKind, BridgePrediction
from dsno.checkpoint import build, load_model, save_model
from dsno.nets.backbone import Backbone, net_from_config

__all__ = ["load_bridge", "save_bridge"]


def save_bridge(folder: Path | str, bridge: BridgePrediction, **notes: object) -> Path:
    """Write a bridge whose network is a `Backbone`: `config.json`, sealed, and `model.safetensors`; `notes` go into
    the former.

    Raises:
        FileExistsError: if the folder holds a model of another type.
        ValueError: if its network cannot be rebuilt from a configuration, or its weights cannot be written.
    """
    bridge = unwrapped(bridge)
    net = unwrapped(bridge.net)
    if not isinstance(net, Backbone):
        raise ValueError(
            f"a {type(net).__name__} does not say how to rebuild it: give it what `Backbone` asks for, or keep "
            "the module and load its weights yourself"
        )
    config = {
        "type": "bridge",
        "bridge": bridge.bridge.config,
        "kind": bridge.kind,
        "moments": list(bridge.moments),
        "clip": bridge.clip,
        "net": net.config,
        "notes": notes,
    }
    return save_model(folder, config, bridge.net)


def load_bridge(folder: Path | str, unchecked: bool = False) -> BridgePrediction:
    """Read what `save_bridge` wrote; `unchecked`, also what was changed since.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the folder holds something else, a teacher that starts from noise say, or damaged or foreign
            weights, or was changed since it was written.
    """

    def make(config: dict[str, Any]) -> tuple[BridgePrediction, nn.Module]:
        return build(_make, config, "the configuration of a bridge")

    return load_model(folder, "bridge", make, unchecked).eval()


def _make(
    bridge: dict[str, object],
    kind: BridgeKind,
    moments: tuple[float, ...],
    net: dict[str, Any],
    clip: float | None = None,
) -> tuple[BridgePrediction, nn.Module]:
    """A bridge with fresh weights, and the module that they belong into; the arguments are the keys of the file."""
    if len(moments) != 3:
        raise ValueError(f"the moments of pairs are three numbers, got {len(moments)}")
    backbone = net_from_config(net)
    assert isinstance(backbone, Backbone)
    made = BridgePrediction(backbone, bridge_from_config(bridge), kind, moments, clip, backbone.shape)
    return made, backbone
