"""Remote stores, the Hugging Face Hub first of all: how long they are waited for, and what their errors mean.

One short question is asked before any download, so that no network, a wrong name or a closed door is an error within
seconds; a copy that an earlier download left in the cache is used where nobody answers.

Every client has errors of its own, and they change between its versions. Here they are three:

| error | what the client said |
|---|---|
| `FileNotFoundError` | the same; status 404; no such repository or revision, or no name of one |
| `PermissionError` | the same; status 401 or 403; a repository behind a gate |
| `ConnectionError` | the same; no answer in time; status 408, 429, 500 or above; what a network library raises |
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

__all__ = ["SECONDS", "ask_hub", "file_names", "first_line", "is_hub_id", "local_copy", "reaching", "remote_error"]

SECONDS = 5.0
"""How long a remote store is waited for when it is asked whether it has something."""

_NETWORK = ("httpx", "httpcore", "requests", "urllib3", "aiohttp", "botocore", "aiobotocore")

_SAFE = (".json", ".safetensors", ".txt", ".model")


def first_line(error: BaseException) -> str:
    """What an error says, or its name where it says nothing, in one line without the full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def remote_error(error: Exception) -> type[OSError] | None:
    """Which of the three errors of the table a client's error is, or None if it is another one."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", getattr(error, "status", None))
    library = type(error).__module__.split(".")[0]
    if isinstance(error, FileExistsError):
        return None
    # A gate is said to be a missing repository, and a missing repository to be one that needs a login.
    if isinstance(error, errors.GatedRepoError):
        return PermissionError
    if (
        isinstance(error, FileNotFoundError | errors.RepositoryNotFoundError | errors.HFValidationError)
        or status == 404
    ):
        return FileNotFoundError
    if isinstance(error, PermissionError) or status in (401, 403):
        return PermissionError
    failed = isinstance(status, int) and (status >= 500 or status in (408, 429))
    if failed or isinstance(error, ConnectionError | TimeoutError) or library.startswith(_NETWORK):
        return ConnectionError
    return None


@contextmanager
def reaching(missing: str, closed: str, unreachable: str) -> Iterator[None]:
    """Say what went wrong at a remote store in the words of whoever reaches for it, whatever library said it.

    Arguments:
        missing: What to say where there is nothing; `{error}` stands for the first line of what the client said, here
            and in the others.
        closed: What to say where it may not be read or written.
        unreachable: What to say where nobody answers.

    Raises:
        FileNotFoundError: `missing`.
        PermissionError: `closed`.
        ConnectionError: `unreachable`.
        Exception: any other error, as it was.
    """
    try:
        yield
    except Exception as error:
        if (kind := remote_error(error)) is None:
            raise
        said = {FileNotFoundError: missing, PermissionError: closed, ConnectionError: unreachable}[kind]
        raise kind(said.replace("{error}", first_line(error))) from error


def ask_hub(name: str, kind: Literal["model", "dataset"] = "model", revision: str | None = None) -> None:
    """Ask the Hub, once and for `SECONDS`, whether it has a repository: the downloads themselves are patient.

    Raises:
        FileNotFoundError: if there is no such repository or revision.
        PermissionError: if the repository is closed to this user.
        ConnectionError: if nobody answers; says why.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        huggingface_hub.HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=SECONDS)
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(f"{name} on the Hub has no revision {revision!r}") from None
    except Exception as error:
        found = remote_error(error)
        if found is PermissionError:
            raise PermissionError(
                f"{name} on the Hub is closed to you: accept its conditions on its page and log in (`hf auth login`)"
            ) from None
        if found is FileNotFoundError:
            what = "repository" if kind == "model" else kind
            raise FileNotFoundError(
                f"the Hub has no {what} {name} that you may see: check the name, or log in (`hf auth login`)"
            ) from None
        # A proxy's refusal, offline mode, or whatever else the client of this version raises where it is not answered.
        raise ConnectionError(first_line(error)) from None


def is_hub_id(ref: str) -> bool:
    """Whether `ref` reads `org/name` or `org/name@revision`."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", ref) is not None


def local_copy(ref: Path | str, patterns: Sequence[str] = ("*.json",)) -> Path:
    """The folder that `ref` names: a local one as it is, else a copy of the Hub's model `org/name[@revision]`.

    Arguments:
        ref: A folder, or the name of a repository.
        patterns: Which of its files are needed.

    Raises:
        FileNotFoundError: if there is neither such a folder nor such a repository or revision.
        PermissionError: if the repository is closed to this user.
        ConnectionError: if the Hub cannot be reached and the cache has no copy.
        ValueError: if a pattern asks for a file that runs code when it is read.
    """
    if Path(ref).exists():
        return Path(ref)
    if not is_hub_id(str(ref)):
        raise FileNotFoundError(f"there is no {ref}")
    if unsafe := [p for p in patterns if not p.endswith(_SAFE)]:
        raise ValueError(f"only {', '.join(_SAFE)} files are fetched, got the pattern {unsafe[0]!r}")
    import huggingface_hub

    name, _, revision = str(ref).partition("@")
    here = f"there is no folder {name} here, and"
    try:
        ask_hub(name, revision=revision or None)
    except ConnectionError as error:
        # What was fetched before is still good.
        return _cached(name, revision, patterns, f"{here} the Hub cannot be reached for {name} ({error})")
    except (FileNotFoundError, PermissionError) as error:
        raise type(error)(f"{here} {error}") from None
    fetched = huggingface_hub.snapshot_download(
        name, revision=revision or None, allow_patterns=list(patterns), etag_timeout=SECONDS
    )
    return Path(fetched)


def file_names(ref: Path | str) -> list[str]:
    """The names of the files in a folder, or in a model of the Hub as `local_copy` takes it; none if nobody answers."""
    if Path(ref).exists():
        return sorted(p.relative_to(ref).as_posix() for p in Path(ref).rglob("*") if p.is_file())
    import huggingface_hub

    name, _, revision = str(ref).partition("@")
    try:
        listed = huggingface_hub.HfApi().model_info(name, revision=revision or None, timeout=SECONDS).siblings
    except Exception as error:
        if remote_error(error) is None and not isinstance(error, OSError):
            raise
        return []
    return sorted(file.rfilename for file in listed or ())


def _cached(name: str, revision: str, patterns: Sequence[str], problem: str) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        found = huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=list(patterns), local_files_only=True
        )
    except errors.LocalEntryNotFoundError:
        raise ConnectionError(f"{problem}, nor is it in the cache: connect, or give a local folder") from None
    return Path(found)
