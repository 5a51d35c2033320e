r"""What a training run leaves on disk: snapshots to go on from, and its log.

A snapshot is a folder `step-00000500`, of what the run was after so many steps:

| | |
|---|---|
| `model`, `average`, `optimizer` (`.safetensors`) | the weights, their moving averages, Adam's moments as `INDEX.KEY` |
| `state.json` | step, configuration, what else decides the updates, the `digests` of the three, and its own `sha256` |

It appears by rename, complete, before the one before is removed. Names are matched exactly: whatever else lies there, a
copy called `step-best` among it, is somebody else's and is neither read nor removed.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from dsno.checkpoint import (
    SEAL,
    check_keys,
    check_seal,
    digest,
    read_json,
    read_tensors,
    seal,
    write_atomically,
    write_json,
    write_tensors,
)
from dsno.outside import Within, check

__all__ = [
    "LOG",
    "Snapshot",
    "changes_of",
    "config_of",
    "continued",
    "files_of",
    "latest",
    "newest",
    "rewind",
    "settings_of",
    "snapshots_in",
    "write_snapshot",
]

log = logging.getLogger(__name__)

LOG = "log.jsonl"
"""What the log of a run is called: a JSON object a line, with its `step`."""

STATE, PARTS = "state.json", ("model", "average", "optimizer")
NAME = re.compile(r"step-(\d{8})")


@dataclass
class _State:
    """The form of what `state.json` says."""

    step: Annotated[int, Within(0, 10**8)]
    config: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """A snapshot, read.

    Attributes:
        path: Its folder.
        state: What `state.json` says: `step`, `config`, `settings`, and where there are any `scaler`, the `losses`
            since the last line of the log, and the `changes` of the configuration at earlier resumes.
        parts: The tensors of `model`, `average` and `optimizer`, by name.
    """

    path: Path
    state: dict[str, Any]
    parts: dict[str, dict[str, Tensor]]

    @property
    def step(self) -> int:
        """How many steps were taken."""
        return int(self.state["step"])


def snapshots_in(folder: Path) -> list[Path]:
    """The snapshots in a folder, the newest first; complete or not, but with a part of one."""
    if not folder.is_dir():
        return []
    named = (p for p in folder.iterdir() if NAME.fullmatch(p.name) and p.is_dir())
    return sorted((p for p in named if files_of(p)), reverse=True)


def files_of(path: Path) -> list[Path]:
    """The files of a snapshot that are there."""
    return [file for file in (path / STATE, *(path / f"{name}.safetensors" for name in PARTS)) if file.is_file()]


def latest(folder: Path) -> Path | None:
    """The newest complete snapshot in a folder that `train` wrote to, or None."""
    return next((path for path in snapshots_in(folder) if len(files_of(path)) == 1 + len(PARTS)), None)


def newest(folder: Path) -> Snapshot | None:
    """The newest snapshot in a folder that can be gone on from, or None if there is none of any kind.

    One that is damaged is passed over for the one before, which the log says.

    Raises:
        ValueError: if none is whole; says what is wrong with the newest.
    """
    wrong: list[str] = []
    for path in snapshots_in(folder):
        try:
            found = _read(path)
        except (ValueError, FileNotFoundError) as error:
            wrong.append(str(error))
            continue
        for text in wrong:
            log.warning("%s; going on from %s instead", text, path)
        return found
    if wrong:
        raise ValueError(f"{wrong[0]}; there is no other to go on from: start again (overwrite), or put it back")
    return None


def _read(path: Path) -> Snapshot:
    """A snapshot that is whole and unchanged.

    Raises:
        FileNotFoundError, ValueError: if it is not; names the file.
    """
    state = read_json(path / STATE)
    check(state, _State, f"{path / STATE}: ")
    if state["step"] != int(path.name.removeprefix("step-")):
        raise ValueError(f"{path / STATE} is of step {state['step']}, its folder of another: it was renamed")
    parts = {name: read_tensors(path / f"{name}.safetensors") for name in PARTS}
    # Version 0.1 noted neither.
    check_seal(state, path / STATE)
    for name, noted in state.get("digests", {}).items():
        if name in parts and digest(parts[name]) != noted:
            raise ValueError(f"{path / name}.safetensors is damaged or of another snapshot: its digest differs")
    if state["step"] and not parts["optimizer"]:
        raise ValueError(f"{path / 'optimizer.safetensors'} is damaged: it holds no moments")
    return Snapshot(path, state, parts)


def continued(snapshot: Snapshot, described: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    """The step of a snapshot, after checking that it is of this run; and what was changed at resumes, this included.

    Raises:
        ValueError: if it is of another run, or behind the end of this one.
    """
    # Before it was a setting, there was one ramp.
    held, config, path = {"ramp": 10} | snapshot.state["config"], described["config"], snapshot.path
    check_keys(held, list(config), f"{path / 'state.json'}")
    # The length of the run and what is printed may change between pieces, and what a divergence asks to change; what
    # else decides the updates may not.
    decisive = ("warmup", "decay", "halve_at", "ema", "ramp", "accumulate", "precision", "seed")
    known = snapshot.state.get("settings", {}) | held
    for key, value in (described["settings"] | {key: config[key] for key in decisive}).items():
        if known.get(key) != value:
            raise ValueError(f"{path} was trained with {key} = {known.get(key)}, now {value}: resume alike")
    if snapshot.step > config["steps"]:
        raise ValueError(f"{path} is behind the {config['steps']} steps of this run: ask for {snapshot.step} or more")
    changed = {key: [held.get(key), config[key]] for key in ("lr", "clip") if held.get(key) != config[key]}
    changes = list(snapshot.state.get("changes", []))
    return snapshot.step, [*changes, {"step": snapshot.step, **changed}] if changed else changes


def settings_of(path: Path) -> dict[str, Any]:
    """The settings that a snapshot names; none of one whose state cannot be read."""
    return _part_of(path, "settings")


def config_of(path: Path) -> dict[str, Any]:
    """How the run of a snapshot was configured; nothing of one whose state cannot be read."""
    return _part_of(path, "config")


def _part_of(path: Path, name: str) -> dict[str, Any]:
    try:
        state = read_json(path / STATE)
    except (ValueError, FileNotFoundError):
        return {}
    part = state.get(name) if isinstance(state, dict) else None
    return part if isinstance(part, dict) else {}


def changes_of(folder: Path) -> list[dict[str, Any]]:
    """What was changed when the run in a folder was resumed: `step`, and from there on what is called how."""
    path = latest(folder)
    state = {} if path is None else read_json(path / STATE)
    return list(state.get("changes", []))


def write_snapshot(folder: Path, state: Mapping[str, Any], parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write a snapshot and remove those before it.

    Raises:
        FileExistsError: if a folder of its name holds other files.
        OSError: if it cannot be written; the one before stays.
    """
    final = folder / f"step-{state['step']:08d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        for name, tensors in parts.items():
            write_tensors(temporary / f"{name}.safetensors", tensors)
        digests = {name: digest(tensors) for name, tensors in parts.items()}
        said = {**state, "digests": digests}
        write_json(temporary / STATE, {**said, SEAL: seal(said)})
        if final.is_dir() and not _remove(final):
            raise FileExistsError(f"{final} holds other files: move them away, a checkpoint gets that name")
        temporary.rename(final)
    finally:
        # Of a full disk, what is left would take the room that the next try needs.
        shutil.rmtree(temporary, ignore_errors=True)
    for old in snapshots_in(folder):
        if old.name < final.name:
            _remove(old)


def _remove(path: Path) -> bool:
    """Remove a snapshot, the state first; whether nothing else was in its folder."""
    for file in files_of(path):
        file.unlink()
    if any(path.iterdir()):
        return False
    path.rmdir()
    return True


def rewind(path: Path, step: int) -> None:
    """Drop the lines of a log that are of later steps, which will be taken again, and those that cannot be read."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        if (found := _step_of(line)) is None:
            log.warning("%s has a line that cannot be read, which is dropped: %.60s", path, line.rstrip())
        elif found <= step:
            kept.append(line)
    write_atomically(path, lambda temporary: temporary.write_text("".join(kept), encoding="utf-8"))


def _step_of(line: str) -> int | None:
    """The step of a line of the log; None of one that was cut short or damaged."""
    try:
        step = json.loads(line)["step"] if line.endswith("}\n") else None
    except (ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None
