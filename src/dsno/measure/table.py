"""Results as a table, the best of each column known.

A table is text by column title; the shell prints it and a page sets it. What is best is decided among samplers on one
scale only, and after rounding to what is printed: a difference nobody sees makes nobody better.

A Fréchet distance is biased upwards (`dsno.measure.metrics`), so its best is not 0 but what samples of the data's own
law get, the row of `dsno.measure.evaluate.halves`; `BIAS` says so below a table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dsno.measure.results import Result

__all__ = ["BIAS", "COLUMNS", "Column", "best", "table"]


BIAS = (
    "A Fréchet distance is biased upwards, by about 1 / samples: at its best it is not 0 but what one part of the real "
    "data gets against the other, the row 'real, other half'. Compare distances of equal numbers of samples."
)
"""What to know of the distances in a table."""


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        title: With its unit.
        get: The number in a result, or None.
        show: The number as text.
        ideal: `high` or `low` where one is better, else empty.
    """

    title: str
    get: Callable[[Result], float | None]
    show: Callable[[float], str]
    ideal: str = ""


def _quality(field: str) -> Callable[[Result], float | None]:
    return lambda result: None if result.quality is None else float(getattr(result.quality, field))


def _cost(field: str) -> Callable[[Result], float | None]:
    # A set that nothing sampled has no cost to show.
    return lambda result: getattr(result.cost, field) if result.cost.rounds else None


def _fidelity(field: str) -> Callable[[Result], float | None]:
    return lambda result: None if result.fidelity is None else getattr(result.fidelity, field)


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _digits(value: float) -> str:
    """Three significant digits; one below a ten-thousandth."""
    if abs(value) >= 100:
        return _whole(value)
    return f"{value:#.3g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}"


def _milli(value: float) -> str:
    return _digits(1e3 * value)


COLUMNS: tuple[Column, ...] = (
    Column("rounds", _cost("rounds"), _whole),
    Column("NFE", _cost("nfe"), _whole),
    Column("MFLOP", _cost("flops"), lambda value: _digits(value / 1e6)),
    Column("PSNR dB", _fidelity("psnr"), lambda value: f"{value:.2f}", "high"),
    Column("feature distance", _fidelity("feature_distance"), _digits, "low"),
    Column("spread", _fidelity("spread"), lambda value: f"{value:.3f}"),
    Column("Fréchet", _quality("frechet"), _digits, "low"),
    Column("kernel ×1000", _quality("kernel"), _milli, "low"),
    Column("precision", _quality("precision"), lambda value: f"{value:.3f}", "high"),
    Column("recall", _quality("recall"), lambda value: f"{value:.3f}", "high"),
    Column("diversity", _quality("diversity"), lambda value: f"{value:.3f}"),
    Column("path error", lambda result: result.path_error, _digits, "low"),
    Column("latency ms", _cost("latency"), _milli),
    Column("ms/sample", _cost("seconds_per_sample"), _milli),
)


def table(results: Sequence[Result]) -> list[dict[str, str]]:
    """One row per result, from column title to text, `name` first; columns that nothing fills are left out."""
    shown = [c for c in COLUMNS if any(c.get(result) is not None for result in results)]
    return [
        {"name": result.name} | {c.title: "-" if (value := c.get(result)) is None else c.show(value) for c in shown}
        for result in results
    ]


def best(results: Sequence[Result]) -> dict[str, set[str]]:
    """The names of the best results under each column title, those that print alike included.

    Only samplers count, and only where there are two or more, all measured on one scale (`Protocol.scale`); otherwise
    nothing is best.
    """
    rivals = [result for result in results if result.cost.rounds]
    if len(rivals) < 2 or len({result.protocol.scale for result in rivals}) > 1:
        return {}
    winners: dict[str, set[str]] = {}
    for column in COLUMNS:
        # An unbiased distance below 0 is as good as 0.
        values = {r.name: max(value, 0.0) for r in rivals if (value := column.get(r)) is not None}
        if column.ideal and values:
            top = (min if column.ideal == "low" else max)(values.values())
            winners[column.title] = {name for name, value in values.items() if column.show(value) == column.show(top)}
    return winners
