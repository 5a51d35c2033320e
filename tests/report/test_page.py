"""A page is one file with everything in it, and says what its numbers mean."""

import base64
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsno.measure.results import Result
from dsno.measure.table import COPYING
from dsno.report.page import Picture, Section, html_report
from dsno.report.pictures import image_grid, quality_against_cost
from pages import Page
from pretend import result


@pytest.fixture
def results() -> list[Result]:
    curves = [result(f"{f}-{n}", n, 5 / n, 0.5 / n) for f in ("DDIM", "UniPC") for n in (2, 4, 8)]
    return [result("DSNO", 1, 2.0), *curves, result("fine", 0, 0.3, None)]


def test_report_is_one_file_with_everything_in_it(results: list[Result], tmp_path: Path) -> None:
    grid = image_grid(torch.rand(4, 1, 8, 8))
    light, dark = (quality_against_cost(results, dark=dark) for dark in (False, True))
    path = html_report(
        tmp_path / "deep" / "report.html",
        "Digits <1>",
        [
            Section("Samples", "One & two.\n\nThree.", [Picture(grid, "A <grid>")]),
            Section("Numbers", pictures=[Picture(light, "Plot", dark)], results=results),
        ],
        "A summary.",
    )
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert [load.partition(",")[0] for load in page.loads] == ["data:image/png;base64"] * 3
    assert {base64.b64decode(load.partition(",")[2]) for load in page.loads} == {grid, light, dark}
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)
    assert "prefers-color-scheme: dark" in text and 'width="100"' in text
    words = " ".join(page.words)
    for expected in ("Digits <1>", "A summary.", "One & two.", "Three.", "A <grid>", "DSNO", "UniPC-8", "tiny_cnn"):
        assert expected in words
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def cells(text: str, css: str) -> list[str]:
    return re.findall(rf"<td class={css}>([^<]*)</td>", text)


def test_report_highlights_the_best_on_one_scale_only(results: list[Result], tmp_path: Path) -> None:
    text = html_report(tmp_path / "a.html", "x", [Section("x", results=results)]).read_text()
    assert "0.625" in cells(text, "best") and "0.0625" in cells(text, "best")
    assert "<td>DDIM-8 *</td>" in text and "<th>Fréchet<small>distance ↓</small></th>" in text
    assert "as near: DDIM after 4 and UniPC after 4; the nearest (*): DDIM-8" in text and "no bias: of equal" in text
    mixed = [*results[:-1], result("other", 3, 0.01, reference_sha="b" * 64)]
    text = html_report(tmp_path / "b.html", "x", [Section("x", results=mixed)]).read_text()
    assert cells(text, "best") == []
    assert "<th>reference sha</th>" not in text  # the others have none to differ from


def test_report_says_who_copies_where_something_was_held_out(results: list[Result], tmp_path: Path) -> None:
    student = result("DSNO", 1, 2.0, held_out_count=40)
    copier = replace(student, held_out=replace(student.held_out, copying=0.04))
    text = html_report(tmp_path / "a.html", "x", [Section("x", results=[copier, *results])]).read_text()
    words = " ".join(Page(text).words)
    assert "DSNO copies the training data: copying is 0.040" in words and COPYING in words
    assert "<th>copying<small>new data: 1</small></th>" in text and "<td>0.040</td>" in text
    text = html_report(tmp_path / "b.html", "x", [Section("x", results=[student, *results])]).read_text()
    assert "copies the training data" not in text and "Copying is the median" in text
    text = html_report(tmp_path / "c.html", "x", [Section("x", results=results)]).read_text()
    assert "Copying is the median" not in text


def test_report_shows_what_protocols_share_once_and_what_differs_per_name(tmp_path: Path) -> None:
    pair = [result("a", 1, 1.0, batch=8, device="one"), result("b", 2, 1.0, batch=8, device="two")]
    text = html_report(tmp_path / "x.html", "x", [Section("x", results=pair)]).read_text()
    assert text.count("<dt>batch</dt>") == 1 and "<dt>device</dt>" not in text
    assert "<th>device</th>" in text and 'title="one"' in text and 'title="two"' in text


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = html_report(tmp_path / "x.html", "old", [])
    monkeypatch.setattr(Path, "write_text", lambda *args, **rest: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        html_report(path, "new", [])
    assert "old" in path.read_text() and [p.name for p in tmp_path.iterdir()] == ["x.html"]


def test_a_narrow_screen_scrolls_tables_and_pictures_alone(tmp_path: Path) -> None:
    page = html_report(tmp_path / "a.html", "t", [Section("s", results=[result("DSNO", 1, 2.0)])]).read_text()
    style = page.split("<style>")[1].split("</style>")[0]
    assert "@media (max-width: 40rem)" in style and style.count("{") == style.count("}")
    assert re.search(r"\.wide \{ overflow-x: auto \}", style) and re.search(r"figure \{[^}]*overflow-x: auto", style)
