"""What goes wrong with a place is said in one way, whatever library said it."""

import contextlib
import errno
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import huggingface_hub.constants
import pytest

from dsno.trajectories.manifest import read_manifest
from dsno.trajectories.remote import Bytes, Remote
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectories.share import pull, push
from far import DATASET, Hub, far, spoil
from stored import contents


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (404, FileNotFoundError, "no complete trajectory set at hf://.*log in"),
        (403, PermissionError, "no permission for hf://.*hf auth login"),
        (401, PermissionError, "no permission for"),
        (503, ConnectionError, "cannot reach hf://.*check the network"),
    ],
)
def test_what_a_server_says(serving: Hub, tmp_path: Path, status: int, kind: type[Exception], message: str) -> None:
    serving.refuses = status
    for take in (TrajectorySet, lambda url: pull(url, tmp_path / "copy")):
        with pytest.raises(kind, match=message):
            take(DATASET)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", [DATASET])
def test_without_a_network(made: Path, url: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    before = contents(made)
    tries: list[Callable[[], object]] = [lambda: TrajectorySet(url), lambda: pull(url, tmp_path / "copy")]
    if url.startswith("hf"):
        tries.append(lambda: push(made, url))
    for attempt in tries:
        began = time.perf_counter()
        with pytest.raises(ConnectionError, match=f"cannot reach {url} .*check the network and try again"):
            attempt()
        assert time.perf_counter() - began < 5
    assert contents(made) == before
    assert not (tmp_path / "copy").exists()
    assert not cache.exists()


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("nowhere://set", ValueError, "nowhere://set cannot be reached: Protocol not known"),
        ("hf://org/name", ValueError, "not a dataset of the Hub: expected hf://datasets/org/name"),
        ("hf://datasets/name", ValueError, "expected hf://datasets/org/name"),
        ("memory://nothing", FileNotFoundError, "no complete trajectory set at memory://nothing"),
    ],
)
def test_urls_that_lead_nowhere(tmp_path: Path, url: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        pull(url, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_protocol_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.suppress(ImportError):
        import s3fs  # noqa: F401

        monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ImportError, match="s3://bucket/set cannot be reached: Install s3fs"):
        Remote("s3://bucket/set")


def test_a_manifest_that_was_edited(made: Path, url: str, tmp_path: Path) -> None:
    push(made, url)
    manifest = json.loads(far(url)["manifest.json"])
    fs, root = fsspec.url_to_fs(url, skip_instance_cache=True)
    for text, message in (
        (json.dumps({**manifest, "count": 40}), "was changed after it was written"),
        ("{", "is not valid JSON"),
        ("[]", "is not the manifest of a trajectory folder"),
        (json.dumps({**manifest, "format": 9}), "format: expected 1 or 2, found 9"),
    ):
        fs.pipe_file(f"{root}/manifest.json", text.encode())
        with pytest.raises(ValueError, match=message):
            TrajectorySet(url)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(errno.ENOSPC, "No space left"), OSError, r"the disk is full \(.*No space left\): make room and start"),
        (OSError(errno.EDQUOT, "quota"), OSError, "the disk is full"),
        (TimeoutError(), ConnectionError, r"cannot reach memory://set \(TimeoutError\): check the network"),
        (
            PermissionError("closed"),
            PermissionError,
            r"no permission for memory://set \(closed\): check your credentials",
        ),
        (
            FileNotFoundError("gone\nfor good"),
            FileNotFoundError,
            r"no complete trajectory set at memory://set \(gone\):",
        ),
    ],
)
def test_errors_are_translated(error: Exception, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as caught, Remote("memory://set/").reaching():
        raise error
    assert caught.value is not error and caught.value.__cause__ is error
    assert getattr(caught.value, "errno", None) == getattr(error, "errno", None)


@pytest.mark.parametrize("error", [FileExistsError("taken"), ValueError("bad"), KeyError("no"), OSError(5, "I/O")])
def test_errors_of_ours_are_left_alone(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, Remote("memory://set").reaching():
        raise error
    assert caught.value is error


def test_bytes_are_counted_up_to_the_whole() -> None:
    counts: list[tuple[int, int]] = []
    counted = Bytes(lambda *numbers: counts.append(numbers), 10, 30)
    counted.say()
    counted.relative_update(4)
    counted.relative_update(40)  # a file that is sent again after an error
    counted.finish(8)
    counted.finish(12)
    assert counts == [(10, 30), (14, 30), (30, 30), (18, 30), (30, 30)]
    Bytes(None, 0, 1).say()


@pytest.mark.parametrize("url", ["memory", "file"], indirect=True)
def test_what_is_larger_than_its_set_says_is_not_fetched(made: Path, url: str, tmp_path: Path) -> None:
    push(made, url)
    spoil(url, "shard-00001.safetensors", lambda data: data.extend(bytes(10**6)))
    fs, root = fsspec.url_to_fs(url, skip_instance_cache=True)
    for take in (lambda: TrajectorySet(url)[8], lambda: pull(url, tmp_path / "copy")):
        with pytest.raises(ValueError, match=r"shard-00001.safetensors has \d+ bytes or more, its set declares \d+"):
            take()
    fs.rm_file(f"{root}/shard-00001.safetensors")
    fs.makedirs(f"{root}/shard-00001.safetensors")
    with pytest.raises(ValueError, match=r"shard-00001.safetensors is a directory: expected a file"):
        pull(url, tmp_path / "copy")


def test_a_download_ends_where_it_is_told_of_more_than_was_declared(made: Path, tmp_path: Path) -> None:
    remote = Remote("memory://set")

    class Endless(type(remote.fs)):  # type: ignore[misc]
        """A server that does not say how large a file is, and never ends."""

        def info(self, path: str) -> dict[str, object]:
            return {"type": "file", "size": None}

        def get_file(self, source: str, target: str, callback: Bytes) -> None:
            with open(target, "wb") as file:
                while True:
                    callback.relative_update(file.write(bytes(1000)))

    remote.fs = Endless()
    with pytest.raises(ValueError, match=r"shard-00000.safetensors has \d+ bytes or more, its set declares \d+"):
        remote.fetch(read_manifest(made), 0, tmp_path, "temporary")
    assert not list(tmp_path.iterdir())
