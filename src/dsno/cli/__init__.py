"""The command line: a thin shell over the library. `dsno VERB --help` teaches each verb."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import tyro

from dsno import __version__
from dsno.cli.app import App
from dsno.cli.check import CheckTeacher
from dsno.cli.classifier import TrainClassifier
from dsno.cli.console import show_verbs, speaks
from dsno.cli.convert import Convert
from dsno.cli.distill import Distill, with_options
from dsno.cli.doctor import Doctor
from dsno.cli.evaluate import Demo, Evaluate
from dsno.cli.export import Export
from dsno.cli.features import Features
from dsno.cli.generate import Generate
from dsno.cli.methods import Cite, Methods
from dsno.cli.options import Refused
from dsno.cli.plan import Plan
from dsno.cli.reproduce import Reproduce
from dsno.cli.restore import Restore
from dsno.cli.sample import Sample
from dsno.cli.share import Pull, Push
from dsno.cli.teach import Teach
from dsno.cli.web import Web
from dsno.cli.words import flag, flags_of, on_the_shell
from dsno.distillation.registry import METHODS
from dsno.interrupt import Interrupted
from dsno.outputs import tidy

__all__ = ["ROAD", "VERBS", "Verb", "main"]


class Verb(Protocol):
    """A subcommand: its fields are its options, and what `run` returns is the exit code."""

    def run(self) -> int | None: ...


ROAD: dict[str, dict[str, type[Verb]]] = {
    "Look": {"demo": Demo, "doctor": Doctor},
    "Bring a teacher": {"teach": Teach, "convert": Convert, "check-teacher": CheckTeacher},
    "Make its trajectories": {"generate": Generate},
    "Distil": {"methods": Methods, "distill": Distill},
    "Sample and restore": {"sample": Sample, "classifier": TrainClassifier, "restore": Restore, "app": App},
    "Measure": {"features": Features, "evaluate": Evaluate},
    "Share and export": {"export": Export, "web": Web, "push": Push, "pull": Pull, "cite": Cite},
    "All of it at once": {"plan": Plan, "reproduce": Reproduce},
}
"""The subcommands by name, in the order in which they are used, under what they are for."""

VERBS: dict[str, type[Verb]] = {name: verb for verbs in ROAD.values() for name, verb in verbs.items()}
"""The subcommands by name."""

EXPECTED = (ValueError, OSError, FloatingPointError, ImportError, MemoryError, torch.OutOfMemoryError, Refused)
"""What a failure is that the user can mend; anything else is a fault of ours, and shows where it is."""


def main() -> None:
    """Entry point: expected failures are one line on stderr and exit code 2, and leave no empty folder behind."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Until there is a verb, errors are those of its arguments: of methods, whose options are known before.
    flags = {name: flag(name) for method in METHODS.values() for name in method.names}
    try:
        try:
            with tidy():
                if sys.argv[1:] == ["--version"]:
                    code = print(f"dsno {__version__}")
                elif sys.argv[1:] in ([], ["-h"], ["--help"]):
                    code = _overview(asked=bool(sys.argv[1:]))
                else:
                    verb = _parsed(sys.argv[1:])
                    flags = flags_of(verb)
                    code = verb.run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Who reads has read enough, as `head` does; what is still to be written must not fail again at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except EXPECTED as error:
        said = re.sub(r"^\[Errno \d+\] ", "", " ".join(str(error).splitlines())) or type(error).__name__
        print("dsno:", on_the_shell(said, flags, VERBS), file=sys.stderr)
        sys.exit(2)
    except Interrupted as stopped:
        if speaks():
            print(f"\ndsno: {stopped}; to go on: {_again(sys.argv[1:])}", file=sys.stderr)
        sys.exit(128 + stopped.signal)
    except KeyboardInterrupt:
        print("\ndsno: stopped; run the same command again, with --resume where it has one", file=sys.stderr)
        sys.exit(130)
    if code:
        sys.exit(code)


def _again(arguments: Sequence[str]) -> str:
    """The command that goes on with what was stopped."""
    kept = [argument for argument in arguments if argument != "--overwrite"]
    resumes = any(field.name == "resume" for field in dataclasses.fields(VERBS[kept[0]]))  # type: ignore[arg-type]
    return shlex.join(["dsno", *kept, *["--resume"] * (resumes and "--resume" not in kept)])


def _overview(asked: bool) -> int:
    """Print a line for each verb; it is an error not to name one, unless that was asked for."""
    show_verbs({title: {name: _title(verb) for name, verb in verbs.items()} for title, verbs in ROAD.items()}, asked)
    return 0 if asked else 2


def _parsed(arguments: Sequence[str]) -> Verb:
    """The verb that the arguments name, with its options."""
    verbs: dict[str, Callable[..., Verb]] = dict(VERBS)
    if [*arguments[:1]] == ["distill"]:
        verbs["distill"] = with_options(arguments[1:])
    return tyro.extras.subcommand_cli_from_dict(verbs, prog="dsno", description=__doc__)


def _title(verb: type[Verb]) -> str:
    """The first sentence of a verb's text."""
    first = " ".join((verb.__doc__ or "").split("\n\n")[0].split())
    return re.split(r"(?<=\w)[.;] ", first)[0].rstrip(".")
