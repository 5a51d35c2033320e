r"""Bridges as their authors published them: checkpoints of I2SB, DDBM and DBIM, read without running code from them.

| project | file | network | bridge | told |
|---|---|---|---|---|
| `i2sb` | `{"net": ..., "ema": ...}`, names under `diffusion_model.` | shown $x_T$ if `cond_x1` | `I2SB` | $1000 t$ |
| `ddbm-vp` | a state dict, its averages as `ema_*.pt` | shown $x_T$ | `DDBMVP` | $250 \log t$ |
| `ddbm-ve` | the same | shown $x_T$ | `DDBMVE` | $250 \log (\sigma_{\max} t)$ |

DBIM samples DDBM's networks. Widths, channels, whether $x_T$ is shown, how blocks resample and where attention is are
read off the weights; what weights do not say, the side of the pictures and the width of a head, is an argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dsno.bridge.coefficients import DDBMVE, DDBMVP, I2SB, Bridge
from dsno.bridge.prediction import BridgePrediction
from dsno.checkpoint import check_weights, fill
from dsno.nets.guided import GuidedUNet
from dsno.outside import must_be_file, one_line

__all__ = ["load_published"]

Project = Literal["i2sb", "ddbm-vp", "ddbm-ve"]


def load_published(
    path: Path | str,
    project: Project,
    image_size: int,
    *,
    bridge: Bridge | None = None,
    head_dim: int = 64,
    legacy: bool = True,
    average: bool = True,
    clip: float | None = 1.0,
) -> BridgePrediction:
    """Read a checkpoint of one of the projects above.

    Arguments:
        path: The file.
        project: Whose it is.
        image_size: Side of the pictures.
        bridge: Its bridge, where that is not the project's own: `I2SB(0.1, 1.0)` of its inpainting, say.
        head_dim: Channels of a head of attention.
        legacy: The layout of attention (`use_new_attention_order=False`).
        average: Of I2SB, take the averaged weights.
        clip: Bound on the predictions.

    Returns:
        The bridge, in evaluation mode; `save_bridge` writes it as one of the library's own.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything but tensors, is damaged, or is of another architecture: says where it differs.
    """
    own: dict[str, Bridge] = {"i2sb": I2SB(), "ddbm-vp": DDBMVP(), "ddbm-ve": DDBMVE(80.0)}
    if project not in own:
        raise ValueError(f"unknown project {project!r}: expected one of {', '.join(own)}")
    coefficients = own[project] if bridge is None else bridge
    state = _state(Path(path), average)
    clock: dict[str, Any] = {"clock": "steps"} if project == "i2sb" else {"clock": "log"}
    if project == "ddbm-ve":
        clock["span"] = coefficients.end
    config = {**_architecture(state, image_size, Path(path)), "head_dim": head_dim, "legacy": legacy, **clock}
    net = GuidedUNet(**config)
    check_weights(net.state_dict(), state, path)
    fill(net, state, path)
    kind: Literal["i2sb", "ddbm"] = "i2sb" if project == "i2sb" else "ddbm"
    return BridgePrediction(net, coefficients, kind, clip=clip, shape=net.shape).eval()


def _state(path: Path, average: bool) -> dict[str, Tensor]:
    """The weights of a checkpoint, by the names that `GuidedUNet` has."""
    try:
        held = torch.load(must_be_file(path), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # A damaged pickle can make its reader raise almost any of them.
        raise ValueError(f"{path} is damaged, or holds more than tensors ({one_line(error)})") from None
    if not isinstance(held, Mapping):
        raise ValueError(f"{path} holds a {type(held).__name__}, expected the weights of a bridge by name")
    state = held.get("net", held)
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} holds {', '.join(map(str, [*held][:4]))}, expected the weights of a bridge by name")
    ema = held.get("ema")
    shadow = ema.get("shadow_params") if average and isinstance(ema, Mapping) else None
    if shadow is not None:
        # The averages have no names, but the order of the parameters, and this network has no buffers.
        if len(shadow) != len(state):
            raise ValueError(f"{path} has averages of {len(shadow)} weights and {len(state)} weights: average=False")
        state = dict(zip(state, shadow, strict=True))
    return {name.removeprefix("module.").removeprefix("diffusion_model."): x.float() for name, x in state.items()}


def _architecture(state: Mapping[str, Tensor], image_size: int, path: Path) -> dict[str, Any]:
    """The arguments of the `GuidedUNet` whose weights these are."""
    needed = ("time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight")
    if missing := [name for name in needed if name not in state]:
        raise ValueError(f"{path} has no {missing[0]}: expected a U-Net of guided diffusion, whose names those are")
    channels, out = state[needed[0]].shape[1], state[needed[2]].shape[0]
    first = state[needed[1]].shape[1]
    # A picture has three channels, or one: an even number of them are two pictures.
    paired = first in (2, 6)
    count = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("input_blocks."))
    plain = any(f"input_blocks.{n}.0.op.weight" in state for n in range(count))
    levels, blocks = _levels(state, count, plain, path)
    sides = [image_size // 2**n for n in range(len(levels))]
    attention = [side for side, (_, attends) in zip(sides, levels, strict=True) if attends]
    told = state["input_blocks.1.0.emb_layers.1.weight"].shape[0]  # `_levels` has seen that block
    return {
        "image_size": image_size,
        "channels": channels,
        "in_channels": first // 2 if paired else first,
        "out_channels": out,
        "ch_mult": [width / channels for width, _ in levels],
        "blocks": blocks,
        "attention": attention,
        "scale_shift": told == 2 * levels[0][0],
        "updown": not plain,
        "paired": paired,
    }


def _levels(state: Mapping[str, Tensor], count: int, plain: bool, path: Path) -> tuple[list[tuple[int, bool]], int]:
    """The width of each level and whether it has attention, and the residual blocks of a level."""
    outs = [state.get(f"input_blocks.{n}.0.out_layers.3.weight") for n in range(1, count)]
    attends = [f"input_blocks.{n}.1.qkv.weight" in state for n in range(1, count)]
    if plain:
        blocks = next((n for n, out in enumerate(outs) if out is None), count - 1)
    else:
        # On the way up a level has one block more, and what resamples stands at the end of its last one.
        blocks = next((n for n in range(count) if _resamples(state, n)), count - 1)
    found = []
    for begin in range(0, count - 1, blocks + 1):
        width = outs[begin]
        if width is None:
            raise ValueError(f"{path} has no residual block input_blocks.{begin + 1}.0: it is no U-Net of this kind")
        found.append((width.shape[0], attends[begin]))
    return found, blocks


def _resamples(state: Mapping[str, Tensor], n: int) -> bool:
    """Whether block n of the way up ends in a residual block that resamples."""
    return any(f"output_blocks.{n}.{k}.in_layers.2.weight" in state for k in (1, 2))
