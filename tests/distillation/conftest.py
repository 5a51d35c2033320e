"""A small class-conditional teacher, and its trajectories."""

import pytest

from conditional import small_set, small_teacher
from dsno.denoise import Prediction
from dsno.trajectories.sets import TrajectorySet


@pytest.fixture(scope="session")
def teacher() -> Prediction:
    return small_teacher()


@pytest.fixture(scope="session")
def trajectories(teacher: Prediction, tmp_path_factory: pytest.TempPathFactory) -> TrajectorySet:
    return small_set(teacher, tmp_path_factory.mktemp("data") / "trajectories")
