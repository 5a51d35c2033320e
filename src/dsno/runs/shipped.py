"""The weights that ship with the package."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

from dsno.checkpoint import CONFIG, SEAL, WEIGHTS, read_json, seal, write_json

__all__ = ["ship", "shipped", "shipped_name"]

PARTS = ("teacher", "student", "features")


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


def shipped_name(folder: Path) -> str | None:
    """What the student in a folder is called by, if it ships with the package: `digits`, say."""
    return folder.parent.name if folder.name == "student" and folder.parent.parent == shipped().parent else None


def ship(run: Path | str, out: Path | str) -> None:
    """Copy what a recipe made in `run` to `out`, as it ships: weights and settings, and nothing of where they lay.

    Raises:
        FileNotFoundError: if a part is not complete.
    """
    for part in PARTS:
        config = read_json(Path(run) / part / CONFIG)
        notes = config.get("notes", {})
        notes.pop("sources", None)
        if "teacher" in notes.get("origin", {}):
            # Its neighbour, wherever both are.
            notes["origin"]["teacher"] = {"name": None, "sha256": notes["origin"]["teacher"]["sha256"]}
        folder = Path(out) / part
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(run) / part / WEIGHTS, folder / WEIGHTS)
        write_json(folder / CONFIG, {**config, SEAL: seal(config, folder / WEIGHTS)})
