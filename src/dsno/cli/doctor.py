"""`dsno doctor`: what this installation has and lacks."""

from __future__ import annotations

import json
from dataclasses import dataclass

from dsno.cli.console import say, show_rows
from dsno.cli.words import command
from dsno.runs.doctor import GB, Checkup, Need, checkup

__all__ = ["Doctor"]

DEMO = ("images", "eval", "report")
"""The extras that the demo needs beside the command line's own."""


@dataclass(frozen=True)
class Doctor:
    """What this installation has and lacks: versions, devices, caches, extras; exit code 1 if the core is broken.

    In Python:

        from dsno.runs.doctor import checkup
        found = checkup()
        print(found.ok, found.lacking(), found.to_dict())
    """

    json: bool = False
    """Print it as JSON, for a report of a fault."""

    def run(self) -> int:
        found = checkup()
        if self.json:
            print(json.dumps(found.to_dict(), indent=2))
        else:
            print(f"dsno {found.dsno} on Python {found.python}\n{found.system}\n")
            for rows in (packages(found), devices(found), caches(found)):
                show_rows(rows)
                print()
            print(extras(found))
        lacking = found.lacking()
        mends = [lacking[name] for name in ("core", *DEMO) if name in lacking]
        say("", mends[0] if mends else command("demo"), aside=self.json)
        return 0 if found.ok else 1


def packages(found: Checkup) -> list[dict[str, str]]:
    """The packages as rows: those of the core, then each at the smallest extra that wants it."""
    groups = {"core": found.core} | dict(sorted(found.extras.items(), key=lambda extra: len(extra[1])))
    rows: dict[str, dict[str, str]] = {}
    for group, needs in groups.items():
        for need in needs:
            version, state = need.found or "-", need.problem or "ok"
            row = {"package": need.name, "of": group, "version": version, "needed": need.wanted, "": state}
            rows.setdefault(need.name, row)
    return [*rows.values()]


def devices(found: Checkup) -> list[dict[str, str]]:
    """The devices as rows."""
    return [
        {"device": d.name, "what": d.model, "memory": f"{d.memory / GB:.0f} GB", "": d.says, "bf16": d.bf16}
        for d in found.devices
    ]


def caches(found: Checkup) -> list[dict[str, str]]:
    """The caches as rows."""
    return [
        {
            "cache of": c.holds,
            "folder": c.path,
            "moved by": c.variable,
            "free": f"{c.free / GB:.0f} GB",
            "": c.problem or "writable",
        }
        for c in found.caches
    ]


def extras(found: Checkup) -> str:
    """What each extra lacks and the command that mends it: not in a table, whose lines could not be pasted."""
    groups: dict[str, tuple[Need, ...]] = {"core": found.core, **found.extras}
    lacking = found.lacking()
    lines = [f"complete: {', '.join(name for name in groups if name not in lacking) or 'nothing'}"]
    for name, mends in lacking.items():
        lines.append(f"{name} lacks {', '.join(need.name for need in groups[name] if need.problem)}:\n  {mends}")
    return "\n".join(lines)
