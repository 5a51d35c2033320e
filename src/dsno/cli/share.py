"""`dsno push` and `dsno pull`: trajectories, carried to other machines and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from dsno.cli.console import progress, say
from dsno.cli.words import command
from dsno.trajectories.card import human_size
from dsno.trajectories.sets import TrajectorySet
from dsno.trajectories.share import pull, push

__all__ = ["Pull", "Push"]


@dataclass(frozen=True)
class Push:
    """Copy a set of trajectories to the Hub, or anywhere fsspec reaches; run again to continue.

    In Python:

        from dsno.trajectories.share import push
        push("runs/trajectories", "hf://datasets/org/name")
    """

    url: Positional[str]
    """Where to: hf://datasets/org/name, s3://bucket/name, file:///folder, ..."""
    data: Path = Path("runs/trajectories")
    """Folder of the set."""
    license: str = "unknown"
    """Its licence, for the card of a Hub repository."""
    private: bool | None = None
    """Whether a Hub repository that is created is private."""
    overwrite: bool = False
    """Replace another set there."""

    def run(self) -> None:
        with progress(human_size) as report:
            url = push(
                self.data,
                self.url,
                license=self.license,
                private=self.private,
                overwrite=self.overwrite,
                progress=lambda done, total: report("push", done, total, ""),
            )
        say(f"{self.data} is at {url}", command("pull", self.url))


@dataclass(frozen=True)
class Pull:
    """Copy a set of trajectories from the Hub, or anywhere fsspec reaches, and check it; run again to continue.

    In Python:

        from dsno.trajectories.share import pull
        pull("hf://datasets/org/name", "runs/trajectories")
    """

    url: Positional[str]
    """Where from: hf://datasets/org/name, s3://bucket/name, https://host/name, ..."""
    out: Path = Path("runs/trajectories")
    """Folder for it."""
    count: int | None = None
    """The first so many trajectories only, in whole files."""
    overwrite: bool = False
    """Replace another set in --out."""

    def run(self) -> None:
        with progress(human_size) as report:
            pull(
                self.url,
                self.out,
                self.count,
                overwrite=self.overwrite,
                progress=lambda done, total: report("pull", done, total, ""),
            )
        say(f"{len(TrajectorySet(self.out))} trajectories in {self.out}", command("distill", data=self.out))
