"""A place that fsspec reaches: what is there, what is sent and fetched, and what its errors mean.

fsspec speaks to the Hub, to object stores, to web servers and to disks, and each of them fails in words of its own.
`dsno.hub.reaching` tells which of three errors that is; `Remote.reaching` says it of a set, and knows a full disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import fsspec
from fsspec.callbacks import NoOpCallback
from fsspec.implementations.local import LocalFileSystem

from dsno.checkpoint import publish
from dsno.hub import first_line, reaching, remote_error
from dsno.outside import JSON_BYTES, parse_json
from dsno.trajectories.format import header_of, problem, shard_path, shard_size
from dsno.trajectories.manifest import MANIFEST, Manifest, join, parse_manifest

__all__ = ["FULL", "HUB", "Bytes", "Remote"]

Progress = Callable[[int, int], object]

HUB = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Bytes(NoOpCallback):  # type: ignore[misc]
    """Counts bytes for `progress`; file systems that know callbacks report parts of a file, too."""

    def __init__(self, progress: Progress | None, done: int, total: int) -> None:
        super().__init__()
        self.progress, self.done, self.total, self.part = progress, done, total, 0

    def relative_update(self, inc: int = 1) -> None:
        self.part += inc
        self.say()

    def finish(self, size: int) -> None:
        """A file of `size` bytes is done, whatever was reported of it."""
        self.done, self.part = self.done + size, 0
        self.say()

    def say(self) -> None:
        if self.progress is not None:
            self.progress(min(self.done + self.part, self.total), self.total)


class _Bounded(NoOpCallback):  # type: ignore[misc]
    """Ends a download that goes beyond `most` bytes, if the file system tells of parts.

    Raises:
        ValueError: then.
    """

    def __init__(self, told: NoOpCallback, most: int, source: str) -> None:
        super().__init__()
        self.told, self.most, self.source, self.got = told, most, source, 0

    def set_size(self, size: int | None) -> None:
        self.refuse(size or 0)
        self.told.set_size(size)

    def relative_update(self, inc: int = 1) -> None:
        self.got += inc
        self.refuse(self.got)
        self.told.relative_update(inc)

    def refuse(self, size: int) -> None:
        """Refuse that size."""
        if size > self.most:
            raise ValueError(
                f"{self.source} has {size} bytes or more, its set declares {self.most}: it is not of this set"
            )


class Remote:
    """A place that fsspec reaches, and the few things that are done there.

    Arguments:
        url: Such as `hf://datasets/org/name`, `s3://bucket/name` or `file:///folder`.

    Raises:
        ImportError: if the package for the URL's protocol is not installed; names it.
        ConnectionError, FileNotFoundError, PermissionError: if it cannot even be opened.
        ValueError: if the protocol is not known, or the URL is not one of its.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            # A fresh one: a listing from before a push would hide what was pushed.
            self.fs, self.root = cast(tuple[Any, str], fsspec.url_to_fs(self.url, skip_instance_cache=True))
        except ImportError as error:
            raise ImportError(f"{url} cannot be reached: {error}") from None
        except Exception as error:
            # Some open an archive or a connection at once, each with errors of its own.
            raise (remote_error(error) or ValueError)(f"{url} cannot be reached: {first_line(error)}") from None
        self._hub = HUB.fullmatch(self.url)
        if self.url.startswith("hf://") and self._hub is None:
            raise ValueError(f"{url} is not a dataset of the Hub: expected hf://datasets/org/name")

    def at(self, name: str) -> str:
        """The path of a file."""
        return f"{self.root}/{name}"

    @contextlib.contextmanager
    def reaching(self) -> Iterator[None]:
        """Say what went wrong in the words of a user of trajectories, whatever library said it.

        Raises:
            ConnectionError: if the place cannot be reached.
            FileNotFoundError: if there is nothing.
            PermissionError: if it may not be read or written.
            OSError: if a disk is full.
        """
        private, account = "", "check your credentials for it"
        if self._hub:
            private = " If it is private, log in (hf auth login)."
            account = "log in with an account that may (hf auth login)"
        missing = (
            f"no complete trajectory set at {self.url} ({{error}}): check the name, and that its push was finished."
        )
        closed = f"no permission for {self.url} ({{error}}): {account}"
        unreachable = f"cannot reach {self.url} ({{error}}): check the network and try again"
        try:
            with reaching(missing + private, closed, unreachable):
                yield
        except OSError as error:
            if error.errno not in FULL:
                raise
            full = f"the disk is full ({first_line(error)}): make room and start again, what is complete is kept"
            raise OSError(error.errno, full) from error

    def read_manifest(self) -> Manifest:
        """The manifest of the set.

        Raises:
            ValueError: if it is damaged, or not a manifest.
        """
        mend, source = "Push the set again, or tell who did", f"{self.url}/{MANIFEST}"
        with self.fs.open(self.at(MANIFEST), "rb") as file:
            text = file.read(JSON_BYTES + 1)
        try:
            manifest = parse_json(text, source)
        except ValueError as error:
            raise ValueError(f"{error}. {mend}") from None
        return parse_manifest(manifest, source, mend)

    def fetch(
        self, manifest: Manifest, k: int, folder: Path, temporary: str, callback: NoOpCallback | None = None
    ) -> Path:
        """Download shard `k` into `folder`, under a `temporary` name until it is complete and checked.

        Raises:
            ValueError: if it is larger than the manifest says, before it is fetched if the place knows; if what arrived
                is damaged or foreign; it is removed.
        """
        path, partial = shard_path(folder, k), folder / temporary
        bounded = _Bounded(callback or NoOpCallback(), shard_size(manifest, k), f"{self.url}/{path.name}")
        try:
            there = self.fs.info(self.at(path.name))
            if there.get("type") != "file":
                raise ValueError(f"{self.url}/{path.name} is a {there.get('type')}: expected a file")
            bounded.refuse(there.get("size") or 0)
            self.fs.get_file(self.at(path.name), str(partial), callback=bounded)
            if wrong := problem(partial, manifest, k, verify=True):
                raise ValueError(
                    f"{self.url}/{path.name} arrived {wrong}. It was removed: try again; if it stays so, push the set "
                    "again"
                )
            publish(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def create(self, private: bool | None) -> None:
        """Make the place, if it is not there."""
        if self._hub is None:
            self.fs.makedirs(self.root, exist_ok=True)
        else:
            self.fs._api.create_repo(self._hub[1], repo_type="dataset", private=private, exist_ok=True)

    def sizes(self) -> dict[str, int]:
        """The files that are there, and their sizes."""
        self.fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            found = self.fs.ls(self.root, detail=True)
            return {f["name"].rsplit("/", 1)[-1]: f["size"] for f in found if f["type"] == "file"}
        return {}

    def read(self, name: str) -> bytes:
        """What a file holds."""
        return bytes(self.fs.cat_file(self.at(name)))

    def has(self, name: str, local: Path, present: dict[str, int]) -> bool:
        """Whether the file `name` is there with the size and the header, hence the checksum, of a local shard."""
        if present.get(name) != local.stat().st_size:
            return False
        header = header_of(local)
        return bool(self.fs.cat_file(self.at(name), start=0, end=len(header)) == header)

    def intact(self, name: str, local: Path) -> bool:
        """Whether the file `name` holds what the local one does; reads both."""
        with self.fs.open(self.at(name), "rb") as there, local.open("rb") as here:
            found = hashlib.sha256()
            for chunk in iter(lambda: there.read(2**23), b""):
                found.update(chunk)
            return found.digest() == hashlib.file_digest(here, "sha256").digest()

    def upload(self, files: Sequence[tuple[str, Path | bytes]], message: str, counted: Bytes) -> None:
        """Write files; on the Hub in one commit called `message`. The bytes of shards are `counted`."""
        if self._hub is not None:
            from huggingface_hub import CommitOperationAdd

            self._commit([CommitOperationAdd(self._in_repository(name), content) for name, content in files], message)
        for name, content in files:
            if self._hub is None:
                self._write(name, content, counted)
            if isinstance(content, Path):
                counted.finish(content.stat().st_size)

    def _write(self, name: str, content: Path | bytes, counted: Bytes) -> None:
        # An object store shows a file when it is complete; a disk shows what there is of it.
        local = isinstance(self.fs, LocalFileSystem)
        target = self.at(f".{name}.tmp" if local else name)
        try:
            with self.fs.open(target, "wb") as there:
                if isinstance(content, bytes):
                    there.write(content)
                else:
                    with content.open("rb") as here:
                        for chunk in iter(lambda: here.read(2**23), b""):
                            there.write(chunk)
                            counted.relative_update(len(chunk))
            if local:
                os.replace(target, self.at(name))
        finally:
            if local:
                Path(target).unlink(missing_ok=True)

    def remove(self, names: Sequence[str]) -> None:
        """Remove files; on the Hub in one commit."""
        if names and self._hub is not None:
            from huggingface_hub import CommitOperationDelete

            operations = [CommitOperationDelete(self._in_repository(name)) for name in names]
            self._commit(operations, f"Remove {join(names, ', ')}")
        else:
            for name in names:
                self.fs.rm_file(self.at(name))

    def _commit(self, operations: Sequence[Any], message: str) -> None:
        assert self._hub is not None
        self.fs._api.create_commit(
            self._hub[1], operations, commit_message=message, repo_type="dataset", revision=self._hub[2]
        )

    def _in_repository(self, name: str) -> str:
        assert self._hub is not None
        return f"{self._hub[3]}/{name}" if self._hub[3] else name
