r"""How fast a stage goes and how long it will take, said once that is known.

What is left of $N$ parts, of which $n_i$ were done at the times $\tau_i$, is

$$ \frac{N - n_k}{r}, \qquad r = \frac{n_k - n_j}{\tau_k - \tau_j}, $$

where $j$ is the first report of the last `WINDOW` seconds, so that a pace that changes is followed. The beginning of a
stage is unlike the rest of it (kernels are planned, files are opened), and so nothing is said before `REPORTS` more
reports over `SETTLED` seconds, or a `MINUTE` of fewer.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Pace", "spelled"]

REPORTS, SETTLED, MINUTE, WINDOW = 3, 3.0, 60.0, 30.0


class Pace:
    """The pace of a stage, from the reports of how much of it is done.

    Attributes:
        total: Parts of the stage.
        took: Seconds since its first report.
    """

    def __init__(self) -> None:
        self.total, self.took, self._began, self._seen = 0, 0.0, (0.0, 0), deque[tuple[float, int]]()

    def add(self, now: float, done: int, total: int) -> None:
        """At the time `now`, in seconds of any clock, `done` parts of `total` are done; of fewer than before it starts
        again."""
        seen, self.total = self._seen, total
        # What is told twice at the beginning begins with the second time.
        if seen and (done < seen[-1][1] or (len(seen) == 1 and done == seen[0][1])):
            seen.clear()
        if not seen:
            self._began = (now, done)
        if not seen or done > seen[-1][1]:
            seen.append((now, done))
        self.took = now - self._began[0]
        while len(seen) > REPORTS + 1 and seen[0][0] < now - WINDOW:
            seen.popleft()

    @property
    def rate(self) -> float:
        """Parts a second of late, and of all of it at the end; 0 where that is not known."""
        (then, before), (now, done) = self._began if self._ended else self._seen[0], self._seen[-1]
        return (done - before) / (now - then) if now > then else 0.0

    @property
    def settled(self) -> bool:
        """Whether the rate says how long the rest will take."""
        span = self._seen[-1][0] - self._seen[0][0]
        return (len(self._seen) > REPORTS and span >= SETTLED) or span >= MINUTE

    def left(self, now: float) -> float | None:
        """Seconds from `now` to the end; None while nobody knows, and behind the end."""
        if self._ended or not self.settled:
            return None
        last, done = self._seen[-1]
        return max(0.0, (self.total - done) / self.rate - (now - last))

    @property
    def _ended(self) -> bool:
        return self._seen[-1][1] >= self.total


def spelled(seconds: float) -> str:
    """A time as it is read: `36 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
