"""What lies in the folders and text files of users, without what machines put there on their own.

File managers, notebooks and editors leave things among data: `.ipynb_checkpoints`, `._a.png`, `__MACOSX`, `Thumbs.db`,
a byte order mark before the first word. None of it was meant, so no folder is listed and no text read but by these.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["entries", "is_litter", "read_text"]

_LITTER = {
    "$recycle.bin",
    "@eadir",
    "__macosx",
    "__pycache__",
    "desktop.ini",
    "ehthumbs.db",
    "system volume information",
    "thumbs.db",
}
"""In lower case: the machines that write these know no other."""


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden (it starts with a dot) or a machine's own."""
    return name.startswith(".") or name.casefold() in _LITTER


def entries(folder: Path, pattern: str = "*") -> list[Path]:
    """What a folder holds that matches `pattern`, in alphabetical order, and neither is nor lies in litter."""
    found = (path for path in folder.glob(pattern) if not any(map(is_litter, path.relative_to(folder).parts)))
    return sorted(found)


def read_text(path: Path) -> str:
    r"""A text file, UTF-8 whatever the machine's encoding is; without a byte order mark, lines end with `\n`.

    Raises:
        ValueError: if it is in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}): save it as such") from None
