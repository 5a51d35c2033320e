"""The command line: a thin shell over the library. `dsno VERB --help` teaches each verb."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Protocol

from dsno.cli.distill import Distill, distill_by
from dsno.cli.methods import Cite, Methods
from dsno.cli.runs import Plan, Reproduce
from dsno.cli.sets import Generate, Pull, Push
from dsno.cli.students import Demo, Evaluate, Export, Sample
from dsno.cli.teachers import CheckTeacher, Convert, Teach

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["VERBS", "main"]


class Verb(Protocol):
    """A subcommand: its fields are its options, and what `run` returns is the exit code."""

    def run(self) -> int | None: ...


_VERBS: tuple[type[Verb], ...] = (
    Demo, Teach, CheckTeacher, Convert, Plan, Generate, Push, Pull, Methods, Distill, Sample, Export, Evaluate,
    Reproduce, Cite,
)  # fmt: skip
VERBS: dict[str, type[Verb]] = {re.sub(r"(?<!^)(?=[A-Z])", "-", v.__name__).lower(): v for v in _VERBS}
"""The subcommands by name."""


def main() -> None:
    """Entry point: expected failures are one line on stderr and exit code 2."""
    import tyro

    verbs = dict(VERBS)
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        # The overview shows a line per verb; each verb's own help shows all of its text.
        verbs = {k: type(v.__name__, (v,), {"__doc__": (v.__doc__ or "").splitlines()[0]}) for k, v in verbs.items()}
    commands: dict[str, Callable[..., Verb]] = {**verbs}
    try:
        if sys.argv[1:2] == ["distill"]:
            commands["distill"] = distill_by(sys.argv[2:])
        chosen = tyro.extras.subcommand_cli_from_dict(commands, prog="dsno", description=__doc__)
        code = chosen.run()
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        print("dsno:", *str(error).splitlines(), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ndsno: stopped; run the same command again, with --resume where it has one", file=sys.stderr)
        sys.exit(130)
    if code:
        sys.exit(code)
