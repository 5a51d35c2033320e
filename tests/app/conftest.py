"""Pipelines of diffusers on the disk, made once for all who read them."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of real pipelines, by name."""
    from pipelines import write_pipelines

    return write_pipelines(tmp_path_factory.mktemp("pipelines"))
