"""`torch.export` archives, read so that nothing in them runs.

torch's own reader trusts a file: it unpickles sample inputs and such weights as ask for it, hands the sizes in the
graph to a parser that evaluates Python, executes the guards, writes names into source code, and calls whatever function
of torch a node names. So an archive is taken apart here first, and what torch is given is one of our own making, which
holds

- the raw bytes of weights and constants, with sizes that lie inside of them; nothing that is pickled or compiled, and
  no sample inputs;
- a graph whose nodes call operators of `torch.ops.aten` (less those that open files or speak), arithmetic and symbolic
  sizes; whose names are names; whose sizes, and the guards on those of its inputs, are arithmetic of whole numbers and
  symbols; without metadata.

Anything else is refused. The layout is that of torch 2.9 and later; earlier ones pickled the weights.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import nn

from dsno.outside import Within, check, must_be_file, one_line, parse_json

__all__ = ["read_archive"]

GRAPH_BYTES = 2**28

GRAPH, WEIGHTS, CONSTANTS = "models/model.json", "data/weights/", "data/constants/"

CONFIGS = {WEIGHTS: "model_weights_config.json", CONSTANTS: "model_constants_config.json"}

KEPT = re.compile(
    r"archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
)

DROPPED = "data/sample_inputs/model.pt"

STRING = re.compile(r"[\w ,.>\-]{0,200}")
"""An argument of an operator, such as the equation of an einsum; it goes into source code between quotes."""

NAME, SYMBOL, WORD = re.compile(r"[A-Za-z_][\w.]{0,999}"), re.compile(r"[su]\d{1,4}"), re.compile(r"[\w.+\-]{0,200}")

TARGET = re.compile(
    r"torch\.ops\.aten\.(?!(save|from_file|warn|_print|print)\.)\w+\.\w+"
    r"|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|neg|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|torch\.(sym_(int|float|max|min|not|ite|sum)|_sym_sqrt)|math\.(ceil|floor|trunc|sqrt)"
)

ARITHMETIC = re.compile(
    "Symbol|Integer|Mul|Add|Mod|PythonMod|Max|Min|(Floor|Ceil|Clean)Div|(Ceil|Floor|Trunc)ToInt|(Int|Float)TrueDiv|ToFloat"
    "|Identity|Eq|Ne|Le|Lt|Ge|Gt|Equality|Unequality|(Strict)?(Less|Greater)Than|And|Or|Not"
)
"""What an expression of sizes may call; no powers, whose value may be larger than any memory."""

PLAIN = (
    ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Constant, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare,
    ast.Load, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.USub, ast.Not, ast.And, ast.Or, ast.Eq,
    ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip

SIZE = re.compile(r"L(\['\w+'\]|\[\d+\])+\.size\(\)\[\d+\]")
"""What a guard says of an input."""


@dataclass
class _Whole:
    as_int: Annotated[int, Within(0, 2**48)]


@dataclass
class _Device:
    type: Literal["cpu", "cuda"]


@dataclass
class _Shaped:
    sizes: list[_Whole]
    strides: list[_Whole]
    storage_offset: _Whole
    device: _Device


@dataclass
class _Payload:
    path_name: str
    use_pickle: bool
    tensor_meta: _Shaped | None


@dataclass
class _Config:
    config: dict[str, _Payload]


def read_archive(path: Path) -> nn.Module:
    """The program in a `.pt2` file, as a module to call.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, is no such archive, or holds what would run or what no program needs; nothing of
            it was run.
    """
    must_be_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path)
            for folder, name in CONFIGS.items():
                _check_payload(_json(archive, members, folder + name), folder, members)
            graph = _json(archive, members, GRAPH)
            _check_graph(graph)
            again = _written(archive, members, graph)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, KeyError, OSError) as error:
        raise ValueError(f"{path} is damaged or no torch.export archive ({one_line(error)}): export it again") from None
    except ValueError as error:
        raise ValueError(f"refused {path}, and ran nothing of it: {error}") from None
    try:
        return torch.export.load(again).module()
    except Exception as error:  # torch raises almost any of them for a graph that is not one.
        raise ValueError(f"{path} holds no program that this torch can build ({one_line(error)})") from None


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The members that are kept, by their names below the root."""
    found = archive.infolist()
    names = {info.filename for info in found}
    root = found[0].filename.partition("/")[0] + "/" if found else ""
    if len(names) != len(found) or any(not name.startswith(root) for name in names):
        raise ValueError("its members have no root in common, or one name twice")
    if sum(info.file_size for info in found) > path.stat().st_size:
        raise ValueError("its members are packed, or lie on top of each other: torch.export stores them")
    members = {info.filename.removeprefix(root): info for info in found}
    for name in members:
        if name != DROPPED and not KEPT.fullmatch(name):
            raise ValueError(f"it holds {name!r:.80}, which no exported sampler needs and which may run code")
    if missing := [n for n in (GRAPH, *(f + n for f, n in CONFIGS.items())) if n not in members]:
        raise ValueError(f"it has no {missing[0]}: make it with export_program under torch 2.9 or later")
    return members


