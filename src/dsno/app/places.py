"""What may be opened by a name that somebody types on a page.

A page opens models for whoever reaches it, and a name may lead anywhere on a disk. So a name is refused unless it is
one that the owner of the page gave, or lies in a folder that was opened for it, links followed; or, where that is
allowed, is a name on the Hub. A name is never code (`module:attribute`), and what lies elsewhere is refused in the
same words whether it is there or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dsno.checkpoint import CONFIG, STUDENTS, type_of
from dsno.hub import is_hub_id
from dsno.listing import entries
from dsno.outputs import BUILT_IN

__all__ = ["INDEX", "Places"]

INDEX = "model_index.json"
"""What marks the folder of a pipeline."""

DEPTH = ("", "*/", "*/*/")
"""How deep models are looked for in a folder."""


@dataclass(frozen=True)
class Places:
    """Where models may be opened from.

    Attributes:
        folders: Folders that all may be opened of.
        known: What else may be: by the name that it is opened by, what `load_teacher` or `load_student` take.
        hub: Whether names on the Hub may be.
    """

    folders: tuple[Path, ...] = ()
    known: Mapping[str, str] = field(default_factory=dict)
    hub: bool = False

    def opened(self, name: str) -> str:
        """What a name stands for, as `load_teacher` and `load_student` take it.

        Raises:
            FileNotFoundError: if it lies in an open folder, and there is nothing.
            PermissionError: if it may not be opened.
        """
        if name in self.known:
            return self.known[name]
        if not self.allows(name):
            where = ", ".join(map(str, self.folders)) or "no folder"
            hub = ", or on the Hub" if self.hub else ""
            raise PermissionError(f"{name!r} is not opened here: models are opened from {where}{hub}")
        if self._inside(name) and not Path(name).exists():
            raise FileNotFoundError(f"there is no model {name}")
        return name

    def allows(self, name: str) -> bool:
        """Whether a name may be opened: one of the known, in a folder, or on the Hub."""
        if name in (*self.known, *self.known.values(), *BUILT_IN) or self._inside(name):
            return True
        return self.hub and is_hub_id(name) and not Path(name).exists()

    def _inside(self, name: str) -> bool:
        try:
            path = Path(name).resolve()
        except (ValueError, OSError, RuntimeError):
            return False
        return any(path.is_relative_to(folder.resolve()) for folder in self.folders)

    def found(self) -> list[str]:
        """The names of the models there are, the known ones first: those in the folders, and in folders in these."""
        files = (
            file
            for folder in self.folders
            for depth in DEPTH
            for name in (CONFIG, INDEX)
            for file in entries(folder, f"{depth}{name}")
        )
        models = {str(file.parent) for file in files if _is_model(file)}
        return [*dict.fromkeys([*self.known, *BUILT_IN, *filter(self.allows, sorted(models))])]


def _is_model(file: Path) -> bool:
    """Whether a file marks the folder of a student, a teacher or a pipeline."""
    try:
        return file.name == INDEX or type_of(file.parent) in ("teacher", *STUDENTS)
    except (ValueError, OSError):
        return False
