"""Ctrl-C and SIGTERM while a run is under way: asked to stop, it saves what it has and goes on from there later.

A signal is noted and looked at between two steps, where everything is in a state that can be saved. Of several
processes of one run each may be told at another time, or only one of them, so they agree at every step: on the host,
since a device that was asked would have to finish what it is doing first.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

import torch
from torch import distributed

__all__ = ["Interrupted", "Stop"]


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and has saved where it is; the text says where.

    Attributes:
        signal: The signal that asked.
    """

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.signal = number


class Stop:
    """Within it, what would end the process is a request to stop; what others handle or ignore is left to them.

    Alone, a second signal acts as it would have: whoever does not want to wait asks twice. A launcher passes on what
    the terminal has sent to every process already, so of several processes none may take the second one at its word.
    Only the main thread can be asked.
    """

    def __init__(self) -> None:
        self._asked = 0
        self._before: dict[int, Any] = {}
        self._group: Any = None
        self._several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1

    def __enter__(self) -> Self:
        if self._several:
            self._group = distributed.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
                if (before := signal.getsignal(number)) == usual:
                    self._before[number] = before
                    signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: object, *failed: object) -> None:
        self._restore()
        if self._group is not None:
            distributed.destroy_process_group(self._group)
        if kind is None and self._asked:
            # Behind the last step nobody looks any more, and what follows is not to miss it.
            signal.raise_signal(self._asked)

    def asked(self) -> int:
        """The signal that asked any of the processes, 0 for none; every process must call."""
        if self._group is None:
            return self._asked
        asked = torch.tensor(self._asked)
        distributed.all_reduce(asked, distributed.ReduceOp.MAX, self._group)
        return int(asked)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = number
        if not self._several:
            self._restore()

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}
