"""What `dsno sample --guide` draws: a teacher's samples, pulled towards a class that it may never have been told."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dsno.condition import Cond
from dsno.denoise import Prediction
from dsno.grids import even
from dsno.guidance.guides import CleanClassifier, NoisyClassifier
from dsno.nets.backbone import sample_shape
from dsno.nets.classifier import Classifier, load_classifier
from dsno.solvers.named import solver_named
from dsno.solvers.run import SolverSampler
from dsno.steer import TARGET, Guide, Steered
from dsno.trajectories.labels import Label, uniform_labels

__all__ = ["classifier_named", "steered_sampler", "targets_by_seed"]


def classifier_named(guide: str) -> Classifier:
    """The classifier of `classifier:FOLDER`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for another guide, or a folder of something else.
    """
    kind, _, folder = guide.partition(":")
    if kind != "classifier" or not folder:
        raise ValueError(
            f"unknown guide {guide!r}: expected classifier:FOLDER, of what `dsno classifier` wrote; others are for "
            "Python, Steered(teacher, guide, scale)"
        )
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"no folder {folder} of a classifier: train one, `dsno classifier --out {folder}`")
    return load_classifier(folder)


def steered_sampler(
    ref: str, teacher: Prediction, guide: str, scale: float, solver: str, steps: int, device: torch.device
) -> SolverSampler:
    """The sampler of a teacher under a guide, on equal steps of the phase.

    Raises:
        ValueError: for a classifier of other samples than the teacher's, a scale that is negative or not finite, an
            unknown solver, or no steps; all before any network runs.
    """
    net = classifier_named(guide)
    if net.shape != sample_shape(teacher):
        raise ValueError(
            f"{guide} reads samples of shape {net.shape}, and the teacher {ref} makes {sample_shape(teacher)}: train a "
            "classifier of these"
        )
    if teacher.classes is not None and teacher.classes != net.classes:
        raise ValueError(f"{guide} knows {net.classes} classes, and the teacher {ref} is told one of {teacher.classes}")
    net.to(device).requires_grad_(False)
    kind: Guide = (NoisyClassifier if net.noisy else CleanClassifier)(net, teacher.schedule)
    model = Steered(teacher, kind, scale).eval()
    return SolverSampler(model, teacher.schedule, even(teacher.schedule, steps), solver_named(solver, model))


def targets_by_seed(guide: str, teacher: Prediction, label: int | None) -> Label:
    """The class that each row is pulled towards, by its seed: one for all, or drawn; a teacher of classes is told it.

    Raises:
        ValueError: for a label outside the classifier's.
    """
    classes = classifier_named(guide).classes
    if label is not None and not 0 <= label < classes:
        raise ValueError(f"label {label} is outside the classes of {guide}: expected 0 to {classes - 1}")
    drawn = uniform_labels(classes)

    def condition(seeds: Tensor) -> Cond:
        target = drawn(seeds) if label is None else torch.full_like(seeds, label)
        return {TARGET: target, **({"label": target} if teacher.classes else {})}

    return condition
