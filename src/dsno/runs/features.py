"""Training of the feature network that qualities and perceptual distances are measured in: a small classifier.

What is optimised must not be what is measured, so a perceptual loss has a feature network of its own, of another seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsno.data.samples import Samples
from dsno.nets.features import FeatureNet, save_feature_net
from dsno.outputs import FEATURES, claimed
from dsno.seeds import generator
from dsno.train import Report, TrainConfig, quiet, stage_progress, train

__all__ = ["train_features"]


class _Classify:
    """Cross-entropy on labelled images, shifted by up to a pixel."""

    def __init__(self, x: Tensor, labels: Tensor, batch: int, seed: int) -> None:
        self.x, self.labels, self.batch, self.seed = x, labels, batch, seed

    def batches(self, start: int, rank: int, world: int) -> Iterator[dict[str, Tensor]]:
        step = start
        while True:
            g = generator(self.seed, step)
            i = torch.randint(len(self.x), (self.batch,), generator=g).chunk(world)[rank]
            dx, dy = torch.randint(-1, 2, (2,), generator=g).tolist()
            yield {"x": self.x[i].roll((dx, dy), (2, 3)), "label": self.labels[i]}
            step += 1

    def __call__(self, net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(net(batch["x"]), batch["label"])


def train_features(
    images: Samples, out: Path | str, steps: int = 800, seed: int = 0, width: int = 16, report: Report = quiet
) -> FeatureNet:
    """Train a classifier of labelled images and write it to `out`; what was begun there is continued.

    Arguments:
        images: The data, (N, C, H, W).
        out: The network's folder.
        steps: Training steps, of 128 images.
        seed: Of the weights and the batches.
        width: Channels of the first layer.
        report: Told of the progress.

    Raises:
        ValueError: if the images have no labels.
    """
    if images.labels is None or images.classes is None:
        raise ValueError(f"{images.name} has no labels to train a feature network on")
    torch.manual_seed(seed)
    net = FeatureNet(f"{Path(images.name).stem}_cnn", images.shape[0], images.classes, width)
    config = TrainConfig(steps=steps, lr=2e-3, warmup=50, ema=0.99, checkpoint_every=steps, seed=seed)
    objective = _Classify(images.x, images.labels, 128, seed)
    with claimed(out, FEATURES, resume=True):
        train(net, objective, config, Path(out) / "training", resume=True, progress=stage_progress("features", report))
        with torch.no_grad():
            accuracy = float((net(images.x).argmax(-1) == images.labels).float().mean())
        save_feature_net(out, net, data=images.name, training_accuracy=accuracy)
    return net
