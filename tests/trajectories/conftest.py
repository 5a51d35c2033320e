"""A set that is shared, places for it, and a cache of each test's own."""

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from far import DATASET, Hub
from stored import contents, make_shared


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("share") / "set"
    make_shared(folder, description={"name": "three blobs"})
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as serving:
        template = f"{serving.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", serving.url)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_ENDPOINT", serving.url)
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.released.set()
        serving.shutdown()
        thread.join()


@pytest.fixture(params=["memory", "file", "hub"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that does not exist yet."""
    if request.param == "hub":
        request.getfixturevalue("hub")
        return DATASET
    return f"memory://{uuid.uuid4().hex}/set" if request.param == "memory" else f"file://{tmp_path}/far/set"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSNO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def serving(hub: Hub, made: Path) -> Hub:
    """A Hub that has the set."""
    hub.files = contents(made)
    return hub
