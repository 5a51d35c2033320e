"""`dsno restore`: the user's pictures, restored by a teacher that was never trained for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tyro.conf import Positional

from dsno.cli.conditions import prompts_by_seed
from dsno.cli.console import progress, say, say_aside
from dsno.cli.frozen import Frozen, is_student, load_frozen
from dsno.cli.options import Device, TeacherRef, Variant, device_of
from dsno.cli.problems import OF_PROBLEM, ProblemName, stated
from dsno.cli.words import command
from dsno.condition import Cond
from dsno.data.originals import read_originals
from dsno.denoise import Guided, Prediction
from dsno.grids import uniform
from dsno.inverse.colours import ColourFix
from dsno.inverse.named import restorer_named, usual
from dsno.inverse.restore import Restorer
from dsno.inverse.start import LearnedStart, OneJump
from dsno.inverse.start_net import NoisePredictor, load_start, start_grid
from dsno.nets.backbone import own_null
from dsno.outputs import check_apart
from dsno.runs.restore import restore
from dsno.runs.start import fingerprint, problem_of
from dsno.runs.task import Task, Worker
from dsno.seeds import seed_range
from dsno.teachers.prompts import under_guidance

__all__ = ["Restore"]


@dataclass(frozen=True)
class Restore:
    """Restore pictures with a teacher that was never trained for it: fill, enlarge, deblur, or colour them.

    Pictures larger than the teacher's are restored in tiles that agree at every step. With --degrade clean pictures are
    measured first, and the restorations compared with them.

    In Python:

        from dsno import load_teacher, noise, seed_range
        from dsno.data.originals import as_png, read_original
        from dsno.grids import uniform
        from dsno.inverse.named import RESTORERS
        from dsno.inverse.operators import Mask
        teacher, seeds, problem = load_teacher("digits"), seed_range(0, 8), Mask.half((1, 8, 8))
        y, z = problem.A(read_original("digit.png").x.expand(8, 1, 8, 8)), noise(seeds, (1, 8, 8))
        made = RESTORERS["diffpir"](uniform(50))(teacher, teacher.schedule, problem, y, z, seeds=seeds)
        mean, spread = as_png(made.x.mean(0)), made.x.std(0)
    """

    pictures: Positional[str]
    """A folder of pictures, a picture, or an .npy array of them: as they were measured, or clean with --degrade."""
    teacher: TeacherRef = "digits"
    variant: Variant = None
    problem: ProblemName = "inpaint"
    """What happened to them: parts are missing, pixels are (super), they are blurred by a kernel that is known (deblur)
    or not (blind), or have lost their colour."""
    method: str | None = None
    """How to restore, a name that `dsno methods` lists. By default diffpir, which is the quickest; of a teacher of
    latents constrained, of a blind problem blind, and start with --start."""
    start: Path | None = None
    """The folder of a learned start (`teach --start`), which was trained for this problem and this teacher, or for the
    student that --teacher names instead."""
    mask: Path | None = None
    """Of inpaint: a picture, white where they are seen and black where not, or an .npy array of 1 and 0."""
    box: float | None = None
    """Of inpaint: a box in the middle is missing, this share of each side."""
    half: Literal["right", "bottom"] | None = None
    """Of inpaint: this half is missing."""
    random: float | None = None
    """Of inpaint: this share of the pixels is missing, which ones --seed says."""
    factor: int | None = None
    """Of super: how many times more pixels a side is to have; 4 by default."""
    resize: Literal["average", "bicubic"] | None = None
    """Of super: how the pixels were lost, as means of blocks (by default) or by bicubic resizing."""
    kernel: Path | None = None
    """Of deblur: the kernel, an .npy array (h, w); of blind the one that --degrade blurs by."""
    kernel_size: int | None = None
    """Of blind: the side of the kernel that is looked for, odd; 9 by default, and that of --kernel if there is one."""
    border: Literal["circular", "zero"] | None = None
    """Of deblur: what was beyond the border, the other side (by default) or a middle grey."""
    noise: float = 0.0
    """The standard deviation of the noise in what was measured, of pixels in [-1, 1]: 0.05 is 6 of 255 levels. Of a
    blind problem it is estimated, if it is not stated."""
    samples: int = 1
    """Restorations of each picture: of several their mean and spread are written, too."""
    seed: int = 0
    """Sample j of each picture starts from the noise of seed + j."""
    steps: int | None = None
    """Steps from noise to picture, on a uniform grid; 50 by default. From a learned start 1 to 5, 1 by default."""
    colour_fix: ColourFix | None = None
    """Give the restorations the colours of what was measured: its low frequencies (wavelet), or the mean and the
    deviation of each channel (moments). Of super, deblur and blind: of the others it does not say the colours."""
    reference: str | None = None
    """Pictures of the same names, as they should come out, to measure with."""
    degrade: bool = False
    """The pictures are clean: apply the problem to them first, noise and all."""
    label: int | None = None
    """The class of the pictures, for a class-conditional teacher."""
    prompts: Path | None = None
    """Text file of what a text-to-image teacher is told of each picture, one a line."""
    guidance: float | None = None
    """The guidance weight, with --label or --prompts."""
    out: Path = Path("runs/restored")
    """Folder for the pictures, restored.json and report.html."""
    device: Device = None
    overwrite: bool = False
    """Replace the restorations in --out."""

    def run(self) -> None:
        seed_range(self.seed, max(1, self.samples))
        given = {name: getattr(self, name) for names in OF_PROBLEM.values() for name in names}
        problem = stated(self.problem, self.noise, self.seed, self.degrade, given)
        inputs = (self.pictures, self.teacher, self.reference, self.prompts, self.start, *problem.inputs)
        check_apart(self.out, *inputs)
        if self.degrade and self.reference is not None:
            raise ValueError("--degrade takes the pictures themselves for references: leave out --reference")
        net = self._start()
        if self.method is not None and net is None:
            restorer_named(self.method, self.problem)
        pictures = read_originals(self.pictures)
        references = None if self.reference is None else {o.name: o.x for o in read_originals(self.reference)}
        device = device_of(self.device)
        if net is None and is_student(self.teacher):
            raise ValueError(f"{self.teacher} is a student, which restores from a learned start: give --start FOLDER")
        model = load_frozen(self.teacher, device, self.variant)
        latents = model.latents
        name = self.method or usual(self.problem, latents is not None)
        steps = self.steps if self.steps is not None else 50
        if net is None:
            method = restorer_named(name, self.problem, self.noise)
        else:
            name, steps = "start", self.steps if self.steps is not None else 1
            method = starting(net.to(device), model, steps)
        condition = self._condition(model)
        denoiser = self._guided(model.denoiser).requires_grad_(False)
        worker = Worker(denoiser, model.schedule, model.shape, method, steps, latents, device, self.colour_fix)
        task = Task(
            pictures,
            problem.of,
            problem.whole,
            problem.measure if self.degrade else None,
            references,
            self.samples,
            self.seed,
            condition,
            array=Path(self.pictures).suffix == ".npy",
        )
        if self.start is not None:
            self._check_problem(self.start, worker, task)
        elif latents is not None:
            say_aside(f"{self.teacher} makes latents: the problem is seen, and differentiated, through its decoder")
        notes = {
            "teacher": self.teacher,
            "kind": model.kind,
            "method": name,
            "guidance": self.guidance,
            "problem": {"name": self.problem, "noise": self.noise, **problem.options},
        }
        with progress() as report:
            held = restore(worker, task, self.out, notes, self.overwrite, inputs, report)
        say(summary(held, self.out), command("cite", self.out))

    def _start(self) -> NoisePredictor | None:
        """The learned start, if one is to be used.

        Raises:
            ValueError: if another method is asked for, or this one without it, or a problem that nobody knows.
        """
        if self.start is None:
            if self.method == "start":
                raise ValueError("--method start needs --start FOLDER, what train_start wrote for this problem")
            return None
        if self.method not in (None, "start"):
            raise ValueError(f"--start is of the method start, and this one is {self.method}: leave one of them out")
        if self.problem == "blind":
            raise ValueError("a learned start knows its problem, and this one is blind: leave --start out")
        return load_start(self.start)

    def _check_problem(self, start: Path, worker: Worker, task: Task) -> None:
        """Say so, if a start was trained for another problem than that of the first picture."""
        trained, asked = problem_of(start), fingerprint(worker.stated(task.problem(task.shape(task.pictures[0]))))
        if trained not in (None, asked):
            say_aside(f"{start} was trained for {trained}, and this is {asked}: it does not know what was measured")

    def _guided(self, model: Prediction | OneJump) -> Prediction | Guided | OneJump:
        """The model under --guidance, where there is one.

        Raises:
            ValueError: for a student; as `under_guidance` does.
        """
        weights = () if self.guidance is None else (self.guidance,)
        if isinstance(model, Prediction):
            return under_guidance(self.teacher, model, weights, self.prompts is not None, variant=self.variant)
        if weights:
            raise ValueError(f"{self.teacher} is a student, which a guidance was distilled into: leave --guidance out")
        return model

    def _condition(self, model: Frozen) -> Callable[[Tensor], Cond] | None:
        """What the teacher is told of pictures, by their numbers.

        Raises:
            ValueError: if it has to be told something that was not given, or was given something that it is not told.
        """
        if self.prompts is not None:
            return prompts_by_seed(self.teacher, self.prompts, self.variant)
        if self.label is not None:
            if not 0 <= self.label < (model.classes or 0):
                known = f"expected 0 to {model.classes - 1}" if model.classes else "it has no classes"
                raise ValueError(f"label {self.label} is outside the classes of {self.teacher}: {known}")
            label = self.label
            return lambda numbers: torch.full_like(numbers, label)
        if self.guidance is not None:
            raise ValueError("--guidance leads towards what the teacher is told: give --label or --prompts, too")
        if model.tokens:
            raise ValueError(f"{self.teacher} is told a text: give --prompts, a file with a line for each picture")
        if not model.classes:
            return None
        null = own_null(model.denoiser) if isinstance(model.denoiser, Prediction) else None
        if null is None:
            raise ValueError(f"{self.teacher} is told a class: give that of the pictures, --label")
        return lambda numbers: torch.full_like(numbers, null)


def starting(net: NoisePredictor, model: Frozen, steps: int) -> Callable[[Tensor], Restorer]:
    """What makes the restorer of a grid from a learned start: with as many steps as the grid has, on its own times; of
    a student that starts from noise alone with one.

    Raises:
        ValueError: for a start that was trained for samples of another shape, or a number of steps that it does not
            take.
    """
    if net.shape != model.shape:
        raise ValueError(f"this start was trained for samples {net.shape}, and the teacher makes {model.shape}")
    if isinstance(model.denoiser, OneJump) and model.denoiser.from_noise:
        if steps != 1:
            raise ValueError(f"steps must be 1: this student starts from noise alone, in one pass, got {steps}")
        return lambda grid: LearnedStart(uniform(1), net)
    most = max(net.phases)
    start_grid(model.schedule, steps, most)  # refused before anything is restored
    return lambda grid: LearnedStart(start_grid(model.schedule, len(grid) - 1, most), net)


def summary(held: dict[str, object], out: Path) -> str:
    """What was done, how good it is, and where it lies."""
    rows, cost, median = (held[name] for name in ("pictures", "cost", "median"))
    assert isinstance(rows, list) and isinstance(cost, dict) and isinstance(median, dict)
    samples = sum(len(row["seeds"]) for row in rows)
    said = [f"residual {median['residual']:.3g}"]
    if "psnr" in median:
        said.append(f"PSNR {median['psnr']:.2f} dB (input {median.get('psnr_of_input', float('inf')):.2f})")
    if "psnr_of_mean" in median:
        said.append(f"of the mean {median['psnr_of_mean']:.2f}")
    return (
        f"restored {_counted(len(rows), 'picture')}, {_counted(samples, 'sample')}, in {cost['seconds']:.1f} s, "
        f"{cost['rounds']} calls and "
        f"{cost['vjps']} vjps; median {', '.join(said)}\n"
        f"pictures and numbers in {out}, beside each other in {out / 'report.html'}"
    )


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
