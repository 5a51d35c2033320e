"""Named experiments, from nothing to a report, as data.

A recipe is a dataclass: its fields are the whole configuration, and running it twice is running it once. Every stage
has a folder of its own and is skipped when that folder is complete; an interrupted stage continues where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsno import schedule
from dsno.checkpoint import prepare_folder, read_json, write_json
from dsno.data import Images, check_images, load_images
from dsno.denoise import Kind, Prediction
from dsno.distill.denoising import Denoising
from dsno.distill.trajectory import TrajectoryDistillation
from dsno.distill.trajectory import distance as named_distance
from dsno.metrics import FeatureNet, load_feature_net, save_feature_net
from dsno.solve import SOLVERS, SolverSampler
from dsno.store import TrajectorySet, generate
from dsno.students.flowmap import Target, TrajectoryStudent, save_student, student_from_teacher
from dsno.students.lift import Where
from dsno.teachers.load import load_teacher
from dsno.teachers.native import save_teacher
from dsno.teachers.unet import UNet
from dsno.train import TrainConfig, train

__all__ = ["DigitsRecipe", "Report", "distill", "make_trajectories", "shipped", "teach"]

log = logging.getLogger(__name__)

Report = Callable[[str, int, int, str], None]
"""Progress of a stage: `report(stage, done, total, text)`."""


def _quiet(stage: str, done: int, total: int, text: str) -> None:
    log.debug("%s %d/%d %s", stage, done, total, text)


@dataclass(frozen=True)
class DigitsRecipe:
    """DSNO on the 8x8 digits: the pipeline that makes the weights shipped with the package."""

    seed: int = 0
    """Seed of every stage."""
    channels: tuple[int, ...] = (32, 64)
    """Widths of the teacher's U-Net."""
    teach: TrainConfig = field(
        default_factory=lambda: TrainConfig(steps=3000, lr=1e-3, warmup=200, precision="bf16", checkpoint_every=250)
    )
    """Training of the teacher (v-prediction, cosine schedule)."""
    teach_batch: int = 128
    """Images per step of the teacher."""
    features_steps: int = 800
    """Training steps of the feature network that the quality is measured in."""
    count: int = 32_768
    """Trajectories."""
    solver: str = "unipc3"
    """Solver that makes them."""
    solver_steps: int = 16
    """Its steps."""
    frames: int = 4
    """Frames of the student; their times are quadratic, (1 - m/M)^2."""
    where: Where = "mid"
    """Blocks with temporal layers."""
    once: bool = True
    """Run the blocks before the first temporal layer once per sample."""
    target: Target = "x0"
    """What the frames are trained on."""
    weights: str = "snr100"
    """Frame weighting."""
    distance: str = "l1"
    """Distance of the loss."""
    others: float | None = 0.25
    """Supervise the last frame in every step and one other in this share of them."""
    distill: TrainConfig = field(
        default_factory=lambda: TrainConfig(steps=3200, lr=1e-3, warmup=100, precision="bf16", checkpoint_every=250)
    )
    """Training of the student."""
    distill_batch: int = 128
    """Trajectories per step of the student."""

    def run(self, out: Path | str, report: Report = _quiet) -> Path:
        """Run every stage that is not complete in `out`, and return `out`.

        Raises:
            ValueError: if `out` holds a run of other settings; names the first one that differs.
        """
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        self._same(out / "recipe.json")
        models = ("features", "loss_features", "teacher", "student")
        if all((out / name / "config.json").is_file() for name in models):
            return out
        images = load_images("digits")
        # What is optimised must not be what is measured: the loss has a feature network of its own.
        for name, seed, width in (("features", self.seed, 16), ("loss_features", self.seed + 1, 24)):
            if not (out / name / "config.json").is_file():
                with _timed(out, name):
                    train_features(images, out / name, self.features_steps, seed, width, report)
        if not (out / "teacher" / "config.json").is_file():
            config = dataclasses.replace(self.teach, seed=self.seed)
            with _timed(out, "teacher"):
                teach(images, out / "teacher", self.channels, config, self.teach_batch, resume=True, report=report)
        teacher = load_teacher(out / "teacher")
        times = schedule.quadratic(self.frames)[1:]
        with _timed(out, "trajectories"):
            data = make_trajectories(
                teacher, images.shape, out / "trajectories", self.count, times, (self.target,), self.solver,
                self.solver_steps, resume=True, report=report,
            )  # fmt: skip
        if not (out / "student" / "config.json").is_file():
            student = student_from_teacher(teacher, times, self.target, where=self.where, once=self.once, told="input")
            config = dataclasses.replace(self.distill, seed=self.seed)
            with _timed(out, "student"):
                distill(
                    student, data, out / "student", config, self.weights, self.distance, self.distill_batch, self.others,
                    features=load_feature_net(out / "loss_features"), resume=True, report=report,
                )  # fmt: skip
        return out

    def _same(self, path: Path) -> None:
        if not path.is_file():
            write_json(path, dataclasses.asdict(self))
            return
        held = _flat(read_json(path))
        for key, value in _flat(json.loads(json.dumps(dataclasses.asdict(self)))).items():
            if held.get(key) != value:
                raise ValueError(
                    f"{path.parent} holds a run with {key} = {held.get(key)}, this one has {value}: choose another folder"
                )


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """`{"teach": {"steps": 1}}` as `{"teach.steps": 1}`."""
    nested = {k: v.items() if isinstance(v, dict) else [("", v)] for k, v in settings.items()}
    return {f"{key}.{name}".rstrip("."): value for key, items in nested.items() for name, value in items}


