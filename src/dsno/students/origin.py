"""What a student was made of, as its folder notes it: its teacher, and the seeds of its trajectories.

A teacher is noted as it was named, by where it lay on that machine and seen from the student's folder, and by the
checksum of its weights. So it is found where both were moved together, or the student alone, and another one that took
its place is not taken for it. A note may be anybody's: a teacher that is code is run where the user names it, never
because a student does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from dsno.checkpoint import CONFIG, read_json
from dsno.denoise import Denoiser, Prediction
from dsno.hub import is_hub_id
from dsno.nets.backbone import sample_shape
from dsno.outputs import BUILT_IN, local_path
from dsno.outside import Length, check
from dsno.students.files import load_student, notes_of
from dsno.students.samplers import Student
from dsno.teachers.load import load_teacher
from dsno.teachers.parts import network_folder
from dsno.trajectories.manifest import describe
from dsno.trajectories.sets import TrajectorySet

__all__ = ["Origin", "check_shape", "find_teacher", "open_student", "origin_of", "origin_to_note", "sha_of"]


@dataclass
class _Teacher:
    name: str | None = None
    path: str | None = None
    beside: str | None = None
    sha256: str | None = None


@dataclass
class _Origin:
    teacher: _Teacher | None = None
    seeds: Annotated[list[int], Length(2, 2)] | None = None


@dataclass
class _Sources:
    teacher: str | None = None


@dataclass
class _Notes:
    """What is read of the notes of a student, which may be anybody's."""

    origin: _Origin
    sources: _Sources


@dataclass(frozen=True)
class Origin:
    """What is known of what a student was made of.

    Attributes:
        folder: The student's.
        teacher: What its teacher was called, or None.
        places: Where it may be, as `load_teacher` takes it, the likeliest first.
        sha: The checksum of its weights, or None.
        seeds: The first seed of its trajectories and the one behind the last, or None.
    """

    folder: Path
    teacher: str | None = None
    places: tuple[str, ...] = ()
    sha: str | None = None
    seeds: tuple[int, int] | None = None

    def check_unseen(self, first: int, count: int) -> None:
        """Make sure that the student was not trained on the noises of `count` seeds from `first` on.

        Raises:
            ValueError: if it was, as far as is known.
        """
        if self.seeds is not None and first < self.seeds[1] and self.seeds[0] < first + count:
            raise ValueError(
                f"the seeds {first} to {first + count - 1} are not held out: {self.folder} was trained on the noises "
                f"of {self.seeds[0]} to {self.seeds[1] - 1}; take others"
            )


def origin_to_note(
    out: Path,
    teacher: Denoiser | None,
    ref: str | None,
    trajectories: TrajectorySet | None,
    earlier: str | None = None,
) -> dict[str, Any]:
    """The note of the origin of a student in `out`, whose teacher was named `ref` if by anything, JSON-able.

    One that went on from an `earlier` student, named by its folder, has seen what that one saw.
    """
    known: dict[str, Any] = {"name": ref, "sha256": None}
    if teacher is not None:
        known["sha256"] = sha_of(teacher)
    elif trajectories is not None:
        known["sha256"] = _innermost(trajectories.manifest["teacher"])
    if (path := local_path(ref)) is not None and path.exists():
        known |= {"path": str(path), "beside": os.path.relpath(path, out.resolve())}
    note: dict[str, Any] = {"teacher": known}
    seen = []
    if trajectories is not None:
        first = trajectories.manifest["first_seed"]
        seen.append((first, first + len(trajectories)))
    if earlier is not None and (Path(earlier) / CONFIG).is_file() and (seeds := origin_of(earlier).seeds) is not None:
        seen.append(seeds)
    if seen:
        note["seeds"] = [min(first for first, _ in seen), max(last for _, last in seen)]
    return note


