"""A set elsewhere is read as one that is here, from a cache that forgets and is shared."""

import itertools
import os
import pickle  # noqa: TID251 - what multiprocessing does with a data set
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import dsno
from dsno.distillation.regression import TrajectoryDistillation
from dsno.grids import uniform
from dsno.schedule import Cosine
from dsno.solvers.first_order import DDIM
from dsno.solvers.run import SolverSampler
from dsno.train import TrainConfig, train
from dsno.trajectories.format import shard_size
from dsno.trajectories.manifest import read_manifest
from dsno.trajectories.order import batches
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectories.share import push
from dsno.trajectories.store import store
from far import DATASET, Hub, flip, spoil, start
from stored import SHAPE, contents, equal


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
    sampler = SolverSampler(teacher, Cosine(), uniform(4), DDIM(), uniform(2))
    store(sampler, shape, tmp_path / "set", 24, shard=4, batch=4)
    push(tmp_path / "set", url)
    trained = []
    for name, source in (("a", tmp_path / "set"), ("b", url)):
        data = TrajectorySet(source, window=2)
        torch.manual_seed(0)
        student = dsno.student_from_teacher(teacher, data.times)
        objective = TrajectoryDistillation(data, student, batch=5)
        trained.append(train(student, objective, TrainConfig(steps=6, warmup=0), tmp_path / name).state_dict())
    assert all(torch.equal(x, trained[1][k]) for k, x in trained[0].items())
    fresh = dsno.student_from_teacher(teacher, data.times).state_dict()
    assert any(not torch.equal(x, fresh[k]) for k, x in trained[0].items()), "nothing was learned"


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


def test_no_lock_outlives_its_holder(made: Path, url: str) -> None:
    push(made, url)
    data = TrajectorySet(url)
    data.__getitems__([0, 17, 41])
    assert not list(data.folder.glob("*.lock"))
    left = data.folder / ".shard-00002.lock"
    left.touch()  # as one that was killed, or an earlier version, left it
    TrajectorySet(url)
    assert not left.exists()


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


def read_all(out: Path) -> None:
    rows = TrajectorySet(DATASET).__getitems__(range(44))
    out.write_text(str(int(rows["seeds"].sum())))


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


def test_a_server_goes_away_while_training(serving: Hub, made: Path) -> None:
    data = TrajectorySet(DATASET, window=1)
    data[0]
    serving.refuses = 503
    assert equal(data[7], TrajectorySet(made)[7])
    with pytest.raises(ConnectionError, match="cannot reach hf://"):
        data[8]
    serving.refuses = 0
    assert equal(data[8], TrajectorySet(made)[8])
