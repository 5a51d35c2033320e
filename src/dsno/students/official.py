r"""Checkpoints of the official DSNO code (Zheng et al., 2023, arXiv 2211.13449) as students of ours.

The file holds `model` and `ema`, state dicts that address every layer by its place in one list. Its layers map onto an
`IDDPMUNet` with a `TemporalFourier` layer behind each of `published_blocks`, and three things change on the way:

| official | here |
|---|---|
| a map over channels `W` (C_in, C_out) | its transpose |
| temporal weights (C_in, C_out, J, 2), complex | `real` (J, C_in, C_out) and `imag` of the modes that have one |
| attention rows in the order `[head][q, k, v][channel]` | `[q, k, v][head][channel]` |

The imaginary part of mode 0 (and of the Nyquist mode) is **dropped**: an inverse real FFT ignores it, so it never had
a gradient and never reached an output. The official parameter counts include it (`official_parameters`).

The order of the attention rows is what the official *modules compute*. The official *loader* of teacher weights fills
them in the teacher's order, `[q, k, v][head][channel]`, which is the same for one head (CIFAR-10) and scrambles the
teacher's attention for more (ImageNet-64). A file that was trained on has learnt with the order of the modules,
`attention="official"`; for a file that still holds a teacher's rows as they were copied, or was made by code that
computes in that order, say `attention="teacher"`.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dsno.checkpoint import fill
from dsno.nets.backbone import example
from dsno.nets.iddpm import CIFAR10, IMAGENET64, Attention, Block, IDDPMUNet, published_blocks
from dsno.students.lift import lift
from dsno.students.operator import TrajectoryStudent
from dsno.students.temporal import TemporalFourier

__all__ = ["OFFICIAL", "load_official", "official_parameters", "official_student"]

Layout = Literal["official", "teacher"]

OFFICIAL: dict[str, tuple[Mapping[str, Any], tuple[float, ...]]] = {
    "cifar10": (CIFAR10, (0.5625, 0.25, 0.0625, 0.0)),
    "imagenet64": (IMAGENET64, (0.75, 0.5, 0.25, 0.0)),
}
"""Backbone and output times of the two published models, both with two modes."""

# What an official module calls its layers, and we call them.
BLOCK = {
    "GroupNorm_0": "norm1",
    "Conv_0": "conv1",
    "Dense_0": "emb",
    "GroupNorm_1": "norm2",
    "Conv_1": "conv2",
    "NIN_0": "shortcut",
}

ATTENTION = {"GroupNorm_0": "norm", "NINs": "qkv", "NIN_3": "proj"}

# Options of an official configuration and the one value that the published models have.
FIXED = {
    "resblock_type": "biggan",
    "nonlinearity": "swish",
    "logsnr_type": "inv_cos",
    "mean_type": "x",
    "conditional": True,
    "time_conv": True,
    "with_nin": False,
    "pred_eps": False,
    "fourier_feature": False,
}


def load_official(
    path: Path | str,
    config: str | Mapping[str, Any] | None = None,
    which: Literal["ema", "model"] = "ema",
    attention: Layout = "official",
) -> TrajectoryStudent:
    """Read a checkpoint of the official code; nothing in the file is executed.

    Arguments:
        path: What its training script saved, `solver-model_*.pt`; or a bare state dict, whatever `which` says.
        config: `cifar10`, `imagenet64`, the content of an official YAML file, or None for whichever of the two fits.
        which: The averaged weights (evaluated in the paper) or the last ones.
        attention: In what order the file has the rows of attention (see above).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such a file, holds Python objects, or weights of another architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: expected a checkpoint of the official DSNO code")
    if which not in ("ema", "model"):
        raise ValueError(f"unknown weights {which!r}: expected ema or model")
    held = _read(path)
    state = held if any("all_modules." in str(key) for key in held) else held.get(which)
    if not isinstance(state, Mapping):
        raise ValueError(
            f"{path} has no {which!r} (it has {', '.join(map(str, held)) or 'nothing'}): not a checkpoint of the "
            "official "
            "DSNO code"
        )
    return official_student(state, config, attention, source=path)


