r"""From pictures to restored ones, of any size that a teacher's tiles cover: the road of `dsno restore`.

Each picture is a measurement $y = A x + \tau n$ of one that is not known; or, to try a problem out, a clean one, which
is measured first and is its own reference then. Sample $j$ of every picture starts from the noise of seed + $j$, so
that a picture has the same start alone and among others.

Pictures of one size are rows of one batch, and what is larger than the teacher's samples goes through `Tiled`.
Everything is tried on a stand-in of the teacher before its network is asked, which also says how many calls there will
be. Files are written aside until all are there: a run that fails or is stopped leaves nothing.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsno.checkpoint import naming, read_json, temporary_name, version_of, write_json
from dsno.condition import Cond, map_cond
from dsno.cost import Cost, Meter
from dsno.data.originals import Original
from dsno.denoise import Denoiser, Guided, Prediction, evaluating, modules_of
from dsno.grids import uniform
from dsno.inverse.decoded import Decoded
from dsno.inverse.operators import Mask
from dsno.inverse.problem import Problem, check_problem, noise_of
from dsno.inverse.restore import Restored, Restorer
from dsno.inverse.tiles import Tiled
from dsno.outputs import Kind, claimed
from dsno.report.restorations import Restoration, restoration_report
from dsno.schedule import Schedule
from dsno.seeds import noise, seed_range
from dsno.teachers.closed import Gaussian
from dsno.teachers.latents import Latents
from dsno.train import Report, quiet

__all__ = ["RESTORATIONS", "RESTORED", "Task", "Worker", "restore"]

RESTORATIONS, REPORT, ARRAY = "restored.json", "report.html", "restored.npy"

MEASURED = 2**32 - 1
"""The stream of the noise that clean pictures are measured with: the last, far from those of a chain."""

ROWS = 64
"""Rows of the network at once."""

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


RESTORED = Kind("a restoration", _written)
"""What `restore` writes into a folder."""


@dataclass(frozen=True)
class Worker:
    """Who restores: a teacher with a method.

    Attributes:
        denoiser: The teacher, guided or not.
        schedule: The schedule it was trained on.
        shape: The shape of its samples, (C, H, W).
        method: Makes the restorer of a grid: one of `dsno.inverse.named.RESTORERS`, with its options.
        steps: Steps of the uniform grid that it goes through.
        latents: Decodes samples into pictures, if they are latents.
        device: Where it is.
    """

    denoiser: Denoiser
    schedule: Schedule
    shape: tuple[int, ...]
    method: Callable[[Tensor], Restorer]
    steps: int
    latents: Latents | None = None
    device: torch.device = torch.device("cpu")

    @functools.cached_property
    def picture(self) -> tuple[int, ...]:
        """The shape of the pictures that it makes."""
        if self.latents is None:
            return self.shape
        with torch.no_grad():
            return tuple(self.latents.decode(torch.zeros(1, *self.shape, device=self.device)).shape[1:])

    def canvas(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a sample that is, or decodes to, a picture of `shape`, called `name` in messages.

        Raises:
            ValueError: for another number of channels, or less than the teacher makes.
        """
        (C, *sides), (channels, *least) = shape, self.picture
        if C != channels:
            found, makes = ("in grey", "in colour") if C == 1 else ("in colour", "in grey")
            how = "convert it to RGB, or colour it, problem='gray'" if C == 1 else "convert it to grey"
            raise ValueError(f"{name} is {found}, and the teacher makes pictures {makes}: {how}")
        if any(n < w for n, w in zip(sides, least, strict=True)):
            raise ValueError(
                f"{name} is restored to {_size(sides)} pixels, and the teacher makes {_size(least)}: enlarge or pad it "
                "first, or take a teacher of smaller pictures; only larger ones are cut into tiles"
            )
        scales = [w // n for w, n in zip(least, self.shape[1:], strict=True)]
        if any(n % k for n, k in zip(sides, scales, strict=True)):
            raise ValueError(
                f"{name} is restored to {_size(sides)} pixels, and each of the teacher's latents stands for "
                f"{_size(scales)}: crop or pad it to whole ones"
            )
        return (self.shape[0], *(n // k for n, k in zip(sides, scales, strict=True)))

    def on(self, canvas: tuple[int, ...]) -> Denoiser:
        """The denoiser of samples of a shape, in tiles where it is not the teacher's own."""
        return self.denoiser if canvas == self.shape else Tiled(self.denoiser, self.shape, canvas, limit=ROWS)

    def stated(self, problem: Problem) -> Any:
        """A problem of pictures for its samples: through the decoder, where they are latents."""
        return problem if self.latents is None else Decoded(problem, self.latents)


@dataclass(frozen=True)
class Task:
    """What is restored.

    Attributes:
        pictures: What was measured, or clean ones with `measure`.
        problem: Makes the problem of pictures of a shape (C, H, W).
        whole: The shape of a picture from that of what was measured of it.
        measure: If the pictures are clean, makes the problem that they are measured by first; they are their own
            references then.
        references: What should come out, by name, where it is known.
        samples: Restorations of each picture.
        seed: The first seed.
        condition: What the teacher is told of pictures, a function of their numbers (B,).
        array: Whether the pictures came in an array, and are written as one, too.

    Raises:
        ValueError: for less than one sample.
    """

    pictures: Sequence[Original]
    problem: Callable[[tuple[int, ...]], Problem]
    whole: Callable[[tuple[int, ...]], tuple[int, ...]]
    measure: Callable[[tuple[int, ...]], Problem] | None = None
    references: Mapping[str, Tensor] | None = None
    samples: int = 1
    seed: int = 0
    condition: Callable[[Tensor], Cond] | None = None
    array: bool = False

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")

    @property
    def seeds(self) -> Tensor:
        """Of the samples of each picture, (S,)."""
        return seed_range(self.seed, self.samples)

    def shape(self, picture: Original) -> tuple[int, ...]:
        """The shape of what a picture is restored to."""
        given = tuple(picture.x.shape)
        return self.whole(given) if self.measure is None else given

    def reference(self, picture: Original) -> Tensor | None:
        """What a picture should be restored to, where it is known.

        Raises:
            ValueError: if there are references, and none of this name, or of another shape.
        """
        if self.measure is not None:
            return picture.x
        if self.references is None:
            return None
        if (found := self.references.get(picture.name)) is None:
            raise ValueError(f"there is no reference of {picture.name}: expected a picture of that name, of any suffix")
        if found.shape != self.shape(picture):
            raise ValueError(
                f"the reference of {picture.name} is {_shape(found.shape)}, and it is restored to "
                f"{_shape(self.shape(picture))}: give the picture that should come out"
            )
        return found

    def measured(self, problem: Problem, numbers: Sequence[int]) -> Tensor:
        """What was measured of pictures of one size, (B, *measured); of clean ones it is measured now.

        What a mask hides is 0, whatever the picture has there.
        """
        y = torch.stack([self.pictures[n].x for n in numbers])
        if self.measure is not None:
            problem = self.measure(tuple(y.shape[1:]))
            y = problem.A(y)
            if (tau := noise_of(problem)) > 0:
                y = y + tau * noise([self.seed + n for n in numbers], y.shape[1:], MEASURED)
        return problem.A(y) if isinstance(problem, Mask) else y


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
        ValueError: before the network is asked, for a problem that cannot be stated for the pictures, whose adjoint
            fails the dot test, or that the method cannot solve; for pictures smaller than the teacher's or of other
            channels, two that would be written under one name, or a reference that is missing or of another shape.
    """
    out, batches = Path(out), _batches(worker, task)
    for picture in task.pictures:
        task.reference(picture)
    _check_names(task.pictures, out)
    calls = _rehearsed(worker, batches, task)
    finished, cost = list[Restoration](), Cost()
    with (
        claimed(out, RESTORED, overwrite=overwrite, inputs=inputs) as folder,
        _staged(folder) as staging,
        evaluating(*modules_of(worker.denoiser).values()),
        _counting(worker.denoiser, calls, report),
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
            "degraded": task.measure is not None,
            "cost": asdict(cost),
            "median": _medians(rows),
            "pictures": rows,
        }
        restoration_report(staging / REPORT, "Restored pictures", _said(held), finished[:SHOWN], len(finished) - SHOWN)
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
                f"{first.name} is {_shape(given)}, and of {_shape(shape)} this problem measures {_shape(measured)}: give "
                "what was measured, or clean pictures and degrade=True"
            )
        denoiser = worker.on(canvas)
        rows = task.samples * (denoiser.tiles if isinstance(denoiser, Tiled) else 1)
        together = max(1, ROWS // rows)
        for part in (tuple(numbers[n : n + together]) for n in range(0, len(numbers), together)):
            found.append(Batch(part, task.measured(problem, part), problem, canvas))
    return found


def _rehearsed(worker: Worker, batches: Sequence[Batch], task: Task) -> int:
    """How many calls of the network there will be, from one step and two of each batch's size with a stand-in.

    Raises:
        ValueError: for what the method cannot do.
    """
    calls, known = 0, dict[tuple[tuple[int, ...], int], int]()
    for batch in batches:
        key = batch.canvas, len(batch.numbers)
        if key not in known:
            stand_in = Gaussian(worker.schedule, torch.zeros(batch.canvas, device=worker.device), 0.5)
            counted = []
            for steps in (1, 2):
                meter = Meter(stand_in)
                _called(worker, batch, task, meter, steps)
                counted.append(meter.rounds)
            denoiser = worker.on(batch.canvas)
            rows = len(batch.numbers) * task.samples * (denoiser.tiles if isinstance(denoiser, Tiled) else 1)
            chunks = -(-rows // ROWS) if isinstance(denoiser, Tiled) else 1
            known[key] = chunks * (counted[0] + (worker.steps - 1) * (counted[1] - counted[0]))
        calls += known[key]
    return calls


def _restored(worker: Worker, batch: Batch, task: Task) -> Restored:
    return _called(worker, batch, task, worker.on(batch.canvas), worker.steps)


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
    S, seeds = task.samples, tuple(task.seeds.tolist())
    x, residual = x.float().clamp(-1, 1).cpu(), made.residual.cpu()
    kernel = None if made.kernel is None else made.kernel.float().cpu()
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


def _check_names(pictures: Sequence[Original], out: Path) -> None:
    """Refuse pictures that would be written over one another, or over what is not of a restoration.

    Raises:
        FileExistsError, ValueError: if one would be.
    """
    names = {picture.name for picture in pictures}
    for name in names:
        if (other := PART.sub("", name)) != name and other in names:
            raise ValueError(f"{name} is what a part of {other} would be called: rename one of these pictures")
    own = RESTORED.own(out)
    for path in sorted(out.glob("*")):
        if path not in own and (path.name in (REPORT, ARRAY) or PART.sub("", path.stem) in names):
            raise FileExistsError(f"{path} is not of a restoration and would be replaced: choose another folder")


@contextmanager
def _counting(denoiser: Denoiser, calls: int, report: Report) -> Iterator[None]:
    """Tell of each call of the teacher's network inside, of so many."""
    while isinstance(denoiser, Guided):
        denoiser = denoiser.denoiser
    net = denoiser.net if isinstance(denoiser, Prediction) else None
    done = 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        report("restore", min(done, calls), calls, "")

    handle = None if net is None else net.register_forward_hook(count)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _medians(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of all samples of all pictures, by measure."""
    held = {}
    for name in ("residual", "spread", "psnr", "ssim", "psnr_of_input", "ssim_of_input", "psnr_of_mean", "ssim_of_mean"):
        found = [v for row in rows if name in row for v in np.atleast_1d(row[name]).tolist() if v is not None]
        if found:
            held[name] = float(np.median(found))
    return held


def _said(held: Mapping[str, Any]) -> str:
    """What was done, in sentences for the page."""
    cost, rows = held["cost"], held["pictures"]
    samples = sum(len(row["seeds"]) for row in rows)
    return (
        f"{len(rows)} pictures, {samples} samples, {held['steps']} steps: {cost['rounds']} calls, {cost['rows']} network "
        f"evaluations, {cost['vjps']} vjps and {cost['jvps']} jvps in {cost['seconds']:.1f} s."
    )


def _size(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))


def _shape(shape: Sequence[int]) -> str:
    return f"{_size(shape[1:])} pixels {'in grey' if shape[0] == 1 else 'in colour' if shape[0] == 3 else ''}".strip()
