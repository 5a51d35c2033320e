"""Every block of code in the README and the documentation runs, page by page, in a folder of its own.

What a page takes for granted, and what would take too long, is said beside the block, in a comment of the page:

| comment before a block | |
|---|---|
| `<!-- given: CODE -->` | runs first, in Python |
| `<!-- small: A => B; C => D -->` | replaces text of the block |
| `<!-- skip: REASON -->` | the block is not run |

Commands run in this process, and get the options of `TINY` where they have none of their own: those of the verb, or of
the verb with an option that makes another one of it.
"""

import os
import re
import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from dsno.data.load import load_data
from dsno.report import compare
from dsno.runs.features import train_features
from shell import dsno

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

BLOCK = re.compile(r"((?:^<!-- (?:given|small|skip):.*?-->\n+)*)^```(\w*)[^\n]*\n(.*?)^```$", re.M | re.S)
COMMENT = re.compile(r"<!-- (given|small|skip): ?(.*?)-->", re.S)

QUICK = "--batch 16 --train.steps 6 --train.warmup 0"
TINY = {
    "teach": f"--channels 8 16 {QUICK}",
    "check-teacher": "--rows 8 --levels 2 --patience 0",
    "plan": "--seconds 0.1",
    "generate": "--count 32 --steps 6 --targets x0 state --grid quadratic",
    "generate --input": "--count 32",
    "distill": QUICK,
    "sample": "--count 2 --overwrite",
    "sample --bridge": "--samples 2 --overwrite",
    "restore": "--steps 2",
    "evaluate": "--count 8 --overwrite",
    "evaluate --pairs": "--count 4 --samples 2 --calls 1 3 --sampler dbim2 --overwrite",
    "features": "--steps 2",
    "export": "--overwrite",
}


@dataclass(frozen=True)
class Block:
    """A block of code, with what its page says of it."""

    language: str
    code: str
    given: str
    skip: str


def blocks(page: Path) -> list[Block]:
    found = []
    for comments, language, code in BLOCK.findall(page.read_text()):
        said = COMMENT.findall(comments)
        for text in (text for kind, text in said if kind == "small"):
            for change in text.split(";"):
                old, new = (part.strip() for part in change.split("=>"))
                assert old in code, f"{page.name} has no {old!r} to make small"
                code = code.replace(old, new)
        given = "\n".join(text for kind, text in said if kind == "given")
        found.append(Block(language, code, given, " ".join(text.strip() for kind, text in said if kind == "skip")))
    return found


def commands(code: str) -> list[list[str]]:
    """The commands of a block, without what the shell takes for a comment."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line.removeprefix("$ "), comments=True))]


def run_command(words: list[str], here: Path) -> None:
    program, verb, *given = words
    assert program == "dsno", f"{shlex.join(words)}: only commands of dsno are run, say why to skip it"
    kind = next((kind for kind in (f"{verb} {option}" for option in given) if kind in TINY), verb)
    tiny = re.findall(r"--\S+(?: (?!--)\S+)*", TINY.get(kind, ""))
    more = [word for option in tiny if option.split()[0] not in given for word in option.split()]
    ran = dsno(verb, *given, *more, at=here)
    # An untrained teacher is none that `check-teacher` has a good word for.
    assert ran.code == 0 or (verb, ran.code) == ("check-teacher", 1), (words, ran.said)


RUN = {page: [b for b in blocks(page) if b.language in ("python", "py", "sh", "bash", "console")] for page in PAGES}


def test_a_block_is_found_whatever_is_around_it() -> None:
    assert sum(map(len, RUN.values())) >= 25
    for page in PAGES:
        # A plain fence is for what is no code, and none is hidden from this test by being one.
        plain = [
            b.code for b in blocks(page) if b.language == "" and re.search(r"^(\$ )?(dsno|python|pip) ", b.code, re.M)
        ]
        assert plain == [], f"{page.name}: say the language of this block"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if RUN[page]], ids=lambda p: str(p.relative_to(ROOT)))
def test_the_blocks_of_a_page_run_one_after_another(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = partial(compare.compare, ddim=(1, 2), multistep=(2,), fine_steps=16, repeats=0)
    monkeypatch.setattr("dsno.cli.evaluate.compare", quick)
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for n, block in enumerate(RUN[page]):
        if block.skip:
            continue
        exec(compile(block.given, f"{page.name}, what block {n} is given", "exec"), names)
        if block.language in ("python", "py"):
            exec(compile(block.code, f"{page.name}, block {n}", "exec"), names)
            continue
        for words in commands(block.code):
            run_command(words, Path(os.getcwd()))
            if words[1] == "teach":
                train_features(load_data("digits"), Path("runs/features"), steps=2, width=4)
                train_features(load_data("digits"), Path("runs/loss_features"), steps=2, width=4)
