"""Folders in which verbs have run: each made once in a process and only read, and a copy for who writes."""

import shutil
from pathlib import Path

import pytest
import torch

from dsno.data.load import load_data
from dsno.denoise import Prediction
from dsno.nets.unet import UNet
from dsno.runs.features import train_features
from dsno.schedule import Cosine
from dsno.teachers.native import save_teacher
from shell import QUICK, Ran, dsno


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Ran]]:
    """A folder in which every verb has run once, each as the one before it said."""
    root = tmp_path_factory.mktemp("road")
    torch.manual_seed(0)
    ran = {"teach": dsno("teach", "--channels", 8, 16, *QUICK, at=root)}
    ran["generate"] = dsno(*ran["teach"].following, "--count", 64, "--steps", 6, at=root)
    ran["distill"] = dsno(*ran["generate"].following, *QUICK, at=root)
    train_features(load_data("digits"), root / "runs" / "features", steps=4, width=4)
    ran["sample"] = dsno(*ran["distill"].following, "--count", 9, at=root)
    ran["evaluate"] = dsno(*ran["sample"].following, "--count", 8, at=root)
    return root, ran


@pytest.fixture
def here(road: tuple[Path, dict[str, Ran]], tmp_path: Path) -> Path:
    """A copy of that folder to break."""
    return shutil.copytree(road[0], tmp_path / "here")


@pytest.fixture(scope="session")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a class-conditional teacher, trajectories of many guidance weights, and their student."""
    root = tmp_path_factory.mktemp("guided")
    torch.manual_seed(0)
    assert dsno("teach", "--conditional", "--channels", 8, 16, *QUICK, at=root).code == 0
    weights = ("--guidance", 0, 3, "--null", 9, "--count", 32, "--steps", 6, "--batch", 8)
    assert dsno("generate", *weights, at=root).code == 0
    assert dsno("distill", "--train-only", "temporal", *QUICK, at=root).code == 0
    return root


@pytest.fixture
def classes(guided: Path, tmp_path: Path) -> Path:
    """A copy of that folder to write to."""
    return shutil.copytree(guided, tmp_path / "classes")


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with untrained teachers of digits, one of them told classes, trajectories of both, and features."""
    root = tmp_path_factory.mktemp("untrained")
    torch.manual_seed(0)
    for folder, classes in (("runs", None), ("classes", 10)):
        net = UNet(1, 8, (4, 8), attention=(), classes=classes, null=classes is not None)
        save_teacher(root / folder / "teacher", Prediction(net, Cosine(), "v"))
        made = ("generate", "--teacher", f"{folder}/teacher", "--out", f"{folder}/trajectories", "--device", "cpu")
        assert dsno(*made, "--targets", "x0", "state", "--count", 32, "--steps", 6, at=root).code == 0
    train_features(load_data("digits"), root / "runs" / "features", steps=2, width=4)
    return root


@pytest.fixture
def runs(untrained: Path, tmp_path: Path) -> Path:
    """A copy of that folder to write to."""
    return shutil.copytree(untrained, tmp_path / "untrained")
