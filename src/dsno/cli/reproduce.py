"""`dsno reproduce`: a recipe, run from nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from tyro.conf import Positional

from dsno.cli.console import progress, say, show
from dsno.cli.options import Variant
from dsno.cli.words import command
from dsno.data.load import load_data
from dsno.report.compare import compare
from dsno.runs.recipes import RECIPES, Recipe

__all__ = ["Reproduce"]


@dataclass(frozen=True)
class Reproduce:
    """Run a recipe from nothing: the pipeline that made the shipped weights. Run again to continue."""

    recipe: Positional[str] = "digits"
    """Which recipe; `dsno plan RECIPE` says what it costs."""
    out: Path | None = None
    """Folder for every stage; runs/RECIPE by default."""
    data: str | None = None
    """Where its data are, if not where the recipe says."""
    range: tuple[float, float] | None = None
    """LOW HIGH of the numbers in an array of images, 0 1 say, where they leave it open; -1 1 takes them as they are."""
    teacher: str | None = None
    """A teacher to use instead of training one."""
    variant: Variant = None

    def run(self) -> None:
        began = time.perf_counter()
        recipe = self._recipe()
        out = self.out or Path("runs") / self.recipe
        samples = load_data(recipe.data, size=recipe.size, range=recipe.range)
        with progress() as report:
            recipe.run(out, report, self.teacher, samples, self.variant)
            parts = out / "teacher", out / "student", out / "features"
            results = None
            # Quality is measured by a classifier, which data without labels have none of.
            if parts[2].is_dir():
                results = compare(*parts, samples, out=out / "evaluation", report=report)
        if results is not None:
            show(results)
        minutes = (time.perf_counter() - began) / 60
        page = f"; report: {out / 'evaluation' / 'report.html'}" if results is not None else ""
        weight = None if recipe.guidance is None else f"{sum(recipe.guidance) / 2:g}"
        say(f"{minutes:.1f} minutes{page}", command("sample", student=out / "student", guidance=weight))

    def _recipe(self) -> Recipe:
        if self.recipe not in RECIPES:
            raise ValueError(f"unknown recipe {self.recipe!r}: expected one of {', '.join(RECIPES)}")
        recipe = RECIPES[self.recipe]
        changed = {name: getattr(self, name) for name in ("data", "range") if getattr(self, name) is not None}
        return replace(recipe, **changed)
