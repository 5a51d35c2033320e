"""A run that tells of its progress as an iterator of it, which may be left at any time.

A loop of network calls knows no pause, and who watches it wants to hear of it now and then, and to be able to stop it.
So it runs in a thread of its own; the iterator gives what was told last, a few times a second, and at the end what was
made. To close it is to stop the run at its next call, without waiting for that: whoever answers other requests
meanwhile goes on. One run is under way at any time in a process, and the next one waits until the last has ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, TypeVar

from dsno.app.draw import Tell

__all__ = ["Made", "Progress", "Stopped", "running"]

T = TypeVar("T")

PAUSE = 0.1
"""Seconds between two looks at a run."""

_ALONE = threading.Lock()


class Stopped(Exception):
    """Raised in a run whose iterator was closed."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: network calls that are done, of how many, after how many seconds."""

    done: int
    total: int
    seconds: float


@dataclass(frozen=True)
class Made(Generic[T]):
    """What a run made."""

    value: T


def running(run: Callable[[Tell], T]) -> Iterator[Progress | Made[T]]:
    """The progress of a run while it is under way, then what it made; or its error is raised.

    Arguments:
        run: Given a function to call with what is done and the total, after each step that it may be stopped at.
    """
    began, told, ended, stop = perf_counter(), [(0, 0)], threading.Event(), threading.Event()
    made: list[Made[T]] = []
    failed: list[BaseException] = []

    def tell(done: int, total: int) -> None:
        told[0] = done, total
        if stop.is_set():
            raise Stopped

    def work() -> None:
        try:
            with _ALONE:
                tell(0, 0)
                made.append(Made(run(tell)))
        except BaseException as error:
            failed.append(error)
        finally:
            ended.set()

    threading.Thread(target=work, daemon=True).start()
    try:
        while not ended.wait(PAUSE):
            yield Progress(*told[0], perf_counter() - began)
        if failed:
            raise failed[0]
        yield made[0]
    finally:
        stop.set()
