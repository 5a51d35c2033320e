"""A folder is continued, begun again or refused before any work."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from dsno import grids
from dsno.denoise import Prediction
from dsno.schedule import Cosine, RectifiedFlow
from dsno.solvers.multistep import DPMSolverPP
from dsno.teachers.closed import GaussianMixture
from dsno.trajectories.sets import TrajectorySet
from stored import COSINE, Net, Unwanted, contents, labels, make, mixture, sampler


def test_an_existing_folder_needs_a_decision(tmp_path: Path) -> None:
    make(tmp_path / "set")
    with pytest.raises(FileExistsError, match="3 shards already: pass resume=True to continue or overwrite=True"):
        make(tmp_path / "set")
    with pytest.raises(ValueError, match="pass one of them"):
        make(tmp_path / "set", resume=True, overwrite=True)
    (tmp_path / "set" / "notes.txt").write_text("mine")
    data = make(tmp_path / "set", count=9, overwrite=True)
    assert len(data) == 9
    shards = [f"shard-0000{k}.safetensors" for k in range(2)]
    assert sorted(contents(tmp_path / "set")) == ["manifest.json", "notes.txt", *shards]


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
    'teacher.description.name: expected "b", found "a"': {"description": {"name": "b"}},
    "cond: expected": {"label": labels},
}


@pytest.fixture(scope="session")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("complete") / "set"
    make(folder, description={"name": "a"})
    return folder


@pytest.mark.parametrize("message", CHANGES)
def test_a_folder_of_another_manifest_names_what_differs(complete: Path, message: str) -> None:
    before = contents(complete)
    with pytest.raises(ValueError, match="holds other trajectories than asked for") as caught:
        make(complete, **{"description": {"name": "a"}, **CHANGES[message]}, resume=True)
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
