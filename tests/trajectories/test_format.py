"""A shard is what its manifest says, or is named with the way to mend it."""

import errno
import hashlib
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dsno.teachers.closed import Gaussian
from dsno.trajectories.format import (
    header_of,
    layout,
    rows_of,
    shard_count,
    shard_number,
    shard_path,
    shard_size,
    shards_in,
    unfinished,
)
from dsno.trajectories.sets import TrajectorySet
from stored import COSINE, SHAPE, Unwanted, contents, make, named_labels, sampler


def test_safetensors_reads_the_shards(tmp_path: Path) -> None:
    make(tmp_path / "set", count=9, label=lambda s: (s % 2).to(torch.uint8))
    tensors = load_file(tmp_path / "set" / "shard-00001.safetensors")
    assert {k: tuple(v.shape) for k, v in tensors.items()} == {
        "seeds": (1,),
        "cond": (1,),
        "noise": (1, *SHAPE),
        "x0": (1, 3, *SHAPE),
        "state": (1, 3, *SHAPE),
    }


def test_header_and_size_follow_from_the_manifest_and_a_checksum(tmp_path: Path) -> None:
    manifest = make(tmp_path / "set", label=named_labels).manifest
    assert (shard_count(manifest), shard_count(manifest, 9), shard_count(manifest, 8)) == (3, 2, 1)
    assert [rows_of(manifest, k) for k in range(3)] == [8, 8, 4]
    for k, path in enumerate(shards_in(tmp_path / "set")):
        assert path == shard_path(tmp_path / "set", k) and shard_number(path) == k
        assert path.stat().st_size == shard_size(manifest, k)
        header = header_of(path)
        described = json.loads(header[8:])
        assert len(header) % 8 == 0 and int.from_bytes(header[:8], "little") == len(header) - 8
        assert described.pop("__metadata__") == {
            "fingerprint": manifest["fingerprint"],
            "shard": str(k),
            "sha256": hashlib.sha256(path.read_bytes()[len(header) :]).hexdigest(),
        }
        # The widest first, so that every tensor starts at a multiple of its items' size.
        dtypes = {name: dtype for name, (dtype, _) in layout(manifest, k).items()}
        assert [*described] == [*dtypes] == ["cond.label", "seeds", "cond.weight", "noise", "state", "x0"]
        assert all(d["data_offsets"][0] % dtypes[name].itemsize == 0 for name, d in described.items())


def test_what_is_unfinished_is_found_by_its_name(tmp_path: Path) -> None:
    ours = [".shard-00003.safetensors.1f.tmp", ".shard-00012.tmp", ".manifest.json.2e.tmp"]
    for name in [*ours, "shard-00001.safetensors", "manifest.json", ".shard-00002.lock", "notes.tmp"]:
        (tmp_path / name).touch()
    assert {path.name for path in unfinished(tmp_path)} == {*ours}
    assert [path.name for path in shards_in(tmp_path)] == ["shard-00001.safetensors"]
    assert [shard_number(tmp_path / name) for name in ours[:2]] == [3, 12]


def truncate(folder: Path) -> None:
    path = folder / "shard-00001.safetensors"
    os.truncate(path, path.stat().st_size - 1)


def empty(folder: Path) -> None:
    (folder / "shard-00001.safetensors").write_bytes(b"")


def flip(folder: Path) -> None:
    path = folder / "shard-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(bytes(data))


def scramble(folder: Path) -> None:
    path = folder / "shard-00001.safetensors"
    path.write_bytes(os.urandom(path.stat().st_size))


def swap(folder: Path) -> None:
    shutil.copy(folder / "shard-00000.safetensors", folder / "shard-00001.safetensors")


def exchange(folder: Path) -> None:
    other = folder.parent / "other"
    make(other, first_seed=100)
    shutil.copy(other / "shard-00001.safetensors", folder / "shard-00001.safetensors")


def extra(folder: Path) -> None:
    shutil.copy(folder / "shard-00001.safetensors", folder / "shard-00009.safetensors")


def cut_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 100)


def edit_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "shape": [1, 2, 8]}))


def empty_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


def future_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 9}))


def pipe(folder: Path) -> None:
    (folder / "shard-00001.safetensors").unlink()
    os.mkfifo(folder / "shard-00001.safetensors")


def nest(folder: Path) -> None:
    deep = b"[" * 50_000
    (folder / "shard-00001.safetensors").write_bytes(len(deep).to_bytes(8, "little") + deep)


DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (truncate, r"shard-00001\.safetensors is truncated or damaged: expected \d+ bytes, found \d+\. Delete it and call"),
    (empty, r"shard-00001\.safetensors is truncated, damaged or foreign: .*header cannot be read\. Delete it and call"),
    (flip, r"shard-00001\.safetensors is damaged: sha256: expected \w+, found \w+\. Delete it and call"),
    (scramble, r"shard-00001\.safetensors is truncated, damaged or foreign: .*Delete it and call"),
    (swap, r'shard-00001\.safetensors is foreign: .*shard: expected "1", found "0".*Delete it and call'),
    (exchange, r"shard-00001\.safetensors is foreign: __metadata__\.fingerprint: expected .*Delete it and call"),
    (pipe, r"shard-00001\.safetensors is a pipe or a device, and no shard\. Delete it and call"),
    (nest, r"shard-00001\.safetensors is truncated, damaged or foreign: .*header cannot be read\. Delete it and call"),
    (extra, r"expected 3 shards, found others, too \(shard-00009\.safetensors\)\. Remove them"),
    (cut_manifest, r"manifest\.json is not valid JSON .*Delete .*manifest\.json and call"),
    (edit_manifest, r"manifest\.json was changed after it was written.*Delete .*manifest\.json and call"),
    (empty_manifest, r"manifest\.json is not the manifest of a trajectory folder\. Delete .*manifest\.json and call"),
    (future_manifest, r"manifest\.json: format: expected 1 or 2, found 9"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[d.__name__ for d, _ in DAMAGE])
def test_damage_is_named_and_the_advice_mends_it(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "set")
    before = contents(tmp_path / "set")
    damage(tmp_path / "set")
    with pytest.raises(ValueError, match=message):
        TrajectorySet(tmp_path / "set", verify=True)
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "set", resume=True, sampler=sampler(Unwanted()))
    if damage is future_manifest:
        return
    name = "manifest.json" if "manifest" in message else "shard-00001.safetensors"
    (tmp_path / "set" / ("shard-00009.safetensors" if damage is extra else name)).unlink()
    make(tmp_path / "set", resume=True)
    assert contents(tmp_path / "set") == before


def test_a_full_disk_leaves_no_broken_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "whole")
    original, calls = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:  # the second shard: each file is synchronised once and its folder once
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"cannot write .*shard-00001.*No space left.*kept: make room") as caught:
            make(tmp_path / "set")
    assert caught.value.errno == errno.ENOSPC
    assert sorted(contents(tmp_path / "set")) == ["manifest.json", "shard-00000.safetensors"]
    make(tmp_path / "set", resume=True)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def test_a_write_that_really_fails_halfway(tmp_path: Path) -> None:
    solver = sampler(Gaussian(COSINE, torch.zeros(1, 32, 32), 1.0))
    options: dict[str, Any] = {"count": 64, "shard": 64, "shape": (1, 32, 32), "sampler": solver}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write .*shard-00000.*kept: make room") as caught:
            make(tmp_path / "set", **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert not (tmp_path / "set").exists()
    assert len(make(tmp_path / "set", **options, resume=True)) == 64
