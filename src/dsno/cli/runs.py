"""Verbs about whole runs: what one costs, and run a recipe."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from dsno.cli.console import progress, say, show, show_plan
from dsno.cli.teachers import device_of, new_file

if TYPE_CHECKING:
    from dsno.runs.recipes import Recipe
    from dsno.runs.workload import Workload

__all__ = ["Plan", "Reproduce"]


@dataclass(frozen=True)
class Plan:
    """What a run will cost: evaluations, FLOPs, bytes, memory, hours on this machine, and what to change to fit a budget.

    In Python:

        from dsno.runs.plan import plan
        from dsno.runs.recipes import RECIPES
        print(plan(RECIPES["digits"].workload(), budget_hours=1))
    """

    recipe: Positional[str] = "digits"
    """A recipe, or a teacher as `generate --teacher` takes it."""
    budget_hours: float | None = None
    """What it may take; the plan then says what fits."""
    count: int | None = None
    """Trajectories."""
    frames: int | None = None
    """Frames, at the quadratic times (1 - m/M)^2."""
    solver: Literal["ddim", "heun", "dpm1", "dpm2", "dpm3", "unipc2", "unipc3"] | None = None
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
    precision: Literal["no", "bf16", "fp16"] | None = None
    """Of the student's training."""
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
        from dsno.checkpoint import write_json
        from dsno.runs.plan import plan

        if self.out is not None:
            new_file(self.out, self.overwrite)
        device = device_of(self.device)
        made = plan(self._changed(self._workload()), self.budget_hours, device, self.devices, self.seconds)
        if self.out is not None:
            write_json(self.out, made.to_dict())
        show_plan(made)

    def _workload(self) -> Workload:
        from dsno.runs.recipes import RECIPES
        from dsno.runs.workload import Workload
        from dsno.teachers.load import load_teacher

        if self.recipe in RECIPES:
            return replace(RECIPES[self.recipe].workload(self.shape or None), name=self.recipe)
        teacher = load_teacher(self.recipe, shape=self.shape or None)
        return Workload(self.recipe, lambda: teacher)

    def _changed(self, work: Workload) -> Workload:
        from dsno.grids import quadratic

        given = {"count": self.count, "solver": self.solver, "steps": self.steps, "train_batch": self.batch, "others": self.others}  # fmt: skip
        work = replace(work, guided=self.guided, **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]
        if self.frames is not None:
            work = replace(work, times=tuple(quadratic(self.frames)[1:].tolist()))
        if self.where is not None:
            work = replace(work, student={**work.student, "where": self.where})
        train = {"steps": self.train_steps, "precision": self.precision}
        changes = {k: v for k, v in train.items() if v is not None}
        if work.train is not None and changes:
            work = replace(work, train=replace(work.train, **changes))  # type: ignore[arg-type]
        return work


@dataclass(frozen=True)
class Reproduce:
    """Run a recipe from nothing: the pipeline that made the shipped weights. Run again to continue."""

    recipe: Positional[str] = "digits"
    """Which recipe; `dsno plan RECIPE` says what it costs."""
    out: Path | None = None
    """Folder for every stage; runs/RECIPE by default."""
    data: str | None = None
    """Where its data are, if not where the recipe says."""
    teacher: str | None = None
    """A teacher to use instead of training one."""

    def run(self) -> None:
        from dsno.data.load import load_data
        from dsno.report.compare import compare

        began = time.perf_counter()
        recipe = self._recipe()
        out = self.out or Path("runs") / self.recipe
        samples = load_data(recipe.data, size=recipe.size)
        with progress() as report:
            recipe.run(out, report, self.teacher, samples)
            parts = out / "teacher", out / "student", out / "features"
            results = None
            # Quality is measured by a classifier, and the report compares students that are told no class.
            if parts[2].is_dir() and not recipe.conditional:
                results = compare(*parts, samples, 2048, out / "evaluation", report)
        if results is not None:
            show(results)
        minutes = (time.perf_counter() - began) / 60
        page = f"; report: {out / 'evaluation' / 'report.html'}" if results is not None else ""
        say(f"{minutes:.1f} minutes{page}", f"dsno sample --student {out / 'student'}")

    def _recipe(self) -> Recipe:
        from dsno.runs.recipes import RECIPES

        if self.recipe not in RECIPES:
            raise ValueError(f"unknown recipe {self.recipe!r}: expected one of {', '.join(RECIPES)}")
        recipe = RECIPES[self.recipe]
        return recipe if self.data is None else replace(recipe, data=self.data)