def official_student(
    state: Mapping[str, Tensor],
    config: str | Mapping[str, Any] | None = None,
    attention: Layout = "official",
    source: object = "the state dict",
) -> TrajectoryStudent:
    """The student that a state dict of the official modules describes; see `load_official`.

    Raises:
        ValueError: if it holds weights of another architecture than `config` says, or an option is not supported.
    """
    if attention not in ("official", "teacher"):
        raise ValueError(f"unknown order of attention rows {attention!r}: expected official or teacher")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    backbone, times, modes = _architecture(config, state, source)
    # On the meta device until the weights are there: three hundred million random numbers take their time.
    with torch.device("meta"):
        net = IDDPMUNet(**backbone)
    names = published_blocks(net)
    lifted = lift(
        net,
        example(net, next(net.parameters())),
        net.blocks,
        frames=len(times),
        modes=modes,
        where=lambda name, shape: name in names,
        once=True,
        activation="leaky_relu",
        told="output",
    )
    tensors = {f"backbone.{name}": value for name, value in _convert(net, state, attention, source)}
    fill(lifted.to_empty(device="cpu"), tensors, source)
    return TrajectoryStudent(lifted, net.schedule, times, target="x0", kind="x0").eval()


def official_parameters(student: TrajectoryStudent) -> int:
    """How many parameters the official modules have for a student: ours and the imaginary parts that do nothing."""
    ours = sum(p.numel() for p in student.net.parameters())
    return ours + sum(2 * t.modes * t.channels**2 - sum(p.numel() for p in t.parameters()) for t in _temporal(student))


def _temporal(student: TrajectoryStudent) -> Sequence[TemporalFourier]:
    return list(student.net.temporal_layers().values())


def _read(path: Path) -> Mapping[str, Any]:
    try:
        # The training scripts store their parsed arguments beside the weights; a namespace is attributes and no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise ValueError(f"{path} is damaged or was not written by torch.save ({type(error).__name__})") from error
        raise ValueError(
            f"{path} holds a Python object ({found[1]}), which could run code when read. If you trust the file, save "
            "its "
            "weights alone where it was made: `ck = torch.load(path, weights_only=False)`, then "
            "`torch.save({'model': ck['model'], 'ema': ck['ema']}, path)`"
        ) from error
    if not isinstance(held, Mapping):
        raise ValueError(f"{path} holds a {type(held).__name__}: expected a checkpoint of the official DSNO code")
    return held


def _architecture(
    config: str | Mapping[str, Any] | None, state: Mapping[str, Tensor], source: object
) -> tuple[Mapping[str, Any], Sequence[float], int]:
    """Arguments of the backbone, output times and modes."""
    if config is None:
        # The first layer is the first of the time embedding, (4 C, C).
        first = state.get("all_modules.0.weight", torch.empty(0)).shape[-1]
        fitting = [name for name, (backbone, _) in OFFICIAL.items() if backbone["channels"] == first]
        if not fitting:
            raise ValueError(f"{source} fits neither {' nor '.join(OFFICIAL)}: pass the official configuration it has")
        config = fitting[0]
    if isinstance(config, str):
        if config not in OFFICIAL:
            raise ValueError(f"unknown configuration {config!r}: expected one of {', '.join(OFFICIAL)} or a mapping")
        return *OFFICIAL[config], 2
    try:
        return _from_yaml(config["data"], config["model"])
    except KeyError as error:
        raise ValueError(f"the configuration lacks {error}: expected the content of an official YAML file") from None


