"""A folder that trajectories are made in: what is in it before any work, and whether it may go on being what it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dsno.checkpoint import read_json
from dsno.outputs import LOCK, held, locked, sweep, tidy, writable
from dsno.trajectories.format import check_foreign, check_shard, shard_count, shard_path, shards_in, unfinished
from dsno.trajectories.manifest import MANIFEST, Manifest, differences, join, read_manifest, write_manifest

__all__ = ["alone", "check_kind", "check_manifest", "check_out", "prepare"]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only run that writes to a folder, which is made where there is none, and sweep what a killed one left.

    Raises:
        BlockingIOError: if another one does.
        FileExistsError, PermissionError: if it is a file, or cannot be made.
    """
    with tidy():
        if not folder.is_dir():
            writable(folder)
        with locked(folder / LOCK, f"{folder}"):
            with suppress(OSError):  # a complete set may lie where nothing can be removed
                sweep(folder)
                for path in unfinished(folder):
                    path.unlink()
            yield


def check_out(folder: Path, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that no trajectories can be stored in, whatever they are; makes it where there is none.

    Raises:
        FileExistsError: if it has something in it that is not to be continued or thrown away, or no trajectories.
        PermissionError: if it cannot be written.
    """
    shards = shards_in(folder)
    if shards and not (resume or overwrite):
        raise FileExistsError(
            f"{folder} holds {len(shards)} shards already: pass resume=True to continue or overwrite=True to start "
            "again"
        )
    check_kind(folder)
    writable(folder)


def check_kind(folder: Path) -> None:
    """Refuse a folder that holds other things than trajectories: nothing of theirs, or somebody else's manifest.

    Raises:
        FileExistsError: if it does.
    """
    if not folder.is_dir() or shards_in(folder):
        return
    # Without a shard, a folder with a manifest in it is as good as new.
    if not (folder / MANIFEST).is_file():
        if others := sorted({*held(folder)} - {p.name for p in unfinished(folder)}):
            raise FileExistsError(f"{folder} holds other files ({join(others, ', ')}): choose an empty one")
    elif not _is_of_trajectories(folder / MANIFEST):
        raise FileExistsError(f"{folder / MANIFEST} is no manifest of trajectories: choose another folder")


def _is_of_trajectories(path: Path) -> bool:
    try:
        found = read_json(path)
    except ValueError:
        return False
    return isinstance(found, dict) and {"format", "fingerprint"} <= found.keys()


def prepare(folder: Path, manifest: Manifest, resume: bool, overwrite: bool) -> None:
    """Make the folder ready for the set of this manifest, and write the manifest, before any work.

    Of several processes one does this. A complete set is left alone, so its folder may be read-only.

    Raises:
        FileExistsError, PermissionError: as `check_out` does.
        ValueError: if it holds other or damaged trajectories and they are to be continued.
    """
    shards, known = shards_in(folder), (folder / MANIFEST).is_file()
    written, pulled = manifest, False
    if resume:
        if known:
            found = check_manifest(folder, manifest)
            # A part of a set that was pulled becomes the whole.
            pulled = found["made"].pop("pulled", None) is not None
            written = found
        else:
            for k in range(shard_count(manifest)):
                if shard_path(folder, k).exists():
                    check_shard(folder, manifest, k, verify=False)
        check_foreign(folder, manifest)
        if known and len(shards) == shard_count(manifest) and not pulled:
            return
    check_out(folder, resume, overwrite)
    for path in [] if resume else [*reversed(shards), *folder.glob(MANIFEST)]:
        path.unlink(missing_ok=True)
    if not (resume and known) or pulled:
        write_manifest(folder, written)


def check_manifest(folder: Path, expected: Manifest) -> Manifest:
    """The manifest of a folder that holds the set that is expected there.

    Raises:
        ValueError: if it holds another; says in which fields.
    """
    found = read_manifest(folder)
    ignored = {"fingerprint": None, "made": None}
    if wrong := differences(expected | ignored, found | ignored):
        raise ValueError(
            f"{folder} holds other trajectories than asked for: {join(wrong)}. Call generate() as it was called "
            "then, choose another folder, or pass overwrite=True"
        )
    return found
