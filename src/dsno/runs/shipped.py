"""The weights that ship with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

__all__ = ["shipped"]


def shipped(name: str = "digits") -> Path:
    """The folder of weights that ship with the package: `teacher`, `student` and `features` of a recipe.

    Raises:
        FileNotFoundError: if the package holds no such recipe.
    """
    folder = Path(str(resources.files("dsno"))) / "weights" / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no weights named {name!r} ship with this package (no folder {folder}): train them, `dsno reproduce "
            f"{name}`"
        )
    return folder
