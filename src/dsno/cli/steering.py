"""What `sample --guide` and `generate --guide` ask: a teacher pulled towards a class that it was never told."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from dsno.cli.conditions import labels_by_seed
from dsno.condition import Cond
from dsno.denoise import Prediction, tensors_of
from dsno.guidance.guides import CleanClassifier, NoisyClassifier
from dsno.nets.backbone import sample_shape
from dsno.nets.classifier import Classifier, load_classifier
from dsno.steer import TARGET, Guide, Steered
from dsno.trajectories.labels import Label

__all__ = ["classifier_named", "steered", "targets_by_seed"]


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


def steered(ref: str, teacher: Prediction, guide: str, scale: float | None) -> Steered:
    """A teacher under a guide, 1 its scale by default; the classifier goes where the teacher is.

    Raises:
        ValueError: for a classifier of other samples or classes than the teacher's, or a scale that is negative or not
            finite; before any network runs.
    """
    net = classifier_named(guide)
    if net.shape != sample_shape(teacher):
        raise ValueError(
            f"{guide} reads samples of shape {net.shape}, and the teacher {ref} makes {sample_shape(teacher)}: train a "
            "classifier of these"
        )
    if teacher.classes is not None and teacher.classes != net.classes:
        raise ValueError(f"{guide} knows {net.classes} classes, and the teacher {ref} is told one of {teacher.classes}")
    net.to(next(iter(tensors_of(teacher).values())).device).requires_grad_(False)
    kind: Guide = (NoisyClassifier if net.noisy else CleanClassifier)(net, teacher.schedule)
    return Steered(teacher, kind, 1.0 if scale is None else scale).eval()


def targets_by_seed(guide: str, teacher: Prediction, labels: str) -> Label:
    """What each row is pulled towards, by its seed, as `labels_by_seed` takes it; a teacher of classes is told it, too.

    Raises:
        ValueError: for a label outside the classifier's.
    """
    drawn = labels_by_seed(guide, classifier_named(guide).classes, labels)

    def condition(seeds: Tensor) -> Cond:
        target = drawn(seeds)
        return {TARGET: target, **({"label": target} if teacher.classes else {})}

    return condition
