"""The command line: a thin shell over the library. `dsno VERB --help` teaches each verb."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from tyro.conf import Positional

from dsno.train import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dsno import schedule
    from dsno.evaluate import Result
    from dsno.recipes import Report

__all__ = ["main"]


@contextmanager
def progress() -> Iterator[Report]:
    """Progress bars, one per stage, with rate and estimate; plain lines where the output is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True, quiet=not _speaks(), soft_wrap=True)
    tasks: dict[str, object] = {}
    began: dict[str, tuple[float, int]] = {}
    printed: dict[str, float] = {}
    bar = Progress(
        TextColumn("{task.description:<10}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"), console=console, disable=not console.is_terminal,
    )  # fmt: skip

    def report(stage: str, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        first, at = began.setdefault(stage, (now, done))
        rate = (done - at) / (now - first) if now > first else 0.0
        shown = f"{rate:.1f}/s" if rate else ""
        if done == 0 and text:
            console.print(f"{stage}: {text}")
        if console.is_terminal:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total, rate="", text="")
            bar.update(tasks[stage], completed=done, rate=shown, text="" if done == 0 else text)  # type: ignore[arg-type]
        elif done and (done == total or now - printed.get(stage, 0.0) > 10):
            printed[stage] = now
            left = f"{(total - done) / rate:.0f} s left" if rate else ""
            console.print(" ".join(filter(None, (f"{stage} {done}/{total}", shown, left, text))))

    with bar:
        yield report


