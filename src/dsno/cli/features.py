"""`dsno features`: the network that the quality of samples is measured in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dsno.cli.console import progress, say
from dsno.cli.options import AsRead, Reading
from dsno.cli.words import command
from dsno.outputs import check_apart, check_request
from dsno.runs.features import train_features

__all__ = ["Features"]


@dataclass(frozen=True)
class Features:
    """Train the small feature network that `evaluate` compares pictures of your own in.

    Of pictures with labels it learns these; of others how they were turned, which needs none.

    In Python:

        from dsno.data.load import load_data
        from dsno.runs.features import train_features
        train_features(load_data("digits"), "runs/features")
    """

    data: str = "digits"
    """The pictures, as `teach --data`: those that a student is going to be compared with."""
    reading: AsRead = field(default_factory=Reading)
    out: Path = Path("runs/features")
    """Folder for the network; `evaluate` looks for it beside the student."""
    labels: bool = True
    """Learn the labels, where there are two classes or more."""
    steps: int = 800
    """Training steps, of 128 pictures."""
    width: int = 16
    """Channels of the first layer, a multiple of 4."""
    seed: int = 0
    """Of the weights and the batches."""
    resume: bool = False
    """Continue what is in --out."""
    overwrite: bool = False
    """Throw away the feature network in --out."""

    def run(self) -> None:
        check_apart(self.out, self.data)
        check_request(self.resume, self.overwrite)
        images = self.reading.load(self.data)
        labelled = self.labels and (images.classes or 0) > 1
        with progress() as report:
            made = train_features(
                images, self.out, self.steps, self.seed, self.width, report, labelled, self.resume, self.overwrite
            )
        student = self.out.parent / "student"
        whose = student if student.is_dir() else None
        following = command("evaluate", student=whose, **self.reading.options(self.data), features=self.out)
        say(f"features {made.name} in {self.out}", following)
