r"""What a run will cost, before it is started: evaluations, arithmetic, bytes, memory, hours, and what to change.

A run has up to three stages. With $F_D$ the floating-point operations of the teacher on one row, $F_G$ those of the
student's pass on one sample (all the frames that a step supervises), $N$ trajectories of $n$ evaluations, $K$ steps of
batch $B$, and a backward pass taken for two forward ones,

| stage | work | CIFAR-10 as published |
|---|---|---|
| teach | $3 F_D B_T K_T$ | (given) |
| generate | $F_D \, n N$ | $3.6 \cdot 10^{10} \times 512 \times 1.024 \cdot 10^6 = 1.9 \cdot 10^{19}$ |
| distill | $3 F_G B K$ | $3 \times 1.5 \cdot 10^{11} \times 256 \times 4 \cdot 10^5 = 4.7 \cdot 10^{19}$ |

Work and memory of a large network are counted on the meta device, where tensors have shapes and no numbers, so any size
is counted in seconds. Hours come from a short measurement here: the calls of the run at its own batch where that is quick,
else at fewer rows, else the work over the rate of a convolution; a plan says which it was. What is left out is small beside
these: the optimiser, reading and writing, and the features of a perceptual distance.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from dsno.denoise import Prediction
from dsno.nets.backbone import sample_shape
from dsno.runs.bench import Bench, Rate, distilling, solving, teaching
from dsno.runs.counts import Count, count_student, counted, like
from dsno.runs.workload import HOUR, Workload

__all__ = ["Option", "Plan", "Stage", "plan"]


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: `teach`, `generate` or `distill`.
        evaluations: Rows that a network evaluates: the teacher's, or the student's samples.
        flop: Floating-point operations, backward passes included.
        memory: Bytes at the batch of the run, on one device: weights, their gradients and moments, activations.
        disk: Bytes it leaves.
        hours: On this machine.
        how: What was measured to know that.
    """

    name: str
    evaluations: int
    flop: float
    memory: int
    disk: int
    hours: float
    how: str


@dataclass(frozen=True)
class Option:
    """A change, the hours of the whole run with it, and whether that is within the budget."""

    change: str
    hours: float
    fits: bool


@dataclass(frozen=True)
class Plan:
    """What `plan` found; prints as a page, and `to_dict` is JSON-able."""

    name: str
    device: str
    per_evaluation: float
    per_sample: float
    stages: tuple[Stage, ...]
    options: tuple[Option, ...]
    budget_hours: float | None = None

    @property
    def hours(self) -> float:
        return sum(stage.hours for stage in self.stages)

    @property
    def flop(self) -> float:
        return sum(stage.flop for stage in self.stages)

    @property
    def disk(self) -> int:
        return sum(stage.disk for stage in self.stages)

    @property
    def fits(self) -> bool:
        """Whether the whole run is within the budget; true where there is none."""
        return self.budget_hours is None or self.hours <= self.budget_hours

    @property
    def summary(self) -> str:
        """The plan in a line."""
        text = f"{self.name} on {self.device}: {_hours(self.hours)}, {self.flop:.2g} FLOP, {_bytes(self.disk)} on disk"
        if self.budget_hours is None:
            return text
        text += f"; {'within' if self.fits else 'over'} the budget of {_hours(self.budget_hours)}"
        return (
            text if self.fits or any(o.fits for o in self.options) else f"{text}, and so is all that could be changed"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "name": self.name, "device": self.device, "hours": self.hours, "flop": self.flop, "disk_bytes": self.disk,
            "flop_per_evaluation": self.per_evaluation, "flop_per_sample": self.per_sample,
            "budget_hours": self.budget_hours, "fits": self.fits, "stages": [asdict(s) for s in self.stages],
            "options": [asdict(o) for o in self.options],
        }  # fmt: skip

    def rows(self) -> list[dict[str, str]]:
        """The stages as a table of words."""
        return [
            {
                "stage": s.name, "evaluations": f"{s.evaluations:,}", "FLOP": f"{s.flop:.2g}", "memory": _bytes(s.memory),
                "on disk": _bytes(s.disk) if s.disk else "", "time": _hours(s.hours), "known from": s.how,
            }
            for s in self.stages
        ]  # fmt: skip

    def choices(self) -> list[dict[str, str]]:
        """The options as a table of words."""
        fits = {True: "yes", False: "no"}
        return [
            {"change": o.change, "whole run": _hours(o.hours)}
            | ({} if self.budget_hours is None else {"fits": fits[o.fits]})
            for o in self.options
        ]

    def __str__(self) -> str:
        lines = ["  ".join(filter(None, row.values())) for row in self.rows()]
        lines += [
            f"  {o.change}: {_hours(o.hours)}{' (fits)' * (o.fits and self.budget_hours is not None)}"
            for o in self.options
        ]
        return "\n".join([*lines, self.summary])


