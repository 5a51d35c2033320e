"""Named experiments, from nothing to a report, as data.

A recipe is a dataclass: its fields are the whole configuration, and running it twice is running it once. Every stage
has a folder of its own and is skipped when that folder is complete; an interrupted stage continues where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsno import schedule
from dsno.checkpoint import prepare_folder, read_json, write_json
from dsno.data import Samples, check_samples, load_data
from dsno.denoise import Cond, Guided, Kind, Prediction
from dsno.distill.denoising import Denoising
from dsno.distill.methods import METHODS
from dsno.distill.stages import Given
from dsno.distill.trajectory import Distance, TrajectoryDistillation
from dsno.distill.trajectory import distance as named_distance
from dsno.evaluate import solver_errors
from dsno.metrics import FeatureNet, load_feature_net, save_feature_net, tensor_sha
from dsno.noise import generator, noise
from dsno.plan import Workload
from dsno.sets import describe
from dsno.solve import SOLVERS, SolverSampler
from dsno.store import TrajectorySet, generate
from dsno.students.flowmap import Target, TrajectoryStudent, save_student, student_from_teacher
from dsno.students.lift import Told, Where
from dsno.students.temporal import Activation, Init
from dsno.students.twotime import FlowMap, TwoTime, save_flow_map
from dsno.teachers.iddpm import CIFAR10, IMAGENET64, IDDPMUNet, published_blocks
from dsno.teachers.load import load_teacher
from dsno.teachers.native import save_teacher
from dsno.teachers.nets import net_from_config
from dsno.teachers.unet import UNet
from dsno.train import TrainConfig, train

__all__ = [
    "RECIPES", "Recipe", "Report", "distill", "distill_by", "make_trajectories", "samples_of", "shipped", "teach",
    "train_features", "uniform_labels", "uniform_weights",
]  # fmt: skip

log = logging.getLogger(__name__)

Report = Callable[[str, int, int, str], None]
"""Progress of a stage: `report(stage, done, total, text)`."""


LABEL_STREAM = 2**31 - 1
"""The noise stream labels are drawn from: streams 0, 1, 2, ... are the initial noise and the steps of a solver."""


def _quiet(stage: str, done: int, total: int, text: str) -> None:
    log.debug("%s %d/%d %s", stage, done, total, text)


@dataclass(frozen=True)
class Recipe:
    """From a data set to a one-pass student, stage by stage; the named ones are in `RECIPES`."""

    data: str = "digits"
    """What `load_data` takes; may be moved between two pieces of one run."""
    size: int | None = None
    """Resize images to this many pixels a side."""
    seed: int = 0
    """Seed of every stage."""
    net: Mapping[str, Any] = field(default_factory=lambda: {"channels": [32, 64]})
    """The teacher's network: options of `UNet`, or the `config` of another backbone."""
    kind: Kind = "v"
    """What the teacher predicts, on the cosine schedule."""
    conditional: bool = False
    """Train on the labels too; trajectories then draw theirs uniformly."""
    teach: TrainConfig = field(
        default_factory=lambda: TrainConfig(steps=3000, lr=1e-3, warmup=200, precision="bf16", checkpoint_every=250)
    )
    """Training of the teacher."""
    teach_batch: int = 128
    """Samples per step of the teacher."""
    clip: float | None = None
    """Bound on the teacher's prediction while trajectories are made."""
    features_steps: int = 800
    """Training steps of the feature network that the quality is measured in."""
    count: int = 32_768
    """Trajectories."""
    solver: str = "unipc3"
    """Solver that makes them."""
    solver_steps: int = 16
    """Its steps."""
    grid: str = "quadratic"
    """The solver's grid, as `make_trajectories` takes it."""
    times: tuple[float, ...] = (0.5625, 0.25, 0.0625, 0.0)
    """Times of the student's frames."""
    where: Where | Literal["published"] = "mid"
    """Blocks with temporal layers; `published` are those of the paper, of an `IDDPMUNet`."""
    once: bool = True
    """Run the blocks before the first temporal layer once per sample."""
    told: Told = "input"
    """The time a frame's blocks are told."""
    activation: Activation = "silu"
    """Of the temporal layers."""
    init: Init = "zero"
    """Of the temporal layers."""
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

    def run(
        self, out: Path | str, report: Report = _quiet, teacher: str | None = None, data: Samples | None = None
    ) -> Path:
        """Run every stage that is not complete in `out`, and return `out`.

        Arguments:
            out: The folder of the run.
            report: Told of the progress.
            teacher: A teacher to use, as `load_teacher` takes it, instead of training one.
            data: The data, where it is at hand already.

        Raises:
            ValueError: if `out` holds a run of other settings; names the first one that differs.
        """
        out = self._open(out)
        if all((out / name / "config.json").is_file() for name in ("features", "teacher", "student")):
            return out
        samples = self.prepare(out, report, teacher, data)
        solved = load_teacher(out / "teacher")
        with _timed(out, "trajectories"):
            trajectories = make_trajectories(
                solved, samples.shape, out / "trajectories", self.count, torch.tensor(self.times, dtype=torch.float64),
                (self.target,), self.solver, self.solver_steps, grid=self.grid, resume=True, report=report,
                label=uniform_labels(solved.classes) if solved.classes else None,
            )  # fmt: skip
        if not (out / "student" / "config.json").is_file():
            features = load_feature_net(out / "loss_features") if "perceptual" in self.distance else None
            with _timed(out, "student"):
                distill(
                    self.student(solved), trajectories, out / "student", replace(self.distill, seed=self.seed),
                    self.weights, self.distance, self.distill_batch, self.others, features=features, resume=True,
                    report=report,
                )  # fmt: skip
        return out

    def prepare(
        self, out: Path | str, report: Report = _quiet, teacher: str | None = None, data: Samples | None = None
    ) -> Samples:
        """The stages before trajectories: the feature network, of labelled data, and the teacher. Returns the data.

        Raises:
            ValueError: as `run` does.
        """
        out = self._open(out)
        samples = load_data(self.data, size=self.size) if data is None else data
        for name in self._feature_nets(samples):
            if not (out / name / "config.json").is_file():
                # What is optimised must not be what is measured: the loss has a feature network of its own.
                seed, width = (self.seed, 16) if name == "features" else (self.seed + 1, 24)
                with _timed(out, name):
                    train_features(samples, out / name, self.features_steps, seed, width, report)
        if not (out / "teacher" / "config.json").is_file():
            with _timed(out, "teacher"):
                if teacher is None:
                    self._teach(samples, out / "teacher", report)
                else:
                    given = load_teacher(teacher)
                    given.clip = self.clip
                    save_teacher(out / "teacher", given, source=teacher)
        return samples

    def student(self, teacher: Prediction) -> TrajectoryStudent:
        """The student before it is trained."""
        torch.manual_seed(self.seed)
        return student_from_teacher(teacher, self.times, **self._student())

    def _student(self) -> dict[str, Any]:
        """The options of `student_from_teacher`."""
        where: Where | Callable[[str, torch.Size], bool]
        if self.where == "published":
            with torch.device("meta"):
                net = net_from_config(self.net)
            assert isinstance(net, IDDPMUNet)
            names = published_blocks(net)
            where = lambda name, shape: name in names  # noqa: E731
        else:
            where = self.where
        return {
            "target": self.target, "where": where, "once": self.once, "activation": self.activation, "init": self.init,
            "told": self.told,
        }  # fmt: skip

    def workload(self, shape: tuple[int, ...] | None = None, classes: int | None = None) -> Workload:
        """What the run costs, for `dsno.plan.plan`; the shape of a sample and the classes are the data's by default."""
        if "name" not in self.net and shape is None:
            samples = load_data(self.data, size=self.size)
            shape = samples.shape
            if self.conditional and samples.labels is not None:
                classes = int(samples.labels.max()) + 1

        def teacher() -> Prediction:
            if "name" in self.net:
                net = net_from_config(self.net)
            else:
                assert shape is not None
                net = UNet(shape[0], shape[1:], **{**self.net, "classes": classes})
            return Prediction(net, schedule.Cosine(), self.kind, clip=self.clip, shape=shape, classes=classes)

        return Workload(
            self.data, teacher, self.times, self.count, self.solver, self.solver_steps, targets=(self.target,),
            student=self._student(), train=self.distill, train_batch=self.distill_batch, others=self.others, teach=self.teach,
            teach_batch=self.teach_batch,
        )  # fmt: skip

    def _feature_nets(self, samples: Samples) -> list[str]:
        if samples.labels is None:
            return []
        return ["features", "loss_features"] if "perceptual" in self.distance else ["features"]

    def _teach(self, samples: Samples, out: Path, report: Report) -> None:
        options = dict(self.net)
        net = net_from_config(options) if "name" in options else None
        if net is None:
            options["channels"] = tuple(options["channels"])
        teach(
            samples, out, config=replace(self.teach, seed=self.seed), batch=self.teach_batch, kind=self.kind,
            conditional=self.conditional, clip=self.clip, resume=True, report=report,
            **({"net": net} if net is not None else options),
        )  # fmt: skip

    def _open(self, out: Path | str) -> Path:
        """The folder of a run of these settings."""
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        path = out / "recipe.json"
        if not path.is_file():
            write_json(path, dataclasses.asdict(self))
            return out
        held = _flat(read_json(path))
        for key, value in _flat(json.loads(json.dumps(dataclasses.asdict(self)))).items():
            if key != "data" and held.get(key) != value:
                raise ValueError(
                    f"{out} holds a run with {key} = {held.get(key)}, this one has {value}: choose another folder"
                )
        return out


