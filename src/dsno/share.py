r"""Trajectory sets elsewhere: pushed to, and pulled from, whatever fsspec reaches.

A remote set is the folder of `dsno.shards` under a URL: `hf://datasets/org/name` (the Hugging Face Hub), `s3://bucket/name`,
`http://host/name` (to read), `file:///folder`, `memory://name`, ... What makes it safe to use is the order of things:

- pushing writes the manifest last, so a set without one is not finished, and a set with one is whole;
- a shard's header and size follow from the manifest and one checksum, so pushing and pulling again move only what is
  not there yet, and what arrived is checked before it gets its name.

On the Hub a push is a few commits to a dataset repository, with a card (README.md) made from the manifest.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import fsspec
from fsspec.callbacks import NoOpCallback
from fsspec.implementations.local import LocalFileSystem

from dsno.checkpoint import prepare_folder
from dsno.shards import (
    MANIFEST,
    Manifest,
    check_foreign,
    check_shard,
    differences,
    header_of,
    join,
    layout,
    parse_manifest,
    place,
    problem,
    read_manifest,
    shard_count,
    shard_path,
    shard_size,
    write_file,
)

__all__ = ["Remote", "pull", "push"]

log = logging.getLogger(__name__)
Progress = Callable[[int, int], object]
CARD, COMMIT_BYTES, COMMIT_FILES = "README.md", 2**30, 100
_HUB = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NETWORK = ("httpx", "httpcore", "requests", "urllib3", "aiohttp", "botocore", "aiobotocore")


def push(
    folder: Path | str,
    url: str,
    *,
    license: str = "unknown",
    private: bool | None = None,
    overwrite: bool = False,
    verify: bool = False,
    progress: Progress | None = None,
) -> str:
    """Upload the trajectories of a folder, with a card that describes them.

    What is there already, whole, is not sent again, so a push that was cut off is continued by the same call. A
    `README.md` in the folder is taken as the card; else one is written, unless the remote set has one.

    Arguments:
        folder: What `generate` wrote.
        url: Where to: `hf://datasets/org/name` (the repository is made if there is none), `s3://bucket/name`, ...
        license: For the card: an identifier of the Hub's, such as `cc-by-4.0`. The teacher's licence may decide it.
        private: Whether a new repository on the Hub is private; its owner's default if None.
        overwrite: Replace another set at `url`.
        verify: Read everything back and compare checksums; otherwise sizes and headers are compared.
        progress: Called as `progress(done, total)`, in bytes.

    Returns:
        The URL.

    Raises:
        ConnectionError: if the place cannot be reached.
        FileExistsError: if it holds another set, and `overwrite` is not set.
        FileNotFoundError: if the folder is not complete.
        PermissionError: if it may not be written.
        ValueError: if a shard is damaged, here or after it was sent; names it.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    names = [shard_path(folder, k).name for k in range(shard_count(manifest))]
    if missing := [name for name in names if not (folder / name).exists()]:
        raise FileNotFoundError(
            f"{folder} is incomplete: {len(missing)} of {len(names)} shards are missing ({join(missing, ', ')}). "
            "Make or pull them first"
        )
    check_foreign(folder, manifest)
    for k in range(len(names)):
        check_shard(folder, manifest, k, verify=False)

    remote = Remote(url)
    with remote.reaching():
        remote.create(private)
        present = remote.sizes()
        held = remote.read_manifest() if MANIFEST in present else None
        stale = sorted(name for name in present if re.fullmatch(r"shard-.*\.safetensors", name) and name not in names)
        if (held is not None and held["fingerprint"] != manifest["fingerprint"]) or stale:
            if not overwrite:
                found = differences(_determines(manifest), _determines(held or manifest)) or stale
                raise FileExistsError(
                    f"{url} holds other trajectories ({join(found)}): choose another place, or pass overwrite=True"
                )
            # Before its shards are touched, so that nobody takes a mixture for either set.
            remote.remove([name for name in (MANIFEST,) if name in present])
            remote.remove(stale)
            present.pop(MANIFEST, None)

        sizes = [shard_size(manifest, k) for k in range(len(names))]
        todo = [k for k, name in enumerate(names) if not remote.has(name, folder / name, present)]
        total = sum(sizes)
        tell = _Bytes(progress, total - sum(sizes[k] for k in todo), total)
        tell.say()
        for group in _groups(todo, sizes):
            for k in group:
                check_shard(folder, manifest, k, verify=True)
            remote.upload([(names[k], folder / names[k]) for k in group], f"Add {len(group)} shards", tell)

        present = remote.sizes()
        for k, name in enumerate(names):
            good = present.get(name) == sizes[k] and (k not in todo or remote.has(name, folder / name, present))
            if not good or (verify and not remote.intact(name, folder / name)):
                remote.remove([name for name in (name,) if name in present])
                raise ValueError(f"{url}/{name} did not arrive as it was sent, and was removed: push again")
        own = folder / CARD
        if own.exists() or overwrite or CARD not in present:
            card = own.read_bytes() if own.exists() else _card(manifest, url, license).encode()
            remote.upload([(CARD, card)], "Describe the set", tell)
        if MANIFEST not in present:
            remote.upload([(MANIFEST, (folder / MANIFEST).read_bytes())], "Complete the set", tell)
    return url


