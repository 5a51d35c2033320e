"""Values are what they are for, or are named; nothing large is built to find out."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from torch import nn

from dsno.outside import (
    Length,
    Within,
    building,
    check,
    check_arguments,
    check_expansion,
    must_be_file,
    parse_json,
    read_json_file,
    reading,
    rehearsed,
    try_out,
)


@dataclass
class Form:
    count: Annotated[int, Within(1, 9)]
    times: Annotated[list[float], Length(1, 3)] = field(default_factory=list)
    cond: "dict[str, Form] | None" = None


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (3, int),
        (3, float),
        (math.inf, float),
        (None, int | None),
        ("a", Literal["a", 1]),
        ([1, 2.5], Sequence[float]),
        ((1, "a"), tuple[int, str]),
        ((1, 2, 3), tuple[int, ...]),
        ({"a": {"b": 1}}, Mapping[str, Mapping[str, int | None]]),
        ({"count": 3, "more": 1, "cond": {"a": {"count": 1}}}, Form),
        (nn.Identity(), nn.Module | None),
        (object(), Any),
        ([], float | Sequence[float]),
    ],
)
def test_what_fits(value: Any, form: Any) -> None:
    check(value, form, "it")


@pytest.mark.parametrize(
    ("value", "form", "message"),
    [
        ("3", int, "it must be a whole number, got '3'"),
        (True, int, "it must be a whole number, got True"),
        (3.0, int, "it must be a whole number, got 3.0"),
        (10**19, int, "it must be a whole number"),
        (math.nan, float, "it must be a number, got nan"),
        (None, float, "it must be a number, got None"),
        (1, bool, "it must be true or false, got 1"),
        (1, str, "it must be a text, got 1"),
        ("b", Literal["a", 1], "it must be one of 'a', 1, got 'b'"),
        (True, Literal["a", 1], "it must be one of"),
        ("no", int | None, "it must be a whole number or null, got 'no'"),
        ([1, "a"], Sequence[float], r"it\[1\] must be a number, got 'a'"),
        ([1, "a"], float | Sequence[float], r"it\[1\] must be a number, got 'a'"),
        ("12", Sequence[float], "it must be a list of a number, got '12'"),
        ([1], tuple[int, int], "it must be 2 values, got 1"),
        ({"a": [0] * 9}, Mapping[str, int], r"it\.a must be a whole number, got a list of 9"),
        ([], Mapping[str, int], "it must be an object"),
        ({}, Form, "it lacks count"),
        ({"count": 10}, Form, r"it\.count must be a whole number from 1 to 9, got 10"),
        ({"count": 1, "times": []}, Form, r"it\.times must be a list of a number of 1 to 3 items, got \[\]"),
        ({"count": 1, "cond": {"a": {}}}, Form, r"it\.cond\.a lacks count"),
        ([], Form, "it must be an object"),
        (3, nn.Module | None, "it must be a Module or null, got 3"),
    ],
)
def test_what_does_not(value: Any, form: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        check(value, form, "it")


def test_arguments_are_checked_by_the_annotations_of_who_takes_them() -> None:
    def make(channels: int, widths: Sequence[int] = (), anything=None) -> None: ...

    check_arguments(make, {"channels": 1, "anything": object()}, "that file")
    with pytest.raises(ValueError, match=r"^that file: widths\[0\] must be a whole number, got 'a'"):
        check_arguments(make, {"channels": 1, "widths": ["a"]}, "that file")
    make.__annotations__["channels"] = "Unknown"
    check_arguments(make, {"channels": "what only a type checker knows"}, "that file")


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"9" * 5000, b"[" * 65 + b"]" * 65, b'{"a":' * 10**5, b" " * 101])
def test_json_is_bounded(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"^a\.json is (not valid JSON|larger than 100 bytes)"):
        parse_json(text, "a.json", 100 if text.isspace() else 2**20)
    assert parse_json(b"[" * 64 + b"]" * 64, "a.json")


def test_a_file_is_no_folder_and_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in ((tmp_path / "pipe", "is a pipe or a device"), (tmp_path, "is a folder: expected a file")):
        with pytest.raises(ValueError, match=message):
            must_be_file(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        read_json_file(tmp_path / "none")


def test_what_is_packed_may_not_grow_without_bound() -> None:
    check_expansion(10, 2**28, "a.npz")
    check_expansion(2**30, 2**33, "a.npz")
    with pytest.raises(ValueError, match=r"a\.npz declares 1000000000000 bytes in a file of 100"):
        check_expansion(100, 10**12, "a.npz")


def test_networks_are_rehearsed_without_memory() -> None:
    devices = []

    def make() -> nn.Linear:
        made = nn.Linear(2, 2)
        devices.append(made.weight.device.type)
        return made

    assert rehearsed(make, 2, "it", lambda net: None).weight.device.type == "cpu" and devices == ["meta", "cpu"]

    def reads() -> nn.Linear:
        torch.ones(2).sum().item()
        return make()

    rehearsed(reads, 2, "it", lambda net: None)
    assert devices[2:] == ["cpu"]
    with pytest.raises(ValueError, match=r"it describes no network \(KeyError: 'a'\)"):
        rehearsed(lambda: {}["a"], 2, "it", lambda net: None)


def test_a_length_is_looked_at_before_what_is_inside() -> None:
    class Long(list[float]):
        def __iter__(self):
            raise AssertionError("it was looked at")

    with pytest.raises(ValueError, match=r"it must be a list of a number of 1 to 2 items, got a list of 9"):
        check(Long([0.0] * 9), Annotated[list[float], Length(1, 2)], "it")


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (KeyError("a"), r"^a\.json is no scheduler \(KeyError: 'a'\)$"),
        (ValueError("no words"), r"^a\.json: no words$"),
        (ValueError("two\nlines of a.json"), r"^a\.json is no scheduler \(ValueError: two lines of a\.json\)$"),
        (FileNotFoundError("no a.json"), "^no a.json$"),
        (ImportError("no such package"), "^no such package$"),
    ],
)
def test_what_others_raise_names_the_file_in_one_line(raised: Exception, message: str) -> None:
    kind = type(raised) if "no a.json" in str(raised) or isinstance(raised, ImportError) else ValueError
    with pytest.raises(kind, match=message), reading("a.json", "is no scheduler"):
        raise raised


def test_trying_out_builds_on_the_meta_device_alone() -> None:
    seen = []
    try_out(lambda: nn.Linear(2, 2), 2, "it", lambda net: seen.append(net.weight.device.type))
    try_out(lambda: torch.ones(1).sum().item(), 2, "it", seen.append)
    assert seen == ["meta"]
    with pytest.raises(ValueError, match="it describes a network of more than the 2 weights"):
        try_out(lambda: nn.Sequential(*[nn.SiLU()] * 2000), 2, "it", seen.append)


def test_what_is_built_is_counted_until_it_is_too_much() -> None:
    with building(2, "it"):
        nn.Linear(2, 2)
    for more in (
        lambda: nn.ParameterList([nn.Parameter(torch.ones(1))] * 99),
        lambda: nn.Sequential(*[nn.SiLU()] * 2000),
    ):
        with pytest.raises(ValueError, match="it describes a network of more than the 2 weights"), building(2, "it"):
            more()
    nn.Sequential(*[nn.SiLU()] * 2000)
