"""A page in a real browser, as its tests look at it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dsno.data.samples import to_uint8


class Opened:
    """A page, what it said on its console, and whom it asked."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.said: list[str] = []
        self.asked: set[str] = set()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.add(request.url))
        # A module that is opened as a page names no picture of itself.
        self.page.route("**/favicon.ico", lambda route: route.fulfill(status=204))
        self.page.goto(address)

    def loaded(self) -> Opened:
        """Once student, teacher and wall are drawn."""
        for part in ("student", "teacher", "wall"):
            self.text(f"{part}-time", r"\d")
        return self

    def sees(self, view: str) -> None:
        """Go to a view by its link."""
        self.page.evaluate(f"location.hash = '{view}'")

    def text(self, name: str, pattern: str) -> str:
        """The text of an element, once it matches."""
        self.page.locator(f"#{name}").filter(has_text=re.compile(pattern)).wait_for(timeout=30_000)
        return self.page.locator(f"#{name}").text_content()

    def pixels(self, name: str) -> Tensor:
        """The grey levels of a canvas."""
        read = f"""() => {{
            const shown = document.getElementById("{name}");
            const copy = new OffscreenCanvas(shown.width, shown.height).getContext("2d");
            copy.drawImage(shown, 0, 0);
            const {{data}} = copy.getImageData(0, 0, shown.width, shown.height);
            return [shown.height, shown.width, [...data].filter((_, i) => i % 4 === 0)];
        }}"""
        height, width, levels = self.page.evaluate(read)
        return torch.tensor(levels).reshape(height, width)


@contextmanager
def opened(browser: Any, address: str) -> Iterator[Opened]:
    """A page that says nothing on its console and asks no other host."""
    made = Opened(browser, address)
    try:
        yield made
        assert made.said == []
        own = re.match(r"http://[\d.:]+/", address)
        assert own and [other for other in made.asked if not other.startswith((own[0], "data:", "blob:"))] == []
    finally:
        made.page.close()


def levels(x: Tensor) -> Tensor:
    return to_uint8(x)[0].to(torch.int64)


def same(found: Tensor, expected: Tensor) -> None:
    """Equal but for a level where a number lies between two."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1)
