r"""What a run will cost, before it is started: evaluations, arithmetic, bytes, memory, hours, and what to change.

A run has up to four stages. With $F_D$ the floating-point operations of the teacher on one row, $F_G$ those of the
student's pass on one sample (all the frames that a step supervises), $N$ trajectories of $n$ evaluations, $K$ steps of
batch $B$, and a backward pass taken for two forward ones,

| stage | work | CIFAR-10 as published |
|---|---|---|
| teach | $3 F_D B_T K_T$ | (given) |
| generate | $F_D \, n N$ | $3.6 \cdot 10^{10} \times 512 \times 1.024 \cdot 10^6 = 1.9 \cdot 10^{19}$ |
| distill, start | $3 F_G B K$ | $3 \times 1.5 \cdot 10^{11} \times 256 \times 4 \cdot 10^5 = 4.7 \cdot 10^{19}$ |
| finish | $((3 + p) F_G + 7 F_D) B_F K_F$: the denoiser of the samples, and through it and the teacher | (none) |

In a finish a share $p$ of the rows starts from the student's samples, noised again. Of a learned start $F_G$ is what a
training step does on a sample: the predictor, the critic and the frozen teacher, whose backward pass is taken for two
forward ones, too, although no weight of it gets a gradient.

The operations are counted (`dsno.runs.counts`), and hours are operations times the seconds that one of them takes here
(`dsno.runs.bench`). What is left out is small beside these: the optimiser, reading and writing, and the features of a
perceptual distance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from dsno.config import settled
from dsno.denoise import Prediction
from dsno.runs.bench import BACKWARD, Rate, measure_rates
from dsno.runs.counts import Count, count_run, count_student, teacher_to_count
from dsno.runs.workload import Workload
from dsno.train import TrainConfig

__all__ = ["Alternative", "Estimate", "StageCost", "plan", "stage_costs"]

HOUR = 3600.0


@dataclass(frozen=True)
class StageCost:
    """What one stage costs.

    Attributes:
        name: `teach`, `generate`, `distill` or `start`, and `finish`.
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
class Alternative:
    """A change, the hours of the whole run with it, and whether that is within the budget."""

    change: str
    hours: float
    fits: bool