def _hours(hours: float) -> str:
    seconds = hours * HOUR
    for size, unit in ((365 * 24 * HOUR, "years"), (24 * HOUR, "days"), (HOUR, "h"), (60.0, "min")):
        if seconds >= 2 * size or (unit == "h" and seconds >= size):
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s"


def _bytes(size: float) -> str:
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"


def plan(
    work: Workload,
    budget_hours: float | None = None,
    device: torch.device | str | None = None,
    devices: int = 1,
    seconds: float = 9.0,
) -> Plan:
    """Count a run and measure this machine for a few seconds; nothing is written and nothing is started.

    Arguments:
        work: The run; recipes give theirs by `workload()`.
        budget_hours: What it may take; the options then say what fits.
        device: Where; the accelerator if there is one, else the CPU.
        devices: How many of them share the work, perfectly.
        seconds: How long to measure, about.

    Raises:
        ValueError: if the budget or the number of devices is not positive, or the student does not fit the teacher.
    """
    if devices < 1 or seconds <= 0 or (budget_hours is not None and not budget_hours > 0):
        raise ValueError(f"budget, devices and seconds must be positive, got {budget_hours}, {devices} and {seconds}")
    if device is None:
        device = torch.accelerator.current_accelerator() or "cpu" if torch.accelerator.is_available() else "cpu"
    where = torch.device(device)
    meta = _counted(work)
    shape, classes = sample_shape(meta), meta.classes
    count = counted(work, meta)
    with torch.random.fork_rng():
        rates = _measure(work, count, where, seconds)
    stages = _stages(work, count, rates, devices, shape, classes)
    total = sum(stage.hours for stage in stages)
    options = _options(work, meta, count, rates, devices, budget_hours, total)
    name = f"{devices} x {where}" if devices > 1 else str(where)
    return Plan(work.name, name, count.evaluation, count.sample, tuple(stages), tuple(options), budget_hours)


def _counted(work: Workload) -> Prediction:
    """A teacher to count on: on the meta device, or, where it is small, on the CPU, whose calls are quicker."""
    with torch.device("meta"):
        made = work.teacher()
    if sum(p.numel() for p in made.parameters()) < 3e6:
        return _own(work).cpu().float()
    # A teacher that was loaded already is not to lose its weights.
    return made if like(made).is_meta else copy.deepcopy(made).to("meta")


def _own(work: Workload) -> Prediction:
    """A teacher with memory, of any weights."""
    return copy.deepcopy(work.teacher())


def _measure(work: Workload, count: Count, device: torch.device, seconds: float) -> dict[str, Rate]:
    stages = {"teach": work.teach, "generate": work.count, "distill": work.train}
    bench = Bench(device, seconds / max(sum(bool(s) for s in stages.values()), 1))
    rates: dict[str, Rate] = {}
    if work.count:
        wanted = work.batch * (2 if work.guided else 1)
        rows = bench.rows(wanted, count.evaluation, count.solving, 4 * count.teacher_weights)
        rates["generate"] = bench(lambda: solving(_own(work), device), wanted, count.evaluation, rows)
    if work.teach is not None:
        precision, flop = work.teach.precision, 3 * count.evaluation
        rows = bench.rows(work.teach_batch, flop, count.teaching, 8 * count.teacher_weights)
        rates["teach"] = bench(lambda: teaching(_own(work), device, precision), work.teach_batch, flop, rows)
    if work.train is not None:
        precision = work.train.precision
        # The widest kind of step, whose work per row is known.
        flop = 3 * count.widest
        rows = bench.rows(work.train_batch, flop, count.training, 4 * (count.student_weights + 2 * count.trained))
        rates["distill"] = bench(
            lambda: distilling(work, _own(work), device, precision), work.train_batch, flop, rows
        )  # fmt: skip
    # A row that was tried beats a convolution that is none of its own.
    known = [r for r in rates.values() if r.how.startswith("measured")]
    if known:
        for name, rate in rates.items():
            if rate not in known:
                rates[name] = Rate(known[0].seconds, f"the rate of the call that was {known[0].how}")
    return rates


