"""Results as a table, the best of each column known.

A table is text by column title; the shell prints it and a page sets it. What is best is decided among samplers on one
scale only, and after rounding to what is printed: a difference nobody sees makes nobody better. `reading` says in a
sentence what the table says of its first row, `copied` which samplers copy their training data.

A Fréchet distance is biased upwards (`dsno.measure.metrics`), so its best is not 0 but what samples of the data's own
law get, the row of `dsno.measure.evaluate.halves`; a kernel distance has no bias and is as often below 0 there. `BIAS`
and `UNBIASED` say so below a table, and `COPYING` what held-out data say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dsno.measure.copying import COPIED
from dsno.measure.results import Result

__all__ = ["BIAS", "COLUMNS", "COPYING", "UNBIASED", "Column", "best", "copied", "nearest", "reading", "table"]


BIAS = (
    "A Fréchet distance is biased upwards, by about 1 / samples: at its best it is not 0 but what one part of the real "
    "data gets against the other, the row 'real, other half'. Compare distances of equal numbers of samples."
)
"""What to know of the Fréchet distances in a table."""

UNBIASED = "A kernel distance has no bias: of equal laws it is around 0, by chance below it as often as above."
"""What to know of its kernel distances, where they are shown."""

COPYING = (
    "Copying is the median distance of the samples to the nearest image of the data over that of held-out images, in "
    f"the features of the other distances: 1 is as far as new images are, and a sampler below {COPIED:g} copies. In "
    "the row 'real, other half' it is about 1 where the held-out images are of the law of the data."
)
"""What to know of its copying ratios, where there are any."""


ARROWS = {"high": "↑", "low": "↓"}


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        title: What it is called.
        unit: What its numbers are in.
        get: The number in a result, or None.
        show: The number as text.
        ideal: `high` or `low` where one is better, else empty.
        rare: Whether only who asks for all columns is shown it.
    """

    title: str
    unit: str
    get: Callable[[Result], float | None]
    show: Callable[[float], str]
    ideal: str = ""
    rare: bool = False

    @property
    def scale(self) -> str:
        """The unit, and an arrow to where it is better."""
        return f"{self.unit} {ARROWS.get(self.ideal, '')}".rstrip()


def _quality(field: str) -> Callable[[Result], float | None]:
    return lambda result: None if result.quality is None else float(getattr(result.quality, field))


def _held_out(field: str) -> Callable[[Result], float | None]:
    return lambda result: None if result.held_out is None else float(getattr(result.held_out, field))


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


def _ratio(value: float) -> str:
    return f"{value:.3f}"


FRECHET = Column("Fréchet", "distance", _quality("frechet"), _digits, "low")

COLUMNS: tuple[Column, ...] = (
    Column("network calls", "serial", _cost("rounds"), _whole),
    Column("evaluations", "a sample", _cost("nfe"), _whole, rare=True),
    Column("compute", "MFLOP", _cost("flops"), lambda value: _digits(value / 1e6)),
    Column("PSNR", "dB", _fidelity("psnr"), lambda value: f"{value:.2f}", "high"),
    Column("feature distance", "to reference", _fidelity("feature_distance"), _digits, "low"),
    Column("spread", "RMS of samples", _fidelity("spread"), _ratio),
    FRECHET,
    Column("held-out Fréchet", "distance", _held_out("frechet"), _digits, "low"),
    Column("kernel", "×1000, around 0", _quality("kernel"), _milli, "low", rare=True),
    Column("held-out kernel", "×1000, around 0", _held_out("kernel"), _milli, "low", rare=True),
    Column("precision", "0 to 1", _quality("precision"), _ratio, "high"),
    Column("recall", "0 to 1", _quality("recall"), _ratio, "high"),
    Column("diversity", "data: 1", _quality("diversity"), _ratio, rare=True),
    Column("copying", "new data: 1", _held_out("copying"), _ratio),
    Column("class", "as asked", lambda result: result.accuracy, _ratio, "high"),
    Column("path error", "RMSE", lambda result: result.path_error, _digits, "low"),
    Column("latency", "ms, one", _cost("latency"), _milli),
    Column("batched", "ms each", _cost("seconds_per_sample"), _milli, rare=True),
)


def table(results: Sequence[Result], every: bool = True) -> list[dict[str, str]]:
    """One row per result, from column title to text, `name` first; columns that nothing fills are left out, and without
    `every` those that few look at."""
    shown = [c for c in COLUMNS if (every or not c.rare) and any(c.get(result) is not None for result in results)]
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


def nearest(results: Sequence[Result]) -> Result | None:
    """The sampler of the least Fréchet distance, of those that print alike the one of fewest calls; None where nothing
    is best."""
    winners = best(results).get(FRECHET.title, ())
    return min((r for r in results if r.name in winners), key=lambda r: r.cost.rounds, default=None)


def reading(results: Sequence[Result]) -> str:
    """What a table says of its first row, a student: how near it is to the data and what the others pay for that; empty
    where it says nothing.

    A family of others, a solver's numbers of steps, is as near where its distance is no larger or prints alike.
    """
    top = nearest(results)
    rivals = [result for result in results if result.cost.rounds and result.quality is not None]
    if top is None or not rivals:
        return ""
    own, *_ = rivals
    near, far = list[str](), list[str]()
    for family in dict.fromkeys(r.family for r in rivals if r.family != own.family):
        members = sorted((r for r in rivals if r.family == family), key=lambda r: r.cost.rounds)
        reach = [r for r in members if _frechet(r) <= _frechet(own) or _distance(r) == _distance(own)]
        (near if reach else far).append(f"{family} after {(reach or members[-1:])[0].cost.rounds}")
    parts = [
        f"{own.name} is at a distance of {_distance(own)} from the data after {_calls(own)}",
        f"as near: {_listed(near)}" if near else "",
        f"not as near: {_listed(far)}" if far else "",
        f"the nearest (*): {top.name}, {_distance(top)} after {_calls(top)}",
    ]
    return "; ".join(filter(None, parts)) + "."


def copied(results: Sequence[Result]) -> str:
    """Which families of samplers copy their training data, with the lowest ratio of each; empty where none does, or
    nothing was held out."""
    found: dict[str, float] = {}
    for result in results:
        if result.held_out is not None and (ratio := result.held_out.copying) < COPIED:
            found[result.family] = min(ratio, found.get(result.family, ratio))
    if not found:
        return ""
    ratios = _listed([_ratio(ratio) for ratio in found.values()])
    return (
        f"{_listed([*found])} cop{'ies' if len(found) == 1 else 'y'} the training data: copying is {ratios}, where new "
        "data are at 1. Their distances to held-out data are those that count."
    )


def _listed(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _frechet(result: Result) -> float:
    return math.inf if result.quality is None else result.quality.frechet


def _distance(result: Result) -> str:
    return FRECHET.show(_frechet(result))


def _calls(result: Result) -> str:
    return f"{result.cost.rounds} network call{'s' * (result.cost.rounds != 1)}"
