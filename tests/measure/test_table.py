"""Results as text, and which of them are best."""

import dataclasses

import pytest

from dsno.measure.results import Cost, Protocol, Result
from dsno.measure.table import COLUMNS, best, copied, nearest, reading, table
from pretend import result


@pytest.fixture
def results() -> list[Result]:
    samplers = [result(f"DDIM-{n}", n, 4 / n, 0.8 / n) for n in (2, 8, 64)]
    return [*samplers, result("fine", 0, 0.01, None)]


def test_table_has_text_for_every_cell(results: list[Result]) -> None:
    rows = table(results)
    assert [row["name"] for row in rows] == ["DDIM-2", "DDIM-8", "DDIM-64", "fine"]
    assert {tuple(row) for row in rows} == {("name", *(column.title for column in COLUMNS))}
    assert [row["network calls"] for row in rows] == ["2", "8", "64", "-"]
    assert [row["path error"] for row in rows] == ["0.400", "0.100", "0.0125", "-"]
    assert all(isinstance(cell, str) and cell for row in rows for cell in row.values())
    assert table([]) == []


def test_columns_that_nothing_fills_are_left_out() -> None:
    cost = Cost(nfe=2, rounds=2, flops=5_000_000, seconds=3.0, seconds_per_sample=0.5)
    (row,) = table([Result("x", "x", cost, Protocol(count=6))])
    assert row == {"name": "x", "network calls": "2", "evaluations": "2", "compute": "5.00", "batched": "500"}


def test_what_few_look_at_is_left_out_of_the_short_table(results: list[Result]) -> None:
    short, long = table(results, every=False), table(results)
    assert {*long[0]} - {*short[0]} == {column.title for column in COLUMNS if column.rare}
    assert "kernel" in long[0] and "kernel" not in short[0] and short[0].items() <= long[0].items()


def test_every_column_has_a_unit_and_says_where_it_is_better() -> None:
    scales = {column.title: column.scale for column in COLUMNS}
    assert all(scales.values())
    assert (scales["recall"], scales["path error"], scales["latency"]) == ("0 to 1 ↑", "RMSE ↓", "ms, one")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (0.0123456, "0.0123"),
        (1.5, "1.50"),
        (99.94, "99.9"),
        (123.4, "123"),
        (1234567.0, "1,234,567"),
        (0.00004321, "4e-05"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert table([result("x", 1, value)])[0]["Fréchet"] == text


def test_best_compares_samplers_on_one_scale_only(results: list[Result]) -> None:
    found = best(results)
    assert found["path error"] == found["Fréchet"] == {"DDIM-64"}
    # The set that nothing sampled has the least distance, and is no rival; nor is a cost won.
    assert not any("fine" in names for names in found.values()) and "latency" not in found
    assert best(results[:1]) == {}
    other = dataclasses.replace(results[1], protocol=dataclasses.replace(results[1].protocol, count=65))
    assert best([results[0], other]) == {}


def test_what_prints_alike_is_equally_good(results: list[Result]) -> None:
    def with_recall(n: int, recall: float) -> Result:
        return dataclasses.replace(results[n], quality=dataclasses.replace(results[n].quality, recall=recall))

    found = best([with_recall(0, 0.50041), with_recall(1, 0.50044), with_recall(2, 0.4)])
    assert found["recall"] == {"DDIM-2", "DDIM-8"}


def test_a_kernel_distance_below_zero_is_no_better_than_zero(results: list[Result]) -> None:
    def with_kernel(n: int, kernel: float) -> Result:
        return dataclasses.replace(results[n], quality=dataclasses.replace(results[n].quality, kernel=kernel))

    found = best([with_kernel(0, -0.4), with_kernel(1, -0.1), with_kernel(2, 0.2)])
    assert found["kernel"] == {"DDIM-2", "DDIM-8"}


def test_a_sentence_reads_the_first_row_beside_the_others(results: list[Result]) -> None:
    student, one = result("DSNO", 1, 0.5), result("UniPC-4", 4, 1.0)
    assert reading([student, *results, one]) == (
        "DSNO is at a distance of 0.500 from the data after 1 network call; as near: DDIM after 8; not as near: UniPC "
        "after 4; the nearest (*): DDIM-64, 0.0625 after 64 network calls."
    )
    first = reading([result("DSNO-2", 2, 0.01), result("DSNO-4", 4, 0.02), *results, result("Heun-2", 2, 0.0100004)])
    assert "; as near: Heun after 2; not as near: DDIM after 64; the nearest (*): DSNO-2, 0.0100 after 2" in first
    # On two scales nothing is nearer than anything, and alone or unmeasured nothing is said.
    other = dataclasses.replace(results[1], protocol=dataclasses.replace(results[1].protocol, count=65))
    nothing = ([], [student], [student, other], [dataclasses.replace(r, quality=None) for r in results])
    assert {reading(found) for found in nothing} == {""}


def test_of_two_that_print_alike_the_cheaper_one_is_the_nearest(results: list[Result]) -> None:
    cheap = result("UniPC-8", 8, 0.06251)
    assert nearest([*results, cheap]) == cheap and nearest(results) == results[2] and nearest(results[:1]) is None


def test_who_copies_is_said_by_family_with_the_lowest_ratio(results: list[Result]) -> None:
    def copying(of: Result, ratio: float) -> Result:
        return dataclasses.replace(of, held_out=dataclasses.replace(of.held_out, copying=ratio))

    student = copying(result("DSNO", 1, 0.5), 0.0412)
    assert copied([student, *results]) == (
        "DSNO copies the training data: copying is 0.041, where new data are at 1. Their distances to held-out data "
        "are those that count."
    )
    both = [student, copying(results[0], 0.4), copying(results[1], 0.3), copying(results[2], 0.6)]
    assert copied(both).startswith("DSNO and DDIM copy the training data: copying is 0.041 and 0.300, where")
    # At a half nobody is said to copy, and of what was not measured nothing is said.
    assert copied([copying(student, 0.5), dataclasses.replace(student, held_out=None)]) == copied([]) == ""
