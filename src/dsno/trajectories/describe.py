"""What a manifest says of a teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dsno.checkpoint import digest
from dsno.condition import flat, nested
from dsno.cost import Meter
from dsno.denoise import Denoiser, Guided, Prediction, Threshold, tensors_of
from dsno.trajectories.manifest import Manifest

__all__ = ["describe"]


def describe(denoiser: Denoiser, description: Mapping[str, object]) -> Manifest:
    """What a manifest says of the teacher: what it is, the checksum of its weights, and a description in words."""
    return {**_described(denoiser), "description": dict(description)}


def _described(denoiser: Denoiser) -> Manifest:
    """What a denoiser is, as far as it can be told: names, numbers and checksums."""
    while isinstance(denoiser, Meter):
        denoiser = denoiser.denoiser
    known: Manifest = {"class": getattr(denoiser, "__name__", type(denoiser).__name__)}
    if isinstance(denoiser, Guided):
        null = nested({k: _noted(x) for k, x in flat(denoiser.null).items()})["cond"]
        return {**known, "weight": denoiser.weight, "null": null, "denoiser": _described(denoiser.denoiser)}
    if isinstance(denoiser, Prediction):
        clip = dataclasses.asdict(denoiser.clip) if isinstance(denoiser.clip, Threshold) else denoiser.clip
        known |= {"kind": denoiser.kind, "clip": clip}
        # Left out where it has no effect: manifests from before it existed stay as they are.
        known |= {"data_std": denoiser.data_std} if denoiser.data_std != 1 else {}
    state = tensors_of(denoiser)
    return {**known, "sha256": digest(state) if state else None}


def _noted(x: Tensor) -> Any:
    """A number as it is, a larger tensor by its checksum."""
    if x.ndim == 0:
        return x.item()
    return {"shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch."), "sha256": digest({"": x})}
