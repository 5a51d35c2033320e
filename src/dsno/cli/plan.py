"""`dsno plan`: what a run will cost, before it is started."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from dsno.bridge.coefficients import BrownianBridge
from dsno.bridge.files import load_bridge
from dsno.bridge.prediction import BridgePrediction
from dsno.bridge.student import as_teacher
from dsno.checkpoint import write_json
from dsno.cli.bridges import is_bridge, read_pairs
from dsno.cli.console import say, show_estimate
from dsno.cli.options import TAUGHT, Reading, Variant, device_of, new_file
from dsno.cli.words import command, refuse_others
from dsno.grids import quadratic
from dsno.nets.paired import PairedUNet
from dsno.runs.plan import plan
from dsno.runs.recipes import RECIPES
from dsno.runs.workload import Crossings, Starts, Workload
from dsno.solvers.named import ODESolver
from dsno.teachers.load import load_teacher
from dsno.train import TrainConfig

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """What a run will cost: evaluations, FLOPs, bytes, memory, hours on this machine, and what to change to fit a
    budget.

    In Python:

        from dsno.runs.plan import plan
        from dsno.runs.recipes import RECIPES
        print(plan(RECIPES["digits"].workload(), budget_hours=1))
    """

    recipe: Positional[str] = "digits"
    """A recipe; or a teacher as `generate --teacher` takes it, or a bridge's folder, of which students are made."""
    variant: Variant = None
    budget_hours: float | None = None
    """What it may take; the plan then says what fits."""
    pairs: tuple[str, ...] = ()
    """Plan a bridge of these, as `teach --pairs`, with its student. Of clean pictures that a --problem degrades, name
    them twice."""
    columns: tuple[str, ...] = ()
    """The columns of --pairs, degraded and clean."""
    size: int | None = None
    """As `teach --size`, of --pairs."""
    start: bool = False
    """Plan a learned start of the teacher, as `teach --start`."""
    channels: tuple[int, ...] = (32, 64)
    """As `teach --channels`, of --pairs and --start."""
    teach_steps: int | None = None
    """Steps of the teacher's training, or of the bridge's of --pairs."""
    count: int | None = None
    """Trajectories."""
    frames: int | None = None
    """Frames, at the quadratic times (1 - m/M)^2."""
    solver: ODESolver | None = None
    """Solver of the trajectories."""
    steps: int | None = None
    """Its steps."""
    guided: bool = False
    """The teacher is guided: two evaluations for one."""
    train_steps: int | None = None
    """Steps of the student's training, or of the start's."""
    batch: int | None = None
    """Trajectories per step of it."""
    others: float | None = None
    """As `distill --others`."""
    where: Literal["every", "low", "mid", "none"] | None = None
    """As `distill --where`."""
    precision: Literal["no", "bf16", "fp16", "auto"] | None = None
    """Of the student's training; `auto`, as recipes have it, is what is quicker here."""
    shape: tuple[int, ...] = ()
    """Shape of a sample, for a recipe whose data are not at hand."""
    device: str | None = None
    """Where; the accelerator if there is one, else the CPU."""
    devices: int = 1
    """How many of them share the work."""
    seconds: float = 9.0
    """How long to measure."""
    out: Path | None = None
    """Write the plan as JSON, too."""
    overwrite: bool = False
    """Replace --out if it exists."""

    def run(self) -> None:
        self._check()
        if self.out is not None:
            new_file(self.out, self.overwrite, self.recipe)
        device = device_of(self.device)
        made = plan(self._changed(self._workload()), self.budget_hours, device, self.devices, self.seconds)
        if self.out is not None:
            write_json(self.out, made.to_dict())
        show_estimate(made)
        say("", self._following())

    def _following(self) -> str:
        """What begins the run that was planned."""
        if self.pairs:
            taken = {"columns": self.columns or None, "size": self.size, "channels": self.channels}
            return command("teach", pairs=self.pairs, **taken)
        if self.start:
            return command("teach", start=self.recipe, channels=self.channels, out="runs/start")
        if is_bridge(self.recipe):
            return command("generate", teacher=self.recipe, input="PICTURES", count=self.count)
        if self.recipe in RECIPES:
            return command("reproduce", self.recipe)
        solved = {"count": self.count, "frames": self.frames, "solver": self.solver, "steps": self.steps}
        return command("generate", teacher=self.recipe, variant=self.variant, **solved)

    def _check(self) -> None:
        """Refuse options of another kind of run."""
        bridge = is_bridge(self.recipe)
        if self.start and (bridge or self.pairs):
            other = f"{self.recipe} is a bridge" if bridge else "--pairs are of one"
            raise ValueError(f"--start is of a teacher that starts from noise, and {other}: leave it out")
        solved, paired = {"frames", "solver", "steps", "guided", "others", "where"}, {"columns", "size"}
        if self.pairs:
            kind, unread = "a plan of --pairs", solved
        elif bridge:
            kind, unread = "the plan of a bridge", solved | paired | {"channels"}
        elif self.start:
            kind, unread = "a plan of --start", solved | paired | {"count"}
        else:
            kind, unread = "a plan without --pairs or --start", paired | {"channels"}
        refuse_others(self, unread, f"is no option of {kind}")

    def _workload(self) -> Workload:
        """The run as the recipe has it, or the default one of a teacher, a bridge, pairs or a start."""
        if self.pairs:
            return self._of_pairs()
        if is_bridge(self.recipe):
            bridge = as_teacher(load_bridge(self.recipe))
            return Crossings(self.recipe, lambda: bridge)
        if self.recipe in RECIPES and not self.start:
            return replace(RECIPES[self.recipe].workload(self.shape or None), name=self.recipe)
        try:
            teacher = load_teacher(self.recipe, shape=self.shape or None, variant=self.variant)
        except (FileNotFoundError, ValueError) as error:
            if Path(self.recipe).exists():
                raise
            raise type(error)(f"{error}; nor is it a recipe: {', '.join(RECIPES)}") from None
        if self.start:
            return Starts(self.recipe, lambda: teacher, train=TrainConfig(**TAUGHT), channels=self.channels)
        return Workload(self.recipe, lambda: teacher)

    def _of_pairs(self) -> Workload:
        """A bridge of pairs, and its student."""
        pairs = read_pairs(self.pairs, self.columns, Reading(self.size))
        C, *spatial = pairs.shape
        net = PairedUNet({"in_channels": C, "image_size": spatial, "channels": list(self.channels)})
        bridge = as_teacher(BridgePrediction(net, BrownianBridge(), shape=pairs.shape))
        return Crossings(f"a bridge of {pairs.name}", lambda: bridge, teach=TrainConfig(**TAUGHT))

    def _changed(self, work: Workload) -> Workload:
        """The run with what was asked for instead."""
        times = None if self.frames is None else tuple(quadratic(self.frames)[1:].tolist())
        student = None if self.where is None else {**work.student, "where": self.where}
        train = teach = None
        if work.train is not None:
            train = replace(work.train, **_given(steps=self.train_steps, precision=self.precision))
        if self.teach_steps is not None:
            if work.teach is None:
                raise ValueError(f"{self.recipe} is a teacher already: leave out --teach-steps")
            teach = replace(work.teach, steps=self.teach_steps)
        changes = _given(
            count=self.count,
            times=times,
            solver=self.solver,
            steps=self.steps,
            student=student,
            train=train,
            teach=teach,
            train_batch=self.batch,
            others=self.others,
        )
        return replace(work, guided=self.guided, **changes)


def _given(**options: Any) -> dict[str, Any]:
    """Those that are given."""
    return {name: value for name, value in options.items() if value is not None}
