"""A student beside its teacher: measured, drawn, and written as a page.

One number of a student says little: beside it stand its teacher's solvers at several numbers of steps, from the same
held-out noises and on one scale. The path error is against the fine solution of the same ODE, whose own quality, a
floor in the plots, is what the teacher itself is worth. The other floor is a part of the real data against the rest,
what equal laws get, since a Fréchet distance is not 0 there.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dsno.condition import map_cond
from dsno.cost import flops
from dsno.data.load import load_data
from dsno.data.samples import Samples, check_images, split
from dsno.denoise import Denoiser, Prediction
from dsno.grids import uniform
from dsno.measure.copying import shared_images
from dsno.measure.evaluate import Reference, evaluate, halves, measure
from dsno.measure.features import class_accuracy
from dsno.measure.results import RESULTS, Result, load_results, save_results
from dsno.nets.features import FeatureNet, load_feature_net, tells_classes
from dsno.outputs import Kind, check_apart
from dsno.report.page import Picture, Section, html_report, is_report
from dsno.report.pictures import Against, image_grid, interpolation, quality_against_cost, slerp, trajectory_strips
from dsno.report.told import Told, told_of
from dsno.schedule import Schedule
from dsno.seeds import noise, seed_range
from dsno.solvers.fine import fine_solution
from dsno.solvers.first_order import DDIM
from dsno.solvers.multistep import DPMSolverPP, UniPC
from dsno.solvers.run import SolverSampler
from dsno.students.heads import ParallelDecoder
from dsno.students.operator import TrajectoryStudent
from dsno.students.origin import Origin, check_shape, open_student, origin_of, sha_of
from dsno.students.samplers import OnePass, Student, sampler_of
from dsno.teachers.load import load_teacher
from dsno.train import Report, quiet
from dsno.trajectory import Sampler, Trajectory

__all__ = [
    "EVALUATION",
    "FEWEST",
    "HELD_OUT",
    "REPORT",
    "Parts",
    "by_class",
    "check_written",
    "compare",
    "parts_of",
    "set_apart",
]

log = logging.getLogger(__name__)

REPORT = "report.html"

HELD_OUT = 1 << 40
"""The seed of the first noise of a comparison: far from those of trajectories."""

FEWEST = 4
"""Samples of which precision and recall find neighbours."""

SHOWN = 16
"""Classes on the page, at most."""


def _is_ours(path: Path) -> bool:
    """Whether a file of this name is what `compare` wrote."""
    if path.suffix != Path(RESULTS).suffix:
        return is_report(path)
    try:
        load_results(path)
    except ValueError:
        return False
    return True


EVALUATION = Kind(
    "an evaluation",
    lambda folder: [path for name in (RESULTS, REPORT) if (path := folder / name).is_file() and _is_ours(path)],
    resumes=False,
)
"""What `compare` writes into a folder."""


def compare(
    teacher: Path | str,
    student: Path | str,
    features: Path | str,
    data: str | Samples = "digits",
    count: int = 2048,
    out: Path | str | None = None,
    report: Report = quiet,
    page: Path | str | None = None,
    *,
    first_seed: int = HELD_OUT,
    ddim: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    multistep: Sequence[int] = (4, 8, 16),
    fine_steps: int = 64,
    repeats: int = 3,
    passes: Sequence[int] = (),
    fresh: bool | None = None,
    held_out: str | float | Samples | None = None,
    accelerator: Any = None,
    variant: str | None = None,
    guidance: float | None = None,
    more: Sequence[Section] = (),
) -> list[Result]:
    """A student beside its teacher's solvers on the same held-out noises: numbers, and a report.

    One that is told a class is compared with a teacher that is told the same ones (`dsno.report.told`).

    Arguments:
        teacher: The teacher, as `load_teacher` takes it.
        student: Folder of the student or flow map.
        features: Folder of the feature network.
        data: The reference set, or what `dsno.data.load.load_data` takes: what was trained on.
        count: How many noises.
        out: Folder for `results.json` and `report.html`, which replace those of an evaluation before; nothing is
            written without it.
        report: Called with stage, network calls done and in all, and text (`dsno.train.Report`).
        page: Where the report goes instead.
        first_seed: Seed of the first noise; far from those of trajectories by default.
        ddim: Steps of DDIM, on the uniform grid.
        multistep: Steps of DPM-Solver++ and UniPC, on the uniform grid. About `count` times
            (sum(ddim) + 2 sum(multistep) + fine_steps) network evaluations are most of the work.
        fine_steps: Steps of the fine solution.
        repeats: Calls behind each latency, 0 to leave latencies out.
        passes: Numbers of passes to measure the student at, a row each; by default the fewest it was trained for.
        fresh: Noise the sample again between passes; as the student was trained to by default.
        held_out: Images that nothing was trained on, as `data`, or the share of `data` to hold out (`set_apart`): what
            is measured is compared with them, too, and told from a copy of `data`.
        accelerator: An `accelerate.Accelerator`: its processes share the noises and the first one writes; or None.
        variant: The variant of the teacher's weights, where it is one of diffusers.
        guidance: The weight of guidance of a teacher that is told classes, and of its student, one number for all; by
            default the least that the student was trained for. 0 is the conditional model.
        more: What else the page shows, at its end.

    Returns:
        The results: the student, the solvers at several numbers of steps, the fine solution's own quality, and that of
        a part of the data (`dsno.measure.evaluate.halves`).

    Raises:
        FileExistsError: if `out` holds one of the folders, or files of these names that are of no evaluation.
        FileNotFoundError: if a folder is not complete.
        ValueError: if student, teacher, data and feature network are of different shapes or classes, the student makes
            other passes than are asked for, is told something else, or was trained on one of the noises or on other
            weights, or `count` or half of the data are too few for precision and recall; or as
            `set_apart` does.
    """
    if count < FEWEST:
        raise ValueError(f"count must be at least {FEWEST}, got {count}: precision and recall look at neighbours")
    if out is not None:
        check_apart(out, teacher, student, features, *(given for given in (data, held_out) if isinstance(given, str)))
    written = [] if out is None else [Path(out) / RESULTS, Path(out) / REPORT]
    check_written(*(written if page is None else [*written[:1], Path(page)]))
    images, held = set_apart(data if isinstance(data, Samples) else load_data(data), held_out)
    told, learned, net = parts_of(teacher, student, features, images, variant, guidance)
    solved, shape = told.teacher, images.shape
    origin = _checked_origin(student, solved, teacher, first_seed, count)
    device = torch.device("cpu") if accelerator is None else accelerator.device
    for model in (solved, learned, net):
        model.to(device)
    seeds, family, results = seed_range(first_seed, count), _family(learned), list[Result]()
    own, solvers = _passes(learned, family, passes, fresh), _solvers(told.solved, solved.schedule, ddim, multistep)
    done = _done(fine_steps, passes, solvers)

    reference = Reference.of(images.x, net, held_out=None if held is None else held.x)
    floor = halves(reference, net, count)
    report("evaluate", 0, done[-1], f"{done[-1]} network calls for {count} noises, the fine solution first")
    z, labels = noise(seeds, shape, device=device), told.labels(seeds, device)
    fine = fine_solution(told.solved, solved.schedule, z, fine_steps, cond=labels).sample
    # A guided teacher's samplers count both its rows of the network.
    per_row = flops(solved, z[:1], torch.ones(1, device=device), map_cond(operator.itemgetter(slice(1)), labels))
    asked = labels if images.labels is not None and tells_classes(features, images.name) else None
    for n, (name, sampler) in enumerate([*own.items(), *solvers.items()]):
        report("evaluate", done[n], done[-1], name)
        result = evaluate(
            sampler,
            name=name,
            shape=shape,
            seeds=seeds,
            reference=reference,
            extractor=net,
            fine=fine,
            cond=told.student(labels) if name in own else labels,
            labels=asked,
            flops_per_row=None if name in own else per_row,
            repeats=repeats,
            device=device,
            accelerator=accelerator,
        )
        results.append(told.noted(result))
    solution = told.noted(measure(fine.clamp(-1, 1), name="teacher, fine", reference=reference, extractor=net))
    results += _classified(((solution, fine, asked), (floor, images.x, None if asked is None else images.labels)), net)
    report("evaluate", done[-1], done[-1], "done")
    if accelerator is not None and not accelerator.is_main_process:
        return results
    if out is not None:
        save_results(results, Path(out) / RESULTS)
    if out is not None or page is not None:
        shown = _Shown(told, learned, family, first_seed, z, labels, fine, fine_steps)
        title = f"{'Few passes' if passes else 'One pass'} beside its teacher: {images.name}"
        said = f"{_same(shown, origin)}; quality against {len(images)} images in the features of {net.name}"
        said += "." if held is None else f"; held out of them: {len(held)} images, {held.name}."
        html_report(page or Path(out or ".") / REPORT, title, [*_sections(results, shown), *more], said)
    return results


def by_class(
    teacher: Path | str,
    student: Path | str,
    weights: Sequence[float],
    data: str | Samples = "digits",
    *,
    first_seed: int = HELD_OUT,
    columns: int = 8,
    fine_steps: int = 64,
) -> list[Section]:
    """A student that is told classes beside its teacher: a section of a page for each weight of guidance.

    Arguments:
        teacher: The teacher, as `load_teacher` takes it.
        student: Folder of the student.
        weights: The weights; 0 is the conditional model.
        data: What both were trained on, as `load_data` takes it.
        first_seed: Seed of the first noise.
        columns: How many noises, at most eight.
        fine_steps: Steps of the teacher's solution.

    Raises:
        ValueError: as `dsno.report.told.told_of` does, for a student that is told no class, say.
    """
    images = data if isinstance(data, Samples) else load_data(data)
    learned, solved = open_student(student).eval(), load_teacher(teacher)
    z, sections = noise(seed_range(first_seed, columns), learned.shape), []
    for weight in weights:
        told = told_of(learned, student, solved, str(teacher), images, weight)
        shown = _Shown(told, learned, _family(learned), first_seed, z, None, z, fine_steps)
        sections.append(replace(_samples_by_class(shown), title=f"Told a class, guidance weight {weight:g}"))
    return sections


def set_apart(images: Samples, held_out: str | float | Samples | None) -> tuple[Samples, Samples | None]:
    """The reference set, and the one that is held out of it, if any: an image set of its own, or a share in (0, 0.5].

    A share is drawn by lot, as `split(images, held_out)` does it. A student and a teacher that were trained on
    the rest have not seen it. Of others the distance to it says no more than that to the rest; the copying ratio says
    nearly as much: most of what they copy is in the rest.

    Raises:
        ValueError: for another share; for images that are too few, of another shape, or in the reference set by half.
        FileNotFoundError, ...: as `load_data` does.
    """
    if held_out is None:
        return images, None
    if not isinstance(held_out, int | float):
        held = held_out if isinstance(held_out, Samples) else load_data(held_out)
        shared_images(held.x, images.x)
        return images, held
    if not 0 < held_out <= 0.5:
        raise ValueError(f"held_out must be an image set or a share of the data in (0, 0.5], got {held_out:g}")
    rest, held = split(images, held_out)
    shared_images(held.x, rest.x)
    log.warning(
        "a share of %g of %s is held out of the reference: distances to it are to unseen images if student and teacher "
        "were trained on the rest (dsno.data.samples.split); copying is told in any case",
        held_out,
        images.name,
    )
    return rest, replace(held, name=f"a share of {held_out:g} of {images.name}")


def check_written(*paths: Path) -> None:
    """Refuse files that are there already and of no evaluation.

    Raises:
        FileExistsError: if one is.
    """
    for path in paths:
        if path.exists() and not _is_ours(path):
            raise FileExistsError(f"{path} is of no evaluation: move it away, or choose another output")


class Parts(NamedTuple):
    """What a comparison is made of, loaded: the teacher, and what it is told; the student; the feature network."""

    told: Told
    student: Student
    features: FeatureNet


def parts_of(
    teacher: Path | str,
    student: Path | str,
    features: Path | str,
    images: Samples,
    variant: str | None = None,
    guidance: float | None = None,
) -> Parts:
    """The parts of a comparison on `images`; the arguments are those of `compare`.

    Raises:
        FileNotFoundError: if a folder is not complete.
        ValueError: if they are not all of one shape; as `dsno.report.told.told_of` does.
    """
    net, solved = load_feature_net(features), load_teacher(teacher, variant=variant)
    learned = open_student(student, variant=variant)
    shape = images.shape
    if learned.shape != shape:
        raise ValueError(
            f"the student makes {learned.shape}, {images.name} has {shape}: choose its own data (`--data`)"
        )
    check_shape(learned, str(teacher), solved)
    check_images(images.x, images.name)
    net.check(images.x)
    told = told_of(learned, student, solved, str(teacher), images, guidance)
    return Parts(told, learned.eval(), net)


def _checked_origin(
    student: Path | str, solved: Prediction, teacher: Path | str, first_seed: int, count: int
) -> Origin:
    """What is known of what the student was made of: not of these noises, and if of another teacher that is said."""
    origin = origin_of(student)
    origin.check_unseen(first_seed, count)
    if origin.sha not in (None, sha_of(solved)):
        log.warning("%s is not the teacher that %s was made from: its weights are others", teacher, student)
    return origin


def _classified(sets: Iterable[tuple[Result, Tensor, Tensor | None]], net: FeatureNet) -> list[Result]:
    """The results of images (N, C, H, W), with the share that is of its classes (N,) where there are any."""
    return [
        result if labels is None else replace(result, accuracy=class_accuracy(net, x.clamp(-1, 1), labels))
        for result, x, labels in sets
    ]


def _held_out(origin: Origin, first: int, count: int) -> str:
    """What is known of the noises of these seeds: whether the student has seen them."""
    own = f"of seeds {first} to {first + count - 1}"
    if origin.seeds is None:
        return own
    return f"{own}, none of which the student was trained on (its trajectories are of {origin.seeds[0]} to " + (
        f"{origin.seeds[1] - 1})"
    )


def _family(student: Student) -> str:
    if isinstance(student, ParallelDecoder):
        return "PDD"
    return "DSNO" if isinstance(student, TrajectoryStudent) else "flow map"


def _passes(student: Student, family: str, passes: Sequence[int], fresh: bool | None) -> dict[str, Sampler]:
    """The student's own samplers by name: of so many passes, or of the fewest."""
    return {f"{family}-{n}": sampler_of(student, n, fresh=fresh) for n in passes} or {family: sampler_of(student)}


