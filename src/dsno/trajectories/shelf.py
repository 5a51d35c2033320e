"""A remote set as a local one: shards are fetched when they are first needed, into a folder that forgets the oldest.

Opening a set reads its manifest alone. A shard is downloaded under a lock, checked, and given its name, so the
processes
of one machine share a cache: one of them downloads, the others wait for it and find the file. What is to be needed next
is fetched by a thread meanwhile. With a bound on its size, the cache drops the shards that were used the longest ago:
a dropped file stays readable to those who have it mapped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from dsno.outputs import locked, writable
from dsno.outside import unchecked
from dsno.trajectories.format import (
    map_shard,
    problem,
    shard_count,
    shard_number,
    shard_path,
    shard_size,
    shards_in,
    unfinished,
)
from dsno.trajectories.remote import Remote

__all__ = ["CACHE", "Shelf", "cache_folder"]

log = logging.getLogger(__name__)

CACHE = "DSNO_CACHE"
"""The variable of the environment that says where the cache is."""


def cache_folder() -> Path:
    """The folder of the cache: what the environment says in `DSNO_CACHE`, else `~/.cache/dsno`."""
    return Path(os.environ.get(CACHE) or "~/.cache/dsno").expanduser()


class Shelf:
    """The shards of a remote set, in a local cache.

    Arguments:
        url: The set, as `push` left it.
        cache: The folder of the cache, which holds a folder per set, named by its fingerprint; by default what the
            environment says in `DSNO_CACHE`, else `~/.cache/dsno`.
        cache_bytes: How large this set's folder may grow, or None; the shards that are in use stay in any case.

    Attributes:
        manifest: The set's manifest.
        folder: Where its shards are kept.

    Raises:
        ConnectionError: if the set cannot be reached.
        FileNotFoundError: if there is none, or it is not complete.
        PermissionError: if it may not be read, or the cache cannot be written.
    """

    def __init__(self, url: str, cache: Path | str | None = None, cache_bytes: int | None = None) -> None:
        if cache_bytes is not None and cache_bytes < 1:
            raise ValueError(f"cache_bytes must be at least 1, or None for no bound, got {cache_bytes}")
        self.url, self.cache_bytes = url, cache_bytes
        self._start()
        remote = self._remote()
        with remote.reaching():
            self.manifest = remote.read_manifest()
        base = Path(cache).expanduser() if cache else cache_folder()
        self.folder = writable(base / self.manifest["fingerprint"])
        for partial in unfinished(self.folder):
            # A download that was killed; one that goes on holds its lock.
            with contextlib.suppress(BlockingIOError), self._locked(shard_number(partial), timeout=0):
                partial.unlink(missing_ok=True)
        for left in self.folder.glob(".shard-*.lock"):
            # Who gives a lock back removes its file: of earlier versions and the killed they stay.
            with contextlib.suppress(BlockingIOError, ValueError), self._locked(shard_number(left), timeout=0):
                pass

    def _start(self) -> None:
        self._process, self._verified = os.getpid(), set[int]()
        self._guard, self._connections = threading.Lock(), threading.local()
        self._thread: threading.Thread | None = None
        self._wanted: list[int] = []
        self._now: set[int] = set()
        self._kept: set[int] = set()

    def _forked(self) -> None:
        """Start anew after a fork, which leaves locks as they were, and neither threads nor connections."""
        if self._process != os.getpid():
            self._start()

    def _remote(self) -> Remote:
        """This thread's connection, kept: some file systems ask for a listing first."""
        held: Remote | None = getattr(self._connections, "held", None)
        if held is None:
            held = self._connections.held = Remote(self.url)
        return held

    def __getstate__(self) -> dict[str, Any]:
        return {k: self.__dict__[k] for k in ("url", "cache_bytes", "manifest", "folder")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def holds(self, k: int) -> bool:
        """Whether shard `k` is in the cache."""
        return shard_path(self.folder, k).exists()

    def touch(self, k: int) -> None:
        """Note that shard `k` is in use."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(shard_path(self.folder, k))

    def map(self, k: int) -> dict[str, Tensor]:
        """The tensors of shard `k`, memory-mapped; fetched if need be.

        Raises:
            ConnectionError, FileNotFoundError, PermissionError: if it cannot be fetched.
            OSError: if the disk is full.
            ValueError: if it is damaged; it is removed.
        """
        while True:
            path = self.fetch(k)
            # Another process may have dropped it since.
            with contextlib.suppress(FileNotFoundError):
                verify = k not in self._verified and not unchecked()
                if wrong := problem(path, self.manifest, k, verify):
                    self._drop(path, wrong)
                    continue
                self._verified.add(k)
                return map_shard(path, self.manifest, k)

    def fetch(self, k: int) -> Path:
        """The file of shard `k`, downloaded unless it is there; errors as `map`."""
        self._forked()
        path = shard_path(self.folder, k)
        if not path.exists():
            with self._locked(k):
                if not path.exists():
                    self._make_room(k)
                    remote = self._remote()
                    with remote.reaching():
                        remote.fetch(self.manifest, k, self.folder, f".shard-{k:05d}.tmp")
                    self._verified.add(k)
                    log.info("fetched %s/%s", self.url, path.name)
        self.touch(k)
        return path

    def verify(self) -> None:
        """Read the shards that are in the cache, and drop the damaged ones."""
        for k in filter(self.holds, range(shard_count(self.manifest))):
            path = shard_path(self.folder, k)
            if wrong := problem(path, self.manifest, k, verify=True):
                self._drop(path, wrong)

    def _drop(self, path: Path, wrong: str) -> None:
        self._verified.discard(shard_number(path))
        log.warning("%s is %s: it is fetched again", path, wrong)
        path.unlink(missing_ok=True)

    def ahead(self, used: Iterable[int], then: Iterable[int]) -> None:
        """Fetch in the background the shards that are `used` now and, if the cache has room, those needed `then`."""
        self._forked()
        now, coming = list(used), list(then)
        with self._guard:
            self._now, self._kept = {*now}, {*now, *coming}
            self._wanted = [k for k in dict.fromkeys((*now, *coming)) if not self.holds(k)]
            if self._wanted and self._thread is None:
                self._thread = threading.Thread(target=self._work, name="dsno-fetch", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._guard:
                if not self._wanted:
                    self._thread = None
                    return
                k = self._wanted.pop(0)
                needed = k in self._now
            try:
                if self._make_room(k) or needed:
                    self.fetch(k)
            except Exception as error:
                # Who needs the shard meets the error, if it lasts.
                log.debug("not fetched ahead: %s", error)
                with self._guard:
                    self._wanted.clear()

    @contextlib.contextmanager
    def _locked(self, k: int, timeout: float = -1) -> Iterator[None]:
        with locked(self.folder / f".shard-{k:05d}.lock", f"{shard_path(self.folder, k)}", timeout):
            yield

    def _make_room(self, k: int) -> bool:
        """Drop the shards used the longest ago until shard `k` fits; whether it does."""
        if self.cache_bytes is None:
            return True
        found = []
        for path in shards_in(self.folder):
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        size = sum(bytes for _, bytes, _ in found) + shard_size(self.manifest, k)
        with self._guard:
            kept = {shard_path(self.folder, j) for j in self._kept}
        for _, bytes, path in sorted(found):
            if size <= self.cache_bytes:
                break
            if path not in kept:
                with contextlib.suppress(PermissionError):  # Windows keeps a file that somebody has mapped
                    path.unlink(missing_ok=True)
                    size -= bytes
        return size <= self.cache_bytes
