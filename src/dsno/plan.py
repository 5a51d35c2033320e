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
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from dsno.denoise import Cond, Prediction
from dsno.metrics import flops, timed
from dsno.parallel.devices import Live
from dsno.solve import SOLVERS
from dsno.students.flowmap import TrajectoryStudent, student_from_teacher
from dsno.teachers.native import sample_shape
from dsno.teachers.nets import Backbone, example
from dsno.train import TrainConfig

__all__ = ["Option", "Plan", "Stage", "Workload", "plan"]

BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
HOUR = 3600.0


@dataclass(frozen=True)
class Workload:
    """What a run consists of, as far as its cost goes.

    Attributes:
        name: Of the run.
        teacher: Makes the teacher; its weights do not matter, and it is called under the meta device, too.
        times: The times of the M frames.
        count: Trajectories; 0 where they exist already.
        solver: The solver that makes them, a name of `SOLVERS`.
        steps: Its steps.
        guided: Whether the teacher is guided: two rows for one.
        batch: Trajectories solved at once.
        targets: What is stored of each frame.
        stored: The dtype it is stored in.
        student: Arguments of `student_from_teacher` but for the teacher and the times.
        train: How the student is trained; None where none is.
        train_batch: Trajectories per step.
        others: As in `TrajectoryDistillation`.
        teach: How the teacher is trained; None where it is given.
        teach_batch: Samples per step of that.
    """

    name: str
    teacher: Callable[[], Prediction]
    times: tuple[float, ...] = (0.5625, 0.25, 0.0625, 0.0)
    count: int = 20_000
    solver: str = "unipc3"
    steps: int = 16
    guided: bool = False
    batch: int = 256
    targets: tuple[str, ...] = ("x0",)
    stored: Literal["float16", "bfloat16", "float32"] = "float16"
    student: Mapping[str, Any] = field(default_factory=dict)
    train: TrainConfig | None = field(default_factory=TrainConfig)
    train_batch: int = 256
    others: float | None = None
    teach: TrainConfig | None = None
    teach_batch: int = 128

    def __post_init__(self) -> None:
        for name in ("batch", "train_batch", "teach_batch", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.count < 0 or not self.times:
            raise ValueError(f"a run has 0 or more trajectories of 1 or more frames, got {self.count} of {self.times}")
        if self.solver not in SOLVERS:
            raise ValueError(f"unknown solver {self.solver!r}: expected one of {', '.join(SOLVERS)}")

    @property
    def evaluations(self) -> int:
        """Rows that the teacher evaluates for one trajectory: 2 n - 1 for Heun's, else n; twice that if guided."""
        return (2 * self.steps - 1 if self.solver == "heun" else self.steps) * (2 if self.guided else 1)

    def trajectory_bytes(self, shape: tuple[int, ...], classes: int | None) -> int:
        """One trajectory on disk: seed, noise, the frames, and a label or weight of 8 and 4 bytes."""
        numbers = math.prod(shape) * (1 + len(self.targets) * len(self.times))
        return 8 + BYTES[self.stored] * numbers + (8 if classes else 0) + (4 if self.guided else 0)


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


# Counting


def _arguments(teacher: Prediction, rows: int, like: Tensor) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Cond]:
    """State, time and condition of a call, all zeros but for the time."""
    if isinstance(teacher.net, Backbone):
        x, t, *cond = example(teacher.net, like, rows)
    else:
        x, t = like.new_zeros(rows, *sample_shape(teacher)), like.new_zeros(rows)
        cond = [torch.zeros(rows, dtype=torch.int64, device=like.device)] if teacher.classes else []
    return (x, t + 0.5, *cond)  # type: ignore[return-value]


def _like(module: nn.Module) -> Tensor:
    return next(module.parameters(), torch.zeros(1))


@dataclass(frozen=True)
class _Count:
    """Of one row: the work of an evaluation, of a sample in a mean step and in the widest, and bytes; and the weights."""

    evaluation: float
    solving: int
    teaching: int
    teacher_weights: int
    sample: float = 0.0
    widest: float = 0.0
    training: int = 0
    student_weights: int = 0
    trained: int = 0


def _count(work: Workload, teacher: Prediction) -> _Count:
    arguments = _arguments(teacher, 1, _like(teacher))

    def call() -> Tensor:
        return teacher(*arguments)

    weights = sum(p.numel() for p in teacher.parameters())
    count = _Count(_work(teacher, arguments), _peak(call), _saved(teacher, call), weights)
    return _count_student(work, teacher, count, memory=True)


