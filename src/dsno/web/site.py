"""A sampler as a folder of static files: a page, a student, its teacher, and what runs them in a browser.

| file | what |
|---|---|
| `index.html`, `*.css`, `*.js` | the page, the same for every student |
| `model.json` | what it shows, and its samplers as numbers (`dsno.web.plans`) |
| `student.onnx`, `sample.onnx`, `wall.onnx`, `teacher.onnx`, `weights.bin` | the networks (`dsno.web.graphs`) |
| `ort*.mjs`, `ort*.wasm` | onnxruntime-web (`dsno.web.runtime`) |

`model.json` is written last and names all of them. Any host of files serves the folder, and nothing on the page asks
for anything from elsewhere.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from dsno.borrow import own_copy, unwrapped
from dsno.checkpoint import publish, read_json, temporary_name, version_of
from dsno.cost import flops
from dsno.denoise import Prediction, Threshold
from dsno.nets.backbone import own_null, sample_shape
from dsno.outputs import Kind, claimed
from dsno.students.heads import ParallelDecoder
from dsno.students.operator import TrajectoryStudent
from dsno.students.samplers import Student, passes_known
from dsno.web.graphs import Network, student_network, teacher_network, write_graphs
from dsno.web.plans import (
    RESTORING,
    STEPS,
    passes_planned,
    restoring_planned,
    sample_planned,
    steps_planned,
)
from dsno.web.runtime import LICENCE, find_runtime

__all__ = ["MANIFEST", "SITE", "unfit", "write_site"]

MANIFEST, FORMAT = "model.json", "dsno site 1"

WALL = 16
"""Rows of the graph that fills the wall."""

STRONGEST = 8.0
"""The largest guidance weight that a page offers, of a student that was trained for any."""

LARGEST = 10**8
"""Bytes of a teacher's weights that a page still loads."""

SOLVERS = {"ddim": "DDIM", "dpm2": "DPM-Solver++"}
"""The teacher's solvers, and what they are called on the page."""

M = TypeVar("M", bound=nn.Module)


def _written(folder: Path) -> list[Path]:
    """The files of a site, the one that names the others first."""
    try:
        held = read_json(folder / MANIFEST)
    except (ValueError, FileNotFoundError):
        return []
    if not isinstance(held, dict) or held.get("format") != FORMAT or not isinstance(held.get("files"), list):
        return []
    names = [name for name in held["files"] if isinstance(name, str) and Path(name).name == name]
    return [folder / MANIFEST, *(path for name in names if (path := folder / name).is_file())]


SITE = Kind("a site", _written, resumes=False)
"""What `write_site` writes into a folder."""


def write_site(
    folder: Path | str,
    student: Student,
    teacher: Prediction | None = None,
    title: str = "One pass",
    null: int | None = None,
    weights: tuple[float, float] = (0.0, math.inf),
    runtime: Path | str | None = None,
    inputs: Sequence[object] = (),
    overwrite: bool = False,
) -> Path:
    """Write a page that samples in any browser.

    Arguments:
        folder: Where to.
        student: Any student of pictures, grey or in colours.
        teacher: Its teacher, to stand beside it, and to restore pictures.
        title: What the page calls the samples.
        null: The label that stands for no class, of the teacher of a student with guidance; its own by default.
        weights: The guidance weights that the student was trained for.
        runtime: The folder of onnxruntime-web's files (`find_runtime`); they are fetched once by default.
        inputs: What was read, and must not be written over.
        overwrite: Replace the site in `folder`.

    Raises:
        ConnectionError, FileNotFoundError, ValueError: of the runtime, as `find_runtime` does.
        FileExistsError: if `folder` holds a site and `overwrite` is not set, or anything else.
        ImportError: without onnx, onnxscript or onnxruntime.
        ValueError: for samples that are no pictures, a student or a teacher that no page can show; nothing is written.
    """
    shape = student.shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"a page shows pictures (1 or 3, H, W), and these samples are {shape}")
    null = own_null(teacher) if null is None and teacher is not None else null
    if teacher is not None and (why := unfit(student, teacher, null)):
        raise ValueError(why)
    student, teacher = _plain(student), None if teacher is None else _plain(teacher)
    files = find_runtime(runtime)
    with claimed(folder, SITE, overwrite=overwrite, inputs=inputs) as folder, _staged(folder) as staging:
        networks = _networks(student, teacher)
        errors = write_graphs(staging, networks)
        for name, path in files.items():
            shutil.copyfile(path, staging / name)
        for source in resources.files("dsno.web").joinpath("page").iterdir():
            (staging / source.name).write_bytes(source.read_bytes())
        names = sorted(path.name for path in staging.iterdir())
        described = {
            "format": FORMAT,
            "dsno": version_of("dsno"),
            "runtime": LICENCE,
            "title": title,
            "shape": list(shape),
            "classes": student.classes,
            "guidance": [weights[0], min(weights[1], max(STRONGEST, weights[0]))] if student.guided else None,
            "student": _student(student, networks, errors),
            "teacher": None
            if teacher is None
            else _teacher(teacher, networks, errors, null if student.guided else None),
            "graphs": [*networks],
            "files": names,
        }
        (staging / MANIFEST).write_text(json.dumps(_short(described), separators=(",", ":")), encoding="utf-8")
        for name in (*names, MANIFEST):
            publish(staging / name, folder / name)
    return folder


