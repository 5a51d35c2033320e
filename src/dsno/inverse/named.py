"""The restorers by name, as the command line calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from dsno.inverse.backprop import DPS, PiGDM
from dsno.inverse.constrained import Constrained
from dsno.inverse.projected import MPGD, DiffPIR, Replacement
from dsno.inverse.restore import Restorer

__all__ = ["CHOICES", "RESTORERS", "Choice"]

RESTORERS: dict[str, Callable[..., Restorer]] = {
    "constrained": Constrained,
    "dps": DPS,
    "pigdm": PiGDM,
    "diffpir": DiffPIR,
    "replacement": Replacement,
    "mpgd": MPGD,
}
"""Their classes; each takes its `grid`, N + 1 decreasing times, first, and has a default for every other option."""


class Choice(NamedTuple):
    """What one should know of a restorer before one takes it.

    Attributes:
        step: What a step costs, in network calls.
        takes: What it takes of a problem: `any`, what is seen through a decoder too, or `linear`, which it solves.
        choose: When to take it.
    """

    step: str
    takes: str
    choose: str


CHOICES: dict[str, Choice] = {
    "constrained": Choice(
        "1 + 2 K calls, K = 5", "any", "latents, or no memory for a vjp; a sample that fits, quickly"
    ),
    "dps": Choice("1 call, 1 vjp", "any", "noisy measurements, and problems that are seen through a decoder"),
    "pigdm": Choice("1 call, 1 vjp", "linear", "few steps, with or without noise"),
    "diffpir": Choice("1 call", "linear", "first of all: nothing is quicker, and without noise it fits exactly"),
    "replacement": Choice("5 calls", "linear", "parts that are missing, where they should go with what is seen"),
    "mpgd": Choice("1 call", "any", "to see what the others gain"),
    "blind": Choice("1 call, 1 vjp, a step for the kernel", "linear", "a blur that nobody measured"),
}
"""What to know of each, by name."""
