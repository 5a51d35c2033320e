r"""Folders and files that runs write: what may be overwritten, what may not, and by whom.

One rule for every verb. A `Kind` says which files are written into a folder. To overwrite it is to remove these, and
nothing else, from a folder of the same kind; what somebody else put there stays, and a folder of anything else is
refused. So is an output that is, or holds, an input of the same command, whether it is to be overwritten or not.

While a run writes to a folder it holds a lock on it, which the system frees when its process dies, and so what a run
that was killed left under a temporary name can be told from what another one is writing.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from dsno.checkpoint import CONFIG, TEMPORARY, TYPES, WEIGHTS, check_type, temporary_name
from dsno.listing import entries
from dsno.snapshots import LOG, files_of, settings_of, snapshots_in

__all__ = [
    "BRIDGE",
    "BUILT_IN",
    "CLASSIFIER",
    "FEATURES",
    "KERNELS",
    "MODEL",
    "START",
    "STUDENT",
    "TEACHER",
    "TRAINING",
    "Kind",
    "check_apart",
    "check_request",
    "claimed",
    "held",
    "local_path",
    "locked",
    "prepare_folder",
    "sweep",
    "tidy",
    "writable",
]

log = logging.getLogger(__name__)

LOCK, TRACKED = ".lock", "dsno"

BUILT_IN = ("digits", "digits-classes")
"""What is called so is a data set or ships with the package, whatever lies here."""

_MADE: ContextVar[list[Path] | None] = ContextVar("made", default=None)
"""The folders that `writable` made inside `tidy`."""

UNWRITTEN = (errno.EACCES, errno.EPERM, errno.EROFS)
LOCKLESS = (*UNWRITTEN, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
"""What a file system says that is not written to, or has no locks."""


@dataclass(frozen=True)
class Kind:
    """What is written into a folder.

    Attributes:
        name: What it is called.
        own: The files in a folder that are written there, the one that marks it complete first; those that are there.
        types: What its `config.json` may call itself, if it has one; anything by default.
        resumes: Whether what was begun can be continued.
    """

    name: str
    own: Callable[[Path], list[Path]]
    types: tuple[str, ...] = ()
    resumes: bool = True


def _trained(folder: Path) -> list[Path]:
    """What `train` writes: snapshots, the log, and what a tracker writes for it."""
    snapshots = [file for path in snapshots_in(folder) for file in files_of(path)]
    tracked = (file for name in ("events.out.tfevents.*", "hparams.yml") for file in (folder / TRACKED).glob(name))
    return [*snapshots, *folder.glob(LOG), *tracked]


def _modelled(folder: Path) -> list[Path]:
    """A model and its training, in `training` itself or in a folder for each stage, by which its snapshots go."""
    training = folder / "training"
    stages = [path for path in training.glob("*") if path.is_dir() and _is_stage(path)]
    trained = [*_trained(training), *(file for stage in stages for file in _trained(stage))]
    # Weights alone may be anybody's.
    model = [folder / CONFIG, folder / WEIGHTS] if trained or (folder / CONFIG).is_file() else []
    return [*(path for path in model if path.is_file()), *trained]


def _is_stage(path: Path) -> bool:
    """Whether a folder is that of a stage: by its snapshots, or before the first one by there being nothing else."""
    if snapshots := snapshots_in(path):
        return any(settings_of(snapshot).get("stage") == path.name for snapshot in snapshots)
    return {*held(path)} <= {LOG, TRACKED}


MODEL = Kind("a model", _modelled)
TEACHER, STUDENT, FEATURES, KERNELS, CLASSIFIER, BRIDGE, START = (
    Kind(f"a {types[0]}", _modelled, types) for types in TYPES
)
TRAINING = Kind("a training run", _trained)


def check_request(resume: bool, overwrite: bool) -> None:
    """Refuse to continue what is there and throw it away.

    Raises:
        ValueError: if both are asked for.
    """
    if resume and overwrite:
        raise ValueError("resume continues what is there and overwrite throws it away: pass one of them")


def check_apart(out: Path | str, *inputs: object) -> None:
    """Refuse an output that is, or holds, one of the `inputs`: paths, or names of what may not lie on this machine.

    Raises:
        FileExistsError: if it does; names the input.
    """
    target = Path(out).resolve()
    for given in inputs:
        if (path := local_path(given)) is not None and path.is_relative_to(target):
            where = "is" if path == target else "lies in"
            raise FileExistsError(f"{given} is read, and {where} {out}, which is written to: choose another output")


def local_path(given: object) -> Path | None:
    """Where on this machine an input lies, or None."""
    text = str(given or "").removeprefix("file://")
    if text in BUILT_IN:
        return None
    # `file.py:attribute` is read from the file.
    for name in (text, text.rpartition(":")[0]):
        if name and "://" not in name and Path(name).exists():
            return Path(name).resolve()
    return None


def prepare_folder(path: Path | str, resume: bool = False, overwrite: bool = False, kind: Kind = MODEL) -> Path:
    """Make an output folder ready, before any work.

    Raises:
        FileExistsError: if it exists with something in it and neither `resume` nor `overwrite` is set; if it is of
            another kind, or holds nothing of this one that could be overwritten, or the working directory.
        PermissionError: if it cannot be written to.
        ValueError: if it is both to be resumed and overwritten.
    """
    path = Path(path)
    check_request(resume, overwrite)
    if path.is_dir() and (found := held(path)):
        if not (resume or overwrite):
            going_on = "resume=True to continue it or " if kind.resumes else ""
            raise FileExistsError(f"{path} exists already: pass {going_on}overwrite=True to start again")
        check_type(path, kind.types)
        if overwrite:
            _overwrite(path, kind, found)
    return writable(path)


def held(folder: Path) -> list[str]:
    """What is in a folder, but for locks and what a run that was killed left."""
    return [p.name for p in entries(folder)]


def _overwrite(folder: Path, kind: Kind, found: Sequence[str]) -> None:
    if Path.cwd().is_relative_to(folder.resolve()):
        raise FileExistsError(f"{folder} holds the working directory: choose another output folder")
    if not (own := kind.own(folder)) and not _is_empty(folder):
        raise FileExistsError(
            f"{folder} holds other files ({', '.join(found[:4])}) and not {kind.name}: choose an empty folder"
        )
    for file in own:
        file.unlink()
    for parent in sorted({p for file in own for p in file.parents if p.is_relative_to(folder)}, reverse=True):
        if parent != folder and not any(parent.iterdir()) and not parent.is_symlink():
            parent.rmdir()
    if kept := held(folder):
        log.warning("%s: kept what is not of %s: %s", folder, kind.name, ", ".join(kept[:8]))


def _is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but folders, and what a run that was killed left."""
    files = (p.relative_to(folder) for p in folder.rglob("*") if not p.is_dir())
    return all(file.name == LOCK or any(map(TEMPORARY.fullmatch, file.parts)) for file in files)


