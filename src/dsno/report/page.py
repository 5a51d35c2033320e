"""A report as one page of HTML, pictures included.

It loads nothing from anywhere: styles and pictures are inside the file, so it can be mailed, archived and opened
without a network. It follows the reader's theme, light or dark, and on narrow screens tables and pictures scroll by
themselves. All text is escaped: names and captions are data.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dsno.checkpoint import write_atomically
from dsno.measure.results import Result
from dsno.measure.table import BIAS, COLUMNS, COPYING, UNBIASED, best, copied, nearest, reading, table

__all__ = ["Picture", "Section", "html_report", "is_report"]


@dataclass(frozen=True)
class Picture:
    """A PNG for a report.

    Attributes:
        png: Its bytes, shown at half their size in pixels.
        caption: What is seen, in a sentence or two.
        dark: The version for dark pages, where there is one.
    """

    png: bytes
    caption: str = ""
    dark: bytes | None = None


@dataclass(frozen=True)
class Section:
    """A part of a report: title, text (paragraphs separated by a blank line), pictures, and results as a table."""

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    results: Sequence[Result] = ()


def html_report(path: Path | str, title: str, sections: Sequence[Section], summary: str = "") -> Path:
    """Write one HTML file that needs nothing else, atomically; its folder is made where missing.

    In a table of results the best of each column are set in bold where all were measured on one scale
    (`dsno.measure.table.best`), and the row nearest to the data is marked; below it stands what it says of its first
    row and what its distances are worth, and the protocol folds out. Where something was held out, it says who copies.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "\n".join(_section(section) for section in sections)
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{html.escape(title)}</title>\n'
        f"<style>{_CSS}</style>\n</head>\n<body>\n<main>\n<header>\n<h1>{html.escape(title)}</h1>\n"
        f"{_paragraphs(summary)}\n</header>\n{body}\n</main>\n</body>\n</html>\n"
    )
    write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def is_report(path: Path) -> bool:
    """Whether a file is what `html_report` wrote."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return _CSS[:100] in file.read(8192)


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>", _paragraphs(section.text)]
    if section.pictures:
        parts.append(f"<div class=row>{''.join(_img(picture) for picture in section.pictures)}</div>")
    if section.results:
        known = any(result.quality is not None for result in section.results)
        held_out = any(result.protocol.held_out_count for result in section.results)
        said = [copied(section.results), reading(section.results), BIAS, UNBIASED, COPYING * held_out] if known else []
        parts += [_table(section.results), _paragraphs("\n\n".join(said)), _protocols(section.results)]
    return "<section>\n" + "\n".join(part for part in parts if part) + "\n</section>"


def _paragraphs(text: str) -> str:
    return "\n".join(f"<p>{html.escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def _img(picture: Picture) -> str:
    # A PNG's width stands in bytes 16 to 19 of its header.
    width = int.from_bytes(picture.png[16:20], "big") // 2
    img = f'<img src="{_data(picture.png)}" width="{width}" alt="{html.escape(picture.caption or "picture")}">'
    if picture.dark is not None:
        source = f'<source media="(prefers-color-scheme: dark)" srcset="{_data(picture.dark)}">'
        img = f"<picture>{source}{img}</picture>"
    caption = f"<figcaption>{html.escape(picture.caption)}</figcaption>" if picture.caption else ""
    return f"<figure>{img}{caption}</figure>"


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _table(results: Sequence[Result]) -> str:
    rows, winners, top = table(results), best(results), nearest(results)
    scales = {column.title: f"<small>{html.escape(column.scale)}</small>" for column in COLUMNS}
    head = "".join(f"<th>{html.escape(key)}{scales.get(key, '')}</th>" for key in rows[0])
    lines = []
    for row in rows:
        mark = " *" * (top is not None and row["name"] == top.name)
        cells = (
            f"<td{' class=best' if row['name'] in winners.get(key, ()) else ''}>{html.escape(value)}</td>"
            for key, value in (row | {"name": row["name"] + mark}).items()
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<div class=wide><table>\n<tr>{head}</tr>\n" + "\n".join(lines) + "\n</table></div>"


def _protocols(results: Sequence[Result]) -> str:
    """What all results share as a list, what differs as a table; a field that does not apply does not differ."""
    protocols = {r.name: {k: str(v) for k, v in asdict(r.protocol).items() if v not in ("", 0)} for r in results}
    values: dict[str, list[str]] = {}
    for protocol in protocols.values():
        for key, value in protocol.items():
            values.setdefault(key, []).append(value)
    differing = [key for key, found in values.items() if len(set(found)) > 1]
    terms = (f"<dt>{_words(k)}</dt><dd>{_value(found[0])}</dd>" for k, found in values.items() if k not in differing)
    parts = [f"<dl>{''.join(terms)}</dl>"]
    if differing:
        head = "<th>name</th>" + "".join(f"<th>{_words(key)}</th>" for key in differing)
        rows = (
            f"<tr><td>{html.escape(name)}</td>"
            + "".join(f"<td>{_value(protocol.get(key, '-'))}</td>" for key in differing)
            + "</tr>"
            for name, protocol in protocols.items()
        )
        parts.append(f"<div class=wide><table><tr>{head}</tr>{''.join(rows)}</table></div>")
    return f"<details><summary>Protocol</summary>{''.join(parts)}</details>"


def _words(key: str) -> str:
    return html.escape(key.replace("_", " "))


def _value(value: str) -> str:
    short = f"{value[:12]}…" if len(value) == 64 else value
    return f'<span title="{html.escape(value)}">{html.escape(short)}</span>'


_CSS = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2024; --soft: #60646c; --rule: #e0e1e6; --mark: #fdeee7;
  --accent: #c2410c }
@media (prefers-color-scheme: dark) { :root { --paper: #18191b; --ink: #edeef0; --soft: #a5aab2; --rule: #34373c;
  --mark: #3a2318; --accent: #ff9466 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
main { max-width: 66rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem }
header { margin-bottom: 3rem }
h1 { font-size: 2.1rem; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 .75rem; text-wrap: balance }
h2 { font-size: 1.25rem; letter-spacing: -0.01em; margin: 0 0 .5rem }
p { max-width: 44rem; margin: .5rem 0 1rem; color: var(--soft) }
header p { font-size: 1.1rem }
section { padding: 2rem 0; border-top: 1px solid var(--rule) }
figure { margin: 1.25rem 0 0; min-width: 0; max-width: 100%; overflow-x: auto }
.row { display: flex; flex-wrap: wrap; column-gap: 3rem }
img { display: block; max-width: max(100%, 32rem); height: auto }
figcaption { margin-top: .75rem; font-size: .875rem; color: var(--soft); max-width: 44rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .8125rem; font-variant-numeric: tabular-nums; margin: .75rem 0;
  width: 100% }
th, td { padding: .4rem .5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule) }
th { font-weight: 500; color: var(--soft); vertical-align: bottom }
th small { display: block }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
td:first-child { font-weight: 500 }
.best { font-weight: 650; color: var(--accent); background: var(--mark) }
details { margin-top: 1rem; font-size: .875rem }
summary { cursor: pointer; color: var(--soft) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.5rem; margin: 1rem 0 }
dt { color: var(--soft) }
dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
@media (max-width: 40rem) {
  main { padding: 1.5rem 1rem 3rem }
  header { margin-bottom: 1.5rem }
  h1 { font-size: 1.5rem }
  dl { grid-template-columns: 1fr; gap: 0 }
  dd { margin-bottom: .5rem }
  td:first-child, th:first-child { position: sticky; left: 0; background: var(--paper) }
}
@media print { details > * { display: block } .wide, figure { overflow: visible } }
"""