def _count_student(work: Workload, teacher: Prediction, count: _Count, memory: bool = False) -> _Count:
    """`count` with the student of `work`; its memory takes one more pass."""
    if work.train is None:
        return count
    student = _student(work, teacher)
    x, _, *cond = _arguments(teacher, 1, _like(teacher))
    told = _weighted(cond[0] if cond else None, work, x)
    shares, selections = zip(*_selections(work), strict=True)
    works = [_work(student, (x, told, 1.0, select)) for select in selections]
    return replace(
        count,
        sample=sum(share * flop for share, flop in zip(shares, works, strict=True)),
        widest=works[-1],
        training=_saved(student, lambda: student(x, told, 1.0, selections[-1])) if memory else count.training,
        student_weights=sum(p.numel() for p in student.parameters()),
        trained=sum(p.numel() for p in student.parameters() if p.requires_grad),
    )


def _student(work: Workload, teacher: Prediction) -> TrajectoryStudent:
    return student_from_teacher(teacher, work.times, **work.student)


def _weighted(cond: Cond | None, work: Workload, x: Tensor) -> Cond | None:
    """The condition of a student that is told the guidance weight."""
    if not work.student.get("guidance"):
        return cond
    named = {} if cond is None else {"label": cond} if isinstance(cond, Tensor) else dict(cond)
    return {**named, "weight": x.new_zeros(len(x))}


def _selections(work: Workload) -> list[tuple[float, tuple[int, ...]]]:
    """The frames that a step supervises, with the share of the steps that do."""
    M = len(work.times)
    if work.others is None or M == 1:
        return [(1.0, tuple(range(M)))]
    return [(1 - work.others, (M - 1,)), (work.others, (0, M - 1))]


@torch.no_grad()
def _work(module: nn.Module, arguments: tuple[Any, ...]) -> float:
    return float(flops(module, *arguments))


def _saved(module: nn.Module, call: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward one, weights left out."""
    own = {p.untyped_storage()._cdata for p in [*module.parameters(), *module.buffers()]}
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        kept.setdefault(x.untyped_storage()._cdata, x)
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        output = call()
    del output
    return sum(x.untyped_storage().nbytes() for key, x in kept.items() if key not in own)


@torch.no_grad()
def _peak(call: Callable[[], Tensor]) -> int:
    with Live() as live:
        call()
    return live.peak


# Measuring


@dataclass(frozen=True)
class _Rate:
    """Seconds of a floating-point operation of one stage, and how that was found."""

    seconds: float
    how: str


class _Bench:
    """A machine on which calls are timed for a few seconds."""

    def __init__(self, device: torch.device, patience: float) -> None:
        self.device, self.patience = device, patience
        x, conv = torch.randn(8, 128, 16, 16, device=device), nn.Conv2d(128, 128, 3, padding=1).to(device)
        with torch.no_grad():
            conv(x)
            self.probe = timed(lambda: [conv(x) for _ in range(3)])[1] / (3 * 2 * 8 * 256 * 128 * 128 * 9)

    def room(self) -> float:
        """Bytes to work in: half of what is free."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0] / 2
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
        except (ValueError, OSError, AttributeError):
            return 4e9

    def rows(self, wanted: int, flop: float, row_bytes: float, fixed_bytes: float) -> int:
        """How many rows of the run's batch can be tried twice."""
        quick = self.patience / (2 * max(flop, 1.0) * self.probe)
        held = (self.room() - fixed_bytes) / max(row_bytes, 1.0)
        most = int(min(quick, held, wanted))
        return most if most in (0, wanted) else 2 ** int(math.log2(most))

    def __call__(self, make: Callable[[], Callable[[int], object]], wanted: int, flop: float, rows: int) -> _Rate:
        """`flop` is of one row; `make` builds what is called with a number of rows."""
        if rows == 0:
            return _Rate(
                self.probe, f"the rate of a convolution here, {1e-9 / self.probe:.3g} GFLOP/s: one row is too much"
            )
        call = make()
        call(rows)
        seconds = timed(call, rows)[1]
        how = f"measured, {seconds:.2g} s for {rows} rows" + (f" (of {wanted})" if rows < wanted else "")
        return _Rate(seconds / (max(flop, 1.0) * rows), how)


def _autocast(device: torch.device, precision: str) -> Any:
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, dtypes[precision]) if precision in dtypes else nullcontext()


def _solving(teacher: Prediction, device: torch.device, precision: str = "no") -> Callable[[int], object]:
    teacher = teacher.to(device).eval()

    def call(rows: int) -> object:
        with torch.no_grad(), _autocast(device, precision):
            return teacher(*_arguments(teacher, rows, _like(teacher)))

    return call


