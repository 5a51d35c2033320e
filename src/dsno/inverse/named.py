"""The restorers by name, as the command line calls them."""

from __future__ import annotations

from collections.abc import Callable

from dsno.inverse.backprop import DPS, PiGDM
from dsno.inverse.constrained import Constrained
from dsno.inverse.projected import MPGD, DiffPIR, Replacement
from dsno.inverse.restore import Restorer

__all__ = ["RESTORERS"]

RESTORERS: dict[str, Callable[..., Restorer]] = {
    "constrained": Constrained,
    "dps": DPS,
    "pigdm": PiGDM,
    "diffpir": DiffPIR,
    "replacement": Replacement,
    "mpgd": MPGD,
}
"""Their classes; each takes its `grid`, N + 1 decreasing times, first, and has a default for every other option."""
