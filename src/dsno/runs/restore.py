r"""From pictures to restored ones, of any size that a teacher's tiles cover: the road of `dsno restore`.

Each picture is a measurement $y = A x + \tau n$ of one that is not known; or, to try a problem out, a clean one, which
is measured first and is its own reference then. Sample $j$ of every picture starts from the noise of seed + $j$, so
that a picture has the same start alone and among others.

Pictures of one size are rows of one batch, and what is larger than the teacher's samples goes through `Tiled`.
Everything is tried on a stand-in of the teacher before its network is asked, which also says how many calls there will
be. Files are written aside until all are there: a run that fails or is stopped leaves nothing.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsno.checkpoint import naming, read_json, temporary_name, version_of, write_json
from dsno.condition import map_cond
from dsno.cost import Cost, Meter, counting
from dsno.data.originals import Original
from dsno.denoise import Denoiser, evaluating, modules_of
from dsno.grids import uniform
from dsno.inverse.blur import Blur
from dsno.inverse.colours import FIXES, ColourFix, colours_of
from dsno.inverse.problem import Problem, check_problem
from dsno.inverse.restore import Restored
from dsno.outputs import Kind, claimed
from dsno.report.restorations import Restoration, restoration_report
from dsno.runs.task import ROWS, Task, Worker, shown
from dsno.seeds import noise
from dsno.teachers.closed import Gaussian
from dsno.train import Report, quiet

__all__ = ["RESTORATIONS", "RESTORED", "restore"]

RESTORATIONS, REPORT, ARRAY = "restored.json", "report.html", "restored.npy"

SHOWN = 48
"""Pictures on the page."""

COUNTED = ("rounds", "rows", "vjps", "jvps", "gradients", "seconds")
"""Of a cost, what adds up."""

PART = re.compile(r"-(?:mean|spread|input|kernel|seed-\d+(?:-kernel)?)$")
"""What `Restoration.files` adds to the name of a picture."""


def _written(folder: Path) -> list[Path]:
    """What a restoration wrote, by its own list; one that leads out of the folder is nobody's."""
    listed = folder / RESTORATIONS
    try:
        held = read_json(listed) if listed.is_file() else None
    except ValueError:
        return []
    names = held.get("files") if isinstance(held, Mapping) else None
    if not isinstance(names, list) or not all(isinstance(name, str) and Path(name).name == name for name in names):
        return []
    return [listed, *(path for name in names if (path := folder / name).is_file())]


RESTORED = Kind("a restoration", _written, resumes=False)
"""What `restore` writes into a folder."""


@dataclass(frozen=True)
class Batch:
    """Pictures of one size: their numbers, what was measured of them (B, *measured), their problem and its canvas."""

    numbers: tuple[int, ...]
    y: Tensor
    problem: Problem
    canvas: tuple[int, ...]


def restore(
    worker: Worker,
    task: Task,
    out: Path | str,
    notes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    inputs: Sequence[object] = (),
    report: Report = quiet,
) -> dict[str, Any]:
    """Restore pictures and write them into a folder: the files of each (`Restoration.files`), their measures in
    `restored.json`, and `report.html`.

    Arguments:
        worker: Who restores.
        task: What.
        out: The folder, new or to be overwritten.
        notes: What else stands in `restored.json`: `teacher`, `problem` and `method`, by name.
        overwrite: Replace the restoration in it.
        inputs: What is read, and so not written to.
        report: Told of the progress, in calls of the network.

    Returns:
        What `restored.json` holds.

    Raises:
        FileExistsError, PermissionError: as `claimed` does; if a file that is somebody else's would be replaced.
        FloatingPointError: for restorations that are not finite.
        ValueError: before the network is asked, for a problem that cannot be stated for the pictures, whose adjoint
            fails the dot test, or that the method cannot solve; for pictures smaller than the teacher's or of other
            channels, two that would be written under one name, or a reference that is missing or of another shape; for
            colours that are to be fixed to what was measured, and are not in it.
    """
    out, batches = Path(out), _batches(worker, task)
    for picture in task.pictures:
        task.reference(picture)
    _check_names(task.pictures, out, overwrite)
    calls = _rehearsed(worker, batches, task)
    finished, cost = list[Restoration](), Cost()
    with (
        claimed(out, RESTORED, overwrite=overwrite, inputs=inputs) as folder,
        _staged(folder) as staging,
        evaluating(*modules_of(worker.denoiser).values()),
        counting(worker.denoiser, lambda done: report("restore", min(done, calls), calls, "")),
    ):
        for batch in batches:
            made = _restored(worker, batch, task)
            cost = Cost(*(getattr(cost, name) + getattr(made.cost, name) for name in COUNTED))
            for one in _finished(worker, batch, made, task):
                for name, content in one.files().items():
                    with naming(staging / name):
                        (staging / name).write_bytes(content)
                finished.append(one)
        order = {picture.name: n for n, picture in enumerate(task.pictures)}
        finished.sort(key=lambda one: order[one.name])
        if task.array:
            _write_array(staging / ARRAY, finished)
        rows = [one.measures() | {"files": sorted(one.files())} for one in finished]
        held = {
            "version": version_of("dsno"),
            **(notes or {}),
            "schedule": worker.schedule.config["name"],
            "steps": worker.steps,
            "colour_fix": worker.colour_fix,
            "tiled": any(worker.on(batch.canvas)[1] > 1 for batch in batches),
            "degraded": task.measure is not None,
            "cost": asdict(cost),
            "median": _medians(rows),
            "pictures": rows,
        }
        more = max(0, len(finished) - SHOWN)
        restoration_report(staging / REPORT, "Restored pictures", _said(held), finished[:SHOWN], more)
        _publish(staging, folder, held)
    return held


