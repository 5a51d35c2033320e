"""One way in for every teacher: a folder, a file, a name or an object becomes a `Prediction`.

| `ref` | what it is |
|---|---|
| a `Prediction` | itself |
| a folder with `config.json` of type `teacher` | what `save_teacher` wrote |
"""

from __future__ import annotations

from pathlib import Path

from dsno.denoise import Prediction
from dsno.teachers.native import load_native

__all__ = ["load_teacher"]


def load_teacher(ref: Prediction | Path | str) -> Prediction:
    """Load a teacher from any of the forms above.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if `ref` is not a teacher; says what it was taken for.
    """
    if isinstance(ref, Prediction):
        return ref
    return load_native(ref)
