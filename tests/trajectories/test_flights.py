"""Batches land in their order, checked, while the next one is solved."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dsno.denoise import Prediction
from dsno.trajectories import flights
from dsno.trajectories.compute import Compute
from stored import COSINE, Diverging, LabelledNet, contents, make, mixture, named_labels, sampler


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
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverging_teacher_names_seeds_and_time(tmp_path: Path, value: float) -> None:
    with pytest.raises(FloatingPointError, match=r"x0 at t = 0\.25 of seeds 41 is not finite: .*no shard was written"):
        make(tmp_path / "set", sampler=sampler(Diverging(value, 0.25)), first_seed=40)
    assert not (tmp_path / "set").exists()
    make(tmp_path / "set")  # as good as new


def test_an_overflow_of_the_storage_dtype_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        FloatingPointError, match=r"exceeds the range of torch\.float16: store it with dtype=torch\.float32"
    ):
        make(tmp_path / "set", sampler=sampler(Diverging(1e6, 0.25)))
    data = make(tmp_path / "set", sampler=sampler(Diverging(1e6, 0.25)), dtype=torch.float32)
    assert float(data[1]["x0"][1].max()) == 1e6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compute", [Compute(), Compute(torch.bfloat16, channels_last=True)], ids=["plain", "mixed"])
def test_a_gpu_makes_the_trajectories_of_a_cpu(tmp_path: Path, compute: Compute) -> None:
    net = Prediction(LabelledNet(), COSINE)
    here = make(tmp_path / "here", sampler=sampler(net), label=named_labels, compute=compute)
    there = make(tmp_path / "there", sampler=sampler(net.cuda()), label=named_labels, compute=compute)
    again = make(tmp_path / "again", sampler=sampler(net.cuda()), label=named_labels, compute=compute)
    assert contents(tmp_path / "there") == contents(tmp_path / "again")
    a, b = here.__getitems__(range(20)), there.__getitems__(range(20))
    assert torch.equal(a["cond"]["weight"], b["cond"]["weight"])
    for name in ("noise", "x0", "state"):
        torch.testing.assert_close(a[name], b[name], atol=0.03, rtol=0.03)
    assert len(again) == len(there)
    with pytest.raises(FloatingPointError, match=r"x0 at t = 0\.25 of seeds 1 is not finite"):
        make(tmp_path / "bad", sampler=sampler(Diverging(float("nan"), 0.25)), compute=Compute(device="cuda"))
