"""Every benchmark runs, and every result says how it came about and claims what its own numbers say."""

import importlib
import json
import math
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pretend import result
from processes import environment

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("[!_]*.py"))
RESULTS = sorted((BENCHMARKS / "results").glob("*.json"))

of_each_result = pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import each other, as they do when they are run."""
    monkeypatch.syspath_prepend(BENCHMARKS)


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def holds(claim: dict[str, Any]) -> bool:
    return {"<=": claim["value"] <= claim["bound"], ">=": claim["value"] >= claim["bound"]}[claim["direction"]]


# Scripts


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_how_it_is_called(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        script(name).main(["--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0
    assert said.startswith(f"usage: benchmarks/{name}.py") and f"python benchmarks/{name}.py" in said
    if name != "tables":
        assert "--quick" in said and "--out" in said and "refute" in said


@pytest.mark.parametrize("name", ["bridge", "guided", "inverse", "memory", "mixture", "ring", "starts", "store"])
def test_a_quick_run_writes_a_result_of_the_same_form_elsewhere(name: str, tmp_path: Path) -> None:
    published = BENCHMARKS / "results" / f"{name}.json"
    before = published.read_bytes()
    script(name).main(["--quick", "--out", str(tmp_path)])
    held, made = json.loads(before), json.loads((tmp_path / f"{name}.json").read_text())
    assert made.keys() == held.keys() and made["protocol"].keys() == held["protocol"].keys()
    assert made["protocol"]["command"] == f"python benchmarks/{name}.py --quick --out {tmp_path}"
    assert [c["name"] for c in made["claims"]] == [c["name"] for c in held["claims"]]
    assert script(name).judged(made) == made["claims"]
    assert published.read_bytes() == before
    if name == "mixture":
        assert (tmp_path / "mixture.png").read_bytes().startswith(b"\x89PNG")


# A GPU that nobody has seen before


def test_a_bare_machine_takes_the_newest_wheels_that_fit_and_keeps_its_torch(tmp_path: Path) -> None:
    machine = re.sub("[-.]", "_", sysconfig.get_platform())
    fit = ["numpy-2.10.0-py3-none-any.whl", f"psutil-7.0-cp36-abi3-{machine}.whl"]
    others = [
        "numpy-2.9.0-py3-none-any.whl",
        "numpy-3.0-cp27-cp27m-manylinux1_x86_64.whl",
        "torch-2.9-py3-none-any.whl",
    ]
    for name in [*fit, *others, "nvidia_cublas_cu12-12.4-py3-none-any.whl", "triton-3.0-py3-none-any.whl"]:
        (tmp_path / name).touch()
    assert [wheel.name for wheel in script("_bare").usable(tmp_path)] == fit


def test_a_bare_machine_is_told_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = script("_bare")
    monkeypatch.setattr(sys, "path", [*sys.path])
    bare.main(str(tmp_path))
    monkeypatch.setattr(bare, "NEEDED", ("torch", "unheard", "of"))
    with pytest.raises(SystemExit, match="has no unheard, of: name another Python .* or a folder of wheels"):
        bare.main(str(tmp_path))
    with pytest.raises(SystemExit, match="holds no wheel for .*, which is Python 3"):
        bare.main(str(tmp_path), str(tmp_path))


def test_the_wheels_that_a_bare_machine_takes_are_pinned() -> None:
    pinned = {
        line.partition("==")[0].lower() for line in (BENCHMARKS.parent / "constraints.txt").read_text().splitlines()
    }
    asked = {line for line in (BENCHMARKS / "gpu.txt").read_text().splitlines() if line and not line.startswith("#")}
    needed = {*script("_bare").NEEDED} - {"torch"}
    assert needed <= asked and asked <= {name.replace("_", "-") for name in pinned}


def test_what_fails_of_a_gpu_costs_its_own_piece_and_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, table = script("gpu"), [result("DSNO", 1, 2.0), result("teacher, fine", 0, 1.0)]

    def fail(*_: object) -> None:
        raise RuntimeError("the driver has gone")

    monkeypatch.setattr(gpu, "tests", fail)
    monkeypatch.setattr(gpu, "speeds", lambda *_: {"ours, 1": 1.0, "DPM-Solver++-8, 1": 6.0})
    monkeypatch.setattr(gpu.Recipe, "run", lambda *_, **__: tmp_path)
    monkeypatch.setattr("dsno.report.compare.compare", lambda *_, **__: table)
    given = ["--quick", "--out", str(tmp_path), "--data", "digits", "--device", "cpu"]
    with pytest.raises(SystemExit, match="failed: tests; see the log"):
        gpu.main(given)
    made = json.loads((tmp_path / "gpu.json").read_text())
    assert made["left_out"] == {"tests": "RuntimeError: the driver has gone"}
    values = {claim["name"]: claim["value"] for claim in made["claims"]}
    assert values["bf16, batch 1: DPM-Solver++-8 over one pass"] == 6
    assert values["Frechet distance of one pass over the teacher's own"] == 2
    # What was measured is kept, so that it is not measured twice.
    monkeypatch.setattr(gpu, "speeds", fail)
    for code, failed in ((5, 0), (4, 1)):
        (tmp_path / "gpu" / "tests.json").unlink(missing_ok=True)
        monkeypatch.setattr(gpu, "tests", lambda *_, code=code: {"failed": 0, "error": 0, "code": code})
        gpu.main(given)
        made = json.loads((tmp_path / "gpu.json").read_text())
        assert made["claims"][0]["value"] == failed and made["left_out"] == {}


def test_the_status_of_a_gpu_s_script_is_that_of_what_it_runs(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *gpu.py*) echo "$@"; exit 3;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    told = {**environment(), "PYTHON": str(python), "SITE": str(tmp_path / "site")}
    command = ["sh", str(BENCHMARKS / "gpu.sh"), "--data", "my set.npz"]
    ran = subprocess.run(command, cwd=tmp_path, env=told, capture_output=True, text=True)
    assert ran.returncode == 3, ran.stderr
    assert ran.stdout == (tmp_path / "runs/gpu/log.txt").read_text() == f"-u {BENCHMARKS}/gpu.py --data my set.npz\n"


# Results


@of_each_result
def test_a_result_carries_its_protocol_and_honest_claims(path: Path) -> None:
    record = json.loads(path.read_text())
    assert record["name"] == path.stem
    protocol = record["protocol"]
    assert protocol.keys() == {"command", "setting", "versions", "machine"} and protocol["setting"]
    assert {"python", "dsno", "torch"} <= protocol["versions"].keys()
    assert protocol["machine"].keys() == {"system", "cpu", "cores", "threads", "gpu"}
    assert record["claims"]
    for claim in record["claims"]:
        assert claim.keys() == {"name", "value", "bound", "direction", "holds"}
        assert claim["holds"] == holds(claim), claim["name"]
    names = [claim["name"] for claim in record["claims"]]
    assert len({*names}) == len(names)


@of_each_result
def test_the_command_of_a_result_is_one_and_the_claims_are_what_the_script_makes_of_the_numbers(path: Path) -> None:
    record = json.loads(path.read_text())
    program, called, *given = shlex.split(record["protocol"]["command"])
    assert program == "python" and Path(called).parent.name == "benchmarks"
    written_by = script(Path(called).stem)
    arguments = script("_common").parse(written_by.options(), given)
    assert arguments.command == record["protocol"]["command"]
    assert arguments.out == BENCHMARKS / "results" and not arguments.quick
    # A fit in single precision differs in its last digits from machine to machine.
    held = [{**claim, "value": pytest.approx(claim["value"], rel=1e-6)} for claim in record["claims"]]
    assert written_by.judged(record) == held


# What they share


def test_quick_runs_and_named_folders_leave_the_published_results_alone(tmp_path: Path) -> None:
    common = script("_common")
    options = script("ring").options
    usual, quick, asked = (common.parse(options(), given) for given in ([], ["--quick"], ["--out", str(tmp_path)]))
    assert (usual.out, usual.images) == (common.RESULTS, common.IMAGES)
    assert quick.out == quick.images == Path("runs/quick") and asked.out == asked.images == tmp_path


def test_a_claim_is_on_one_side_of_its_bound_and_nothing_holds_of_what_is_no_number() -> None:
    claim = script("_common").claim
    assert claim("at most", 1, 1, "<=")["holds"] and not claim("at most", 1.01, 1, "<=")["holds"]
    assert claim("at least", 1, 1, ">=")["holds"] and not claim("at least", 0.99, 1, ">=")["holds"]
    assert not any(claim("lost", math.nan, 1, direction)["holds"] for direction in ("<=", ">="))
    with pytest.raises(ValueError, match="direction must be '<=' or '>=', got '<'"):
        claim("below", 1, 2, "<")


def test_an_entry_by_name_takes_other_settings_in_the_type_they_have() -> None:
    named, entries = script("_common").named, script("_family").ENTRIES
    changed = named(entries, "knowledge@lr=0.0003@trajectories=512@grid=log-snr@others=0.5")
    assert (changed.lr, changed.trajectories, changed.grid, changed.others) == (3e-4, 512, "log-snr", 0.5)
    assert changed.method == "knowledge" and named(entries, "operator") == entries["operator"]


def test_what_is_kept_is_made_once(tmp_path: Path) -> None:
    counted: Iterator[int] = iter(range(2))
    kept = [script("_common").kept(tmp_path / "deep" / "found.json", lambda: {"made": next(counted)}) for _ in "ab"]
    assert kept == [{"made": 0}] * 2


def test_sides_take_turns_and_the_first_call_of_each_does_not_count() -> None:
    called, clock = [], iter(range(100))
    sides = [lambda: called.append("a"), lambda: called.append("b")]
    taken = script("_common").alternating(*sides, repeats=2, clock=lambda: next(clock))
    assert called == ["a", "b"] * 3 and taken == [(1, 1), (1, 1)]


def test_the_commands_of_the_gallery_are_ones() -> None:
    page = (BENCHMARKS.parent / "docs" / "gallery.md").read_text()
    commands = re.findall(r"`python (benchmarks/(\w+)\.py[^`]*)`", page)
    assert len(commands) > 8
    for command, name in commands:
        script("_common").parse(script(name).options(), shlex.split(command)[1:])


# Tables


def test_the_tables_of_the_pages_are_what_the_results_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert script("tables").main(["--check"]) == 0, capsys.readouterr().out


def test_a_table_has_a_writer_an_end_and_a_page() -> None:
    tables = script("tables")
    page = "<!-- table: claims scale -->\nstale\n<!-- end -->\n\n<!-- options: theirs -->\n\nas it is\n\n<!-- end -->\n"
    written = tables.render(page)
    assert "stale" not in written and "two processes over one" in written and "as it is" in written
    assert tables.render(written) == written
    assert "claims scale" not in tables.missing([written]) and "digits" in tables.missing([written])
    with pytest.raises(ValueError, match="nobody writes the table 'letters'"):
        tables.render("<!-- table: letters -->\n<!-- end -->")
    for broken in ("<!-- table: digits -->\n", "<!-- table: digits -->\n" + page):
        with pytest.raises(ValueError, match="have a name and an end"):
            tables.render(broken)
