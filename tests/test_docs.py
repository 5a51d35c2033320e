"""What the pages say of the code is what the code says."""

from __future__ import annotations

from pathlib import Path

from dsno.cli.methods import options_table

ROOT = Path(__file__).parents[1]


def test_the_table_of_options_is_what_the_methods_declare() -> None:
    page = (ROOT / "docs/methods.md").read_text()
    held = page.split("<!-- options: dsno methods --markdown -->\n\n")[1].split("\n\n<!-- end -->")[0]
    assert held == options_table(), "write it again: dsno methods --markdown"