def pull(
    url: str,
    folder: Path | str,
    count: int | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Download a set of trajectories into a folder, which `TrajectorySet` then reads.

    Every shard is checked before it gets its name, and the manifest comes last. A pull that was cut off is continued by
    the same call; so is one of a part, with a larger `count` or none.

    Arguments:
        url: Where `push` sent it.
        folder: Where to.
        count: Only as many shards as hold the first `count` trajectories, and the set is those; all by default.
        overwrite: Replace other trajectories in `folder`.
        progress: Called as `progress(done, total)`, in bytes.

    Returns:
        The folder.

    Raises:
        ConnectionError: if the place cannot be reached; nothing is written.
        FileExistsError: if `folder` holds something else.
        FileNotFoundError: if there is no complete set at `url`.
        OSError: if the disk has no room (before the first byte), or the folder cannot be written.
        PermissionError: if the place may not be read.
        ValueError: for a bad count, or if a shard is damaged; it is removed and named.
    """
    folder, remote = Path(folder), Remote(url)
    with remote.reaching():
        manifest = remote.read_manifest()
    whole = manifest["count"]
    if count is not None and not 1 <= count <= whole:
        raise ValueError(f"cannot pull {count} of the {whole} trajectories of {url}")
    count = whole if count is None else count
    known = _known(folder, manifest, overwrite)
    if known is not None:
        count = max(count, known["made"].get("pulled", {"count": whole})["count"])
    prepare_folder(folder, resume=True)
    for path in folder.glob(".shard-*.tmp"):
        path.unlink()

    shards = range(shard_count(manifest, count))
    sizes = [shard_size(manifest, k) for k in shards]
    todo = []
    for k in shards:
        if not (path := shard_path(folder, k)).exists():
            todo.append(k)
        elif wrong := problem(path, manifest, k, verify=True):
            log.warning("%s is %s: it is pulled again", path, wrong)
            path.unlink()
            todo.append(k)
    needed, free = sum(sizes[k] for k in todo), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC, f"{url} needs {_size(needed)} in {folder}, {_size(free)} are free: pull fewer (count)"
        )
    tell = _Bytes(progress, sum(sizes) - needed, sum(sizes))
    tell.say()
    with remote.reaching():
        for k in todo:
            remote.fetch(manifest, k, folder, f".{shard_path(folder, k).name}.{os.getpid()}.tmp", tell)
            tell.finish(sizes[k])
    made = {k: v for k, v in manifest["made"].items() if k != "pulled"}
    if count < whole:
        made |= {"pulled": {"from": url, "count": count}}
    if known is None or known["made"] != made:
        write_file(
            folder / MANIFEST, [json.dumps({**manifest, "made": made}, indent=1).encode(), b"\n"], "pull() again"
        )
    return folder


def _known(folder: Path, manifest: Manifest, overwrite: bool) -> Manifest | None:
    """The manifest in `folder` if it is of this set, or part of it; refuses a folder of anything else."""
    if not folder.is_dir():
        return None
    shards, known = sorted(folder.glob("shard-*.safetensors")), (folder / MANIFEST).is_file()
    others = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    if not known and not shards and others:
        raise FileExistsError(f"{folder} holds other files ({join(others, ', ')}): choose an empty one")
    own = {shard_path(folder, k): k for k in range(shard_count(manifest))}
    foreign = [p for p in shards if p not in own or "foreign" in problem(p, manifest, own[p], verify=False)]
    if overwrite:
        for path in [folder / MANIFEST, *foreign]:
            path.unlink(missing_ok=True)
        return None
    held = read_manifest(folder) if known else None
    if (held is not None and held["fingerprint"] != manifest["fingerprint"]) or foreign:
        found = differences(_determines(manifest), _determines(held or manifest)) or [p.name for p in foreign]
        raise FileExistsError(
            f"{folder} holds other trajectories ({join(found)}): choose another folder, or pass overwrite=True"
        )
    return held


def _determines(manifest: Manifest) -> Manifest:
    return {k: v for k, v in manifest.items() if k not in ("fingerprint", "made")}


def _groups(shards: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Neighbours that are sent together: on the Hub, a commit."""
    group: list[int] = []
    for k in shards:
        if group and (len(group) == COMMIT_FILES or sum(sizes[j] for j in (*group, k)) > COMMIT_BYTES):
            yield group
            group = []
        group.append(k)
    if group:
        yield group


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


class _Bytes(NoOpCallback):  # type: ignore[misc]
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


class Remote:
    """A place that fsspec reaches, and the few things that are done there.

    Arguments:
        url: Such as `hf://datasets/org/name`, `s3://bucket/name` or `file:///folder`.

    Raises:
        ImportError: if the package for the URL's protocol is not installed; names it.
        ValueError: if the protocol is not known.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            # A fresh one: a listing from before a push would hide what was pushed.
            self.fs, self.root = cast(tuple[Any, str], fsspec.url_to_fs(self.url, skip_instance_cache=True))
        except ImportError as error:
            raise ImportError(f"{url} cannot be reached: {error}") from None
        except ValueError as error:
            raise ValueError(f"{url} cannot be reached: {error}") from None
        self._hub = _HUB.fullmatch(self.url)
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
        try:
            yield
        except Exception as error:
            if (explained := self._explain(error)) is None:
                raise
            raise explained from error

    def _explain(self, error: Exception) -> Exception | None:
        if isinstance(error, FileExistsError):
            return None
        number, first = getattr(error, "errno", None), (str(error) or type(error).__name__).strip().splitlines()[0]
        status = getattr(getattr(error, "response", None), "status_code", getattr(error, "status", None))
        library = type(error).__module__.split(".")[0]
        if isinstance(error, FileNotFoundError) or status == 404:
            login = " If it is private, log in (hf auth login)." if self._hub else ""
            return FileNotFoundError(
                f"no complete trajectory set at {self.url} ({first}): check the name, and that its push was finished.{login}"
            )
        if isinstance(error, PermissionError) or status in (401, 403):
            login = "log in with an account that may (hf auth login)" if self._hub else "check your credentials for it"
            return PermissionError(f"no permission for {self.url} ({first}): {login}")
        if number in _FULL:
            return OSError(number, f"the disk is full ({first}): make room and start again, what is complete is kept")
        failed = isinstance(status, int) and status >= 500
        if failed or isinstance(error, ConnectionError | TimeoutError) or library.startswith(_NETWORK):
            return ConnectionError(f"cannot reach {self.url} ({first}): check the network and try again")
        return None

    def read_manifest(self) -> Manifest:
        """The manifest of the set.

        Raises:
            ValueError: if it is damaged, or not a manifest.
        """
        mend, source = "Push the set again, or tell who did", self.at(MANIFEST)
        text = self.fs.cat_file(source)
        try:
            manifest = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{self.url}/{MANIFEST} is not valid JSON ({error}). {mend}") from None
        return parse_manifest(manifest, f"{self.url}/{MANIFEST}", mend)

    def fetch(
        self, manifest: Manifest, k: int, folder: Path, temporary: str, callback: NoOpCallback | None = None
    ) -> Path:
        """Download shard `k` into `folder`, under a `temporary` name until it is complete and checked.

        Raises:
            ValueError: if what arrived is damaged or foreign; it is removed.
        """
        path, partial = shard_path(folder, k), folder / temporary
        try:
            self.fs.get_file(self.at(path.name), str(partial), callback=callback or NoOpCallback())
            if wrong := problem(partial, manifest, k, verify=True):
                raise ValueError(
                    f"{self.url}/{path.name} arrived {wrong}. It was removed: try again; if it stays so, push the set again"
                )
            place(partial, path)
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

    def upload(self, files: Sequence[tuple[str, Path | bytes]], message: str, tell: _Bytes) -> None:
        """Write files; on the Hub in one commit called `message`."""
        if self._hub is not None:
            from huggingface_hub import CommitOperationAdd

            self._commit([CommitOperationAdd(self._in_repository(name), content) for name, content in files], message)
        for name, content in files:
            if self._hub is None:
                self._write(name, content, tell)
            if isinstance(content, Path):
                tell.finish(content.stat().st_size)

    def _write(self, name: str, content: Path | bytes, tell: _Bytes) -> None:
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
                            tell.relative_update(len(chunk))
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


# The card.


def _card(manifest: Manifest, url: str, license: str) -> str:
    """A dataset card: what the set is, in words, and how to load it."""
    from huggingface_hub import DatasetCardData

    count, first, solver, teacher = (manifest[k] for k in ("count", "first_seed", "solver", "teacher"))
    front = DatasetCardData(
        license=license,
        pretty_name=f"{count:,} diffusion trajectories",
        tags=["dsno", "diffusion", "trajectories", "distillation", "safetensors"],
        size_categories=_category(count),
        viewer=False,
    )
    size = sum(shard_size(manifest, k) for k in range(shard_count(manifest)))
    cond = [name for name in layout(manifest, 0) if name.split(".")[0] == "cond"]
    settings = ", ".join(f"{k} {v}" for k, v in solver.items() if k != "name")
    options = {"kind": teacher.get("kind"), "clip": teacher.get("clip"), "guidance weight": teacher.get("weight")}
    network = teacher["class"] + "".join(f", {k} {v}" for k, v in options.items() if v is not None)
    facts = {
        "trajectories": f"{count:,}, of the seeds {first} to {first + count - 1}",
        "shape of a sample": " x ".join(map(str, manifest["shape"])) or "a number",
        "stored of each frame": " and ".join(manifest["targets"]),
        "times of the frames": ", ".join(f"{t:.6g}" for t in manifest["times"]) + " (1 is noise, 0 is data)",
        "condition": ", ".join(f"`{name}`" for name in cond) or "none",
        "storage": f"{manifest['dtype']}, {_size(size)} in {shard_count(manifest)} shards",
        "teacher": network,
        "weights of the teacher": f"sha256 `{teacher.get('sha256') or teacher.get('denoiser', {}).get('sha256')}`",
        "schedule": f"`{json.dumps(manifest['schedule'])}`",
        "solver": f"{solver['name']}{f' ({settings})' if settings else ''}, {len(manifest['grid']) - 1} steps",
        "fingerprint": f"`{manifest['fingerprint']}`",
    } | {f"teacher's {name}": f"`{json.dumps(value)}`" for name, value in teacher["description"].items()}
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""---
{front.to_yaml()}
---

# {count:,} diffusion trajectories

Noise, and where a pretrained diffusion model takes it: each row holds the noise of one seed and the frames of the solution of
the model's probability-flow ODE that starts there. Made with dsno; `manifest.json` says everything that determined them.

| | |
|---|---|
{table}

They come from the teacher's weights, whose licence may extend to them.

## Loading

```python
from dsno.store import TrajectorySet

data = TrajectorySet("{url}")  # shards are fetched when they are needed
rows = data.__getitems__([0, 1, 2])  # `noise`, {", ".join(f"`{t}`" for t in manifest["targets"])}, `seeds`{", `cond`" * bool(cond)}
```

Without dsno, each `shard-*.safetensors` is a plain safetensors file.
"""


def _category(count: int) -> str:
    """The Hub's name for the size of a data set."""
    bounds = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]
    return next((name for bound, name in bounds if count < bound), "10M<n<100M")
