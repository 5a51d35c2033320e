"""Backbones: the networks that the library can rebuild from a configuration, and so store, share and lift.

A backbone is a network and nothing else: it does not know what its output means (`Prediction` says that), nor whether
it is a teacher's or a student's. What it says of itself, its configuration, the shape of a sample, what it may be
told, which of its modules are blocks and which embed the time, is what the rest of the library needs of it, and all
it may rely on.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dsno.borrow import unwrapped
from dsno.checkpoint import build
from dsno.condition import Cond
from dsno.denoise import Prediction

__all__ = [
    "NETS",
    "Backbone",
    "Labelled",
    "check_null",
    "example",
    "net_from_config",
    "own_null",
    "sample_shape",
    "tokens_of",
]

NETS: dict[str, str] = {
    "UNet": "dsno.nets.unet:UNet",
    "DiffusersNet": "dsno.nets.diffusers:DiffusersNet",
    "GuidedUNet": "dsno.nets.guided:GuidedUNet",
    "IDDPMUNet": "dsno.nets.iddpm:IDDPMUNet",
    "PairedUNet": "dsno.nets.paired:PairedUNet",
    "StartedUNet": "dsno.nets.paired:StartedUNet",
    "PreconditionedUNet": "dsno.nets.preconditioned:PreconditionedUNet",
}
"""The backbones by the `name` in their configuration: where they are, `module:class`, so that a U-Net of ours does not
load diffusers. A network of one's own that is entered here is rebuilt from its files like any other."""


@runtime_checkable
class Backbone(Protocol):
    """A network `net(x_t, t, cond)` with t (B,) in [0, 1] that says what it is."""

    @property
    def config(self) -> dict[str, Any]:
        """JSON-able constructor arguments, and the key in `NETS` under `name`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, (C, *spatial)."""

    @property
    def classes(self) -> int | None:
        """The number of classes it may be told, or None."""

    @property
    def tokens(self) -> Mapping[str, tuple[int, ...]]:
        """What else it is told, the shape of one row by name: `{"text": (77, 768)}`, say; empty for most."""

    @property
    def blocks(self) -> tuple[type[nn.Module] | str, ...]:
        """The modules that `lift` hooks: classes of blocks that may get a temporal layer, names of others."""

    @property
    def embedding(self) -> tuple[str, ...]:
        """The names of the submodules whose output (B, D) is the time embedding."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """The raw output, (B, C, *spatial) like `x_t`."""


@runtime_checkable
class Labelled(Protocol):
    """A network that says how far its labels go."""

    @property
    def label_count(self) -> int | None:
        """How many labels it may be told, 0 to this less one, those that stand for no class included; None for none."""


def check_null(teacher: Prediction, null: int, ref: str = "the teacher") -> int:
    """Return `null` if a teacher may be told that label, as far as its network says.

    Raises:
        ValueError: if it is outside.
    """
    net = unwrapped(teacher.net)
    known = net.label_count if isinstance(net, Labelled) else None
    if null < 0 or (known is not None and null >= known):
        expected = "0 or more" if known is None else f"0 to {known - 1}"
        raise ValueError(f"the null label {null} is outside the labels of {ref}: expected {expected}")
    return null


def own_null(teacher: Prediction) -> int | None:
    """The label that stands for no class, where the network knows one behind the last class; else None."""
    net = unwrapped(teacher.net)
    count = net.label_count if isinstance(net, Labelled) else None
    return teacher.classes if count is not None and teacher.classes is not None and count > teacher.classes else None


def tokens_of(net: object) -> Mapping[str, tuple[int, ...]]:
    """What a network is told beside a class, the shape of one row by name; nothing of one that does not say."""
    net = unwrapped(net)
    return net.tokens if isinstance(net, Backbone) else {}


def net_from_config(config: Mapping[str, Any]) -> nn.Module:
    """Rebuild a backbone, with fresh weights, from its `config`; one without a name is a `UNet`.

    Raises:
        ValueError: for an unknown name or key, with the nearest known one, or a missing key.
    """
    arguments = dict(config)
    name = str(arguments.pop("name", "UNet"))
    if name not in NETS:
        raise ValueError(f"unknown network {name!r}: expected one of {', '.join(sorted(NETS))}")
    module, attribute = NETS[name].split(":")
    return build(getattr(import_module(module), attribute), arguments, f"the configuration of a {name}")


def example(net: Backbone, parameters: Tensor, rows: int = 1) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Cond]:
    """Arguments of one call of `net` with `rows` rows, all zeros, of the dtype and on the device of `parameters`.

    Returns:
        x (rows, *shape), t (rows,), and of a network that is told something the condition: a tensor where it is one
        thing.
    """
    x, t = parameters.new_zeros(rows, *net.shape), parameters.new_zeros(rows)
    cond: dict[str, Tensor] = {name: parameters.new_zeros(rows, *shape) for name, shape in net.tokens.items()}
    if net.classes is not None:
        cond["label"] = torch.zeros(rows, dtype=torch.int64, device=parameters.device)
    if not cond:
        return x, t
    return x, t, cond if len(cond) > 1 else next(iter(cond.values()))


def sample_shape(teacher: Prediction) -> tuple[int, ...]:
    """The shape (C, *spatial) of what a teacher makes: what it states, else what its backbone does.

    Raises:
        ValueError: if neither says.
    """
    shape, net = teacher.shape, unwrapped(teacher.net)
    if shape is None and isinstance(net, Backbone):
        shape = net.shape
    if shape is None:
        raise ValueError(f"a {type(net).__name__} does not say what shape it makes: pass shape=(C, ...) to Prediction")
    return shape
