"""`dsno sample`: a student's samples in a pass or a few, or its teacher's, in few serial rounds or under a guide."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dsno.bridge.student import starts_from_pictures
from dsno.cli.bridges import SamplerName, cross_pictures, pictures_of
from dsno.cli.conditions import condition_by_seed, prompts_by_seed
from dsno.cli.console import progress, say
from dsno.cli.exact import OPTIONS, Solved, own_options, solve
from dsno.cli.options import Device, StudentFolder, Variant, device_of
from dsno.cli.pieces import BATCH, Piece, check_place, check_size, write_pieces
from dsno.cli.steering import steered, targets_by_seed
from dsno.cli.words import command, flag, refuse_others
from dsno.condition import Cond, map_cond, named
from dsno.denoise import Denoiser
from dsno.grids import even, uniform
from dsno.hub import is_hub_id
from dsno.nets.backbone import sample_shape
from dsno.parallel import EXACT, Receding, Replicas, Speculative
from dsno.runs.shipped import shipped
from dsno.seeds import noise, rows_at_once, seed_range
from dsno.solvers.chain import Chain
from dsno.solvers.named import ODESolver, Splitting, solver_named
from dsno.solvers.run import SolverSampler
from dsno.steer import TARGET
from dsno.students.files import checked_weight, notes_of, null_label
from dsno.students.origin import find_teacher, open_student, origin_of
from dsno.students.samplers import Student, sampler_of
from dsno.teachers.latents import Latents, load_decoder
from dsno.teachers.load import load_teacher
from dsno.teachers.prompts import under_guidance
from dsno.trajectories.labels import uniform_labels

__all__ = ["Sample"]

OF_BRIDGE = {
    *("bridge", "input", "calls", "samples", "sampler", "t_1", "exponent", "eta"),
    *("out", "seed", "device", "overwrite"),
}
"""The options of `sample --bridge`."""


@dataclass(frozen=True)
class Drawn:
    """Samples drawn when they are asked for, what decodes them, what is said then, and the next command, and why."""

    shape: tuple[int, ...]
    pieces: Iterable[Piece]
    latents: Latents | None
    said: Callable[[], str]
    following: str
    why: str = ""


@dataclass(frozen=True)
class Sample:
    """Draw samples and write them as a picture: a student's in one pass, with --exact the teacher's in few rounds, or
    with --bridge what a bridge makes of pictures.

    With --guide they are the teacher's, pulled towards a class by a classifier: no student and no training of either.

    In Python:

        from dsno import Chain, ParaTAA, load_student, load_teacher
        from dsno.seeds import noise, seed_range
        from dsno.grids import uniform
        z = noise(seed_range(0, 64), (1, 8, 8))
        images = load_student("runs/student").sample(z)
        teacher = load_teacher("runs/teacher")  # what `dsno teach` wrote
        exact = ParaTAA(teacher, Chain(teacher.schedule, uniform(100)))(z).sample
    """

    student: StudentFolder | None = None
    """Folder of the student; or digits, by default, or digits-classes, which ship with the package."""
    out: Path = Path("samples.png")
    """A picture of all (.png, with seeds and labels), the numbers (.npy), or a folder for a picture of each, named by
    its seed."""
    count: int = 64
    """Samples."""
    seed: int = 0
    """Sample i starts from the noise of seed + i."""
    label: int | None = None
    """The class of all samples of a class-conditional model, or that all are guided to; each one's drawn from its seed
    by default."""
    guidance: float | None = None
    """The guidance weight, of a student that is told one, or of the teacher with --exact."""
    prompts: Path | None = None
    """Text file of a text-to-image student's prompts, one a line, taken by turns; needs --teacher."""
    teacher: str | None = None
    """The teacher: solved by --exact or under --guide; of a student, a diffusers model that encodes --prompts and
    decodes latents, by default the one that its folder notes."""
    variant: Variant = None
    exact: Literal["picard", "taa", "srds", "speculative", "receding"] | None = None
    """Solve --teacher's chain of --steps exactly instead, in parallel rounds; the shipped teacher by default."""
    guide: str | None = None
    """Pull --teacher's samples towards --label: classifier:FOLDER, of what `dsno classifier` wrote; the shipped
    teacher by default."""
    scale: float | None = None
    """Scale of --guide; 1 is Bayes' rule and the default, more is sharper and less diverse."""
    solver: Literal[ODESolver, Splitting] | None = None
    """Solver under --guide; stsp4 by default, which splits the guide off."""
    steps: int | None = None
    """Steps of the chain, on a uniform grid, 100 by default; or of --solver, of equal phase, 20 by default."""
    eta: float | None = None
    """Fresh noise of the chain: 0 is DDIM, 1 DDPM's ancestral sampler; 1 for speculative, else 0 by default. Of
    --bridge that of dbim1."""
    draft: StudentFolder | None = None
    """The student that drafts the exact sampler's first guess."""
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
    """Network passes that the student was trained for (an operator's need distill --inner-starts);
    the fewest by default."""
    fresh: bool = False
    """Noise the sample again between passes, which a student does by itself that was trained to."""
    bridge: Path | None = None
    """Folder of a bridge (`dsno teach --pairs`): go from --input to its samples."""
    input: Path | None = None
    """A picture, or a folder of them, that --bridge starts from, or the student of one."""
    calls: int | None = None
    """Network calls of --bridge; 13 by default."""
    samples: int | None = None
    """Samples of each picture of --input; 4 by default."""
    sampler: SamplerName | None = None
    """How --bridge is solved behind its stochastic start; dbim2 by default."""
    t_1: float | None = None
    """Where the stochastic start of --bridge ends, in (0, 1); what suits --sampler by default."""
    exponent: float | None = None
    """Of the grid of --bridge: larger is denser towards the sample; 1.5 by default."""
    device: Device = None
    overwrite: bool = False
    """Replace --out if it exists."""

    def run(self) -> None:
        if self.bridge is not None:
            return self._of_bridge(self.bridge)
        for name in ("calls", "samples", "sampler", "t_1", "exponent"):
            if getattr(self, name) is not None:
                raise ValueError(f"{flag(name)} is an option of bridges: say which, --bridge FOLDER")
        if self.input is not None and self.exact is not None:
            raise ValueError("--input is of bridges and their students, and --exact solves teachers: leave one out")
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        inputs = (self.student, self.teacher, self.draft, self.prompts)
        check_place(self.out, self.overwrite, inputs)
        if self.guide is not None:
            drawn = self._steered(self.guide)
        else:
            drawn = self._of_student() if self.exact is None else self._of_teacher(self.exact)
        latents = drawn.latents
        if latents is None:
            check_size(self.out, self.count, drawn.shape)

        def pieces() -> Iterator[Piece]:
            for piece in drawn.pieces:
                samples = piece.samples if latents is None else latents.decode(piece.samples)
                yield replace(piece, samples=samples.clamp(-1, 1))

        write_pieces(self.out, self.count, pieces(), self.overwrite, inputs)
        say(f"{drawn.said()}: {self.out}", drawn.following, drawn.why)

    def _of_bridge(self, folder: Path) -> None:
        """What a bridge makes of pictures."""
        refuse_others(self, {field.name for field in fields(self)} - OF_BRIDGE, "does not go with --bridge")
        if self.input is None:
            raise ValueError("--bridge needs --input, the picture or the folder of pictures that it starts from")
        check_place(self.out, self.overwrite, (folder, self.input))
        samples, calls = 4 if self.samples is None else self.samples, 13 if self.calls is None else self.calls
        check_seeds(self.seed, samples)
        said = cross_pictures(
            folder,
            self.input,
            self.out,
            calls,
            samples,
            self.sampler or "dbim2",
            self.t_1,
            self.exponent,
            0.0 if self.eta is None else self.eta,
            self.seed,
            device_of(self.device),
            self.overwrite,
        )
        say(f"{said}: {self.out}", command("cite", folder))

    def _decoder(self, ref: str | None) -> Latents | None:
        """What makes pictures of the samples, if they are latents of a diffusers model."""
        known = ref is not None and (Path(ref).is_dir() or is_hub_id(ref))
        return load_decoder(ref, variant=self.variant) if known else None

    def _teacher(self, student: Student) -> str | None:
        """The teacher that was given, or else the one of diffusers that the student's folder notes: one that is here,
        or, of samples that are no pictures and need it, one on the Hub."""
        if self.teacher is not None or self.student is None or not self.student.is_dir():
            return self.teacher
        far = self.prompts is not None or student.shape[0] not in (1, 3)
        for place in origin_of(self.student).places:
            if (Path(place) / "model_index.json").is_file() or (far and not Path(place).exists() and is_hub_id(place)):
                return place
        return None

    def _of_student(self) -> Drawn:
        """A student's samples."""
        self._alone("guide", "scale", "solver")
        for name in (*OPTIONS, "draft", "eta", "limit", "steps", "null"):
            if getattr(self, name) is not None:
                raise ValueError(f"--{name} is an option of exact samplers: say which, --exact taa for example")
        device, folder = device_of(self.device), self.student or shipped() / "student"
        student = open_student(folder, self.teacher, self.variant).to(device)
        latents = self._decoder(self._teacher(student))
        sampler = sampler_of(student, self.passes, fresh=self.fresh or None)
        check_seeds(self.seed, self.count)
        # What is told a class or a weight is refused before anything is drawn.
        told = self._cond(student, seed_range(self.seed, 1), folder)
        rounds, seconds = 0, 0.0

        def pieces() -> Iterator[Piece]:
            nonlocal rounds, seconds
            for seeds in batches(self.seed, self.count, student.shape):
                cond = map_cond(lambda c: c.to(device), self._cond(student, seeds, folder))
                z = noise(seeds, student.shape, device=device)
                began = time.perf_counter()
                made = sampler(z, cond, seeds)
                samples = made.sample.cpu()
                rounds, seconds = made.rounds, seconds + time.perf_counter() - began
                yield Piece(samples, seeds, _labels(cond))

        def said() -> str:
            passes = "one pass" if rounds == 1 else f"{rounds} passes"
            return f"{self.count} samples in {passes}, {seconds:.2f} s"

        return Drawn(student.shape, pieces(), latents, said, self._following(folder, told))

    def _cond(self, student: Student, seeds: Tensor, folder: Path) -> Cond | None:
        """What the student is told.

        Raises:
            ValueError: for a label or a guidance weight that it does not know, or a weight that it lacks.
        """
        K = student.classes
        if self.label is not None and (K is None or not 0 <= self.label < K):
            expected = "it has no classes" if K is None else f"expected 0 to {K - 1}"
            raise ValueError(f"label {self.label} is outside the classes of {folder}: {expected}")
        if student.guided != (self.guidance is not None):
            wanted = "is told a guidance weight: give --guidance" if student.guided else "is told no guidance weight"
            raise ValueError(f"{folder} {wanted}")
        cond: dict[str, Tensor] = {}
        if self.prompts is not None:
            if (teacher := self._teacher(student)) is None:
                raise ValueError("--prompts needs --teacher, whose text encoder reads them")
            cond |= prompts_by_seed(teacher, self.prompts, self.variant)(seeds)
        if K is not None:
            drawn = uniform_labels(K, null_label(folder))
            cond["label"] = drawn(seeds) if self.label is None else torch.full_like(seeds, self.label)
        if starts_from_pictures(student) != (self.input is not None):
            wanted = "starts from noise alone: leave out" if self.input is not None else "starts from pictures: give"
            raise ValueError(f"{folder} {wanted} --input")
        if self.input is not None:
            start = pictures_of(self.input, folder, student.shape)
            cond["start"] = start[seeds.cpu() % len(start)]
        if self.guidance is not None:
            cond["weight"] = torch.full((len(seeds),), checked_weight(folder, self.guidance))
        return cond["label"] if [*cond] == ["label"] else cond or None

    def _following(self, folder: Path, cond: Cond | None) -> str:
        # What is told a text, starts from pictures or was steered is not measured by `evaluate`.
        if not {*named(cond)} <= {"", "label", "weight"} or "guide" in notes_of(folder):
            return command("cite", folder)
        return command("evaluate", student=self.student, guidance=self.guidance)

    def _alone(self, option: str, *others: str) -> None:
        """Refuse options that go with another one alone."""
        for name in others:
            if getattr(self, name) is not None:
                raise ValueError(f"--{name} goes with --{option}: give that, too, or leave it out")

    def _steered(self, guide: str) -> Drawn:
        """The teacher's samples under a guide."""
        for name in (*OPTIONS, "student", "exact", "draft", "eta", "limit", "passes", "guidance", "prompts", "null"):
            if getattr(self, name) is not None:
                raise ValueError(f"--{name} is no option of samples under --guide: leave one of them out")
        device = device_of(self.device)
        ref = self.teacher or str(shipped() / "teacher")
        teacher, latents = load_teacher(ref, None, device, variant=self.variant), self._decoder(self.teacher)
        condition = targets_by_seed(guide, teacher, "uniform" if self.label is None else str(self.label))
        model = steered(ref, teacher, guide, self.scale)
        grid = even(teacher.schedule, 20 if self.steps is None else self.steps)
        sampler = SolverSampler(model, teacher.schedule, grid, solver_named(self.solver or "stsp4", model))
        shape, rounds, seconds = sample_shape(teacher), 0, 0.0
        check_seeds(self.seed, self.count)

        def pieces() -> Iterator[Piece]:
            nonlocal rounds, seconds
            for seeds in batches(self.seed, self.count, shape):
                cond = map_cond(lambda c: c.to(device), condition(seeds))
                z = noise(seeds, shape, device=device)
                began = time.perf_counter()
                made = sampler(z, cond, seeds)
                samples = made.sample.cpu()
                rounds, seconds = made.rounds, seconds + time.perf_counter() - began
                yield Piece(samples, seeds, named(cond)[TARGET].cpu())

        def said() -> str:
            return f"{self.count} samples of {rounds} network calls each, scale {model.scale:g}, {seconds:.2f} s"

        return Drawn(shape, pieces(), latents, said, command("sample"), "the student's, in one pass")

    def _of_teacher(self, name: str) -> Drawn:
        """The teacher's samples by an exact sampler."""
        self._alone("guide", "scale", "solver")
        for option in ("student", "passes"):
            if getattr(self, option) is not None:
                raise ValueError(
                    f"--{option} is of a student's own samples: leave out --exact, or give the student as --draft"
                )
        kind, device = EXACT[name], device_of(self.device)
        options = own_options(name, {option: getattr(self, option) for option in OPTIONS})
        if self.draft is not None:
            options["draft"] = open_student(self.draft, variant=self.variant).to(device)
        elif kind is Receding:
            raise ValueError(
                "a receding draft needs a student: give the folder of one with inner starts, --draft FOLDER"
            )
        ref = self.teacher or (
            str(shipped() / "teacher") if self.draft is None else find_teacher(self.draft, self.variant)
        )
        teacher, latents = load_teacher(ref, None, device, variant=self.variant), self._decoder(self.teacher)
        weights = () if self.guidance is None else (self.guidance,)
        denoiser: Denoiser = under_guidance(ref, teacher, weights, self.prompts is not None, self.null, self.variant)
        if self.limit is not None or device.type != "cpu":
            # A round of an accelerator is cut where its memory ends; those of the machine share it, unless one was
            # named.
            devices = None if self.device is None and device.type != "cpu" else [device]
            denoiser = Replicas(denoiser, devices, self.limit)
        label = None if self.label is None else str(self.label)
        condition = condition_by_seed(ref, teacher, label, self.prompts, null=self.null, variant=self.variant)
        steps = 100 if self.steps is None else self.steps
        eta = float(kind is Speculative) if self.eta is None else self.eta
        sampler = kind(denoiser, Chain(teacher.schedule, uniform(steps), eta), **options)
        shape = sample_shape(teacher)
        check_seeds(self.seed, self.count)
        found: list[Solved] = []

        def pieces() -> Iterator[Piece]:
            # All at once: they are held until their errors are known.
            seeds = seed_range(self.seed, self.count)
            with progress() as report:
                found.append(solve(sampler, seeds, shape, condition, device, self.verify, report))
            yield Piece(found[0].samples, seeds, None if condition is None else _labels(condition(seeds)))

        def said() -> str:
            return f"{found[0]}\n{self.count} samples, {found[0].seconds:.2f} s"

        return Drawn(shape, pieces(), latents, said, command("sample"), "the student's, in one pass")


def batches(first: int, count: int, shape: Sequence[int]) -> Iterator[Tensor]:
    """The seeds of so many samples, as many at once as are drawn in one batch."""
    rows = max(64, min(BATCH, rows_at_once(math.prod(shape))))
    for done in range(0, count, rows):
        yield seed_range(first + done, min(rows, count - done))


def check_seeds(seed: int, count: int) -> None:
    """Refuse seeds that are none, before any work."""
    for name, number in (("seed", seed), ("count", count), ("seed", seed + count)):
        if not 0 <= number < 2**63:
            raise ValueError(f"{name} must be an integer in [0, 2^63), got {number}")


def _labels(cond: Cond | None) -> Tensor | None:
    """The labels of a condition, on the host, if they are all of it or have a name."""
    given = named(cond)
    label = given.get("label", given.get(""))
    return None if label is None or label.ndim != 1 or label.is_floating_point() else label.cpu()
