"""Trajectories on disk: exact, complete or refused, whatever happens while they are made."""

import contextlib
import copy
import dataclasses
import errno
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

import dsno
from dsno import grids
from dsno.cost import Meter
from dsno.denoise import Guided, Prediction, Threshold
from dsno.schedule import Cosine, RectifiedFlow
from dsno.seeds import noise, seed_range
from dsno.solvers.first_order import DDIM, Ancestral
from dsno.solvers.multistep import DPMSolverPP
from dsno.solvers.run import SolverSampler
from dsno.teachers.closed import Gaussian, GaussianMixture
from dsno.trajectories import flights
from dsno.trajectories.describe import describe
from dsno.trajectories.generate import STORABLE, generate
from dsno.trajectories.manifest import fingerprint
from dsno.trajectories.order import batches
from dsno.trajectories.sets import TrajectorySet
from pretend import Rank

COSINE = Cosine()
KEEP = [1.0, 0.5, 0.25, 0.0]
SHAPE = (1, 4, 4)


def mixture() -> GaussianMixture:
    means = torch.linspace(-1, 1, 3 * 16).reshape(3, *SHAPE)
    return GaussianMixture(COSINE, means, 0.3, labels=[0, 1, 2])


def sampler(denoiser: Any = None, **changes: Any) -> SolverSampler:
    made = SolverSampler(denoiser or mixture(), COSINE, grids.uniform(8), DDIM(), torch.tensor(KEEP))
    return dataclasses.replace(made, **changes)


def labels(seeds: Tensor) -> Tensor:
    return seeds % 3


