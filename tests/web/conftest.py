"""What the page needs, and sites that are written once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

import planned
from dsno.web.runtime import MODULE, VERSION, find_runtime
from dsno.web.site import MANIFEST, write_site
from shell import dsno


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