def _stages(
    work: Workload,
    count: Count,
    rates: Mapping[str, Rate],
    devices: int,
    shape: tuple[int, ...],
    classes: int | None,
) -> list[Stage]:
    def stage(name: str, evaluations: float, flop: float, memory: float, disk: float) -> Stage:
        hours = flop * rates[name].seconds / devices / HOUR
        return Stage(name, int(evaluations), flop, int(memory), int(disk), hours, rates[name].how)

    def state(weights: int, trained: int) -> int:
        """Weights, gradients, two moments and the average, all in float32."""
        return 4 * (weights + 4 * trained)

    stages = []
    if work.teach is not None:
        images = work.teach.steps * work.teach.accumulate * work.teach_batch
        half = 0.5 if work.teach.precision != "no" else 1.0
        memory = (
            state(count.teacher_weights, count.teacher_weights) + half * count.teaching * work.teach_batch / devices
        )
        stages.append(stage("teach", images, 3.0 * count.evaluation * images, memory, 4 * count.teacher_weights))
    if work.count:
        evaluations = work.count * work.evaluations
        rows = work.batch * (2 if work.guided else 1)
        memory = 4 * count.teacher_weights + rows * (count.solving + 4 * 4 * math.prod(shape))
        disk = work.count * work.trajectory_bytes(shape, classes)
        stages.append(stage("generate", evaluations, count.evaluation * evaluations, memory, disk))
    if work.train is not None:
        samples = work.train.steps * work.train.accumulate * work.train_batch
        half = 0.5 if work.train.precision != "no" else 1.0
        memory = state(count.student_weights, count.trained) + half * count.training * work.train_batch / devices
        stages.append(stage("distill", samples, 3.0 * count.sample * samples, memory, 4 * count.student_weights))
    return stages


def _options(
    work: Workload,
    meta: Prediction,
    count: Count,
    rates: Mapping[str, Rate],
    devices: int,
    budget: float | None,
    total: float,
) -> list[Option]:
    def hours(other: Workload, counted: Count) -> float:
        return sum(s.hours for s in _stages(other, counted, rates, devices, sample_shape(meta), meta.classes))

    def option(change: str, other: Workload, counted: Count) -> Option:
        spent = hours(other, counted)
        return Option(change, spent, budget is None or spent <= budget)

    found: list[Option] = []
    cheap, counted = work, count
    if work.count and work.evaluations > 32:
        cheap = replace(cheap, solver="unipc3", steps=16)
        found.append(option(f"--solver unipc3 --steps 16 instead of {work.solver} {work.steps}", cheap, count))
    if work.train is not None and len(work.times) > 1:
        lean = {"where": "mid", "once": True, "told": "input"}
        if any(work.student.get(k, v) != v for k, v in lean.items()):
            other = replace(work, student={**work.student, **lean})
            found.append(
                option(
                    "--where mid --once --told input: frames in the middle only",
                    other,
                    count_student(other, meta, count),
                )
            )
            cheap = replace(cheap, student=other.student)
        if work.others is None:
            other = replace(work, others=0.25)
            found.append(
                option(
                    "--others 0.25: one other frame in a quarter of the steps",
                    other,
                    count_student(other, meta, count),
                )
            )
            cheap = replace(cheap, others=0.25)
        counted = count_student(cheap, meta, count)
    if len(found) > 1:
        found.append(option("all of these", cheap, counted))
    found = [o for o in found if o.hours < 0.98 * total]
    if budget is not None and total > budget:
        found += _fitting(work, option, "", count)
        if found and not found[-1].fits:
            found += _fitting(cheap, option, "all of these, and ", counted)
    return sorted(found, key=lambda o: not o.fits)


def _fitting(
    work: Workload, option: Callable[[str, Workload, Count], Option], before: str, count: Count
) -> list[Option]:
    """The largest numbers of trajectories, or of steps, or of both by the same factor, that fit."""

    def scaled(factor: float, count_too: bool, steps_too: bool) -> Workload:
        train = work.train
        if train is not None and steps_too:
            train = replace(train, steps=max(1, int(train.steps * factor)))
        return replace(
            work, count=max(1, int(work.count * factor)) if count_too and work.count else work.count, train=train
        )

    found = []
    for count_too, steps_too in ((True, False), (False, True), (True, True)):
        if (count_too and not work.count) or (steps_too and work.train is None):
            continue
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            fits = option("", scaled(middle, count_too, steps_too), count).fits
            low, high = (middle, high) if fits else (low, middle)
        other = scaled(low, count_too, steps_too)
        words = [f"--count {other.count}"] * count_too + [
            f"--train-steps {other.train.steps if other.train else 0}"
        ] * steps_too
        # A thousandth of a run is another run.
        if low >= 1e-3:
            found.append(option(before + " ".join(words), other, count))
    return found