def make(folder: Path, count: int = 20, **options: Any) -> TrajectorySet:
    """Three shards of 8, 8 and 4 rows in batches of 3, unless told otherwise."""
    solver = options.pop("sampler", None) or sampler()
    shape = options.pop("shape", SHAPE)
    return generate(solver, shape, folder, count, **{"shard": 8, "batch": 3, "targets": ("x0", "state"), **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


class Unwanted:
    """A denoiser that must not be called, with the fingerprint of the mixture."""

    def __init__(self) -> None:
        self.__dict__.update(vars(mixture()))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        raise AssertionError("the denoiser was called")


Unwanted.__name__ = "GaussianMixture"


class Net(nn.Module):
    """A small network with dropout, so that eval mode matters."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.Dropout(0.5), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x)


class LabelledNet(Net):
    """That is told a label, alone or by name."""

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        label = cond["label"] if isinstance(cond, dict) else cond
        return self.net(x) + label[:, None, None, None] / 10


# What is stored


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


def test_shapes_dtypes_and_attributes(tmp_path: Path) -> None:
    data = make(tmp_path / "set", label=labels, teacher={"name": "mixture"})
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


def test_the_condition_reaches_the_denoiser(tmp_path: Path) -> None:
    data = make(tmp_path / "set", label=labels)
    samples = data.__getitems__(range(20))["x0"][:, -1].flatten(1).mean(1)
    means = mixture().means.flatten(1).mean(1)
    assert torch.equal((samples[:, None] - means).abs().argmin(1), labels(seed_range(0, 20)))


def test_a_label_may_be_a_vector(tmp_path: Path) -> None:
    net = Net()
    solver = sampler(Prediction(net, COSINE))
    solver = dataclasses.replace(solver, denoiser=lambda x, t, cond=None: net(x, t) + cond.mean())
    data = make(tmp_path / "set", sampler=solver, label=lambda s: torch.stack([s.float(), 2 * s.float()], 1).half())
    assert data[3]["cond"].tolist() == [3.0, 6.0]


def told(seeds: Tensor) -> dict[str, Tensor]:
    return {"label": seeds % 3, "weight": seeds.float() / 2}


def test_a_condition_may_have_names(tmp_path: Path) -> None:
    heard: list[dict[str, Tensor]] = []

    def hears(x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        heard.append(cond)
        return mixture()(x, t, cond)

    data = make(tmp_path / "set", label=told, sampler=sampler(hears))
    assert {name: x.tolist() for name, x in heard[0].items()} == {"label": [0, 1, 2], "weight": [0, 0.5, 1]}
    rows = data.__getitems__([17, 0, 9])
    assert rows["cond"]["label"].tolist() == [2, 0, 0]
    assert rows["cond"]["weight"].tolist() == [8.5, 0, 4.5]
    assert {name: x.tolist() for name, x in data[17]["cond"].items()} == {"label": 2, "weight": 8.5}
    assert data.manifest["format"] == 2
    assert {k: (v["shape"], v["dtype"]) for k, v in data.manifest["cond"].items()} == {
        "label": ([], "int64"), "weight": ([], "float32"),
    }  # fmt: skip
    stored = load_file(tmp_path / "set" / "shard-00001.safetensors")
    assert torch.equal(stored["cond.label"], torch.arange(8, 16) % 3)
    assert torch.equal(stored["cond.weight"], torch.arange(8, 16) / 2)
    (tmp_path / "set" / "shard-00001.safetensors").unlink()
    before = contents(tmp_path / "set")
    make(tmp_path / "set", label=told, sampler=sampler(hears), resume=True)
    assert contents(tmp_path / "set").items() > before.items()
    with pytest.raises(ValueError, match=r"cond\.weight\.sha256: expected"):
        make(tmp_path / "set", label=lambda s: told(s) | {"weight": s * 0.25}, sampler=sampler(hears), resume=True)
    loaded = next(iter(DataLoader(data, batch_size=4, collate_fn=dict)))
    assert loaded["cond"]["label"].tolist() == [0, 1, 2, 0]
    assert next(batches(data, 4, seed=0))["cond"]["weight"].shape == (4,)


def test_a_label_is_alike_for_all_seeds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="label must return the like for all seeds"):
        make(tmp_path / "set", label=lambda s: told(s) if int(s[0]) < 8 else {"label": s % 3})


def test_safetensors_reads_the_shards(tmp_path: Path) -> None:
    make(tmp_path / "set", count=9, label=lambda s: (s % 2).to(torch.uint8))
    tensors = load_file(tmp_path / "set" / "shard-00001.safetensors")
    assert {k: tuple(v.shape) for k, v in tensors.items()} == {
        "seeds": (1,), "cond": (1,), "noise": (1, *SHAPE), "x0": (1, 3, *SHAPE), "state": (1, 3, *SHAPE),
    }  # fmt: skip


def test_only_the_asked_targets_and_times(tmp_path: Path) -> None:
    whole = make(tmp_path / "set", targets=("state",))
    some = TrajectorySet(tmp_path / "set", times=[0.0, 0.5])
    assert "x0" not in some[0]
    assert some.times.tolist() == [0.5, 0.0]
    rows = [3, 15]
    assert torch.equal(some.__getitems__(rows)["state"], whole.__getitems__(rows)["state"][:, [0, 2]])
    with pytest.raises(ValueError, match=r"t = 0\.3 is not stored in .*: the nearest of the 3 times is 0\.25"):
        TrajectorySet(tmp_path / "set", times=[0.3])


def test_the_default_keeps_the_sample(tmp_path: Path) -> None:
    data = make(tmp_path / "set", sampler=sampler(keep=None), targets=("x0",))
    assert data.times.tolist() == [0.0]
    assert data[0]["x0"].shape == (1, *SHAPE)


def test_a_stochastic_solver_is_a_function_of_the_seed(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", sampler=sampler(step=Ancestral()))
    part = make(tmp_path / "part", count=4, first_seed=13, sampler=sampler(step=Ancestral()))
    torch.testing.assert_close(part[0]["state"], whole[13]["state"], atol=2e-3, rtol=0)


def test_dropout_is_off_meanwhile_and_back_afterwards(tmp_path: Path) -> None:
    net = Prediction(Net(), COSINE).train()
    net.net.net[0].eval()
    make(tmp_path / "a", sampler=sampler(net))
    assert net.training
    assert [m.training for m in net.net.net] == [False, True, True, True]
    make(tmp_path / "b", sampler=sampler(Prediction(Net(), COSINE).eval()))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


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


def test_the_description_of_the_teacher_is_taken_as_json(tmp_path: Path) -> None:
    make(tmp_path / "set", teacher={10: (1, 2), 9: None})
    data = make(tmp_path / "set", teacher={9: None, 10: [1, 2]}, resume=True)
    assert data.manifest["teacher"]["description"] == {"9": None, "10": [1, 2]}


def test_samples_may_be_numbers(tmp_path: Path) -> None:
    data = make(tmp_path / "set", shape=(), sampler=sampler(Gaussian(COSINE, torch.zeros(()), 1.0)))
    assert data.__getitems__([0, 5])["state"].shape == (2, 3)


def test_the_manifest_is_a_format(tmp_path: Path) -> None:
    """A change of this fingerprint means that folders written before can no longer be resumed."""
    made = make(
        tmp_path / "set", label=labels, teacher={"name": "mixture"}, sampler=sampler(step=DPMSolverPP(2))
    ).manifest
    determines = [k for k in made if k not in ("fingerprint", "made")]
    assert determines == [
        "format", "teacher", "schedule", "solver", "grid", "times", "targets", "shape", "count", "first_seed", "shard",
        "batch", "dtype", "cond",
    ]  # fmt: skip
    assert made["solver"] == {"name": "DPMSolverPP", "order": 2}
    made["teacher"]["sha256"] = ""  # linspace may differ in the last bit between machines
    assert fingerprint(made) == FINGERPRINT


FINGERPRINT = "1e83e52cf2b76253416e1e6596c7b0d803cd6e0e5e6afef7bd999e8bd1dbe40e"


def test_what_is_new_leaves_old_fingerprints_alone(tmp_path: Path) -> None:
    plain = describe(Prediction(Net(), COSINE, clip=1.0), {})
    assert plain == {"class": "Prediction", "kind": "x0", "clip": 1.0, "sha256": plain["sha256"], "description": {}}
    scaled = describe(Prediction(Net(), COSINE, "edm", clip=Threshold(0.9, 2.0), data_std=0.5), {})
    assert scaled["clip"] == {"ratio": 0.9, "maximum": 2.0}
    assert scaled["data_std"] == 0.5
    assert scaled["sha256"] == plain["sha256"]
    assert "compute" not in make(tmp_path / "set").manifest


def test_guided_trajectories_know_their_teacher(tmp_path: Path) -> None:
    def guided(weight: float | None = 2.0, null: Any = 2, clip: float | None = None) -> Guided:
        absent = {name: torch.tensor(v) for name, v in null.items()} if isinstance(null, dict) else torch.tensor(null)
        return Guided(Prediction(LabelledNet(), COSINE, clip=clip), absent, weight)

    data = make(tmp_path / "set", sampler=sampler(Meter(guided())), label=labels, resume=True)
    teacher = data.manifest["teacher"]
    assert (teacher["class"], teacher["weight"], teacher["null"]) == ("Guided", 2.0, 2)
    assert (teacher["denoiser"]["class"], teacher["denoiser"]["kind"]) == ("Prediction", "x0")
    data.check_teacher(guided())
    for other, difference in (
        (guided(1.0), "teacher.weight: expected 1.0, found 2.0"),
        (guided(null=1), "teacher.null: expected 1, found 2"),
        (guided(clip=1.0), "teacher.denoiser.clip: expected 1.0, found null"),
        (guided().denoiser, 'teacher.class: expected "Prediction", found "Guided"'),
    ):
        with pytest.raises(ValueError, match="holds trajectories of another teacher") as caught:
            data.check_teacher(other)
        assert difference in str(caught.value)
    # A weight per row, in the condition: the null condition is told without it.
    free = guided(None, {"label": 2})
    varied = make(tmp_path / "varied", sampler=sampler(free), label=told)
    assert varied.manifest["teacher"]["null"] == {"label": 2}
    assert varied.manifest["teacher"]["weight"] is None
    varied.check_teacher(free)


# How the network is evaluated


def test_mixed_precision_is_part_of_the_manifest(tmp_path: Path) -> None:
    net = Prediction(Net(), COSINE)
    exact = make(tmp_path / "exact", sampler=sampler(net), dtype=torch.float32)
    mixed = make(tmp_path / "mixed", sampler=sampler(net), dtype=torch.float32, autocast=torch.bfloat16)
    assert mixed.manifest["compute"] == {"autocast": "bfloat16"}
    a, b = (data.__getitems__(range(20))["state"] for data in (exact, mixed))
    assert not torch.equal(a, b)
    torch.testing.assert_close(a, b, atol=0.03, rtol=0.03)
    with pytest.raises(ValueError, match=r'compute: expected null, found \{"autocast": "bfloat16"\}'):
        make(tmp_path / "mixed", sampler=sampler(net), dtype=torch.float32, resume=True)


@pytest.mark.parametrize("option", ["channels_last", "compile"])
def test_what_is_done_to_the_network_is_undone(tmp_path: Path, option: str) -> None:
    net = Prediction(Net(), COSINE)
    seen: list[tuple[bool, bool]] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        last = inputs[0].is_contiguous(memory_format=torch.channels_last)
        seen.append((last, net.net._compiled_call_impl is not None))

    hook = net.net.net[2].register_forward_pre_hook(look)  # behind a layer of eight channels
    # The call goes through the compiled entry, without the compiler.
    eager = torch.compiler.set_stance("force_eager") if option == "compile" else contextlib.nullcontext()
    with eager:
        data = make(tmp_path / "set", sampler=sampler(net), **{option: True})
    hook.remove()
    assert set(seen) == {(option == "channels_last", option == "compile")}
    assert data.manifest["compute"] == {option: True}
    assert net.net._compiled_call_impl is None
    assert all(p.is_contiguous() for p in net.parameters())
    plain = make(tmp_path / "plain", sampler=sampler(net))
    torch.testing.assert_close(data[7]["state"], plain[7]["state"], atol=2e-3, rtol=2e-3)


def test_the_next_shard_is_solved_while_one_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "whole")
    calls, original = 0, os.fsync
    further = threading.Event()

    def denoiser(x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 3 * 8:  # three batches of eight steps make the first shard
            further.set()
        return mixture()(x, t, cond)

    denoiser.__name__ = "GaussianMixture"

    def waits(handle: int) -> None:
        if threading.current_thread().name.startswith("dsno-write"):
            assert further.wait(20), "nothing was solved meanwhile"
        original(handle)

    monkeypatch.setattr(os, "fsync", waits)
    solver = sampler(denoiser)
    make(tmp_path / "set", sampler=solver)
    for k in range(3):
        a, b = (load_file(tmp_path / name / f"shard-0000{k}.safetensors") for name in ("set", "whole"))
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_an_error_of_the_disk_is_told_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def full(*_: Any) -> None:
        failed.set()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    done: list[int] = []

    def progress(rows: int, total: int) -> None:
        done.append(rows)
        if rows == 11:  # the batch after the first shard
            assert failed.wait(20)

    with monkeypatch.context() as patch:
        patch.setattr(flights, "write_shard", full)
        with pytest.raises(OSError, match="No space left"):
            make(tmp_path / "set", count=800, progress=progress)
    assert done[-1] <= 16, "shards were solved that could not be written"
    assert sorted(contents(tmp_path / "set")) == ["manifest.json"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", [{}, {"autocast": torch.bfloat16, "channels_last": True}])
def test_a_gpu_makes_the_trajectories_of_a_cpu(tmp_path: Path, options: dict[str, Any]) -> None:
    net = Prediction(LabelledNet(), COSINE)
    here = make(tmp_path / "here", sampler=sampler(net), label=told, **options)
    there = make(tmp_path / "there", sampler=sampler(net.cuda()), label=told, **options)
    again = make(tmp_path / "again", sampler=sampler(net.cuda()), label=told, **options)
    assert contents(tmp_path / "there") == contents(tmp_path / "again")
    a, b = here.__getitems__(range(20)), there.__getitems__(range(20))
    assert torch.equal(a["cond"]["weight"], b["cond"]["weight"])
    for name in ("noise", "x0", "state"):
        torch.testing.assert_close(a[name], b[name], atol=0.03, rtol=0.03)
    assert len(again) == len(there)
    with pytest.raises(FloatingPointError, match=r"x0 at t = 0\.25 of seeds 1 is not finite"):
        make(tmp_path / "bad", sampler=sampler(Diverging(float("nan"), 0.25)), device="cuda")


# Resuming


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


SCRIPT = """
import sys
import torch
from dsno import grids, schedule, Cosine, DDIM, Prediction, SolverSampler
from dsno.trajectories.generate import generate

torch.set_num_threads(1)

def sampler():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 1, 3, padding=1))
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net
        def forward(self, x, t, cond):
            return self.net(x) + cond[:, None, None, None] / 10
    return SolverSampler(Prediction(Net(), Cosine()), Cosine(), grids.uniform(4), DDIM(), torch.tensor([0.5, 0.0]))

