"""The restorers by name, as the command line calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from dsno.inverse.backprop import DPS, PiGDM
from dsno.inverse.blind import ClassicEM, FastEM, PlainMAP
from dsno.inverse.constrained import Constrained
from dsno.inverse.kernel_step import KernelStep
from dsno.inverse.projected import MPGD, DiffPIR, Replacement
from dsno.inverse.restore import Restorer

__all__ = ["CHOICES", "RESTORERS", "Choice"]


def fast_em(grid: Tensor, step: KernelStep = FastEM.step, **options: Any) -> Restorer:
    """`FastEM`, driving `PiGDM` on a grid; `options` are PiGDM's."""
    return FastEM(PiGDM(grid, **options), step)


def classic_em(grid: Tensor, step: KernelStep = ClassicEM.step, **options: Any) -> Restorer:
    """`ClassicEM`, driving `PiGDM` on a grid; `options` are PiGDM's."""
    return ClassicEM(PiGDM(grid, **options), step)


def plain_map(grid: Tensor, step: KernelStep = PlainMAP.step) -> Restorer:
    """`PlainMAP`, which has no teacher and so no grid."""
    return PlainMAP(step)


RESTORERS: dict[str, Callable[..., Restorer]] = {
    "constrained": Constrained,
    "dps": DPS,
    "pigdm": PiGDM,
    "diffpir": DiffPIR,
    "replacement": Replacement,
    "mpgd": MPGD,
    "blind": fast_em,
    "blind-em": classic_em,
    "blind-map": plain_map,
}
"""Their classes; each takes its `grid`, N + 1 decreasing times, first, and has a default for every other option."""


class Choice(NamedTuple):
    """What one should know of a restorer before one takes it.

    Attributes:
        step: What a step costs, in network calls.
        takes: What problems: `any`, those that are seen through a decoder, too; `linear` ones, which it solves; or `a
            blur` with an unknown kernel.
        choose: When to take it.
    """

    step: str
    takes: str
    choose: str


CHOICES: dict[str, Choice] = {
    "constrained": Choice("1 + 2 inner calls", "any", "networks too large to differentiate, and latents"),
    "dps": Choice("1 call, 1 vjp", "any", "problems that nobody can solve, and latents; in many steps"),
    "pigdm": Choice("1 call, 1 vjp", "linear", "few steps, where a vjp can be paid for"),
    "diffpir": Choice("1 call", "linear", "first of all: blur, lost pixels and noise, and whatever has to be quick"),
    "replacement": Choice("5 calls", "linear", "parts that are missing, without noise: the best of what it costs"),
    "mpgd": Choice("1 call", "any", "a first look, in hundreds of steps"),
    "blind": Choice("1 call, 1 vjp, an M-step", "a blur", "a blur that nobody measured"),
    "blind-em": Choice("10 calls, 10 vjps", "a blur", "to see what blind gains: a run for each round of EM"),
    "blind-map": Choice("no call", "a blur", "there is no teacher of such pictures; or to see what one gains"),
}
"""What to know of each, by name."""