def show(results: Sequence[Result]) -> None:
    """Print results as a table; the best of each column are bold."""
    from rich.console import Console
    from rich.table import Table

    from dsno.evaluate import best, table

    rows, winners = table(results), best(results)
    titles = (key.replace(" ", "\n") for key in rows[0])
    printed = Table(*titles, box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for row in rows:
        printed.add_row(*(f"[bold]{v}[/]" if row["name"] in winners.get(k, ()) else v for k, v in row.items()))
    # Squeezed into a narrow terminal or a pipe the columns would lose their digits.
    Console(width=200).print(printed)


class Verb(Protocol):
    """A subcommand: its fields are its options."""

    def run(self) -> None: ...


def _speaks() -> bool:
    """Whether this is the first of the processes that `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def _say(done: str, after: str) -> None:
    if _speaks():
        print(f"{done}\nnext: {after}")


@dataclass(frozen=True)
class Teach:
    """Train a small diffusion teacher on an image set.

    In Python:

        from dsno.data import load_images
        from dsno.recipes import teach
        from dsno.train import TrainConfig
        teacher = teach(load_images("digits"), "runs/teacher", config=TrainConfig(steps=5000, lr=1e-3))
    """

    data: str = "digits"
    """Image set: digits, a folder of PNG or JPEG files, an .npy or .npz array, or an idx file."""
    out: Path = Path("runs/teacher")
    """Folder for the teacher."""
    channels: tuple[int, ...] = (32, 64)
    """U-Net widths, highest resolution first; each level halves the image."""
    kind: Literal["x0", "eps", "v", "flow"] = "v"
    """What the network predicts."""
    schedule: Literal["cosine", "flow", "linear"] = "cosine"
    """Noise schedule: the paper's cosine, rectified flow, or DDPM's linear beta."""
    conditional: bool = False
    """Train on the labels too."""
    batch: int = 128
    """Images per step."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=5000, lr=1e-3, warmup=200))
    resume: bool = False
    """Continue from the last checkpoint in --out."""
    overwrite: bool = False
    """Throw away what is in --out."""

    def run(self) -> None:
        from dsno import schedule
        from dsno.data import load_images
        from dsno.recipes import teach

        path: dict[str, Callable[[], schedule.Schedule]] = {
            "cosine": schedule.Cosine, "flow": schedule.RectifiedFlow, "linear": schedule.linear_beta
        }  # fmt: skip
        images = load_images(self.data)
        with progress() as report:
            teach(
                images, self.out, self.channels, self.train, self.batch, self.kind, path[self.schedule](),
                self.conditional, self.resume, self.overwrite, report,
            )  # fmt: skip
        _say(f"teacher in {self.out}", f"dsno generate --teacher {self.out}")


@dataclass(frozen=True)
class Generate:
    """Generate a teacher's trajectories: resumable, sharded, self-describing.

    Several processes share the work: accelerate launch --multi_gpu --num_processes 2 -m dsno.cli generate ...

    In Python:

        from dsno import load_teacher, schedule
        from dsno.recipes import make_trajectories
        times = schedule.quadratic(4)[1:]
        data = make_trajectories(load_teacher("runs/teacher"), (1, 8, 8), "runs/trajectories", 20_000, times)
    """

    teacher: Path = Path("runs/teacher")
    """Folder of the teacher."""
    out: Path = Path("runs/trajectories")
    """Folder for the shards."""
    count: int = 20_000
    """Trajectories."""
    frames: int = 4
    """Frames to keep, at the quadratic times (1 - m/M)^2; --times overrides."""
    times: tuple[float, ...] = ()
    """Times to keep, decreasing, ending with 0."""
    targets: tuple[Literal["x0", "state"], ...] = ("x0",)
    """What to store of each frame: the denoised prediction, the state, or both."""
    solver: Literal["ddim", "heun", "dpm1", "dpm2", "dpm3", "unipc2", "unipc3"] = "unipc3"
    """Solver of the probability-flow ODE."""
    steps: int = 16
    """Solver steps."""
    batch: int = 256
    """Trajectories solved at once."""
    shard: int = 4096
    """Trajectories per file."""
    first_seed: int = 0
    """Trajectory i starts from the noise of seed first_seed + i."""
    resume: bool = False
    """Continue what is in --out."""
    overwrite: bool = False
    """Throw away what is in --out."""

    def run(self) -> None:
        from dsno import schedule
        from dsno.recipes import make_trajectories
        from dsno.teachers.load import load_teacher
        from dsno.teachers.native import sample_shape

        accelerator = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator

            accelerator = Accelerator(cpu=not torch.cuda.is_available())
        teacher = load_teacher(self.teacher)
        times = torch.tensor(self.times, dtype=torch.float64) if self.times else schedule.quadratic(self.frames)[1:]
        with progress() as report:
            data = make_trajectories(
                teacher, sample_shape(teacher), self.out, self.count, times, self.targets, self.solver, self.steps,
                self.resume, self.overwrite, report, batch=self.batch, shard=self.shard, first_seed=self.first_seed,
                accelerator=accelerator,
            )  # fmt: skip
        _say(f"{len(data)} trajectories in {self.out}", f"dsno distill --teacher {self.teacher} --data {self.out}")


@dataclass(frozen=True)
class Distill:
    """Distil a teacher's trajectories into a one-pass student.

    In Python:

        from dsno import load_teacher, student_from_teacher
        from dsno.recipes import distill
        from dsno.store import TrajectorySet
        data = TrajectorySet("runs/trajectories")
        distill(student_from_teacher(load_teacher("runs/teacher"), data.times), data, "runs/student")
    """

    teacher: Path = Path("runs/teacher")
    """Folder of the teacher the student starts from."""
    data: Path = Path("runs/trajectories")
    """Folder of its trajectories."""
    out: Path = Path("runs/student")
    """Folder for the student."""
    target: Literal["x0", "state"] = "x0"
    """What the frames are trained on."""
    weights: str = "snr5"
    """Frame weighting: snr (the paper's), snr<clamp>, uniform, last."""
    distance: str = "l1"
    """Distance of the loss: l1, l2, huber, perceptual, or a sum such as l1+perceptual."""
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
    inner_starts: float = 0.0
    """Share of steps started from a stored state instead of noise (needs targets x0 and state)."""
    batch: int = 256
    """Trajectories per step."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=4000, lr=1e-3))
    resume: bool = False
    """Continue from the last checkpoint in --out."""
    overwrite: bool = False
    """Throw away what is in --out."""

    def run(self) -> None:
        from dsno.metrics import load_feature_net
        from dsno.recipes import distill
        from dsno.store import TrajectorySet
        from dsno.students.flowmap import student_from_teacher
        from dsno.teachers.load import load_teacher

        data, teacher = TrajectorySet(self.data), load_teacher(self.teacher)
        data.check_teacher(teacher)
        torch.manual_seed(self.train.seed)
        student = student_from_teacher(
            teacher, data.times, self.target, self.modes, self.where, self.once, told=self.told
        )
        with progress() as report:
            distill(
                student, data, self.out, self.train, self.weights, self.distance, self.batch, self.others,
                self.inner_starts, None if self.features is None else load_feature_net(self.features), self.resume,
                self.overwrite, report,
            )  # fmt: skip
        _say(f"student in {self.out}", f"dsno sample --student {self.out}")


@dataclass(frozen=True)
class Sample:
    """Draw samples in one forward pass and write them as a picture.

    In Python:

        from dsno import load_student
        from dsno.noise import noise, seed_range
        student = load_student("runs/student")
        images = student.sample(noise(seed_range(0, 64), (1, 8, 8)))
    """

    student: Path | None = None
    """Folder of the student; the digits student that ships with the package by default."""
    out: Path = Path("samples.png")
    """The picture."""
    count: int = 64
    """Samples."""
    seed: int = 0
    """Sample i starts from the noise of seed + i."""
    overwrite: bool = False
    """Replace --out if it exists."""

    def run(self) -> None:
        from dsno.checkpoint import prepare_folder, write_atomically
        from dsno.noise import noise, seed_range
        from dsno.recipes import shipped
        from dsno.report import image_grid
        from dsno.students.flowmap import load_student

        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        if self.out.exists() and not self.overwrite:
            raise FileExistsError(f"{self.out} exists already: pass --overwrite to replace it")
        prepare_folder(self.out.parent, resume=True)
        folder = self.student or shipped() / "student"
        student = load_student(folder).eval()
        z = noise(seed_range(self.seed, self.count), student.shape)
        began = time.perf_counter()
        images = student.sample(z)
        seconds = time.perf_counter() - began
        png = image_grid(images.clamp(-1, 1))
        write_atomically(self.out, lambda path: path.write_bytes(png))
        given = {name: folder.parent / name for name in ("teacher", "features")} | {"student": folder}
        options = [f"--{name} {path}" for name, path in given.items() if self.student is not None and path.is_dir()]
        _say(f"{self.count} samples in one pass, {seconds:.2f} s: {self.out}", " ".join(["dsno evaluate", *options]))


@dataclass(frozen=True)
class Evaluate:
    """Measure a student beside its teacher's solvers, with the protocol stored next to every number.

    In Python:

        from dsno.report import compare
        results = compare("runs/teacher", "runs/student", "runs/features", "digits", count=2048)
    """

    student: Path | None = None
    """Folder of the student; the shipped one by default."""
    teacher: Path | None = None
    """Folder of its teacher; the shipped one by default."""
    features: Path | None = None
    """Folder of the feature network; the shipped one by default."""
    data: str = "digits"
    """Image set to compare with."""
    count: int = 2048
    """Held-out noises."""
    out: Path = Path("runs/evaluation")
    """Folder for results.json and report.html."""
    overwrite: bool = False
    """Throw away what is in --out."""

    def run(self) -> None:
        from dsno.checkpoint import prepare_folder
        from dsno.recipes import shipped
        from dsno.report import compare

        prepare_folder(self.out, overwrite=self.overwrite)
        with progress() as report:
            results = compare(
                self.teacher or shipped() / "teacher", self.student or shipped() / "student",
                self.features or shipped() / "features", self.data, self.count, self.out, report,
            )  # fmt: skip
        show(results)
        print(f"numbers in {self.out / 'results.json'}, pictures in {self.out / 'report.html'}")


@dataclass(frozen=True)
class Demo:
    """The shipped digits student beside its teacher: a table, and report.html to look at.

    In Python:

        from dsno.recipes import shipped
        from dsno.report import compare
        w = shipped("digits")
        compare(w / "teacher", w / "student", w / "features", "digits", count=320, page="report.html")
    """

    out: Path = Path("report.html")
    """The report."""
    count: int = 320
    """Noises."""

    def run(self) -> None:
        from dsno.checkpoint import prepare_folder
        from dsno.recipes import shipped
        from dsno.report import compare

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
        _say(f"report: {self.out.resolve()}", "dsno reproduce digits   (trains all of this from nothing, resumable)")


@dataclass(frozen=True)
class Reproduce:
    """Run a recipe from nothing: the pipeline that made the shipped weights. Run again to continue."""

    recipe: Positional[Literal["digits"]] = "digits"
    """Which recipe."""
    out: Path = Path("runs/digits")
    """Folder for every stage."""

    def run(self) -> None:
        from dsno.recipes import DigitsRecipe
        from dsno.report import compare

        began = time.perf_counter()
        with progress() as report:
            out = DigitsRecipe().run(self.out, report)
            results = compare(
                out / "teacher", out / "student", out / "features", "digits", 2048, out / "evaluation", report
            )
        show(results)
        minutes = (time.perf_counter() - began) / 60
        page = out / "evaluation" / "report.html"
        _say(f"{minutes:.1f} minutes; report: {page}", f"dsno sample --student {out / 'student'}")


def main() -> None:
    """Entry point: expected failures are one line on stderr and exit code 2."""
    import tyro

    verbs: tuple[type[Verb], ...] = (Demo, Teach, Generate, Distill, Sample, Evaluate, Reproduce)
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        # The overview shows a line per verb; each verb's own help shows all of its text.
        verbs = tuple(type(v.__name__, (v,), {"__doc__": (v.__doc__ or "").splitlines()[0]}) for v in verbs)
    commands: dict[str, Callable[..., Verb]] = {verb.__name__.lower(): verb for verb in verbs}
    chosen = tyro.extras.subcommand_cli_from_dict(commands, prog="dsno", description=__doc__)
    try:
        chosen.run()
    except (ValueError, OSError, FloatingPointError) as error:
        print("dsno:", *str(error).splitlines(), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ndsno: stopped; run the same command again, with --resume where it has one", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
