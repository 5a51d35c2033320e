"""What `faults.py` does to the folders of `_faults.py`: corruption of every kind, and what is made to do harm."""

from __future__ import annotations

import io
import json
import os
import pickle  # noqa: TID251 - what is crafted here is what must not be run.
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _faults import KINDS, UNREAD
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsno.checkpoint import SEAL, digest, seal
from dsno.trajectories.manifest import fingerprint

__all__ = ["Case", "cases"]

Damage = Callable[[Path, random.Random], object]


@dataclass(frozen=True)
class Case:
    """A damage of one kind of folder.

    Attributes:
        kind: A key of `KINDS`.
        name: What is done to it.
        damage: Does it, to a copy.
        crafted: Made to be opened, without a checksum or with one of its own: it may be accepted, as another whole.
    """

    kind: str
    name: str
    damage: Damage
    crafted: bool = False


# Corruption


def chosen(folder: Path, rng: random.Random) -> Path:
    """A file, each as likely as another."""
    return rng.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "log.jsonl"))


def flip(folder: Path, rng: random.Random) -> None:
    path = chosen(folder, rng)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def zero(folder: Path, rng: random.Random) -> None:
    path = chosen(folder, rng)
    data = path.read_bytes()
    size = rng.choice([64, 512, 4096])
    at = rng.randrange(0, len(data), size)
    path.write_bytes(data[:at] + bytes(len(data[at : at + size])) + data[at + size :])


def cut(folder: Path, rng: random.Random) -> None:
    path = chosen(folder, rng)
    os.truncate(path, rng.choice([0, 1, 7, 8, rng.randrange(path.stat().st_size)]))


def pipe(folder: Path, rng: random.Random) -> None:
    path = chosen(folder, rng)
    path.unlink()
    os.mkfifo(path)


def fold(folder: Path, rng: random.Random) -> None:
    path = chosen(folder, rng)
    path.unlink()
    path.mkdir()


def shrunk(folder: Path, rng: random.Random) -> None:
    """A byte that is missing in the middle."""
    path = chosen(folder, rng)
    data = path.read_bytes()
    at = rng.randrange(len(data))
    path.write_bytes(data[:at] + data[at + 1 :])


def pickled(folder: Path, rng: random.Random) -> None:
    chosen(folder, rng).write_bytes(pickle.dumps(Payload(), rng.choice([2, 4])))


def deep(folder: Path, rng: random.Random) -> None:
    chosen(folder, rng).write_bytes(b"[" * 50_000 + b"]" * 50_000)


def grown(folder: Path, rng: random.Random) -> None:
    with chosen(folder, rng).open("r+b") as file:
        file.truncate(2**33)


def header(folder: Path, rng: random.Random) -> None:
    """The length of a header, or of what is there first, as large as it can be."""
    path = chosen(folder, rng)
    path.write_bytes(
        rng.choice([b"\xff" * 8, b"\xff" * 7 + b"\x7f", (2**33).to_bytes(8, "little")]) + path.read_bytes()[8:]
    )


CORRUPTIONS: dict[str, tuple[Damage, int]] = {
    "flipped bit": (flip, 8),
    "zeroed page": (zero, 3),
    "truncated": (cut, 4),
    "a byte less": (shrunk, 1),
    "pipe": (pipe, 1),
    "folder": (fold, 1),
    "pickle": (pickled, 2),
    "nested": (deep, 1),
    "sparse and huge": (grown, 1),
    "declared header": (header, 2),
}
"""What is done to every kind, and how often."""


# Crafted


class Payload:
    """Makes a folder where it is unpickled: `marker`, in the working folder of the process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("marker",)


VALUES: dict[str, Any] = {
    "a word": "many", "null": None, "negative": -1, "zero": 0, "10^12": 10**12, "10^9": 10**9, "10^30": 10**30,
    "a list": [[]], "10^4 items": [1] * 10**4, "an object": {"a": 1}, "NaN": float("nan"), "true": True,
}  # fmt: skip


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to every value of a JSON object, containers included."""
    if path:
        yield path
    for key, inside in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from leaves(inside, (*path, key))


def declaring(name: str, value: Any, *way: str | int) -> Damage:
    """Put a value somewhere into a JSON file, or where it is said, which then says that it is unchanged."""

    def damage(folder: Path, rng: random.Random) -> None:
        path = rng.choice(sorted(path for path in folder.rglob(name) if path.is_file()))
        held = json.loads(path.read_text())
        free = [w for w in leaves(held) if w[0] not in ("notes", SEAL, "fingerprint", "teacher")]
        *above, last = way or rng.choice(free)
        at = held
        for key in above:
            at = at[key]
        at[last] = value
        rewritten(path, held)

    return damage


