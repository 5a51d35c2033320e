"""The run of the paper, counted once."""

import pytest

from dsno.denoise import Prediction
from dsno.nets.iddpm import CIFAR10, IDDPMUNet
from dsno.runs.counts import Count, count_run, teacher_to_count
from dsno.runs.workload import Workload
from dsno.schedule import Cosine
from dsno.train import TrainConfig


@pytest.fixture(scope="session")
def published() -> tuple[Workload, Count]:
    """What CIFAR-10's run consists of, and its work."""
    work = Workload(
        "cifar10",
        lambda: Prediction(IDDPMUNet(**CIFAR10), Cosine(), "x0"),
        count=1_024_000,
        solver="ddim",
        steps=512,
        student={"where": "every", "once": False, "told": "output"},
        train=TrainConfig(steps=400_000),
    )
    return work, count_run(work, teacher_to_count(work))