def _solvers(
    teacher: Denoiser, schedule: Schedule, ddim: Sequence[int], multistep: Sequence[int]
) -> dict[str, SolverSampler]:
    """The teacher's solvers by name and number of steps, on uniform grids."""
    steps = (("DDIM", DDIM(), ddim), ("DPM-Solver++", DPMSolverPP(), multistep), ("UniPC", UniPC(), multistep))
    return {f"{name}-{n}": SolverSampler(teacher, schedule, uniform(n), step) for name, step, ns in steps for n in ns}


def _done(fine_steps: int, passes: Sequence[int], solvers: Mapping[str, SolverSampler]) -> list[int]:
    """The network calls that are done where each sampler begins, and where the last one ends.

    They are most of the work. Counted by samplers, the fine solution would be a part of a dozen and take a quarter.
    """
    return [*accumulate([fine_steps, *(passes or [1]), *(len(solver.grid) - 1 for solver in solvers.values())])]


@dataclass(frozen=True)
class _Shown:
    """What a page shows beside the numbers: of whom, from noises z (B, *shape) of consecutive seeds and classes (B,),
    with the fine solution of so many steps."""

    told: Told
    student: Student
    family: str
    first_seed: int
    z: Tensor
    labels: Tensor | None
    fine: Tensor
    fine_steps: int

    def made(self, z: Tensor, labels: Tensor | None) -> Trajectory:
        """The student's samples of noises and classes."""
        return sampler_of(self.student)(z, self.told.student(labels))

    def solved(self, z: Tensor, labels: Tensor | None, **kept: Any) -> Trajectory:
        """The teacher's fine solution of the same."""
        return fine_solution(self.told.solved, self.told.teacher.schedule, z, self.fine_steps, cond=labels, **kept)


