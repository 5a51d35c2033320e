"""Experiments, from nothing to a student, as data.

A recipe is a dataclass: its fields are the whole configuration, and running it twice is running it once. Every stage
has a folder of its own and is skipped when that folder is complete; an interrupted stage continues where it stopped.
A mixed precision (`dsno.precision`) is a wish, which the machine grants or not; a stage keeps what it was begun in.

| folder | what is made there |
|---|---|
| `features` | the network that quality is measured in, of labelled data |
| `loss_features` | another one, of a perceptual distance: what is optimised must not be what is measured |
| `teacher` | the teacher, trained or given |
| `trajectories` | its trajectories |
| `regressed` | the student of a recipe with a finish, before that: trained on the trajectories |
| `finish` | that finish, where it is looked at on its way (`dsno.runs.finish`) |
| `student` | the student |

`recipe.json` holds the settings, `timings.json` the seconds of each stage.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from dsno.checkpoint import read_json, write_json
from dsno.data.load import load_data
from dsno.data.samples import Samples
from dsno.denoise import Guided, Kind, Prediction
from dsno.distillation.run import distill
from dsno.nets.backbone import net_from_config
from dsno.nets.features import load_feature_net
from dsno.nets.iddpm import IDDPMUNet, published_blocks
from dsno.nets.unet import UNet
from dsno.outputs import check_apart, writable
from dsno.precision import Precision, wished
from dsno.runs.features import train_features
from dsno.runs.finish import distance_to, kept_best
from dsno.runs.teach import teach
from dsno.runs.workload import Workload
from dsno.schedule import Cosine
from dsno.snapshots import snapshots_in
from dsno.students.blocks import Told, Where
from dsno.students.files import load_student
from dsno.students.operator import Target, TrajectoryStudent, student_from_teacher
from dsno.students.samplers import Student
from dsno.students.temporal import Activation, Init
from dsno.teachers.load import load_teacher
from dsno.teachers.native import save_teacher
from dsno.teachers.prompts import under_guidance
from dsno.train import Report, TrainConfig, quiet
from dsno.trajectories.generate import generate
from dsno.trajectories.labels import Label, uniform_labels, weighted
from dsno.trajectories.sets import TrajectorySet

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """From a data set to a one-pass student, stage by stage; the named ones are in `dsno.runs.recipes.RECIPES`."""

    data: str = "digits"
    """What `load_data` takes; may be moved between two pieces of one run."""
    size: int | None = None
    """Resize images to this many pixels a side."""
    range: tuple[float, float] | None = None
    """The range of the numbers in an array of images, as `load_data` takes it."""
    seed: int = 0
    """Seed of every stage."""
    net: Mapping[str, Any] = field(default_factory=lambda: {"channels": [32, 64]})
    """The teacher's network: options of `UNet`, or the `config` of another backbone."""
    kind: Kind = "v"
    """What the teacher predicts, on the cosine schedule."""
    conditional: bool = False
    """Train on the labels too; trajectories then draw theirs uniformly."""
    guidance: tuple[float, float] | None = None
    """Range of guidance weights, one of which each trajectory is solved under, and the student is told; the teacher is
    then not told a tenth of its labels."""
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
    """The solver's grid, as `generate` takes it."""
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
    inner_starts: float = 0.0
    """The share of the student's steps that start from a stored state: for more passes than one."""
    distill: TrainConfig = field(
        default_factory=lambda: TrainConfig(steps=3200, lr=1e-3, warmup=100, precision="bf16", checkpoint_every=250)
    )
    """Training of the student."""
    distill_batch: int = 128
    """Trajectories per step of the student."""
    finish: TrainConfig | None = None
    """Training behind that, by `identity`: the student's samples against the teacher's law. None leaves it out."""
    finish_batch: int = 64
    """Noises per step of it."""
    finish_a: float = 0.5
    """How much of the Fisher divergence it takes off."""
    finish_inner: float = 0.0
    """The share of its rows that train the passes behind the first."""
    finish_adversary: float = 0.0
    """What an adversary weighs in it, which is shown the data; 0 leaves the data out."""
    finish_looks: int = 1
    """How often it is looked at, evenly: the nearest of so many to the data is kept. Needs labels, for features."""

    def __post_init__(self) -> None:
        if self.finish_adversary and self.guidance is not None:
            raise ValueError(f"data have no guidance weight: leave finish_adversary at 0 under {self.guidance}")
        if self.finish_looks < 1:
            raise ValueError(f"finish_looks is how often a finish is looked at, at least 1, got {self.finish_looks}")
        if self.finish is not None and self.finish_looks > 1:
            piece = self.finish.steps // self.finish_looks
            if self.finish.decay != "constant" or self.finish.warmup > piece // 10:
                raise ValueError(
                    "a finish that is looked at is made longer piece by piece: give it a constant learning rate and a "
                    f"warm-up of at most a tenth of a piece, {piece // 10} steps, got {self.finish.decay} and "
                    f"{self.finish.warmup}"
                )
        if self.where == "published" and self.net.get("name") != IDDPMUNet.__name__:
            raise ValueError(
                f"`published` are blocks of the paper's network, an {IDDPMUNet.__name__}, and this one is "
                f"{self.net.get('name', UNet.__name__)}: take another `where`"
            )

    def run(
        self,
        out: Path | str,
        report: Report = quiet,
        teacher: str | None = None,
        data: Samples | None = None,
        variant: str | None = None,
    ) -> Path:
        """Run every stage that is not complete in `out`, and return `out`.

        Arguments:
            out: The folder of the run.
            report: Told of the progress.
            teacher: A teacher to use, as `load_teacher` takes it, instead of training one.
            data: The data, where it is at hand already.
            variant: The variant of the teacher's weights, where it is one of diffusers.

        Raises:
            BlockingIOError: if another run is writing to a stage.
            FileExistsError: if `out` holds the teacher or the data, or a stage's folder is of something else.
            ValueError: if `out` holds a run of other settings; names the first one that differs.
        """
        check_apart(out, teacher, self.data)
        out = self._checked(out)
        if all((out / name / "config.json").is_file() for name in ("features", "teacher", "student")):
            return out
        samples = self.prepare(out, report, teacher, data, variant)
        told = load_teacher(out / "teacher")
        solved = under_guidance(str(out / "teacher"), told, self.guidance or ())
        with _timed(out, "trajectories"):
            trajectories = generate(
                solved,
                out / "trajectories",
                self.count,
                shape=samples.shape,
                times=self.times,
                solver=self.solver,
                steps=self.solver_steps,
                grid=self.grid,
                targets=self.targets,
                label=self._label(told),
                resume=True,
                report=report,
            )
        regressed = out / ("student" if self.finish is None else "regressed")
        if not (regressed / "config.json").is_file():
            self._distil(
                out,
                regressed,
                report,
                solved,
                trajectories,
                "operator",
                self._here(self.distill, regressed),
                self.distill_batch,
                self.student(told),
                weights=self.weights,
                distance=self.distance,
                others=self.others,
                inner_starts=self.inner_starts,
                features=out / "loss_features" if "perceptual" in self.distance else None,
            )
        if self.finish is not None:
            self.finished(out, out / "student", self.seed, report, samples)
        return out

    def finished(
        self, out: Path | str, folder: Path | str, seed: int, report: Report = quiet, data: Samples | None = None
    ) -> None:
        """The last stage alone, of a run in `out`, with a seed of its own, into `folder`.

        Where it is looked at, it is trained in the folder `finish` beside that.

        Raises:
            FileNotFoundError: if the stages before it are not complete.
            ValueError: of a recipe without a finish.
        """
        if self.finish is None:
            raise ValueError("this recipe has no stage behind the regression: give it a `finish`")
        out, folder = Path(out), Path(folder)
        if (folder / "config.json").is_file():
            return
        finish, told = self.finish, load_teacher(out / "teacher")
        solved = under_guidance(str(out / "teacher"), told, self.guidance or ())
        looked = self.finish_looks > 1 and (out / "features" / "config.json").is_file()
        stage = folder.parent / "finish" if looked else folder
        if data is None and (looked or self.finish_adversary):
            data = load_data(self.data, size=self.size, range=self.range)
        stored = None if self.guidance is None else TrajectorySet(out / "trajectories")

        def trained(steps: int) -> Student:
            return self._distil(
                out,
                stage,
                report,
                solved,
                data if self.finish_adversary else stored,
                "identity",
                replace(self._here(finish, stage), seed=seed, steps=steps),
                self.finish_batch,
                load_student(out / "regressed"),
                out / "regressed",
                a=self.finish_a,
                inner_starts=self.finish_inner,
                adversary=self.finish_adversary,
            )

        if not looked:
            trained(finish.steps)
            return
        assert data is not None
        net, passes = load_feature_net(out / "features"), (1, 2) if self.finish_inner else (1,)
        to_data = distance_to(data, net, self._label(told), passes=passes)

        def distance(student: Student) -> float:
            with _timed(folder.parent, "looks"):
                return to_data(student)

        steps = [finish.steps * n // self.finish_looks for n in range(1, self.finish_looks + 1)]
        kept_best(stage, folder, steps, trained, distance)

    def _distil(
        self,
        out: Path,
        folder: Path,
        report: Report,
        teacher: Prediction | Guided,
        data: TrajectorySet | Samples | None,
        method: str,
        config: TrainConfig,
        batch: int,
        student: Student,
        earlier: Path | None = None,
        **options: Any,
    ) -> Student:
        """A stage that trains a student, which lay in `earlier` if it was trained before."""
        known = self.data if isinstance(data, Samples) else str(out / "trajectories")
        sources = {"teacher": str(out / "teacher"), "data": known}
        if earlier is not None:
            sources["student"] = str(earlier)
        with _timed(folder.parent, folder.name):
            return distill(
                teacher,
                data,
                folder,
                method,
                config,
                batch=batch,
                student=student,
                resume=True,
                report=report,
                sources=sources,
                **options,
            )

    @property
    def targets(self) -> tuple[Target, ...]:
        """What is stored of each frame."""
        return ("x0", "state") if self.inner_starts else (self.target,)

    def _label(self, teacher: Prediction) -> Label | None:
        """What trajectories are told, by seed."""
        if not teacher.classes:
            return None
        label = uniform_labels(teacher.classes)
        return label if self.guidance is None else weighted(label, *self.guidance)

    def prepare(
        self,
        out: Path | str,
        report: Report = quiet,
        teacher: str | None = None,
        data: Samples | None = None,
        variant: str | None = None,
    ) -> Samples:
        """The stages before trajectories: the feature network, of labelled data, and the teacher. Returns the data.

        Raises:
            ValueError: as `run` does.
        """
        out = self._checked(out)
        given = None
        if teacher is not None and not (out / "teacher" / "config.json").is_file():
            # Before anything is trained: it may not be there.
            given = load_teacher(teacher, variant=variant)
        samples = load_data(self.data, size=self.size, range=self.range) if data is None else data
        if not (settings := out / SETTINGS).is_file():
            write_json(settings, asdict(self))
        for name in self._feature_nets(samples):
            if not (out / name / "config.json").is_file():
                # What is optimised must not be what is measured: the loss has a feature network of its own.
                seed, width = (self.seed, 16) if name == "features" else (self.seed + 1, 24)
                with _timed(out, name):
                    train_features(samples, out / name, self.features_steps, seed, width, report)
        if not (out / "teacher" / "config.json").is_file():
            with _timed(out, "teacher"):
                if given is None:
                    self._teach(samples, out / "teacher", report)
                else:
                    given.clip = self.clip
                    save_teacher(out / "teacher", given, source=teacher)
        return samples

    def student(self, teacher: Prediction) -> TrajectoryStudent:
        """The student before it is trained."""
        torch.manual_seed(self.seed)
        return student_from_teacher(teacher, self.times, **self._student_options())

    def _student_options(self) -> dict[str, Any]:
        """The options of `student_from_teacher`."""
        options = {name: getattr(self, name) for name in ("target", "where", "once", "activation", "init", "told")}
        if self.guidance is not None:
            options["guidance"] = True
        if self.where != "published":
            return options
        with torch.device("meta"):
            net = net_from_config(self.net)
        assert isinstance(net, IDDPMUNet)
        names = frozenset(published_blocks(net))

        def where(name: str, shape: torch.Size) -> bool:
            return name in names

        return {**options, "where": where}

    def workload(self, shape: tuple[int, ...] | None = None, classes: int | None = None) -> Workload:
        """What the run consists of, for `dsno.runs.plan.plan`.

        Arguments:
            shape: The shape of a sample; the data's, or the network's own, by default.
            classes: How many the teacher is told; those of the data by default.

        Raises:
            FileNotFoundError: if the data are needed and not at hand.
        """
        if "name" not in self.net and shape is None:
            samples = load_data(self.data, size=self.size, range=self.range)
            shape = samples.shape
            if self.conditional and samples.labels is not None:
                classes = samples.classes

        def teacher() -> Prediction:
            if shape is None or "name" in self.net:
                net = net_from_config(self.net)
            else:
                net = UNet(shape[0], shape[1:], **{**self.net, "classes": classes})
            return Prediction(net, Cosine(), self.kind, clip=self.clip, shape=shape, classes=classes)

        return Workload(
            self.data,
            teacher,
            self.times,
            self.count,
            self.solver,
            self.solver_steps,
            targets=self.targets,
            student=self._student_options(),
            train=self._here(self.distill),
            train_batch=self.distill_batch,
            others=self.others,
            teach=self._here(self.teach),
            teach_batch=self.teach_batch,
            guided=self.guidance is not None,
            finish=None if self.finish is None else self._here(self.finish),
            finish_batch=self.finish_batch,
            finish_inner=self.finish_inner,
        )

    def _here(self, config: TrainConfig, out: Path | None = None) -> TrainConfig:
        """How to train on this machine, in the precision of what was begun in `out`."""
        places = [] if out is None else [out / "training", *(out / "training").glob("*")]
        precision: Precision = "auto" if any(map(snapshots_in, places)) else wished(config.precision)
        return replace(config, seed=self.seed, precision=precision)

    def _feature_nets(self, samples: Samples) -> list[str]:
        """The folders of the feature networks that the run needs."""
        if samples.labels is None:
            return []
        return ["features", "loss_features"] if "perceptual" in self.distance else ["features"]

    def _teach(self, samples: Samples, out: Path, report: Report) -> None:
        if "name" in self.net:
            net: dict[str, Any] = {"net": net_from_config(self.net)}
        else:
            net = {**self.net, "channels": tuple(self.net["channels"])}
        teach(
            samples,
            out,
            config=self._here(self.teach, out),
            batch=self.teach_batch,
            kind=self.kind,
            conditional=self.conditional,
            drop=0.0 if self.guidance is None else None,
            clip=self.clip,
            resume=True,
            report=report,
            **net,
        )

    def _checked(self, out: Path | str) -> Path:
        """The folder of a run of these settings, or of none yet."""
        out = Path(out)
        path = writable(out) / SETTINGS
        if not path.is_file():
            return out
        noted = read_json(path)
        if not isinstance(noted, dict):
            raise ValueError(f"{path} is of no recipe: choose another folder")
        # What a recipe of an older version did not say is as it is by default.
        known = _flat(json.loads(json.dumps(asdict(Recipe())))) | _flat(noted)
        # As it would be read back: JSON knows no tuples.
        for key, value in _flat(json.loads(json.dumps(asdict(self)))).items():
            if key != "data" and known.get(key) != value:
                raise ValueError(
                    f"{out} holds a run with {key} = {known.get(key)}, this one has {value}: choose another folder"
                )
        return out


SETTINGS = "recipe.json"


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
