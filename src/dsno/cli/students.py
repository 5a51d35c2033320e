"""Verbs about students: draw from it, measure it, take it elsewhere."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from dsno.cli.console import launched, progress, say, show
from dsno.cli.sets import prompts_by_seed
from dsno.cli.teachers import device_of, new_file

if TYPE_CHECKING:
    from torch import Tensor

    from dsno.condition import Cond
    from dsno.students.samplers import Student

__all__ = ["Demo", "Evaluate", "Export", "Sample"]


EXACT_OPTIONS = ("tolerance", "window", "order", "memory", "blocks")
"""What `sample` passes on to an exact sampler."""


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
        from dsno.students.files import load_student
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
        student = load_student(folder).to(device)
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
        from dsno.students.files import load_student

        writers = {".onnx": export_onnx, ".pt2": export_program}
        if self.out.suffix not in writers:
            raise ValueError(f"{self.out} is neither .onnx nor .pt2: the name says what is written")
        new_file(self.out, self.overwrite)
        student = load_student(self.student or shipped() / "student")
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
        from dsno.students.files import load_student

        folder = self.student or shipped() / "student"
        student = load_student(folder)
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
