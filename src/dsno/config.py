"""How to train: the settings of a run, its learning rate, and its precision where that is left open."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

import torch

from dsno.engine import agreed
from dsno.precision import Precision, best_precision
from dsno.snapshots import config_of, latest

__all__ = ["TrainConfig", "learning_rate", "settled"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train."""

    steps: int = 4000
    """Optimiser steps."""
    lr: float = 2e-4
    """Peak learning rate of Adam."""
    warmup: int = 100
    """Steps of linear warm-up."""
    decay: Literal["constant", "cosine"] = "cosine"
    """What the learning rate does after the warm-up; cosine goes to zero."""
    halve_at: tuple[int, ...] = ()
    """Steps from which the learning rate is halved, each once more."""
    ema: float = 0.999
    """Decay of the moving average that is saved."""
    ramp: int = 10
    """How soon the average forgets: after k steps its decay is at most (1 + k) / (ramp + k), so that a step weighs as
    the power ramp - 2 of its number (Karras et al., 2023, arXiv 2312.02696, section 3.1). At least 2; small where the
    weights wander."""
    clip: float | None = 1.0
    """Largest gradient norm, or None."""
    accumulate: int = 1
    """Batches per optimiser step; 1 leaves it to accelerate's configuration."""
    precision: Precision = "no"
    """Mixed precision; `no` leaves it to accelerate's configuration, `auto` takes bf16 where that is quicker, found out
    at the start. float32 products use TF32 on GPUs that have it."""
    compile: bool = False
    """Compile the model with `torch.compile`: minutes at the start, faster steps."""
    channels_last: bool = False
    """Keep images and the weights of their convolutions channels last, which tensor cores prefer."""
    seed: int = 0
    """Determines dropout; the objective has its own."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 50
    """Steps between log lines."""
    tracker: str | None = None
    """A tracker of accelerate's (`tensorboard`, `wandb`, ...), or None."""

    def __post_init__(self) -> None:
        least = {"steps": 1, "accumulate": 1, "checkpoint_every": 1, "log_every": 1, "warmup": 0, "seed": 0, "ramp": 2}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if min(self.halve_at, default=0) < 0:
            raise ValueError(f"halve_at are steps from 0 on, got {self.halve_at}")
        for name in ("lr", "clip"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        if self.decay not in ("constant", "cosine"):
            raise ValueError(f"unknown decay {self.decay!r}: expected constant or cosine")
        if self.precision not in get_args(Precision):
            raise ValueError(f"unknown precision {self.precision!r}: expected no, bf16, fp16 or auto")


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of step `step` (from 0): linear warm-up, then constant or a half cosine to zero, and halvings."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    lr = config.lr * 0.5 ** sum(step >= milestone for milestone in config.halve_at)
    if config.decay == "constant":
        return lr
    progress = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return lr * 0.5 * (1 + math.cos(math.pi * progress))


def settled(config: TrainConfig, device: torch.device, *begun: Path) -> tuple[TrainConfig, str]:
    """`config` with a precision instead of `auto`, and a line that says which and why; nothing where none was open.

    It is that of what was begun in one of the folders, else what accelerate's configuration says, else what is best on
    `device`, where of several processes the first one decides; a run keeps it wherever it goes on.
    """
    if config.precision != "auto":
        return config, ""
    # The folders may be those that the first process has just cleared.
    found, why = agreed(lambda: _found(device, begun))
    return replace(config, precision=found), f"training in {'fp32' if found == 'no' else found}: {why}"


def _found(device: torch.device, begun: Sequence[Path]) -> tuple[Precision, str]:
    held = [config_of(path).get("precision") for path in map(latest, begun) if path is not None]
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    for precision in get_args(Precision):
        if precision in held:
            return precision, "as it was begun"
    if told != "no":
        return cast(Precision, told), "as accelerate is configured"
    return best_precision(device)
