"""What damaged and crafted files do: run something, be accepted, hang, end in a traceback, or lose a checkpoint.

    python benchmarks/faults.py

Claim: nothing of a file is executed, nothing that has a checksum is accepted when it was changed, nothing hangs or
takes all memory, every error is one line that names the file, and a checkpoint that was refused is still there; one
case of any of these refutes it. Every case is a copy of a small folder, damaged by a seed and opened in a process of
its own, with 20 seconds and 3 GB more than the library takes. A file of another's format, which has no checksum, may be
accepted. Writes benchmarks/results/faults.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pickle  # noqa: TID251 - what is crafted here is what must not be run.
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _common import Claim, claim, parse, parser, write
from _faults import KINDS

from dsno.checkpoint import SEAL
from dsno.trajectories.manifest import fingerprint

SECONDS, MEMORY, PROCESSES = 20.0, 3 * 2**30, 2

BAD = ("executions", "accepted", "hangs", "tracebacks", "deaths", "lost checkpoints")

OWN = (ValueError, OSError, ImportError, FloatingPointError)
"""What the library raises where a file is at fault."""

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


def declaring(name: str, value: Any) -> Damage:
    """Put a value somewhere into a JSON file, which then says that it is unchanged."""

    def damage(folder: Path, rng: random.Random) -> None:
        path = rng.choice(sorted(path for path in folder.rglob(name) if path.is_file()))
        held = json.loads(path.read_text())
        *way, last = rng.choice([w for w in leaves(held) if w[0] not in ("notes", SEAL, "fingerprint", "teacher")])
        at = held
        for key in way:
            at = at[key]
        at[last] = value
        held.pop(SEAL, None)
        if "fingerprint" in held:
            held["fingerprint"] = fingerprint(held)
        path.write_text(json.dumps(held))

    return damage


def in_archive(change: Callable[[dict[str, bytes]], object], packed: bool = False) -> Damage:
    """Change the members of the exported program, by their names below its root."""

    def damage(folder: Path, rng: random.Random) -> None:
        path, described = folder / "student.pt2", folder / "student.json"
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
}


def cases(quick: bool) -> list[Case]:
    """All of them; `quick`, one of each."""
    made = []
    for kind in KINDS:
        if kind in ("snapshot", "official"):
            made += [Case(kind, name, holding("held", held), crafted=True) for name, held in PICKLES.items()]
            continue
        for name, (damage, times) in CORRUPTIONS.items():
            made += [Case(kind, f"{name} {n}", damage) for n in range(1 if quick else times)]
    for kind, file in (
        ("teacher", "config.json"), ("student", "config.json"), ("features", "config.json"),
        ("program", "student.json"), ("trajectories", "manifest.json"), ("checkpoint", "state.json"),
        ("results", "results.json"), ("zarr", "zarr.json"),
    ):  # fmt: skip
        for name, value in VALUES.items():
            made += [Case(kind, f"{name} {n}", declaring(file, value), crafted=True) for n in range(1 if quick else 2)]
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


# Running


def opening(case: Case, folder: Path, known: str) -> str:
    """What opening a damaged folder does: one of `BAD`, or `refused` or `harmless`.

    Arguments:
        case: What was done to it.
        folder: The damaged copy; a pickle that is run makes `marker` in the working folder.
        known: What the original says.
    """
    kind, steps = KINDS[case.kind], {path.name for path in folder.glob("step-*")}
    try:
        read = kind.opened(folder)
    except OWN as error:
        text = str(error)
        names = {part.name for part in (folder, *folder.rglob("*"))}
        found = "refused" if "\n" not in text and any(name in text for name in names) else f"tracebacks: {text:.300}"
    except Exception as error:
        found = f"tracebacks: {type(error).__name__}: {error!s:.300}"
    else:
        found = "harmless" if read == known or case.crafted or not kind.sealed else "accepted"
    if Path("marker").exists():
        return "executions"
    if found == "refused" and not steps <= {path.name for path in folder.glob("step-*")}:
        return "lost checkpoints"
    return found


def limited() -> None:
    """Give this process `MEMORY` more than it has."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def run(made: Sequence[Case], originals: Mapping[str, Path], known: Mapping[str, str], scratch: Path) -> list[str]:
    """The outcomes of all cases, each in a process of its own, a few at once."""
    context, found = multiprocessing.get_context("fork"), [""] * len(made)
    waiting, running = list(enumerate(made)), {}

    def work(n: int, case: Case, place: Path) -> None:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        # By its name, so that a case is the same whatever runs beside it.
        case.damage(place / case.kind, random.Random(f"{case.kind} {case.name}"))
        (place / "begun").touch()
        limited()
        os.chdir(place)
        text = opening(case, place / case.kind, known[case.kind])
        (scratch / f"{n}.txt").write_text(text)

    while waiting or running:
        while waiting and len(running) < PROCESSES:
            n, case = waiting.pop(0)
            place = scratch / str(n)
            shutil.copytree(originals[case.kind], place / case.kind)
            running[n] = (process := context.Process(target=work, args=(n, case, place)), time.monotonic())
            process.start()
        for n, (process, began) in list(running.items()):
            process.join(0.01)
            late = time.monotonic() - began > SECONDS
            if process.is_alive() and not late:
                continue
            process.kill()
            process.join()
            said, place = scratch / f"{n}.txt", scratch / str(n)
            found[n] = said.read_text() if said.exists() else "hangs" if late else f"deaths: {process.exitcode}"
            if not (place / "begun").exists():
                raise RuntimeError(f"the damage {made[n].name} of {made[n].kind} could not be done")
            if (place / "marker").exists():
                found[n] = "executions"
            del running[n]
            shutil.rmtree(place)
            if found[n] not in ("refused", "harmless"):
                print(f"{made[n].kind}, {made[n].name}: {found[n]}", flush=True)
    return found


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """The sums over the kinds."""
    counts = numbers["counts"].values()
    sums = [claim(f"{what}, of all cases", sum(count[what] for count in counts), 0, "<=") for what in BAD]
    return [claim("cases", sum(count["cases"] for count in counts), 400, ">="), *sums]


def options() -> argparse.ArgumentParser:
    return parser(__file__, __doc__)


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    # A process that is forked from one with many threads has none of them.
    torch.set_num_threads(1)
    made = cases(arguments.quick)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        originals, known = {}, {}
        for kind, described in KINDS.items():
            originals[kind] = scratch / "originals" / kind
            originals[kind].parent.mkdir(exist_ok=True)
            described.make(originals[kind])
            shutil.copytree(originals[kind], scratch / "known" / kind)
            known[kind] = "" if kind in ("snapshot", "official") else described.opened(scratch / "known" / kind)
        outcomes = run(made, originals, known, scratch)
    counts: dict[str, dict[str, int]] = {}
    for kind in KINDS:
        of_kind = Counter(o.partition(":")[0] for case, o in zip(made, outcomes, strict=True) if case.kind == kind)
        counts[kind] = {"cases": of_kind.total(), **{what: of_kind[what] for what in ("refused", "harmless", *BAD)}}
    failures = [
        {"kind": case.kind, "case": case.name, "outcome": o}
        for case, o in zip(made, outcomes, strict=True)
        if o not in ("refused", "harmless")
    ]
    write(
        arguments,
        "faults",
        f"{len(made)} cases by the seed of their names, each in a process of its own, {PROCESSES} at a time, with "
        f"{SECONDS:g} s and {MEMORY / 2**30:g} GB; harmless: opened as before the damage, or as another whole",
        judged({"counts": counts}),
        counts=counts,
        failures=failures,
    )


if __name__ == "__main__":
    main()