def writable(path: Path | str) -> Path:
    """Make a folder, if it is missing, and make sure that it can be written to.

    Raises:
        FileExistsError: if it is a file.
        PermissionError: if it cannot be written to.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file: expected a folder to write to")
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        if (made := _MADE.get()) is not None:
            made += missing
        probe = path / temporary_name("probe")
        try:
            probe.write_bytes(b"0")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise PermissionError(f"cannot write to {path} ({error.strerror}): choose another output folder") from None
    return path


@contextlib.contextmanager
def tidy() -> Iterator[None]:
    """Remove the folders that `writable` made inside, if nothing came to lie in them because what is inside failed."""
    outer, made = _MADE.get(), list[Path]()
    before = _MADE.set(made)
    try:
        yield
    except BaseException:
        for folder in sorted({*made}, reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    finally:
        _MADE.reset(before)
        if outer is not None:
            # What goes on behind this may fail, too.
            outer += made


@contextlib.contextmanager
def claimed(
    path: Path | str,
    kind: Kind = MODEL,
    resume: bool = False,
    overwrite: bool = False,
    inputs: Sequence[object] = (),
) -> Iterator[Path]:
    """An output folder, made ready and this run's alone until it ends.

    Of several processes of one run the first does this; the others wait for it where they first work together.

    Raises:
        BlockingIOError: if another run is writing to it.
        FileExistsError, PermissionError, ValueError: as `prepare_folder` and `check_apart` do.
    """
    path = Path(path)
    if os.environ.get("RANK", "0") != "0":
        yield path
        return
    check_request(resume, overwrite)
    check_apart(path, *inputs)
    with tidy(), locked(writable(path) / LOCK, f"{path}"):
        sweep(path)
        yield prepare_folder(path, resume, overwrite, kind)


@contextlib.contextmanager
def locked(lock: Path, what: str, timeout: float = 0) -> Iterator[None]:
    """Hold the lock file `lock` on `what`, and remove it behind; without locks on file systems that have none.

    Raises:
        BlockingIOError: if another process holds it and does not give it back in `timeout` seconds; -1 is for ever.
    """
    file = FileLock(lock, timeout=timeout)
    try:
        file.acquire()
    except Timeout:
        raise BlockingIOError(f"another run is writing to {what}: wait for its end, or choose another output") from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in LOCKLESS:
            raise
        # Where nobody may write, nobody has to wait.
        level = logging.DEBUG if isinstance(error, OSError) and error.errno in UNWRITTEN else logging.WARNING
        log.log(level, "%s is not locked (%s): do not let two runs write to it", what, error)
        yield
        return
    try:
        yield
    finally:
        # While it is held: who waits for a file that is gone finds that out, and makes another.
        with contextlib.suppress(OSError):
            lock.unlink()
        file.release()


def sweep(folder: Path, beside: str = "") -> None:
    """Remove what a run that was killed left in a folder that this one has locked; only `beside` one file, if named."""
    for path in folder.iterdir():
        if path.name.startswith(f".{beside}") and TEMPORARY.fullmatch(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