PUBLISHED: dict[str, Any] = {
    "where": "published", "once": False, "told": "output", "activation": "leaky_relu", "init": "uniform",
    "weights": "snr", "distance": "l1", "others": None,
}  # fmt: skip
"""The operator as published."""

RECIPES: dict[str, Recipe] = {
    "digits": Recipe(),
    "fashion": Recipe(
        data="hf:zalando-datasets/fashion_mnist:train", size=16, net={"channels": [32, 64], "patch": 2},
        features_steps=2000, count=102_400,
        teach=TrainConfig(steps=12_000, lr=1e-3, warmup=200, precision="bf16", checkpoint_every=500),
        distill=TrainConfig(steps=12_000, lr=1e-3, warmup=200, precision="bf16", checkpoint_every=500),
    ),
    "fashion-gpu": Recipe(
        data="hf:zalando-datasets/fashion_mnist:train", size=32, net={"channels": [64, 128, 128], "attention": [1, 2]},
        count=204_800, features_steps=3000, teach_batch=256, distill_batch=256,
        teach=TrainConfig(steps=20_000, lr=5e-4, warmup=500, precision="bf16", checkpoint_every=2000),
        distill=TrainConfig(steps=30_000, lr=5e-4, warmup=500, precision="bf16", checkpoint_every=2000),
    ),
    "sprites": Recipe(
        data="crawl_cc0_32.npz", net={"channels": [64, 64], "patch": 4}, features_steps=1500, count=16_384, grid="log-snr",
        teach=TrainConfig(steps=10_000, lr=1e-3, warmup=200, precision="bf16", checkpoint_every=500),
        distill=TrainConfig(steps=2000, lr=1e-3, warmup=200, precision="bf16", checkpoint_every=500),
    ),
    "sprites-gpu": Recipe(
        data="crawl_cc0_32.npz", net={"channels": [64, 128, 128], "attention": [1, 2], "dropout": 0.1},
        features_steps=3000, count=204_800, teach_batch=256, distill_batch=256,
        teach=TrainConfig(steps=20_000, lr=5e-4, warmup=500, precision="bf16", checkpoint_every=2000),
        distill=TrainConfig(steps=30_000, lr=5e-4, warmup=500, precision="bf16", checkpoint_every=2000),
    ),
    # The paper's own (Zheng et al., 2023, arXiv 2211.13449, and its code), with the L1 distance of its objective: the VGG
    # features of its last CIFAR-10 figure are not ours to ship. Its teachers are those of progressive distillation; pass
    # one, or train one here. Attention starts as the teacher's, which the official loader scrambles on ImageNet.
    "cifar10": Recipe(
        data="hf:uoft-cs/cifar10:train", net={"name": "IDDPMUNet", **CIFAR10}, kind="x0",
        teach=TrainConfig(
            steps=800_000, lr=2e-4, warmup=5000, decay="constant", ema=0.9999, checkpoint_every=10_000
        ),
        count=1_024_000, solver="ddim", solver_steps=512, grid="uniform", times=(0.5625, 0.25, 0.0625, 0.0),
        distill=TrainConfig(
            steps=400_000, lr=2e-4, warmup=10_000, decay="constant", halve_at=(100_000, 200_000, 300_000), ema=0.9999,
            clip=None, checkpoint_every=10_000,
        ),
        distill_batch=256, **PUBLISHED,
    ),
    "imagenet64": Recipe(
        data="hf:benjamin-paine/imagenet-1k-64x64:train", net={"name": "IDDPMUNet", **IMAGENET64}, kind="x0",
        conditional=True,
        teach=TrainConfig(
            steps=550_000, lr=2e-4, warmup=5000, decay="constant", ema=0.9999, precision="bf16", checkpoint_every=10_000
        ),
        teach_batch=2048, clip=1.0, count=2_300_000, solver="ddim", solver_steps=16, grid="uniform",
        times=(0.75, 0.5, 0.25, 0.0),
        distill=TrainConfig(
            steps=120_000, lr=2e-4, warmup=10_000, decay="constant", ema=0.9999, clip=None, accumulate=4,
            precision="fp16", checkpoint_every=3000,
        ),
        distill_batch=512, **PUBLISHED,
    ),
}  # fmt: skip
"""The named recipes. The numbers they reached are in `benchmarks/results`."""


