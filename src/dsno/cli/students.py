"""Verbs about students: distil one, draw from it, measure it, take it elsewhere."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from dsno.cli.console import launched, progress, say, show
from dsno.cli.sets import prompts_by_seed
from dsno.cli.teachers import device_of, new_file, null_of
from dsno.train import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

    from dsno.condition import Cond
    from dsno.denoise import Denoiser, Prediction
    from dsno.students.samplers import Student
    from dsno.trajectories.sets import TrajectorySet

__all__ = ["Demo", "Distill", "Evaluate", "Export", "Sample"]


EXACT_OPTIONS = ("tolerance", "window", "order", "memory", "blocks")
"""What `sample` passes on to an exact sampler."""


@dataclass(frozen=True)
class Distill:
    """Distil a teacher into a student of one pass or a few: by --method, which `dsno methods` lists.

    Options of frames and weights are of the operator; other methods refuse what they do not take.

    In Python:

        from dsno import load_teacher, student_from_teacher
        from dsno.distillation.run import distill
        from dsno.trajectories.sets import TrajectorySet
        data = TrajectorySet("runs/trajectories")
        distill(student_from_teacher(load_teacher("runs/teacher"), data.times), data, "runs/student")
    """

    teacher: str = "runs/teacher"
    """The teacher the student starts from (by every method, of data alone too), as `generate --teacher` takes it."""
    data: str = "runs/trajectories"
    """Folder of its trajectories, or where they were pushed to (hf://datasets/org/name, ...): fetched as they are needed. Of
    a method that needs samples: their ends, or an image set as `teach --data`."""
    out: Path = Path("runs/student")
    """Folder for the student."""
    method: Literal[
        "operator", "knowledge", "matching", "progressive", "guided", "consistency", "consistency-training",
        "easy-consistency", "continuous-consistency", "lagrangian", "eulerian", "progressive-map", "shortcut", "meanflow",
        "direct",
    ] = "operator"  # fmt: skip
    """How to train it, and so what it needs and how many passes it makes: `dsno methods`."""
    target: Literal["x0", "state"] = "x0"
    """What the frames are trained on."""
    times: tuple[float, ...] = ()
    """The student's frames: some of the stored times; all by default. Fewer cost less, and often the sample is as good."""
    weights: str = "snr5"
    """Frame weighting: snr (the paper's), snr<clamp>, uniform, last."""
    distance: str | None = None
    """Distance of the loss: l1, l2, huber, perceptual, or a sum such as l1+perceptual; by default l1, of consistency its own."""
    features: Path | None = None
    """Folder of the feature network of a perceptual distance (not the one that quality is measured in)."""
    where: Literal["every", "low", "mid", "none"] = "mid"
    """Blocks with temporal layers: every one as in the paper, those below the highest resolution, the middle, none."""
    told: Literal["output", "input"] = "input"
    """The time a frame's blocks are told: its own as in the paper, or the noise's, where the student starts as the teacher."""
    once: bool = True
    """Run the blocks before the first temporal layer once per sample."""
    modes: int | None = None
    """Fourier modes in time, at most M // 2 + 1 of M frames; 2 by default."""
    others: float | None = None
    """Supervise the last frame in every step and one other in this share of them, instead of all: cheaper steps."""
    train_only: Literal["all", "temporal"] = "all"
    """Train everything, or only what was added to the teacher's network."""
    inner_starts: float = 0.0
    """Share of steps started from a stored state instead of noise (needs targets x0 and state): for `sample --passes`."""
    size: int | None = None
    """Resize the images of --data to this many pixels a side."""
    passes: int | None = None
    """What the student is to make, of a method that is trained for one number of passes; 1 by default."""
    guidance: tuple[float, float] | None = None
    """Range of guidance weights, LOW HIGH, of the method guided; 0 4 by default."""
    null: int | None = None
    """The label that stands for no class, of the method guided, where the teacher does not say."""
    from_data: bool = False
    """Learn the velocity of the data, not the teacher's: of shortcut, meanflow, continuous-consistency."""
    stochastic: bool = False
    """Train for `dsno.distillation.guided.stochastic_sampler`, too: of progressive, guided."""
    derivative: Literal["forward", "difference", "upwind"] | None = None
    """How a loss takes derivatives of the student: along the flow `upwind` by default, else in forward mode, or by central
    differences where a layer has none."""
    batch: int | None = None
    """Rows per step; 256 of trajectories, else the method's own."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=4000, lr=1e-3))
    resume: bool = False
    """Continue from the last checkpoint in --out."""
    overwrite: bool = False
    """Throw away what is in --out."""

    def run(self) -> None:
        from dsno.cli.methods import (
            check_options,
            distill_method,
            frames_of,
            holds_trajectories,
            next_sample,
            weight_of,
        )
        from dsno.distillation.registry import METHODS
        from dsno.distillation.run import distill
        from dsno.nets.features import load_feature_net
        from dsno.students.operator import student_from_teacher
        from dsno.teachers.load import load_teacher
        from dsno.trajectories.sets import TrajectorySet

        if self.method not in ("operator", "knowledge"):
            return distill_method(self)
        method, single = METHODS[self.method], self.method == "knowledge"
        check_options(self, method)
        method.check_options(1 if self.passes is None else self.passes, (0, 1))
        method.check_data(holds_trajectories(self.data), self.data)
        data, teacher = TrajectorySet(self.data), load_teacher(self.teacher)
        data = data.at(data.times[-1:]) if single else frames_of(data, self.times)
        data.check_teacher(as_generated(data, teacher, self.teacher))
        weight = weight_of(data)
        torch.manual_seed(self.train.seed)
        student = student_from_teacher(
            teacher, data.times, self.target, self.modes, "none" if single else self.where, self.once, told=self.told,
            guidance=weight is not None, train_only=self.train_only,
        )  # fmt: skip
        with progress() as report:
            distill(
                student, data, self.out, self.train, self.weights, self.distance or "l1", self.batch or 256, self.others,
                self.inner_starts, None if self.features is None else load_feature_net(self.features), self.resume,
                self.overwrite, report,
            )  # fmt: skip
        say(f"student in {self.out}", next_sample(self.out, weight))


def as_generated(data: TrajectorySet, teacher: Prediction, ref: str) -> Denoiser:
    """The teacher, guided as it was when the set was made."""
    from dsno.denoise import Guided

    found = data.manifest["teacher"]
    if found["class"] != "Guided":
        return teacher
    null = found["null"]
    if isinstance(null, int):
        return Guided(teacher, torch.tensor(null), found["weight"])
    if isinstance(null, dict) and isinstance(null.get("label"), int):
        return Guided(teacher, {"label": torch.tensor(null["label"])}, found["weight"])
    given = null_of(ref, teacher, None)
    return Guided(teacher, {"text": given} if isinstance(given, torch.Tensor) else given, found["weight"])


@dataclass(frozen=True)
class Sample:
    """Draw samples and write them as a picture: a student's in one pass, or with --exact the teacher's in few rounds.

    In Python:

        from dsno import Chain, ParaTAA, load_student, load_teacher
        from dsno.seeds import noise, seed_range
        from dsno.grids import uniform
        z = noise(seed_range(0, 64), (1, 8, 8))
        images = load_student("runs/student").sample(z)
        teacher = load_teacher("runs/teacher")  # what `dsno teach` wrote
        exact = ParaTAA(teacher, Chain(teacher.schedule, uniform(100)))(z).sample
    """

    student: Path | None = None
    """Folder of the student; the digits student that ships with the package by default."""
    out: Path = Path("samples.png")
    """The picture."""
    count: int = 64
    """Samples."""
    seed: int = 0
    """Sample i starts from the noise of seed + i."""
    label: int | None = None
    """The class of all samples of a class-conditional model; each one's drawn from its seed by default."""
    guidance: float | None = None
    """The guidance weight, of a student that is told one, or of the teacher with --exact."""
    prompts: Path | None = None
    """Text file of a text-to-image student's prompts, one a line, taken by turns; needs --teacher."""
    teacher: str | None = None
    """The teacher: solved by --exact; of a student, a diffusers model that encodes --prompts and decodes latents."""
    exact: Literal["picard", "taa", "srds", "speculative", "receding"] | None = None
    """Solve --teacher's chain of --steps exactly instead, in parallel rounds; the shipped teacher by default."""
    steps: int | None = None
    """Steps of the chain, on a uniform grid; 100 by default."""
    eta: float | None = None
    """Fresh noise of the chain: 0 is DDIM, 1 DDPM's ancestral sampler; 1 for speculative, else 0 by default."""
    draft: str | None = None
    """Folder of a student that drafts the exact sampler's first guess, or `shipped`."""
    tolerance: float | None = None
    """Error of a sample to the chain that is aimed at, RMS over pixels (srds: summed changes); 1e-3 by default."""
    window: int | None = None
    """Steps in a round: of picard, taa, receding (all by default), speculative (20)."""
    order: int | None = None
    """Order of taa, 1 to --steps; --steps by default."""
    memory: int | None = None
    """Iterates that taa combines; 2 by default, 1 for none."""
    blocks: int | None = None
    """Blocks of srds; about the root of --steps by default."""
    limit: int | None = None
    """Most rows of one network call of an exact sampler: a round that has more is cut."""
    verify: bool = True
    """Run the exact sampler's chain sequentially, too, and report the difference."""
    null: int | None = None
    """The label that stands for no class under --guidance, where the teacher does not say."""
    passes: int | None = None
    """Network passes that the student was trained for (an operator's need distill --inner-starts); the fewest by default."""
    fresh: bool = False
    """Noise the sample again between passes, instead of going on from the student's own state."""
    device: str | None = None
    """Where to run it; the accelerator if there is one, else the CPU."""
    overwrite: bool = False
    """Replace --out if it exists."""

    def run(self) -> None:
        from dsno.checkpoint import write_atomically
        from dsno.condition import map_cond
        from dsno.report.pictures import image_grid
        from dsno.runs.shipped import shipped
        from dsno.seeds import noise, seed_range
        from dsno.students.files import load_any
        from dsno.students.samplers import sampler_of

        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        new_file(self.out, self.overwrite)
        if self.exact is not None:
            from dsno.cli.exact import sample_exactly

            return sample_exactly(self)
        if foreign := [
            name
            for name in (*EXACT_OPTIONS, "draft", "eta", "limit", "steps", "null")
            if getattr(self, name) is not None
        ]:
            raise ValueError(f"--{foreign[0]} is an option of exact samplers: say which, --exact taa for example")
        device = device_of(self.device)
        folder = self.student or shipped() / "student"
        student = load_any(folder).to(device)
        sampler = sampler_of(student, self.passes, fresh=self.fresh)
        seeds = seed_range(self.seed, self.count)
        cond = map_cond(lambda c: c.to(device), self._told(student, seeds, folder))
        z = noise(seeds, student.shape, device=device)
        began = time.perf_counter()
        made = sampler(z, cond, seeds)
        samples = made.sample.cpu()
        seconds = time.perf_counter() - began
        png = image_grid(self.decoded(samples).clamp(-1, 1))
        write_atomically(self.out, lambda path: path.write_bytes(png))
        given = {name: folder.parent / name for name in ("teacher", "features")} | {"student": folder}
        options = [f"--{name} {path}" for name, path in given.items() if self.student is not None and path.is_dir()]
        passes = "one pass" if made.rounds == 1 else f"{made.rounds} passes"
        # What is told a class or a weight is not measured by `evaluate`.
        after = " ".join(["dsno evaluate", *options]) if cond is None else f"dsno cite {folder}"
        say(f"{self.count} samples in {passes}, {seconds:.2f} s: {self.out}", after)

    def _told(self, student: Student, seeds: Tensor, folder: Path) -> Cond | None:
        from dsno.checkpoint import CONFIG, read_json
        from dsno.trajectories.labels import uniform_labels

        K = student.classes
        if self.label is not None and (K is None or not 0 <= self.label < K):
            expected = "it has no classes" if K is None else f"expected 0 to {K - 1}"
            raise ValueError(f"label {self.label} is outside the classes of {folder}: {expected}")
        if student.guided != (self.guidance is not None):
            wanted = "is told a guidance weight: give --guidance" if student.guided else "is told no guidance weight"
            raise ValueError(f"{folder} {wanted}")
        told: dict[str, Tensor] = {}
        if self.prompts is not None:
            if self.teacher is None:
                raise ValueError("--prompts needs --teacher, whose text encoder reads them")
            told |= prompts_by_seed(self.teacher, self.prompts)(seeds)
        if K is not None:
            told["label"] = uniform_labels(K)(seeds) if self.label is None else torch.full_like(seeds, self.label)
        if self.guidance is not None:
            low, high = read_json(folder / CONFIG).get("notes", {}).get("guidance", (0.0, math.inf))
            if not (low <= self.guidance <= high and math.isfinite(self.guidance)):
                expected = f"{low:g} to {high:g}" if high < math.inf else "0 or more"
                raise ValueError(
                    f"{folder} was not trained for the guidance weight {self.guidance:g}: expected {expected}"
                )
            told["weight"] = torch.full((len(seeds),), self.guidance)
        return told["label"] if [*told] == ["label"] else told or None

    def decoded(self, samples: Tensor) -> Tensor:
        if self.teacher is None:
            return samples
        from dsno.teachers.latents import load_decoder

        latents = load_decoder(self.teacher)
        return samples if latents is None else latents.decode(samples)


@dataclass(frozen=True)
class Export:
    """Write the one-pass sampler as ONNX or as a torch.export program, checked against the student.

    In Python:

        from dsno import load_student
        from dsno.app.export import export_onnx, export_program
        student = load_student("runs/student")
        export_onnx(student, "runs/student.onnx")
        export_program(student, "runs/student.pt2")
    """

    student: Path | None = None
    """Folder of the student; the digits student that ships with the package by default."""
    out: Path = Path("student.onnx")
    """The file: .onnx, or .pt2 for torch.export; a .json beside it says what it takes."""
    batch: int = 2
    """Batch to trace with, and the only one allowed if --no-dynamic."""
    dynamic: bool = True
    """Allow any batch."""
    tolerance: float = 1e-3
    """Largest difference from the student, relative to its largest value."""
    overwrite: bool = False
    """Replace --out if it exists."""

    def run(self) -> None:
        from dsno.app.export import export_onnx, export_program
        from dsno.runs.shipped import shipped
        from dsno.students.files import load_any

        writers = {".onnx": export_onnx, ".pt2": export_program}
        if self.out.suffix not in writers:
            raise ValueError(f"{self.out} is neither .onnx nor .pt2: the name says what is written")
        new_file(self.out, self.overwrite)
        student = load_any(self.student or shipped() / "student")
        writers[self.out.suffix](student, self.out, self.batch, dynamic=self.dynamic, tolerance=self.tolerance)
        say(f"sampler in {self.out}, described in {self.out.with_suffix('.json')}", "dsno sample")


@dataclass(frozen=True)
class Evaluate:
    """Measure a student beside its teacher's solvers, with the protocol stored next to every number.

    In Python:

        from dsno.report.compare import compare
        results = compare("runs/teacher", "runs/student", "runs/features", "digits", count=2048)
    """

    student: Path | None = None
    """Folder of the student; the shipped one by default."""
    teacher: str | None = None
    """Its teacher, as `generate --teacher` takes it; the shipped one by default."""
    features: Path | None = None
    """Folder of the feature network; the shipped one by default."""
    data: str = "digits"
    """Image set to compare with."""
    size: int | None = None
    """Resize its images to this many pixels a side."""
    count: int = 2048
    """Held-out noises."""
    passes: tuple[int, ...] = ()
    """Passes to measure the student at, a row each; the fewest it was trained for by default."""
    fresh: bool = False
    """Noise the sample again between passes, instead of going on from the student's own state."""
    out: Path = Path("runs/evaluation")
    """Folder for results.json and report.html."""
    overwrite: bool = False
    """Throw away what is in --out."""

    def run(self) -> None:
        from dsno.checkpoint import prepare_folder
        from dsno.data.load import load_data
        from dsno.report.compare import compare
        from dsno.runs.shipped import shipped
        from dsno.students.files import load_any

        folder = self.student or shipped() / "student"
        student = load_any(folder)
        if student.classes or student.guided:
            told = " and ".join(["a class"] * bool(student.classes) + ["a guidance weight"] * student.guided)
            raise ValueError(
                f"{folder} is told {told}, and evaluate measures unconditional students: look at its samples (`dsno sample "
                f"--student {folder}`), or call dsno.measure.evaluate.evaluate with a condition (`cond`)"
            )
        accelerator = launched()
        if accelerator is None or accelerator.is_main_process:
            prepare_folder(self.out, overwrite=self.overwrite)
        data = load_data(self.data, size=self.size)
        with progress() as report:
            results = compare(
                self.teacher or shipped() / "teacher", folder,
                self.features or shipped() / "features", data, self.count, self.out, report, accelerator=accelerator,
                passes=self.passes, fresh=self.fresh,
            )  # fmt: skip
        if accelerator is None or accelerator.is_main_process:
            show(results)
            print(f"numbers in {self.out / 'results.json'}, pictures in {self.out / 'report.html'}")


@dataclass(frozen=True)
class Demo:
    """The shipped digits student beside its teacher: a table, and report.html to look at.

    In Python:

        from dsno.runs.shipped import shipped
        from dsno.report.compare import compare
        w = shipped("digits")
        compare(w / "teacher", w / "student", w / "features", "digits", count=320, page="report.html")
    """

    out: Path = Path("report.html")
    """The report."""
    count: int = 320
    """Noises."""

    def run(self) -> None:
        from dsno.checkpoint import prepare_folder
        from dsno.report.compare import compare
        from dsno.runs.shipped import shipped

        folder = shipped()
        prepare_folder(self.out.parent, resume=True)
        with progress() as report:
            results = compare(
                folder / "teacher",
                folder / "student",
                folder / "features",
                "digits",
                self.count,
                None,
                report,
                self.out,
            )
        show(results)
        say(f"report: {self.out.resolve()}", "dsno reproduce digits   (trains all of this from nothing, resumable)")
