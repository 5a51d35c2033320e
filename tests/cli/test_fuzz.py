"""The whole command line under wrong types, shapes, folders and numbers: a refusal is a line, and leaves nothing.

What a verb takes is read off its fields, so an option that is added is tried, too. `DSNO_FUZZ=2000 pytest
tests/cli/test_fuzz.py` tries so many commands instead of the few of the suite, other ones each time.
"""

import os
import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tyro.conf import Positional

from dsno.cli import VERBS
from dsno.cli.options import Training
from dsno.distillation.registry import METHODS
from shell import Ran, dsno

TRIES = int(os.environ.get("DSNO_FUZZ", "0"))
PATIENCE = 60
"""Seconds that a command may take: each one's work is tiny, so one that takes longer was given a number too large."""

QUICK = "--train.steps 2 --train.warmup 0 --batch 4"
BASE = {
    "demo": "demo --count 1 --out new/page.html",
    "doctor": "doctor",
    "teach": f"teach --channels 4 8 --out new {QUICK}",
    "check-teacher": "check-teacher runs/teacher --rows 4 --levels 2 --patience 0",
    "convert": "convert runs/teacher --out new",
    "plan": "plan runs/teacher --seconds 0.01 --count 8 --steps 6 --train-steps 2 --batch 2",
    "generate": "generate --out new --count 8 --steps 6 --grid quadratic",
    "push": "push pushed",
    "pull": "pull runs/trajectories --out new",
    "methods": "methods",
    "distill": f"distill --out new {QUICK}",
    "classifier": "classifier --out new --steps 2 --channels 4 8",
    "sample": "sample --count 2 --out new/samples.png",
    "restore": "restore one --teacher runs/teacher --half right --steps 2 --out new",
    "export": "export --student runs/student --out new/student.pt2",
    "web": "web --out new --runtime nowhere",
    "app": "app --port -1",
    "evaluate": "evaluate --data one --count 4 --out new",
    "reproduce": "reproduce digits --out new --teacher nowhere",
    "cite": "cite runs",
}
"""A quick command of each verb, whose options others take the place of."""

BOX = "For full helptext, "
"""How the parser ends what it says."""

NUMBERS = [
    "-1",
    "0",
    "1",
    "2",
    "3",
    "7",
    "0.5",
    "-0.5",
    "1e308",
    "nan",
    "inf",
    "-inf",
    str(2**63),
    str(-(2**70)),
    "1e-320",
]
WORDS = [
    "",
    " ",
    "x",
    "None",
    "True",
    "--",
    "-",
    "ä/ö",
    "a\tb",
    "\x00",
    "::",
    "module:attribute",
    "dsno:Cosine",
    "math:pi",
]
PLACES = [
    "runs", "runs/teacher", "runs/trajectories", "runs/student", "runs/features", "classes/teacher", "notes.txt",
    "classes/trajectories", "empty", "one", "one.npy", "wide.npy", "words.npy", "zero.npy", "deep.npy", "bent",
    "cut.npz", "labels.txt", "nowhere", "notes.txt/x", ".", "/dev/null", "/proc/nowhere", "hf://x", "file://",
    "s3://a b", "digits", "z.xyz", "new", "new/a.onnx", "empty.json", "https://127.0.0.1:9/x",
]  # fmt: skip


