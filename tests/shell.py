"""The command line as tests call it."""

import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

from dsno import cli

QUICK = ("--batch", 16, "--train.steps", 6, "--train.warmup", 0, "--train.log-every", 2)
"""Options that end a training soon."""


@dataclass(frozen=True)
class Ran:
    code: int | str | None
    out: str
    err: str

    @property
    def said(self) -> str:
        """All that was printed."""
        return self.err + self.out

    @property
    def following(self) -> list[str]:
        """The arguments of the command that was printed as the next one."""
        program, *arguments = shlex.split(self.out.splitlines()[-1].removeprefix("next: "), comments=True)
        assert program == "dsno"
        return arguments


def dsno(*arguments: object, at: Path) -> Ran:
    """What `dsno ARGUMENTS` does in the folder `at`, in this process."""
    out, err, code = StringIO(), StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["dsno", *map(str, arguments)])
        patch.setenv("COLUMNS", "130")
        patch.chdir(at)
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
    return Ran(code, out.getvalue(), err.getvalue())
