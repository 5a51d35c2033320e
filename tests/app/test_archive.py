"""Nothing in a file runs, wherever it is hidden; what an exported sampler holds is read."""

import json
import os
import pickle  # noqa: TID251 - what is crafted here is what must not be run.
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dsno.app.archive import read_archive

GRAPH, WEIGHTS, CONSTANTS = (
    "models/model.json",
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)

Members = dict[str, bytes]


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("shift", torch.arange(3.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).reshape(-1) + self.shift.repeat(x.shape[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Net, Path]:
    net, path = Net(), tmp_path_factory.mktemp("program") / "net.pt2"
    program = torch.export.export(net, (torch.ones(2, 3),), dynamic_shapes=({0: torch.export.Dim("B")},))
    torch.export.save(program, path)
    return net, path


def changed(source: Path, target: Path, change: Callable[[Members], object], packed: bool = False) -> Path:
    """A copy with other members; names are below the root."""
    with zipfile.ZipFile(source) as archive:
        root = archive.namelist()[0].split("/")[0]
        members = {name.removeprefix(f"{root}/"): archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(f"{root}/{name}", data)
    return target


def edited(name: str, change: Callable[[Any], object]) -> Callable[[Members], None]:
    def edit(members: Members) -> None:
        value = json.loads(members[name])
        change(value)
        members[name] = json.dumps(value).encode()

    return edit


def test_a_program_comes_back(whole: tuple[Net, Path]) -> None:
    net, path = whole
    for rows in (1, 5):
        torch.testing.assert_close(read_archive(path)(x := torch.randn(rows, 3)), net(x))


def test_sample_inputs_are_never_unpickled(whole: tuple[Net, Path], tmp_path: Path) -> None:
    net, path = whole
    for name, made in (("theirs", "torch"), ("ours", "dsno")):
        marker = tmp_path / made
        crafted = changed(
            path, tmp_path / f"{name}.pt2", lambda m, at=marker: m.update({"data/sample_inputs/model.pt": pickled(at)})
        )
        if made == "torch":
            # The control: torch's own reader runs what lies there.
            with pytest.raises(Exception):  # noqa: B017
                torch.export.load(crafted)
            assert marker.exists()
        else:
            torch.testing.assert_close(read_archive(crafted)(x := torch.randn(2, 3)), net(x))
            assert not marker.exists()


def pickled(marker: Path) -> bytes:
    return pickle.dumps(Payload(marker))


def nodes(graph: Any) -> list[dict[str, Any]]:
    return graph["graph_module"]["graph"]["nodes"]


def symbol(graph: Any) -> dict[str, Any]:
    """The first size of the graph that is an expression."""
    for value in graph["graph_module"]["graph"]["tensor_values"].values():
        for size in value["sizes"]:
            if "as_expr" in size:
                return size["as_expr"]
    raise AssertionError("no size is dynamic")


def first(config: Any) -> dict[str, Any]:
    return next(iter(config["config"].values()))


def in_graph(change: Callable[[Any, str], object]) -> Callable[[Path], Callable[[Members], None]]:
    return lambda marker: edited(GRAPH, lambda graph: change(graph, f"__import__('os').mkdir({str(marker)!r})"))


CRAFTED: dict[str, tuple[Callable[[Path], Callable[[Members], object]], str]] = {
    "a pickled weight": (
        lambda marker: (
            lambda m: (
                edited(WEIGHTS, lambda c: first(c).update(use_pickle=True, tensor_meta=None))(m),
                m.update({"data/weights/weight_0": pickled(marker)}),
            )
        ),
        "is pickled",
    ),
    "weights of the earlier layout": (
        lambda marker: lambda m: m.update({"data/weights/model.pt": pickled(marker)}),
        "holds 'data/weights/model.pt', which no exported sampler needs",
    ),
    "a pickled constant": (
        lambda marker: (
            lambda m: (
                edited(CONSTANTS, lambda c: first(c).update(path_name="opaque_obj_0", use_pickle=True))(m),
                m.update({"data/constants/opaque_obj_0": pickled(marker)}),
            )
        ),
        "holds 'data/constants/opaque_obj_0'",
    ),
    "compiled code": (
        lambda marker: lambda m: m.update({"data/aotinductor/model/a.so": b"\x7fELF"}),
        "which may run code",
    ),
    "a size that is evaluated": (in_graph(lambda g, run: symbol(g).update(expr_str=run)), "no arithmetic of sizes"),
    "a size without end": (
        in_graph(lambda g, run: symbol(g).update(expr_str="Pow(Integer(9), Integer(999999999))")),
        "no arithmetic of sizes",
    ),
    "a guard": (in_graph(lambda g, run: g.update(guards_code=[run])), "no arithmetic of sizes"),
    "a function of torch": (in_graph(lambda g, run: nodes(g)[0].update(target="torch.os.system")), "calls 'torch.os"),
    "an operator that writes": (
        in_graph(lambda g, run: nodes(g)[0].update(target="torch.ops.aten.save.default")),
        "calls 'torch.ops.aten.save.default'",
    ),
    "an operator of Python": (
        in_graph(lambda g, run: nodes(g)[0].update(target="_operator.attrgetter")),
        "calls '_operator.attrgetter'",
    ),
    "a name that is code": (in_graph(lambda g, run: nodes(g)[0].update(name=f"x = {run}")), "for a name"),
    "a key that is code": (
        in_graph(lambda g, run: g["graph_module"]["graph"]["tensor_values"].update({run: {}})),
        "which is no name",
    ),
    "an argument that is code": (
        in_graph(lambda g, run: nodes(g)[0]["inputs"][0].update(arg={"as_string": f"' + {run} + '"})),
        "for a name",
    ),
    "an object": (
        in_graph(lambda g, run: g["graph_module"]["graph"].update(custom_obj_values={"a": {"class_fqn": "b"}})),
        "has objects",
    ),
    "arguments of a class": (
        in_graph(
            lambda g, run: g["graph_module"]["module_call_graph"][0]["signature"].update(
                in_spec=json.dumps([1, {"type": "os.system", "context": "null", "children_spec": []}])
            )
        ),
        "neither tuples, lists nor dicts",
    ),
    "more numbers than bytes": (
        lambda marker: edited(WEIGHTS, lambda c: first(c)["tensor_meta"].update(sizes=[{"as_int": 10**12}])),
        "declares more numbers than",
    ),
    "a negative size": (
        lambda marker: edited(WEIGHTS, lambda c: first(c)["tensor_meta"].update(sizes=[{"as_int": -1}])),
        "must be a whole number from 0",
    ),
    "no weights": (lambda marker: lambda m: m.pop(WEIGHTS), "has no data/weights/model_weights_config.json"),
    "a deep graph": (lambda marker: lambda m: m.update({GRAPH: b"[" * 50_000}), "nested deeper"),
    "no graph": (lambda marker: lambda m: m.update({GRAPH: b"[]"}), "is no graph"),
}


@pytest.mark.parametrize(("craft", "message"), CRAFTED.values(), ids=CRAFTED)
def test_what_would_run_is_refused_and_nothing_is_run(
    craft: Callable[[Path], Callable[[Members], object]], message: str, whole: tuple[Net, Path], tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    crafted = changed(whole[1], tmp_path / "net.pt2", craft(marker))
    with pytest.raises(ValueError, match=rf"refused .*net\.pt2, and ran nothing of it: .*{message}"):
        read_archive(crafted)
    assert not marker.exists()


def test_packed_and_damaged_archives_are_named(whole: tuple[Net, Path], tmp_path: Path) -> None:
    bomb = changed(
        whole[1], tmp_path / "bomb.pt2", lambda m: m.update({"data/weights/weight_0": bytes(10**7)}), packed=True
    )
    with pytest.raises(ValueError, match=r"bomb\.pt2.*members are packed"):
        read_archive(bomb)
    data = whole[1].read_bytes()
    for name, content in (("cut", data[: len(data) // 2]), ("text", b"text"), ("none", b"")):
        (tmp_path / f"{name}.pt2").write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.pt2 is damaged or no torch.export archive"):
            read_archive(tmp_path / f"{name}.pt2")
    with pytest.raises(ValueError, match="is a folder"):
        read_archive(tmp_path)
    broken = changed(whole[1], tmp_path / "graph.pt2", edited(GRAPH, lambda g: nodes(g).pop()))
    with pytest.raises(ValueError, match=r"graph\.pt2 holds no program that this torch can build"):
        read_archive(broken)
