"""What runs do when they are killed, when another one writes to their folder, and when the disk is full.

Each function returns a row for each case: `{"kind": ..., "case": ..., "outcome": ...}`. The outcome is `held` where
nothing was lost and whatever failed said so in one line; else it says what happened. The commands are real ones, in
processes of their own, on the digits and the teacher that ships.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

Row = dict[str, str]

HELD = "held"

TRAIN = ("--train.steps", "60", "--train.checkpoint-every", "5", "--train.log-every", "4", "--batch", "16")

GENERATE = ("generate", "--teacher", "digits", "--count", "2000", "--steps", "8", "--grid", "uniform", "--shard", "100")
DISTILL = ("distill", "--teacher", "digits", "--data", "digits", "--method", "consistency", *TRAIN)
TEACH = ("teach", "--data", "digits", "--channels", "8", "16", *TRAIN)
VERBS = {"generate": GENERATE, "distill": DISTILL, "teach": TEACH}


def kills(count: int, seed: int, folder: Path, verbs: Sequence[str] = ("generate", "distill")) -> list[Row]:
    """Each verb killed (-9) `count` times at moments drawn from the seed, each time while it goes on where it was."""
    rows, draw = [], random.Random(seed)
    for verb in verbs:
        whole, cut = folder / f"{verb}-whole", folder / f"{verb}-cut"
        began = time.monotonic()
        _finished(_started(verb, whole))
        longest = time.monotonic() - began
        for kill in range(count):
            process = _started(verb, cut, "--resume")
            # Importing takes the first third or more.
            delay = draw.uniform(longest / 3, longest)
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            code, said = _finished(process)
            outcome = HELD if code in (0, -signal.SIGKILL) and "Traceback" not in said else _told(code, said)
            rows.append(_row("kill", f"{verb}, kill {kill + 1} after {delay:.1f} s", outcome))
        code, said = _finished(_started(verb, cut, "--resume"))
        same = _contents(whole) == _contents(cut)
        outcome = HELD if code == 0 and same else _told(code, said) if code else "another result than uninterrupted"
        rows.append(_row("kill", f"{verb}, resumed to its end", outcome))
    return rows


def two_runs(folder: Path, verbs: Sequence[str] = ("generate", "distill", "teach")) -> list[Row]:
    """Each verb once more, in every way it can be called, into the folder of one that is stopped in the middle."""
    rows = []
    for verb in verbs:
        out = folder / f"two-{verb}"
        first = _started(verb, out)
        while not (out / ".lock").exists() and first.poll() is None:
            time.sleep(0.02)
        first.send_signal(signal.SIGSTOP)
        for how in ((), ("--resume",), ("--overwrite",)):
            code, said = _finished(_started(verb, out, *how))
            refused = code == 2 and ("another run is writing" in said or "already" in said) and "Traceback" not in said
            case = f"{verb} {' '.join(how)} beside one that runs".replace("  ", " ")
            rows.append(_row("two runs", case, HELD if refused else _told(code, said)))
        first.send_signal(signal.SIGCONT)
        code, said = _finished(first)
        rows.append(_row("two runs", f"{verb}, the first of both", HELD if code == 0 else _told(code, said)))
    return rows


def full_disk(disk: Path, spare: Sequence[int] = (0, 20_000, 150_000)) -> list[Row]:
    """Verbs that write to a small `disk` with so many bytes left: in one line, without leftovers, resumed with room.

    Arguments:
        disk: A folder of a file system of its own, of a few MB (`mount -t tmpfs -o size=4m tmpfs DISK`); it is emptied.
        spare: Bytes that are left.
    """
    commands = {
        "teach": TEACH,
        "distill": DISTILL,
        "generate": GENERATE,
        "convert": ("convert", "digits"),
        "export .pt2": ("export",),
        "export .onnx": ("export",),
    }
    rows = []
    for verb, command in commands.items():
        name = f"out{verb.removeprefix('export ')}" if verb.startswith("export") else "out"
        for left in spare:
            _empty(disk)
            with (disk / "filler").open("wb") as filler:
                filler.truncate(0)
                filler.write(bytes(max(shutil.disk_usage(disk).free - left, 0)))
            code, said = _finished(_run(*command, "--out", str(disk / name)))
            names = [path.name for path in disk.rglob("*") if path.is_file() and path.name != "filler"]
            temporary = [name for name in names if name.startswith(".")]
            if code == 0:
                outcome = HELD
            elif code != 2 or "Traceback" in said or str(disk) not in said:
                outcome = _told(code, said)
            else:
                outcome = f"left {', '.join(temporary)}" if temporary else HELD
            rows.append(_row("full disk", f"{verb} with {left} bytes left", outcome))
    _empty(disk)
    return rows


def _row(kind: str, case: str, outcome: str) -> Row:
    return {"kind": kind, "case": case, "outcome": outcome}


def _told(code: int, said: str) -> str:
    """What a command ended with, and the last line of what it said."""
    return f"exit code {code}: {(said.strip().splitlines() or ['nothing'])[-1]:.200}"


def _run(*command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-W", "ignore", "-m", "dsno.cli", *command]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def _started(verb: str, out: Path, *more: str) -> subprocess.Popen[str]:
    return _run(*VERBS[verb], "--out", str(out), *more)


def _finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what was said on stderr."""
    _, said = process.communicate(timeout=1200)
    return process.returncode, said


def _contents(folder: Path) -> dict[str, bytes]:
    """What a run made, but for what it says of times and places: weights, trajectories, and every name."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() if path.suffix == ".safetensors" else b"" for name, path in found.items()}


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