def _from_yaml(data: Mapping[str, Any], model: Mapping[str, Any]) -> tuple[Mapping[str, Any], Sequence[float], int]:
    for option, value in FIXED.items():
        if model.get(option, value) != value:
            raise ValueError(f"{option}={model[option]!r} is not supported: the published models have {value!r}")
    backbone = {
        "in_channels": data["num_channels"],
        "image_size": data["image_size"],
        "channels": model["nf"],
        "ch_mult": model["ch_mult"],
        "blocks": model["num_res_blocks"],
        "attention": model["attn_resolutions"],
        "heads": model.get("num_attn_heads") or 1,
        "head_dim": model.get("head_dim"),
        "dropout": model["dropout"],
        "classes": model["num_classes"] or None,
        "emb_dim": model["temb_dim"],
        "log_snr_min": model["logsnr_min"],
        "log_snr_max": model["logsnr_max"],
    }
    frames, steps, kept = model["num_t"] + model.get("num_pad", 0), data["num_steps"], data["t_idx"]
    if data["time_step"] == "uniform":
        times = [1 - (steps // (data["t_dim"] - 1)) * i / steps for i in kept]
    else:
        times = [2 * i**2 / steps for i in reversed(kept)]
    return backbone, times[-frames:], model["num_modes"]


def _places(net: IDDPMUNet) -> Iterator[tuple[str, nn.Module]]:
    """Our modules in the order of the official list."""
    names = ["emb.0", "emb.2"] + (["label"] if net.label is not None else []) + ["stem.conv"]
    for name in (n for n, m in net.named_modules() if isinstance(m, Block)):
        inner = dict(net.get_submodule(name).named_children())
        names += [name] + [
            f"{name}.{part}"
            for part in ("attention", "temporal")
            if isinstance(inner.get(part), Attention | TemporalFourier)
        ]
    for name in [*names, "head.norm", "head.conv"]:
        yield name, net.get_submodule(name)


def _convert(
    net: IDDPMUNet, state: Mapping[str, Tensor], attention: Layout, source: object
) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors.

    Raises:
        ValueError: if a tensor is missing, left over, or of another shape.
    """
    left = dict(state)

    def take(name: str, *shape: int) -> Tensor:
        value = left.pop(name, None)
        if not isinstance(value, Tensor) or value.shape != shape:
            found = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else "missing"
            raise ValueError(
                f"{source} holds another architecture than its configuration says: {name} is {found}, expected {shape}"
            )
        return value

    def layer(theirs: str, ours: str) -> Iterator[tuple[str, Tensor]]:
        own = dict(net.get_submodule(ours).named_parameters())
        if "NIN" not in theirs:
            yield from ((f"{ours}.{n}", take(f"{theirs}.{n}", *p.shape)) for n, p in own.items())
            return
        c_out, c_in = own["weight"].shape[:2]
        weight, bias = take(f"{theirs}.W", c_in, c_out), take(f"{theirs}.b", c_out)
        if theirs.endswith("NINs") and attention == "official":
            heads = net.get_submodule(ours.rpartition(".")[0]).heads
            weight, bias = (rows.unflatten(-1, (heads, 3, -1)).transpose(-3, -2).flatten(-3) for rows in (weight, bias))
        yield f"{ours}.weight", weight.T
        yield f"{ours}.bias", bias

    for index, (name, module) in enumerate(_places(net)):
        prefix = f"all_modules.{index}"
        if isinstance(module, TemporalFourier):
            C = module.channels
            R = take(f"{prefix}.t_conv.weights1", C, C, module.modes, 2).permute(3, 2, 0, 1)
            yield f"{name}.real", R[0]
            if module.imag is not None:
                yield f"{name}.imag", R[1, 1 : 1 + module.pairs]
        elif isinstance(module, Block | Attention):
            for theirs, ours in (BLOCK if isinstance(module, Block) else ATTENTION).items():
                if not isinstance(getattr(module, ours), nn.Identity):
                    yield from layer(f"{prefix}.{theirs}", f"{name}.{ours}")
        else:
            yield from layer(prefix, name)
    if left:
        raise ValueError(f"{source} holds more than its configuration says: {', '.join(list(left)[:3])}")
