"""`dsno doctor`: tables for people, JSON for reports, and a code for scripts."""

import json
from pathlib import Path

import pytest

from dsno.runs.doctor import Cache, Checkup, Device, Need
from shell import dsno

CORE, LACKS = Need("torch", ">=2.6", "2.7"), Need("onnx", ">=1.17", None, "is not installed")
CPU = Device(
    "cpu", "A processor", 8_000_000_000, "AVX2, 2 threads of 4 cores", "bf16 is no faster than fp32 on this CPU"
)
SHUT = Cache("temporary files", "/shut", "TMPDIR", 10**9, "/shut cannot be written to (No space left on device)")


def pretend(monkeypatch: pytest.MonkeyPatch, core: Need = CORE, **extras: tuple[Need, ...]) -> Checkup:
    found = Checkup("An OS", "3.11.0 (/usr/bin/python)", "0.1", (core,), extras, (CPU,), (SHUT,))
    monkeypatch.setattr("dsno.cli.doctor.checkup", lambda: found)
    return found


def test_what_was_found_is_told_with_the_command_that_mends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = pretend(monkeypatch, onnx=(LACKS,), all=(LACKS, CORE), report=())
    ran = dsno("doctor", at=tmp_path)
    words = " ".join(ran.out.split())
    assert ran.code == 0 and ran.err == "" and ran.following == ["demo"]
    for told in (
        "dsno 0.1 on Python 3.11.0 (/usr/bin/python) An OS",
        "torch core 2.7 >=2.6 ok",
        "onnx onnx - >=1.17 is not installed",
        "cpu A processor 8 GB AVX2, 2 threads of 4 cores bf16 is no faster than fp32",
        "TMPDIR 1 GB /shut cannot be written to (No space left on device)",
        "complete: core, report",
    ):
        assert told in words
    assert f"onnx lacks onnx:\n  {found.lacking()['onnx']}\n" in ran.out


@pytest.mark.parametrize("group", ["core", "report"])
def test_what_the_demo_needs_is_mended_next(group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = pretend(monkeypatch, core=LACKS) if group == "core" else pretend(monkeypatch, report=(LACKS,))
    ran = dsno("doctor", at=tmp_path)
    assert ran.code == (group == "core") and ran.out.endswith(f"next: {found.lacking()[group]}\n")


def test_a_report_of_a_fault_is_json_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = pretend(monkeypatch, onnx=(LACKS,))
    ran = dsno("doctor", "--json", at=tmp_path)
    assert ran.code == 0 and ran.err == "next: dsno demo\n"
    assert json.loads(ran.out) == json.loads(json.dumps(found.to_dict())) and json.loads(ran.out)["ok"]
