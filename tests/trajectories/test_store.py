"""What is stored is what was solved, complete or refused, whatever happens while it is made."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from dsno.cost import Meter
from dsno.denoise import Prediction
from dsno.seeds import noise, seed_range
from dsno.solvers.first_order import DDIM, Ancestral
from dsno.teachers.closed import Gaussian
from dsno.trajectories.compute import Compute
from dsno.trajectories.manifest import STORABLE
from dsno.trajectories.order import batches
from dsno.trajectories.sets import TrajectorySet
from pretend import Rank
from stored import COSINE, SHAPE, Net, Unwanted, contents, labels, make, mixture, named_labels, sampler


@pytest.mark.parametrize("dtype", STORABLE)
def test_the_stored_pair_is_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    data = make(tmp_path / "set", dtype=dtype, first_seed=5)
    rows = data.__getitems__(range(3))
    assert torch.equal(rows["seeds"], seed_range(5, 3))
    assert torch.equal(rows["noise"], noise(rows["seeds"], SHAPE).to(dtype).float())
    # Solving the noise that was read gives the targets that were read, to the last bit of the storage dtype.
    again = sampler(keep_x0=True)(rows["noise"])
    assert again.x0 is not None
    assert torch.equal(rows["state"], again.x[:, 1:].to(dtype).float())
    assert torch.equal(rows["x0"], again.x0[:, 1:].to(dtype).float())
    assert torch.equal(rows["x0"][:, -1], rows["state"][:, -1])


def test_the_condition_reaches_the_denoiser(tmp_path: Path) -> None:
    data = make(tmp_path / "set", label=labels)
    samples = data.__getitems__(range(20))["x0"][:, -1].flatten(1).mean(1)
    means = mixture().means.flatten(1).mean(1)
    assert torch.equal((samples[:, None] - means).abs().argmin(1), labels(seed_range(0, 20)))


def test_a_condition_may_have_names(tmp_path: Path) -> None:
    heard: list[dict[str, Tensor]] = []

    def hears(x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        heard.append(cond)
        return mixture()(x, t, cond)

    data = make(tmp_path / "set", label=named_labels, sampler=sampler(hears))
    assert {name: x.tolist() for name, x in heard[0].items()} == {"label": [0, 1, 2], "weight": [0, 0.5, 1]}
    rows = data.__getitems__([17, 0, 9])
    assert rows["cond"]["label"].tolist() == [2, 0, 0]
    assert rows["cond"]["weight"].tolist() == [8.5, 0, 4.5]
    assert {name: x.tolist() for name, x in data[17]["cond"].items()} == {"label": 2, "weight": 8.5}
    assert data.manifest["format"] == 2
    assert {k: (v["shape"], v["dtype"]) for k, v in data.manifest["cond"].items()} == {
        "label": ([], "int64"),
        "weight": ([], "float32"),
    }
    stored = load_file(tmp_path / "set" / "shard-00001.safetensors")
    assert torch.equal(stored["cond.label"], torch.arange(8, 16) % 3)
    assert torch.equal(stored["cond.weight"], torch.arange(8, 16) / 2)
    (tmp_path / "set" / "shard-00001.safetensors").unlink()
    before = contents(tmp_path / "set")
    make(tmp_path / "set", label=named_labels, sampler=sampler(hears), resume=True)
    assert contents(tmp_path / "set").items() > before.items()
    with pytest.raises(ValueError, match=r"cond\.weight\.sha256: expected"):
        make(
            tmp_path / "set",
            label=lambda s: named_labels(s) | {"weight": s * 0.25},
            sampler=sampler(hears),
            resume=True,
        )
    loaded = next(iter(DataLoader(data, batch_size=4, collate_fn=dict)))
    assert loaded["cond"]["label"].tolist() == [0, 1, 2, 0]
    assert next(batches(data, 4, seed=0))["cond"]["weight"].shape == (4,)


def test_the_default_keeps_the_sample(tmp_path: Path) -> None:
    data = make(tmp_path / "set", sampler=sampler(keep=None), targets=("x0",))
    assert data.times.tolist() == [0.0]
    assert data[0]["x0"].shape == (1, *SHAPE)


def test_a_stochastic_solver_is_a_function_of_the_seed(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", sampler=sampler(step=Ancestral()))
    part = make(tmp_path / "part", count=4, first_seed=13, sampler=sampler(step=Ancestral()))
    torch.testing.assert_close(part[0]["state"], whole[13]["state"], atol=2e-3, rtol=0)


def test_samples_may_be_numbers(tmp_path: Path) -> None:
    data = make(tmp_path / "set", shape=(), sampler=sampler(Gaussian(COSINE, torch.zeros(()), 1.0)))
    assert data.__getitems__([0, 5])["state"].shape == (2, 3)


def test_a_complete_folder_is_left_alone(tmp_path: Path) -> None:
    make(tmp_path / "set")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "set").iterdir()}
    calls: list[int] = []
    make(tmp_path / "set", resume=True, sampler=sampler(Unwanted()), progress=lambda done, total: calls.append(done))
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "set").iterdir()} == before
    assert not calls


def test_a_missing_shard_is_made_again(tmp_path: Path) -> None:
    make(tmp_path / "set")
    before = contents(tmp_path / "set")
    (tmp_path / "set" / "shard-00001.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 shards are missing \(shard-00001\.safetensors\).*resume=True"):
        TrajectorySet(tmp_path / "set")
    calls: list[tuple[int, int]] = []
    make(tmp_path / "set", resume=True, progress=lambda *numbers: calls.append(numbers))
    assert contents(tmp_path / "set") == before
    assert calls == [(15, 20), (18, 20), (20, 20)]


def test_resume_starts_where_there_is_nothing(tmp_path: Path) -> None:
    make(tmp_path / "a", resume=True)
    make(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_progress_counts_every_batch(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    make(tmp_path / "set", progress=lambda *numbers: calls.append(numbers))
    assert calls == [(n, 20) for n in (3, 6, 8, 11, 14, 16, 19, 20)]


class Killed(BaseException):
    """The end of the process, as far as a test in the same process can have it."""


@pytest.mark.parametrize("call", range(1, 13))
@pytest.mark.parametrize("when", ["fsync", "replace"])
def test_killed_inside_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, call: int) -> None:
    make(tmp_path / "whole")
    original, calls = getattr(os, when), 0

    def dies(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, when, dies)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # the dead do not clean up
        try:
            make(tmp_path / "set")
        except Killed:
            for path in (tmp_path / "set").glob("shard-*"):
                assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    make(tmp_path / "set", resume=True)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def test_each_rank_makes_its_own_shards(tmp_path: Path) -> None:
    make(tmp_path / "whole")
    calls: list[tuple[int, int]] = []
    with pytest.raises(FileNotFoundError, match="2 of 3 shards are missing"):
        make(tmp_path / "set", accelerator=Rank(0, 3))
    with pytest.raises(FileNotFoundError, match="1 of 3 shards are missing"):
        make(tmp_path / "set", accelerator=Rank(2, 3), progress=lambda *numbers: calls.append(numbers))
    assert calls == [(3, 4), (4, 4)]
    make(tmp_path / "set", accelerator=Rank(1, 3))
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")
    with pytest.raises(ValueError, match="holds other trajectories"):
        make(tmp_path / "set", accelerator=Rank(1, 3), first_seed=1)


def test_another_machine_is_worth_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path / "set")
    path = tmp_path / "set" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["made"]["torch"] = "1.0"
    path.write_text(json.dumps(manifest))
    make(tmp_path / "set", resume=True)
    assert not caplog.records
    (tmp_path / "set" / "shard-00002.safetensors").unlink()
    make(tmp_path / "set", resume=True)
    assert "was begun with" in caplog.text


def test_weights_and_wrappers(tmp_path: Path) -> None:
    make(tmp_path / "set", sampler=sampler(Prediction(Net(), COSINE)))
    make(tmp_path / "set", sampler=sampler(Meter(Prediction(Net(), COSINE))), resume=True)
    for other in (Prediction(Net(1), COSINE), Prediction(Net(), COSINE, clip=1.0), Prediction(Net(), COSINE, "eps")):
        with pytest.raises(ValueError, match=r"teacher\.(sha256|clip|kind): expected"):
            make(tmp_path / "set", sampler=sampler(other), resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"shard": 0}, "shard must be at least 1, got 0"),
        ({"batch": -3}, "batch must be at least 1, got -3"),
        ({"first_seed": -1}, "seeds must lie in"),
        ({"first_seed": 2**63 - 1}, "seeds must lie in"),
        ({"targets": ()}, "targets must be a selection"),
        ({"targets": "x0"}, "targets must be a selection"),
        ({"targets": ("x1",)}, "targets must be a selection"),
        ({"dtype": torch.float64}, "dtype must be one of"),
        ({"description": {"net": Net}}, "must be JSON"),
        ({"shape": (0,)}, "every length in shape must be at least 1, got 0"),
        ({"description": {"fid": float("nan")}}, "must be JSON"),
        ({"label": lambda seeds: seeds[:1]}, "one row per seed"),
        ({"label": lambda seeds: seeds.to(torch.complex64)}, "one row per seed"),
        ({"label": lambda seeds: {"label": seeds, "weight": seeds[:1]}}, r"one row per seed.*got cond\.weight \(1,\)"),
        ({"label": lambda seeds: {}}, "or several such by name: got none"),
        ({"compute": Compute(compile=True)}, "need a network, a torch module: GaussianMixture has none"),
        ({"sampler": sampler(step=DDIM().__call__)}, "must be a dataclass"),
        ({"sampler": sampler(keep=torch.tensor([1.0]))}, "no frame to store"),
        ({"sampler": sampler(keep=torch.tensor([0.3]))}, "not on the grid"),
        ({"sampler": sampler(lambda x, t, cond=None: x[:, :, :1], keep=torch.tensor([0.5]))}, "expected x0 of shape"),
    ],
)
def test_bad_arguments(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "set", **options)
    assert not list(tmp_path.glob("set/shard-*"))
