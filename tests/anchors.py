"""The sections of a page of the documentation, by the anchors that links name."""

import re
from functools import cache
from pathlib import Path

import pytest


@cache
def sections(page: Path) -> dict[str, str]:
    """The text below each heading of a page, its parts included, by the heading's anchor."""
    slugify = pytest.importorskip("markdown.extensions.toc").slugify
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    heads = [(len(m[1]), m[2], m.start()) for m in re.finditer(r"^(#+) (.+)$", text, re.M)]
    found = {}
    for n, (level, title, begin) in enumerate(heads):
        end = next((at for other, _, at in heads[n + 1 :] if other <= level), None)
        found[slugify(title, "-")] = text[begin:end]
    return found