@pytest.fixture(scope="module")
def field(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, and with what is none."""
    here = tmp_path_factory.mktemp("fuzz") / "field"
    shutil.copytree(untrained, here)
    assert dsno("distill", "--out", "runs/student", *shlex.split(QUICK), at=here).code == 0
    (here / "notes.txt").write_text("precious\n")
    (here / "labels.txt").write_text("0 1 x 2\n")
    (here / "empty.json").write_text("{}")
    for name in ("empty", "one"):
        (here / name).mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(here / "one" / "a.png")
    draw = np.random.default_rng(0)
    arrays = {
        "one": draw.random((1, 8, 8)), "wide": draw.random((6, 3, 12, 12)), "words": np.array(["a", "b"]),
        "zero": np.zeros((0, 8, 8)), "deep": draw.random((2, 1, 1, 1, 1, 1)),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(here / f"{name}.npy", array)
    (here / "cut.npz").write_bytes(b"PK\x03\x04" + bytes(40))
    shutil.copytree(here / "runs" / "trajectories", here / "bent")
    shard = next((here / "bent").glob("*.safetensors"))
    held = bytearray(shard.read_bytes())
    held[-3] ^= 1
    shard.write_bytes(held)
    return here


def options_of(verb: str) -> dict[str, Any]:
    """The options of a verb by flag, with their types; those of each method of `distill` beside its own."""
    kind = VERBS[verb]
    hints = get_type_hints(kind, include_extras=True)
    named = [f.name for f in fields(kind) if f.name not in ("train", "options")]
    found = {name: hints[name] for name in named if Positional not in getattr(hints[name], "__metadata__", ())}
    if any(f.name == "train" for f in fields(kind)):
        found |= {f"train.{f.name}": get_type_hints(Training).get(f.name, str) for f in fields(Training)}
    if verb == "distill":
        found |= {o.name: str for method in METHODS.values() for o in method.described()}
    # A compiler takes a minute, whatever it is given, and a recipe that finds a teacher runs to its end.
    # A page that is served at a port, or at any free one, is there until it is stopped.
    endless = ("compile", "train.compile", *(["teacher", "data", "out"] if verb == "reproduce" else []))
    endless += ("port",) if verb == "app" else ()
    return {name: kind for name, kind in found.items() if name not in endless}


def values_of(kind: Any) -> st.SearchStrategy[list[str]]:
    """What an option might be given: what looks like its type, and what does not."""
    said = str(kind)
    if kind is bool or said == "bool":
        return st.just([])
    any_ = st.sampled_from([*NUMBERS, *WORDS, *PLACES])
    one = st.sampled_from(NUMBERS) if "int" in said or "float" in said else st.sampled_from(PLACES)
    choices = re.findall(r"'([\w.-]+)'", said)
    likely = st.sampled_from(choices) if choices else one
    value = st.one_of(likely, likely, any_)
    return st.lists(value, min_size=0, max_size=4) if "tuple" in said else value.map(lambda v: [v])


@st.composite
def commands(draw: st.DrawFn) -> list[str]:
    """A verb and its quick options, of which some are others."""
    verb = draw(st.sampled_from(sorted(BASE)))
    command, known = shlex.split(BASE[verb]), options_of(verb)
    if draw(st.integers(0, 9)) == 0:
        command[1:2] = [draw(st.sampled_from([*PLACES, *WORDS]))]
    if verb == "distill":
        command += ["--method", draw(st.sampled_from(sorted(METHODS)))]
    # One option at least is tried, since the base as it is needs no trying.
    for name in draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=3, unique=True)) if known else ():
        flag = f"--{name.replace('_', '-')}"
        if flag in command:
            at = command.index(flag)
            end = next((n for n in range(at + 1, len(command)) if command[n].startswith("--")), len(command))
            del command[at:end]
        command += [flag, *draw(values_of(known[name]))]
    return command


class TooLong(Exception):
    """A command that does not end: no error that the command line catches."""


@contextmanager
def patience(seconds: int) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tried(command: list[str], at: Path) -> Ran:
    """What a command does in the folder `at`."""
    with patience(PATIENCE):
        return dsno(*command, at=at)


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def check_command(command: list[str], field: Path) -> None:
    """A command succeeds, or is refused in a line or the parser's box, and has written nothing then."""
    here = field.with_name("here")
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(field, here)
    before = contents(here)
    ran = tried(command, here)
    assert "Traceback" not in ran.said
    if ran.code in (0, 1):
        return
    assert ran.code == 2, ran
    last = ran.err.strip().splitlines()[-1]
    assert last.startswith("dsno: ") or BOX in ran.err, ran.err
    # What the run had begun before it failed goes with it.
    left = {name: held for name, held in contents(here).items() if before.get(name, b"none") != held}
    assert left == {}, (last, [*left])
    assert [name for name in before if name not in contents(here)] == [], last


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="a watch of posix")
@settings(
    max_examples=TRIES or 40,
    derandomize=not TRIES,
    deadline=None,
    database=None,
    suppress_health_check=[*HealthCheck],
    print_blob=False,
)
@given(commands())
def test_a_wrong_command_is_one_line_and_leaves_nothing(field: Path, command: list[str]) -> None:
    check_command(command, field)