def _batches(worker: Worker, task: Task) -> list[Batch]:
    """The pictures by size, as measured; in each batch as many as are `ROWS` rows of the network, or one."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for n, picture in enumerate(task.pictures):
        by_shape.setdefault(tuple(picture.x.shape), []).append(n)
    found = []
    for given, numbers in by_shape.items():
        first = task.pictures[numbers[0]]
        shape = task.shape(first)
        canvas, problem = worker.canvas(first.name, shape), task.problem(shape)
        measured = check_problem(problem, shape)
        if task.measure is None and measured != given:
            raise ValueError(
                f"{first.name} is {shown(given)}, and of {shown(shape)} this problem measures {shown(measured)}: "
                "give what was measured, or clean pictures and degrade=True"
            )
        _, tiles = worker.on(canvas)
        together = max(1, ROWS // (tiles * task.samples))
        for part in (tuple(numbers[n : n + together]) for n in range(0, len(numbers), together)):
            found.append(Batch(part, task.measured(problem, part), problem, canvas))
        if worker.colour_fix is not None:
            _coloured(worker.colour_fix, found[-1], torch.zeros(len(found[-1].numbers), *shape))
    return found


def _coloured(fix: ColourFix, batch: Batch, x: Tensor) -> Tensor:
    """The pictures of a batch in the colours of what was measured, each of them as often as there are samples.

    Raises:
        ValueError: if nobody knows these, or the pictures are too small for wavelets.
    """
    y0 = colours_of(batch.problem, batch.y)
    return FIXES[fix](x, y0.repeat_interleave(len(x) // len(y0), 0))


def _residual(problem: Problem, y: Tensor, x: Tensor) -> Tensor:
    """What `Restored.residual` is, of pictures x (S * B, C, H, W) of what was measured (B, *measured)."""
    return (problem.A(x) - y.repeat_interleave(len(x) // len(y), 0)).flatten(1).square().mean(1).sqrt()


def _rehearsed(worker: Worker, batches: Sequence[Batch], task: Task) -> int:
    """How many calls of the network there will be, from one step and two of each batch's size with a stand-in.

    Raises:
        ValueError: for what the method cannot do.
    """
    calls, known = 0, dict[tuple[tuple[int, ...], int], int]()
    for batch in batches:
        key = batch.canvas, len(batch.numbers)
        if key not in known:
            tile = Gaussian(worker.schedule, torch.zeros(worker.shape, device=worker.device), 0.5)
            stand_in, tiles = replace(worker, denoiser=tile).on(batch.canvas)
            counted = []
            for steps in (1, 2):
                meter = Meter(stand_in)
                _called(worker, batch, task, meter, steps)
                counted.append(meter.rounds)
            chunks = -(-tiles * len(batch.numbers) * task.samples // ROWS) if tiles > 1 else 1
            known[key] = chunks * (counted[0] + (worker.steps - 1) * (counted[1] - counted[0]))
        calls += known[key]
    return calls


def _restored(worker: Worker, batch: Batch, task: Task) -> Restored:
    return _called(worker, batch, task, worker.on(batch.canvas)[0], worker.steps)


def _called(worker: Worker, batch: Batch, task: Task, denoiser: Denoiser, steps: int) -> Restored:
    """The samples of the pictures of a batch, those of a picture side by side."""
    S, B = task.samples, len(batch.numbers)
    seeds = task.seeds.repeat(B)
    y = batch.y.repeat_interleave(S, 0).to(worker.device)
    z = noise(seeds, batch.canvas, device=worker.device)
    cond = None if task.condition is None else task.condition(torch.tensor(batch.numbers))
    cond = map_cond(lambda c: c.repeat_interleave(S, 0).to(worker.device), cond)
    restorer = worker.method(uniform(steps))
    return restorer(denoiser, worker.schedule, worker.stated(batch.problem), y, z, cond, seeds)


def _finished(worker: Worker, batch: Batch, made: Restored, task: Task) -> Iterator[Restoration]:
    with torch.no_grad():
        x = made.x if worker.latents is None else worker.latents.decode(made.x)
    if not bool(x.isfinite().all()):
        names = ", ".join(task.pictures[n].name for n in batch.numbers)
        raise FloatingPointError(f"the restorations of {names} are not finite: take more steps, or another method")
    S, seeds = task.samples, tuple(task.seeds.tolist())
    x, residual = x.float().cpu(), made.residual.cpu()
    kernel = None if made.kernel is None else made.kernel.float().cpu()
    if worker.colour_fix is not None:
        x = _coloured(worker.colour_fix, batch, x)
        residual = _residual(batch.problem if kernel is None else Blur(kernel), batch.y, x)
    x = x.clamp(-1, 1)
    for k, n in enumerate(batch.numbers):
        picture, rows = task.pictures[n], slice(k * S, (k + 1) * S)
        kernels = None if kernel is None else kernel[rows].reshape(S, *kernel.shape[-2:])
        yield Restoration(
            picture.name,
            batch.y[k],
            x[rows],
            residual[rows],
            seeds,
            task.reference(picture),
            kernels,
            measured=task.measure is not None,
        )


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A folder inside, which is gone behind it: what `sweep` removes where the process was killed."""
    staging = folder / temporary_name(RESTORATIONS)
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_array(path: Path, finished: Sequence[Restoration]) -> None:
    """(N, C, H, W) float32, or (N, S, C, H, W) of S samples."""
    x = torch.stack([one.x for one in finished])
    with naming(path), path.open("wb") as file:
        np.save(file, (x[:, 0] if x.shape[1] == 1 else x).numpy())