def rewritten(path: Path, held: dict[str, Any]) -> None:
    """Write a JSON file anew, with the checksums that it would have."""
    held.pop(SEAL, None)
    if "fingerprint" in held:
        held["fingerprint"] = fingerprint(held)
    path.write_text(json.dumps(held))


def in_archive(change: Callable[[dict[str, bytes]], object], packed: bool = False) -> Damage:
    """Change the members of the exported program, by their names below its root."""

    def damage(folder: Path, rng: random.Random) -> None:
        path, described = folder / "student.pt2", folder / "student.pt2.json"
        with zipfile.ZipFile(path) as archive:
            members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        change(members)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
            for name, data in members.items():
                archive.writestr(f"student/{name}", data)
        held = json.loads(described.read_text())
        del held[SEAL]
        described.write_text(json.dumps(held))

    return damage


def in_graph(old: str, new: str) -> Damage:
    """Replace a piece of the graph's JSON."""
    return in_archive(
        lambda m: m.update({"models/model.json": m["models/model.json"].replace(old.encode(), new.encode(), 1)})
    )


RUN = "__import__('os').mkdir('marker')"

PROGRAMS: dict[str, Damage] = {
    "pickled sample inputs": in_archive(lambda m: m.update({"data/sample_inputs/model.pt": pickle.dumps(Payload())})),
    "pickled weights of the earlier layout": in_archive(
        lambda m: m.update({"data/weights/model.pt": pickle.dumps(Payload())})
    ),
    "pickled weight": in_archive(
        lambda m: m.update({
            "data/weights/weight_0": pickle.dumps(Payload()),
            "data/weights/model_weights_config.json": m["data/weights/model_weights_config.json"].replace(
                b'"use_pickle": false', b'"use_pickle": true', 1
            ),
        })
    ),
    "pickled constant": in_archive(lambda m: m.update({"data/constants/opaque_obj_0": pickle.dumps(Payload())})),
    "compiled code": in_archive(lambda m: m.update({"data/aotinductor/model/a.so": b"\x7fELF"})),
    "size as code": in_graph('"expr_str": "', f'"expr_str": "{RUN} + '),
    "guard as code": in_graph('"guards_code": [', f'"guards_code": ["{RUN}", '),
    "name as code": in_graph('"name": "', f'"name": "{RUN};'),
    "function of torch": in_graph('"target": "torch.ops.aten.', '"target": "torch.os.system'),
    "operator that writes": in_graph('"target": "torch.ops.aten.', '"target": "torch.ops.aten.save.default", "a": "'),
    "packed members": in_archive(lambda m: m.update({"data/weights/weight_0": bytes(10**8)}), packed=True),
    "more numbers than bytes": in_archive(
        lambda m: m.update({
            "data/weights/model_weights_config.json": m["data/weights/model_weights_config.json"].replace(
                b'{"as_int": ', b'{"as_int": 9999999', 1
            )
        })
    ),
}  # fmt: skip


def npy(shape: str, descr: str = "'|u1'", data: bytes = bytes(99)) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


NPY = {
    "10^12 rows": npy("(1000000000000, 8, 8)"),
    "negative rows": npy("(-1, 8, 8)"),
    "objects": npy("(2, 2)", "'|O'", pickle.dumps([Payload()])),
    "nested header": npy("(" * 9000),
    "large text": npy("(2,)", "'<U1000000000'"),
}


def holding(name: str, content: bytes) -> Damage:
    return lambda folder, rng: (folder / name).write_bytes(content)


def zipped(name: str, content: bytes) -> Damage:
    def damage(folder: Path, rng: random.Random) -> None:
        with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)

    return damage


def bomb(folder: Path, rng: random.Random) -> None:
    """A member of 512 MB of zeros in half a megabyte."""
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        member.write(npy("(536870912,)", data=b""))
        for _ in range(2**5):
            member.write(bytes(2**24))


