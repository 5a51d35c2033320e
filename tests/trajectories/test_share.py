"""Trajectory sets elsewhere: pushed, pulled and streamed whole, whatever happens on the way."""

import base64
import contextlib
import errno
import functools
import http.server
import itertools
import json
import multiprocessing
import os
import pickle  # noqa: TID251 - what multiprocessing does with a data set
import shutil
import sys
import threading
import time
import urllib.parse
import uuid
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import dsno
from dsno.distillation.regression import TrajectoryDistillation
from dsno.grids import uniform
from dsno.schedule import Cosine
from dsno.solvers.first_order import DDIM
from dsno.solvers.run import SolverSampler
from dsno.teachers.closed import GaussianMixture
from dsno.train import TrainConfig, train
from dsno.trajectories import share
from dsno.trajectories.format import shard_size
from dsno.trajectories.generate import generate
from dsno.trajectories.manifest import read_manifest
from dsno.trajectories.order import batches
from dsno.trajectories.remote import Remote
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectories.share import pull, push

SHAPE = (1, 4, 4)
KEEP = torch.tensor([1.0, 0.5, 0.0])


def told(seeds: Tensor) -> dict[str, Tensor]:
    return {"label": seeds % 3, "weight": seeds.float() / 2}


def make(folder: Path, count: int = 44, **options: Any) -> TrajectorySet:
    """Six shards of 8 rows, the last of 4."""
    means = torch.linspace(-1, 1, 3 * 16).reshape(3, *SHAPE)
    mixture = GaussianMixture(Cosine(), means, 0.3, labels=[0, 1, 2])
    sampler = SolverSampler(mixture, Cosine(), uniform(4), DDIM(), KEEP)
    return generate(sampler, SHAPE, folder, count, **{"shard": 8, "batch": 8, "label": told, **options})


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("share") / "set"
    make(folder, teacher={"name": "three blobs"})
    return folder


class Hub(http.server.ThreadingHTTPServer):
    """Speaks as much of the Hub's language as one dataset, `org/name`, needs; can hang, hang up and refuse."""

    daemon_threads = True

    def __init__(self) -> None:
        self.files: dict[str, bytes] | None = None  # until the repository is made
        self.commits: list[tuple[str, list[str]]] = []
        self.asked: list[str] = []
        self.private: Any = None
        self.hangs, self.refuses = "", 0
        self.hanging, self.released = threading.Event(), threading.Event()
        super().__init__(("127.0.0.1", 0), Language)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Language(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, files = urllib.parse.unquote(self.path.split("?")[0]), self.server.files
        if self.server.refuses:
            self.answer(b"{}", self.server.refuses)
        elif files is None:
            self.answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/datasets/org/name/tree/"):
            self.answer(self.tree(files, path.removeprefix("/api/datasets/org/name/tree/main").strip("/")))
        elif path.startswith("/api/datasets/org/name"):
            self.answer({"id": "org/name", "sha": "0" * 40, "private": False, "tags": [], "downloads": 0, "likes": 0})
        elif (name := path.removeprefix("/datasets/org/name/resolve/main/")) in files:
            self.send(name, files[name])
        else:
            self.answer(b"{}", 404, {"X-Error-Code": "EntryNotFound"})

    def tree(self, files: dict[str, bytes], folder: str) -> list[dict[str, Any]]:
        inside = {k: v for k, v in files.items() if k.rpartition("/")[0] == folder}
        return [{"type": "file", "path": k, "size": len(v), "oid": "0"} for k, v in inside.items()]

    def send(self, name: str, data: bytes) -> None:
        self.server.asked.append(name)
        span = self.headers.get("Range")
        first, _, last = (span or "bytes=0-").removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else None]
        where = {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"} if span else {}
        if name != self.server.hangs:
            self.answer(part, 206 if span else 200, where)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        self.server.hanging.set()
        self.server.released.wait(30)
        self.server.hangs, self.close_connection = "", True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.refuses:
            self.answer(b"{}", self.server.refuses)
        elif self.path == "/api/repos/create":
            if self.server.files is None:
                self.server.files, self.server.private = (
                    {".gitattributes": b""},
                    "private" in json.loads(body).values() or json.loads(body).get("private"),
                )
            self.answer({"url": f"{self.server.url}/datasets/org/name"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            wanted = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in wanted]})
        else:
            self.commit([json.loads(line) for line in body.splitlines()])

    def commit(self, lines: list[dict[str, Any]]) -> None:
        assert self.server.files is not None
        for line in lines[1:]:
            if line["key"] == "file":
                self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            else:
                del self.server.files[line["value"]["path"]]
        self.server.commits.append((lines[0]["value"]["summary"], [line["value"]["path"] for line in lines[1:]]))
        self.answer({"commitUrl": f"{self.server.url}/datasets/org/name/commit/{'0' * 40}", "commitOid": "0" * 40})

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in ((headers or {}) | {"Content-Length": str(len(data)), "X-Repo-Commit": "0" * 40}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None: ...


DATASET = "hf://datasets/org/name"


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


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.name.endswith(".lock")}


