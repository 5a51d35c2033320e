"""`dsno sample --exact`: the teacher's own samples in few serial rounds, with what they cost and how exact they are."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dsno.cli.console import progress, say
from dsno.cli.sets import guided, told
from dsno.cli.students import EXACT_OPTIONS
from dsno.cli.teachers import device_of

if TYPE_CHECKING:
    from torch import Tensor

    from dsno.cli.students import Sample
    from dsno.parallel import Exact
    from dsno.solvers.chain import Chain
    from dsno.trajectory import Trajectory

__all__ = ["sample_exactly"]

BATCH = 64


def sample_exactly(options: Sample) -> None:
    """Draw the samples, write the picture, and report rounds, rows and the error to the sequential chain.

    Raises:
        ValueError: for an option that the sampler does not have, or as the sampler does.
    """
    from dsno.checkpoint import write_atomically
    from dsno.condition import map_cond
    from dsno.grids import uniform
    from dsno.parallel import EXACT, Replicas
    from dsno.report.pictures import image_grid
    from dsno.runs.shipped import shipped
    from dsno.seeds import noise, seed_range
    from dsno.solvers.chain import Chain
    from dsno.solvers.run import initial_state
    from dsno.teachers.load import load_teacher
    from dsno.teachers.native import sample_shape

    assert options.exact is not None
    if options.student is not None or options.passes is not None:
        name = "student" if options.student is not None else "passes"
        raise ValueError(f"--{name} is of a student's own samples: leave out --exact, or give the student as --draft")
    kind, device = EXACT[options.exact], device_of(options.device)
    asked = _asked(options, kind)
    ref = options.teacher or str(shipped() / "teacher")
    teacher = load_teacher(ref, None, device)
    if options.draft is not None:
        asked["draft"] = _draft(options.draft, device)
    elif options.exact == "receding":
        raise ValueError("a receding draft needs a student: give the folder of one with inner starts, --draft FOLDER")
    weights = () if options.guidance is None else (options.guidance,)
    denoiser = guided(ref, teacher, weights, options.prompts is not None, options.null)
    if options.limit is not None or device.type != "cpu":
        # A round of an accelerator is cut where its memory ends; those of the machine share it unless one was named.
        devices = None if options.device is None and device.type != "cpu" else [device]
        denoiser = Replicas(denoiser, devices, options.limit)  # type: ignore[assignment]
    label = None if options.label is None else str(options.label)
    condition = told(ref, teacher, label, options.prompts)
    eta = options.eta if options.eta is not None else float(options.exact == "speculative")
    chain = Chain(teacher.schedule, uniform(100 if options.steps is None else options.steps), eta)
    sampler = kind(denoiser, chain, **asked)

    seeds, shape = seed_range(options.seed, options.count), sample_shape(teacher)
    made, references, seconds = [], [], 0.0
    with progress() as report:
        for rows in seeds.split(BATCH):
            z, cond = noise(rows, shape, device=device), None if condition is None else condition(rows)
            cond = map_cond(lambda c: c.to(device), cond)
            began = time.perf_counter()
            made.append(sampler(z, cond, rows))
            seconds += time.perf_counter() - began
            if options.verify and options.exact != "speculative":
                tape = chain.tape(rows, shape).to(device) if eta else None
                with torch.no_grad():
                    x = initial_state(chain.schedule, z)
                    references.append(chain.run(denoiser, x, tape, cond).sample)
            report("sample", min(len(made) * BATCH, options.count), options.count, "")
    samples = torch.cat([part.sample for part in made]).cpu()
    png = image_grid(options.decoded(samples).clamp(-1, 1))
    write_atomically(options.out, lambda path: path.write_bytes(png))
    text = _report(options, sampler, chain, made, torch.cat(references).cpu() if references else None, samples)
    say(
        f"{text}\n{options.count} samples, {seconds:.2f} s: {options.out}", "dsno sample   (the student's, in one pass)"
    )


def _asked(options: Sample, kind: type[Exact]) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(kind)}
    asked = {name: value for name in EXACT_OPTIONS if (value := getattr(options, name)) is not None}
    for name in asked:
        if name not in known:
            takes = ", ".join(f"--{n}" for n in EXACT_OPTIONS if n in known)
            raise ValueError(f"--{name} is no option of {options.exact}, which takes {takes}")
    return asked


def _draft(ref: str, device: torch.device) -> Any:
    from dsno.runs.shipped import shipped
    from dsno.students.files import load_student

    return load_student(shipped() / "student" if ref == "shipped" else Path(ref)).to(device)


def _report(
    options: Sample, sampler: Exact, chain: Chain, made: list[Trajectory], reference: Tensor | None, samples: Tensor
) -> str:
    """Rounds, rows and the error, a line each."""
    traces = [part.trace for part in made if part.trace is not None]
    rounds, rows, drafts = (
        torch.cat([getattr(t, name) for t in traces]).double() for name in ("rounds", "rows", "draft_rounds")
    )
    lines = [
        f"{type(sampler).__name__}, chain of {len(chain)} steps, eta {chain.eta:g}",
        f"rounds      mean {rounds.mean():.1f}, worst {rounds.max():.0f} of {len(chain)}"
        + (f"; and {drafts.mean():.1f} passes of the draft" if options.draft else ""),
        f"rows        mean {rows.mean():.0f}, worst {rows.max():.0f} network evaluations a sample ({len(chain)} sequentially)",
    ]
    if options.exact == "speculative":
        held = torch.cat([t.history.flatten() for t in traces]).nanmean()
        lines.append(
            f"accepted    {100 * held:.0f} % of a window on average; the law is the chain's, so there is no error to show"
        )
    elif reference is not None:
        each = (samples - reference).flatten(1).square().mean(1).sqrt()
        lines.append(
            f"error       median {each.median():.2g}, worst {each.max():.2g}, RMS over pixels to the sequential chain"
        )
    return "\n".join(lines)