def picture(side: int) -> bytes:
    """A PNG that says it has so many pixels a side."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def stored(**changes: Any) -> Damage:
    """Other metadata of the zarr array."""

    def damage(folder: Path, rng: random.Random) -> None:
        path = folder / "a.zarr" / "zarr.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def chunks(*shape: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": shape}}


def _bytes(data: bytes) -> bytes:
    """The opcode of bytes, as long as they are."""
    return b"B" + len(data).to_bytes(4, "little") + data


def _zip(members: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return made.getvalue()


def _saved(tensor: Tensor) -> bytes:
    """The pickle in what torch saves of a tensor."""
    torch.save({"ema": {"a": tensor}}, made := io.BytesIO())
    with zipfile.ZipFile(made) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


PICKLES: dict[str, bytes] = {
    "os.mkdir": pickle.dumps(Payload(), 2),
    "os.mkdir in a dict": pickle.dumps({"ema": Payload()}, 4),
    "eval": f"c__builtin__\neval\n(V{RUN}\ntR.".encode(),
    "a stand-in's attribute": b"c__builtin__\ngetattr\n(c__builtin__\nset\nV__class__\ntR.",
    "far note": b"\x80\x02}r\xff\xff\xff\x7f.",
    "text of 1 TB": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b".",
    "number of 10^6 digits": b"I" + b"9" * 10**6 + b"\n.",
    "nested lists": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "no end": b"\x80\x02}",
    "attribute of a module": b"ctorch.serialization\nos.system\n(Vmkdir marker\ntR.",
    "loader of storages": b"ctorch.storage\n_load_from_bytes\n(" + _bytes(pickle.dumps(Payload(), 2)) + b"tR.",
    "old instance": b"(Vmarker\nios\nmkdir\n.",
    "state of a class": b"ctorch.nn.modules.module\nModule\n)\x81}Vforward\ncos\nmkdir\nsb.",
    "10^5 references": b"\x80\x02]q\x00" + b"h\x00a" * 10**5 + b".",
    "lists that double": b"\x80\x02]q\x00"
    + b"".join(b"]q" + bytes([n]) + (b"h" + bytes([n - 1]) + b"a") * 2 for n in range(1, 60))
    + b".",
    "zip of a pickle": _zip({"a/data.pkl": pickle.dumps({"model": Payload(), "ema": Payload()}, 2), "a/version": b"3"}),
    "zip without its numbers": _zip({"a/data.pkl": _saved(torch.zeros(3)), "a/data/0": b"", "a/version": b"3"}),
}


DECLARED: list[tuple[str, str, Any, tuple[str | int, ...]]] = [
    ("trajectories", "manifest.json", 10**12, ("count",)),
    ("trajectories", "manifest.json", 0, ("shard",)),
    ("trajectories", "manifest.json", 10**9, ("batch",)),
    ("trajectories", "manifest.json", [0.5] * 10**6, ("times",)),
    ("trajectories", "manifest.json", [10**9, 10**9], ("shape",)),
    ("trajectories", "manifest.json", [1] * 10**5, ("shape",)),
    ("teacher", "config.json", [10**6, 10**6], ("net", "channels")),
    ("teacher", "config.json", [4] * 10**5, ("net", "channels")),
    ("teacher", "config.json", 10**8, ("net", "blocks")),
    ("teacher", "config.json", 10**9, ("net", "classes")),
    ("features", "config.json", 10**9, ("width",)),
    ("features", "config.json", 10**9, ("dim",)),
    ("diffusers", "scheduler_config.json", 10**9, ("num_train_timesteps",)),
    ("diffusers", "config.json", 10**8, ("layers_per_block",)),
    ("diffusers", "config.json", [10**6, 10**6], ("block_out_channels",)),
]
"""Sizes that nothing has, by the file and the key that declares them."""


# Tensors


def retold(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change the header of a safetensors file, of a folder that then has no checksum."""

    def damage(folder: Path, rng: random.Random) -> None:
        path = next(iter(sorted(folder.rglob(name))))
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
        if (folder / "config.json").is_file():
            rewritten(folder / "config.json", json.loads((folder / "config.json").read_text()))

    return damage


def first_of(header: dict[str, Any]) -> dict[str, Any]:
    return next(value for key, value in header.items() if key != "__metadata__")


HEADERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "10^12 numbers": lambda h: first_of(h).update(shape=[10**12]),
    "negative shape": lambda h: first_of(h).update(shape=[-1, 4]),
    "shape of words": lambda h: first_of(h).update(shape=["a"]),
    "unknown dtype": lambda h: first_of(h).update(dtype="F7"),
    "another dtype": lambda h: first_of(h).update(dtype="I64"),
    "offsets beyond the end": lambda h: first_of(h).update(data_offsets=[0, 10**15]),
    "offsets backwards": lambda h: first_of(h).update(data_offsets=[8, 0]),
    "tensors on top of each other": lambda h: [v.update(data_offsets=[0, 16]) for k, v in h.items() if k[0] != "_"],
    "no tensors": lambda h: h.clear(),
    "10^5 tensors": lambda h: h.update({f"a{n}": first_of(h) for n in range(10**5)}),
    "nested": lambda h: h.update(a=json.loads("[" * 400 + "]" * 400)),
    "metadata of numbers": lambda h: h.update(__metadata__={"a": 1}),
}


