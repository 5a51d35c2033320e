"""`dsno teach`: a small teacher, trained on an image set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dsno.cli.console import progress, say, say_aside
from dsno.cli.options import AsRead, Reading, Training
from dsno.outputs import check_apart, check_request
from dsno.runs.teach import teach
from dsno.schedule import Cosine, RectifiedFlow, Schedule, linear_beta

__all__ = ["Teach"]

SCHEDULES: dict[str, Callable[[], Schedule]] = {"cosine": Cosine, "flow": RectifiedFlow, "linear": linear_beta}
"""The noise schedules by the name that `--schedule` takes."""


@dataclass(frozen=True)
class Teach:
    """Train a small diffusion teacher on an image set.

    In Python:

        from dsno.data.load import load_data
        from dsno.runs.teach import teach
        from dsno.train import TrainConfig
        teacher = teach(load_data("digits"), "runs/teacher", config=TrainConfig(steps=5000, lr=1e-3))
    """

    data: str = "digits"
    """Image set: digits, a folder or .zip of PNG or JPEG files, an .npy or .npz array, or an idx file."""
    reading: AsRead = field(default_factory=Reading)
    out: Path = Path("runs/teacher")
    """Folder for the teacher."""
    channels: tuple[int, ...] = (32, 64)
    """U-Net widths, highest resolution first; each level halves the image."""
    kind: Literal["x0", "eps", "v", "flow"] = "v"
    """What the network predicts."""
    schedule: Literal["cosine", "flow", "linear"] = "cosine"
    """Noise schedule: the paper's cosine, rectified flow, or DDPM's linear beta."""
    conditional: bool = False
    """Train on the labels too; words become classes in sorted order, noted in the config.json of --out."""
    null: bool = True
    """With --conditional, learn a label that stands for no class, too, as `generate --guidance` needs: the number
    behind the last class."""
    drop: float = 0.1
    """With --null, the share of the labels that become it."""
    batch: int = 128
    """Images per step."""
    train: Training = field(default_factory=lambda: Training(steps=5000, lr=1e-3, warmup=200))
    resume: bool = False
    """Continue from the last checkpoint in --out, as Ctrl-C leaves one; --train.lr and --train.clip may
    differ, --train.steps grow."""
    overwrite: bool = False
    """Throw away the teacher in --out."""

    def run(self) -> None:
        check_apart(self.out, self.data)
        check_request(self.resume, self.overwrite)
        if self.train.warmup >= self.train.steps:
            say_aside(
                f"--train.warmup {self.train.warmup} is no shorter than the {self.train.steps} steps: the learning "
                "rate does not reach --train.lr"
            )
        images = self.reading.load(self.data)
        with progress() as report:
            teach(
                images,
                self.out,
                self.channels,
                self.train,
                self.batch,
                self.kind,
                SCHEDULES[self.schedule](),
                self.conditional,
                self.resume,
                self.overwrite,
                report,
                drop=self.drop if self.conditional and self.null else 0.0,
            )
        say(f"teacher in {self.out}", f"dsno generate --teacher {self.out}")
