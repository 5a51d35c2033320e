"""A run is told of while it is under way, and ends where nobody listens any more."""

import threading
import time
from collections.abc import Iterator

import pytest

from dsno.app.draw import Tell
from dsno.app.running import Made, Progress, Stopped, running


def test_progress_is_told_and_then_what_was_made() -> None:
    go = threading.Event()

    def run(tell: Tell) -> str:
        tell(3, 8)
        assert go.wait(60)
        return "made"

    events = running(run)
    first = next(events)
    while first.done == 0:  # type: ignore[union-attr]
        first = next(events)
    assert isinstance(first, Progress) and (first.done, first.total) == (3, 8)
    go.set()
    *_, last = events
    assert last == Made("made")


def test_an_error_is_that_of_the_run() -> None:
    def run(tell: Tell) -> None:
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        [*running(run)]


def endless(ended: list[str]) -> Iterator[Progress | Made[None]]:
    def run(tell: Tell) -> None:
        try:
            for n in range(1, 10_000):
                time.sleep(0.01)
                tell(n, 10_000)
        except Stopped:
            ended.append("stopped")
            raise

    return running(run)


def test_a_run_ends_at_its_next_step_once_its_iterator_is_closed_and_the_next_one_waits_for_that() -> None:
    ended: list[str] = []
    events = endless(ended)
    assert isinstance(next(events), Progress)
    events.close()  # type: ignore[attr-defined]

    def run(tell: Tell) -> list[str]:
        return [*ended]

    *_, last = running(run)
    assert last == Made(["stopped"])


def test_a_run_that_is_closed_while_it_waits_never_begins() -> None:
    first, begun = endless([]), list[int]()
    next(first)
    second = running(lambda tell: begun.append(1))
    waits = next(second)
    assert isinstance(waits, Progress) and (waits.done, waits.total) == (0, 0)
    second.close()  # type: ignore[attr-defined]
    first.close()  # type: ignore[attr-defined]
    *_, last = running(lambda tell: len(begun))
    assert last == Made(0)
