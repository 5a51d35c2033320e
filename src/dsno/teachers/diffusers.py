r"""Models of the diffusers library as teachers; everything is read from their files, nothing is guessed.

A scheduler's configuration says what the network was trained on:

| scheduler | path | time told to the network |
|---|---|---|
| DDPM, DDIM, PNDM, DPM-Solver, UniPC, Euler, Heun, LMS | `Tabulated`($\bar\alpha_k$) | $k = K t - 1$ |
| FlowMatchEuler, and those with `use_flow_sigmas` | `RectifiedFlow` | $K t$ |
| EDM | `VE`($\sigma_{\max}$), kind `edm` with $\sigma_d$ = `sigma_data` | $\tfrac14 \log \sigma_t$ |

Training step $k$ of $K$ sits at $t = (k + 1) / K$; between the steps the network is told the fraction. A schedule with zero
terminal SNR has $\bar\alpha_{K-1} = 0$, which no finite log-SNR describes: it is raised to $10^{-12}$.

The k-diffusion samplers (Euler, Heun, LMS) keep $x_t / \alpha_t$ and scale what the network sees back to $x_t$, so they are the same
models. A scheduler's way of choosing steps (`timestep_spacing`, `steps_offset`, the flow's `shift`, the last noise level) is
no part of the model: `grid_from_scheduler` turns it into a grid for our solvers.

Where $\hat x_0$ is clipped, our noise is the one that belongs to the clipped $\hat x_0$, as in DDPMScheduler, and in DDIMScheduler with
`use_clipped_model_output=True`. By default DDIMScheduler puts the clipped $\hat x_0$ and the noise of the unclipped one together, which
are no two parts of any $x_t$.

Latent models are teachers in latent space; `load_decoder` gives what turns their samples into images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsno.checkpoint import read_json
from dsno.denoise import Prediction
from dsno.hub import local_copy
from dsno.nets.diffusers import DiffusersNet, diffusers_shape, model_class
from dsno.teachers.schedulers import listing, load_scheduler, read_convention

__all__ = ["class_name", "load_diffusers", "network_folder", "wrap_diffusers"]


def wrap_diffusers(
    model: nn.Module,
    scheduler: Any,
    shape: Sequence[int] | None = None,
    text_length: int = 77,
    time_ids: Sequence[float] | None = None,
) -> Prediction:
    """A network of diffusers and the scheduler that says what it was trained on, as a teacher.

    Arguments:
        model: One of the classes of `DiffusersNet`.
        scheduler: See `load_scheduler`.
        shape: (C, H, W) of a sample, where the network's configuration does not say it.
        text_length: The number of text tokens it is usually told.
        time_ids: See `DiffusersNet`.

    Raises:
        ValueError: for a network or a scheduler, or a setting of either, that we do not know.
    """
    c = read_convention(scheduler)
    net = DiffusersNet(
        model, None, c.unit, c.steps, c.sigma_min, c.sigma_max, c.negate, shape, text_length, time_ids
    )  # fmt: skip
    return Prediction(
        net, c.schedule, c.kind, clip=c.clip, data_std=c.data_std, shape=net.shape, classes=net.classes
    ).eval()


def load_diffusers(
    ref: Any, dtype: torch.dtype | None = None, shape: Sequence[int] | None = None, variant: str | None = None
) -> Prediction:
    """A diffusers pipeline (in memory, a folder, or a Hub id), or a model folder with its scheduler, as a teacher.

    Of a pipeline only the network and the scheduler are read, from safetensors.

    Arguments:
        ref: A `DiffusionPipeline`, the folder of one or of a model with `scheduler_config.json` in it, or beside it in
            `scheduler/`; or `org/name[@revision]`.
        dtype: The dtype of the network; float32 by default.
        shape: (C, H, W) of a sample, where the network's configuration does not say it.
        variant: The variant of the weights, `fp16` say.

    Raises:
        FileNotFoundError: if a folder or a file is missing; says which.
        ConnectionError: if it is on the Hub and the Hub cannot be reached.
        ValueError: if it is no diffusers model, or one that we do not know.
    """
    if not isinstance(ref, Path | str):
        model = getattr(ref, "unet", None) or getattr(ref, "transformer", None)
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"a {type(ref).__name__} has neither a unet nor a transformer: it is no diffusers pipeline"
            )
        vae = getattr(ref, "vae", None)
        length = getattr(getattr(ref, "tokenizer", None), "model_max_length", 77)
        return _wrap(model if dtype is None else model.to(dtype), ref.scheduler, shape, length, _vae_factor(vae))
    folder = local_copy(ref)
    scheduler = load_scheduler(folder)
    network = network_folder(folder)
    config = read_json(network / "config.json")
    found = model_class(class_name(config))
    stem = "diffusion_pytorch_model" + (f".{variant}" if variant else "")
    if not Path(ref).exists():
        part = "" if network == folder else f"{network.name}/"
        folder = local_copy(ref, ["*.json", f"{part}{stem}.safetensors", f"{part}{stem}-*.safetensors"])
        network = network_folder(folder)
    if not any(network.glob(f"{stem}*.safetensors")):
        raise FileNotFoundError(
            f"{network} has no weights {stem}.safetensors (it has {listing(network)}): save the model with "
            "save_pretrained(..., safe_serialization=True); pickled weights are not read"
        )
    model = found.from_pretrained(network, torch_dtype=dtype, variant=variant, use_safetensors=True)
    vae_config = folder / "vae" / "config.json"
    factor = 2 ** (len(read_json(vae_config)["block_out_channels"]) - 1) if vae_config.is_file() else 8
    return _wrap(model, scheduler, shape, _text_length(folder), factor)


def _wrap(model: Any, scheduler: Any, shape: Sequence[int] | None, length: int, factor: int) -> Prediction:
    name, settings = type(model).__name__, model.config
    if name == "SD3Transformer2DModel":
        length += 256  # T5's tokens follow CLIP's
    ids = None
    if settings.get("addition_embed_type") == "text_time":
        H, W = (n * factor for n in (shape or diffusers_shape(name, settings))[-2:])
        ids = (H, W, 0, 0, H, W)
    return wrap_diffusers(model, scheduler, shape, length, ids)


def _vae_factor(vae: Any) -> int:
    return 8 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)


def class_name(config: Mapping[str, Any]) -> str:
    name = str(config.get("_class_name"))
    # The first DiT checkpoints were saved under the name of a class that was split since.
    legacy = name == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero"
    return "DiTTransformer2DModel" if legacy else name


def network_folder(folder: Path) -> Path:
    for name in ("unet", "transformer", "."):
        if (folder / name / "config.json").is_file():
            return folder if name == "." else folder / name
    raise FileNotFoundError(
        f"{folder} has no unet/config.json, transformer/config.json or config.json (it has {listing(folder)}): "
        "it is no diffusers model"
    )


def _text_length(folder: Path) -> int:
    file = folder / "tokenizer" / "tokenizer_config.json"
    return int(read_json(file).get("model_max_length", 77)) if file.is_file() else 77
