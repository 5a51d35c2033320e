"""Rows by index: exact, alone or together, from files that are mapped."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from dsno.denoise import Prediction
from dsno.teachers.closed import Gaussian
from dsno.trajectories.format import write_shard
from dsno.trajectories.sets import TrajectorySet, samples_of
from stored import COSINE, KEEP, SHAPE, Net, contents, labels, make, mixture, named_labels, sampler


def test_shapes_dtypes_and_attributes(tmp_path: Path) -> None:
    data = make(tmp_path / "set", label=labels, description={"name": "mixture"})
    assert len(data) == 20
    assert data.shape == SHAPE
    assert data.targets == ("x0", "state")
    assert data.schedule == COSINE
    assert data.times.dtype == torch.float64
    assert data.times.tolist() == KEEP[1:]
    assert data.manifest["teacher"]["description"] == {"name": "mixture"}
    rows = data.__getitems__([17, 0, -1, 0])
    assert {k: (tuple(v.shape), v.dtype) for k, v in rows.items()} == {
        "noise": ((4, *SHAPE), torch.float32),
        "x0": ((4, 3, *SHAPE), torch.float32),
        "state": ((4, 3, *SHAPE), torch.float32),
        "seeds": ((4,), torch.int64),
        "cond": ((4,), torch.int64),
    }
    assert rows["seeds"].tolist() == [17, 0, 19, 0]
    assert rows["cond"].tolist() == [2, 0, 1, 0]
    for name, value in data[17].items():
        assert torch.equal(value, rows[name][0])


def test_rows_do_not_depend_on_their_company(tmp_path: Path) -> None:
    data = make(tmp_path / "set", label=labels)
    together = data.__getitems__(list(range(20)))
    for i, row in enumerate(data):
        assert all(torch.equal(row[name], together[name][i]) for name in together)


def test_only_the_asked_targets_and_times(tmp_path: Path) -> None:
    whole = make(tmp_path / "set", targets=("state",))
    some = TrajectorySet(tmp_path / "set", times=[0.0, 0.5])
    assert "x0" not in some[0]
    assert some.times.tolist() == [0.5, 0.0]
    rows = [3, 15]
    assert torch.equal(some.__getitems__(rows)["state"], whole.__getitems__(rows)["state"][:, [0, 2]])
    with pytest.raises(ValueError, match=r"t = 0\.3 is not stored in .*: the nearest of the 3 times is 0\.25"):
        TrajectorySet(tmp_path / "set", times=[0.3])


def test_the_first_rows(tmp_path: Path) -> None:
    data = make(tmp_path / "set")
    first = data.head(5)
    assert (len(first), len(data)) == (5, 20)
    assert torch.equal(first[-1]["noise"], data[4]["noise"])
    with pytest.raises(IndexError, match="indices of 5 trajectories"):
        first[5]
    with pytest.raises(ValueError, match="the first 21 of 20"):
        data.head(21)


def test_it_is_mapped_and_travels_light(tmp_path: Path) -> None:
    data = make(
        tmp_path / "set", count=64, shape=(1, 32, 32), sampler=sampler(Gaussian(COSINE, torch.zeros(1, 32, 32), 1.0))
    )
    data.__getitems__(range(64))
    if sys.platform == "linux":
        assert "shard-00007.safetensors" in Path("/proc/self/maps").read_text()
    # What a worker process receives: no rows, and it can read them all the same.
    assert not data.__getstate__()["_mapped"]
    assert torch.equal(copy.deepcopy(data)[3]["noise"], data[3]["noise"])


def test_a_data_loader_takes_whole_batches(tmp_path: Path) -> None:
    data = make(tmp_path / "set")
    loader: DataLoader[dict[str, Tensor]] = DataLoader(data, batch_size=8, collate_fn=dict)
    assert [len(batch["seeds"]) for batch in loader] == [8, 8, 4]


def test_trajectories_know_their_teacher(tmp_path: Path) -> None:
    data = make(tmp_path / "set", sampler=sampler(Prediction(Net(), COSINE)), description={"name": "a"})
    torch.manual_seed(0)
    data.check_teacher(Prediction(Net(), COSINE))
    for other, difference in (
        (Prediction(Net(), COSINE, "eps"), "teacher.kind: expected"),
        (Prediction(Net().requires_grad_(False).double(), COSINE), "teacher.sha256: expected"),
        (mixture(), "teacher.class: expected"),
    ):
        with pytest.raises(ValueError, match=f"set holds trajectories of another teacher: .*{difference}"):
            data.check_teacher(other)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a folder that generate\(\) wrote"):
        TrajectorySet(tmp_path / "nothing")


def test_some_of_the_times(tmp_path: Path) -> None:
    data = make(tmp_path / "set")
    some = data.at(torch.tensor([0.25, 0.0], dtype=torch.float64))
    assert some.times.tolist() == [0.25, 0.0] and data.times.tolist() == KEEP[1:]
    assert torch.equal(some[9]["x0"], data[9]["x0"][1:])
    assert torch.equal(some.head(3).at([0.0])[2]["state"], data[2]["state"][2:])
    with pytest.raises(ValueError, match=r"t = 0\.75 is not stored in"):
        data.at([0.75])


@pytest.mark.parametrize("indices", [[], [20], [-21], [0, 99]])
def test_rows_that_are_not_there(tmp_path: Path, indices: list[int]) -> None:
    with pytest.raises(IndexError, match="expected indices of 20 trajectories, got"):
        make(tmp_path / "set").__getitems__(indices)


def test_nothing_is_fetched_of_a_folder(tmp_path: Path) -> None:
    data = make(tmp_path / "set")
    before = contents(tmp_path / "set")
    data.prefetch([0], [1, 2])
    assert data._mapped == {} and contents(tmp_path / "set") == before


@pytest.mark.parametrize("named", [True, False])
def test_the_ends_are_samples_of_the_teacher(tmp_path: Path, named: bool) -> None:
    data = make(tmp_path / "set", label=(lambda s: {"label": s % 3}) if named else labels)
    x, found = samples_of(data)
    assert x.shape == (20, *SHAPE) and x.dtype == torch.float32
    assert found is not None and torch.equal(found, torch.arange(20) % 3)
    assert torch.equal(x, data.__getitems__(range(20))["state"][:, -1])
    x, found = samples_of(make(tmp_path / "states", targets=("state",)).head(5))
    assert len(x) == 5 and found is None


def test_what_is_no_sample_or_told_more_than_a_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends at t = 0\.25, where there is noise left: its ends are no samples"):
        samples_of(make(tmp_path / "set").at([0.5, 0.25]))
    with pytest.raises(ValueError, match="is told weight beside the state"):
        samples_of(make(tmp_path / "weights", label=named_labels))
    with pytest.raises(ValueError, match="is told label beside the state"):
        samples_of(make(tmp_path / "vectors", label=lambda s: torch.stack([s % 3, s % 2], 1), sampler=sampler(Told())))


class Told:
    """A denoiser that is told a vector."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return x_t + cond.sum()


