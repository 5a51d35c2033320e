"""Verbs about methods: list them, and cite what a run used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from dsno.cli.console import say, show_methods

if TYPE_CHECKING:
    pass

__all__ = ["Cite", "Methods"]


@dataclass(frozen=True)
class Methods:
    """List the methods of distillation: what each needs, how many passes it makes, where it is from, when to choose it.

    Every student starts from a teacher's weights; a method that needs no teacher does not ask it afterwards.

    In Python:

        from dsno.distillation.registry import METHODS
        for name, method in METHODS.items():
            print(name, method.needs, method.passes, method.choose)
    """

    def run(self) -> None:
        from dsno.distillation.registry import METHODS
        from dsno.references import REFERENCES

        rows = [
            {
                "method": method.name,
                "trains": method.student,
                "needs": " + ".join(method.needs),
                "passes": method.passes,
                "reference": REFERENCES[method.references[0]].short,
                "when": method.choose,
            }
            for method in METHODS.values()
        ]
        show_methods(rows)
        say(
            "Every student starts from a teacher's weights; a method that needs no teacher does not ask it afterwards.",
            "dsno distill --method NAME",
        )


@dataclass(frozen=True)
class Cite:
    """Print the BibTeX of what a run used: its method, solver, guidance, path, distances and metrics.

    In Python:

        from dsno.references import bibtex, used_by
        print(bibtex(used_by("runs/student")))
    """

    run_folder: Positional[Path] = Path("runs")
    """Folder of a student, a flow map, trajectories, a teacher or an evaluation, or one that holds several of them."""

    def run(self) -> None:
        from dsno.references import bibtex, used_by

        print(bibtex(used_by(self.run_folder)))
