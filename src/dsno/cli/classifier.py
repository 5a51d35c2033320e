"""`dsno classifier`: a classifier that guides samples of any teacher towards a class."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dsno.cli.console import progress, say
from dsno.cli.options import AsRead, Reading
from dsno.cli.words import command
from dsno.outputs import check_apart, check_request
from dsno.runs.classifier import train_classifier

__all__ = ["TrainClassifier"]


@dataclass(frozen=True)
class TrainClassifier:
    """Train a classifier of noised pictures, which guides a teacher's samples towards a class (`sample --guide`).

    It is told how noisy they are and nothing of a schedule, so one serves all teachers of such pictures.

    In Python:

        from dsno.data.load import load_data
        from dsno.runs.classifier import train_classifier
        train_classifier(load_data("digits"), "runs/classifier")
    """

    data: str = "digits"
    """Labelled pictures, as `teach --data`."""
    reading: AsRead = field(default_factory=Reading)
    out: Path = Path("runs/classifier")
    """Folder for the network."""
    clean: bool = False
    """Train on clean pictures alone: it then guides by what it sees in the denoised ones, or judges."""
    channels: tuple[int, ...] = (16, 32, 64)
    """Widths of its levels, highest resolution first."""
    patch: int = 1
    """Side of the squares of pixels that it sees as one position."""
    steps: int = 2000
    """Training steps, of 128 pictures."""
    seed: int = 0
    """Of the weights and the batches."""
    resume: bool = False
    """Continue what is in --out."""
    overwrite: bool = False
    """Throw away the classifier in --out."""

    def run(self) -> None:
        check_apart(self.out, self.data)
        check_request(self.resume, self.overwrite)
        images = self.reading.load(self.data)
        with progress() as report:
            made = train_classifier(
                images,
                self.out,
                not self.clean,
                self.channels,
                self.patch,
                self.steps,
                seed=self.seed,
                report=report,
                resume=self.resume,
                overwrite=self.overwrite,
            )
        following = command("sample", guide=f"classifier:{self.out}", label=0, scale=2, solver="stsp4")
        say(f"classifier of {made.classes} classes in {self.out}", following)
