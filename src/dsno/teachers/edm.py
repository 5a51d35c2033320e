r"""EDM and EDM2 snapshots (`*.pkl` of NVlabs) as teachers, read without running anything that is in them.

Such a file is a pickle that carries the Python source of its networks, and its own loader executes that source. Here a
pickle is only the list of names and values that it spells out:

- a name on a short list stands for a harmless stand-in of ours, never for what the name means elsewhere; a class of
  `torch.nn.modules`, or one whose source the file holds, becomes an `Inert`: its name and its state;
- tensor data goes through `torch.load(weights_only=True)`;
- any other name, and any attempt to change the state of something that has none, ends the reading;
- what is declared must be there: the bytes of a string, the place of a note, the storage behind a tensor, and settings
  of a hundred thousand values at most, however they contain each other.

The stand-ins call nothing but each other, so no order of them does more than build values. The tensors then fill the
networks of `dsno.nets.edm` and `dsno.nets.edm2`, under the conditioning of `dsno.nets.preconditioned`:

| class in the file | schedule | kind |
|---|---|---|
| `EDMPrecond`, `Precond` (EDM2) | `VE(80)` | `edm` |
| `VPPrecond` | `VPLinear` | `eps` |
| `VEPrecond` | `VE(100)` | `eps` |
| `iDDPMPrecond` | `Tabulated` | `eps` |

Images are in [-1, 1]; EDM2 networks of 4 channels denoise the latents of an autoencoder, scaled as EDM2 does.

Source: Karras et al., 2022 (arXiv 2206.00364); Karras et al., 2023 (arXiv 2312.02696).
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import pickle  # noqa: TID251 - the format is a pickle; `_Reader` resolves no name to anything but a stand-in.
import pickletools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from torch import Tensor

from dsno.checkpoint import build, check_weights, fill
from dsno.denoise import Kind, Prediction
from dsno.hub import first_line
from dsno.nets.preconditioned import PreconditionedUNet, Steps, iddpm_schedule, iddpm_sigmas
from dsno.outside import check, must_be_file, one_line, rehearsed
from dsno.schedule import VE, Schedule, VPLinear

__all__ = ["Inert", "load_edm", "read_snapshot"]

T = TypeVar("T")

_MOST = 100_000
"""So many settings and modules, at most; the published networks have hundreds."""


class _Refused(Exception):
    """The file asks for something that values do not need."""


class Inert:
    """What is left of an object of the file: the name of its class (`kind`) and its `state`; it can do nothing."""

    kind: str = ""
    state: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise _Refused(f"the state of a {self.kind} is a {type(state).__name__}, not a dict")
        self.state = state

    def __repr__(self) -> str:
        return f"Inert({self.kind!r})"

    def tensors(self) -> dict[str, Tensor]:
        """The parameters and persistent buffers of a module, named as in its state dict.

        Raises:
            ValueError: if the file's module contains itself.
        """
        return dict(self._named("", frozenset(), itertools.count()))

    def _named(self, prefix: str, above: frozenset[int], counted: Iterator[int]) -> list[tuple[str, Tensor]]:
        if id(self) in above:
            raise ValueError(f"the module {prefix.rstrip('.')!r} contains itself")
        if next(counted) > _MOST:
            raise ValueError(f"it has more than {_MOST} modules")
        skipped = self.state.get("_non_persistent_buffers_set", ())
        own = {**self.state.get("_parameters", {}), **self.state.get("_buffers", {})}
        found = [(prefix + k, v) for k, v in own.items() if isinstance(v, Tensor) and k not in skipped]
        for name, child in self.state.get("_modules", {}).items():
            if isinstance(child, Inert):
                found += child._named(f"{prefix}{name}.", above | {id(self)}, counted)
        return found


class _Persistent(Inert):
    """`torch_utils.persistence._reconstruct_persistent_obj`, less the execution of `module_src`."""

    def __init__(self, meta: object) -> None:
        if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("class_name"), str):
            raise _Refused("a persistent object that is not the class it should be")
        self.kind = meta["class_name"]
        self.__setstate__(meta.get("state"))


class _Sealed:
    """A value that the pickle can hand on and not change: tensors and arrays would take a new state from it."""

    value: Any

    def __setstate__(self, state: object) -> None:
        raise _Refused(f"a state for a {type(self).__name__.lstrip('_').lower()}, which has none")


class _Storage(_Sealed):
    """`torch.storage._load_from_bytes`: a flat tensor."""

    def __init__(self, data: object) -> None:
        try:
            storage = torch.load(io.BytesIO(_typed(data, bytes)), map_location="cpu", weights_only=True)
        except Exception as error:
            said = first_line(error)
            raise _Refused(f"tensor data that torch does not take for plain weights ({said})") from None
        if not isinstance(storage, torch.TypedStorage):
            raise _Refused(f"a {type(storage).__name__} where tensor data should be")
        self.value = torch.empty(0, dtype=storage.dtype, device="cpu").set_(storage)


class _Tensor(_Sealed):
    """`torch._utils._rebuild_tensor_v2`: a view of a storage, which torch checks to lie inside."""

    def __init__(
        self, storage: object, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: object
    ) -> None:
        flat = _typed(storage, _Storage).value
        if math.prod(size) > flat.numel():
            raise _Refused(f"a tensor of shape {size} in a storage of {flat.numel()} numbers")
        self.value = torch.as_strided(flat, size, stride, offset)


class _Parameter(_Sealed):
    """`torch._utils._rebuild_parameter`: its tensor."""

    def __init__(self, tensor: object, *rest: object) -> None:
        self.value = _typed(tensor, _Tensor).value


class _DType(_Sealed):
    """`numpy.dtype` of numbers; objects have none here."""

    def __init__(self, code: object, *rest: object) -> None:
        if not re.fullmatch(r"[biufc]\d{1,2}", _typed(code, str)):
            raise _Refused(f"a NumPy array of {code!r} instead of numbers")
        self.value = np.dtype(_typed(code, str))

    def __setstate__(self, state: object) -> None:
        self.value = self.value.newbyteorder(_typed(_typed(state, tuple)[1], str))


class _Array(_Sealed):
    """`numpy.core.multiarray._reconstruct`: an empty array, and then its state."""

    def __init__(self, *rest: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        _, shape, dtype, fortran, data = _typed(state, tuple)
        self.value = _numbers(data, dtype).reshape(shape, order="F" if fortran else "C")


class _Buffer(_Sealed):
    """`numpy.core.numeric._frombuffer`: an array at once."""

    def __init__(self, data: object, dtype: object, shape: tuple[int, ...], order: Any) -> None:
        self.value = _numbers(data, dtype).reshape(shape, order=order)


class _Scalar(_Sealed):
    """`numpy.core.multiarray.scalar`: a Python number."""

    def __init__(self, dtype: object, data: object) -> None:
        self.value = _numbers(data, dtype).item()


def _numbers(data: object, dtype: object) -> np.ndarray[Any, Any]:
    raw = bytes(data) if isinstance(data, bytearray) else _typed(data, bytes)
    return np.frombuffer(raw, _typed(dtype, _DType).value).copy()


def _typed(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise _Refused(f"a {type(value).__name__} where a {kind.__name__.lstrip('_').lower()} should be")
    return value


_STAND_INS: dict[tuple[str, str], type] = {
    ("builtins", "set"): set,
    ("collections", "OrderedDict"): dict,
    ("dnnlib", "EasyDict"): dict,
    ("dnnlib.util", "EasyDict"): dict,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Persistent,
    ("torch.storage", "_load_from_bytes"): _Storage,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _Scalar),
            ("numeric", "_frombuffer", _Buffer),
        )
    },
}


class _Reader(pickle.Unpickler):
    """A pickle machine that knows the stand-ins and nothing else."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) in _STAND_INS:
            return _STAND_INS[module, name]
        if re.fullmatch(r"torch\.nn\.modules\.\w+", module) and name.isidentifier():
            # A new class each time: there is nothing that two files, or two objects, could share.
            return type(name, (Inert,), {"kind": name})
        raise _Refused(f"it needs {module}.{name}, which no network does")


