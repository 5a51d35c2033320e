"""A run goes on from the newest of its checkpoints that is whole; what else lies there is not its own."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from dsno.checkpoint import read_json, write_json
from dsno.snapshots import latest, newest, rewind, settings_of, snapshots_in, write_snapshot


def write(folder: Path, step: int) -> Path:
    folder.mkdir(exist_ok=True)
    parts = {name: {"w": torch.full((4,), step + n / 8)} for n, name in enumerate(("model", "average", "optimizer"))}
    write_snapshot(folder, {"step": step, "config": {"lr": 0.1}, "settings": {"stage": "a"}}, parts)
    return folder / f"step-{step:08d}"


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_snapshot_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    for step in (5, 10, 10):
        path = write(tmp_path, step)
        assert names(tmp_path) == [path.name]
    found = newest(tmp_path)
    assert found is not None and found.step == 10 and latest(tmp_path) == path
    assert found.parts["average"]["w"].tolist() == [10.125] * 4 and settings_of(path) == {"stage": "a"}
    assert newest(tmp_path / "none") is latest(tmp_path / "none") is None


def test_folders_of_others_are_neither_read_nor_removed(tmp_path: Path) -> None:
    first = write(tmp_path, 5)
    foreign = ["step-00000003-keep", "step-3", "step-best", "step-000000099"]
    for name in foreign:
        shutil.copytree(first, tmp_path / name)
    (tmp_path / "step-notes.txt").write_text("precious")
    (tmp_path / "step-00000006").mkdir()
    (tmp_path / "step-00000007").write_text("precious")
    kept = [*foreign, "step-00000006", "step-00000007", "step-notes.txt"]
    found = newest(tmp_path)
    assert found is not None and found.path == first == latest(tmp_path)
    write(tmp_path, 8)
    assert names(tmp_path) == sorted([*kept, "step-00000008"])
    write(tmp_path, 6 + 3)
    (tmp_path / "step-00000010").mkdir()
    (tmp_path / "step-00000010" / "notes.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="step-00000010 holds other files: move them away"):
        write(tmp_path, 10)
    assert latest(tmp_path) == tmp_path / "step-00000009"
    assert [p.name for p in tmp_path.glob(".*")] == []


@pytest.mark.skipif(os.name != "posix", reason="limits of posix")
def test_a_full_disk_keeps_the_snapshot_before_and_leaves_nothing(tmp_path: Path) -> None:
    import resource

    before = write(tmp_path, 5)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*model\.safetensors \(File too large\): make room") as caught:
            write(tmp_path, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG and names(tmp_path) == [before.name]
    assert newest(tmp_path) is not None


def damage(path: Path, how: str) -> None:
    if how == "missing":
        (path / "average.safetensors").unlink()
    elif how == "state missing":
        (path / "state.json").unlink()
    elif how == "truncated":
        (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-1])
    elif how == "flipped":
        bytes_ = bytearray((path / "optimizer.safetensors").read_bytes())
        bytes_[-1] ^= 1
        (path / "optimizer.safetensors").write_bytes(bytes_)
    elif how == "swapped":
        (path / "model.safetensors").rename(path / "held")
        (path / "average.safetensors").rename(path / "model.safetensors")
        (path / "held").rename(path / "average.safetensors")
    elif how == "no state":
        (path / "state.json").write_text("")
    elif how == "empty state":
        (path / "state.json").write_text("{}")
    elif how == "listed":
        (path / "state.json").write_text("[1]")
    elif how == "renamed":
        write_json(path / "state.json", {**read_json(path / "state.json"), "step": 3})
    elif how == "other rate":
        write_json(path / "state.json", {**read_json(path / "state.json"), "config": {"lr": 0.2}})


HOW = {
    "missing": "average.safetensors",
    "state missing": "state.json",
    "truncated": "model.safetensors",
    "flipped": "optimizer.safetensors",
    "swapped": "model.safetensors",
    "no state": "state.json",
    "empty state": "state.json",
    "listed": "state.json",
    "renamed": "state.json",
    "other rate": "state.json",
}


@pytest.mark.parametrize("how", HOW)
def test_a_damaged_snapshot_is_refused_by_name_or_passed_over(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(write(tmp_path, 10), how)
    with pytest.raises(ValueError, match=rf"step-00000010.*{HOW[how]}.*no other to go on from"):
        newest(tmp_path)
    shutil.copytree(write(tmp_path / "other", 5), tmp_path / "step-00000005")
    found = newest(tmp_path)
    assert found is not None and found.step == 5
    assert HOW[how] in caplog.text and f"going on from {found.path} instead" in caplog.text
    # The damaged one is replaced when the run has come so far again.
    write(tmp_path, 8)
    assert [p.name for p in snapshots_in(tmp_path)] == ["step-00000010", "step-00000008"]
    write(tmp_path, 10)
    assert latest(tmp_path) == tmp_path / "step-00000010" and newest(tmp_path) is not None


def test_settings_of_a_damaged_state_are_none(tmp_path: Path) -> None:
    path = write(tmp_path, 5)
    for text in ("", "[]", '{"settings": 3}'):
        (path / "state.json").write_text(text)
        assert settings_of(path) == {}


def test_a_log_is_rewound_whatever_is_in_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log.jsonl"
    rewind(path, 3)
    assert not path.exists()
    good = [json.dumps({"step": step, "loss": step / 7}) + "\n" for step in range(1, 6)]
    bad = [b"\xff\xfe\n", b"[1]\n", b"null\n", b'{"loss": 1}\n', b'{"step": "x"}\n', b'{"step": 6, "lo']
    path.write_bytes(b"".join(line.encode() + wrong for line, wrong in zip([*good, ""], bad, strict=True)))
    rewind(path, 3)
    assert path.read_text() == "".join(good[:3])
    assert caplog.text.count("cannot be read, which is dropped") == len(bad)