def unfit(student: Student, teacher: Prediction, null: int | None = None) -> str:
    """Why a teacher cannot stand beside a student on a page; empty if it can."""
    size = sum(p.numel() * 4 for p in teacher.parameters())
    if sample_shape(teacher) != student.shape:
        return f"the teacher makes {sample_shape(teacher)}, and the student {student.shape}"
    if teacher.classes != student.classes:
        return f"the teacher is told one of {teacher.classes or 'no'} classes, the student of {student.classes or 'no'}"
    if isinstance(teacher.clip, Threshold):
        return "the teacher's answers are thresholded by their quantiles, which a page does not work out"
    if student.guided and null is None:
        return "which label stands for no class under the teacher's guidance is not known: pass null"
    if size > LARGEST:
        return f"the teacher's weights are {size / 1e6:.0f} MB, and a page loads {LARGEST / 1e6:.0f} MB at most"
    return ""


def _plain(module: M) -> M:
    """A copy in float32 on the host, without wrappers."""
    return own_copy(module).float().cpu().eval()


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A folder inside, which is gone behind it."""
    staging = folder / temporary_name(MANIFEST)
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _networks(student: Student, teacher: Prediction | None) -> dict[str, Network]:
    """The student's, for one row and for a wall's, and where it makes one pass the sample alone; the teacher's."""
    alone = passes_known(student) == (1,)
    made = {"student": student_network(student, 1), "wall": student_network(student, WALL, last=alone)}
    if alone:
        made["sample"] = student_network(student, 1, last=True)
    return made if teacher is None else {**made, "teacher": teacher_network(teacher)}


def _student(student: Student, networks: Mapping[str, Network], errors: Mapping[str, float]) -> dict[str, Any]:
    known = passes_known(student)
    start = 1.0 if not isinstance(student, ParallelDecoder) else student.times[0]
    plans = {n: [asdict(call) for call in passes_planned(student, n)] for n in known}
    sample = [asdict(sample_planned(student))] if "sample" in networks else None
    return {
        "kind": type(student).__name__,
        "target": student.target if isinstance(student, TrajectoryStudent) else None,
        "sigma": student.schedule.at(start)[1],
        "passes": plans,
        "sample": sample,
        "wall": plans if sample is None else {1: sample},
        "rows": WALL,
        **_size(student, networks["student" if sample is None else "sample"]),
        "error": max(error for name, error in errors.items() if name != "teacher"),
    }


def _teacher(
    teacher: Prediction, networks: Mapping[str, Network], errors: Mapping[str, float], null: int | None
) -> dict[str, Any]:
    return {
        "sigma": teacher.schedule.at(1.0)[1],
        "clip": teacher.clip,
        "null": null,
        "solvers": [
            {
                "name": name,
                "title": title,
                "steps": {n: [asdict(s) for s in steps_planned(teacher, name, n)] for n in STEPS},
            }
            for name, title in SOLVERS.items()
        ],
        "restoring": {n: [asdict(step) for step in restoring_planned(teacher, n)] for n in RESTORING},
        **_size(teacher, networks["teacher"]),
        "error": errors["teacher"],
    }


def _size(model: nn.Module, network: Network) -> dict[str, int]:
    """Weights, and floating point operations of one call for one picture."""
    model = unwrapped(model)
    return {"weights": sum(p.numel() for p in model.parameters()), "flops": flops(network, *network.example.values())}


def _short(value: Any) -> Any:
    """The same with numbers of twelve digits, which are more than the float32 of the states holds."""
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if isinstance(value, Mapping):
        return {key: _short(held) for key, held in value.items()}
    return [_short(held) for held in value] if isinstance(value, list | tuple) else value