def uniform_labels(classes: int) -> Callable[[Tensor], Tensor]:
    """Labels as a function of the seeds, (B,) to (B,) int64 in [0, `classes`): row i has the same label in any batch."""

    def label(seeds: Tensor) -> Tensor:
        # The uniform distribution from the sample's own counter-based noise, of a stream that no solver draws from.
        z = noise(seeds, (1,), stream=LABEL_STREAM, dtype=torch.float64)[:, 0]
        return (torch.special.ndtr(z) * classes).long().clamp(0, classes - 1)

    return label


def uniform_weights(low: float, high: float) -> Callable[[Tensor], Tensor]:
    """Guidance weights as a function of the seeds, (B,) to (B,) float32, uniform in [`low`, `high`]."""

    def weight(seeds: Tensor) -> Tensor:
        z = noise(seeds, (1,), stream=LABEL_STREAM - 1, dtype=torch.float64)[:, 0]
        return (low + (high - low) * torch.special.ndtr(z)).float()

    return weight


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
    images: Samples,
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
    clip: float | None = None,
    drop: float = 0.0,
    net: nn.Module | None = None,
    **options: Any,
) -> Prediction:
    """Train a teacher on a data set and write it to `out`; see `Denoising` and `train`.

    The network is a small `UNet` of the given `channels` and `options` (`attention`, `patch`, `padding_mode`, ...), or the
    backbone `net`. The teacher's predictions are bounded by `clip`, its training is not. With `drop` a conditional U-Net is
    not told that share of the labels, and can be guided: its null label is the number of classes.

    Raises:
        ValueError: if the samples do not fit the network, or its patches its channels, or if there are no labels although
            `conditional`.
    """
    path = schedule.Cosine() if path is None else path
    check_samples(images.x, images.name)
    if conditional and images.labels is None:
        raise ValueError(f"{images.name} has no labels: train an unconditional teacher")
    C, *spatial = images.shape
    square = len(spatial) == 2 and spatial[0] == spatial[1]
    torch.manual_seed(config.seed)
    labels = images.labels if conditional else None
    classes = int(labels.max()) + 1 if labels is not None else None
    if net is None:
        size = spatial[0] if square else spatial
        net = UNet(C, size, channels, classes=classes, null=drop > 0, **options)
    if isinstance(net, UNet) and kind != "x0":
        cell, first = C * net.patch ** len(spatial), net.config["channels"][0]
        if cell > first:
            raise ValueError(
                f"a patch of {cell} numbers does not pass through {first} channels, and the noise that a network of kind "
                f"{kind!r} cannot pass stays in its samples: take {cell} or more as the first of `channels`, a smaller "
                "`patch`, or the kind 'x0'"
            )
    objective = Denoising(images.x, path, kind, labels, batch, config.seed, classes, drop)
    settings = {
        "images": images.name, "count": len(images), "conditional": conditional, "kind": kind, "schedule": path.config,
        "batch": batch, "drop": drop, **options,
    }  # fmt: skip
    _prepare(out, resume, overwrite)
    train(
        net, objective, config, Path(out) / "training", resume, overwrite, progress=_progress("teach", report),
        settings=settings,
    )  # fmt: skip
    teacher = Prediction(net, path, kind, clip=clip, shape=images.shape, classes=classes).eval()
    units = dataclasses.asdict(images.units)
    save_teacher(out, teacher, images=images.name, units=units, training=dataclasses.asdict(config), batch=batch)
    return teacher