@dataclass(frozen=True)
class Estimate:
    """What `plan` found; prints as a page, and `to_dict` is JSON-able.

    Attributes:
        name: Of the run.
        device: Where it would run.
        per_evaluation: FLOP of an evaluation of the teacher.
        per_sample: FLOP of a student's pass on a sample, in the mean over the kinds of training steps.
        stages: What each stage costs.
        alternatives: What would make the run cheaper, those that fit the budget first.
        budget_hours: What the run may take, or None.
        precision: What it would be trained in, where the run leaves that open, and why, in words.
    """

    name: str
    device: str
    per_evaluation: float
    per_sample: float
    stages: tuple[StageCost, ...]
    alternatives: tuple[Alternative, ...]
    budget_hours: float | None = None
    precision: str = ""

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
        """The estimate in a line."""
        text = f"{self.name} on {self.device}: {_hours(self.hours)}, {self.flop:.2g} FLOP, {_bytes(self.disk)} on disk"
        if self.budget_hours is None:
            return text
        text += f"; {'within' if self.fits else 'over'} the budget of {_hours(self.budget_hours)}"
        if self.fits or any(a.fits for a in self.alternatives):
            return text
        return f"{text}, and so is all that could be changed"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "name": self.name,
            "device": self.device,
            "hours": self.hours,
            "flop": self.flop,
            "disk_bytes": self.disk,
            "flop_per_evaluation": self.per_evaluation,
            "flop_per_sample": self.per_sample,
            "budget_hours": self.budget_hours,
            "fits": self.fits,
            "precision": self.precision,
            "stages": [asdict(s) for s in self.stages],
            "options": [asdict(a) for a in self.alternatives],
        }

    def rows(self) -> list[dict[str, str]]:
        """The stages as a table of words."""
        return [
            {
                "stage": s.name,
                "evaluations": f"{s.evaluations:,}",
                "FLOP": f"{s.flop:.2g}",
                "memory": _bytes(s.memory),
                "on disk": _bytes(s.disk) if s.disk else "",
                "time": _hours(s.hours),
                "known from": s.how,
            }
            for s in self.stages
        ]

    def choices(self) -> list[dict[str, str]]:
        """The alternatives as a table of words."""
        rows = [{"change": a.change, "whole run": _hours(a.hours)} for a in self.alternatives]
        if self.budget_hours is None:
            return rows
        return [{**row, "fits": "yes" if a.fits else "no"} for row, a in zip(rows, self.alternatives, strict=True)]

    def __str__(self) -> str:
        lines = ["  ".join(filter(None, row.values())) for row in self.rows()]
        for a in self.alternatives:
            fits = " (fits)" if a.fits and self.budget_hours is not None else ""
            lines.append(f"  {a.change}: {_hours(a.hours)}{fits}")
        return "\n".join([*lines, *filter(None, [self.precision]), self.summary])


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
) -> Estimate:
    """Count a run and measure this machine for a few seconds; nothing is written and nothing is started.

    Arguments:
        work: The run; recipes give theirs by `workload()`.
        budget_hours: What it may take; the alternatives then say what fits.
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
    work, said = _settled(work, where)
    teacher = teacher_to_count(work)
    count = count_run(work, teacher)
    with torch.random.fork_rng():
        rates = measure_rates(work, count, where, seconds)
    stages = stage_costs(work, count, rates, devices)
    alternatives = _alternatives(work, teacher, count, _Prices(rates, devices, budget_hours))
    name = f"{devices} x {where}" if devices > 1 else str(where)
    return Estimate(
        work.name, name, count.evaluation, count.sample, tuple(stages), tuple(alternatives), budget_hours, said
    )


def _settled(work: Workload, device: torch.device) -> tuple[Workload, str]:
    """The run in the precision that it would be trained in, and what is said of that."""
    own = (work.teach, work.train, work.finish)
    (teach, a), (train, b), (finish, c) = ((None, "") if one is None else settled(one, device) for one in own)
    return replace(work, teach=teach, train=train, finish=finish), a or b or c


def stage_costs(work: Workload, count: Count, rates: Mapping[str, Rate], devices: int = 1) -> list[StageCost]:
    """What the stages of a run cost, from its counts and the rate of each stage."""

    def cost(
        name: str, evaluations: float, flop: float, memory: float, disk: float, measured: str | None = None
    ) -> StageCost:
        rate = rates[measured or name]
        hours = flop * rate.seconds / devices / HOUR
        return StageCost(name, int(evaluations), flop, int(memory), int(disk), hours, rate.how)

    def training(weights: int, trained: int, kept: int, batch: int, config: TrainConfig) -> float:
        """Bytes: weights, gradients, two moments and the average in float32, and what is kept of a device's rows."""
        half = 0.5 if config.precision != "no" else 1.0
        return 4 * (weights + 4 * trained) + half * kept * batch / devices

    stages = []
    weights = count.teacher_weights
    if work.teach is not None:
        images = work.teach.steps * work.teach.accumulate * work.teach_batch
        memory = training(weights, weights, count.teaching, work.teach_batch, work.teach)
        stages.append(cost("teach", images, BACKWARD * count.evaluation * images, memory, 4 * weights))
    if work.count:
        evaluations = work.count * work.evaluations
        # A solver keeps four states of a row, in float32, beside the network.
        memory = 4 * weights + work.batch * work.pairs * (count.solving + 4 * 4 * math.prod(count.shape))
        disk = work.count * work.trajectory_bytes(count.shape, count.classes)
        stages.append(cost("generate", evaluations, count.evaluation * evaluations, memory, disk))
    if work.train is not None:
        samples = work.train.steps * work.train.accumulate * work.train_batch
        memory = training(count.student_weights, count.trained, count.training, work.train_batch, work.train)
        disk = 4 * count.written
        stages.append(cost(work.trains, samples, BACKWARD * count.sample * samples, memory, disk))
    if work.finish is not None:
        noises = work.finish.steps * work.finish.accumulate * work.finish_batch
        # The denoiser of the samples is trained, and differentiated in its input as the teacher is.
        calls = BACKWARD + 2 * (1 + work.pairs)
        flop = ((BACKWARD + work.finish_inner) * count.sample + calls * count.evaluation) * noises
        held = count.training + 3 * count.teaching * work.pairs
        denoisers = (2 if work.finish_inner else 1) * weights
        trained = count.trained + denoisers
        memory = training(count.student_weights + weights + denoisers, trained, held, work.finish_batch, work.finish)
        stages.append(cost("finish", noises, flop, memory, 4 * count.written, work.trains))
    return stages