@contextmanager
def _timed(out: Path, stage: str) -> Iterator[None]:
    """Add the seconds spent to the stage's in `timings.json`, interrupted pieces included."""
    path, began = out / "timings.json", time.perf_counter()
    try:
        yield
    finally:
        held = read_json(path) if path.is_file() else {}
        write_json(path, held | {stage: held.get(stage, 0.0) + time.perf_counter() - began})


def teach(
    images: Images,
    out: Path | str,
    channels: tuple[int, ...] = (32, 64),
    config: TrainConfig = TrainConfig(),  # noqa: B008 (frozen)
    batch: int = 128,
    kind: Kind = "v",
    path: schedule.Schedule | None = None,
    conditional: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    report: Report = _quiet,
) -> Prediction:
    """Train a small U-Net teacher on an image set and write it to `out`; see `Denoising` and `train`.

    Raises:
        ValueError: if the images do not fit the network, or have no labels although `conditional`.
    """
    path = schedule.Cosine() if path is None else path
    check_images(images.x, images.name)
    if conditional and images.labels is None:
        raise ValueError(f"{images.name} has no labels: train an unconditional teacher")
    C, H, W = images.shape
    if H != W:
        raise ValueError(f"images must be square, got {H} x {W}")
    torch.manual_seed(config.seed)
    labels = images.labels if conditional else None
    classes = int(labels.max()) + 1 if labels is not None else None
    net = UNet(C, H, channels, classes=classes)
    objective = Denoising(images.x, path, kind, labels, batch, config.seed)
    settings = {
        "images": images.name, "count": len(images), "conditional": conditional, "kind": kind, "schedule": path.config,
        "batch": batch,
    }  # fmt: skip
    _prepare(out, resume, overwrite)
    train(
        net, objective, config, Path(out) / "training", resume, overwrite, progress=_progress("teach", report),
        settings=settings,
    )  # fmt: skip
    teacher = Prediction(net, path, kind).eval()
    save_teacher(out, teacher, images=images.name, training=dataclasses.asdict(config), batch=batch)
    return teacher


def _prepare(out: Path | str, resume: bool, overwrite: bool) -> None:
    """Make a model's folder ready; of several processes the first does this, and the others wait for it in `train`."""
    if os.environ.get("RANK", "0") == "0":
        prepare_folder(out, resume, overwrite)


