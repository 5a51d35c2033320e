"""Verbs about methods: list them, and cite what a run used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from dsno.cli.bridges import SamplerName
from dsno.cli.console import say, show_methods, show_rows
from dsno.cli.words import command, flag
from dsno.distillation.registry import METHODS, method_named
from dsno.inverse.named import CHOICES, RESTORERS, START, Choice
from dsno.inverse.start import LearnedStart
from dsno.references import OF_RESTORER, REFERENCES

__all__ = ["Cite", "Methods", "options_table"]


CROSSINGS: dict[SamplerName, tuple[str, str, str]] = {
    "dbim2": ("N", "zheng2025diffusion", "the first to try, and the default: few calls"),
    "dbim3": ("N", "zheng2025diffusion", "an order more, where there are a dozen calls or more"),
    "dbim1": ("N", "zheng2025diffusion", "what a higher order is compared with"),
    "odes3": ("2 (N - 1)", "wang2024ordinary", "few calls, an even number of them; its start ends earlier"),
    "odes3-exponential": ("2 (N - 1)", "wang2024ordinary", "the same, the stiff part taken exactly"),
    "euler": ("N", "zhou2024denoising", "what the others are compared with"),
    "ancestral": ("N", "liu2023i2sb", "a hundred calls can be paid for"),
    "hybrid": ("3 (N - 1)", "zhou2024denoising", "results as DDBM publishes them"),
}
"""The samplers of a bridge: the calls of N steps, the source, and when to take it."""


@dataclass(frozen=True)
class Methods:
    """List the methods of distillation and of restoring pictures, and the samplers of bridges: what each needs, where
    it is from, when to choose it.

    Every student starts from a teacher's weights; a method that needs no teacher does not ask it afterwards. To restore
    nothing is trained, but for a learned start.

    In Python:

        from dsno.distillation.registry import METHODS
        for name, method in METHODS.items():
            print(name, method.needs, method.passes, method.choose, method.described())
        from dsno.inverse.named import CHOICES, START
        print(CHOICES["diffpir"].choose, START.choose)
    """

    name: Positional[str] = ""
    """A method of distillation, whose options are then listed."""
    markdown: bool = False
    """Print the options of all methods as the table of docs/methods.md."""

    def run(self) -> None:
        if self.markdown:
            print(options_table())
            return say("", command("methods"), "what each is for", aside=True)
        if self.name in _restorers():
            made = LearnedStart if self.name == "start" else RESTORERS[self.name]
            raise ValueError(
                f"{self.name} is a restorer, whose options are those of `dsno restore`; more has {made.__name__} in "
                "Python"
            )
        if self.name in CROSSINGS:
            raise ValueError(f"{self.name} is a sampler of bridges: dsno sample --bridge FOLDER --sampler {self.name}")
        if self.name:
            method = method_named(self.name)
            show_rows(
                [
                    {"option": flag(o.name), "takes": o.type, "default": shown(o.default), "": o.help}
                    for o in method.described()
                ]
            )
            return say("", command("distill", method=method.name))
        show_methods(
            [
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
        )
        print(
            "Every student starts from a teacher's weights; a method that needs no teacher does not ask it afterwards."
        )
        show_methods(
            [
                {
                    "restorer": name,
                    "a step": choice.step,
                    "problems": choice.takes,
                    "reference": REFERENCES[OF_RESTORER[name][0]].short,
                    "when": choice.choose,
                }
                for name, choice in _restorers().items()
            ],
            (14, 24, 10, 28, 60),
        )
        print(
            "To restore pictures nothing is trained, but for start (dsno teach --start TEACHER): dsno restore PICTURES "
            "--method NAME. Where one problem is known and there are pairs to train on, a network of the teacher's "
            "size has the lower error."
        )
        show_methods(
            [
                {"bridge": name, "calls": calls, "reference": REFERENCES[reference].short, "when": choose}
                for name, (calls, reference, choose) in CROSSINGS.items()
            ],
            (18, 10, 28, 60),
        )
        say(
            "Bridges are trained on pairs, dsno teach --pairs, and sampled in N steps: dsno sample --bridge FOLDER "
            "--sampler NAME.\n"
            "Samples of a class that the teacher was never told: dsno classifier, then sample or generate --guide; "
            "stsp4 for a rough or strong guide, plms4 for a smooth one.",
            command("distill", method="NAME"),
        )


def _restorers() -> dict[str, Choice]:
    """What to know of each method of `dsno restore`, by name."""
    return {**CHOICES, "start": START}


def options_table() -> str:
    """The options of all methods as a table in Markdown, one row for those that several methods have alike."""
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for method in METHODS.values():
        for o in method.described():
            rows.setdefault((flag(o.name), o.type, shown(o.default), o.help), []).append(f"`{method.name}`")
    lines = ["| option | takes | default | of | |", "|---|---|---|---|---|"]
    for (name, kind, default, text), methods in sorted(rows.items(), key=lambda row: row[0][0]):
        lines.append(f"| `{name}` | {kind} | {default} | {', '.join(methods)} | {text} |")
    return "\n".join(lines)


def shown(default: object) -> str:
    """A default as the command line would be told it."""
    if isinstance(default, tuple):
        return " ".join(f"{value:g}" for value in default) or "all"
    return "none" if default is None else f"{default:.6g}" if isinstance(default, float) else str(default).lower()


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
        say("", command("methods"), "what else there is, with its papers", aside=True)