def origin_of(folder: Path | str) -> Origin:
    """What the folder of a student notes of its origin; of an older one what it says, and that is little.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if its notes are of another form.
    """
    folder, notes = Path(folder), notes_of(folder)
    note, sources = notes.get("origin", {}), notes.get("sources", {})
    check({"origin": note, "sources": sources}, _Notes, f"the notes of {folder}: ")
    held, seeds = note.get("teacher") or {}, note.get("seeds")
    name, beside = held.get("name") or sources.get("teacher"), held.get("beside")
    near = None if beside is None else os.path.normpath(folder / beside)
    places = [near, held.get("path"), name, str(folder.parent / "teacher")]
    found = tuple(dict.fromkeys(place for place in places if place is not None))
    return Origin(folder, name, found, held.get("sha256"), None if seeds is None else (seeds[0], seeds[1]))


def find_teacher(
    folder: Path | str, variant: str | None = None, allowed: Callable[[str], bool] = lambda place: True
) -> str:
    """The teacher that a student was made from, as `load_teacher` takes it.

    Arguments:
        folder: The student's.
        variant: As `load_teacher` takes it.
        allowed: Which of the places are looked at that its folder notes.

    Raises:
        FileNotFoundError: if it is not where it was; asks for it.
    """
    origin = origin_of(folder)
    other = ""
    for place in origin.places:
        if not (allowed(place) and _is_data(place)):
            continue
        try:
            teacher = load_teacher(place, variant=variant)
        except (FileNotFoundError, ConnectionError):
            continue
        except ValueError:
            # What is there may be anything; what the student names has to be a teacher.
            if place == origin.teacher:
                raise
            continue
        if origin.sha in (None, sha_of(teacher)):
            return place
        other = other or place
    if other:
        raise FileNotFoundError(
            f"{other} has other weights than the teacher that {folder} was made from: give that one, --teacher"
        )
    named = "its folder does not say which" if origin.teacher is None else f"{origin.teacher} is not there any more"
    if origin.teacher is not None and re.search(r"[^/\\]:[A-Za-z_]", origin.teacher):
        named = f"{origin.teacher} is code, which is run if you name it"
    raise FileNotFoundError(f"the teacher of {folder} is needed, and {named}: give it, --teacher")


def _is_data(place: str) -> bool:
    """Whether what a note names is a folder of a model, a file, or a name, and not code."""
    path = Path(place)
    if path.is_dir():
        return any((path / name).is_file() for name in (CONFIG, "model_index.json"))
    return path.is_file() or place in BUILT_IN or is_hub_id(place)


def open_student(folder: Path | str, teacher: str | None = None, variant: str | None = None) -> Student:
    """A student, by `load_student`; an adapter with the teacher that is named, or else that its folder notes.

    Raises:
        FileNotFoundError: if there is no such folder, or of an adapter no teacher.
        ValueError: as `load_student` does; or if a teacher is named that makes other shapes.
    """
    config = Path(folder) / CONFIG
    known = read_json(config) if config.is_file() else None
    if not isinstance(known, dict) or known.get("type") != "adapter":
        student = load_student(folder)
        if teacher is not None and (Path(teacher) / "model_index.json").is_file():
            # Whoever decodes latents does not wait for a network that is not asked.
            channels = read_json(network_folder(Path(teacher)) / CONFIG).get("in_channels", student.shape[0])
            _check_alike(student, teacher, (channels, *student.shape[1:]))
        elif teacher is not None:
            check_shape(student, teacher, load_teacher(teacher, variant=variant))
        return student
    return load_student(folder, teacher=load_teacher(teacher or find_teacher(folder, variant), variant=variant))


def check_shape(student: Student, ref: str, teacher: Prediction) -> None:
    """Make sure that a student makes what a teacher does.

    Raises:
        ValueError: if it makes other shapes.
    """
    _check_alike(student, ref, sample_shape(teacher))


def _check_alike(student: Student, ref: str, made: tuple[int, ...]) -> None:
    if made != student.shape:
        raise ValueError(f"the teacher {ref} makes {made}, and the student {student.shape}: give its own teacher")


def sha_of(teacher: Denoiser) -> str | None:
    """The checksum of a teacher's weights, those under guidance of what is guided; None if it has none."""
    return _innermost(describe(teacher, {}))


def _innermost(described: dict[str, Any]) -> str | None:
    while "denoiser" in described:
        described = described["denoiser"]
    sha: str | None = described.get("sha256")
    return sha