def far(url: str) -> dict[str, bytes]:
    fs, root = fsspec.url_to_fs(url, skip_instance_cache=True)
    found = {p.rsplit("/", 1)[-1]: fs.cat_file(p) for p in sorted(fs.find(root))}
    return {name: data for name, data in found.items() if not name.startswith(".")}


def spoil(url: str, name: str, change: Callable[[bytearray], object]) -> None:
    fs, root = fsspec.url_to_fs(url, skip_instance_cache=True)
    data = bytearray(fs.cat_file(f"{root}/{name}"))
    change(data)
    fs.pipe_file(f"{root}/{name}", bytes(data))


def flip(data: bytearray) -> None:
    data[-7] ^= 1


def cut(data: bytearray) -> None:
    del data[-9:]


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    if a.keys() != b.keys():
        return False
    return all(equal(x, b[k]) if isinstance(x, dict) else torch.equal(x, b[k]) for k, x in a.items())


# Push and pull


def test_what_is_pulled_is_what_was_pushed(made: Path, url: str, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    assert push(made, url, progress=lambda *numbers: told.append(numbers)) == url
    size = sum(p.stat().st_size for p in made.glob("shard-*"))
    assert told[0] == (0, size)
    assert told[-1] == (size, size)
    assert told == sorted(told)
    there = far(url)
    assert {k: v for k, v in there.items() if k != "README.md"} == contents(made)
    told.clear()
    assert pull(url, tmp_path / "copy", progress=lambda *numbers: told.append(numbers)) == tmp_path / "copy"
    assert contents(tmp_path / "copy") == contents(made)
    assert (told[0], told[-1]) == ((0, size), (size, size))
    assert told == sorted(told)
    assert len(TrajectorySet(tmp_path / "copy", verify=True)) == 44
    # Again, nothing moves.
    for again in (functools.partial(push, made, url), functools.partial(pull, url, tmp_path / "copy")):
        told.clear()
        again(progress=lambda *numbers: told.append(numbers))
        assert set(told) == {(size, size)}
    assert far(url) == there


class Lost(Exception):
    """The end of a push."""


def test_a_push_that_was_cut_off(made: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "COMMIT_FILES", 2)
    size = sum(p.stat().st_size for p in made.glob("shard-*"))

    def dies(done: int, total: int) -> None:
        if done > total / 2:
            raise Lost

    with pytest.raises(Lost):
        push(made, url, progress=dies)
    assert 2 <= sum(name.startswith("shard-") for name in far(url)) < 6
    assert "manifest.json" not in far(url)
    for take in (TrajectorySet, lambda url: pull(url, tmp_path / "copy")):
        with pytest.raises(FileNotFoundError, match=f"no complete trajectory set at {url}.*that its push was finished"):
            take(url)
    assert not (tmp_path / "copy").exists()
    told: list[int] = []
    push(made, url, progress=lambda done, total: told.append(done))
    assert 0 < told[0] < size
    assert contents(pull(url, tmp_path / "copy")) == contents(made)


@pytest.mark.parametrize("damage", [flip, cut])
def test_damage_far_away_is_named_and_mended(made: Path, url: str, tmp_path: Path, damage: Any) -> None:
    push(made, url)
    spoil(url, "shard-00002.safetensors", damage)
    with pytest.raises(ValueError, match=r"/shard-00002\.safetensors arrived .*damaged.*It was removed"):
        pull(url, tmp_path / "copy")
    assert sorted(contents(tmp_path / "copy")) == ["shard-00000.safetensors", "shard-00001.safetensors"]
    with pytest.raises(ValueError, match=r"shard-00002\.safetensors arrived"):
        TrajectorySet(url).__getitems__([0, 17])
    if damage is flip:
        push(made, url)  # size and header are right, so this does not see it
        with pytest.raises(
            ValueError, match=r"shard-00002\.safetensors did not arrive as it was sent, and was removed"
        ):
            push(made, url, verify=True)
    push(made, url, verify=True)
    assert contents(pull(url, tmp_path / "copy")) == contents(made)


def test_another_set_is_not_overwritten_by_accident(made: Path, url: str, tmp_path: Path) -> None:
    make(tmp_path / "longer", count=60)
    push(tmp_path / "longer", url)
    before = far(url)
    with pytest.raises(FileExistsError, match=r"holds other trajectories \(count: expected 44, found 60; .*overwrite"):
        push(made, url)
    assert far(url) == before
    push(made, url, overwrite=True)
    assert sorted(far(url)) == sorted([*contents(made), "README.md"])
    assert "44 diffusion trajectories" in far(url)["README.md"].decode()
    with pytest.raises(FileExistsError, match=r"longer holds other trajectories \(count: expected 44, found 60"):
        pull(url, tmp_path / "longer")
    pull(url, tmp_path / "longer", overwrite=True)
    assert len(TrajectorySet(tmp_path / "longer", verify=True)) == 60 or contents(tmp_path / "longer") == contents(made)


def test_what_is_not_complete_or_damaged_is_not_pushed(made: Path, url: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(made, folder)
    (folder / "shard-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 6 shards are missing \(shard-00003\.safetensors\)"):
        push(folder, url)
    shutil.copy(made / "shard-00003.safetensors", folder)
    spoil(f"file://{folder}", "shard-00004.safetensors", flip)
    with pytest.raises(ValueError, match=r"shard-00004\.safetensors is damaged: sha256"):
        push(folder, url)
    assert "manifest.json" not in far(url)


def test_a_part_is_a_set_of_its_own(made: Path, url: str, tmp_path: Path) -> None:
    push(made, url)
    folder = pull(url, tmp_path / "part", count=10)
    assert sorted(contents(folder)) == ["manifest.json", "shard-00000.safetensors", "shard-00001.safetensors"]
    part, whole = TrajectorySet(folder), TrajectorySet(made)
    assert len(part) == 10
    assert equal(part.__getitems__(range(10)), whole.__getitems__(range(10)))
    assert len(next(batches(part, 10, 0))["seeds"]) == 10
    pull(url, folder, count=3)
    assert len(TrajectorySet(folder)) == 10, "a smaller part took something away"
    (folder / "shard-00001.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 2 shards are missing .*Pull it again"):
        TrajectorySet(folder)
    with pytest.raises(FileNotFoundError, match="missing"):
        push(folder, f"{url}-part")
    pull(url, folder)
    assert contents(folder) == contents(made)
    for count in (0, 45):
        with pytest.raises(ValueError, match=f"cannot pull {count} of the 44 trajectories"):
            pull(url, folder, count=count)


def test_a_part_can_be_made_the_whole(made: Path, url: str, tmp_path: Path) -> None:
    push(made, url)
    folder = pull(url, tmp_path / "part", count=10)
    data = make(folder, teacher={"name": "three blobs"}, resume=True)
    assert len(data) == 44
    assert contents(folder) == contents(made)


def test_a_pull_goes_on(made: Path, url: str, tmp_path: Path) -> None:
    push(made, url)
    folder = tmp_path / "copy"

    def dies(done: int, total: int) -> None:
        if done > total / 2:
            raise Lost

    with pytest.raises(Lost):
        pull(url, folder, progress=dies)
    assert 2 <= len(contents(folder)) < 6
    with pytest.raises(FileNotFoundError, match=r"no .*manifest\.json"):
        TrajectorySet(folder)
    spoil(f"file://{folder}", "shard-00001.safetensors", flip)
    (folder / ".shard-00005.safetensors.123.tmp").write_text("killed")
    told: list[int] = []
    pull(url, folder, progress=lambda done, total: told.append(done))
    assert told[0] > 0
    assert contents(folder) == contents(made)


def test_a_folder_of_something_else_is_not_touched(made: Path, url: str, tmp_path: Path) -> None:
    push(made, url)
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds other files \(thesis\.tex\)"):
        pull(url, folder, overwrite=True)
    assert contents(folder) == {"thesis.tex": b"mine"}


def test_room_is_looked_for_first(made: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(made, url)
    usage = namedtuple("usage", "total used free")(10**6, 10**6 - 100, 100)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(OSError, match=r"needs 0\.0 MB in .*0\.0 MB are free: pull fewer \(count\)") as caught:
            pull(url, tmp_path / "copy")
    assert caught.value.errno == errno.ENOSPC
    assert not contents(tmp_path / "copy")


# The card


def test_the_card_says_what_the_set_is(made: Path, url: str) -> None:
    push(made, url, license="cc-by-4.0")
    card = huggingface_hub.DatasetCard(far(url)["README.md"].decode())
    assert card.data.license == "cc-by-4.0"
    assert card.data.size_categories == "n<1K"
    assert "dsno" in card.data.tags
    for fact in ("44, of the seeds 0 to 43", "1 x 4 x 4", "0.5, 0 (1 is noise", "DDIM, 4 steps", "`cond.label`", "three blobs",
                 "GaussianMixture", "float16", "in 6 shards", read_manifest(made)["fingerprint"]):  # fmt: skip
        assert fact in card.text, fact
    lines = card.text.split("```python\n")[1].split("```")[0]
    space: dict[str, Any] = {}
    exec(lines, space)
    assert space["rows"]["seeds"].tolist() == [0, 1, 2]


def test_a_card_of_ones_own_is_kept(made: Path, url: str, tmp_path: Path) -> None:
    push(made, url)
    fs, root = fsspec.url_to_fs(url, skip_instance_cache=True)
    fs.pipe_file(f"{root}/README.md", b"mine")
    push(made, url)
    assert far(url)["README.md"] == b"mine"
    folder = tmp_path / "set"
    shutil.copytree(made, folder)
    (folder / "README.md").write_text("ours")
    push(folder, url)
    assert far(url)["README.md"] == b"ours"


# Streams


def test_opening_fetches_the_manifest_alone(made: Path, url: str, cache: Path) -> None:
    push(made, url)
    data, local = TrajectorySet(url), TrajectorySet(made)
    assert data.folder == cache / local.manifest["fingerprint"]
    assert not list(data.folder.glob("*shard*"))
    assert (len(data), data.shape, data.targets, data.schedule, data.window) == (44, SHAPE, ("x0",), Cosine(), 8)
    assert equal(data.__getitems__([9, 41, 8]), local.__getitems__([9, 41, 8]))
    assert sorted(p.name for p in data.folder.glob("shard-*")) == ["shard-00001.safetensors", "shard-00005.safetensors"]
    assert contents(data.folder).items() <= contents(made).items()
    assert equal(TrajectorySet(url, times=[0.0])[3], TrajectorySet(made, times=[0.0])[3])
    with pytest.raises(ValueError, match=f"t = 0.3 is not stored in {url}"):
        TrajectorySet(url, times=[0.3])
    with pytest.raises(ValueError, match=f"{url} holds trajectories of another teacher"):
        data.check_teacher(dsno.Gaussian(Cosine(), torch.zeros(SHAPE), 1.0))


@pytest.mark.parametrize("window", [1, 2, 4])
def test_a_stream_is_the_local_run(made: Path, url: str, window: int, tmp_path: Path) -> None:
    push(made, url)
    room = 2 * window * shard_size(read_manifest(made), 0)
    local = TrajectorySet(made, window=window)
    remote = TrajectorySet(url, window=window, cache=tmp_path / "elsewhere", cache_bytes=room)
    whole = [*itertools.islice(batches(local, 6, seed=3), 21)]  # three epochs
    for a, b in zip(whole, batches(remote, 6, seed=3), strict=False):
        assert equal(a, b)
    assert equal(next(batches(remote, 6, seed=3, start_step=13)), whole[13])
    shares = [next(batches(remote, 6, 3, 13, rank, 3))["seeds"] for rank in range(3)]
    assert torch.equal(torch.cat(shares), whole[13]["seeds"])


def test_training_on_a_stream_is_training_on_the_folder(tmp_path: Path, url: str) -> None:
    from dsno.nets.unet import UNet

    shape = (1, 8, 8)
    torch.manual_seed(0)
    teacher = dsno.Prediction(UNet(channels=(8,), blocks=1), Cosine(), "v", shape=shape)
    sampler = SolverSampler(teacher, Cosine(), uniform(4), DDIM(), KEEP)
    generate(sampler, shape, tmp_path / "set", 24, shard=4, batch=4)
    push(tmp_path / "set", url)
    trained = []
    for name, source in (("a", tmp_path / "set"), ("b", url)):
        data = TrajectorySet(source, window=2)
        torch.manual_seed(0)
        student = dsno.student_from_teacher(teacher, data.times)
        objective = TrajectoryDistillation(data, student, batch=5)
        trained.append(train(student, objective, TrainConfig(steps=6, warmup=0), tmp_path / name).state_dict())
    assert all(torch.equal(x, trained[1][k]) for k, x in trained[0].items())
    assert not all(torch.equal(x, student_start) for x, student_start in zip(
        trained[0].values(), dsno.student_from_teacher(teacher, data.times).state_dict().values(), strict=True
    ))  # fmt: skip


def test_the_cache_forgets_what_was_used_the_longest_ago(made: Path, url: str) -> None:
    push(made, url)
    room = 3 * shard_size(read_manifest(made), 0)
    data, local = TrajectorySet(url, cache_bytes=room), TrajectorySet(made)

    def held() -> list[int]:
        return sorted(int(p.stem[-5:]) for p in data.folder.glob("shard-*.safetensors"))

    first = data[0]
    for i in (8, 16, 1):
        data[i]
    assert held() == [0, 1, 2]
    data[24]
    assert held() == [0, 2, 3], "shard 0 was used after shard 1"
    assert set(data._mapped) == {0, 2, 3}
    for i in range(44):
        assert equal(data[i], local[i])
        assert sum(p.stat().st_size for p in data.folder.glob("shard-*.safetensors")) <= room
    assert equal(first, local[0])
    # Together they do not fit, one at a time they do.
    assert equal(data.__getitems__(range(44)), local.__getitems__(range(44)))
    small = TrajectorySet(url, cache_bytes=1)
    assert equal(small.__getitems__([40, 0]), local.__getitems__([40, 0]))
    with pytest.raises(ValueError, match="cache_bytes must be at least 1"):
        TrajectorySet(url, cache_bytes=0)


def test_the_next_window_is_fetched_meanwhile(made: Path, url: str) -> None:
    push(made, url)
    data = TrajectorySet(url, window=2)
    stream = batches(data, 4, seed=0)
    seen = {int(i) // 8 for i in next(stream)["seeds"]}
    assert data._shelf is not None
    if (thread := data._shelf._thread) is not None:
        thread.join(20)
    here = {int(p.stem[-5:]) for p in data.folder.glob("shard-*.safetensors")}
    assert len(here) == 4
    assert seen < here
    # Not if the cache has no room for it.
    tight = TrajectorySet(
        url, window=2, cache=data.folder.parent / "tight", cache_bytes=2 * shard_size(data.manifest, 0)
    )
    for _ in itertools.islice(batches(tight, 4, seed=0), 30):
        assert tight._shelf is not None
        if (thread := tight._shelf._thread) is not None:
            thread.join(20)
        assert len(list(tight.folder.glob("shard-*.safetensors"))) <= 3  # a batch may straddle two windows


def test_the_cache_is_mended(made: Path, url: str) -> None:
    push(made, url)
    data = TrajectorySet(url)
    data.__getitems__([0, 8, 16])
    os.truncate(data.folder / "shard-00000.safetensors", 100)
    spoil(f"file://{data.folder}", "shard-00001.safetensors", flip)
    again = TrajectorySet(url, verify=True)
    assert sorted(contents(again.folder)) == ["shard-00002.safetensors"]
    os.truncate(data.folder / "shard-00002.safetensors", 100)
    assert equal(again.__getitems__(range(44)), TrajectorySet(made).__getitems__(range(44)))


def test_it_travels_to_a_worker(made: Path, url: str) -> None:
    push(made, url)
    data = TrajectorySet(url, window=2)
    next(batches(data, 4, seed=0))
    again = pickle.loads(pickle.dumps(data))
    assert equal(again[13], TrajectorySet(made)[13])
    if not url.startswith("memory"):  # which no other process sees
        loader = DataLoader(data.head(9), batch_size=9, collate_fn=dict, num_workers=1, multiprocessing_context="fork")
        assert equal(next(iter(loader)), TrajectorySet(made).__getitems__(range(9)))
    assert len(data.head(5)) == 5
    assert equal(data.head(5)[4], TrajectorySet(made)[4])


# Over a network


processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["dsno.train", "dsno.trajectories.shelf", "huggingface_hub.hf_file_system", "pytest"])


def elsewhere(endpoint: str, cache: str, work: Callable[..., object], *arguments: Any) -> None:
    """What another process does: it has its own idea of where the Hub is."""
    os.environ["DSNO_CACHE"] = cache
    huggingface_hub.constants.ENDPOINT = endpoint
    huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    torch.set_num_threads(1)
    work(*arguments)


def start(hub: Hub, work: Callable[..., object], *arguments: Any) -> Any:
    process = processes.Process(target=elsewhere, args=(hub.url, os.environ["DSNO_CACHE"], work, *arguments))
    process.start()
    return process


def read_all(out: Path) -> None:
    rows = TrajectorySet(DATASET).__getitems__(range(44))
    out.write_text(str(int(rows["seeds"].sum())))


@pytest.fixture
def serving(hub: Hub, made: Path) -> Hub:
    """A Hub that has the set."""
    hub.files = contents(made)
    return hub


def test_a_push_is_a_few_commits(hub: Hub, made: Path) -> None:
    push(made, DATASET, private=True)
    assert hub.private is True
    shards = [f"shard-0000{k}.safetensors" for k in range(6)]
    assert hub.commits == [
        ("Add 6 shards", shards), ("Describe the set", ["README.md"]), ("Complete the set", ["manifest.json"]),
    ]  # fmt: skip
    push(made, f"{DATASET}/deeper/set")
    assert hub.commits[-1] == ("Complete the set", ["deeper/set/manifest.json"])


def test_two_processes_share_a_cache_and_a_third_was_killed(
    serving: Hub, made: Path, cache: Path, tmp_path: Path
) -> None:
    serving.hangs = "shard-00003.safetensors"
    dying = start(serving, read_all, tmp_path / "none")
    assert serving.hanging.wait(60)
    folder = cache / read_manifest(made)["fingerprint"]
    dying.kill()
    dying.join()
    assert sorted(p.name for p in folder.glob("shard-*")) == [f"shard-0000{k}.safetensors" for k in range(3)]
    assert list(folder.glob(".shard-*.tmp")), "it was not killed inside a download"
    serving.hangs = ""
    serving.released.set()
    serving.asked.clear()
    both = [start(serving, read_all, tmp_path / name) for name in ("a", "b")]
    for process, name in zip(both, ("a", "b"), strict=True):
        process.join(60)
        assert process.exitcode == 0
        assert (tmp_path / name).read_text() == str(sum(range(44)))
    fetched = sorted(name for name in serving.asked if name.startswith("shard-"))
    assert fetched == [f"shard-0000{k}.safetensors" for k in (3, 4, 5)], "something was fetched twice"
    assert {p.name: p.read_bytes() for p in folder.glob("shard-*")}.items() <= contents(made).items()
    TrajectorySet(DATASET)
    assert not list(folder.glob(".shard-*.tmp"))


def test_a_killed_pull_leaves_whole_shards(serving: Hub, made: Path, tmp_path: Path) -> None:
    serving.hangs = "shard-00002.safetensors"
    folder = tmp_path / "copy"
    dying = start(serving, pull, DATASET, folder)
    assert serving.hanging.wait(60)
    dying.kill()
    dying.join()
    whole = {k: v for k, v in contents(folder).items() if not k.startswith(".")}
    assert len(whole) == 2
    assert whole.items() <= contents(made).items()
    serving.hangs = ""
    serving.released.set()
    assert contents(pull(DATASET, folder)) == contents(made)


def test_a_connection_that_breaks_off(serving: Hub, made: Path, tmp_path: Path) -> None:
    serving.hangs = "shard-00001.safetensors"
    serving.released.set()  # it hangs up at once, half way
    assert contents(pull(DATASET, tmp_path / "copy")) == contents(made)
    assert serving.asked.count("shard-00001.safetensors") == 2


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


def test_a_server_goes_away_while_training(serving: Hub, made: Path) -> None:
    data = TrajectorySet(DATASET, window=1)
    data[0]
    serving.refuses = 503
    assert equal(data[7], TrajectorySet(made)[7])
    with pytest.raises(ConnectionError, match="cannot reach hf://"):
        data[8]
    serving.refuses = 0
    assert equal(data[8], TrajectorySet(made)[8])


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