def _unsealed(value: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    """Open every `_Sealed` inside; containers in place, each once."""
    if isinstance(value, _Sealed):
        return value.value
    if not isinstance(value, Inert | dict | list | tuple):
        return value
    if id(value) in done:
        return done[id(value)][1]
    done[id(value)] = (value, value)  # Holding the value, too, so that no other one gets its id.
    if isinstance(value, Inert):
        value.state = _unsealed(value.state, done)
    elif isinstance(value, dict):
        value.update({k: _unsealed(v, done) for k, v in value.items()})
    elif isinstance(value, list):
        value[:] = [_unsealed(v, done) for v in value]
    else:
        done[id(value)] = (value, tuple(_unsealed(v, done) for v in value))
    return done[id(value)][1]


def _check_notes(file: BinaryIO) -> None:
    """Refuse a pickle that notes a value at a far place, for which the machine would make room; back to the start."""
    most = os.fstat(file.fileno()).st_size
    for operation, argument, _ in pickletools.genops(file):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= (argument or 0) <= most:
            raise _Refused(f"a note number {argument} in a file of {most} bytes")
    file.seek(0)


def read_snapshot(path: Path | str) -> dict[str, Any]:
    """Everything that a snapshot holds, as inert data: numbers, strings, containers, CPU tensors, arrays and `Inert`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or no pickle of a dictionary, or names anything else; nothing was run then.
    """
    with must_be_file(Path(path)).open("rb") as file:
        try:
            _check_notes(file)
            content = _unsealed(_Reader(file).load(), {})
        except _Refused as refusal:
            raise ValueError(f"refused {path}, and ran nothing of it: {refusal}") from None
        except Exception as error:  # A pickle can fail with almost any of them.
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"{path} is not a snapshot of EDM, or damaged ({reason}): get it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}: expected the dictionary of a snapshot")
    return content


