"""Labels as class numbers: whole numbers from 0 on as they are, words as their places in sorted order.

A label that is neither is an error that names its row: what became of a missing, fractional or negative one would be a
class that nobody meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Labels", "class_numbers", "said_of_gaps"]

_GAPS = 1000
"""Empty classes that are still believed, such as those of a part of ImageNet; or ten for each that is not empty."""


@dataclass(frozen=True)
class Labels:
    """The classes of samples.

    Attributes:
        numbers: (N,) int64, from 0 on.
        names: What the classes are called, in the order of their numbers, or None.
    """

    numbers: Tensor
    names: tuple[str, ...] | None = None


def class_numbers(
    values: Any, source: object, names: Sequence[str] | None = None, rows: Sequence[str] | None = None
) -> Labels:
    """Labels of any kind as class numbers.

    Arguments:
        values: (N,) numbers, or words; an array or a sequence. Numbers written as words are numbers.
        source: Where they are from, for messages.
        names: What the classes are called, where it is known.
        rows: What the rows are called, for messages; `row 0`, `row 1`, ... by default.

    Raises:
        ValueError: for a label that is missing, not whole, negative, or beyond `names`, or that leaves far more classes
            empty than there are; names the row.
    """
    array = values if isinstance(values, np.ndarray) else None
    if array is not None and array.ndim != 1:
        raise ValueError(
            f"{source} has labels of shape {array.shape}: expected one class number for each sample (of one-hot rows, "
            "the place of the one)"
        )

    def at(i: int) -> str:
        return f"{source}, {rows[i] if rows is not None else f'row {i}'}"

    given = [_stripped(value) for value in (values if array is None else array.tolist())]
    for i, value in enumerate(given):
        if value is None or value != value or (isinstance(value, str) and value.casefold() in ("", "nan")):
            raise ValueError(f"{at(i)} has no label: give each a class, or leave those without one out")
    numbers = [_number(value) for value in given]
    if None in numbers and all(isinstance(value, str) for value in given):
        words = sorted({*given})
        place = {word: k for k, word in enumerate(words)}
        return Labels(torch.tensor([place[word] for word in given], dtype=torch.int64), tuple(words))
    for i, number in enumerate(numbers):
        if number is None or number < 0 or number % 1 != 0:
            raise ValueError(
                f"{at(i)} has the label {given[i]!r}, which is no class: expected whole numbers from 0 on, or a "
                "word in every row"
            )
    whole = [int(number) for number in numbers if number is not None]
    last = max(whole, default=-1)
    where, classes = at(whole.index(last)) if whole else "", last + 1
    if names is not None and classes > len(names):
        raise ValueError(f"{where} has the label {last}, which is no class: expected 0 to {len(names) - 1}")
    present = len({*whole})
    if names is None and classes - present > max(_GAPS, 10 * present):
        raise ValueError(
            f"{where} has the label {last}, which makes {classes:,} classes, {classes - present:,} of them without a "
            "sample: number the classes without gaps, or give words for numbers, as in a column of text or a folder "
            "for each class"
        )
    return Labels(torch.tensor(whole, dtype=torch.int64), None if names is None else tuple(names))


def _stripped(value: Any) -> Any:
    value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return value.strip() if isinstance(value, str) else value


def _number(value: Any) -> float | None:
    """A number, also one that is written as a word; None for anything else."""
    if isinstance(value, int | float | np.number | np.bool_):
        return value  # type: ignore[return-value]
    if not isinstance(value, str):
        return None
    for read in (int, float):
        try:
            return read(value)
        except ValueError:
            continue
    return None


def said_of_gaps(labels: Tensor, classes: int) -> str:
    """How many of the classes have no sample, and which; nothing if each has one."""
    empty = sorted({*range(classes)} - {*labels.tolist()})
    if not empty:
        return ""
    shown = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
    return f"{len(empty)} of {classes} classes have no sample ({shown})"
