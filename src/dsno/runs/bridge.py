"""Training of a bridge: a network that sees two pictures, from pairs to a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsno.bridge.coefficients import Bridge, BrownianBridge
from dsno.bridge.files import save_bridge
from dsno.bridge.prediction import BridgeKind, BridgePrediction
from dsno.bridge.train import Bridging
from dsno.config import settled
from dsno.data.pairs import Pairs
from dsno.data.samples import check_samples
from dsno.engine import training_device
from dsno.nets.backbone import net_from_config
from dsno.outputs import BRIDGE, claimed
from dsno.snapshots import changes_of
from dsno.train import Report, TrainConfig, check_finished, quiet, stage_progress, train

__all__ = ["teach_bridge"]


def teach_bridge(
    pairs: Pairs,
    out: Path | str,
    channels: tuple[int, ...] = (32, 64),
    config: TrainConfig = TrainConfig(),  # noqa: B008 (frozen)
    batch: int = 128,
    kind: BridgeKind = "ddbm",
    bridge: Bridge | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report: Report = quiet,
    clip: float | None = None,
    net: nn.Module | None = None,
    **options: Any,
) -> BridgePrediction:
    """Train a bridge on pairs and write it to `out`; see `Bridging` and `train`.

    Arguments:
        pairs: The data.
        out: The bridge's folder.
        channels: Widths of a small `PairedUNet`, highest resolution first.
        config: How to train.
        batch: Pairs per step.
        kind: What the network predicts.
        bridge: The coefficients; a Brownian bridge by default.
        resume: Continue what is in `out`, of the same settings.
        overwrite: Throw away what an earlier run wrote to `out`.
        report: Told of the progress.
        clip: Bound on the predictions; the training has none.
        net: A backbone to train instead, which is told `start`.
        options: Further arguments of the `UNet` (`attention`, `patch`, `padding_mode`, ...).

    Raises:
        BlockingIOError: if another run is writing to `out`.
        FileExistsError: if `out` has something in it and neither `resume` nor `overwrite` is set, or holds anything but
            a bridge.
        ValueError: if the samples do not fit the network, or `out` holds a bridge of other settings that is to be
            resumed.
    """
    bridge = BrownianBridge() if bridge is None else bridge
    for side in (pairs.start, pairs.x):
        check_samples(side, pairs.name)
    torch.manual_seed(config.seed)
    if net is None:
        C, *spatial = pairs.shape
        square = len(spatial) == 2 and spatial[0] == spatial[1]
        arguments = {"in_channels": C, "image_size": spatial[0] if square else spatial, "channels": list(channels)}
        net = net_from_config({"name": "PairedUNet", "net": {**arguments, **options}})
    objective = Bridging(pairs.start, pairs.x, bridge, kind, None, batch, config.seed)
    settings = {
        "pairs": pairs.name,
        "count": len(pairs),
        "kind": kind,
        "bridge": bridge.config,
        "batch": batch,
        **options,
    }
    out, training = Path(out), Path(out) / "training"
    with claimed(out, BRIDGE, resume, overwrite):
        if resume:
            check_finished(out, config, config.steps)
        config, said = settled(config, training_device(net), training)
        if said:
            report("teach", 0, config.steps, said)
        # What was to be overwritten is gone.
        train(
            net, objective, config, training, resume=True, progress=stage_progress("teach", report), settings=settings
        )
        made = BridgePrediction(net, bridge, kind, objective.moments, clip, pairs.shape).eval()
        notes: dict[str, Any] = {
            "pairs": pairs.name,
            "units": dataclasses.asdict(pairs.units),
            "training": dataclasses.asdict(config),
        }
        if pairs.problem is not None:
            notes["problem"] = dict(pairs.problem)
        if changes := changes_of(training):
            notes["changes"] = changes
        save_bridge(out, made, **notes, batch=batch)
    return made
