"""A real browser, for the tests that are marked `browser`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
INSTALL = "pip install 'dsno[browser]', and apt-get install chromium, or playwright install chromium"


def _chromium(own: str) -> str:
    """The browser to drive: the one that `DSNO_BROWSER` names, one that is installed, or playwright's own."""
    named = os.environ.get("DSNO_BROWSER")
    found = [named] if named else [*map(shutil.which, NAMES), own if Path(own).is_file() else None]
    return next((path for path in found if path), "")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason=f"needs playwright: {INSTALL}")
    with playwright.sync_playwright() as driver:
        if not (path := _chromium(driver.chromium.executable_path)):
            pytest.skip(f"needs Chromium: {INSTALL}")
        launched = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()
