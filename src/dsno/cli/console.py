"""What the command line says: progress and the next command on its way, tables at the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dsno.cli.pace import Pace, spelled
from dsno.measure.results import Result
from dsno.measure.table import BIAS, COLUMNS, COPYING, UNBIASED, best, copied, nearest, reading, table
from dsno.runs.plan import Estimate
from dsno.teachers.check.verdict import Verdict
from dsno.train import Report

__all__ = [
    "progress",
    "say",
    "say_aside",
    "show",
    "show_estimate",
    "show_methods",
    "show_rows",
    "show_verbs",
    "show_verdict",
    "speaks",
]

FEW = 256
"""Fewer samples than these are said to be few."""

SILENCE = 10.0
"""Seconds between two lines about a stage where there are no bars."""

COLOURS = {"ok": "green", "warning": "yellow", "failure": "bold red"}


def say(done: str, after: str, why: str = "", aside: bool = False) -> None:
    """Print what was done, and the command that comes next, `command` of `dsno.cli.words`; the last line of every verb.

    Arguments:
        done: In a line or more, or nothing.
        after: The command; empty where the verb goes on.
        why: What it is for, where it is not the next step of the road.
        aside: Print it to stderr: what was printed before is read by a program.
    """
    if speaks():
        following = (f"next: {after}" + f"   # {why}" * bool(why)) * bool(after)
        print(*filter(None, [done, following]), sep="\n", file=sys.stderr if aside else None)


def say_aside(text: str) -> None:
    """Print what the user should know of a command that goes on all the same."""
    if speaks():
        print(f"note: {text}", file=sys.stderr)


def speaks() -> bool:
    """Whether this is the first of the processes that `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def progress(shown: Callable[[float], str] | None = None) -> Iterator[Report]:
    """Progress bars, one per stage, with rate and, once it means something, an estimate (`Pace`); plain lines where the
    output is not a terminal.

    `shown` writes what is counted, and how much of it is done in a second: `human_size`, of bytes.
    """
    console = Console(stderr=True, quiet=not speaks(), soft_wrap=True)
    bar = Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TextColumn("{task.fields[part]}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        _Left(),
        TextColumn("{task.fields[text]}"),
        console=console,
        disable=not console.is_terminal,
    )
    tasks: dict[str, TaskID] = {}
    paces: dict[str, Pace] = {}
    printed: dict[str, float] = {}

    def report(stage: str, done: int, total: int, text: str) -> None:
        now, pace = time.monotonic(), paces.setdefault(stage, Pace())
        pace.add(now, done, total)
        rate = f"{_number(pace.rate) if shown is None else shown(pace.rate)}/s" if pace.rate else ""
        part = f"{done}/{total}" if shown is None else f"{shown(done)}/{shown(total)}"
        if done == 0 and text:
            console.print(f"{stage}: {text}")
        if console.is_terminal:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total, part="", rate="", text="", pace=pace)
            bar.update(tasks[stage], completed=done, part=part, rate=rate, text="" if done == 0 else text)
            return
        # The first line waits until it can say how long it will take, but not for ever.
        due = now - printed.get(stage, now - pace.took) >= SILENCE or (pace.settled and stage not in printed)
        if done and (done == total or due):
            printed[stage] = now
            left = pace.left(now)
            lasts = f"in {spelled(pace.took)}" if done == total else "" if left is None else f"{spelled(left)} left"
            console.print(" ".join(filter(None, (f"{stage} {part}", rate, lasts, text))))

    with bar:
        yield report


class _Left(ProgressColumn):
    """The estimate of a bar, which counts down between two reports."""

    def render(self, task: Task) -> Text:
        left = task.fields["pace"].left(task.get_time())
        return Text("" if left is None else f"{spelled(left)} left")


def _number(rate: float) -> str:
    return f"{rate:.1f}" if rate >= 10 else f"{rate:.2g}"


def show(results: Sequence[Result], every: bool = False) -> None:
    """Print results as a table, with units in its head, the best of each column bold, and the row nearest to the data
    marked; below it what it says of its first row, and what its distances are worth.

    With `every`, the columns too that few look at.
    """
    rows, winners, top = table(results, every), best(results), nearest(results)
    scales = {column.title: column.scale for column in COLUMNS}
    printed = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for key in rows[0]:
        head = Text("sampler") if key == "name" else Text("\n".join([*key.split(), scales[key]]))
        printed.add_column(head, justify="left" if key == "name" else "right", vertical="bottom")
    for row in rows:
        mark = " *" * (top is not None and row["name"] == top.name)
        cells = {**row, "name": row["name"] + mark}
        printed.add_row(*(Text(v, "bold" if row["name"] in winners.get(k, ()) else "") for k, v in cells.items()))
        if mark:
            printed.rows[-1].style = "green"
    # Squeezed into a narrow terminal or a pipe the columns would lose their digits.
    Console(width=200).print(printed)
    console = Console()
    if found := copied(results):
        console.print(Text(f"\n{found}", COLOURS["warning"]))
    if said := reading(results):
        console.print(Text(f"\n{said}"))
    measured = [result for result in results if result.quality is not None]
    if measured:
        legend = "Better is lower under ↓ and higher under ↑; the best of a column is bold. " * bool(winners)
        held_out = any(result.protocol.held_out_count for result in measured)
        console.print(Text(f"\n{legend}{BIAS}{f' {UNBIASED}' * every}{f' {COPYING}' * held_out}\n", "dim"))
    if measured and (fewest := min(result.protocol.count for result in measured)) < FEW:
        say_aside(f"{fewest} samples say little of a distance: take --count 2048, as the tables of the pages do")


def show_verbs(road: Mapping[str, Mapping[str, str]], asked: bool) -> None:
    """Print what each verb does, under what it is for; to stderr unless it was asked for."""
    console = Console(stderr=not asked, highlight=False)
    width = 2 + max(len(name) for verbs in road.values() for name in verbs)
    console.print(Text("usage: dsno VERB [options]; dsno VERB --help teaches each one"))
    for title, verbs in road.items():
        console.print(Text(f"\n{title}", "bold"))
        made = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        made.add_column(width=width)
        for name, text in verbs.items():
            made.add_row(Text(f"  {name}", "cyan"), Text(text))
        console.print(made)
    console.print(Text("\nnext: dsno demo   # a minute: the student that ships with the package, beside its teacher"))


def show_verdict(verdict: Verdict) -> None:
    """Print what was looked at, the noise levels, and the verdict."""
    # As wide as the terminal, where there is one: sentences wrap.
    console = Console()
    console.print(Text(f"{verdict.teacher}\n"))
    findings = Table("", "", "what was found", box=None, pad_edge=False, header_style="bold")
    for f in verdict.findings:
        text = Text(f.text) if not f.mend else Text.assemble(f.text, ("\n-> " + f.mend, "italic"))
        findings.add_row(Text(f.state, COLOURS[f.state]), Text(f.check), text)
    console.print(findings)
    if verdict.levels:
        titles = "t", "log-SNR", "error", "mean", "input", "Wiener", "error / best"
        levels = Table(*titles, box=None, header_style="bold")
        for level in verdict.levels:
            numbers = (level.t, level.log_snr, level.error, level.mean, level.input, level.wiener)
            style = "green" if level.ratio <= 1.03 else "red"
            levels.add_row(*(f"{n:.3g}" for n in numbers), Text(f"{level.ratio:.3f}", style))
        console.print("")
        console.print(levels)
    console.print("")
    console.print(Text(verdict.summary, COLOURS[verdict.state]))


def show_estimate(estimate: Estimate) -> None:
    """Print the stages, what would change them, and the sum."""
    console = Console()
    console.print(_words(estimate.rows()))
    if estimate.alternatives:
        console.print("")
        console.print(_words(estimate.choices()))
    console.print("")
    if estimate.precision:
        console.print(Text(estimate.precision))
    console.print(Text(estimate.summary, "green" if estimate.fits else "bold red"))


def _words(rows: Sequence[Mapping[str, str]]) -> Table:
    made = Table(*rows[0], box=None, pad_edge=False, header_style="bold")
    for row in rows:
        made.add_row(*map(Text, row.values()))
    return made


def show_rows(rows: Sequence[Mapping[str, str]]) -> None:
    """Print a table of options."""
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(_words(rows))


def show_methods(rows: Sequence[Mapping[str, str]], widths: Sequence[int] = (22, 8, 14, 14, 26, 60)) -> None:
    """Print a table of methods, names in bold; the last column wraps."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 1, 0))
    for title, width in zip(rows[0], widths, strict=True):
        made.add_column(title, max_width=width)
    for row in rows:
        first, *rest = row.values()
        made.add_row(Text(first, "bold"), *map(Text, rest))
    console = Console()
    # A pipe has no width of its own, and a terminal may be too narrow for seven words a line.
    (console if console.is_terminal else Console(width=140)).print(made)
