"""`dsno plan`: what a run will cost, before it is started."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from dsno.checkpoint import write_json
from dsno.cli.console import say, show_estimate
from dsno.cli.options import Variant, device_of, new_file
from dsno.cli.words import command
from dsno.grids import quadratic
from dsno.runs.plan import plan
from dsno.runs.recipes import RECIPES
from dsno.runs.workload import Workload
from dsno.solvers.named import ODESolver
from dsno.teachers.load import load_teacher

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
    """A recipe, or a teacher as `generate --teacher` takes it."""
    variant: Variant = None
    budget_hours: float | None = None
    """What it may take; the plan then says what fits."""
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
    """Steps of the student's training."""
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
        if self.out is not None:
            new_file(self.out, self.overwrite, self.recipe)
        device = device_of(self.device)
        made = plan(self._changed(self._workload()), self.budget_hours, device, self.devices, self.seconds)
        if self.out is not None:
            write_json(self.out, made.to_dict())
        show_estimate(made)
        if self.recipe in RECIPES:
            return say("", command("reproduce", self.recipe))
        solved = {"count": self.count, "frames": self.frames, "solver": self.solver, "steps": self.steps}
        say("", command("generate", teacher=self.recipe, variant=self.variant, **solved))

    def _workload(self) -> Workload:
        """The run as the recipe has it, or the default one of a teacher."""
        if self.recipe in RECIPES:
            return replace(RECIPES[self.recipe].workload(self.shape or None), name=self.recipe)
        try:
            teacher = load_teacher(self.recipe, shape=self.shape or None, variant=self.variant)
        except (FileNotFoundError, ValueError) as error:
            if Path(self.recipe).exists():
                raise
            raise type(error)(f"{error}; nor is it a recipe: {', '.join(RECIPES)}") from None
        return Workload(self.recipe, lambda: teacher)

    def _changed(self, work: Workload) -> Workload:
        """The run with what was asked for instead."""
        times = None if self.frames is None else tuple(quadratic(self.frames)[1:].tolist())
        student = None if self.where is None else {**work.student, "where": self.where}
        train = None
        if work.train is not None:
            train = replace(work.train, **_given(steps=self.train_steps, precision=self.precision))
        changes = _given(
            count=self.count,
            times=times,
            solver=self.solver,
            steps=self.steps,
            student=student,
            train=train,
            train_batch=self.batch,
            others=self.others,
        )
        return replace(work, guided=self.guided, **changes)


def _given(**options: Any) -> dict[str, Any]:
    """Those that are given."""
    return {name: value for name, value in options.items() if value is not None}
