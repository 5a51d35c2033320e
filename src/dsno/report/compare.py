"""A student beside its teacher: measured, drawn, and written as a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsno.cost import flops
from dsno.data.load import load_data
from dsno.data.samples import Samples
from dsno.denoise import Prediction
from dsno.grids import uniform
from dsno.measure.evaluate import Reference, evaluate, measure
from dsno.measure.results import Result, save_results
from dsno.nets.features import load_feature_net
from dsno.report.page import Picture, Section, html_report
from dsno.report.pictures import image_grid, interpolation, quality_against_cost, slerp, trajectory_strips
from dsno.seeds import noise, seed_range
from dsno.solvers.fine import fine_solution
from dsno.solvers.first_order import DDIM
from dsno.solvers.multistep import DPMSolverPP, UniPC
from dsno.solvers.run import SolverSampler
from dsno.students.files import load_student
from dsno.students.operator import TrajectoryStudent
from dsno.students.samplers import OnePass, Student, sampler_of
from dsno.teachers.load import load_teacher
from dsno.trajectory import Sampler

if TYPE_CHECKING:
    from dsno.train import Report

__all__ = ["compare"]

HELD_OUT = 1 << 40


def compare(
    teacher: Path | str,
    student: Path | str,
    features: Path | str,
    data: str | Samples = "digits",
    count: int = 2048,
    out: Path | str | None = None,
    report: Report | None = None,
    page: Path | str | None = None,
    *,
    first_seed: int = HELD_OUT,
    ddim: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    multistep: Sequence[int] = (4, 8, 16),
    fine_steps: int = 64,
    repeats: int = 3,
    passes: Sequence[int] = (),
    fresh: bool = False,
    accelerator: Any = None,
) -> list[Result]:
    """An unconditional student beside its teacher's solvers on the same held-out noises: numbers, and a report.

    Arguments:
        teacher: Folder of the teacher.
        student: Folder of the student or flow map.
        features: Folder of the feature network.
        data: The reference set, or what `dsno.data.load.load_data` takes.
        count: How many noises.
        out: Folder for `results.json` and `report.html`; nothing is written without it.
        report: Called with stage, done, total and text.
        page: Where the report goes instead.
        first_seed: Seed of the first noise; far from those of trajectories by default.
        ddim: Steps of DDIM, on the uniform grid.
        multistep: Steps of DPM-Solver++ and UniPC, on the uniform grid. About `count` times
            (sum(ddim) + 2 sum(multistep) + fine_steps) network evaluations are most of the work.
        fine_steps: Steps of the fine solution.
        repeats: Calls behind each latency, 0 to leave latencies out.
        passes: Numbers of passes to measure the student at, a row each; by default the fewest it was trained for.
        fresh: Noise the sample again between passes.
        accelerator: An `accelerate.Accelerator`: its processes share the noises and the first one writes; or None.

    Returns:
        The results: the student, the solvers at several numbers of steps, and the fine solution's own quality.

    Raises:
        FileNotFoundError: if a folder is not complete.
        ValueError: if the student makes other shapes than the data has or other passes than are asked for, or `count` is
            too small for precision and recall.
    """
    images, net = data if isinstance(data, Samples) else load_data(data), load_feature_net(features)
    solved, learned = load_teacher(teacher), load_student(student).eval()
    shape = images.shape
    if learned.shape != shape:
        raise ValueError(f"the student makes {learned.shape}, {images.name} has {shape}: choose its own data")
    device = torch.device("cpu") if accelerator is None else accelerator.device
    for model in (solved, learned, net):
        model.to(device)
    seeds = seed_range(first_seed, count)
    family = "DSNO" if isinstance(learned, TrajectoryStudent) else "flow map"
    samplers: dict[str, Sampler] = {f"{family}-{n}": sampler_of(learned, n, fresh=fresh) for n in passes}
    samplers = samplers or {family: sampler_of(learned)}
    own = tuple(samplers)
    solvers = (("DDIM", DDIM(), ddim), ("DPM-Solver++", DPMSolverPP(), multistep), ("UniPC", UniPC(), multistep))
    for name, step, steps in solvers:
        for n in steps:
            samplers[f"{name}-{n}"] = SolverSampler(solved, solved.schedule, uniform(n), step)

    def say(done: int, text: str) -> None:
        if report is not None:
            report("evaluate", done, len(samplers) + 1, text)

    say(0, f"fine solution of {count} noises in {fine_steps} steps")
    z = noise(seeds, shape, device=device)
    fine = fine_solution(solved, solved.schedule, z, fine_steps).sample
    reference = Reference.of(images.x, net)
    per_row = flops(solved, z[:1], torch.ones(1, device=device))
    results = []
    for n, (name, sampler) in enumerate(samplers.items()):
        say(n + 1, name)
        results.append(
            evaluate(
                sampler, name=name, shape=shape, seeds=seeds, reference=reference, extractor=net, fine=fine,
                flops_per_row=None if name in own else per_row, repeats=repeats, device=device,
                accelerator=accelerator,
            )
        )  # fmt: skip
    results.append(measure(fine.clamp(-1, 1), name="teacher, fine", reference=reference, extractor=net))
    say(len(samplers) + 1, "done")
    if accelerator is not None and not accelerator.is_main_process:
        return results
    if out is not None:
        save_results(results, Path(out) / "results.json")
    if out is not None or page is not None:
        sections = _comparison(results, solved, learned, z, fine, fine_steps, family)
        html_report(
            page or Path(out or ".") / "report.html",
            f"{'One pass' if not passes else 'Few passes'} beside its teacher: {images.name}",
            sections,
            f"{count} noises the student was not trained on, the same for every sampler; quality against {len(images)} "
            f"images in the features of {net.name}.",
        )
    return results


def _comparison(
    results: Sequence[Result],
    teacher: Prediction,
    student: Student,
    z: Tensor,
    fine: Tensor,
    fine_steps: int,
    family: str,
) -> list[Section]:
    n = min(64, len(z))
    sampler = sampler_of(student)
    made = sampler(z[:n])
    ends = [slerp(z[i], z[i + 1], 12) for i in range(0, min(8, len(z) - 1), 2)]
    strips = torch.stack([sampler(arc).sample for arc in ends]) if ends else None
    calls = "one network call" if made.rounds == 1 else f"{made.rounds} network calls"

    return [
        Section(
            "Samples",
            pictures=[
                Picture(image_grid(made.sample), f"The student, {calls}."),
                Picture(image_grid(fine[:n]), f"The teacher from the same noises, {fine_steps} calls."),
            ],
        ),
        *([_paths(student, teacher, z, fine_steps)] if isinstance(student, TrajectoryStudent) else []),
        Section(
            "Quality against cost",
            pictures=[
                _both(
                    lambda dark: quality_against_cost(results, dark=dark, students=(family,)),
                    "Against the serial cost.",
                ),
                _both(
                    lambda dark: quality_against_cost(results, "flops", dark=dark, students=(family,)),
                    "Against the arithmetic: the frames of one pass are not free.",
                ),
            ],
            results=results,
        ),
        *(
            [Section("Interpolation", pictures=[Picture(interpolation(strips), "The student along arcs of noise.")])]
            if strips is not None
            else []
        ),
    ]


def _paths(student: TrajectoryStudent, teacher: Prediction, z: Tensor, fine_steps: int) -> Section:
    pairs = min(6, len(z))
    path = OnePass(student)(z[:pairs])
    exact = fine_solution(
        teacher, teacher.schedule, z[:pairs], fine_steps, keep=[1.0, *path.t[1:].tolist()], keep_x0=True
    )
    frames = (
        (path.x, exact.x) if student.target == "state" or path.x0 is None or exact.x0 is None else (path.x0, exact.x0)
    )
    what = "states" if student.target == "state" else "denoised estimates"
    return Section(
        "Trajectories",
        pictures=[
            _both(
                lambda dark: trajectory_strips(frames[0][:, 1:], frames[1][:, 1:], path.t[1:], z[:pairs], dark=dark),
                f"All times of the student come from one network call. Shown are its {what} over the teacher's.",
            )
        ],
    )


def _both(draw: Callable[[bool], bytes], caption: str) -> Picture:
    return Picture(draw(False), caption, draw(True))
