"""What comes from outside, looked at before anything is built or allocated: files, JSON, and the types in it.

A configuration, a manifest and a header are somebody else's words until they are checked, and a few bytes can declare
a terabyte. So a file is read up to a bound, JSON up to a depth, every value against the annotation of what it is for
(`check`), and a network is built where it costs nothing, of no more parameters than there are weights for it
(`rehearsed`). Everything else in the library reads by these.

A form is an annotation: `int`, `float`, `str`, `bool`, `None`, `Literal`, unions, sequences, mappings, and dataclasses,
whose fields are the keys; `Annotated` adds bounds, `Within` on a number and `Length` on a sequence or a text.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import threading
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

import torch
from torch import nn

__all__ = [
    "JSON_BYTES",
    "UNCHECKED",
    "Length",
    "Within",
    "building",
    "check",
    "check_arguments",
    "check_expansion",
    "must_be_file",
    "one_line",
    "parse_json",
    "read_json_file",
    "reading",
    "rehearsed",
    "try_out",
    "unchecked",
]

T = TypeVar("T")

UNCHECKED = "DSNO_UNCHECKED"
"""The variable of the environment that, set to 1, lets files differ from their checksums."""

JSON_BYTES, DEPTH, WHOLE = 2**24, 64, 2**63

EXPANSION, ROOM = 200, 2**28
"""A compressed file may become 256 MB, or so many times its size: data of images does not shrink more."""


def unchecked(asked: bool = False) -> bool:
    """Whether a file may differ from its checksum: it was asked for, here or by the environment."""
    return asked or os.environ.get(UNCHECKED) == "1"


def one_line(error: BaseException) -> str:
    """What an error says, in one line of at most 200 characters."""
    return f"{' '.join(str(error).split()) or type(error).__name__:.200}"


def check_expansion(held: int, declared: int, source: object) -> None:
    """Refuse what would become very large when it is unpacked.

    Raises:
        ValueError: if `held` bytes declare more than two hundred times as many, and more than 256 MB.
    """
    if declared > max(ROOM, EXPANSION * held):
        raise ValueError(
            f"{source} declares {declared} bytes in a file of {held}: more than data shrinks. If it is what it says, "
            "store it without compression"
        )


# Files


def must_be_file(path: Path) -> Path:
    """`path`, if it is a file: a folder, a pipe or a device has no end or no content.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is something else.
    """
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    if not path.is_file():
        raise ValueError(f"{path} is {'a folder' if path.is_dir() else 'a pipe or a device'}: expected a file")
    return path


def read_json_file(path: Path, most: int = JSON_BYTES) -> Any:
    """Read a JSON file of at most `most` bytes; errors as `must_be_file` and `parse_json`."""
    with must_be_file(path).open("rb") as file:
        return parse_json(file.read(most + 1), path, most)


def parse_json(data: bytes, source: object, most: int = JSON_BYTES) -> Any:
    """Read JSON of at most `most` bytes and 64 levels.

    Raises:
        ValueError: if it is no JSON, larger, or nested deeper.
    """
    if len(data) > most:
        raise ValueError(f"{source} is larger than {most} bytes: not a configuration")
    deep = f"{source} is not valid JSON of ours: it is nested deeper than {DEPTH} levels"
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError(deep) from None
    except ValueError as error:
        raise ValueError(f"{source} is not valid JSON ({one_line(error)}): it is damaged or not a dsno file") from None
    level: list[Any] = [value]
    for _ in range(DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    if level:
        raise ValueError(deep)
    return value


# Forms


@dataclass(frozen=True)
class Within:
    """A finite number from `low` to `high`."""

    low: float
    high: float

    def __str__(self) -> str:
        return f" from {self.low} to {self.high}"

    def admits(self, value: Any) -> bool:
        return bool(self.low <= value <= self.high)


@dataclass(frozen=True)
class Length:
    """A sequence or a text of `low` to `high` items."""

    low: int
    high: int

    def __str__(self) -> str:
        return f" of {self.low} to {self.high} items"

    def admits(self, value: Any) -> bool:
        return self.low <= len(value) <= self.high


def check(value: Any, form: Any, where: str) -> None:
    """Refuse a value that is not of its form.

    Arguments:
        value: Plain data, as JSON gives it.
        form: See the module; what is no form of plain data (a module, a callable) takes anything of that class.
        where: What the value is, for the error.

    Raises:
        ValueError: what it must be and what came, naming the key.
    """
    origin, arguments = typing.get_origin(form), typing.get_args(form)
    if origin is Annotated:
        inner, *bounds = arguments
        # Before what is inside is looked at, which may be millions.
        sized = not isinstance(value, Sized) or all(b.admits(value) for b in bounds if isinstance(b, Length))
        if not sized or not _is_a(value, inner, typing.get_origin(inner), typing.get_args(inner)):
            raise ValueError(f"{where} must be {_words(form)}, got {_shown(value)}")
        check(value, inner, where)
        if value is not None and not all(b.admits(value) for b in bounds if isinstance(b, Within)):
            raise ValueError(f"{where} must be {_words(form)}, got {_shown(value)}")
        return
    if origin in (Union, types.UnionType):
        _check_any(value, form, where)
        return
    if not _is_a(value, form, origin, arguments):
        raise ValueError(f"{where} must be {_words(form)}, got {_shown(value)}")
    if _is_record(form) and isinstance(value, Mapping):
        _check_record(value, form, where)
    elif isinstance(value, Mapping) and len(arguments) == 2:
        for key, item in value.items():
            check(item, arguments[1], _inside(where, key))
    elif isinstance(value, list | tuple) and arguments:
        fixed = origin is tuple and arguments[-1] is not Ellipsis
        if fixed and len(value) != len(arguments):
            raise ValueError(f"{where} must be {len(arguments)} values, got {len(value)}")
        for n, item in enumerate(value):
            check(item, arguments[n if fixed else 0], f"{where}[{n}]")


def _check_any(value: Any, form: Any, where: str) -> None:
    """Of a union, say what is wrong in the member that the value is meant for."""
    wrong = []
    for member in typing.get_args(form):
        try:
            check(value, member, where)
        except ValueError as error:
            plain = typing.get_args(member)[0] if typing.get_origin(member) is Annotated else member
            if _is_a(value, plain, typing.get_origin(plain), typing.get_args(plain)):
                wrong.append(error)
        else:
            return
    raise wrong[0] if wrong else ValueError(f"{where} must be {_words(form)}, got {_shown(value)}")


def _check_record(value: Mapping[str, Any], form: Any, where: str) -> None:
    hints = typing.get_type_hints(form, include_extras=True)
    for field in dataclasses.fields(form):
        if field.name in value:
            check(value[field.name], hints[field.name], _inside(where, field.name))
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where.removesuffix(': ')} lacks {field.name}")


def check_arguments(make: Callable[..., object], config: Mapping[str, object], what: str) -> None:
    """Refuse values that are not what the parameters of `make` are annotated with.

    Raises:
        ValueError: for the first one.
    """
    try:
        called = make.__init__ if isinstance(make, type) else make  # type: ignore[misc]
        hints = typing.get_type_hints(called, include_extras=True)
    except (NameError, TypeError):
        return  # Annotations of somebody's own that only a type checker resolves.
    for name, value in config.items():
        if name in hints:
            check(value, hints[name], f"{what}: {name}")


def _inside(where: str, key: object) -> str:
    return f"{where}{'' if where.endswith(': ') else '.'}{key}"


def _is_record(form: Any) -> bool:
    return isinstance(form, type) and dataclasses.is_dataclass(form)


def _is_a(value: Any, form: Any, origin: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether a value is of a form's kind, whatever is inside."""
    if form in (Any, object):
        return True
    if form is None or form is type(None):
        return value is None
    if form is bool:
        return isinstance(value, bool)
    if form is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= WHOLE
    if form is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if form is str:
        return isinstance(value, str)
    if origin is Literal:
        return any(value is known or (type(value) is type(known) and value == known) for known in arguments)
    if _is_record(form):
        return isinstance(value, Mapping | form)
    kind = origin or form
    if isinstance(kind, type) and not getattr(kind, "_is_protocol", False):
        if issubclass(kind, Mapping):
            return isinstance(value, Mapping)
        if issubclass(kind, Sequence):
            return isinstance(value, list | tuple)
        return isinstance(value, kind)
    return True


