"""Labels are whole numbers from 0 on, or words; of anything else the row is named."""

import math
from typing import Any

import numpy as np
import pytest

from dsno.data.classes import class_numbers, said_of_gaps


@pytest.mark.parametrize(
    "values, numbers, names",
    [
        ([2, 0, 1], [2, 0, 1], None),
        (np.array([1.0, 0.0]), [1, 0], None),
        (np.array([True, False]), [1, 0], None),
        (np.array([3], np.uint64), [3], None),
        (["dog", " cat", "dog"], [1, 0, 1], ("cat", "dog")),
        (np.array(["b", "a"]), [1, 0], ("a", "b")),
        (np.array([b"b", b"a"]), [1, 0], ("a", "b")),
        # Sorted as words, 10 would come before 2.
        (["10", "2", "0"], [10, 2, 0], None),
        (["7", "cat"], [0, 1], ("7", "cat")),
        ([], [], None),
    ],
)
def test_numbers_stay_and_words_are_sorted(values: Any, numbers: list[int], names: tuple[str, ...] | None) -> None:
    labels = class_numbers(values, "a")
    assert labels.numbers.tolist() == numbers and labels.names == names


@pytest.mark.parametrize(
    "values, message",
    [
        ([0, None], "a, row 1 has no label"),
        ([0.0, math.nan], "a, row 1 has no label"),
        (["cat", ""], "a, row 1 has no label"),
        (np.array(["cat", np.nan]), "a, row 1 has no label"),
        (["cat", None], "a, row 1 has no label"),
        ([0, 1.5], r"a, row 1 has the label 1\.5, which is no class"),
        (["0", "1.5"], r"a, row 1 has the label '1\.5', which is no class"),
        ([0, math.inf], "a, row 1 has the label inf, which is no class"),
        ([0, -1], "a, row 1 has the label -1, which is no class"),
        (["0", "-1"], "a, row 1 has the label '-1', which is no class"),
        ([[0, 1], [1]], r"a, row 0 has the label \[0, 1\], which is no class"),
        ([1, "cat"], "a, row 1 has the label 'cat', which is no class: expected whole .*, or a word in every row"),
        (np.eye(3), r"a has labels of shape \(3, 3\): expected one class number for each"),
        ([5, 100_000], "a, row 1 has the label 100000, which makes 100,001 classes, 99,999 of them without a sample"),
    ],
)
def test_what_is_no_class_is_named_with_its_row(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_numbers(values, "a")


def test_names_bound_the_numbers() -> None:
    named = class_numbers([0, 1], "a", [f"c{k}" for k in range(20_000)])
    assert named.names is not None and len(named.names) == 20_000
    with pytest.raises(ValueError, match="a, row 1 has the label 2, which is no class: expected 0 to 1"):
        class_numbers([0, 2], "a", ["cat", "dog"])
    with pytest.raises(ValueError, match=r"a, x\.png has no label"):
        class_numbers([None], "a", rows=["x.png"])


def test_gaps_are_said() -> None:
    assert said_of_gaps(class_numbers([0, 1, 0], "a").numbers, 2) == ""
    assert said_of_gaps(class_numbers([0, 3], "a").numbers, 4) == "2 of 4 classes have no sample (1, 2)"
    assert said_of_gaps(class_numbers([999], "a").numbers, 1000).endswith("(0, 1, 2, 3, 4, ...)")
