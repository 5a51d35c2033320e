"""Every number in the pages comes from a file of results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dsno.cli.methods import options_table

ROOT = Path(__file__).parents[1]


def test_tables_of_the_pages_are_what_the_results_say() -> None:
    done = subprocess.run([sys.executable, ROOT / "benchmarks/tables.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/results").glob("*.json")), ids=lambda p: p.stem)
def test_results_carry_versions_machine_protocol_and_honest_claims(path: Path) -> None:
    record = json.loads(path.read_text())
    assert {"versions", "machine", "protocol", "claims"} <= set(record)
    for claim in record["claims"]:
        held = claim["value"] <= claim["bound"] if claim["direction"] == "<=" else claim["value"] >= claim["bound"]
        assert claim["holds"] == held, claim["name"]
        assert claim["direction"] in ("<=", ">=")


def test_the_table_of_options_is_what_the_methods_declare() -> None:
    page = (ROOT / "docs/methods.md").read_text()
    held = page.split("<!-- options: dsno methods --markdown -->\n\n")[1].split("\n\n<!-- end -->")[0]
    assert held == options_table(), "write it again: dsno methods --markdown"