def _words(form: Any) -> str:
    origin, arguments = typing.get_origin(form), typing.get_args(form)
    if origin is Annotated:
        return _words(arguments[0]) + "".join(str(b) for b in arguments[1:] if isinstance(b, Within | Length))
    if origin in (Union, types.UnionType):
        return " or ".join(_words(member) for member in arguments)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    plain = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    if form in plain:
        return plain[form]
    kind = origin or form
    if isinstance(kind, type) and (issubclass(kind, Mapping) or _is_record(kind)):
        return "an object"
    if isinstance(kind, type) and issubclass(kind, Sequence):
        return f"a list of {_words(arguments[0])}" if arguments else "a list"
    return f"a {getattr(kind, '__name__', kind)}"


def _shown(value: object) -> str:
    if isinstance(value, list | tuple | dict) and len(value) > 8:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return f"{value!r:.80}"


# Networks


@contextmanager
def building(weights: int, source: object) -> Iterator[None]:
    """Let this thread build a network for so many weights: a loop over many more has no end worth waiting for.

    Raises:
        ValueError: at the first parameter, or module, that is too much.
    """
    mine, left = threading.get_ident(), {"parameters": 64 + 2 * weights, "modules": 1000 + 50 * weights}

    def counting(what: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if threading.get_ident() == mine:
                left[what] -= 1
                if left[what] < 0:
                    raise ValueError(f"{source} describes a network of more than the {weights} weights that are there")

        return hook

    handles = [
        nn.modules.module.register_module_parameter_registration_hook(counting("parameters")),
        nn.modules.module.register_module_module_registration_hook(counting("modules")),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def rehearsed(make: Callable[[], T], weights: int, source: object, look: Callable[[T], object]) -> T:
    """What `make` builds, after it was built on the meta device, where nothing is allocated, and `look` approved.

    Arguments:
        make: Builds a network; called twice, but for what cannot be built on the meta device.
        weights: How many weights there are for it.
        source: Where its description comes from.
        look: Raises `ValueError` if the network is not that of the weights.

    Raises:
        ValueError: for a description that no network has.
    """
    try_out(make, weights, source, look)
    with building(weights, source), reading(source, "describes no network"):
        made = make()
    look(made)
    return made


def try_out(make: Callable[[], T], weights: int, source: object, look: Callable[[T], object]) -> None:
    """Build a network on the meta device, have it looked at, and forget it; arguments and errors as `rehearsed`."""
    trial: T | None = None
    with building(weights, source), reading(source, "describes no network"):
        try:
            with torch.device("meta"):
                trial = make()
        except Exception as error:
            # Who looks at numbers while building cannot do so there.
            if isinstance(error, ValueError) or "meta" not in str(error).lower():
                raise
    if trial is not None:
        look(trial)


@contextmanager
def reading(source: object, wrong: str) -> Iterator[None]:
    """Say which file it was, and that it is `wrong`, of whatever is raised by those who read what is in it.

    Raises:
        ValueError: instead, in one line; what names the file already, or a missing package, is raised as it is.
    """
    try:
        yield
    except Exception as error:
        said, text = str(error), one_line(error)
        named = str(source) in said and "\n" not in said
        if isinstance(error, ImportError) or (isinstance(error, ValueError | OSError) and named):
            raise
        if isinstance(error, ValueError) and text == said:
            raise ValueError(f"{source}: {text}") from None
        raise ValueError(f"{source} {wrong} ({type(error).__name__}: {text})") from None