def _prepare(out: Path | str, resume: bool, overwrite: bool) -> None:
    """Make a model's folder ready; of several processes the first does this, and the others wait for it in `train`."""
    if os.environ.get("RANK", "0") == "0":
        prepare_folder(out, resume, overwrite)


def make_trajectories(
    teacher: Prediction | Guided,
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
    grid: str = "best",
    **options: Any,
) -> TrajectorySet:
    """Generate a teacher's trajectories into `out`, keeping `times`; the grid is moved through them.

    A student copies its trajectories with their solver's error, and which grid makes it small depends on the teacher: the
    grid `best` is the one of `schedule.GRIDS` whose ends are nearest to the fine solution from the first noises, 32 at most.
    That takes some 4,000 network evaluations at 16 steps; what it found is reported.

    Raises:
        ValueError: for an unknown solver or grid, times that do not decrease inside [0, 1), too few steps, or a folder of
            other trajectories.
    """
    for what, name, known in (("solver", solver, SOLVERS), ("grid", grid, ("best", *schedule.GRIDS))):
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}: expected one of {', '.join(known)}")
    step = SOLVERS[solver]()
    if grid == "best" and step.stochastic:
        raise ValueError(f"the grid best is that of a solver of the ODE, and {solver} draws noise: name a grid for it")
    keep = schedule.check_grid([1.0, *times.tolist()])
    inner = teacher.denoiser if isinstance(teacher, Guided) else teacher
    assert isinstance(inner, Prediction)
    grids, left = _grids(inner.schedule, steps, keep[1:], schedule.GRIDS if grid == "best" else [grid])

    def choose(run: SolverSampler, z: Tensor, cond: Cond | None) -> str:
        errors = solver_errors(
            run.denoiser, run.schedule, z, grids, run.step, cond=cond, fine_steps=max(64, 2 * steps),
            batch=options.get("batch", 256), progress=lambda done, total: report("grid", done, total, ""),
        )  # fmt: skip
        chosen = next(iter(errors))
        best, *rest = (f"{name} {error:.2g}" for name, error in errors.items())
        text = f"RMSE of {steps} steps to the fine solution by grid: {best}, taken; {', '.join(rest)}"
        if errors[chosen] == math.inf:
            text = f"neither the fine solution nor any grid's ends are finite: {chosen} taken unmeasured"
        report("generate", 0, count, text + (f"; {', '.join(left)} cannot pass through the frames" if left else ""))
        return chosen

    sampler = SolverSampler(teacher, inner.schedule, next(iter(grids.values())), step, keep)
    return generate(
        sampler, shape, out, count, targets=targets, grids=grids, choose=choose, resume=resume, overwrite=overwrite,
        progress=lambda done, total: report("generate", done, total, ""), **options,
    )  # fmt: skip


