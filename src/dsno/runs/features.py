"""Training of the feature network that qualities are measured in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsno.data.samples import Samples
from dsno.nets.features import FeatureNet, save_feature_net
from dsno.seeds import generator
from dsno.train import Report, TrainConfig, quiet, stage_progress, train

__all__ = ["train_features"]


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
    images: Samples, out: Path | str, steps: int = 800, seed: int = 0, width: int = 16, report: Report = quiet
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
    train(net, objective, config, Path(out) / "training", resume=True, progress=stage_progress("features", report))
    with torch.no_grad():
        accuracy = float((net(images.x).argmax(-1) == images.labels).float().mean())
    save_feature_net(out, net, data=images.name, training_accuracy=accuracy)
    return net
