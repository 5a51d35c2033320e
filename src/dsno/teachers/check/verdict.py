"""What a check found: findings, errors at noise levels, and the verdict, which is the worst of the findings.

A failure says that samples of this teacher are no samples of its data; a warning, that somebody should look.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Finding", "Level", "Verdict"]

State = Literal["ok", "warning", "failure"]

STATES: tuple[State, ...] = ("ok", "warning", "failure")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: its name, how it is, in a sentence with the numbers, and how to mend it."""

    check: str
    state: State
    text: str
    mend: str = ""


@dataclass(frozen=True)
class Level:
    """Denoising at one time: root mean square errors of the teacher and of the three baselines."""

    t: float
    log_snr: float
    error: float
    mean: float
    input: float
    wiener: float

    @property
    def ratio(self) -> float:
        """The teacher's error over that of the best baseline; below 1 it is better."""
        return self.error / max(min(self.mean, self.input, self.wiener), 1e-12)


@dataclass(frozen=True)
class Verdict:
    """What `check_teacher` found; prints as a page, and `to_dict` is JSON-able.

    Attributes:
        teacher: What was checked, in words.
        source: `data`, or `own samples` where there was none.
        findings: One or more for each check, in the order they were made.
        levels: Denoising, from little noise to much.
        cost: Seconds and floating-point operations of a call.
    """

    teacher: str
    source: str
    findings: tuple[Finding, ...]
    levels: tuple[Level, ...] = ()
    cost: Mapping[str, float] = field(default_factory=dict)

    @property
    def state(self) -> State:
        """The worst state of a finding."""
        return max((f.state for f in self.findings), key=STATES.index, default="ok")

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return self.state != "failure"

    @property
    def summary(self) -> str:
        """The verdict in a line."""
        failed = [f.check for f in self.findings if f.state == "failure"]
        warned = sum(f.state == "warning" for f in self.findings)
        if failed:
            return f"do not use this teacher as it is: {', '.join(dict.fromkeys(failed))}"
        return "this teacher is fit to use" + (f", mind {warned} warning{'s' * (warned > 1)}" if warned else "")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; numbers that are not finite are None."""
        levels = [{**asdict(level), "ratio": level.ratio} for level in self.levels]
        return _finite(
            {
                "teacher": self.teacher,
                "verdict": self.state,
                "summary": self.summary,
                "source": self.source,
                "findings": [asdict(f) for f in self.findings],
                "levels": levels,
                "cost": dict(self.cost),
            }
        )

    def __str__(self) -> str:
        lines = [self.teacher]
        for f in self.findings:
            lines.append(f"  {f.state:<8} {f.check:<12} {f.text}{f' -> {f.mend}' if f.mend else ''}")
        return "\n".join([*lines, self.summary])


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
