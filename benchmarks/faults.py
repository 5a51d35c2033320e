"""What damage, attacks and accidents do: run something, be accepted, hang, end in a traceback, or lose a checkpoint.

    python benchmarks/faults.py

Claim: nothing of a file is executed, nothing that has a checksum is accepted when it was changed, nothing hangs or
takes all memory, every error is one line that names the file, and no checkpoint is lost; one case of any of these
refutes it. Three kinds of cases:

- files: a copy of a small folder, damaged by a seed or made to do harm, and opened in a process of its own, with 60
  seconds and 3 GB more than the library takes. A file of another's format, which has no checksum, may be accepted;
- commands: killed (also inside of a write) and resumed until they are at their end, which must be that of one that was
  not interrupted; beside another one in their folder; on a full disk; interrupted while they start; asked for nonsense;
- reading: what it costs to compare a shard with its checksum when it is first read, over twenty passes of reading it.

Full disks are file systems of 64 MB where one may be mounted; else the sizes of files are limited. Writes
benchmarks/results/faults.json.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from _common import Claim, alternating, claim, parse, parser, write
from _faults import KINDS, UNREAD
from _faults_damage import Case, cases
from _faults_kills import HELD, NONSENSE, VERBS, WRITERS, Row, commands, full_disk, interrupts, kills, two_runs

from dsno import Cosine, Gaussian, SolverSampler, grids
from dsno.snapshots import NAME, latest
from dsno.trajectories.format import check_shard, shard_count
from dsno.trajectories.store import store

__all__ = ["KINDS", "Case", "cases", "main", "opening", "options"]

SECONDS, MEMORY, PROCESSES = 60.0, 3 * 2**30, 3

GOOD = ("refused", "harmless", HELD)

BAD = {
    "executions": "executions",
    "accepted": "accepted corruptions, and runs that were let in",
    "hangs": "hangs",
    "tracebacks": "tracebacks, and errors that do not say where",
    "deaths": "deaths by a signal or for want of memory",
    "lost checkpoints": "lost checkpoints",
    "leftovers": "leftovers that take room",
}

OWN = (ValueError, OSError, ImportError, FloatingPointError)
"""What the library raises where a file is at fault."""

PASSES = 20
"""Over a training, every row is read so often."""


# Files


def opening(case: Case, folder: Path, known: str) -> str:
    """What opening a damaged folder does: one of `BAD`, or `refused` or `harmless`.

    Arguments:
        case: What was done to it.
        folder: The damaged copy; a pickle that is run makes `marker` in the working folder.
        known: What the original says.
    """
    kind, steps, before = KINDS[case.kind], _steps(folder), latest(folder)
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
    # A run that went on has removed the checkpoint before its own; what is not called like one is not its own.
    theirs = {name for name in steps if found == "refused" or not NAME.fullmatch(name)}
    if not theirs <= _steps(folder) or (before is not None and latest(folder) is None):
        return "lost checkpoints"
    return found


def _steps(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("step-*")}


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
            if found[n] not in GOOD:
                print(f"{made[n].kind}, {made[n].name}: {found[n]}", flush=True)
    return found


def files(quick: bool, scratch: Path) -> list[Row]:
    """Make a folder of each kind, and open all damaged copies of it."""
    # A process that is forked from one with many threads has none of them.
    torch.set_num_threads(1)
    made, originals, known = cases(quick), {}, {}
    for kind, described in KINDS.items():
        originals[kind] = scratch / "originals" / kind
        originals[kind].parent.mkdir(exist_ok=True)
        described.make(originals[kind])
        shutil.copytree(originals[kind], scratch / "known" / kind)
        known[kind] = "" if kind in UNREAD else described.opened(scratch / "known" / kind)
    outcomes = run(made, originals, known, scratch)
    return [{"kind": c.kind, "case": c.name, "outcome": o} for c, o in zip(made, outcomes, strict=True)]


# Commands


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 64 MB, where one may be mounted; else the folder."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True)
    try:
        yield folder
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", folder], check=True)


def on_disk(verb: str, folder: Path) -> list[Row]:
    with small_disk(folder) as disk:
        return full_disk(verb, disk)


def accidents(quick: bool, scratch: Path, times: int = 12) -> list[Row]:
    """All that happens to commands, a few at a time."""
    times, seed = 1 if quick else times, 0
    names = list(NONSENSE)
    asked: list[Callable[[], list[Row]]] = [
        *(lambda verb=verb: kills(verb, times, seed, scratch) for verb in VERBS),
        *(lambda verb=verb: two_runs(verb, scratch) for verb in VERBS),
        *(lambda verb=verb: on_disk(verb, scratch / f"disk {verb}".replace(" ", "-")) for verb in WRITERS),
        lambda: interrupts(times, seed, scratch),
        *(lambda names=names[n::2]: commands(scratch, names) for n in range(2)),
    ]
    rows = []
    with ThreadPoolExecutor(PROCESSES) as pool:
        for found in pool.map(lambda ask: ask(), asked[:1] + asked[-1:] if quick else asked):
            rows += found
            for row in found:
                if row["outcome"] not in GOOD:
                    print(f"{row['kind']}, {row['case']}: {row['outcome']}", flush=True)
    return rows


# Reading


def reading(quick: bool, scratch: Path) -> dict[str, float]:
    """Seconds to read all rows of a set in shuffled batches, and to compare its shards with their checksums."""
    keep, shape = grids.quadratic(4), (3, 32, 32)
    solver = SolverSampler(Gaussian(Cosine(), torch.zeros(shape), 0.5), Cosine(), keep, keep=keep)
    data = store(solver, shape, scratch / "read", 64 if quick else 8192, batch=64, shard=1024)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).split(256)
    data.__getitems__(range(len(data)))  # the page cache is warm, and the shards are compared

    def rows() -> None:
        for batch in order:
            data.__getitems__(batch.tolist())

    def sums() -> None:
        for k in range(shard_count(data.manifest)):
            check_shard(Path(data.folder), data.manifest, k, verify=True)

    taken = alternating(rows, sums, repeats=2 if quick else 7)
    size = sum(path.stat().st_size for path in (scratch / "read").glob("shard-*"))
    read, compared = (statistics.median(side) for side in zip(*taken, strict=True))
    return {"bytes": size, "read": read, "compared": compared}


# Counting


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """The sums over the kinds, and what checksums cost."""
    counts, reading = numbers["counts"].values(), numbers["reading"]
    sums = [claim(f"{text}, of all cases", sum(count[what] for count in counts), 0, "<=") for what, text in BAD.items()]
    share = reading["compared"] / reading["read"]
    return [
        claim("cases", sum(count["cases"] for count in counts), 400, ">="),
        *sums,
        claim("comparing with checksums once over reading once, time", share, 0.05, "<="),
        claim(f"comparing with checksums once over reading {PASSES} times, time", share / PASSES, 0.05, "<="),
    ]


def counted(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """How many cases of each kind, and what became of them."""
    counts = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        found = Counter(row["outcome"].partition(":")[0] for row in rows if row["kind"] == kind)
        counts[kind] = {"cases": found.total(), **{what: found[what] for what in (*GOOD, *BAD)}}
    return counts


def options() -> argparse.ArgumentParser:
    return parser(__file__, __doc__)


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        took = reading(arguments.quick, scratch)
        rows = [*files(arguments.quick, scratch), *accidents(arguments.quick, scratch)]
    numbers = {"counts": counted(rows), "reading": took}
    failures = [row for row in rows if row["outcome"] not in GOOD]
    write(
        arguments,
        "faults",
        f"{len(rows)} cases by the seed of their names, {PROCESSES} at a time; files each opened in a process of its "
        f"own, with {SECONDS:g} s and {MEMORY / 2**30:g} GB more than the library takes, harmless: opened as before "
        "the damage, or without a checksum as another whole; commands as processes, with 300 s and 24 GB of addresses",
        judged(numbers),
        **numbers,
        failures=failures,
    )


if __name__ == "__main__":
    main()
