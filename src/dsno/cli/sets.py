"""Verbs about trajectories: generate them, push them somewhere, pull them from there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from tyro.conf import Positional

from dsno.cli.console import counted, launched, progress, say
from dsno.cli.teachers import Teacher, device_of, null_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from dsno.condition import Cond
    from dsno.denoise import Guided, Prediction

__all__ = ["Generate", "Pull", "Push", "prompts_by_seed"]


@dataclass(frozen=True)
class Generate(Teacher):
    """Generate a teacher's trajectories: resumable, sharded, self-describing.

    Several processes share the work: accelerate launch --multi_gpu --num_processes 2 -m dsno.cli generate ...

    In Python:

        from dsno import load_teacher
        from dsno.trajectories.generate import generate
        data = generate(load_teacher("runs/teacher"), "runs/trajectories", 20_000)
    """

    out: Path = Path("runs/trajectories")
    """Folder for the shards."""
    count: int = 20_000
    """Trajectories."""
    labels: str | None = None
    """Classes: `uniform` (each row's drawn from its seed), one label for all, or a text or .npy file of them, by seed."""
    prompts: Path | None = None
    """Text file of a text-to-image teacher's prompts, one a line, taken by turns."""
    guidance: tuple[float, ...] = ()
    """Weight of classifier-free guidance (0 is none; diffusers' scale less one), or LOW HIGH: each row's drawn from its seed."""
    null: int | None = None
    """The label that stands for no class, where the teacher does not say."""
    frames: int = 4
    """Frames to keep, at the quadratic times (1 - m/M)^2 of the phase, on cosine paths t itself; --times overrides."""
    times: tuple[float, ...] = ()
    """Times to keep, decreasing, ending with 0."""
    targets: tuple[Literal["x0", "state"], ...] = ("x0",)
    """What to store of each frame: the denoised prediction, the state, or both."""
    solver: Literal["ddim", "heun", "dpm1", "dpm2", "dpm3", "unipc2", "unipc3"] = "unipc3"
    """Solver of the probability-flow ODE."""
    steps: int = 16
    """Solver steps."""
    grid: Literal["best", "quadratic", "uniform", "even", "log-snr", "karras"] = "best"
    """Where they are; `best` tries them on 32 noises, in some 4,000 evaluations, and takes the one nearest to the fine solution."""
    batch: int = 256
    """Trajectories solved at once."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision that the network computes in; the solver keeps float32."""
    store: Literal["float16", "bfloat16", "float32"] = "float16"
    """Precision on disk."""
    channels_last: bool = False
    """Keep images channels last, which tensor cores prefer."""
    compile: bool = False
    """Compile the network: a minute at the start, faster steps."""
    shard: int = 4096
    """Trajectories per file."""
    first_seed: int = 0
    """Trajectory i starts from the noise of seed first_seed + i."""
    resume: bool = False
    """Continue what is in --out."""
    overwrite: bool = False
    """Throw away what is in --out."""

    def run(self) -> None:
        from dsno.teachers.load import check_dtype
        from dsno.trajectories.compute import Compute
        from dsno.trajectories.generate import generate, quadratic_frames

        autocast = None if self.dtype == "fp32" else check_dtype(self.dtype, device_of(self.device))
        if len(self.guidance) > 2 or any(w < 0 for w in self.guidance) or sorted(self.guidance) != [*self.guidance]:
            raise ValueError(
                f"--guidance is a weight of 0 or more, or LOW HIGH, got {' '.join(map(str, self.guidance))}"
            )
        accelerator = launched()
        teacher = self.load()
        if accelerator is not None:
            teacher.to(accelerator.device)
        label = told(self.teacher, teacher, self.labels, self.prompts, self.guidance)
        with progress() as report:
            data = generate(
                guided(self.teacher, teacher, self.guidance, self.prompts is not None, self.null),
                self.out,
                self.count,
                times=self.times or quadratic_frames(teacher.schedule, self.frames),
                solver=self.solver,
                steps=self.steps,
                grid=self.grid,
                targets=self.targets,
                label=label,
                first_seed=self.first_seed,
                batch=self.batch,
                shard=self.shard,
                dtype=getattr(torch, self.store),
                compute=Compute(autocast, self.channels_last, self.compile),
                accelerator=accelerator,
                resume=self.resume,
                overwrite=self.overwrite,
                report=report,
            )
        say(f"{len(data)} trajectories in {self.out}", f"dsno distill --teacher {self.teacher} --data {self.out}")


def guided(
    ref: str, teacher: Prediction, weights: Sequence[float], prompted: bool = False, null: int | None = None
) -> Prediction | Guided:
    """The teacher under one weight of guidance, or under one that each row is told (two); itself under none.

    Raises:
        ValueError: if it is told nothing that it could be guided by.
    """
    from dsno.denoise import Guided

    if not weights:
        return teacher
    if not teacher.classes and not prompted:
        raise ValueError(f"--guidance needs a condition, and {ref} is told none")
    absent = null_of(ref, teacher, null)
    if isinstance(absent, torch.Tensor) and (prompted or len(weights) == 2):
        # Beside a weight, or from an encoder, the condition has a name, and so has its absence.
        absent = {"text" if prompted else "label": absent}
    return Guided(teacher, absent, weights[0]) if len(weights) == 1 else Guided(teacher, absent)


def told(
    ref: str, teacher: Prediction, labels: str | None, prompts: Path | None, weights: Sequence[float] = ()
) -> Callable[[Tensor], Cond] | None:
    """The condition of each row, a function of its seed; two `weights` are the range of one more."""
    from dsno.trajectories.labels import uniform_weights

    rest: Callable[[Tensor], Cond] | None = None
    if prompts is not None:
        rest = prompts_by_seed(ref, prompts)
    elif labels is not None or teacher.classes:
        rest = _labels(labels or "uniform", teacher.classes, ref)
    if len(weights) < 2 or rest is None:
        return rest
    drawn, known = uniform_weights(*weights), rest

    def with_weights(seeds: Tensor) -> dict[str, Tensor]:
        cond = known(seeds)
        named = {"label": cond} if isinstance(cond, torch.Tensor) else dict(cond)
        return {**named, "weight": drawn(seeds)}

    return with_weights


def _labels(labels: str, classes: int | None, teacher: str) -> Callable[[Tensor], Tensor]:
    from dsno.trajectories.labels import uniform_labels

    if classes is None:
        raise ValueError(f"--labels {labels}: {teacher} has no classes")
    if labels == "uniform":
        return uniform_labels(classes)
    if labels.lstrip("-").isdigit():
        known = torch.tensor([int(labels)])
    else:
        known = _label_file(Path(labels))
    if int(known.min()) < 0 or int(known.max()) >= classes:
        bad = int(known.min()) if int(known.min()) < 0 else int(known.max())
        raise ValueError(f"label {bad} is outside the classes of {teacher}: expected 0 to {classes - 1}")
    return lambda seeds: known[seeds % len(known)]


def _label_file(path: Path) -> Tensor:
    import numpy as np

    if not path.is_file():
        raise FileNotFoundError(f"--labels {path}: expected `uniform`, a label, or a file of labels")
    try:
        read = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.loadtxt(path, dtype=np.int64, ndmin=1)
    except ValueError as error:
        raise ValueError(f"{path} is no file of labels, integers separated by white space ({error})") from None
    if read.ndim != 1 or not len(read) or read.dtype.kind not in "iu":
        raise ValueError(f"{path} must hold one integer for each seed, got {read.dtype} of shape {read.shape}")
    return torch.from_numpy(read.astype(np.int64))


def prompts_by_seed(teacher: str, path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    """The embeddings of the prompts in a file as a function of the seeds, taken by turns.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no prompt, or the teacher has no text encoder that we know.
    """
    from dsno.teachers.prompts import encode_prompts

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} of prompts, one a line")
    prompts = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"{path} holds no prompt: write one a line")
    encoded = encode_prompts(teacher, prompts)
    return lambda seeds: {name: rows[seeds % len(prompts)] for name, rows in encoded.items()}