# Checkpoints


STEP = "step-00000004"


def parts(change: Callable[[dict[str, dict[str, Tensor]]], object], told: bool = False) -> Damage:
    """Change the parts of the checkpoint, whose state says so if they are `told`."""

    def damage(folder: Path, rng: random.Random) -> None:
        place = folder / STEP
        held = {name: load_file(place / f"{name}.safetensors") for name in ("model", "average", "optimizer")}
        change(held)
        for name, tensors in held.items():
            save_file(tensors, place / f"{name}.safetensors")
        if told:
            said = json.loads((place / "state.json").read_text())
            said["digests"] = {name: digest(tensors) for name, tensors in held.items()}
            (place / "state.json").write_text(json.dumps({**said, SEAL: seal(said)}))

    return damage


def without(name: str) -> Damage:
    return lambda folder, rng: (folder / STEP / name).unlink()


def swapped(held: dict[str, dict[str, Tensor]]) -> None:
    held["model"], held["average"] = held["average"], held["model"]


def beside(name: str, content: bytes | None = None) -> Damage:
    """Put somebody else's folder beside the checkpoint: a copy of it, or an empty one, or a file."""

    def damage(folder: Path, rng: random.Random) -> None:
        if content is None:
            shutil.copytree(folder / STEP, folder / name)
        elif content:
            (folder / name).write_bytes(content)
        else:
            (folder / name).mkdir()

    return damage


CHECKPOINTS: dict[str, Damage] = {
    **{f"no {name}": without(name) for name in ("model.safetensors", "average.safetensors", "optimizer.safetensors")},
    "no state": without("state.json"),
    **{
        f"{text} {name}{', told' if told else ''}": parts(change, told)
        for told in (False, True)
        for name in ("model", "average", "optimizer")
        for text, change in (
            ("empty", lambda held, name=name: held[name].clear()),
            ("misshapen", lambda held, name=name: held[name].update({sorted(held[name])[-1]: torch.zeros(7)})),
            ("foreign tensor in", lambda held, name=name: held[name].update({"other": torch.zeros(2)})),
            ("one tensor less in", lambda held, name=name: held[name].pop(sorted(held[name])[0])),
        )
    },
    "model and average swapped": parts(swapped),
    "state of nothing": holding(f"{STEP}/state.json", b""),
    "empty state": holding(f"{STEP}/state.json", b"{}"),
    "state that is a list": holding(f"{STEP}/state.json", b"[1]"),
    "damaged log": holding("log.jsonl", b'\xff\xfe\n[1]\nnull\n{"step": "x"}\n{"step": 2, "lo'),
    "no log": lambda folder, rng: (folder / "log.jsonl").unlink(),
    **{f"a copy {name}": beside(name) for name in ("step-best", f"{STEP}-keep", "step-00000003-keep", "step-4")},
    "an empty folder of the next step": beside("step-00000006", b""),
    "an empty folder of a later step": beside("step-00000009", b""),
    "notes": beside("step-notes.txt", b"precious"),
    "a file of a later step": beside("step-00000009", b"precious"),
}


# Cards, remote shards, notes beside pictures


def described(folder: Path, rng: random.Random) -> None:
    """HTML and tables in every word of a manifest that a card quotes."""
    path = folder / "manifest.json"
    held = json.loads(path.read_text())
    evil = "</td><script>run()</script>|`<img src=x onerror=run()>"
    held["teacher"]["description"] = {evil: evil, "a": {evil: [evil]}}
    held["teacher"]["class"] = held["teacher"]["kind"] = evil
    rewritten(path, held)


def far(change: Callable[[Path], object]) -> Damage:
    return lambda folder, rng: change(sorted((folder / "far").glob("shard-*"))[0])


