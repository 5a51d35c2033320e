"""What commands do when they are killed, beside another one in their folder, on a full disk, and asked for nonsense.

Each function gives rows `{"kind": ..., "case": ..., "outcome": ...}`. An outcome is `held` where nothing was lost and
whatever failed said so in one line; else one of the bad ones of `faults.py`, with what happened. The commands are the
command line's, on the digits and the teacher that ships, in processes of their own: of a server that has imported it
already, or where what is done falls into the seconds of that, started afresh.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsno.cli import main
from dsno.snapshots import latest

__all__ = ["HELD", "Row", "commands", "full_disk", "interrupts", "kills", "two_runs"]

Row = dict[str, str]

HELD = "held"

SECONDS = 300.0
"""A command that takes longer hangs."""

MEMORY = 24 * 2**30
"""Address space of a command; torch alone takes several GB of it."""

TRAIN = ("--train.steps", "40", "--train.checkpoint-every", "5", "--train.log-every", "4", "--batch", "16")

GENERATE = ("generate", "--teacher", "digits", "--count", "600", "--steps", "8", "--grid", "uniform", "--shard", "50")
DISTILL = ("distill", "--teacher", "digits", "--data", "digits", "--method", "consistency", *TRAIN)
TEACH = ("teach", "--data", "digits", "--channels", "8", "16", *TRAIN)
VERBS = {"generate": GENERATE, "distill": DISTILL, "teach": TEACH}


# Kills


def kills(verb: str, count: int, seed: int, folder: Path) -> list[Row]:
    """A verb killed (-9) `count` times while it goes on where it was, every other time inside of a write.

    What it has made by then, and may not lose, is counted before and behind each; at its end it is compared with what
    was never interrupted, and begun again.
    """
    rows, draw = [], random.Random(f"{seed} {verb}")
    whole, cut = folder / f"{verb}-whole", folder / f"{verb}-cut"
    began = time.monotonic()
    _finished(_started(verb, whole))
    longest = time.monotonic() - began

    def step(name: str, stop: Callable[[Command], object]) -> bool:
        """Go on until `stop` has ended it; whether it came to its end before."""
        before = _made(cut)
        process = _started(verb, cut, "--resume")
        stop(process)
        code, said = _finished(process)
        inside = any(path.name.endswith(".tmp") for path in cut.rglob(".*"))
        outcome = HELD if code == -signal.SIGKILL and "Traceback" not in said else _judged(code, said, 0)
        if _made(cut) < before:
            outcome = f"lost checkpoints: {before} before, {_made(cut)} behind"
        if code == 0 and outcome == HELD and (differs := _differ(whole, cut)):
            outcome = f"accepted: {differs} is another than uninterrupted"
        if code == 0:
            shutil.rmtree(cut)
        rows.append(_row("kill", f"{verb}, {name}{', inside of a write' if inside else ''}", outcome))
        return code == 0

    for n in range(count):
        moment, writes = draw.uniform(0, longest), draw.randrange(1, 5)
        step(f"kill {n + 1}", _killing(cut, writes) if n % 2 else lambda process, at=moment: _kill(process, at))
    while not step("resumed to its end", lambda process: None):
        pass
    return rows


def _kill(process: Command, after: float) -> None:
    process.wait(after)
    process.send(signal.SIGKILL)


def _killing(folder: Path, writes: int) -> Callable[[Command], object]:
    """Kill a process while it writes to a folder, as soon as it has begun that many files."""

    def stop(process: Command) -> None:
        seen: set[Path] = {*folder.rglob(".*.tmp")}
        left, end = writes, time.monotonic() + SECONDS
        # A temporary name is there for a few milliseconds.
        while left and not process.wait(0.0005) and time.monotonic() < end:
            new = {path for path in _temporary(folder) if path not in seen}
            seen |= new
            left = max(left - len(new), 0)
        process.send(signal.SIGKILL)

    return stop


def _temporary(folder: Path) -> list[Path]:
    try:
        return [*folder.rglob(".*.tmp")]
    except OSError:  # removed while it was listed
        return []


def _made(folder: Path) -> int:
    """How far a run is: the step of its newest complete checkpoint, or its complete shards."""
    steps = [int(path.name.removeprefix("step-")) for place in _places(folder) if (path := latest(place)) is not None]
    return max(steps, default=0) or len([*folder.glob("shard-*.safetensors")])


def _places(folder: Path) -> list[Path]:
    return [folder / "training", *(path for path in (folder / "training").glob("*") if path.is_dir())]


def _differ(whole: Path, cut: Path) -> str:
    """The name of what two runs made otherwise, but for what it says of times and places; or nothing."""
    ours, theirs = _contents(whole), _contents(cut)
    return next((name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)), "")


def _contents(folder: Path) -> dict[str, object]:
    """What a run made: weights and trajectories to the byte, the numbers of a log, and every name."""
    return {str(path.relative_to(folder)): _content(path) for path in folder.rglob("*") if path.is_file()}


def _content(path: Path) -> object:
    if path.name == "log.jsonl":
        lines = map(json.loads, path.read_text().splitlines())
        return [{key: value for key, value in line.items() if key != "steps_per_second"} for line in lines]
    return path.read_bytes() if path.suffix == ".safetensors" else b""


# Two runs


def two_runs(verb: str, folder: Path) -> list[Row]:
    """A verb once more, in every way it can be called, into the folder of one that is stopped in the middle."""
    out = folder / f"two-{verb}"
    first, rows = _started(verb, out), []
    end = time.monotonic() + SECONDS
    while not (out / ".lock").exists() and not first.wait(0.01) and time.monotonic() < end:
        pass
    first.send(signal.SIGSTOP)
    for how in ((), ("--resume",), ("--overwrite",)):
        code, said = _finished(_started(verb, out, *how))
        outcome = _judged(code, said, 2)
        if outcome == HELD and not ("another run is writing" in said or "already" in said):
            outcome = f"tracebacks: it does not say why: {_last(said)}"
        rows.append(_row("two runs", f"{verb} {' '.join(how)} beside one that runs".replace("  ", " "), outcome))
    first.send(signal.SIGCONT)
    code, said = _finished(first)
    return [*rows, _row("two runs", f"{verb}, the first of both", _judged(code, said, 0))]


# Full disk


WRITERS = {
    "teach": TEACH,
    "distill": DISTILL,
    "generate": GENERATE,
    "convert": ("convert", "digits"),
    "export .pt2": ("export",),
    "export .onnx": ("export",),
}


def full_disk(verb: str, disk: Path, spare: Sequence[int] = (0, 20_000, 150_000)) -> list[Row]:
    """A verb that writes to a small `disk` with so many bytes left: in one line, without leftovers, resumed with room.

    Arguments:
        verb: One of `WRITERS`.
        disk: A folder of a file system of its own, of 64 MB (`mount -t tmpfs -o size=64m tmpfs DISK`); it is emptied.
            Of another, files may have that many bytes each instead (`RLIMIT_FSIZE`).
        spare: Bytes that are left.
    """
    rows, small = [], disk.is_mount()
    out = disk / (f"out{verb.removeprefix('export ')}" if verb.startswith("export") else "out")
    for left in spare:
        _empty(disk)
        if small:
            with (disk / "filler").open("wb") as filler:
                filler.write(bytes(max(shutil.disk_usage(disk).free - left, 0)))
        command = [*WRITERS[verb], "--out", str(out)]
        code, said = _finished(_run(*command, most=None if small else left))
        outcome = HELD if code == 0 else _judged(code, said, 2, naming=str(disk))
        names = [path.name for path in disk.rglob("*") if path.is_file() and path.name != "filler"]
        if outcome == HELD and (temporary := [name for name in names if name.endswith(".tmp")]):
            outcome = f"leftovers: {', '.join(temporary)}"
        rows.append(_row("full disk", f"{verb} with {left} bytes left", outcome))
        if code and verb in VERBS and left == spare[1]:
            (disk / "filler").unlink(missing_ok=True)
            code, said = _finished(_run(*command, "--resume"))
            rows.append(_row("full disk", f"{verb}, resumed with room", _judged(code, said, 0)))
    _empty(disk)
    return rows


# Interrupts, pipes and nonsense


def interrupts(count: int, seed: int, folder: Path) -> list[Row]:
    """Ctrl-C at moments of the start, and readers that leave."""
    rows, draw = [], random.Random(seed)
    for n in range(count):
        process = _fresh(*GENERATE, "--out", str(folder / f"stopped-{n}"))
        time.sleep(delay := draw.uniform(0.05, 6))
        process.send_signal(signal.SIGINT)
        code, said = _said(process)
        ended = code in (-signal.SIGINT, 130, 0) and "Traceback" not in said
        rows.append(_row("interrupts", f"Ctrl-C after {delay:.1f} s", HELD if ended else _judged(code, said, 130)))
    for command in (("--help",), ("generate", "--help"), ("distill", "--help"), ("methods",)):
        process = _fresh(*command, out=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.close()
        code, said = _said(process)
        # rich ends with 1, and says nothing.
        ended = code in (0, 1, 141, -signal.SIGPIPE) and "Traceback" not in said and "BrokenPipe" not in said
        rows.append(_row("interrupts", f"{' '.join(command)} | true", HELD if ended else _judged(code, said, 141)))
    return rows


NONSENSE: dict[str, tuple[tuple[str, ...], str]] = {
    "learning rate NaN": ((*TEACH, "--train.lr", "nan"), "lr"),
    "average 1.5": ((*TEACH, "--train.ema", "1.5"), "ema"),
    "no steps": ((*TEACH, "--train.steps", "0"), "steps"),
    "warm-up below 0": ((*TEACH, "--train.warmup", "-1"), "warmup"),
    "batches of 0": ((*DISTILL, "--batch", "0"), "batch"),
    "weights snrinf": ((*DISTILL[:3], "--data", "{0}/set", "--method", "operator", "--weights", "snrinf"), "snrinf"),
    "no steps of a solver": ((*GENERATE, "--steps", "0"), "step"),
    "shards of 0": ((*GENERATE, "--shard", "0"), "shard"),
    "a negative count": ((*GENERATE, "--count", "-3"), "count"),
    "a zip without a file": (("pull", "zip://a::file:///none.zip"), "zip://"),
    "a protocol that is none": (("pull", "nonsense://a"), "nonsense"),
    "an archive that is none": (("pull", "zip://a::file://{0}/bad.zip"), "zip"),
    "a student that is a file": (("sample", "--student", "{0}/bad.zip"), "bad.zip"),
    "a student of nested JSON": (("sample", "--student", "{0}/deep"), "deep"),
    "a teacher of nested JSON": (("generate", "--teacher", "{0}/deep", "--count", "4"), "deep"),
    "data that is a pipe": (("teach", "--data", "{0}/pipe.npy"), "pipe.npy"),
    "trajectories of 10^12 rows": (("distill", "--teacher", "digits", "--data", "{0}/many"), "many"),
}
"""Commands that cannot be done, `{0}` a folder of files that are nothing, and a word of what must be said."""


def commands(folder: Path, names: Sequence[str]) -> list[Row]:
    """Each of `NONSENSE` by these names: one line, exit code 2, which names what is wrong."""
    place = folder / f"nonsense {names[0]}".replace(" ", "-")
    _finished(_run(*GENERATE, "--out", str(place / "set")))
    for name in ("deep", "many"):
        (place / name).mkdir(parents=True)
    (place / "bad.zip").write_bytes(b"PK\x03\x04 nothing")
    (place / "deep" / "config.json").write_text("[" * 50_000 + "]" * 50_000)
    (place / "many" / "manifest.json").write_text('{"format": 1, "count": 1000000000000, "shard": 0}')
    os.mkfifo(place / "pipe.npy")
    rows = []
    for name in names:
        command, word = NONSENSE[name]
        given = [part.format(place) for part in command]
        more = [] if "--out" in given else ["--out", str(place / "out")]
        outcome = _judged(*_finished(_run(*given, *more)), 2, naming=word)
        rows.append(_row("commands", name, outcome))
    return rows


# Pieces


def _row(kind: str, case: str, outcome: str) -> Row:
    return {"kind": kind, "case": case, "outcome": outcome}


def _judged(code: int | None, said: str, expected: int, naming: str = "") -> str:
    """`HELD`, or what is bad about how a command ended."""
    if code is None:
        return f"hangs: after {SECONDS:g} s"
    if "Traceback" in said or (code and naming not in said):
        return f"tracebacks: exit code {code}: {_last(said)}"
    if code < 0 or code not in (0, 2, 130, 141):
        return f"deaths: exit code {code}: {_last(said)}"
    return HELD if code == expected else f"accepted: exit code {code}, expected {expected}: {_last(said)}"


def _last(said: str) -> str:
    """The last line of what was said."""
    return f"{(said.strip().splitlines() or ['nothing'])[-1]:.200}"


@dataclass
class Command:
    """A command under way, and the file that holds what it says on stderr."""

    process: multiprocessing.process.BaseProcess
    said: Path

    def wait(self, seconds: float) -> bool:
        """Wait so long for its end; whether it came."""
        self.process.join(seconds)
        return self.process.exitcode is not None

    def send(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        if self.process.pid is not None and self.process.exitcode is None:
            os.kill(self.process.pid, number)


def _limited(most: int | None = None) -> None:
    """Bound the memory of this process, and its files to that many bytes each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if most is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def _command(arguments: Sequence[str], said: Path, most: int | None) -> None:
    """The command line, in a process that has imported it."""
    for path, number in ((os.devnull, 1), (said, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    warnings.simplefilter("ignore")
    _limited(most)
    sys.argv = ["dsno", *arguments]
    main()


def _run(*command: str, most: int | None = None) -> Command:
    """Start a command whose files may have at most that many bytes each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dsno.cli", "accelerate", "diffusers", __name__])
    handle, said = tempfile.mkstemp(".said")
    os.close(handle)
    process = context.Process(target=_command, args=(command, Path(said), most))
    process.start()
    return Command(process, Path(said))


def _started(verb: str, out: Path, *more: str) -> Command:
    return _run(*VERBS[verb], "--out", str(out), *more)


def _finished(command: Command) -> tuple[int | None, str]:
    """Exit code, None of one that hangs, and what was said on stderr."""
    ended = command.wait(SECONDS)
    command.send(signal.SIGKILL)
    command.process.join()
    said = command.said.read_text()
    command.said.unlink()
    return command.process.exitcode if ended else None, said


def _fresh(*command: str, out: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """Start a command that has its imports before it."""
    arguments = [sys.executable, "-W", "ignore", "-m", "dsno.cli", *command]
    return subprocess.Popen(arguments, stdout=out, stderr=subprocess.PIPE, text=True, preexec_fn=_limited)


def _said(process: subprocess.Popen[str]) -> tuple[int | None, str]:
    """As `_finished`."""
    try:
        _, said = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        _, said = process.communicate()
        return None, said
    return process.returncode, said


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
