"""Sets elsewhere: pushed and pulled whole, whatever happens on the way."""

import errno
import functools
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from dsno.trajectories import share
from dsno.trajectories.order import batches
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectories.share import pull, push
from far import DATASET, Hub, cut, far, flip, spoil, start
from stored import contents, equal, make_shared


def test_what_is_pulled_is_what_was_pushed(made: Path, url: str, tmp_path: Path) -> None:
    counts: list[tuple[int, int]] = []
    assert push(made, url, progress=lambda *numbers: counts.append(numbers)) == url
    size = sum(p.stat().st_size for p in made.glob("shard-*"))
    assert counts[0] == (0, size)
    assert counts[-1] == (size, size)
    assert counts == sorted(counts)
    there = far(url)
    assert {k: v for k, v in there.items() if k != "README.md"} == contents(made)
    counts.clear()
    assert pull(url, tmp_path / "copy", progress=lambda *numbers: counts.append(numbers)) == tmp_path / "copy"
    assert contents(tmp_path / "copy") == contents(made)
    assert (counts[0], counts[-1]) == ((0, size), (size, size))
    assert counts == sorted(counts)
    assert len(TrajectorySet(tmp_path / "copy", verify=True)) == 44
    # Again, nothing moves.
    for again in (functools.partial(push, made, url), functools.partial(pull, url, tmp_path / "copy")):
        counts.clear()
        again(progress=lambda *numbers: counts.append(numbers))
        assert set(counts) == {(size, size)}
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
    counts: list[int] = []
    push(made, url, progress=lambda done, total: counts.append(done))
    assert 0 < counts[0] < size
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
    make_shared(tmp_path / "longer", count=60)
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
    assert contents(tmp_path / "longer") == contents(made)


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
    data = make_shared(folder, description={"name": "three blobs"}, resume=True)
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
    counts: list[int] = []
    pull(url, folder, progress=lambda done, total: counts.append(done))
    assert counts[0] > 0
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
        with pytest.raises(OSError, match=r"needs \d+\.\d kB in .*0\.1 kB are free: pull fewer \(count\)") as caught:
            pull(url, tmp_path / "copy")
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "copy").exists()


def test_a_push_is_a_few_commits(hub: Hub, made: Path) -> None:
    push(made, DATASET, private=True)
    assert hub.private is True
    shards = [f"shard-0000{k}.safetensors" for k in range(6)]
    assert hub.commits == [
        ("Add 6 shards", shards),
        ("Describe the set", ["README.md"]),
        ("Complete the set", ["manifest.json"]),
    ]
    push(made, f"{DATASET}/deeper/set")
    assert hub.commits[-1] == ("Complete the set", ["deeper/set/manifest.json"])


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
