"""What a verb refuses: a command, what was spoilt in its folder before, and the line that it says."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from dsno.checkpoint import SEAL, WEIGHTS, read_json, read_tensors, seal, write_json, write_tensors
from shell import dsno

Spoil = Callable[[Path], None] | None
Refusal = tuple[str, Spoil, str]


def refusals(*rows: Refusal) -> pytest.MarkDecorator:
    """A test for each row: `command` in a folder that `spoil` was let into, and the `message`."""
    names = [f"{command}{f' {spoil.__name__}' if spoil else ''}" for command, spoil, _ in rows]
    return pytest.mark.parametrize("command, spoil, message", rows, ids=names)


def refuses(command: str, spoil: Spoil, message: str, at: Path) -> None:
    """A failure is one line with `message`, exit code 2, and every file is as it was."""
    if spoil is not None:
        spoil(at)
    before = {p: p.read_bytes() for p in at.rglob("*") if p.is_file()}
    ran = dsno(*shlex.split(command), at=at)
    kept = {p: p.read_bytes() for p in before if p.is_file()}
    assert ran.code == 2 and ran.out == "", ran.said
    last = ran.err.splitlines()[-1]
    assert last.startswith("dsno: ") and message in last, last
    # A run that is continued says first how its loss is shared, and one that diverges that no grid helps.
    known = ("loss shares", "grid ", "nor any grid's ends are finite")
    assert [line for line in ran.err.splitlines()[:-1] if not any(k in line for k in known)] == []
    assert kept == before


# What spoils the folder of several verbs


def edit(path: Path, **changes: object) -> None:
    """Another file, sealed if it was."""
    value = {**read_json(path), **changes}
    if SEAL in value:
        value[SEAL] = seal(value, path.with_name(WEIGHTS))
    write_json(path, value)


def another_teacher(here: Path) -> None:
    weights = here / "runs" / "teacher" / "model.safetensors"
    write_tensors(weights, {k: v + 1 for k, v in read_tensors(weights).items()})
    edit(weights.with_name("config.json"))


def another_schedule(here: Path) -> None:
    edit(here / "runs" / "teacher" / "config.json", schedule={"name": "RectifiedFlow"})
