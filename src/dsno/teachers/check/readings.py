r"""The network's output read in other conventions: where one denoises clearly better than the stated one, it is named.

A reading is a kind and a sign of the output, what the network is told for t, a schedule, and a range of the data. Its
score is the mean over a few noise levels of

$$ \log \frac{\mathrm{RMSE}(\hat x_0)}{\text{that of the best baseline}}, $$

below 0 where it denoises. One evaluation of the network is read as every kind and with either sign; a kind of its own
is `edm`, whose network is shown another input. Without data each reading is tried on the samples that it makes itself:
samples made by a wrong one tell nothing of the others.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

from torch import Tensor, nn

from dsno.denoise import KINDS, Kind, Prediction, scale_input, x0_from
from dsno.schedule import VE, Cosine, RectifiedFlow, Schedule, VPLinear, linear_beta
from dsno.teachers.check.denoising import baselines, denoise, sample
from dsno.teachers.check.subject import Subject, rmse
from dsno.teachers.check.verdict import Finding

__all__ = ["Reading", "check_readings"]

LEVELS, LEVELS_SPAN, ROWS = 4, 4.0, 16
"""How much is looked at of each reading: levels, the largest log-SNR of the data, rows."""

WORST = 5.0
"""No score is above this: levels where a reading explodes do not outweigh the others."""


@dataclass(frozen=True)
class Reading:
    """A convention to try.

    Attributes:
        kind: What the output is.
        sign: 1, or -1 where the network returns minus that.
        time: What the network is told for t, a key of `TIMES`.
        schedule: Another schedule, or None.
        values: The range of data that the network was trained on, a key of `RANGES`, or the data's own.
    """

    kind: Kind
    sign: int = 1
    time: str = ""
    schedule: Schedule | None = None
    values: str = ""

    @property
    def changes(self) -> int:
        """In how many ways it is another than the stated one, its kind not counted."""
        return sum([self.sign < 0, bool(self.time), self.schedule is not None, bool(self.values)])

    def describe(self, stated: Kind) -> str:
        """`v, told 1000 t`, or the like."""
        words = [f"{'minus ' * (self.sign < 0)}{self.kind}"] if self.kind != stated or self.sign < 0 else []
        words += [f"told {self.time}"] * bool(self.time)
        words += [f"on {self.schedule!r}"] if self.schedule is not None else []
        words += [f"for data in {self.values}"] * bool(self.values)
        return ", ".join(words)

    def remedy(self, stated: Kind) -> str:
        """What to change so that it becomes the stated one."""
        steps = [f"kind={self.kind!r}"] if self.kind != stated else []
        steps += ["a network that returns minus its output"] if self.sign < 0 else []
        steps += [f"tell it {self.time} for t"] if self.time else []
        steps += [f"schedule={self.schedule!r}"] if self.schedule is not None else []
        around = f"use data in {self.values}, or a module around it that maps to this range and back"
        return ", ".join(steps + [around] * bool(self.values))


TIMES: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "": lambda base, t: base(t),
    "1 - t": lambda base, t: base(1 - t),
    "1000 t": lambda base, t: 1000 * base(t),
    "t / 1000": lambda base, t: base(t) / 1000,
}
"""What a network may be told for t, given what it is told now, `base(t)`."""

RANGES = {"[-1, 1]": (-1.0, 1.0), "[0, 1]": (0.0, 1.0), "[0, 255]": (0.0, 255.0)}


def other_ranges(low: float, high: float) -> dict[str, tuple[float, float]]:
    """The other usual ranges, as (factor, offset) from the one that data in [low, high] are nearest to."""
    held = min(RANGES.values(), key=lambda r: (abs(low - r[0]) + abs(high - r[1])) / (r[1] - r[0]))
    factors = {name: (r[1] - r[0]) / (held[1] - held[0]) for name, r in RANGES.items() if r != held}
    return {name: (f, RANGES[name][0] - f * held[0]) for name, f in factors.items()}


def other_schedules(schedule: Schedule) -> list[Schedule]:
    """The usual schedules without this one."""
    return [s for s in (Cosine(), linear_beta(), RectifiedFlow(), VPLinear(), VE()) if s != schedule]


def check_readings(subject: Subject, beaten: bool, patience: float) -> list[Finding]:
    """Read a `Prediction` in other conventions, more of them and with less mercy where the stated one is `beaten`."""
    if not isinstance(subject.inner, Prediction):
        return []
    stated = Reading(subject.inner.kind)
    bench = subject.first(ROWS)
    if subject.from_data:
        scaled = stated.kind == "edm"
        tried = _with_data(subject, stated, beaten)
        asked = [partial(_scores, bench, reading, edm) for reading in tried for edm in (scaled, not scaled)]
        return [_judge(stated, _scored(asked, 2, patience), beaten, 0.2)]
    scores = _scored([partial(_own_score, bench, reading) for reading in _without_data(subject, stated)], 1, patience)
    return [_judge(stated, {stated: WORST, **scores}, beaten, 0.5)]


def _with_data(subject: Subject, stated: Reading, beaten: bool) -> list[Reading]:
    """Other times, schedules and ranges, each for all kinds and signs; times on other schedules, too, if `beaten`."""
    both = product([None, *other_schedules(subject.schedule)], TIMES)
    tried = [replace(stated, time=t, schedule=s) for s, t in both if beaten or not (t and s)]
    tried += [replace(stated, values=values) for values in other_ranges(*subject.limits)]
    return sorted(tried, key=lambda reading: reading.changes)


def _without_data(subject: Subject, stated: Reading) -> list[Reading]:
    """What is stated, and each single change of it."""
    kinds = [replace(stated, kind=kind, sign=sign) for kind, sign in product(KINDS, (1, -1))]
    tried = [stated, *(reading for reading in kinds if reading != stated)]
    tried += [replace(stated, time=t) for t in TIMES if t]
    return tried + [replace(stated, schedule=schedule) for schedule in other_schedules(subject.schedule)]


Scores = dict[Reading, float]


def _scored(asked: Iterable[Callable[[], Scores]], enough: int, patience: float) -> Scores:
    """Ask until `patience` ends, but for `enough` answers at least."""
    scores: Scores = {}
    began = time.perf_counter()
    for n, ask in enumerate(asked):
        if n >= enough and scores and time.perf_counter() - began > patience:
            break
        with suppress(Exception):  # A network may refuse times or values that are none of its own.
            scores |= ask()
    return scores


def _scores(bench: Subject, at: Reading, scaled: bool) -> Scores:
    """The scores of every kind and sign of one evaluation of the network; `scaled` shows it the input of `edm`."""
    inner: Prediction = bench.inner
    bench = bench.rescaled(*other_ranges(*bench.limits).get(at.values, (1.0, 0.0)))
    bench = replace(bench, schedule=at.schedule or bench.schedule)
    base = inner.time or (lambda t: t)
    kinds: list[Kind] = ["edm"] if scaled else [k for k in KINDS if k != "edm"]
    logs: dict[Reading, list[float]] = {}
    for t in bench.levels(LEVELS, LEVELS_SPAN):
        x_t, times = bench.noised(t)
        x = scale_input("edm", x_t, times, bench.schedule, inner.data_std) if scaled else x_t
        arguments = (x, TIMES[at.time](base, times)) + (() if bench.cond is None else (bench.cond,))
        output = inner.net(*arguments)
        best = max(min(baselines(bench, t, x_t)), 1e-12)
        for kind, sign in product(kinds, (1, -1)):
            x0_hat = x0_from(kind, sign * output, x_t, times, bench.schedule, inner.data_std)
            logs.setdefault(replace(at, kind=kind, sign=sign), []).append(_log(rmse(x0_hat, bench.x_0) / best))
    return {reading: statistics.fmean(values) for reading, values in logs.items()}


def _own_score(bench: Subject, at: Reading) -> Scores:
    """How well a reading denoises the samples that it makes itself; nothing where they are not of this world."""
    inner: Prediction = bench.inner
    schedule = at.schedule or inner.schedule
    base = inner.time or (lambda t: t)
    other = Prediction(
        _Signed(inner.net, at.sign), schedule, at.kind, partial(TIMES[at.time], base), inner.clip, inner.data_std
    )
    bench = replace(bench, teacher=other, schedule=schedule)
    samples = sample(bench)
    if not bool(samples.isfinite().all()) or float(samples.abs().max()) > 1e3:
        return {}
    bench = bench.showing(samples)
    levels = denoise(bench, bench.levels(LEVELS, LEVELS_SPAN))
    return {at: statistics.fmean(_log(level.ratio) for level in levels)}


def _log(ratio: float) -> float:
    return min(math.log(max(ratio, 1e-9)), WORST) if math.isfinite(ratio) else WORST


class _Signed(nn.Module):
    """A network whose output is `sign` times that of another."""

    def __init__(self, net: nn.Module, sign: int) -> None:
        super().__init__()
        self.net, self.sign = net, sign

    def forward(self, x_t: Tensor, t: Tensor, *cond: Any) -> Tensor:
        return self.sign * self.net(x_t, t, *cond)


def _judge(stated: Reading, scores: Scores, beaten: bool, margin: float) -> Finding:
    """Whether another reading denoises clearly better; a smaller `margin` will do where the stated one fails."""
    own = scores[stated]
    # A tie goes to the reading that changes least.
    best = min(scores, key=lambda r: scores[r] + 0.05 * (r.changes + (r.kind != stated.kind)))
    if scores[best] > own - (0.05 if beaten else margin) or scores[best] >= -0.05:
        text = f"of {len(scores)} readings none denoises clearly better than the stated one"
        if not beaten:
            return Finding("reading", "ok", text)
        mend = "another schedule, other units of time, other data, or not trained?"
        return Finding("reading", "warning", text, mend)
    text = (
        f"this network denoises much better read as {best.describe(stated.kind)}: error {math.exp(scores[best]):.2f} x "
        f"the best trivial estimate, as stated ({stated.kind}) {math.exp(own):.2f} x"
    )
    return Finding("range" if best.values else "reading", "failure", text, best.remedy(stated.kind))
