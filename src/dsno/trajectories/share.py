r"""Trajectory sets elsewhere: pushed to, and pulled from, whatever fsspec reaches.

A remote set is the folder of `dsno.trajectories.format` under a URL: `hf://datasets/org/name` (the Hugging Face Hub),
`s3://bucket/name`, `http://host/name` (to read), `file:///folder`, `memory://name`, ... What makes it safe to use is
the order of things:

- pushing writes the manifest last, so a set without one is not finished, and a set with one is whole;
- a shard's header and size follow from the manifest and one checksum, so pushing and pulling again move only what is
  not there yet, and what arrived is checked before it gets its name.

On the Hub a push is a few commits to a dataset repository, with a card (README.md) made from the manifest.
"""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from dsno.checkpoint import temporary_name
from dsno.outputs import check_apart, local_path, writable
from dsno.trajectories.card import CARD, card, human_size, is_card
from dsno.trajectories.folder import alone, check_kind
from dsno.trajectories.format import (
    check_foreign,
    check_shard,
    is_shard,
    problem,
    shard_count,
    shard_path,
    shard_size,
    shards_in,
)
from dsno.trajectories.manifest import (
    MANIFEST,
    Manifest,
    determines,
    differences,
    join,
    read_manifest,
    write_manifest,
)
from dsno.trajectories.remote import Bytes, Progress, Remote

__all__ = ["pull", "push"]

log = logging.getLogger(__name__)

COMMIT_BYTES, COMMIT_FILES = 2**30, 100
"""How much of a set is sent to the Hub in one commit."""


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
        FileExistsError: if it holds another set, and `overwrite` is not set; if it is the folder, or holds it.
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

    if (place := local_path(url)) is not None:
        check_apart(place, folder)
    remote = Remote(url)
    with remote.reaching():
        remote.create(private)
        present = remote.sizes()
        held = remote.read_manifest() if MANIFEST in present else None
        stale = sorted(name for name in present if is_shard(name) and name not in names)
        if (held is not None and held["fingerprint"] != manifest["fingerprint"]) or stale:
            if not overwrite:
                found = differences(determines(manifest), determines(held or manifest)) or stale
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
        counted = Bytes(progress, total - sum(sizes[k] for k in todo), total)
        counted.say()
        for group in _groups(todo, sizes):
            for k in group:
                check_shard(folder, manifest, k, verify=True)
            remote.upload([(names[k], folder / names[k]) for k in group], f"Add {len(group)} shards", counted)

        present = remote.sizes()
        for k, name in enumerate(names):
            good = present.get(name) == sizes[k] and (k not in todo or remote.has(name, folder / name, present))
            if not good or (verify and not remote.intact(name, folder / name)):
                remote.remove([name for name in (name,) if name in present])
                raise ValueError(f"{url}/{name} did not arrive as it was sent, and was removed: push again")
        own = folder / CARD
        if own.exists() or CARD not in present or (overwrite and is_card(remote.read(CARD))):
            text = own.read_bytes() if own.exists() else card(manifest, url, license).encode()
            remote.upload([(CARD, text)], "Describe the set", counted)
        if MANIFEST not in present:
            remote.upload([(MANIFEST, (folder / MANIFEST).read_bytes())], "Complete the set", counted)
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
        BlockingIOError: if another run is writing to `folder`.
        FileExistsError: if `folder` holds something else, or `url` is in it.
        FileNotFoundError: if there is no complete set at `url`.
        OSError: if the disk has no room (before the first byte), or the folder cannot be written.
        PermissionError: if the place may not be read.
        ValueError: for a bad count, or if a shard is damaged; it is removed and named.
    """
    folder, remote = Path(folder), Remote(url)
    check_apart(folder, url)
    with remote.reaching():
        manifest = remote.read_manifest()
    whole = manifest["count"]
    if count is not None and not 1 <= count <= whole:
        raise ValueError(f"cannot pull {count} of the {whole} trajectories of {url}")
    count = whole if count is None else count
    with alone(folder):
        return _pulled(remote, manifest, folder, count, overwrite, progress)


def _pulled(
    remote: Remote, manifest: Manifest, folder: Path, count: int, overwrite: bool, progress: Progress | None
) -> Path:
    """`pull` into a folder that nobody else writes to."""
    url, whole = remote.url, manifest["count"]
    known = _known(folder, manifest, overwrite)
    if known is not None:
        count = max(count, known["made"].get("pulled", {"count": whole})["count"])
    writable(folder)
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
            errno.ENOSPC,
            f"{url} needs {human_size(needed)} in {folder}, {human_size(free)} are free: pull fewer (count)",
        )
    counted = Bytes(progress, sum(sizes) - needed, sum(sizes))
    counted.say()
    with remote.reaching():
        for k in todo:
            remote.fetch(manifest, k, folder, temporary_name(shard_path(folder, k).name), counted)
            counted.finish(sizes[k])
    made = {k: v for k, v in manifest["made"].items() if k != "pulled"}
    if count < whole:
        made |= {"pulled": {"from": url, "count": count}}
    if known is None or known["made"] != made:
        write_manifest(folder, {**manifest, "made": made}, "pull() again")
    return folder


def _known(folder: Path, manifest: Manifest, overwrite: bool) -> Manifest | None:
    """The manifest in `folder` if it is of this set, or part of it; refuses a folder of anything else."""
    shards, known = shards_in(folder), (folder / MANIFEST).is_file()
    check_kind(folder)
    own = {shard_path(folder, k): k for k in range(shard_count(manifest))}
    foreign = [p for p in shards if p not in own or "foreign" in problem(p, manifest, own[p], verify=False)]
    if overwrite:
        for path in [folder / MANIFEST, *foreign]:
            path.unlink(missing_ok=True)
        return None
    held = read_manifest(folder) if known else None
    if (held is not None and held["fingerprint"] != manifest["fingerprint"]) or foreign:
        found = differences(determines(manifest), determines(held or manifest)) or [p.name for p in foreign]
        raise FileExistsError(
            f"{folder} holds other trajectories ({join(found)}): choose another folder, or pass overwrite=True"
        )
    return held


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
