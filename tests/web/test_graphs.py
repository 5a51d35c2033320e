"""Graphs say what their networks say, in forms that every browser has, and keep the same weights once."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import planned
from dsno.denoise import Prediction
from dsno.schedule import Cosine
from dsno.web.graphs import WEIGHTS, student_network, teacher_network, write_graphs


def test_a_graph_has_fixed_shapes_and_explicit_pads_and_its_weights_in_a_file(tmp_path: Path) -> None:
    student = planned.operator(classes=3, guidance=True)
    errors = write_graphs(tmp_path, {"wall": student_network(student, 4, last=True)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["wall.onnx", WEIGHTS] and errors["wall"] < 1e-5
    graph = onnx.load(tmp_path / "wall.onnx", load_external_data=False).graph
    assert {a.s for node in graph.node for a in node.attribute if a.name == "auto_pad"} == {b"NOTSET"}
    shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)]
    assert shapes == [[4, 1, 4, 4], [1], [4], [4], [4, 1, 1, 4, 4]]
    assert {t.data_type for t in graph.initializer if t.data_location == t.EXTERNAL} == {onnx.TensorProto.FLOAT}
    assert (tmp_path / "wall.onnx").stat().st_size < 100_000


def test_graphs_keep_the_same_weights_once(tmp_path: Path) -> None:
    net = Plain()
    networks = {
        name: teacher_network(Prediction(net, Cosine(), "v", shape=(8, 4, 4)), n) for n, name in ((1, "a"), (3, "b"))
    }
    write_graphs(tmp_path, networks)
    assert (tmp_path / WEIGHTS).stat().st_size == net.conv.weight.numel() * 4


def test_a_flow_map_is_told_two_times_and_a_decoder_says_all_its_heads() -> None:
    z = torch.randn(2, 1, 4, 4)
    told = student_network(planned.flow_map(), 2)
    assert [*told.example] == ["x", "t", "later"] and told(z, torch.ones(1), torch.zeros(1)).shape == (2, 1, 1, 4, 4)
    decoder = planned.decoder()
    assert student_network(decoder, 2)(z, torch.ones(1)).shape == (2, 4, 1, 4, 4)
    assert student_network(decoder, 2, last=True)(z, torch.ones(1)).shape == (2, 1, 1, 4, 4)


class Plain(nn.Module):
    """A convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + t[:, None, None, None]


class Told(nn.Module):
    """A network that is told a text."""

    shape, classes, config = (1, 4, 4), None, {}
    tokens, blocks, embedding = {"text": (3, 5)}, (), ()

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        return x


def test_what_is_told_more_than_a_page_can_say_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a page tells its teacher a class and a guidance weight.* takes \['text'\]"):
        teacher_network(Prediction(Told(), Cosine(), "v", shape=(1, 4, 4)))


class Fickle(nn.Module):
    """A network that says something else each time, as its graph does not."""

    calls = 0

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.calls * x + t[:, None, None, None]


def test_a_graph_that_is_not_its_network_is_refused(tmp_path: Path) -> None:
    network = teacher_network(Prediction(Fickle(), Cosine(), "v", shape=(1, 4, 4)))
    with pytest.raises(ValueError, match=r"the graph teacher.onnx differs from its network by"):
        write_graphs(tmp_path, {"teacher": network})