def _training(
    module: nn.Module, arguments: Callable[[int], tuple[Any, ...]], device: torch.device, precision: str
) -> Callable[[int], object]:
    module.train()

    def call(rows: int) -> None:
        with _autocast(device, precision):
            output = module(*arguments(rows))
        output.float().square().mean().backward()
        module.zero_grad(set_to_none=True)

    return call


def _teaching(teacher: Prediction, device: torch.device, precision: str) -> Callable[[int], object]:
    teacher = teacher.to(device).requires_grad_()
    return _training(teacher, lambda rows: _arguments(teacher, rows, _like(teacher)), device, precision)


def _distilling(work: Workload, teacher: Prediction, device: torch.device, precision: str) -> Callable[[int], object]:
    student = _student(work, teacher).to(device)
    select = _selections(work)[-1][1]

    def arguments(rows: int) -> tuple[Any, ...]:
        x, _, *cond = _arguments(teacher, rows, _like(student))
        return x, _weighted(cond[0] if cond else None, work, x), 1.0, select

    return _training(student, arguments, device, precision)


# The plan


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
    count = _count(work, meta)
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
    return made if _like(made).is_meta else copy.deepcopy(made).to("meta")


def _own(work: Workload) -> Prediction:
    """A teacher with memory, of any weights."""
    return copy.deepcopy(work.teacher())


def _measure(work: Workload, count: _Count, device: torch.device, seconds: float) -> dict[str, _Rate]:
    stages = {"teach": work.teach, "generate": work.count, "distill": work.train}
    bench = _Bench(device, seconds / max(sum(bool(s) for s in stages.values()), 1))
    rates: dict[str, _Rate] = {}
    if work.count:
        wanted = work.batch * (2 if work.guided else 1)
        rows = bench.rows(wanted, count.evaluation, count.solving, 4 * count.teacher_weights)
        rates["generate"] = bench(lambda: _solving(_own(work), device), wanted, count.evaluation, rows)
    if work.teach is not None:
        precision, flop = work.teach.precision, 3 * count.evaluation
        rows = bench.rows(work.teach_batch, flop, count.teaching, 8 * count.teacher_weights)
        rates["teach"] = bench(lambda: _teaching(_own(work), device, precision), work.teach_batch, flop, rows)
    if work.train is not None:
        precision = work.train.precision
        # The widest kind of step, whose work per row is known.
        flop = 3 * count.widest
        rows = bench.rows(work.train_batch, flop, count.training, 4 * (count.student_weights + 2 * count.trained))
        rates["distill"] = bench(
            lambda: _distilling(work, _own(work), device, precision), work.train_batch, flop, rows
        )  # fmt: skip
    # A row that was tried beats a convolution that is none of its own.
    known = [r for r in rates.values() if r.how.startswith("measured")]
    if known:
        for name, rate in rates.items():
            if rate not in known:
                rates[name] = _Rate(known[0].seconds, f"the rate of the call that was {known[0].how}")
    return rates


def _stages(
    work: Workload,
    count: _Count,
    rates: Mapping[str, _Rate],
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


# What to change


def _options(
    work: Workload,
    meta: Prediction,
    count: _Count,
    rates: Mapping[str, _Rate],
    devices: int,
    budget: float | None,
    total: float,
) -> list[Option]:
    def hours(other: Workload, counted: _Count) -> float:
        return sum(s.hours for s in _stages(other, counted, rates, devices, sample_shape(meta), meta.classes))

    def option(change: str, other: Workload, counted: _Count) -> Option:
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
                    _count_student(other, meta, count),
                )
            )
            cheap = replace(cheap, student=other.student)
        if work.others is None:
            other = replace(work, others=0.25)
            found.append(
                option(
                    "--others 0.25: one other frame in a quarter of the steps",
                    other,
                    _count_student(other, meta, count),
                )
            )
            cheap = replace(cheap, others=0.25)
        counted = _count_student(cheap, meta, count)
    if len(found) > 1:
        found.append(option("all of these", cheap, counted))
    found = [o for o in found if o.hours < 0.98 * total]
    if budget is not None and total > budget:
        found += _fitting(work, option, "", count)
        if found and not found[-1].fits:
            found += _fitting(cheap, option, "all of these, and ", counted)
    return sorted(found, key=lambda o: not o.fits)


def _fitting(
    work: Workload, option: Callable[[str, Workload, _Count], Option], before: str, count: _Count
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
