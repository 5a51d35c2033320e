"""Noise in the browser is that of `dsno.seeds`: bit for bit in its integers, to the last bits in its normals.

`noise.json` holds what Python draws; the browser reads it, and Python what the browser draws.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import dsno.web
from dsno.report.pictures import slerp
from dsno.seeds import _philox, noise
from dsno.web.serve import served

VECTORS = json.loads((Path(__file__).parent / "noise.json").read_text())
SEEDS = [int(seed) for seed in VECTORS["seeds"]]
SIZE, STREAMS = VECTORS["size"], VECTORS["streams"]


def words(seeds: list[int], stream: int, blocks: int) -> list[list[list[int]]]:
    """The words of the first blocks of seeds, as `noise` draws them."""
    key = torch.tensor(seeds).reshape(-1, 1)
    block = torch.arange(blocks).expand(len(seeds), -1)
    zero = torch.zeros_like(block)
    drawn = _philox([block, zero, zero + stream, zero], (key & 0xFFFFFFFF, key >> 32))
    return torch.stack(drawn, -1).tolist()


@pytest.fixture(scope="module")
def page(browser: Any) -> Iterator[Any]:
    """A page that can import the modules of ours."""
    with served(Path(dsno.web.__file__).parent / "page") as url:
        opened = browser.new_page()
        opened.goto(f"{url}seeds.js")
        yield opened
        opened.close()


DRAWN = """async ([seeds, size, streams]) => {
    const {noise, philox} = await import("/seeds.js");
    const key = (seed) => [Number(BigInt(seed) & 0xffffffffn), Number(BigInt(seed) >> 32n)];
    const block = (seed, stream, n) => philox([n, 0, stream, 0], key(seed));
    const blocks = [...Array(Math.ceil(size / 4)).keys()];
    return {
        words: streams.map((stream) => seeds.map((seed) => blocks.map((n) => block(seed, stream, n)))),
        normals: streams.map((stream) => seeds.map((seed) => [...noise(BigInt(seed), size, stream)])),
    };
}"""


def test_python_draws_the_vectors() -> None:
    for n, stream in enumerate(STREAMS):
        assert words(SEEDS, stream, -(-SIZE // 4)) == VECTORS["words"][n]
        torch.testing.assert_close(
            noise(SEEDS, (SIZE,), stream), torch.tensor(VECTORS["normals"][n]), rtol=0, atol=1e-6
        )


@pytest.mark.browser
def test_the_browser_draws_the_vectors(page: Any) -> None:
    drawn = page.evaluate(DRAWN, [VECTORS["seeds"], SIZE, STREAMS])
    assert drawn["words"] == VECTORS["words"]
    torch.testing.assert_close(torch.tensor(drawn["normals"]), torch.tensor(VECTORS["normals"]), rtol=0, atol=1e-6)


@pytest.mark.browser
def test_python_draws_what_the_browser_draws_of_any_seed(page: Any) -> None:
    seeds = torch.randint(0, 2**63 - 1, (200,)).tolist()
    drawn = page.evaluate(DRAWN, [[str(seed) for seed in seeds], 13, [0, 3]])
    for n, stream in enumerate((0, 3)):
        assert drawn["words"][n] == words(seeds, stream, 4)
        found, expected = torch.tensor(drawn["normals"][n]), noise(seeds, (13,), stream)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.browser
def test_the_way_between_two_seeds_is_that_of_the_library(page: Any) -> None:
    way = """async ([a, b, n]) => {
        const {noise, slerp} = await import("/seeds.js");
        const [z0, z1] = [noise(BigInt(a), 64), noise(BigInt(b), 64)];
        return [...Array(n).keys()].map((i) => [...slerp(z0, z1, i / (n - 1))]);
    }"""
    z = noise([7, 8], (64,))
    for a, b in ((7, 8), (7, 7)):
        found = torch.tensor(page.evaluate(way, [str(a), str(b), 9]))
        torch.testing.assert_close(found, slerp(z[a - 7], z[b - 7], 9), rtol=0, atol=1e-6)


@pytest.mark.browser
@pytest.mark.parametrize(
    "text, seed",
    [
        ("7", "7"),
        (" 12 ", "12"),
        (str(2**63 - 1), str(2**63 - 1)),
        (str(2**63), None),
        ("-1", None),
        ("7.5", None),
        ("", None),
    ],
)
def test_a_seed_is_what_python_takes_for_one(text: str, seed: str | None, page: Any) -> None:
    read = '(text) => import("/seeds.js").then(({asSeed}) => asSeed(text)?.toString() ?? null)'
    assert page.evaluate(read, text) == seed
