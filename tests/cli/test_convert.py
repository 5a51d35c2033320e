"""`dsno convert`: the same teacher as a folder of ours, or none."""

from pathlib import Path

import torch

from dsno.checkpoint import read_tensors
from refusals import Spoil, refusals, refuses
from shell import dsno


def test_converting_keeps_the_teacher(here: Path) -> None:
    ran = dsno("convert", "runs/teacher", "--out", "own", at=here)
    assert ran.code == 0 and ran.following == ["check-teacher", "own"]
    a, b = (read_tensors(here / folder / "model.safetensors") for folder in ("runs/teacher", "own"))
    assert all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()


OWN = """
from torch import nn
from dsno.denoise import Prediction
from dsno.nets.unet import UNet
from dsno.schedule import Cosine

timed = Prediction(UNet(1, 8, (4, 8), attention=()), Cosine(), "v", time=lambda t: 999 * t)
nameless = Prediction(nn.Conv2d(1, 1, 1), Cosine(), "v", shape=(1, 8, 8))
"""
"""Teachers of one's own that no configuration could rebuild."""


def own(here: Path) -> None:
    (here / "own.py").write_text(OWN)


@refusals(
    ("convert runs/student --out new", None, "runs/student holds a student, expected a teacher"),
    ("convert runs/teacher --out runs/student", None, "runs/student exists already"),
    ("convert own.py:timed --out new", own, "the UNet of own.py:timed has time units of its own: it cannot be"),
    ("convert own.py:nameless --out new", own, "the Conv2d of own.py:nameless does not say how to rebuild it"),
)
def test_a_failure_is_one_line_and_touches_nothing(command: str, spoil: Spoil, message: str, here: Path) -> None:
    refuses(command, spoil, message, at=here)
