"""The restorers by name, as the command line calls them."""

from __future__ import annotations

from collections.abc import Callable

from dsno.inverse.restore import Restorer

__all__ = ["RESTORERS"]

RESTORERS: dict[str, Callable[..., Restorer]] = {}
"""Their classes; each takes its `grid`, N + 1 decreasing times, first, and has a default for every other option."""
