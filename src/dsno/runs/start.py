"""Training of a start: a noise predictor for one teacher and one problem, from a data set to a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsno.checkpoint import CONFIG, read_json
from dsno.condition import Cond, map_cond, named
from dsno.config import settled
from dsno.data.samples import Samples, check_samples
from dsno.denoise import Denoiser, evaluating, innermost, modules_of
from dsno.distillation.distances import from_folder
from dsno.engine import training_device
from dsno.inverse.decoded import Decoded
from dsno.inverse.problem import Problem
from dsno.inverse.start import OneJump, latents_of
from dsno.inverse.start_loss import Inversion, Learner, Shares
from dsno.inverse.start_net import PHASES, NoisePredictor, save_start
from dsno.outputs import START, claimed
from dsno.schedule import Schedule
from dsno.snapshots import changes_of
from dsno.train import Report, TrainConfig, check_finished, quiet, stage_progress, train

__all__ = ["fingerprint", "problem_of", "train_start"]


def train_start(
    teacher: Denoiser,
    problem: Problem | Decoded,
    images: Samples,
    out: Path | str,
    channels: tuple[int, ...] = (32, 64),
    config: TrainConfig = TrainConfig(),  # noqa: B008 (frozen)
    batch: int = 64,
    phases: Sequence[float] | None = None,
    shares: Shares = Shares(),  # noqa: B008 (frozen)
    features: Path | None = None,
    labelled: bool = False,
    told: Cond | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report: Report = quiet,
    **options: Any,
) -> NoisePredictor:
    """Train a learned start of a teacher for a problem, and write it to `out`; see `Inversion` and `train`.

    Arguments:
        teacher: Any denoiser with a `schedule`, guided or not; a one-pass student as a `OneJump`. It gets no gradient.
        problem: What is measured of the images. A teacher of latents takes it `Decoded`, with its autoencoder.
        images: The data.
        out: The start's folder.
        channels: Widths of the predictor, a small `UNet`, highest resolution first.
        config: How to train.
        batch: Samples per step.
        phases: Where restorations start; up to a quarter by default, of a student that starts from noise alone at 1.
        shares: What the parts of the loss weigh.
        features: The folder of a feature network, for the perceptual part, which is left out without one.
        labelled: Tell the teacher the labels of the images.
        told: What the teacher is told of every image instead, a text say: one row, (1, ...).
        resume: Continue what is in `out`, of the same settings.
        overwrite: Throw away what an earlier run wrote to `out`.
        report: Told of the progress.
        options: Further arguments of the `UNet` (`attention`, `patch`, `padding_mode`, ...).

    Raises:
        BlockingIOError: if another run is writing to `out`.
        FileExistsError: if `out` has something in it and neither `resume` nor `overwrite` is set, or holds anything but
            a start.
        ValueError: if the problem is none of these images, the teacher says no schedule, or there are no labels
            although `labelled`; if `out` holds a start of other settings that is to be resumed.
    """
    check_samples(images.x, images.name)
    if labelled and told is not None:
        raise ValueError("the teacher is told the labels of the images (labelled=True) or `told`: leave one out")
    if labelled and images.labels is None:
        raise ValueError(f"{images.name} has no labels to tell the teacher: leave labelled out")
    schedule = _schedule(teacher)
    if phases is None:
        phases = (1.0,) if isinstance(teacher, OneJump) and teacher.from_noise else PHASES
    shape = images.shape
    if isinstance(problem, Decoded):
        with torch.no_grad():
            shape = latents_of(problem).encode(images.x[:1].to(latents_of(problem).mean)).shape[1:]
    torch.manual_seed(config.seed)
    C, *spatial = shape
    size = spatial[0] if len(spatial) == 2 and spatial[0] == spatial[1] else spatial
    net = NoisePredictor({"in_channels": C, "image_size": size, "channels": list(channels), **options}, phases)
    learner = Learner.of(net, shares)
    distance = None if features is None or not shares.perceptual else from_folder("perceptual", features)
    labels = images.labels if labelled else map_cond(lambda c: c.expand(len(images), *c.shape[1:]), told)
    objective = Inversion(
        images.x, problem, teacher, schedule, phases, labels, distance, shares, batch, config.seed, shape
    )
    settings = {
        "images": images.name,
        "count": len(images),
        "problem": fingerprint(problem),
        "phases": list(phases),
        "loss": dataclasses.asdict(shares),
        "features": None if distance is None else str(features),
        "labelled": labelled,
        **({} if told is None else {"told": {name: fingerprint(c) for name, c in named(told).items()}}),
        "batch": batch,
        **options,
    }
    out, training = Path(out), Path(out) / "training"
    with claimed(out, START, resume, overwrite), _held(teacher, problem, training_device(net)):
        if resume:
            check_finished(out, config, config.steps)
        config, said = settled(config, training_device(net), training)
        if said:
            report("start", 0, config.steps, said)
        # What was to be overwritten is gone.
        progress = stage_progress("start", report)
        train(learner, objective, config, training, resume=True, progress=progress, settings=settings)
        notes: dict[str, Any] = {"training": dataclasses.asdict(config), **settings}
        if changes := changes_of(training):
            notes["changes"] = changes
        save_start(out, net, **notes)
    return net.requires_grad_(False)


def _schedule(teacher: Denoiser) -> Schedule:
    schedule = getattr(innermost(teacher), "schedule", None)
    if not isinstance(schedule, Schedule):
        raise ValueError(
            f"a {type(teacher).__name__} does not say its schedule: wrap its network in a Prediction, or a "
            "student in a OneJump"
        )
    return schedule


def fingerprint(value: object) -> str:
    """A problem in a line, the same in another run: tensors by their shape and what they hold, and functions without
    where they lie in memory."""
    if isinstance(value, Tensor):
        held = hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        return f"{' x '.join(map(str, value.shape))} numbers {held[:8]}"
    if isinstance(value, tuple):
        return f"({', '.join(map(fingerprint, value))})"
    if isinstance(value, Problem | Decoded):
        fields = ((name, part) for name, part in vars(value).items() if not name.startswith("_"))
        return f"{type(value).__name__}({', '.join(f'{name}={fingerprint(part)}' for name, part in fields)})"
    return type(value).__name__ if isinstance(value, nn.Module) else re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def problem_of(folder: Path | str) -> str | None:
    """What a start was trained for, as `fingerprint` says it; None where its folder does not."""
    notes = read_json(Path(folder) / CONFIG).get("notes", {})
    found = notes.get("problem")
    return found if isinstance(found, str) else None


@contextlib.contextmanager
def _held(teacher: Denoiser, problem: Problem | Decoded, device: torch.device) -> Iterator[None]:
    """The teacher and the decoder where the training is, without dropout."""
    modules = list(modules_of(teacher).values())
    if isinstance(problem, Decoded):
        modules.append(latents_of(problem))
    for module in modules:
        module.to(device)
    with evaluating(*modules):
        yield
