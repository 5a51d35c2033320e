"""The restorers by name, as the command line calls them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from dsno.inverse.backprop import DPS, PiGDM
from dsno.inverse.blind import ClassicEM, FastEM
from dsno.inverse.constrained import Constrained
from dsno.inverse.kernel_step import KernelStep
from dsno.inverse.projected import MPGD, DiffPIR, Replacement
from dsno.inverse.restore import Restorer

__all__ = ["CHOICES", "RESTORERS", "START", "Choice", "restorer_named", "usual"]

RESTORERS: dict[str, Callable[..., Restorer]] = {
    "constrained": Constrained,
    "dps": DPS,
    "pigdm": PiGDM,
    "diffpir": DiffPIR,
    "replacement": Replacement,
    "mpgd": MPGD,
    "blind": FastEM,
    "blind-classic": ClassicEM,
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
    "constrained": Choice("1 + 2 inner calls", "any", "scattered pixels, super-resolution, latents; no room for a vjp"),
    "dps": Choice("1 call, 1 vjp", "any", "problems that nobody can solve, and latents; in many steps"),
    "pigdm": Choice("1 call, 1 vjp", "linear", "few steps, where a vjp can be paid for"),
    "diffpir": Choice("1 call", "linear", "the first to try: boxes, halves, blur, noise; whatever has to be quick"),
    "replacement": Choice("5 calls", "linear", "large holes without noise"),
    "mpgd": Choice("1 call", "any", "a direction to compare with"),
    "blind": Choice("1 call, 1 vjp, an M-step", "a blur", "a blur that nobody measured"),
    "blind-classic": Choice("10 calls, 10 vjps", "a blur", "to see what blind gains: a run for each round of EM"),
}
"""What to know of each, by name."""

START = Choice("1 call", "its own", "1 to 5 steps, where one problem stays and there is data to train a start on")
"""What to know of a `LearnedStart`, which is none of them: its network has to be trained first."""


def usual(problem: str, latents: bool) -> str:
    """The first restorer to try of a problem, for a teacher of latents or of pictures."""
    return "blind" if problem == "blind" else "constrained" if latents else "diffpir"


def restorer_named(name: str, problem: str, noise: float = 0.0) -> Callable[[Tensor], Restorer]:
    """What makes the restorer of a grid, for a problem by its name, with noise of a standard deviation; of `blind`
    without any, it is estimated.

    Raises:
        ValueError: for an unknown name, or one that is not for this problem.
    """
    if name not in RESTORERS:
        raise ValueError(f"unknown method {name!r}: expected one of {', '.join(sorted(RESTORERS))}")
    blind = name.startswith("blind")
    if blind != (problem == "blind"):
        why = "estimates a kernel" if blind else "needs a kernel that is known"
        raise ValueError(
            f"the method {name} {why}, and the problem is {problem}: take {'another' if blind else 'method=blind'}"
        )
    make = RESTORERS[name]
    return functools.partial(make, step=KernelStep(learn_noise=True)) if blind and not noise else make