def run(folder, accelerator=None, **options):
    return generate(
        sampler(), (1, 8, 8), folder, 2000, shard=50, batch=16, targets=("x0", "state"), label=lambda s: s % 10,
        accelerator=accelerator, **options,
    )
"""


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[..., TrajectorySet]]:
    """A folder of forty shards of a small network, and the function that made it."""
    space: dict[str, Any] = {}
    exec(SCRIPT, space)
    folder = tmp_path_factory.mktemp("store") / "whole"
    space["run"](folder)
    return folder, space["run"]


def spawn(command: list[str], **options: Any) -> subprocess.Popen[str]:
    source = str(Path(dsno.__file__).parents[1])
    path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(command, env=environment, text=True, **options)


@pytest.mark.slow
def test_killed_at_random_it_resumes_to_the_same_bytes(
    tmp_path: Path, uninterrupted: tuple[Path, Callable[..., TrajectorySet]]
) -> None:
    whole, run = uninterrupted
    chance, written = random.Random(0), [0]
    call = "run(sys.argv[1], resume=True, progress=lambda *_: print('.', end='', flush=True))"
    script = tmp_path / "script.py"
    script.write_text(f"{SCRIPT}\n{call}\n")
    folder = tmp_path / "set"
    for _ in range(3):
        process = spawn([sys.executable, str(script), str(folder)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        batches_done = chance.randint(6, 30)  # of 160; a shard is four
        assert process.stdout.read(batches_done) == "." * batches_done
        time.sleep(chance.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        shards = sorted(folder.glob("shard-*.safetensors"))
        assert all(p.read_bytes() == (whole / p.name).read_bytes() for p in shards)
        written.append(len(shards))
    assert written == sorted(written)
    assert 0 < written[1] < 40, f"{written} of 40 shards: the first kill did not fall inside the work"
    run(folder, resume=True)
    assert contents(folder) == contents(whole)


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(
    tmp_path: Path, uninterrupted: tuple[Path, Callable[..., TrajectorySet]]
) -> None:
    whole, _ = uninterrupted
    script = tmp_path / "script.py"
    script.write_text(
        f"{SCRIPT}\nfrom accelerate import Accelerator\n"
        "accelerator = Accelerator(cpu=True)\nassert accelerator.num_processes == 2\n"
        "data = run(sys.argv[1], accelerator)\nassert len(data) == 2000\n"
    )
    # `--cpu --num_processes 2` starts one process unless there is MPI; `--multi_gpu` starts two, on any device.
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    process = spawn(
        [sys.executable, *launch, str(script), str(tmp_path / "set")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert contents(tmp_path / "set") == contents(whole)


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


# Refusals


def test_trajectories_know_their_teacher(tmp_path: Path) -> None:
    data = make(tmp_path / "set", sampler=sampler(Prediction(Net(), COSINE)), teacher={"name": "a"})
    torch.manual_seed(0)
    data.check_teacher(Prediction(Net(), COSINE))
    for other, difference in (
        (Prediction(Net(), COSINE, "eps"), "teacher.kind: expected"),
        (Prediction(Net().requires_grad_(False).double(), COSINE), "teacher.sha256: expected"),
        (mixture(), "teacher.class: expected"),
    ):
        with pytest.raises(ValueError, match=f"set holds trajectories of another teacher: .*{difference}"):
            data.check_teacher(other)


def test_an_existing_folder_needs_a_decision(tmp_path: Path) -> None:
    make(tmp_path / "set")
    with pytest.raises(FileExistsError, match="3 shards already: pass resume=True to continue or overwrite=True"):
        make(tmp_path / "set")
    with pytest.raises(ValueError, match="pass one of them"):
        make(tmp_path / "set", resume=True, overwrite=True)
    (tmp_path / "set" / "notes.txt").write_text("mine")
    data = make(tmp_path / "set", count=9, overwrite=True)
    assert len(data) == 9
    assert sorted(contents(tmp_path / "set")) == [
        "manifest.json", "notes.txt", "shard-00000.safetensors", "shard-00001.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_of_something_else_is_not_touched(tmp_path: Path, options: dict[str, bool]) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match=r"other files \(thesis\.tex\)"):
        make(tmp_path, **options)
    with pytest.raises(FileExistsError, match="is a file"):
        make(tmp_path / "thesis.tex", **options)
    assert contents(tmp_path) == {"thesis.tex": b"mine"}


def test_an_unwritable_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    folder = tmp_path / "locked" / "set"
    folder.parent.mkdir(mode=0o500)
    if os.geteuid() == 0:
        folder = Path("/proc/dsno")  # nobody may write there, not even root
        if not Path("/proc").is_dir():
            pytest.skip("root may write everywhere")
    with pytest.raises(OSError, match="cannot write to"):
        make(folder, sampler=sampler(Unwanted()))


CHANGES: dict[str, dict[str, Any]] = {
    "count: expected 21, found 20": {"count": 21},
    "first_seed: expected 1, found 0": {"first_seed": 1},
    'targets: expected ["x0"], found ["x0", "state"]': {"targets": ("x0",)},
    "batch: expected 4, found 3": {"batch": 4},
    "shard: expected 4, found 8": {"shard": 4},
    'dtype: expected "float32", found "float16"': {"dtype": torch.float32},
    "grid: expected 17 values, found 9 values": {"sampler": sampler(grid=grids.uniform(16))},
    "grid.1: expected 0.765625, found 0.875": {"sampler": sampler(grid=grids.quadratic(8), keep=None)},
    "times: expected [0.5, 0.0], found [0.5, 0.25, 0.0]": {"sampler": sampler(keep=torch.tensor([0.5, 0.0]))},
    'solver.name: expected "DPMSolverPP", found "DDIM"': {"sampler": sampler(step=DPMSolverPP())},
    'schedule.name: expected "RectifiedFlow", found "Cosine"': {"sampler": sampler(schedule=RectifiedFlow())},
    "schedule.log_snr_max: expected 15.0, found 20.0": {"sampler": sampler(schedule=Cosine(-20, 15))},
    'teacher.class: expected "Prediction"': {"sampler": sampler(Prediction(Net(), COSINE))},
    "teacher.sha256": {"sampler": sampler(GaussianMixture(COSINE, mixture().means, 0.4, labels=[0, 1, 2]))},
    'teacher.description.name: expected "b", found "a"': {"teacher": {"name": "b"}},
    "cond: expected": {"label": labels},
}


@pytest.fixture(scope="session")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("complete") / "set"
    make(folder, teacher={"name": "a"})
    return folder


@pytest.mark.parametrize("message", CHANGES)
def test_a_folder_of_another_manifest_names_what_differs(complete: Path, message: str) -> None:
    before = contents(complete)
    with pytest.raises(ValueError, match="holds other trajectories than asked for") as caught:
        make(complete, **{"teacher": {"name": "a"}, **CHANGES[message]}, resume=True)
    assert message in str(caught.value)
    assert "overwrite=True" in str(caught.value)
    assert contents(complete) == before


def test_a_lost_manifest_is_written_anew_only_for_its_own_shards(tmp_path: Path) -> None:
    make(tmp_path / "set")
    before = contents(tmp_path / "set")
    (tmp_path / "set" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors is foreign"):
        make(tmp_path / "set", resume=True, first_seed=1)
    with pytest.raises(FileNotFoundError, match=r"no .*manifest\.json"):
        TrajectorySet(tmp_path / "set")
    make(tmp_path / "set", resume=True)
    assert contents(tmp_path / "set") == before


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


DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (truncate, r"shard-00001\.safetensors is truncated or damaged: expected \d+ bytes, found \d+\. Delete it and call"),
    (empty, r"shard-00001\.safetensors is truncated, damaged or foreign: .*header cannot be read\. Delete it and call"),
    (flip, r"shard-00001\.safetensors is damaged: sha256: expected \w+, found \w+\. Delete it and call"),
    (scramble, r"shard-00001\.safetensors is truncated, damaged or foreign: .*Delete it and call"),
    (swap, r'shard-00001\.safetensors is foreign: .*shard: expected "1", found "0".*Delete it and call'),
    (exchange, r"shard-00001\.safetensors is foreign: __metadata__\.fingerprint: expected .*Delete it and call"),
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


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a folder that generate\(\) wrote"):
        TrajectorySet(tmp_path / "nothing")


class Diverging:
    """Finite until `after`, then `value` for the odd rows."""

    def __init__(self, value: float, after: float) -> None:
        self.value, self.after = value, after

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        output = torch.zeros_like(x_t)
        if float(t[0]) <= self.after:
            output[1::2] = self.value
        return output


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverging_teacher_names_seeds_and_time(tmp_path: Path, value: float) -> None:
    with pytest.raises(FloatingPointError, match=r"x0 at t = 0\.25 of seeds 41 is not finite: .*no shard was written"):
        make(tmp_path / "set", sampler=sampler(Diverging(value, 0.25)), first_seed=40)
    assert sorted(contents(tmp_path / "set")) == ["manifest.json"]
    make(tmp_path / "set")  # as good as new


def test_an_overflow_of_the_storage_dtype_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        FloatingPointError, match=r"exceeds the range of torch\.float16: store it with dtype=torch\.float32"
    ):
        make(tmp_path / "set", sampler=sampler(Diverging(1e6, 0.25)))
    make(tmp_path / "set", sampler=sampler(Diverging(1e6, 0.25)), dtype=torch.float32)


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
    options: dict[str, Any] = {
        "count": 64, "shard": 64, "shape": (1, 32, 32), "sampler": sampler(Gaussian(COSINE, torch.zeros(1, 32, 32), 1.0)),
    }  # fmt: skip
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write .*shard-00000.*kept: make room") as caught:
            make(tmp_path / "set", **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert sorted(contents(tmp_path / "set")) == ["manifest.json"]
    make(tmp_path / "set", **options, resume=True)


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
        ({"teacher": {"net": Net}}, "must be JSON"),
        ({"shape": (0,)}, "every length in shape must be at least 1, got 0"),
        ({"teacher": {"fid": float("nan")}}, "must be JSON"),
        ({"label": lambda seeds: seeds[:1]}, "one row per seed"),
        ({"label": lambda seeds: seeds.to(torch.complex64)}, "one row per seed"),
        ({"label": lambda seeds: {"label": seeds, "weight": seeds[:1]}}, r"one row per seed.*got cond\.weight \(1,\)"),
        ({"label": lambda seeds: {}}, "or several such by name: got none"),
        ({"autocast": torch.float32}, "autocast must be torch.bfloat16, torch.float16 or None"),
        ({"compile": True}, "need a network, a torch module: GaussianMixture has none"),
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


# Batches


class Range:
    """Rows that are their own index."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        return {"i": torch.tensor(indices)}


