"""A real browser, for the tests that are marked `browser`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from dsno.web.runtime import MODULE, VERSION, find_runtime
from dsno.web.site import MANIFEST
from shell import dsno

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


@pytest.fixture(scope="session")
def runtime() -> Path:
    """The folder of onnxruntime-web's files."""
    try:
        return find_runtime()[MODULE].parent
    except ConnectionError as error:
        pytest.skip(f"{error}: DSNO_CACHE names a folder that has them, in onnxruntime-web-{VERSION}")


@pytest.fixture(scope="session")
def site(runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the shipped student, as the verb writes it: once, however many processes test."""
    root = tmp_path_factory.getbasetemp()
    shared = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with FileLock(shared / "site.lock"):
        if not (shared / "site" / MANIFEST).exists():
            ran = dsno("web", "--out", "site", "--runtime", runtime, at=shared)
            assert (ran.code, ran.err) == (0, "") and ran.out.endswith("next: dsno web --out site --open\n")
    return shared / "site"
