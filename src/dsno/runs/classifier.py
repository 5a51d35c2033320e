r"""Training of a classifier that guides, on noised images of every level or on clean ones.

Noised images are $x_t = \cos\theta \, x_0 + \sin\theta \, \epsilon$ with $\theta$ uniform in $[0, \pi / 2]$, the angle
that the network is told: every level is learned alike, and the classifier serves teachers of any schedule
(`dsno.nets.classifier`). What guides must not be what judges: agreement is measured by another classifier, of another
seed or width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsno.data.samples import Samples
from dsno.denoise import expand_like
from dsno.nets.classifier import Classifier, save_classifier
from dsno.outputs import CLASSIFIER, claimed
from dsno.seeds import generator
from dsno.train import Report, TrainConfig, quiet, stage_progress, train

__all__ = ["accuracy_at", "train_classifier"]

LEVELS = (0.0, 0.25, 0.5, 0.75)
"""Angles, in right angles, at which the training accuracy is noted."""


class _ClassifyNoised:
    """Cross-entropy of noised samples, the two levels told, or of clean ones; images are shifted by up to a pixel."""

    def __init__(self, x: Tensor, labels: Tensor, noisy: bool, batch: int, seed: int) -> None:
        self.x, self.labels, self.noisy, self.batch, self.seed = x, labels, noisy, batch, seed

    def batches(self, start: int, rank: int, world: int) -> Iterator[dict[str, Tensor]]:
        axes, step = tuple(range(2, self.x.ndim)), start
        while True:
            g = generator(self.seed, step)
            i = torch.randint(len(self.x), (self.batch,), generator=g)
            shift = torch.randint(-1, 2, (len(axes),), generator=g).tolist()
            theta = torch.rand(self.batch, generator=g) * (math.pi / 2 if self.noisy else 0)
            eps = torch.randn(self.batch, *self.x.shape[1:], generator=g)
            mine = torch.arange(self.batch).chunk(world)[rank]
            x_0, alpha, sigma = self.x[i[mine]].roll(shift, axes), theta[mine].cos(), theta[mine].sin()
            x_t = expand_like(alpha, x_0) * x_0 + expand_like(sigma, x_0) * eps[mine]
            yield {"x": x_t, "alpha": alpha, "sigma": sigma, "label": self.labels[i[mine]]}
            step += 1

    def __call__(self, net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(net(batch["x"], batch["alpha"], batch["sigma"]), batch["label"])


@torch.no_grad()
def accuracy_at(net: Classifier, x: Tensor, labels: Tensor, theta: float, batch: int = 1024) -> float:
    """The share of samples (N, *shape) whose label it names at an angle, from noise of a fixed seed."""
    alpha, sigma = math.cos(theta), math.sin(theta)
    eps, right = torch.randn(x.shape, generator=generator(0)), 0
    for rows in torch.arange(len(x)).split(batch):
        right += int((net(alpha * x[rows] + sigma * eps[rows], alpha, sigma).argmax(-1) == labels[rows]).sum())
    return right / len(x)


def train_classifier(
    images: Samples,
    out: Path | str,
    noisy: bool = True,
    channels: Sequence[int] = (16, 32, 64),
    patch: int = 1,
    steps: int = 2000,
    batch: int = 128,
    seed: int = 0,
    report: Report = quiet,
    resume: bool = True,
    overwrite: bool = False,
) -> Classifier:
    """Train a classifier of labelled samples and write it to `out`.

    Arguments:
        images: The data, (N, C, *spatial), with labels.
        out: The network's folder.
        noisy: On samples of all noise levels, for `NoisyClassifier`; else on clean ones.
        channels: Width of each level; each but the first halves the positions.
        patch: Side of the cubes that the network sees as one position.
        steps: Training steps.
        batch: Samples per step.
        seed: Of the weights and the batches.
        report: Told of the progress.
        resume: Continue what is in `out`.
        overwrite: Throw away the classifier in `out`; wins over `resume`.

    Raises:
        BlockingIOError: if another run is writing to `out`.
        FileExistsError: if `out` has something in it and neither `resume` nor `overwrite` is set, or holds anything
            but a classifier.
        ValueError: for samples without labels of two classes, or that cannot be halved at every level; if `out` holds
            a classifier of other settings that is to be resumed.
    """
    if images.labels is None or images.classes is None or images.classes < 2:
        raise ValueError(f"{images.name} has no labels of two classes to train a classifier on: give data that has")
    torch.manual_seed(seed)
    C, *spatial = images.shape
    square = len(spatial) == 2 and spatial[0] == spatial[1]
    net = Classifier(C, spatial[0] if square else spatial, images.classes, tuple(channels), patch, noisy)
    config = TrainConfig(steps=steps, lr=2e-3, warmup=min(100, steps // 10), ema=0.99, checkpoint_every=500, seed=seed)
    objective = _ClassifyNoised(images.x, images.labels, noisy, batch, seed)
    settings = {"data": images.name, "count": len(images), "batch": batch, **net.config}
    with claimed(out, CLASSIFIER, resume and not overwrite, overwrite):
        progress = stage_progress("classifier", report)
        # What was to be overwritten is gone.
        train(net, objective, config, Path(out) / "training", resume=True, progress=progress, settings=settings)
        net.eval()
        shown = images.x[:10_000], images.labels[:10_000]
        levels = LEVELS if noisy else LEVELS[:1]
        found = {f"{level:g}": accuracy_at(net, *shown, level * math.pi / 2) for level in levels}
        save_classifier(out, net, data=images.name, training_accuracy=found)
    return net