def load_edm(path: Path | str, key: str = "ema") -> Prediction:
    r"""Load the network `key` of an EDM or EDM2 snapshot, in float32, on the CPU, in evaluation mode.

    The noise schedule, the kind and $\sigma_{\mathrm{data}}$ follow from the preconditioner (table above). Labels are
    integers; no condition, or the label K, is the "no class" of guidance.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as `read_snapshot`; if there is no network under `key`, or one of another class; if its arguments or
            its tensors are not those of the architecture.
    """
    snapshot = read_snapshot(path)
    network = snapshot.get(key)
    if not isinstance(network, Inert):
        present = ", ".join(map(repr, snapshot)) or "nothing"
        raise ValueError(f"{path} has no network under {key!r} (it has {present})")
    try:
        net, schedule, kind, data_std = _convert(network)
    except Exception as error:  # Settings that nobody has seen can make a network's constructor raise almost any.
        raise ValueError(f"the {network.kind} in {path} does not fit: {one_line(error)}") from None
    return Prediction(net, schedule, kind, data_std=data_std, shape=net.shape, classes=net.classes).eval()


def _convert(network: Inert) -> tuple[PreconditionedUNet, Schedule, Kind, float]:
    r"""Our network with its weights, its schedule, its kind and $\sigma_{\mathrm{data}}$."""
    if network.kind not in ("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond", "Precond"):
        raise ValueError("expected EDMPrecond, VPPrecond, VEPrecond, iDDPMPrecond or Precond (of EDM2)")
    inner = network.state.get("_modules", {}).get("unet" if network.kind == "Precond" else "model")
    if not isinstance(inner, Inert):
        raise ValueError("it holds no network of its own")
    given = _arguments(network)
    size, channels, classes = given.pop("img_resolution"), given.pop("img_channels"), given.pop("label_dim", 0)
    # What only training reads, and what the inner network says of itself.
    for name in ("use_fp16", "label_dropout", "logvar_channels", "epsilon_t", "model_type"):
        given.pop(name, None)
    conditioning: dict[str, Any]
    schedule: Schedule
    kind: Kind = "eps"
    data_std, outputs = 1.0, channels
    if network.kind in ("EDMPrecond", "Precond"):
        kind, data_std = "edm", float(given.pop("sigma_data", 0.5))
        lowest, highest = given.pop("sigma_min", None) or 0.002, given.pop("sigma_max", None) or math.inf
        conditioning = dict(precond="edm", sigma_min=lowest, sigma_max=80.0 if math.isinf(highest) else highest)
        schedule = VE(conditioning["sigma_max"])
    elif network.kind == "VPPrecond":
        beta_min, beta_d = given.pop("beta_min", 0.1), given.pop("beta_d", 19.9)
        conditioning = dict(precond="vp", steps=given.pop("M", 1000))
        schedule = VPLinear(beta_min, beta_min + beta_d)
    elif network.kind == "VEPrecond":
        conditioning = dict(
            precond="ve", sigma_min=given.pop("sigma_min", 0.02), sigma_max=given.pop("sigma_max", 100.0)
        )
        schedule = VE(conditioning["sigma_max"])
    else:
        outputs = 2 * channels
        conditioning = dict(precond="iddpm", steps=given.pop("M", 1000))
        check(conditioning["steps"], Steps, "M")
        conditioning.update(c_1=given.pop("C_1", 0.001), c_2=given.pop("C_2", 0.008))
        u = iddpm_sigmas(conditioning["steps"], conditioning["c_1"], conditioning["c_2"])
        stored = network.tensors().get("u")
        if stored is None or stored.shape != u.shape or not torch.allclose(stored.double(), u, rtol=1e-3):
            raise ValueError("its noise levels are not those that its M, C_1 and C_2 give")
        schedule = iddpm_schedule(u)
    if network.kind == "Precond":
        arguments = {"type": "MagnitudeUNet", "img_channels": channels}
    else:
        arguments = {"type": inner.kind, "in_channels": channels, "out_channels": outputs}
    described = {"net": {**arguments, "img_resolution": size, "label_dim": classes, **given}, **conditioning}
    tensors = inner.tensors()

    def look(net: PreconditionedUNet) -> None:
        check_weights(net.model.state_dict(), tensors, "the file")

    net = rehearsed(lambda: build(PreconditionedUNet, described), len(tensors), "the file", look)
    fill(net.model, {name: value.float() for name, value in tensors.items()}, "the file")
    return net, schedule, kind, data_std


def _arguments(network: Inert) -> dict[str, Any]:
    """What the file's network was made with, by name; the first few may have been given by position."""
    positional, named = network.state.get("_init_args"), network.state.get("_init_kwargs")
    names = ("img_resolution", "img_channels", "label_dim", "use_fp16")
    if not isinstance(named, dict) or not isinstance(positional, tuple) or len(positional) > len(names):
        raise ValueError("it does not say what it was made with")
    # Through JSON, so that the configuration holds what a configuration file can.
    return json.loads(json.dumps(_spelled({**dict(zip(names, positional, strict=False)), **named}, itertools.count())))


def _spelled(value: Any, counted: Iterator[int]) -> Any:
    """Containers as they are written out, each of them as often as it is named, which may be without end."""
    if next(counted) > _MOST:
        raise ValueError(f"it was made with more than {_MOST} settings")
    if isinstance(value, dict):
        return {key: _spelled(inside, counted) for key, inside in value.items()}
    return [_spelled(inside, counted) for inside in value] if isinstance(value, list | tuple) else value