def test_a_shard_is_compared_with_its_checksum_when_it_is_first_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make(tmp_path / "set")
    path = tmp_path / "set" / "shard-00001.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-7] ^= 1
    path.write_bytes(whole)
    for opened in (TrajectorySet(tmp_path / "set"), copy.copy(data)):
        opened.__getitems__([0, 16])
        with pytest.raises(ValueError, match=r"shard-00001\.safetensors is damaged: sha256: .*Delete it and call"):
            opened.__getitems__([8])
    monkeypatch.setenv("DSNO_UNCHECKED", "1")
    assert len(TrajectorySet(tmp_path / "set").__getitems__([8])["seeds"]) == 1


def test_numbers_that_are_not_finite_are_the_datas_fault(tmp_path: Path) -> None:
    data = make(tmp_path / "set", first_seed=100)
    tensors = load_file(tmp_path / "set" / "shard-00001.safetensors")
    tensors["state"][3, 1, 0, 0, 0] = float("nan")
    tensors["x0"][5] = 65504
    write_shard(tmp_path / "set", data.manifest, 1, tensors)
    read = TrajectorySet(tmp_path / "set")
    read.__getitems__([0, 9, 13])
    with pytest.raises(
        ValueError, match=r"shard-00001\.safetensors .*not finite: state of row 3, seed 111\. The data are"
    ):
        read.__getitems__([0, 13, 11])