def _grids(
    path: schedule.Schedule, steps: int, keep: Tensor, names: Iterable[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Grids by name, no two the same, each moved through `keep`; and the names of those that cannot be."""
    found: dict[str, Tensor] = {}
    left: dict[str, ValueError] = {}
    for name in names:
        try:
            grid = schedule.through(schedule.GRIDS[name](path, steps), keep)
        except ValueError as error:
            left[name] = error
            continue
        if not any(torch.allclose(grid, other) for other in found.values()):
            found[name] = grid
    if not found:
        raise next(iter(left.values()))
    return found, [*left]


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

    `features` is the network of a perceptual `distance`. With `inner_starts` the student `restarts` afterwards.
    """
    objective = TrajectoryDistillation(
        data, student, weights, _distance(distance, features, student), batch, config.seed, others, inner_starts
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
    student.restarts = inner_starts > 0
    save_student(
        out, student, training=dataclasses.asdict(config), weights=weights, distance=distance, batch=batch,
        method="knowledge" if student.frames == 1 else "operator", **_origin(data),
    )  # fmt: skip
    return student


def distill_by(
    method: str,
    student: nn.Module,
    given: Given,
    out: Path | str,
    config: TrainConfig | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report: Report = _quiet,
    sources: Mapping[str, str] | None = None,
    features: FeatureNet | None = None,
    **options: Any,
) -> nn.Module:
    """Train a student by any method, stage by stage, and write it to `out`; see `dsno.distill.methods` and `train`.

    Each stage has a folder, `training/NAME` in `out`, and a warm-up and decay of its own. A stage that is complete is not
    trained again, so a run that is resumed equals one that was not interrupted.

    Arguments:
        method: A name in `METHODS`.
        student: What the method trains (`dsno.distill.methods.student_of`); trained in place.
        given: What the method draws on; its `steps` are those of all stages together.
        out: Folder for the student.
        config: How to train; its `steps` are not read, and its warm-up is at most a tenth of a stage. By default Adam with
            the method's own learning rate.
        resume: Continue what is in `out`, of the same settings.
        overwrite: Throw away what is in `out`.
        report: Told of the progress.
        sources: Where teacher and data came from, in words, for the notes of the student.
        features: The network of a perceptual `distance`.
        options: Further keywords of the method's function.

    Raises:
        ValueError: for an unknown method, or one that is not given what it needs, or a student or settings that do not fit.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
    chosen = METHODS[method]
    chosen.check(given)
    chosen.check_student(student, given)
    assert isinstance(student, TrajectoryStudent | FlowMap)
    if config is None:
        config = TrainConfig(lr=1e-3, seed=given.seed)
    told = dict(options)
    if features is not None:
        told["distance"] = _distance(options.get("distance"), features, student)
    stages = chosen.stages(student, given, **told)
    settings = _settings(method, student, given, options)
    _prepare(out, resume, overwrite)
    if isinstance(given.teacher, nn.Module):
        given.teacher.to(_training_device(student))
    for n, stage in enumerate(stages):
        # What a stage adds to the student starts from the seed, whichever stages ran in this process.
        torch.manual_seed((config.seed << 8) + n)
        trained, objective = stage.make(student)
        own = replace(config, steps=stage.steps, lr=config.lr * stage.lr, warmup=min(config.warmup, stage.steps // 10))
        train(
            trained, objective, own, Path(out) / "training" / stage.name, resume, overwrite,
            progress=_progress(stage.name, report), settings={**settings, "stage": stage.name, "stage_steps": stage.steps},
        )  # fmt: skip
    notes: dict[str, Any] = {
        "method": method, "references": list(chosen.references), "steps": given.steps, "batch": given.batch,
        "training": dataclasses.asdict(config), "sources": dict(sources or {}), **options,
        **({"passes": given.passes} if given.passes > 1 else {}),
        **({"guidance": list(given.guidance)} if method == "guided" else {}),
        **({} if given.trajectories is None else _origin(given.trajectories)),
    }  # fmt: skip
    notes = {name: value for name, value in notes.items() if not callable(value)}
    if isinstance(student, FlowMap):
        save_flow_map(out, student, **notes)
    else:
        save_student(out, student, **notes)
    return student


def _distance(name: str | None, features: FeatureNet | None, student: nn.Module) -> Distance:
    """A distance by name; its features where the student is trained.

    Raises:
        ValueError: for an unknown name, or if it needs features that are not there, or the other way round.
    """
    if features is None:
        return named_distance(name or "l1")
    if "perceptual" not in (name or ""):
        raise ValueError(
            f"features are of a perceptual distance, and this one is {name or 'the default'}: name one "
            "(`--distance l1+perceptual`), or leave them out"
        )
    return named_distance(name or "l1", features.requires_grad_(False).to(_training_device(student)).maps)


def _training_device(model: nn.Module) -> torch.device:
    """Where `train` is going to train it: what a loss calls beside the model has to be there, too."""
    from accelerate import PartialState

    cpu = next(model.parameters()).device.type == "cpu" and not torch.cuda.is_available()
    return torch.device(PartialState(cpu=cpu).device)


def _settings(
    method: str, student: TrajectoryStudent | FlowMap, given: Given, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides the updates of every stage, JSON-able."""
    trajectories = given.trajectories
    if isinstance(student, FlowMap):
        net = student.net.backbone if isinstance(student.net, TwoTime) else student.net
        made: dict[str, Any] = {"student": type(net).__name__, "kind": student.kind, "way": student.way}
    else:
        made = student.config
    return {
        **made, "method": method, "total_steps": given.steps, "batch": given.batch, "data_seed": given.seed,
        "schedule": given.schedule.config, "teacher": None if given.teacher is None else describe(given.teacher, {}),
        "samples": None if given.x is None else tensor_sha(given.x)[:16],
        "labels": None if given.labels is None else tensor_sha(given.labels)[:16],
        "trajectories": None if trajectories is None else [trajectories.manifest["fingerprint"], len(trajectories)],
        "passes": given.passes, "guidance": list(given.guidance), "derivative": given.derivative,
        # A function has no text that is the same in another process.
        **{name: str(value) for name, value in options.items() if not callable(value)},
    }  # fmt: skip


def _origin(data: TrajectorySet) -> dict[str, Any]:
    """What made the trajectories a student learned from: what `dsno cite` needs of it."""
    made, teacher = data.manifest, data.manifest["teacher"]
    return {"solver": made["solver"]["name"], "guided": teacher["class"] == "Guided", "trajectories": len(data)}


def samples_of(data: TrajectorySet) -> tuple[Tensor, Tensor | None]:
    """The ends of trajectories, (N, *shape) float32, and their labels (N,), if they have any: samples of the teacher.

    Raises:
        ValueError: if the trajectories do not end at t = 0, or are told more than a label.
    """
    if float(data.times[-1]) != 0:
        raise ValueError(
            f"{data.source} ends at t = {float(data.times[-1]):g}, where there is noise left: its ends are no samples"
        )
    told = data.manifest["cond"]
    told = told if told is None or data.manifest["format"] != 1 else {"label": told}
    more = sorted(name for name, c in (told or {}).items() if name != "label" or c["shape"])
    if more:
        raise ValueError(
            f"{data.source} is told {', '.join(more)} beside the state, and samples have labels alone: make trajectories "
            "without, give an image set, or distil with the method operator, which is told the same"
        )
    x, labels = torch.empty(len(data), *data.shape), torch.zeros(len(data), dtype=torch.int64)
    for rows in torch.arange(len(data)).split(1024):
        batch = data.__getitems__(rows.tolist())
        x[rows] = batch[data.targets[0]][:, -1]
        if told:
            labels[rows] = batch["cond"] if isinstance(batch["cond"], Tensor) else batch["cond"]["label"]
    return x, labels if told else None


def _progress(stage: str, report: Report) -> Callable[[int, int, dict[str, float]], None]:
    return lambda done, total, numbers: report(stage, done, total, f"loss {numbers['loss']:.4f}")


class _Classify:
    """Cross-entropy on labelled images, shifted by up to a pixel."""

    def __init__(self, images: Samples, batch: int, seed: int) -> None:
        self.images, self.batch, self.seed = images, batch, seed

    def batches(self, start: int, rank: int, world: int) -> Any:
        step = start
        while True:
            g = generator(self.seed, step)
            i = torch.randint(len(self.images), (self.batch,), generator=g).chunk(world)[rank]
            dx, dy = torch.randint(-1, 2, (2,), generator=g).tolist()
            assert self.images.labels is not None
            yield {"x": self.images.x[i].roll((dx, dy), (2, 3)), "label": self.images.labels[i]}
            step += 1

    def __call__(self, net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(net(batch["x"]), batch["label"])


def train_features(
    images: Samples, out: Path | str, steps: int = 800, seed: int = 0, width: int = 16, report: Report = _quiet
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