@dataclass(frozen=True)
class Push:
    """Copy a set of trajectories to the Hub, or anywhere fsspec reaches; run again to continue.

    In Python:

        from dsno.trajectories.share import push
        push("runs/trajectories", "hf://datasets/org/name")
    """

    url: Positional[str]
    """Where to: hf://datasets/org/name, s3://bucket/name, file:///folder, ..."""
    data: Path = Path("runs/trajectories")
    """Folder of the set."""
    license: str = "unknown"
    """Its licence, for the card of a Hub repository."""
    private: bool | None = None
    """Whether a Hub repository that is created is private."""
    overwrite: bool = False
    """Replace another set there."""

    def run(self) -> None:
        from dsno.trajectories.share import push

        with progress() as report:
            url = push(
                self.data, self.url, license=self.license, private=self.private, overwrite=self.overwrite,
                progress=counted(report, "push"),
            )  # fmt: skip
        say(f"{self.data} is at {url}", f"dsno pull {self.url}")


@dataclass(frozen=True)
class Pull:
    """Copy a set of trajectories from the Hub, or anywhere fsspec reaches, and check it; run again to continue.

    In Python:

        from dsno.trajectories.share import pull
        pull("hf://datasets/org/name", "runs/trajectories")
    """

    url: Positional[str]
    """Where from: hf://datasets/org/name, s3://bucket/name, https://host/name, ..."""
    out: Path = Path("runs/trajectories")
    """Folder for it."""
    count: int | None = None
    """The first so many trajectories only, in whole files."""
    overwrite: bool = False
    """Replace another set in --out."""

    def run(self) -> None:
        from dsno.trajectories.sets import TrajectorySet
        from dsno.trajectories.share import pull

        with progress() as report:
            pull(self.url, self.out, self.count, overwrite=self.overwrite, progress=counted(report, "pull"))
        say(f"{len(TrajectorySet(self.out))} trajectories in {self.out}", f"dsno distill --data {self.out}")