def make_trajectories(
    teacher: Prediction,
    shape: tuple[int, ...],
    out: Path | str,
    count: int,
    times: Tensor,
    targets: tuple[str, ...] = ("x0",),
    solver: str = "unipc3",
    steps: int = 16,
    resume: bool = False,
    overwrite: bool = False,
    report: Report = _quiet,
    **options: Any,
) -> TrajectorySet:
    """Generate a teacher's trajectories into `out`, keeping `times`; the grid is quadratic, moved through them.

    Raises:
        ValueError: for an unknown solver, times that do not decrease inside [0, 1), too few steps, or a folder of other
            trajectories.
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}: expected one of {', '.join(SOLVERS)}")
    keep = schedule.check_grid([1.0, *times.tolist()])
    grid = schedule.through(schedule.quadratic(steps), keep[1:])
    sampler = SolverSampler(teacher, teacher.schedule, grid, SOLVERS[solver](), keep)
    return generate(
        sampler, shape, out, count, targets=targets, resume=resume, overwrite=overwrite,
        progress=lambda done, total: report("generate", done, total, ""), **options,
    )  # fmt: skip


def distill(
    student: TrajectoryStudent,
    data: TrajectorySet,
    out: Path | str,
    config: TrainConfig = TrainConfig(),  # noqa: B008 (frozen)
    weights: str = "snr5",
    distance: str = "l1",
    batch: int = 256,
    others: float | None = None,
    inner_starts: float = 0.0,
    features: FeatureNet | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report: Report = _quiet,
) -> TrajectoryStudent:
    """Train a student on trajectories and write it to `out`; see `TrajectoryDistillation` and `train`.

    `features` is the network of a perceptual `distance`.
    """
    maps = None if features is None else features.requires_grad_(False).maps
    objective = TrajectoryDistillation(
        data, student, weights, named_distance(distance, maps), batch, config.seed, others, inner_starts
    )
    settings = {
        **student.config, "trajectories": data.manifest["fingerprint"], "count": len(data), "weights": weights,
        "distance": distance, "batch": batch, "others": others, "inner_starts": inner_starts,
    }  # fmt: skip
    _prepare(out, resume, overwrite)
    report("distill", 0, config.steps, objective.describe())
    train(
        student, objective, config, Path(out) / "training", resume, overwrite, progress=_progress("distill", report),
        settings=settings,
    )  # fmt: skip
    save_student(out, student, trajectories=len(data), training=dataclasses.asdict(config), weights=weights)
    return student


def _progress(stage: str, report: Report) -> Callable[[int, int, dict[str, float]], None]:
    return lambda done, total, numbers: report(stage, done, total, f"loss {numbers['loss']:.4f}")


class _Classify:
    """Cross-entropy on labelled images, shifted by up to a pixel."""

    def __init__(self, images: Images, batch: int, seed: int) -> None:
        self.images, self.batch, self.seed = images, batch, seed

    def batches(self, start: int, rank: int, world: int) -> Any:
        step = start
        while True:
            g = torch.Generator().manual_seed((self.seed << 40) + (step << 12) + rank)
            i = torch.randint(len(self.images), (self.batch // world,), generator=g)
            dx, dy = torch.randint(-1, 2, (2,), generator=g).tolist()
            assert self.images.labels is not None
            yield {"x": self.images.x[i].roll((dx, dy), (2, 3)), "label": self.images.labels[i]}
            step += 1

    def __call__(self, net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(net(batch["x"]), batch["label"])


def train_features(
    images: Images, out: Path | str, steps: int = 800, seed: int = 0, width: int = 16, report: Report = _quiet
) -> FeatureNet:
    """Train a classifier whose features a quality or a perceptual distance is measured in, and write it to `out`.

    Raises:
        ValueError: if the images have no labels.
    """
    if images.labels is None:
        raise ValueError(f"{images.name} has no labels to train a feature network on")
    torch.manual_seed(seed)
    net = FeatureNet(f"{Path(images.name).stem}_cnn", images.shape[0], int(images.labels.max()) + 1, width)
    config = TrainConfig(steps=steps, lr=2e-3, warmup=50, ema=0.99, checkpoint_every=steps, seed=seed)
    objective = _Classify(images, 128, seed)
    train(net, objective, config, Path(out) / "training", resume=True, progress=_progress("features", report))
    with torch.no_grad():
        accuracy = float((net(images.x).argmax(-1) == images.labels).float().mean())
    save_feature_net(out, net, data=images.name, training_accuracy=accuracy)
    return net


def shipped(name: str = "digits") -> Path:
    """The folder of weights that ship with the package: `teacher`, `student` and `features` of a recipe.

    Raises:
        FileNotFoundError: if the package holds no such recipe.
    """
    folder = Path(str(resources.files("dsno"))) / "weights" / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no weights named {name!r} ship with this package (no folder {folder}): train them, `dsno reproduce {name}`"
        )
    return folder
