"""`dsno teach`: a small teacher, trained on an image set, a bridge, trained on pairs, or a start for a problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dsno.cli.bridges import BRIDGES, BridgeName, kind_of_pairs, made_pairs, read_pairs
from dsno.cli.console import progress, say, say_aside
from dsno.cli.options import TAUGHT, AsRead, Reading, Training
from dsno.cli.problems import AsMeasured, Measured
from dsno.cli.starts import teach_start
from dsno.cli.words import command
from dsno.data.pairs import Pairs
from dsno.outputs import check_apart, check_request
from dsno.runs.bridge import teach_bridge
from dsno.runs.teach import teach
from dsno.schedule import Cosine, RectifiedFlow, Schedule, linear_beta

__all__ = ["Teach"]

SCHEDULES: dict[str, Callable[[], Schedule]] = {"cosine": Cosine, "flow": RectifiedFlow, "linear": linear_beta}
"""The noise schedules by the name that `--schedule` takes."""


@dataclass(frozen=True)
class Teach:
    """Train a small diffusion teacher on an image set, with --pairs a bridge from one set to another, or with --start
    where a teacher starts from to restore pictures in a few steps.

    In Python:

        from dsno.data.load import load_data
        from dsno.runs.teach import teach
        from dsno.train import TrainConfig
        teacher = teach(load_data("digits"), "runs/teacher", config=TrainConfig(steps=5000, lr=1e-3))
    """

    data: str = "digits"
    """Image set: digits, a folder or .zip of PNG or JPEG files, an .npy or .npz array, or an idx file."""
    pairs: tuple[str, ...] = ()
    """Train a bridge instead: two folders whose pictures have the same names, degraded and clean; or one, of pictures
    side by side, or a dataset with two --columns; or one clean set as --data, which a --problem degrades."""
    columns: tuple[str, ...] = ()
    """The columns of --pairs, degraded and clean."""
    bridge_type: BridgeName = "brownian"
    """With --pairs, the bridge between the two."""
    start: str | None = None
    """Train a learned start instead, of this teacher, or this folder of a student, and for a --problem: what
    `restore --start` takes."""
    prompts: Path | None = None
    """With --start, what a text-to-image teacher is told of every picture: a text file of one line."""
    measured: AsMeasured = field(default_factory=Measured)
    reading: AsRead = field(default_factory=Reading)
    out: Path = Path("runs/teacher")
    """Folder for the teacher."""
    channels: tuple[int, ...] = (32, 64)
    """U-Net widths, highest resolution first; each level halves the image."""
    kind: Literal["x0", "eps", "v", "flow", "i2sb", "ddbm"] | None = None
    """What the network predicts: v by default; with --pairs x0, flow, i2sb or ddbm, by default the last."""
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
    train: Training = field(default_factory=lambda: Training(**TAUGHT))
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
        if self.start is None and self.prompts is not None:
            raise ValueError("--prompts is of a learned start: give --start TEACHER, or leave it out")
        if self.start is not None:
            return self._start(self.start)
        if self.pairs:
            return self._bridge()
        if unread := self.measured.given():
            raise ValueError(
                f"{unread[0]} is of learned starts and of bridges: give --start TEACHER or --pairs CLEAN, or leave it "
                "out"
            )
        kind = "v" if self.kind is None else self.kind
        if kind == "i2sb" or kind == "ddbm":
            raise ValueError(f"--kind {kind} is of bridges: give --pairs, or one of x0, eps, v, flow")
        images = self.reading.load(self.data)
        with progress() as report:
            teach(
                images,
                self.out,
                self.channels,
                self.train,
                self.batch,
                kind,
                SCHEDULES[self.schedule](),
                self.conditional,
                self.resume,
                self.overwrite,
                report,
                drop=self.drop if self.conditional and self.null else 0.0,
            )
        say(f"teacher in {self.out}", command("generate", teacher=self.out))

    def _start(self, teacher: str) -> None:
        asked = {"--pairs": bool(self.pairs), "--kind": self.kind is not None, "--conditional": self.conditional}
        if unread := [name for name, given in asked.items() if given]:
            raise ValueError(f"{unread[0]} does not go with --start: leave one of them out")
        images = self.reading.load(self.data)
        restores = teach_start(
            teacher,
            images,
            self.measured,
            self.out,
            self.channels,
            self.train,
            self.batch,
            self.resume,
            self.overwrite,
            self.prompts,
        )
        say(f"start in {self.out}", restores)

    def _bridge(self) -> None:
        if self.conditional:
            raise ValueError("--conditional does not go with --pairs: leave it out")
        check_apart(self.out, *self.pairs)
        kind, pairs = kind_of_pairs(self.kind), self._pairs()
        with progress() as report:
            teach_bridge(
                pairs,
                self.out,
                self.channels,
                self.train,
                self.batch,
                kind,
                BRIDGES[self.bridge_type](),
                self.resume,
                self.overwrite,
                report,
            )
        following = command("sample", bridge=self.out, input=self.pairs[0], calls=13, samples=4)
        if len(self.pairs) == 1:
            # There is no folder of what it starts from.
            following = command("evaluate", teacher=self.out, pairs=self.pairs[0], columns=tuple(self.columns) or None)
        say(f"bridge in {self.out}", following)

    def _pairs(self) -> Pairs:
        """The pairs of --pairs.

        Raises:
            ValueError: for options that say something else; as `read_pairs`, `stated` and `degraded`.
        """
        asked = self.measured.given()
        if "--features" in asked:
            raise ValueError("--features is of learned starts: give --start TEACHER, or leave it out")
        if not asked:
            return read_pairs(self.pairs, self.columns, self.reading)
        if len(self.pairs) > 1 or self.columns:
            raise ValueError(f"{asked[0]} makes pairs of one clean set, and these are pairs: leave one of them out")
        problem = self.measured.stated()
        check_apart(self.out, *problem.inputs)
        return made_pairs(self.reading.load(self.pairs[0]), problem, self.measured.noise, self.train.seed)