def _same(shown: _Shown, origin: Origin) -> str:
    """What all samplers have in common: the noises, and what they are told."""
    told, count = shown.told.said, len(shown.z)
    said = f", as is what it is told: {told}" if told else ""
    return f"{count} noises {_held_out(origin, shown.first_seed, count)}, the same for every sampler{said}"


def _sections(results: Sequence[Result], shown: _Shown) -> list[Section]:
    """The page: samples, paths where the student makes them, numbers, and arcs of noise."""
    return [
        _samples(shown) if shown.labels is None else _samples_by_class(shown),
        *([_paths(shown, shown.student)] if isinstance(shown.student, TrajectoryStudent) else []),
        Section(
            "Quality against cost",
            pictures=[
                _costs(results, shown.family, "rounds", "Against the serial cost."),
                _costs(results, shown.family, "flops", "Against the arithmetic: the frames of one pass are not free."),
            ],
            results=results,
        ),
        *([_interpolation(shown)] if len(shown.z) > 1 else []),
    ]


def _samples(shown: _Shown) -> Section:
    made = shown.made(shown.z[:64], None)
    seeds = [str(shown.first_seed + n) for n in range(len(made.x))]
    student = Picture(
        image_grid(made.sample, captions=seeds), f"The student, {_calls(made)}; below each sample is its seed."
    )
    teacher = Picture(
        image_grid(shown.fine[:64], captions=seeds), f"The teacher from the same noises, {shown.fine_steps} calls."
    )
    return Section("Samples", pictures=[student, teacher])


