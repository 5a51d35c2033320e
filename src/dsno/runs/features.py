"""Training of the feature network that qualities and perceptual distances are measured in: a small classifier.

What is optimised must not be what is measured, so a perceptual loss has a feature network of its own, of another seed.

Images without labels are turned by a random number of quarter turns, and the network tells how many (Gidaris, Singh &
Komodakis, 2018, arXiv 1803.07728), for which it has to know what is in them; those that are not square are mirrored in
none, one or both directions instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsno.data.samples import Samples
from dsno.nets.features import FeatureNet, save_feature_net
from dsno.outputs import FEATURES, claimed
from dsno.seeds import generator
from dsno.train import Report, TrainConfig, quiet, stage_progress, train

__all__ = ["train_features", "turned"]

TURNS = 4
"""Ways to turn an image, or to mirror it."""


def turned(x: Tensor, label: Tensor) -> Tensor:
    """Images (B, C, H, W), each turned by `label` (B,) quarter turns; mirrored in what its two bits say if H != W."""
    if x.shape[-1] == x.shape[-2]:
        ways = [x.rot90(k, (2, 3)) for k in range(TURNS)]
    else:
        ways = [x, x.flip(3), x.flip(2), x.flip(2, 3)]
    out = torch.empty_like(x)
    for k, way in enumerate(ways):
        out[label == k] = way[label == k]
    return out


class _Classify:
    """Cross-entropy on images shifted by up to a pixel: of their labels, or without any of how they are turned."""

    def __init__(self, x: Tensor, labels: Tensor | None, batch: int, seed: int) -> None:
        self.x, self.labels, self.batch, self.seed = x, labels, batch, seed

    def batches(self, start: int, rank: int, world: int) -> Iterator[dict[str, Tensor]]:
        step = start
        while True:
            g = generator(self.seed, step)
            i = torch.randint(len(self.x), (self.batch,), generator=g).chunk(world)[rank]
            dx, dy = torch.randint(-1, 2, (2,), generator=g).tolist()
            x = self.x[i].roll((dx, dy), (2, 3))
            if self.labels is None:
                label = torch.randint(TURNS, (self.batch,), generator=g).chunk(world)[rank]
                yield {"x": turned(x, label), "label": label}
            else:
                yield {"x": x, "label": self.labels[i]}
            step += 1

    def __call__(self, net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(net(batch["x"]), batch["label"])


def _each_turned_once(x: Tensor) -> tuple[Tensor, Tensor]:
    """The images, each turned in one of the ways, and in which."""
    label = torch.arange(len(x)) % TURNS
    return turned(x, label), label


def train_features(
    images: Samples,
    out: Path | str,
    steps: int = 800,
    seed: int = 0,
    width: int = 16,
    report: Report = quiet,
    labelled: bool = True,
    resume: bool = True,
    overwrite: bool = False,
) -> FeatureNet:
    """Train a classifier of images, or of turns of images without labels, and write it to `out`.

    Arguments:
        images: The data, (N, C, H, W).
        out: The network's folder.
        steps: Training steps, of 128 images.
        seed: Of the weights and the batches.
        width: Channels of the first layer.
        report: Told of the progress.
        labelled: Learn the labels; otherwise turns.
        resume: Continue what is in `out`.
        overwrite: Throw away the feature network in `out`; wins over `resume`.

    Raises:
        BlockingIOError: if another run is writing to `out`.
        FileExistsError: if `out` has something in it and neither `resume` nor `overwrite` is set, or holds anything
            but a feature network.
        ValueError: if they are no images, smaller than 8x8, or `labelled` and without two or more classes; if `out`
            holds a network of other images that is to be resumed.
    """
    if labelled and (images.labels is None or images.classes is None or images.classes < 2):
        raise ValueError(
            f"{images.name} has no labels of two classes to train a feature network on: train one that tells how "
            "images are turned, labelled=False (`dsno features`)"
        )
    torch.manual_seed(seed)
    stem, classes = Path(images.name).stem, images.classes if labelled else TURNS
    net = FeatureNet(f"{stem}_{'cnn' if labelled else 'turns'}", images.shape[0], cast(int, classes), width)
    net.check(images.x)
    config = TrainConfig(steps=steps, lr=2e-3, warmup=50, ema=0.99, checkpoint_every=steps, seed=seed)
    objective = _Classify(images.x, images.labels if labelled else None, 128, seed)
    settings = {"data": images.name, "width": width, "labelled": labelled}
    progress = stage_progress("features", report)
    with claimed(out, FEATURES, resume and not overwrite, overwrite):
        # What was to be overwritten is gone.
        train(net, objective, config, Path(out) / "training", resume=True, progress=progress, settings=settings)
        shown = (images.x, images.labels) if labelled else _each_turned_once(images.x)
        with torch.no_grad():
            accuracy = float((net(shown[0]).argmax(-1) == shown[1]).float().mean())
        save_feature_net(out, net, data=images.name, labelled=labelled, training_accuracy=accuracy)
    return net