def _json(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], name: str) -> Any:
    return parse_json(archive.read(members[name]), name, GRAPH_BYTES)


def _written(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], graph: dict[str, Any]) -> io.BytesIO:
    """An archive of what was looked at, and of nothing else: two readers of one file need not agree what is in it."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as again:
        for name, info in members.items():
            if name == DROPPED:
                again.writestr(f"archive/{name}", b"")
            else:
                again.writestr(f"archive/{name}", json.dumps(graph) if name == GRAPH else archive.read(info))
    made.seek(0)
    return made


def _check_payload(config: Any, folder: str, members: Mapping[str, zipfile.ZipInfo]) -> None:
    """Refuse weights and constants that are pickled, or larger than the bytes that are there for them."""
    check(config, _Config, f"{folder}: ")
    for name, payload in config["config"].items():
        held = members.get(folder + payload["path_name"])
        meta = payload["tensor_meta"]
        if payload["use_pickle"] or meta is None:
            raise ValueError(f"{name!r:.80} in {folder} is pickled")
        if held is None or payload["path_name"] == CONFIGS[folder]:
            raise ValueError(f"{name!r:.80} lies in {payload['path_name']!r:.80}, which is not in {folder}")
        if math.prod(size["as_int"] for size in meta["sizes"]) > held.file_size:
            raise ValueError(f"{name!r:.80} declares more numbers than the {held.file_size} bytes of it")


# The graph


def _check_graph(graph: Any) -> None:
    """Refuse a graph that is more than sizes, names and operators; drops its metadata, which is for people."""
    if not isinstance(graph, dict):
        raise ValueError(f"{GRAPH} is no graph")
    guards = graph.get("guards_code") or []
    check(guards, list[str], "guards_code")
    for guard in guards:
        _check_expression(SIZE.sub("s0", guard))
    _check_value({name: value for name, value in graph.items() if name != "guards_code"}, "")


def _check_value(value: Any, key: str) -> None:
    """Check what lies under `key`, and all that is inside."""
    if key in ("custom_obj_values", "treespec_namedtuple_fields", "as_custom_obj", "script_obj") and value:
        raise ValueError(f"its graph has objects ({key})")
    if isinstance(value, dict):
        if "metadata" in value:
            value["metadata"] = {}
        for name, inside in value.items():
            if not NAME.fullmatch(name):
                raise ValueError(f"its graph has the key {name!r:.80}, which is no name")
            _check_value(inside, name)
    elif isinstance(value, list):
        for item in value:
            _check_value(item, key)
    elif isinstance(value, str):
        _check_text(value, key)


def _check_text(text: str, key: str) -> None:
    if key in ("target", "as_operator"):
        # A signature says `target` of a weight, by its name.
        if not TARGET.fullmatch(text) and (not NAME.fullmatch(text) or text.startswith(("torch", "_operator", "math"))):
            raise ValueError(f"its graph calls {text!r:.80}: only operators of torch.ops.aten are")
    elif key == "expr_str":
        _check_expression(text)
    elif key in ("in_spec", "out_spec"):
        _check_spec(parse_json(text.encode(), key))
    elif not (STRING if key == "as_string" else WORD).fullmatch(text):
        raise ValueError(f"its graph has {text!r:.80} for a name ({key})")


def _check_expression(text: str) -> None:
    """Refuse a size that is not arithmetic of symbols and whole numbers: sympy evaluates it as Python."""
    try:
        nodes = list(ast.walk(ast.parse(text[:2000], mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        nodes = []
    words = {node.id for node in nodes if isinstance(node, ast.Name)}
    constants = [node.value for node in nodes if isinstance(node, ast.Constant)]
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    if not (
        nodes
        and len(text) <= 2000
        and all(isinstance(node, PLAIN) for node in nodes)
        and all(isinstance(node, ast.Name) and ARITHMETIC.fullmatch(node.id) for node in called)
        and all(ARITHMETIC.fullmatch(word) or SYMBOL.fullmatch(word) for word in words)
        and all(SYMBOL.fullmatch(c) if isinstance(c, str) else isinstance(c, int) and c < 2**63 for c in constants)
    ):
        raise ValueError(f"its graph has the size {text!r:.80}, which is no arithmetic of sizes")


def _check_spec(spec: Any) -> None:
    """Refuse a tree of arguments of anything but tuples, lists and dicts."""
    if isinstance(spec, list) and len(spec) == 2 and spec[0] == 1:
        spec = spec[1]
    level, kinds = [spec], (None, "builtins.tuple", "builtins.list", "builtins.dict")
    while level:
        for node in level:
            if not isinstance(node, dict) or node.get("type") not in kinds:
                raise ValueError("its graph has arguments that are neither tuples, lists nor dicts")
            context = node.get("context")
            names = None if context is None else parse_json(str(context).encode(), "a tree of arguments")
            if names is not None and not (isinstance(names, list) and all(WORD.fullmatch(str(n)) for n in names)):
                raise ValueError("its graph has arguments that are described by more than their names")
            if not isinstance(node.get("children_spec"), list):
                raise ValueError("its graph has arguments that are no tree")
        level = [child for node in level for child in node["children_spec"]]