def _calls(made: Trajectory) -> str:
    return "one network call" if made.rounds == 1 else f"{made.rounds} network calls"


def _samples_by_class(shown: _Shown) -> Section:
    """A row for each class, a column for each noise."""
    told, z = shown.told, shown.z[:8]
    every = told.classes
    some = every if len(every) <= SHOWN else [every[n * len(every) // SHOWN] for n in range(SHOWN)]
    labels = torch.tensor(some, device=z.device).repeat_interleave(len(z))
    names, noises = [told.names[k] for k in labels.tolist()], z.repeat(len(some), *[1] * (z.ndim - 1))
    made, fine = shown.made(noises, labels), shown.solved(noises, labels).sample
    which = f"{len(some)} of {len(every)} classes" if len(some) < len(every) else "each class"
    text = f"A row for {which}, a column for the noise of each seed from {shown.first_seed} on, the same on both sides."
    student = Picture(image_grid(made.sample, len(z), names), f"The student, {_calls(made)}.")
    teacher = Picture(image_grid(fine, len(z), names), f"The teacher, {shown.fine_steps} calls.")
    return Section("Samples", text, [student, teacher])


def _paths(shown: _Shown, student: TrajectoryStudent) -> Section:
    z, labels = shown.z[:6], None if shown.labels is None else shown.labels[:6]
    path = OnePass(student, whole=True)(z, shown.told.student(labels))
    exact = shown.solved(z, labels, keep=[1.0, *path.t[1:].tolist()], keep_x0=True)
    if student.target == "state" or path.x0 is None or exact.x0 is None:
        what, own, others = "states", path.x, exact.x
    else:
        what, own, others = "denoised estimates", path.x0, exact.x0
    picture = _both(
        lambda dark: trajectory_strips(own[:, 1:], others[:, 1:], path.t[1:], z, dark=dark),
        f"All times of the student come from one network call. Shown are its {what} over the teacher's.",
    )
    return Section("Trajectories", pictures=[picture])


def _costs(results: Sequence[Result], family: str, against: Against, caption: str) -> Picture:
    return _both(lambda dark: quality_against_cost(results, against, dark=dark, students=(family,)), caption)


def _interpolation(shown: _Shown) -> Section:
    """Arcs between neighbouring noises, each in the class of the first."""
    z, labels, strips = shown.z, shown.labels, []
    for i in range(0, min(8, len(z) - 1), 2):
        arc = slerp(z[i], z[i + 1], 12)
        strips.append(shown.made(arc, None if labels is None else labels[i].expand(len(arc))).sample)
    caption = "The student along arcs of noise" + ("." if labels is None else ", of one class each.")
    return Section("Interpolation", pictures=[Picture(interpolation(torch.stack(strips)), caption)])


def _both(draw: Callable[[bool], bytes], caption: str) -> Picture:
    """A picture for light pages and for dark ones."""
    return Picture(draw(False), caption, draw(True))