@dataclass(frozen=True)
class _Prices:
    """What the hours of any run follow from, and the budget that they are held against."""

    rates: Mapping[str, Rate]
    devices: int
    budget: float | None

    def hours(self, work: Workload, count: Count) -> float:
        return sum(stage.hours for stage in stage_costs(work, count, self.rates, self.devices))

    def alternative(self, change: str, work: Workload, count: Count) -> Alternative:
        hours = self.hours(work, count)
        return Alternative(change, hours, self.budget is None or hours <= self.budget)


def _alternatives(work: Workload, teacher: Prediction, count: Count, prices: _Prices) -> list[Alternative]:
    """Cheaper settings, alone and together, and the sizes that fit the budget; what fits first."""
    found: list[Alternative] = []
    cheap, cheap_count, total = work, count, prices.hours(work, count)
    if work.count and work.evaluations > 32:
        cheap = replace(cheap, solver="unipc3", steps=16)
        change = f"--solver unipc3 --steps 16 instead of {work.solver} {work.steps}"
        found.append(prices.alternative(change, cheap, count))
    if work.train is not None and len(work.times) > 1:
        lean = {"where": "mid", "once": True, "told": "input"}
        if any(work.student.get(k, v) != v for k, v in lean.items()):
            other = replace(work, student={**work.student, **lean})
            change = "--where mid --once --told input: frames in the middle only"
            found.append(prices.alternative(change, other, count_student(other, teacher, count)))
            cheap = replace(cheap, student=other.student)
        if work.others is None:
            other = replace(work, others=0.25)
            change = "--others 0.25: one other frame in a quarter of the steps"
            found.append(prices.alternative(change, other, count_student(other, teacher, count)))
            cheap = replace(cheap, others=0.25)
        cheap_count = count_student(cheap, teacher, count)
    if len(found) > 1:
        found.append(prices.alternative("all of these", cheap, cheap_count))
    found = [a for a in found if a.hours < 0.98 * total]
    if prices.budget is not None and total > prices.budget:
        found += _fitting(work, count, prices)
        if found and not found[-1].fits:
            found += _fitting(cheap, cheap_count, prices, "all of these, and ")
    return sorted(found, key=lambda a: not a.fits)


def _fitting(work: Workload, count: Count, prices: _Prices, before: str = "") -> list[Alternative]:
    """The largest numbers of trajectories, or of steps, or of both by the same factor, that fit."""

    def scaled(factor: float, count_too: bool, steps_too: bool) -> Workload:
        other = work
        if count_too and work.count:
            other = replace(other, count=max(1, int(work.count * factor)))
        if steps_too and work.train is not None:
            other = replace(other, train=replace(work.train, steps=max(1, int(work.train.steps * factor))))
        return other

    found = []
    for count_too, steps_too in ((True, False), (False, True), (True, True)):
        if (count_too and not work.count) or (steps_too and work.train is None):
            continue
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            fits = prices.alternative("", scaled(middle, count_too, steps_too), count).fits
            low, high = (middle, high) if fits else (low, middle)
        other = scaled(low, count_too, steps_too)
        words = [f"--count {other.count}"] * count_too
        if steps_too and other.train is not None:
            words.append(f"--train-steps {other.train.steps}")
        # A thousandth of a run is another run.
        if low >= 1e-3:
            found.append(prices.alternative(before + " ".join(words), other, count))
    return found