class Windowed(TrajectorySet):
    """The like of a set whose shards are shuffled by windows."""

    def __init__(self, length: int, shard: int, window: int) -> None:
        self._count, self.manifest, self.window, self._shelf = length, {"shard": shard}, window, None

    def __getitems__(self, indices: Any) -> dict[str, Any]:
        return {"i": torch.tensor(indices)}


def take(steps: int, *arguments: Any, **options: Any) -> list[list[int]]:
    stream = batches(*arguments, **options)
    return [next(stream)["i"].tolist() for _ in range(steps)]


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.integers(0, 5), st.integers(0, 12))
def test_a_batch_is_a_function_of_seed_and_step(length: int, share: int, world: int, seed: int, start: int) -> None:
    size = share * world
    length = max(length, size)
    whole = take(start + 4, Range(length), size, seed)
    assert take(4, Range(length), size, seed, start) == whole[start:]
    ranks = [take(start + 4, Range(length), size, seed, 0, rank, world) for rank in range(world)]
    assert [[*itertools.chain(*parts)] for parts in zip(*ranks, strict=True)] == whole
    steps = length // size
    epoch = [*itertools.chain(*take(steps, Range(length), size, seed, steps))]
    assert len(set(epoch)) == len(epoch) == steps * size


def test_epochs_and_seeds_differ() -> None:
    orders = [take(1, Range(100), 100, seed, epoch)[0] for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    assert all(sorted(order) == list(range(100)) for order in orders)


@settings(max_examples=40)
@given(
    st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3),
    st.integers(0, 9),
)  # fmt: skip
def test_windows_keep_the_order_a_function(
    length: int, shard: int, window: int, share: int, world: int, seed: int, start: int
) -> None:
    size = share * world
    length = max(length, size)
    rows = Windowed(length, shard, window)
    whole = take(start + 6, rows, size, seed)
    assert take(6, rows, size, seed, start) == whole[start:]
    ranks = [take(start + 6, rows, size, seed, 0, rank, world) for rank in range(world)]
    assert [[*itertools.chain(*parts)] for parts in zip(*ranks, strict=True)] == whole
    epoch = [*itertools.chain(*take(length // size, rows, size, seed))]
    assert len(set(epoch)) == len(epoch) == length // size * size
    # The rows come window by window: each is used up before the next begins, but for the tail of the epoch.
    shards = [i // shard for i in epoch]
    first = [*dict.fromkeys(shards)]
    last = {k: len(shards) - 1 - shards[::-1].index(k) for k in first}
    alive = [sum(first.index(j) <= first.index(k) and last[j] >= i for j in first) for i, k in enumerate(shards)]
    assert max(alive) <= window


def test_windows_shuffle(tmp_path: Path) -> None:
    data = make(tmp_path / "set", count=64)
    plain = [next(batches(data, 64, seed))["seeds"].tolist() for seed in (0, 1)]
    windowed = TrajectorySet(tmp_path / "set", window=2)
    orders = [b["seeds"].tolist() for seed in (0, 1) for b in itertools.islice(batches(windowed, 64, seed), 2)]
    assert len({tuple(order) for order in (*plain, *orders)}) == 6
    assert all(sorted(order) == list(range(64)) for order in orders)
    inside = [i % 8 for i in orders[0][:16]]
    assert inside != sorted(inside), "the rows of a window are in order"
    assert len({i // 8 for i in orders[0][:16]}) == 2
    assert next(batches(windowed.head(12), 12, 0))["seeds"].sort().values.tolist() == list(range(12))
    with pytest.raises(ValueError, match="window must be at least 1 shard, got 0"):
        TrajectorySet(tmp_path / "set", window=0)


def test_batches_of_trajectories(tmp_path: Path) -> None:
    data = make(tmp_path / "set", label=labels)
    batch = next(batches(data, 6, seed=1, start_step=7))
    assert batch["noise"].shape == (6, *SHAPE)
    assert torch.equal(batch["cond"], labels(batch["seeds"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((11, 0), "10 rows do not fill one batch of 11"),
        ((0, 0), "batch_size >= 1"),
        ((4, -1), "seed >= 0"),
        ((4, 0, -1), "start_step >= 0"),
        ((4, 0, 0, 2, 2), "0 <= rank < world"),
        ((4, 0, 0, 0, 3), "shared evenly by 3"),
    ],
)
def test_batches_refuses(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batches(Range(10), *arguments)
