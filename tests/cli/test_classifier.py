"""`dsno classifier`: the network that guides."""

from pathlib import Path

import pytest

from dsno.nets.classifier import load_classifier
from refusals import Spoil, refusals, refuses
from shell import dsno

SMALL = ("--channels", 4, 8, "--steps", 4)


def test_noisy_and_clean_ones_are_trained_and_resumed(tmp_path: Path) -> None:
    ran = dsno("classifier", *SMALL, at=tmp_path)
    assert ran.code == 0 and "classifier of 10 classes in runs/classifier" in ran.said
    assert ran.following[:3] == ["sample", "--guide", "classifier:runs/classifier"]
    assert load_classifier(tmp_path / "runs" / "classifier").noisy
    assert dsno("classifier", *SMALL, "--resume", at=tmp_path).code == 0
    assert dsno("classifier", *SMALL, "--clean", "--out", "runs/judge", at=tmp_path).code == 0
    assert not load_classifier(tmp_path / "runs" / "judge").noisy
    ran = dsno("classifier", *SMALL, "--steps", 6, at=tmp_path)
    assert ran.code == 2 and "runs/classifier exists already: pass --resume to continue it or --overwrite" in ran.err


@refusals(
    ("classifier --data crawl_cc0_32.npz --out new", None, "no data"),
    ("classifier --out runs/teacher --overwrite", None, "runs/teacher holds a teacher, not a classifier"),
    ("classifier --channels 4 8 16 32 64 --out new", None, "cannot be cut into patches of 1 and halved 4 times"),
    ("classifier --channels 1 --out new", None, "levels of 2 or more channels"),
    ("classifier --resume --overwrite", None, "resume continues what is there and overwrite throws it away"),
)
def test_a_failure_is_one_line_and_touches_nothing(command: str, spoil: Spoil, message: str, here: Path) -> None:
    refuses(command, spoil, message, at=here)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with an untrained teacher."""
    assert (
        dsno("teach", "--channels", 4, 8, "--batch", 4, "--train.steps", 2, "--train.warmup", 0, at=tmp_path).code == 0
    )
    return tmp_path
