"""Models of the diffusers library as teachers: the network, and the scheduler that says what it was trained on.

Everything is read from their files, nothing is guessed: the convention from the scheduler (`schedulers`), what the
network is told from its own configuration (`dsno.nets.diffusers`), the length of a text and the sizes that Stable
Diffusion XL is told from the parts of the pipeline. Weights are read from safetensors, never from a pickle.

Latent models are teachers in latent space; `latents.load_decoder` gives what turns their samples into images, and
`prompts.encode_prompts` what they are told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from torch import nn

from dsno.borrow import unwrapped
from dsno.checkpoint import read_json
from dsno.denoise import Prediction
from dsno.hub import local_copy
from dsno.nets.diffusers import DiffusersNet, network_class, stated_shape
from dsno.outside import Length, check, reading
from dsno.teachers.parts import (
    STEM,
    TEXT_LENGTH,
    longest_text,
    network_folder,
    network_name,
    network_of,
    read_part,
    scheduler_file,
    with_weights,
)
from dsno.teachers.schedulers import load_scheduler, read_convention

__all__ = ["load_diffusers", "wrap_diffusers"]

_LATENT_FACTOR = 8
"""Pixels a side that one latent stands for, where no autoencoder says it: Stable Diffusion's."""


def wrap_diffusers(
    model: nn.Module,
    scheduler: Any,
    shape: Sequence[int] | None = None,
    text_length: int = TEXT_LENGTH,
    time_ids: Sequence[float] | None = None,
) -> Prediction:
    """A network of diffusers and the scheduler that says what it was trained on, as a teacher.

    Arguments:
        model: One of the classes of `DiffusersNet`. The teacher shares its weights; the model itself, its mode and its
            settings stay as they are.
        scheduler: See `load_scheduler`.
        shape: (C, H, W) of a sample, where the network's configuration does not say it.
        text_length: The number of text tokens it is usually told.
        time_ids: See `DiffusersNet`.

    Raises:
        ValueError: for a network or a scheduler, or a setting of either, that we do not know.
    """
    c = read_convention(scheduler)
    net = DiffusersNet(model, None, c.unit, c.steps, c.sigma_min, c.sigma_max, c.negate, shape, text_length, time_ids)
    teacher = Prediction(net, c.schedule, c.kind, None, c.clip, c.data_std, net.shape, net.classes)
    return teacher.eval()


def load_diffusers(
    ref: Any, dtype: torch.dtype | None = None, shape: Sequence[int] | None = None, variant: str | None = None
) -> Prediction:
    """A diffusers pipeline (in memory, a folder, or a Hub id), or a model folder with its scheduler, as a teacher.

    Of a pipeline only the network and the scheduler are read, from safetensors.

    Arguments:
        ref: A `DiffusionPipeline`, the folder of one or of a model with `scheduler_config.json` in it, or beside it in
            `scheduler/`; or `org/name[@revision]`.
        dtype: The dtype of the network; float32 by default, of a pipeline in memory its own. Where that changes, the
            teacher has a copy of the weights; else it shares those of the pipeline, which stays as it is.
        shape: (C, H, W) of a sample, where the network's configuration does not say it.
        variant: The variant of the weights, `fp16` say.

    Raises:
        FileNotFoundError: if a folder or a file is missing; says which, and which variants there are.
        ConnectionError: if it is on the Hub and the Hub cannot be reached.
        ValueError: if it is no diffusers model, or one that we do not know.
    """
    if not isinstance(ref, Path | str):
        model, vae, encoder = network_of(ref), *(unwrapped(getattr(ref, n, None)) for n in ("vae", "text_encoder"))
        length = longest_text(
            getattr(getattr(ref, "tokenizer", None), "model_max_length", None),
            getattr(getattr(encoder, "config", None), "max_position_embeddings", None),
        )
        factor = _LATENT_FACTOR if vae is None else _factor(vae.config)
        teacher = _wrapped(model, ref.scheduler, shape, length, factor)
        if dtype is not None:
            # diffusers' own `to` has something to say about it.
            nn.Module.to(cast(nn.Module, teacher.net.model), dtype)
        return teacher
    folder = local_copy(ref)
    scheduler = load_scheduler(folder)
    with reading(scheduler_file(folder), "is of no scheduler that we know"):
        read_convention(scheduler)
    network = network_folder(folder)
    found = network_class(network_name(_said(network / "config.json")))
    folder, variant = with_weights(ref, "" if network == folder else network.name, STEM, variant)
    network = network_folder(folder)
    model = read_part(found, network, dtype, variant)
    with reading(network / "config.json", "describes no network that we know"):
        return _wrapped(model, scheduler, shape, _text_length(folder), _factor_in(folder))


def _text_length(folder: Path) -> int:
    """The tokens of a text, by a pipeline's tokenizer and text encoder."""
    tokenizer = _said(folder / "tokenizer" / "tokenizer_config.json").get("model_max_length")
    return longest_text(tokenizer, _said(folder / "text_encoder" / "config.json").get("max_position_embeddings"))


def _factor_in(folder: Path) -> int:
    config = _said(folder / "vae" / "config.json")
    return _factor(config) if config else _LATENT_FACTOR


def _said(file: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is no file."""
    if not file.exists():
        return {}
    check(config := read_json(file), dict[str, Any], f"{file}")
    return dict(config)


def _factor(vae_config: Mapping[str, Any]) -> int:
    """How many pixels a side one latent stands for: each level of the autoencoder but the first halves them."""
    check(vae_config.get("block_out_channels"), Annotated[list[int], Length(1, 16)], "vae: block_out_channels")
    return int(2 ** (len(vae_config["block_out_channels"]) - 1))


def _wrapped(model: Any, scheduler: Any, shape: Sequence[int] | None, text_length: int, factor: int) -> Prediction:
    name, settings = type(model).__name__, model.config
    if name == "SD3Transformer2DModel":
        text_length += 256  # T5's tokens follow CLIP's
    time_ids = None
    if settings.get("addition_embed_type") == "text_time":
        H, W = (n * factor for n in (shape or stated_shape(name, settings))[-2:])
        time_ids = (H, W, 0, 0, H, W)
    return wrap_diffusers(model, scheduler, shape, text_length, time_ids)
