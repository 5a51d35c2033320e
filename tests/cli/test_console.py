"""What the command line says on its way: lines on stderr, bars in a terminal, the next command at the end."""

import dataclasses
import re
from pathlib import Path

import pytest

from dsno.cli.console import progress, say, show
from dsno.measure.table import table
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
    assert "evaluate 1" in ran["evaluate"].err


def test_a_terminal_gets_bars(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    again = dsno("generate", "--count", 64, "--steps", 6, "--out", "bars", at=here)
    assert again.code == 0 and "━" in again.err and "64/64" in again.err


def test_lines_name_the_stage_its_part_and_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as report:
        report("stage", 0, 4, "begins")
        report("stage", 0, 4, "")
        report("stage", 1, 4, "said")
        report("stage", 2, 4, "not said: too soon after the last")
        report("stage", 4, 4, "ends")
        # A stage that goes on from somewhere has no rate before it is told of twice.
        report("resumed", 500, 504, "not said: nobody knows how fast it is")
        report("resumed", 501, 504, "said")
    out, err = capsys.readouterr()
    first, second, last, resumed = err.splitlines()
    assert re.fullmatch(r"resumed 501/504 \S+/s \d+ s left said", resumed)
    assert out == "" and first == "stage: begins"
    assert second.startswith("stage 1/4 ") and second.endswith(" s left said")
    assert re.fullmatch(r"stage 4/4 \S+/s 0 s left ends", last)


def test_bytes_are_said_as_they_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(human_size) as report:
        report("push", 0, 3_000_000, "")
        report("push", 3_000_000, 3_000_000, "")
    assert re.fullmatch(r"push 3\.0 MB/3\.0 MB \S+ [kMG]B/s 0 s left\n", capsys.readouterr().err)


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
    show(rows)
    shown = capsys.readouterr().out
    assert "…" not in shown
    for row in table(rows):
        (line,) = (line for line in shown.splitlines() if line.startswith(row["name"]))
        assert line.split() == " ".join(row.values()).split()


def test_few_samples_are_said_to_be_few(capsys: pytest.CaptureFixture[str]) -> None:
    few = result("DSNO", 1, 12.3456)
    many = dataclasses.replace(few, protocol=dataclasses.replace(few.protocol, count=2048))
    show([few])
    assert capsys.readouterr().err == "note: " + (
        "64 samples say little of a distance: take --count 2048, as the tables of the pages do\n"
    )
    show([many])
    assert capsys.readouterr().err == ""