def larger(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(3 * 2**30)


FAR: dict[str, Damage] = {
    "a shard of 3 GB": far(larger),
    "no shard": far(Path.unlink),
    "shards swapped": far(lambda path: path.write_bytes((path.parent / "shard-00001.safetensors").read_bytes())),
    "a manifest of 8 GB": lambda folder, rng: os.truncate(folder / "far" / "manifest.json", 2**33),
    "no manifest": lambda folder, rng: (folder / "far" / "manifest.json").unlink(),
}

NOTES: dict[str, tuple[str, bytes]] = {
    "nested": ("dataset.json", b'{"labels": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    "no list": ("dataset.json", b'{"labels": 3}'),
    "a list": ("dataset.json", b"[1]"),
    "labels that are no pairs": ("dataset.json", b'{"labels": [1, 2]}'),
    "labels of others": ("dataset.json", b'{"labels": [["../../etc/passwd", 1]]}'),
    "words, negative and null": ("dataset.json", b'{"labels": [["0.png", -1], ["1.png", null], ["2.png", "a"]]}'),
    "10^30": ("dataset.json", b'{"labels": [["0.png", 1' + b"0" * 30 + b"]]}"),
    "nested lines": ("metadata.jsonl", b"[" * 50_000 + b"]" * 50_000),
    "lines without names": ("metadata.jsonl", b'{"label": 1}\n'),
    "lines that are numbers": ("metadata.jsonl", b"1\n2\n"),
    "no CSV": ("metadata.csv", b'file_name,label\n"0.png\n' + b"a" * 200_000),
    "CSV of bytes": ("metadata.csv", b"\xff\xfe\x00\x00,\x00"),
    "CSV without names": ("metadata.csv", b"a,b\n1,2\n"),
}


def cases(quick: bool) -> list[Case]:
    """All of them; `quick`, one of each."""
    made = []
    for kind in KINDS:
        if kind in UNREAD:
            made += [Case(kind, name, holding("held", held), crafted=True) for name, held in PICKLES.items()]
            continue
        for name, (damage, times) in CORRUPTIONS.items():
            made += [Case(kind, f"{name} {n}", damage) for n in range(1 if quick else times)]
    for kind, file in (
        ("teacher", "config.json"), ("student", "config.json"), ("features", "config.json"),
        ("program", "student.pt2.json"), ("trajectories", "manifest.json"), ("checkpoint", "state.json"),
        ("results", "results.json"), ("zarr", "zarr.json"), ("diffusers", "config.json"),
        ("diffusers", "scheduler_config.json"), ("diffusers", "model_index.json"), ("pipeline", "config.json"),
        ("pipeline", "model_index.json"), ("remote", "manifest.json"),
    ):  # fmt: skip
        for name, value in VALUES.items():
            times = range(1 if quick or kind in ("program", "diffusers", "pipeline") else 2)
            made += [Case(kind, f"{file}: {name} {n}", declaring(file, value), crafted=True) for n in times]
    for kind, file, value, way in DECLARED:
        name = f"{way[-1]} {value if isinstance(value, int) else f'of {len(value)}, {value[0]}'}"
        made.append(Case(kind, name, declaring(file, value, *way), crafted=True))
    for kind, file in (("teacher", "model.safetensors"), ("trajectories", "shard-*"), ("checkpoint", "model.*")):
        made += [Case(kind, f"header: {name}", retold(file, change), crafted=True) for name, change in HEADERS.items()]
    made += [Case("checkpoint", name, damage, "told" in name) for name, damage in CHECKPOINTS.items()]
    made += [Case("card", "HTML in all that is said", described, crafted=True)]
    made += [Case("remote", name, damage) for name, damage in FAR.items()]
    made += [Case("pictures", name, holding(*note), crafted=True) for name, note in NOTES.items()]
    made += [Case("program", name, damage, crafted=True) for name, damage in PROGRAMS.items()]
    made += [Case("npy", name, holding("a.npy", content), crafted=True) for name, content in NPY.items()]
    made += [Case("npz", name, zipped("x.npy", content), crafted=True) for name, content in NPY.items()]
    made += [Case("npz", "a bomb", bomb, crafted=True)]
    for side in (2**13 + 2**11, 2**14, 2**31 - 1):
        made.append(Case("pictures", f"{side} pixels a side", holding("0.png", picture(side)), crafted=True))
    made += [
        Case("zarr", "a million missing chunks", stored(shape=[10**6, 1, 1], chunk_grid=chunks(1, 1, 1)), crafted=True),
        Case("zarr", "10^9 rows", stored(shape=[10**9, 8, 8], chunk_grid=chunks(10**9, 8, 8)), crafted=True),
        Case(
            "zarr", "codec of objects", stored(codecs=[{"name": "numcodecs.pickle", "configuration": {}}]), crafted=True
        ),
        Case(
            "idx",
            "10^9 rows",
            holding("a-ubyte.gz", zlib.compress(struct.pack(">HBB3I", 0, 8, 3, 10**9, 8, 8), wbits=31)),
            crafted=True,
        ),
    ]
    return made
