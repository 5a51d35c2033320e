r"""Networks as ONNX graphs for a browser: float32, all shapes fixed, explicit pads, weights in one file.

A graph is a network and nothing else, $F = \mathrm{net}(x, t)$ with t one time for all rows; what its outputs mean
stands in the plans (`dsno.web.plans`). Graphs of one site refer to one file of weights, in which the same bytes lie
once: a student's graph of another batch costs nothing, and an adapter's backbone is its teacher's. Each graph is run in
onnxruntime and compared with its network.

Needs: the packages onnx, onnxscript and onnxruntime (`pip install dsno[web]`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsno.app.export import hushed
from dsno.borrow import unwrapped
from dsno.condition import Cond, unnamed
from dsno.denoise import Prediction, evaluating
from dsno.nets.backbone import sample_shape, tokens_of
from dsno.outside import one_line
from dsno.students.flowmap import FlowMap, TwoTime
from dsno.students.heads import ParallelDecoder
from dsno.students.samplers import Student

__all__ = ["WEIGHTS", "Network", "student_network", "teacher_network", "write_graphs"]

WEIGHTS = "weights.bin"

TOLERANCE = 1e-4
"""The largest difference of a graph from its network, relative to the largest value."""

LEAST, ALIGNED = 1024, 64
"""Constants of fewer bytes stay in their graph; where the others begin in the file of weights."""


class Network(nn.Module):
    """What is exported: `(x, t, *told)` to (B, K, *shape), with t (1,) and what is told by the `names`.

    Attributes:
        example: Arguments by name, of as many rows as the graph has.
    """

    def __init__(
        self, net: nn.Module, ask: Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor], example: dict[str, Tensor]
    ) -> None:
        super().__init__()
        self.net, self._ask, self.example = net, ask, example

    def forward(self, x: Tensor, t: Tensor, *told: Tensor) -> Tensor:
        return self._ask(x, t.expand(len(x)), dict(zip([*self.example][2:], told, strict=True)))


def _example(shape: tuple[int, ...], batch: int, **told: Tensor | None) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, *shape, generator=g)
    return {"x": x, "t": torch.tensor([0.75]), **{name: value for name, value in told.items() if value is not None}}


def _label(classes: int | None, batch: int) -> Tensor | None:
    return None if classes is None else torch.arange(batch) % classes


def _cond(told: Mapping[str, Tensor]) -> Cond | None:
    """The condition that a network is told: labels alone have no name, as everywhere."""
    cond = {name: value for name, value in told.items() if name != "later"}
    return cond["label"] if [*cond] == ["label"] else unnamed(cond)


def _check_tokens(net: nn.Module, what: str) -> None:
    if tokens := tokens_of(net):
        raise ValueError(f"a page tells its {what} a class and a guidance weight, and this one takes {[*tokens]}")


def student_network(student: Student, batch: int, last: bool = False) -> Network:
    """The network of a student, all frames or heads of one call; only what the sample needs of them with `last`.

    Raises:
        ValueError: for a student that is told more than a class and a guidance weight, or a flow map whose network is
            no `TwoTime`.
    """
    net: Any = unwrapped(student.net)
    told = {"label": _label(student.classes, batch)}
    told["weight"] = torch.linspace(0, 2, batch) if student.guided else None
    if isinstance(student, FlowMap) and not isinstance(net, TwoTime):
        raise ValueError(f"a flow map of a {type(net).__name__} does not say what it takes")
    _check_tokens(net.backbone, "student")
    if isinstance(student, FlowMap):
        example = _example(student.shape, batch, later=torch.tensor([0.25]), **told)
        return Network(net, lambda x, t, told: net(x, t, told["later"].expand(len(x)), _cond(told))[:, None], example)
    example = _example(student.shape, batch, **told)
    if isinstance(student, ParallelDecoder):
        block, shares = (0, student.count), student.shares(0, student.count) if last else None
        return Network(net, lambda x, t, told: net(x, t, block, shares, _cond(told)), example)
    times, select = student.times, (-1,) if last else None
    return Network(net, lambda x, t, told: net(x, times, _cond(told), t, select), example)


def teacher_network(teacher: Prediction, batch: int = 1) -> Network:
    """The network of a teacher, told t in [0, 1].

    Raises:
        ValueError: for a teacher that is told more than a class.
    """
    net, time = teacher.net, teacher.time
    _check_tokens(net, "teacher")

    def ask(x: Tensor, t: Tensor, told: dict[str, Tensor]) -> Tensor:
        cond, own = _cond(told), t if time is None else time(t)
        return (net(x, own) if cond is None else net(x, own, cond))[:, None]

    return Network(net, ask, _example(sample_shape(teacher), batch, label=_label(teacher.classes, batch)))


@dataclass
class _Pool:
    """The file of weights: the same bytes once."""

    held: bytearray
    places: dict[bytes, int]

    def place(self, raw: bytes) -> int:
        key = hashlib.sha256(raw).digest()
        if key not in self.places:
            self.held += bytes(-len(self.held) % ALIGNED)
            self.places[key] = len(self.held)
            self.held += raw
        return self.places[key]


def write_graphs(folder: Path, networks: Mapping[str, Network]) -> dict[str, float]:
    """Write `NAME.onnx` of each network, and their weights; returns the error of each by name.

    Raises:
        ImportError: without onnx, onnxscript or onnxruntime.
        ValueError: for a network that ONNX cannot express, or a graph that differs from its network.
    """
    pool = _Pool(bytearray(), {})
    for name, network in networks.items():
        with evaluating(network), torch.no_grad(), hushed():
            _lighten(model := _graph(network), pool)
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    (folder / WEIGHTS).write_bytes(pool.held)
    return {name: _error(folder / f"{name}.onnx", network) for name, network in networks.items()}


def _graph(network: Network) -> Any:
    from onnxscript import optimizer

    names = [*network.example]
    program = torch.export.export(network, tuple(network.example.values()), strict=False)
    try:
        made = torch.onnx.export(
            program, input_names=names, output_names=["F"], dynamo=True, verbose=False, optimize=False
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ValueError(f"ONNX cannot express this network ({one_line(error)}), so no browser can run it") from error
    assert made is not None
    # All that its optimiser does takes ten times as long, and the runtime does the rest when it loads the graph.
    optimizer.fold_constants(made.model)
    optimizer.remove_unused_nodes(made.model)
    return made.model_proto


def _lighten(model: Any, pool: _Pool) -> None:
    """Move the weights of a graph into the pool, and drop what says where in Python its nodes came from."""
    graph = model.graph
    del graph.value_info[:], model.metadata_props[:], graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        del part.metadata_props[:]
    for weight in graph.initializer:
        if len(raw := weight.raw_data) < LEAST:
            continue
        at = {"location": WEIGHTS, "offset": str(pool.place(raw)), "length": str(len(raw))}
        weight.ClearField("raw_data")
        weight.data_location = weight.EXTERNAL
        for key, value in at.items():
            weight.external_data.add(key=key, value=value)


@torch.no_grad()
def _error(path: Path, network: Network) -> float:
    """The largest difference of a graph from its network, relative to the largest value."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as failure:  # Its own errors are none of Python's.
        raise ValueError(f"onnxruntime cannot run this network ({one_line(failure)}), so no browser can") from None
    with evaluating(network):
        expected = network(*network.example.values())
    taken = {given.name for given in session.get_inputs()}
    (found,) = session.run(None, {name: x.numpy() for name, x in network.example.items() if name in taken})
    error = float((torch.from_numpy(found) - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not error <= TOLERANCE:
        raise ValueError(f"the graph {path.name} differs from its network by {error:.2g} of the largest value")
    return error
