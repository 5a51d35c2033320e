"""Folders and zip files of pictures, and what lies beside them and says their classes.

| beside the pictures | classes |
|---|---|
| nothing, and they are in sub-folders | a class for each sub-folder, in alphabetical order |
| `dataset.json` of EDM's dataset tool | its `labels`, `[["00000/img00000000.png", 6], ...]`; null is none |
| `metadata.csv` or `metadata.jsonl` of a Hugging Face image folder | its column `label` or `labels`, by `file_name` |

Where there is such a file, folders only split the pictures, and it has to name each of them.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

from dsno.data.classes import Labels, class_numbers
from dsno.data.files import LABEL_NAMES, Read, optional_package
from dsno.data.pictures import PICTURES, Background, read_pictures
from dsno.listing import entries, is_litter
from dsno.outside import check_expansion, must_be_file

__all__ = ["read_folder", "read_zip"]

Files = Mapping[str, Callable[[], bytes]]
"""Files by their names inside a folder or an archive, `cats/1.png`, in alphabetical order: what gives their bytes."""

_SPLITS = {"dev", "eval", "test", "train", "val", "valid", "validation"}


def read_folder(path: Path, size: int | None, background: Background) -> Read:
    """The pictures of a folder, or of its sub-folders, with the classes of the table above.

    Raises:
        ValueError: if there are none, what lies beside them does not fit them, or as `read_pictures`.
    """
    deep = any((path / name).is_file() for name in _NOTES)
    found = entries(path, "**/*") if deep else [*entries(path), *entries(path, "*/*")]
    files = {p.relative_to(path).as_posix(): _bytes_of(p) for p in found if not p.is_dir()}
    return _read(files, path, size, background)


def _bytes_of(path: Path) -> Callable[[], bytes]:
    return lambda: must_be_file(path).read_bytes()


def read_zip(path: Path, size: int | None, background: Background) -> Read:
    """The pictures of a zip file, as those of a folder.

    Raises:
        ValueError: if it is damaged, or as `read_folder`.
    """
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is damaged or not a zip file ({error})") from None

    def member(name: str) -> Callable[[], bytes]:
        return lambda: archive.read(name)

    with archive:
        check_expansion(path.stat().st_size, sum(info.file_size for info in archive.infolist()), path)
        names = [n for n in archive.namelist() if not n.endswith("/") and not any(map(is_litter, n.split("/")))]
        files = {name: member(name) for name in sorted(names, key=lambda name: name.split("/"))}
        if not any(name in files for name in _NOTES):
            files = {name: read for name, read in files.items() if name.count("/") < 2}
        return _read(files, path, size, background)


def _read(files: Files, path: Path, size: int | None, background: Background) -> Read:
    pictures = [name for name in files if PurePosixPath(name).suffix.lower() in PICTURES]
    notes = [name for name in _NOTES if name in files]
    if len(notes) > 1:
        raise ValueError(f"{path} has {' and '.join(notes)}: which says the classes? Keep one of them")
    if notes:
        labels = _noted(files, notes[0], pictures, path)
    elif flat := [name for name in pictures if "/" not in name]:
        pictures, labels = flat, None
    else:
        labels = _by_folder(files, pictures, path)
    if not pictures:
        raise ValueError(f"{path} has no PNG or JPEG files, and none in its sub-folders")
    optional_package("PIL", "images")
    return read_pictures(((str(path / name), files[name]) for name in pictures), size, background), labels


def _by_folder(files: Files, pictures: list[str], path: Path) -> Labels | None:
    """A class for each sub-folder.

    Raises:
        ValueError: if they are no classes: splits, or image folders of their own.
    """
    folders = [name.split("/")[0] for name in pictures]
    own = next((name for name in files if name.count("/") == 1 and name.split("/")[1] in _NOTES), None)
    if own is not None and own.split("/")[0] in folders:
        raise ValueError(f"{path / own} says the classes of its own folder: load that one, {path / own.split('/')[0]}")
    if len(classes := {*folders}) > 1 and {name.lower() for name in classes} <= _SPLITS:
        raise ValueError(f"the folders of {path}, {', '.join(sorted(classes))}, are splits and no classes: load one")
    if not folders:
        return None
    # Sorted like their folders already.
    order = list(dict.fromkeys(folders))
    place = {name: k for k, name in enumerate(order)}
    return Labels(class_numbers([place[name] for name in folders], path).numbers, tuple(order))


def _noted(files: Files, note: str, pictures: list[str], path: Path) -> Labels | None:
    """The classes that a file beside the pictures says, in the order of the pictures.

    Raises:
        ValueError: if it is damaged, or does not list each picture once.
    """
    where = path / note
    with _readable(where):
        said = _NOTES[note](files[note]().decode("utf-8-sig"))
    if said is None:
        return None
    rows = [name.replace("\\", "/").removeprefix("./") for name, _ in said]
    listed = dict(zip(rows, (label for _, label in said), strict=True))
    if len(listed) < len(rows):
        twice = next(name for n, name in enumerate(rows) if name in rows[:n])
        raise ValueError(f"{where} lists {twice} twice: expected each picture once")
    if missing := next((name for name in listed if name not in files), None):
        raise ValueError(f"{where} lists {missing}, which is not there: add it, or take it out of the list")
    if unlisted := next((name for name in pictures if name not in listed), None):
        raise ValueError(f"{path / unlisted} is not listed in {where}: list it, or move it away")
    pictures[:] = [name for name in pictures if name in listed]
    if all(label is _UNSAID for label in listed.values()):
        return None
    return class_numbers([listed[name] for name in pictures], where, rows=pictures)


@contextmanager
def _readable(where: Path) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError, csv.Error) as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{where} does not list the pictures as {_FORMS[where.name]} ({said}): mend it, or move it away"
        ) from None


_UNSAID = object()
"""The label of a row of a list that has no labels."""


def _of_edm(text: str) -> list[tuple[str, Any]] | None:
    labels = json.loads(text)["labels"]
    return None if labels is None else [(str(name), label) for name, label in labels]


def _of_csv(text: str) -> list[tuple[str, Any]]:
    return _of_rows(csv.DictReader(StringIO(text, newline="")))


def _of_jsonl(text: str) -> list[tuple[str, Any]]:
    return _of_rows(json.loads(line) for line in text.split("\n") if line.strip())


def _of_rows(rows: Any) -> list[tuple[str, Any]]:
    listed = [dict(row) for row in rows]
    column = next((name for name in LABEL_NAMES if any(name in row for row in listed)), None)
    return [(str(row["file_name"]), _UNSAID if column is None else row.get(column)) for row in listed]


_NOTES: dict[str, Callable[[str], list[tuple[str, Any]] | None]] = {
    "dataset.json": _of_edm,
    "metadata.csv": _of_csv,
    "metadata.jsonl": _of_jsonl,
}
"""What may lie beside pictures, and how it is read: (file, label) for each, or None where no classes are said."""

_FORMS = {
    "dataset.json": 'EDM\'s dataset tool does, {"labels": [["00000/img00000000.png", 6], ...]}',
    "metadata.csv": "Hugging Face image folders do, in a column file_name",
    "metadata.jsonl": 'Hugging Face image folders do, {"file_name": "1.png", "label": 6} a line',
}
