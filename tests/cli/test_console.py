"""What the command line says on its way: lines on stderr, bars in a terminal, the next command at the end."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from dsno.cli.console import _Left, progress, say, show
from dsno.cli.pace import Pace
from dsno.measure.table import COPYING, table
from dsno.trajectories.card import human_size
from pretend import result
from shell import Ran, dsno


def test_progress_goes_to_stderr_with_the_shares_of_the_loss(road: tuple[Path, dict[str, Ran]]) -> None:
    _, ran = road
    assert ran["teach"].err.splitlines()[-1].startswith("teach 6/6 ")
    assert re.fullmatch(
        r"(grid \S.*\n)+generate: RMSE of 6 steps to the fine solution by grid: \S+ \S+, taken; .*\ngenerate 64/64.*\n",
        ran["generate"].err,
    )
    assert ran["distill"].err.startswith("regression: loss shares by frame (snr5): t = 0.5625: ")
    assert "evaluate 248/248" in ran["evaluate"].err


def test_a_terminal_gets_bars(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    again = dsno("generate", "--count", 64, "--steps", 6, "--out", "bars", at=here)
    assert again.code == 0 and "━" in again.err and "64/64" in again.err


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock of the console's that stands still unless it is turned."""
    made = SimpleNamespace(now=100.0)
    monkeypatch.setattr("dsno.cli.console.time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def test_lines_name_the_stage_its_part_and_what_is_said(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress() as report:
        report("stage", 0, 60, "begins")
        report("stage", 0, 60, "")
        for done in range(1, 8):
            clock.now += 2
            report("stage", done, 60, f"said {done}")
        clock.now += 26
        report("stage", 60, 60, "ends")
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == [
        "stage: begins",
        # Not before the pace has settled, then every ten seconds and at the end.
        "stage 3/60 0.5/s 2 min left said 3",
        "stage 60/60 1.5/s in 40 s ends",
    ]


def test_a_first_part_that_is_long_is_told_without_an_estimate(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress() as report:
        report("stage", 0, 15, "")
        for seconds in (14, 0.5, 0.5, 10):
            clock.now += seconds
            report("stage", round(clock.now - 100), 40, "")
    assert capsys.readouterr().err.splitlines() == ["stage 14/40 1/s", "stage 25/40 1/s 15 s left"]


def test_a_bar_has_a_rate_and_an_estimate_that_counts_down(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm-256color"), ("COLUMNS", "120")):
        monkeypatch.setenv(name, value)
    with progress() as report:
        for done in range(5):
            report("stage", done, 100, "")
            clock.now += 10
    assert re.search(r"━.*4/100.* 0\.1/s", capsys.readouterr().err)
    pace = Pace()
    for n in range(4):
        pace.add(10.0 * n, n, 100)
    tasks = [SimpleNamespace(fields={"pace": pace}, get_time=lambda now=now: now) for now in (30.0, 50.0, 4000.0)]
    assert [str(_Left().render(task)) for task in tasks] == ["16 min left", "16 min left", "0 s left"]


def test_bytes_are_said_as_they_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(human_size) as report:
        report("push", 0, 3_000_000, "")
        report("push", 3_000_000, 3_000_000, "")
    assert re.fullmatch(r"push 3\.0 MB/3\.0 MB \S+ [kMG]B/s in 0 s\n", capsys.readouterr().err)


def test_only_the_first_process_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for rank, spoken in (("1", ("", "")), ("0", ("done\nnext: dsno sample\n", "stage: begins\n"))):
        monkeypatch.setenv("RANK", rank)
        with progress() as report:
            report("stage", 0, 4, "begins")
        say("done", "dsno sample")
        assert tuple(capsys.readouterr()) == spoken


def test_a_table_keeps_all_digits_in_a_narrow_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    rows = [result("DSNO", 1, 12.3456), result("DDIM-4", 4, 23.4567)]
    show(rows, every=True)
    shown = capsys.readouterr().out
    assert "…" not in shown
    for row, name in zip(table(rows), ("DSNO *", "DDIM-4"), strict=True):
        (line,) = (line for line in shown.splitlines() if line.startswith(f"{name} "))
        assert line.split() == " ".join({**row, "name": name}.values()).split()


def test_a_table_reads_itself_to_somebody_new(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [result("DSNO", 1, 12.3456), result("DDIM-4", 4, -0.5), result("real, other half", 0, 3.0, None)]
    show(rows)
    shown = capsys.readouterr().out
    head, _, rest = shown.partition("\nDSNO ")
    assert head.splitlines()[-1].split("  ")[0] == "sampler" and head.endswith("ms, one")
    assert all(unit in head for unit in ("serial", "MFLOP", "distance ↓", "0 to 1 ↑", "RMSE ↓"))
    assert "kernel" not in shown and "\nDDIM-4 * " in rest
    assert "DSNO is at a distance of 12.3 from the data after 1 network call; as near: DDIM after 4;" in " ".join(
        rest.split()
    )
    show(rows, every=True)
    shown = " ".join(capsys.readouterr().out.split())
    assert "around 0" in shown and "A kernel distance has no bias" in shown


def test_few_samples_are_said_to_be_few(capsys: pytest.CaptureFixture[str]) -> None:
    few = result("DSNO", 1, 12.3456)
    many = dataclasses.replace(few, protocol=dataclasses.replace(few.protocol, count=2048))
    show([few])
    assert capsys.readouterr().err == "note: " + (
        "64 samples say little of a distance: take --count 2048, as the tables of the pages do\n"
    )
    show([many])
    assert capsys.readouterr().err == ""


def test_the_next_command_is_the_last_line_and_keeps_out_of_what_programs_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say("done", "dsno sample", "in one pass")
    say("it goes on", "")
    say("", "dsno methods")
    say("", "dsno methods", aside=True)
    assert tuple(capsys.readouterr()) == (
        "done\nnext: dsno sample   # in one pass\nit goes on\nnext: dsno methods\n",
        "next: dsno methods\n",
    )


def test_who_copies_is_said_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    student = result("DSNO", 1, 0.5, held_out_count=40)
    show([dataclasses.replace(student, held_out=dataclasses.replace(student.held_out, copying=0.04))])
    said = " ".join(capsys.readouterr().out.split())
    assert "DSNO copies the training data: copying is 0.040, where new data are at 1." in said
    assert COPYING in said
    show([result("DSNO", 1, 0.5)])
    assert "the nearest image of the data" not in capsys.readouterr().out
