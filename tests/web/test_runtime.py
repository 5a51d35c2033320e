"""The runtime is that of one version, from a folder or fetched once, or it is refused."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from dsno.web import runtime
from dsno.web.runtime import SHA256, VERSION, find_runtime
from dsno.web.serve import served

CONTENT = {name: f"what {name} holds".encode() for name in SHA256}


@pytest.fixture(autouse=True)
def another_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A small runtime in place of the real one, and an empty cache."""
    monkeypatch.setattr(runtime, "SHA256", {name: hashlib.sha256(held).hexdigest() for name, held in CONTENT.items()})
    monkeypatch.setenv("DSNO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """A folder as the registry has it, with the package."""
    place = tmp_path / "registry" / "onnxruntime-web" / "-"
    place.mkdir(parents=True)
    with tarfile.open(place / f"onnxruntime-web-{VERSION}.tgz", "w:gz") as archive:
        for name, content in {**CONTENT, "ort.all.js": b"more"}.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return tmp_path / "registry"


def test_it_is_fetched_once(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(registry) as address:
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", address)
        found = find_runtime()
    held = tmp_path / "cache" / f"onnxruntime-web-{VERSION}"
    assert found == {name: held / name for name in CONTENT} and find_runtime() == found
    assert {name: path.read_bytes() for name, path in found.items()} == CONTENT
    assert sorted(path.name for path in held.iterdir()) == sorted(CONTENT)
    # What is damaged in the cache is fetched again.
    found[runtime.MODULE].write_bytes(b"cut")
    with pytest.raises(ConnectionError, match=r"cannot be fetched from http.*: give its files, runtime=DIR$"):
        find_runtime()


def test_another_version_is_refused_wherever_it_comes_from(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "SHA256", SHA256)
    (folder := tmp_path / "package" / "dist").mkdir(parents=True)
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{runtime.MODULE} is not that of onnxruntime-web {VERSION}"):
        find_runtime(folder)
    with served(registry) as address:
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", address)
        with pytest.raises(ValueError, match=rf"is not that of onnxruntime-web {VERSION} \(its SHA-256 differs\)"):
            find_runtime()


def test_a_folder_is_that_of_the_files_or_of_the_package(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"holds no {runtime.MODULE}: `npm pack onnxruntime-web@{VERSION}`"):
        find_runtime(tmp_path)
    (tmp_path / "dist").mkdir()
    for name, content in CONTENT.items():
        (tmp_path / "dist" / name).write_bytes(content)
    assert find_runtime(tmp_path) == find_runtime(tmp_path / "dist") == {n: tmp_path / "dist" / n for n in CONTENT}


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08"])
def test_a_registry_that_says_something_else_is_one_line(
    content: bytes, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next(registry.rglob("*.tgz")).write_bytes(content)
    with served(registry) as address:
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", address)
        with pytest.raises(ConnectionError, match=r"^onnxruntime-web cannot be fetched from .*runtime=DIR$"):
            find_runtime()
