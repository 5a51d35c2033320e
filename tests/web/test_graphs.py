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


def test_graphs_of_fixed_shapes_and_explicit_pads_share_one_file_of_weights(tmp_path: Path) -> None:
    student = planned.operator(classes=3, guidance=True)
    networks = {"one": student_network(student, 1), "wall": student_network(student, 4, last=True)}
    errors = write_graphs(tmp_path, networks)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.onnx", "wall.onnx", WEIGHTS]
    assert max(errors.values()) < 1e-5
    shapes = {}
    for name in networks:
        graph = onnx.load(tmp_path / f"{name}.onnx", load_external_data=False).graph
        pads = [a.s for node in graph.node for a in node.attribute if a.name == "auto_pad"]
        assert {*pads} == {b"NOTSET"}
        shapes[name] = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)]
        kinds = {t.data_type for t in graph.initializer if t.data_location == t.EXTERNAL}
        assert kinds == {onnx.TensorProto.FLOAT}
    assert shapes["one"] == [[1, 1, 4, 4], [1], [1], [1], [1, 4, 1, 4, 4]]
    assert shapes["wall"] == [[4, 1, 4, 4], [1], [4], [4], [4, 1, 1, 4, 4]]
    weights = sum(p.numel() * 4 for p in student.parameters())
    graphs = sum((tmp_path / f"{name}.onnx").stat().st_size for name in networks)
    assert (tmp_path / WEIGHTS).stat().st_size < weights + 64 * 60 and graphs < 400_000


def test_a_flow_map_is_told_two_times_and_a_decoder_says_all_its_heads() -> None:
    z = torch.randn(2, 1, 4, 4)
    told = student_network(planned.flow_map(), 2)
    assert [*told.example] == ["x", "t", "later"] and told(z, torch.ones(1), torch.zeros(1)).shape == (2, 1, 1, 4, 4)
    decoder = planned.decoder()
    assert student_network(decoder, 2)(z, torch.ones(1)).shape == (2, 4, 1, 4, 4)
    assert student_network(decoder, 2, last=True)(z, torch.ones(1)).shape == (2, 1, 1, 4, 4)


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
