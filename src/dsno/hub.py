"""The Hugging Face Hub as a folder: a repository by name becomes the files of it that are needed, JSON and safetensors.

One short question is asked before any download, so that no network, a wrong name or a closed door is an error within
seconds; a copy that an earlier download left in the cache is used without asking twice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["is_hub_id", "local_copy"]

_SECONDS = 5.0

_SAFE = (".json", ".safetensors", ".txt", ".model")


def is_hub_id(ref: str) -> bool:
    """Whether `ref` reads `org/name` or `org/name@revision`."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", ref) is not None


def local_copy(ref: Path | str, patterns: Sequence[str] = ("*.json",)) -> Path:
    """The folder that `ref` names: a local one as it is, else a snapshot of the Hub repository `org/name[@revision]` with
    the files that match `patterns`.

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
    from huggingface_hub import errors

    name, _, revision = str(ref).partition("@")
    here = f"there is no folder {name} here, and"
    try:
        # Asked first and with a short limit: the download itself is patient.
        huggingface_hub.HfApi().model_info(name, revision=revision or None, timeout=_SECONDS)
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(f"{here} {name} on the Hub has no revision {revision!r}") from None
    except errors.GatedRepoError:
        raise PermissionError(
            f"{here} {name} on the Hub is closed to you: accept its conditions on its page and log in (`hf auth login`)"
        ) from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{here} the Hub has no repository {name} that you may see: check the name, or log in (`hf auth login`)"
        ) from None
    except Exception as error:
        # No network, a proxy's refusal, offline mode: what was fetched before is still good.
        return _cached(name, revision, patterns, f"{here} the Hub cannot be reached for {name} ({_first_line(error)})")
    fetched = huggingface_hub.snapshot_download(
        name, revision=revision or None, allow_patterns=list(patterns), etag_timeout=_SECONDS
    )
    return Path(fetched)


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


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
