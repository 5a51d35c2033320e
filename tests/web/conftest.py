"""A real browser, for the tests that are marked `browser`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import planned
from dsno.web.runtime import MODULE, VERSION, find_runtime
from dsno.web.site import MANIFEST, write_site
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


def once(name: str, tmp_path_factory: pytest.TempPathFactory, write: Callable[[Path], object]) -> Path:
    """A site that is written once, however many processes test."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
    with FileLock(f"{folder}.lock"):
        if not (folder / MANIFEST).exists():
            write(folder)
    return folder


@pytest.fixture(scope="session")
def site(runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the shipped student, as the verb writes it."""

    def write(folder: Path) -> None:
        ran = dsno("web", "--out", folder.name, "--runtime", runtime, at=folder.parent)
        assert (ran.code, ran.err) == (0, "") and ran.out.endswith(f"next: dsno web --out {folder.name} --open\n")

    return once("site", tmp_path_factory, write)


@pytest.fixture(scope="session")
def told(runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of `planned.told`, which is told a class and a guidance weight, and makes one to four passes."""

    def write(folder: Path) -> None:
        write_site(folder, *planned.told(), "Tiny", weights=(0.0, 3.0), runtime=runtime)

    return once("told", tmp_path_factory, write)