def _publish(staging: Path, folder: Path, held: Mapping[str, Any]) -> None:
    """Give all files their names, the one that says what they are last."""
    files = sorted(path.name for path in staging.iterdir())
    for name in files:
        os.replace(staging / name, folder / name)
    write_json(folder / RESTORATIONS, {**held, "files": files})


def _check_names(pictures: Sequence[Original], out: Path, overwrite: bool) -> None:
    """Refuse pictures that would be written over one another, or over what is not of a restoration.

    Raises:
        FileExistsError, ValueError: if one would be.
    """
    names = {picture.name for picture in pictures}
    for name in names:
        if (other := PART.sub("", name)) != name and other in names:
            raise ValueError(f"{name} is what a part of {other} would be called: rename one of these pictures")
    own = RESTORED.own(out)
    # Without it a folder that holds anything is refused anyway.
    for path in sorted(out.glob("*")) if overwrite else ():
        if path not in own and (path.name in (REPORT, ARRAY) or PART.sub("", path.stem) in names):
            raise FileExistsError(f"{path} is not of a restoration and would be replaced: choose another folder")


def _medians(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of all samples of all pictures, by measure."""
    held = {}
    for name in (
        "residual",
        "spread",
        "psnr",
        "ssim",
        "psnr_of_input",
        "ssim_of_input",
        "psnr_of_mean",
        "ssim_of_mean",
    ):
        found = [v for row in rows if name in row for v in np.atleast_1d(row[name]).tolist() if v is not None]
        if found:
            held[name] = float(np.median(found))
    return held


def _said(held: Mapping[str, Any]) -> str:
    """What was done, in sentences for the page."""
    cost, rows = held["cost"], held["pictures"]
    samples = sum(len(row["seeds"]) for row in rows)
    return (
        f"Pictures: {len(rows)}. Samples: {samples}, in {held['steps']} steps: {cost['rounds']} calls, {cost['rows']} "
        f"network evaluations, {cost['vjps']} vjps and {cost['jvps']} jvps in {cost['seconds']:.1f} s."
    )
