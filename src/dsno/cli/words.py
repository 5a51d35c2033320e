r"""What the library says, in the words of the shell.

An error of the library names what its caller may pass: `overwrite=True`, `label=3`, `distill(..., inner_starts=0.5)`.
On the command line these are `--overwrite`, `--label 3` and `dsno distill --inner-starts 0.5`. The library speaks
Python alone, and what the shell prints is translated here, by the options of the verb that runs:

| in Python | on the shell |
|---|---|
| `name=True`, `name=False`, `name=value`, of an option | `--name`, `--no-name`, `--name value` |
| `verb(..., name=value)`, of any verb | `dsno verb --name value` |
| `` `name` ``, and `name must be` at the start, of an option | `--name` |
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

from dsno.runs.shipped import shipped_name

__all__ = ["command", "flag", "flags_of", "on_the_shell", "refuse_others"]

_VALUE = r"""\((?:[^()]*)\)|\[[^\[\]]*\]|'[^']*'|"[^"]*"|[\w.+-]*\w"""
_ARGUMENT = re.compile(rf"(?<![\w.-])([a-z_]+)=({_VALUE})")
_CALL = re.compile(rf"`?\b([a-z]+)\((?:\.\.\.(?:, )?)?((?:[a-z_]+=(?:{_VALUE})(?:, )?)*)\)`?")
_NAME = re.compile(r"`([a-z_]+\d*)`")
_SUBJECT = re.compile(r"(?:the )?([a-z_]+\d*)(?= (?:must|is|are|has|needs?|takes?)\b)")


def flag(name: str) -> str:
    """What an option is called on the command line."""
    return f"--{name.replace('_', '-')}"


def command(verb: str, *given: object, **options: object) -> str:
    """A command as it can be pasted: `dsno VERB GIVEN --option value`, quoted where the shell needs it.

    An option that is None or False is left out, a True one has no value, and of a tuple each item is a word. A student
    that ships with the package goes by its name.
    """
    words = ["dsno", verb, *map(_word, given)]
    for name, value in options.items():
        if value is not None and value is not False:
            words += [flag(name), *map(_word, () if value is True else value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


def _word(value: object) -> str:
    return (shipped_name(value) if isinstance(value, Path) else None) or str(value)


def flags_of(verb: object) -> dict[str, str]:
    """The flags of a verb by the names that the library knows them by; those of its training behind its own."""
    found: dict[str, str] = {}
    for prefix, part in (("", "options"), ("", "reading"), ("train.", "train")):
        if is_dataclass(held := getattr(verb, part, None)):
            found = {f.name: flag(prefix + f.name) for f in fields(held)} | found
    own = {f.name: flag(f.name) for f in fields(verb)} if is_dataclass(verb) else {}
    return {name: known for name, known in (found | own).items() if name not in ("train", "options", "reading")}


def refuse_others(verb: object, names: Collection[str], why: str) -> None:
    """Refuse options of these names that were given, of a verb that would not read them.

    Raises:
        ValueError: for the first one, which `why` says of it.
    """
    for field in fields(verb):  # type: ignore[arg-type]
        if field.name in names and getattr(verb, field.name) != field.default:
            raise ValueError(f"{flag(field.name)} {why}: leave it out")


def on_the_shell(text: str, flags: Mapping[str, str], verbs: Collection[str]) -> str:
    """What an error of the library says, with options as the shell takes them.

    Arguments:
        text: The error.
        flags: Of the verb that runs, by name.
        verbs: The names of all verbs.
    """

    def call(found: re.Match[str]) -> str:
        verb, arguments = found[1], found[2]
        if verb not in verbs:
            return found[0]
        given = [_as_flag(flag(name), value) for name, value in _ARGUMENT.findall(arguments)]
        return f"`{' '.join(['dsno', verb, *given])}`"

    def argument(found: re.Match[str]) -> str:
        return _as_flag(flags[found[1]], found[2]) if found[1] in flags else found[0]

    def alone(found: re.Match[str]) -> str:
        return flags.get(found[1], found[0])

    text = _NAME.sub(alone, _ARGUMENT.sub(argument, _CALL.sub(call, text)))
    subject = _SUBJECT.match(text)
    return flags[subject[1]] + text[subject.end() :] if subject and subject[1] in flags else text


def _as_flag(name: str, value: str) -> str:
    if value in ("True", "False"):
        return name if value == "True" else name.replace("--", "--no-", 1)
    parts = (part.strip(" \"'") for part in value.strip("()[]").split(","))
    return " ".join([name, *filter(None, parts)])
