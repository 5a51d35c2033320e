"""What the pages say of the code is what the code says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from anchors import sections
from dsno.cli.methods import options_table

ROOT = Path(__file__).parents[1]


def test_the_table_of_options_is_what_the_methods_declare() -> None:
    page = (ROOT / "docs/methods.md").read_text()
    held = page.split("<!-- options: dsno methods --markdown -->\n\n")[1].split("\n\n<!-- end -->")[0]
    assert held == options_table(), "write it again: dsno methods --markdown"


def hook_named(name: str) -> ModuleType:
    """A hook of MkDocs."""
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location(f"{name}_hook", ROOT / ".ci" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def hook() -> ModuleType:
    """What puts MathJax into the site."""
    return hook_named("mathjax")


def test_the_site_has_a_sampler_where_its_runtime_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hook, config = hook_named("sampler"), SimpleNamespace(site_dir=str(tmp_path))
    written: list[Path] = []
    with monkeypatch.context() as patch:
        patch.setattr(hook, "write_site", lambda folder, *_, **__: written.append(folder))
        hook.on_post_build(config)
    assert written == [tmp_path / "sampler"]
    assert 'src="sampler/index.html"' in (ROOT / "docs/web.md").read_text()
    monkeypatch.setenv("DSNO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
    with caplog.at_level("INFO"):
        hook.on_post_build(config)
    assert "the documentation has no sampler in it: onnxruntime-web cannot be fetched" in caplog.text
    assert not (tmp_path / "sampler").exists()


def test_formulas_are_set_by_a_script_of_the_site(hook: ModuleType) -> None:
    pytest.importorskip("mathjax")
    from mkdocs.structure.files import Files

    plugins = SimpleNamespace(_current_plugin="mathjax")
    config = SimpleNamespace(site_dir="site", use_directory_urls=False, plugins=plugins)
    added = {file.src_uri: file.abs_src_path for file in hook.on_files(Files([]), config)}
    page = (ROOT / "mkdocs.yml").read_text()
    assert "javascripts/mathjax/tex-svg.js" in added and "  - javascripts/mathjax/tex-svg.js\n" in page
    assert "javascripts/mathjax/LICENSE" in added and "javascripts/mathjax/input/tex/extensions/ams.js" in added
    assert all(Path(path).is_file() for path in added.values())


@pytest.mark.parametrize(
    "html, refused",
    [
        ('<script src="../a.js"></script><a href="https://arxiv.org">x</a>', None),
        ('<link rel="canonical" href="https://dsno.org/">', None),
        ('<script src="https://cdn.org/a.js"></script>', "https://cdn.org/a.js"),
        ("<link rel=stylesheet href=//cdn.org/a.css>", "//cdn.org/a.css"),
        ('<img alt="x" src="http://cdn.org/a.png">', "http://cdn.org/a.png"),
    ],
)
def test_a_page_loads_nothing_from_elsewhere(html: str, refused: str | None, hook: ModuleType) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    if refused is None:
        assert hook.on_post_page(html, page, None) == html
        return
    with pytest.raises(hook.PluginError, match=f"index.md loads {refused}: put it into the site"):
        hook.on_post_page(html, page, None)


def test_every_picture_is_on_a_page_and_every_page_has_its_pictures() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    links = [(p.parent, link) for p in pages for link in re.findall(r"\]\(([^)\s]+\.(?:png|gif))\)", p.read_text())]
    shown = {(folder / link).resolve() for folder, link in links}
    assert shown == {path.resolve() for path in (ROOT / "docs" / "images").iterdir()}


def test_the_gallery_says_how_each_picture_is_made() -> None:
    page = (ROOT / "docs" / "gallery.md").read_text()
    # Each section's pictures have a command below them.
    for section in re.split(r"^## ", page, flags=re.M)[1:]:
        assert section.rindex("`python ") > section.rindex("!["), section.splitlines()[0]


NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?")


def quoted_wrong(page: Path, text: str) -> list[str]:
    """What is wrong with a decision table's last column: a link that leads to no section, a row without one, and
    numbers that are in no section that the row links to."""
    wrong = []
    for row in re.findall(r"^\|(.+)\|$", text, re.M):
        cell = row.split("|")[-1].strip()
        if set(cell) <= {"-", ":"} or cell == "worth":
            continue
        seen = set[str]()
        links = re.findall(r"\]\(([^)#]*)#([^)]+)\)", cell)
        for name, anchor in links:
            there = sections(page.parent / name if name else page)
            if anchor not in there:
                wrong.append(f"{name}#{anchor} is not there")
            seen |= set(NUMBER.findall(there.get(anchor, "")))
        said = re.sub(r"\]\([^)]*\)|`[^`]*`", "", cell)
        wrong += [f"{cell}: no link to a section"] * (not links)
        wrong += [f"{number} in {cell!r} is not in what it links to" for number in set(NUMBER.findall(said)) - seen]
    return wrong


def test_every_line_of_the_choice_says_where_it_was_measured() -> None:
    page = ROOT / "docs" / "how-to-choose.md"
    text = page.read_text().split("## Which solver?")[0]
    assert text.count("| worth |") >= 7 and len(re.findall(r"^\|", text, re.M)) >= 50
    assert quoted_wrong(page, text) == []


def test_a_line_of_the_choice_that_is_out_of_date_is_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# B\n\n## Row: `b.py`\n\n| a | 1.25 |\n\n### In it\n\n16 steps\n\n## Other\n\n9\n")
    lines = "| have | worth |\n|---|---|\n| x | 1.25 in 16 ([b](b.md#row-bpy)) |\n"
    assert quoted_wrong(tmp_path / "a.md", lines) == []
    for old, new, said in (("1.25", "1.2", "1.2 in "), ("16", "9", "9 in "), ("-bpy", "", "b.md#row is not there")):
        assert said in quoted_wrong(tmp_path / "a.md", lines.replace(old, new))[0]
    assert "no link" in quoted_wrong(tmp_path / "a.md", lines.replace("([b](b.md#row-bpy))", ""))[0]


def test_the_readme_opens_with_a_picture_that_moves() -> None:
    head = (ROOT / "README.md").read_text().split("## ")[0]
    (name,) = re.findall(r"!\[[^]]*\]\((\S+)\)", head)
    with Image.open(ROOT / name) as picture:
        assert picture.n_frames > 30 and (ROOT / name).stat().st_size < 1_000_000
