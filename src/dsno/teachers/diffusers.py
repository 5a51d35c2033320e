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

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dsno.checkpoint import read_json
from dsno.denoise import Cond, Kind, Prediction, Threshold
from dsno.schedule import VE, RectifiedFlow, Schedule, Tabulated, check_grid
from dsno.teachers.hub import local_copy

__all__ = [
    "SCHEDULERS",
    "Convention",
    "DiffusersNet",
    "Latents",
    "encode_prompts",
    "grid_from_scheduler",
    "load_decoder",
    "load_diffusers",
    "load_scheduler",
    "null_cond",
    "read_convention",
    "wrap_diffusers",
]

TimeUnit = Literal["steps", "flow", "edm"]

# Which schedulers keep their noise levels (`sigmas`) beside their time steps.
SCHEDULERS: dict[str, bool] = {
    "DDIMScheduler": False,
    "DDPMScheduler": False,
    "DPMSolverMultistepScheduler": True,
    "EDMDPMSolverMultistepScheduler": True,
    "EDMEulerScheduler": True,
    "EulerAncestralDiscreteScheduler": True,
    "EulerDiscreteScheduler": True,
    "FlowMatchEulerDiscreteScheduler": True,
    "HeunDiscreteScheduler": True,
    "LMSDiscreteScheduler": True,
    "PNDMScheduler": False,
    "UniPCMultistepScheduler": True,
}
_DISTILLED = ("CMStochasticIterativeScheduler", "LCMScheduler", "TCDScheduler")
_KINDS: dict[str, Kind] = {
    "epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow",
}  # fmt: skip
_FLOOR = 1e-12


@dataclass(frozen=True)
class Convention:
    r"""What a scheduler says of its model.

    `steps` is $K$ and `sigma_min`, `sigma_max` are the ends of EDM's range, all three in the units of `unit`; `negate` says
    that the network's output is $-F$ (EDM's `v_prediction`).
    """

    schedule: Schedule
    kind: Kind
    clip: float | Threshold | None
    unit: TimeUnit
    steps: int
    data_std: float = 1.0
    sigma_min: float = 0.0
    sigma_max: float = 1.0
    negate: bool = False


# Schedulers


def load_scheduler(ref: Any) -> Any:
    """A fresh diffusers scheduler from a scheduler, a pipeline, a configuration, or the folder or Hub id of a model.

    Raises:
        FileNotFoundError: if there is no such folder, or no `scheduler_config.json` in it.
        ValueError: for a scheduler that we do not know, or one of a distilled model; lists those we know.
    """
    if isinstance(ref, Path | str):
        config = read_json(_scheduler_file(local_copy(ref)))
    elif isinstance(ref, Mapping):
        config = dict(ref)
    else:
        held = getattr(ref, "scheduler", ref)
        config = {**held.config, "_class_name": type(held).__name__}
    name = str(config.get("_class_name"))
    if name in _DISTILLED:
        raise ValueError(
            f"{name} samples a distilled model, which is a student and no teacher: give the model it is of"
        )
    if name not in SCHEDULERS:
        raise ValueError(f"unknown scheduler {name}: expected one of {', '.join(SCHEDULERS)}")
    import diffusers

    return getattr(diffusers, name).from_config(config)


def read_convention(scheduler: Any) -> Convention:
    """The path, prediction, clipping and time units that a scheduler (see `load_scheduler`) states.

    Raises:
        ValueError: for a scheduler or a setting of one that we do not know.
    """
    scheduler = load_scheduler(scheduler)
    name, config = type(scheduler).__name__, scheduler.config
    K = int(config.num_train_timesteps)
    stated = config.get("prediction_type", "flow_prediction")
    if stated not in _KINDS:
        raise ValueError(f"unknown prediction_type {stated!r} of {name}: expected one of {', '.join(_KINDS)}")
    kind = _KINDS[stated]
    clip: float | Threshold | None = None
    if config.get("thresholding", False):
        clip = Threshold(config.dynamic_thresholding_ratio, config.sample_max_value)
    elif config.get("clip_sample", False):
        clip = float(config.get("clip_sample_range", 1.0))
    if name.startswith("EDM"):
        if kind not in ("eps", "v"):
            raise ValueError(f"unknown prediction_type {stated!r} of {name}: expected epsilon or v_prediction")
        low, high = float(config.sigma_min), float(config.sigma_max)
        return Convention(VE(high), "edm", clip, "edm", K, float(config.sigma_data), low, high, negate=kind == "v")
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas", False):
        if kind != "flow" or config.get("invert_sigmas", False):
            raise ValueError(f"{name} with {stated!r} or inverted sigmas is not supported: only noise minus data is")
        return Convention(RectifiedFlow(), "flow", clip, "flow", K)
    if kind == "flow" or config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(f"{name} with prediction_type={stated!r} on continuous time steps is not supported")
    abar = scheduler.alphas_cumprod.double().clamp_min(_FLOOR)
    return Convention(Tabulated(abar.tolist()), kind, clip, "steps", K)


def grid_from_scheduler(scheduler: Any, steps: int, **options: Any) -> Tensor:
    r"""The times at which a scheduler of diffusers would call the network in `steps` steps, and the one it ends at.

    DDIM on it takes the steps of DDIMScheduler, and of DPM-Solver, Euler and FlowMatchEuler at first order. Two limits:

    - DDIMScheduler always steps $\lfloor K / N \rfloor$ training steps down, also where its next time step is further away:
      `linspace`, and `trailing` where N does not divide K. There the state has one noise level and the network is told another;
      a grid has one time for both, the one that the network is told.
    - A scheduler interpolates its noise levels between training steps linearly in $\sigma / \alpha$, `Tabulated` linearly in
      $\log \alpha$. At fractional steps the grid keeps the noise level.

    Arguments:
        scheduler: See `load_scheduler`.
        steps: N; a scheduler with a final level of its own may need one more, or one less where two coincide.
        options: For the scheduler's `set_timesteps`: `mu` for a flow with dynamic shifting, say.

    Returns:
        Decreasing times in [0, 1], float64.

    Raises:
        ValueError: for an unknown scheduler, or steps that it cannot take.
    """
    if steps < 1:
        raise ValueError(f"a grid needs at least one step, got {steps}")
    scheduler = load_scheduler(scheduler)
    convention, K = read_convention(scheduler), int(scheduler.config.num_train_timesteps)
    scheduler.set_timesteps(steps, **options)
    if SCHEDULERS[type(scheduler).__name__]:
        sigma = torch.as_tensor(scheduler.sigmas).double().cpu()
        if convention.unit != "steps":
            t = sigma / convention.sigma_max
        else:
            t = convention.schedule.time(-2 * sigma.log())
            t = torch.where((t * K - (t * K).round()).abs() < 1e-3, (t * K).round() / K, t)
    else:
        k = torch.as_tensor(scheduler.timesteps).double().cpu().unique().flip(0)
        # The last step is to the data itself, or to the least noise that the model has seen.
        to_data = scheduler.config.get("set_alpha_to_one", True)
        t = torch.cat([(k + 1) / K, torch.tensor([0.0 if to_data else 1 / K], dtype=torch.float64)])
    # Heun's scheduler names inner times twice, and a last level may be there already.
    return check_grid(torch.unique_consecutive(t))


# Networks


@dataclass(frozen=True)
class _Family:
    """How a class of networks is called: the name of the state's argument, and the modules that `lift` hooks: the class of
    the blocks, and what the names of the modules around them look like."""

    state: str
    blocks: str
    around: str


_STAGES = r"(down|up)_blocks\.\d+|mid_block\.attentions\.\d+|conv_(in|norm_out|out)"
_FAMILIES = {
    "UNet2DModel": _Family("sample", "resnet:ResnetBlock2D", _STAGES),
    "UNet2DConditionModel": _Family("sample", "resnet:ResnetBlock2D", _STAGES),
    "DiTTransformer2DModel": _Family(
        "hidden_states", "attention:BasicTransformerBlock", "pos_embed|norm_out|proj_out_1"
    ),
    "SD3Transformer2DModel": _Family("hidden_states", "attention:JointTransformerBlock", "pos_embed|norm_out"),
}


class DiffusersNet(nn.Module):
    r"""A network of diffusers as a `Backbone`.

    It is told t in [0, 1], (B,), and the condition by the names of `tokens` and `label`; what it says of the variance is
    dropped. The network may be of any floating-point dtype; t is never below float32, and the output has the state's.

    Arguments:
        model: UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel or SD3Transformer2DModel: the name of the class, or a
            network of it.
        settings: The configuration of a network that is only named.
        unit: What the network calls time: `steps` $Kt - 1$, `flow` $Kt$, `edm` $\tfrac14 \log \sigma_{\max} t$.
        steps: $K$.
        sigma_min: Where EDM's time stops, so that it is finite at t = 0.
        sigma_max: $\sigma_{\max}$ of `edm`.
        negate: Change the sign of the output.
        shape: (C, H, W) of a sample, where the settings do not say it.
        text_length: The number of text tokens it is usually told.
        time_ids: Stable Diffusion XL's original size, crop corner and target size (6,).

    Raises:
        ValueError: for a class or a setting that we do not know, or a shape that the settings do not tell.
    """

    model: Any
    time_ids: Tensor | None

    def __init__(
        self,
        model: str | nn.Module,
        settings: Mapping[str, Any] | None = None,
        unit: TimeUnit = "steps",
        steps: int = 1000,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        negate: bool = False,
        shape: Sequence[int] | None = None,
        text_length: int = 77,
        time_ids: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        name = model if isinstance(model, str) else type(model).__name__
        known = _model_class(name)
        made: Any = known.from_config(dict(settings or {})) if isinstance(model, str) else model
        settings = {k: v for k, v in made.config.items() if not k.startswith("_")}
        _check_supported(name, settings)
        self.model, self.family = made, _FAMILIES[name]
        self.unit, self.steps, self.sign = unit, steps, -1 if negate else 1
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.shape = _sample_shape(name, settings) if shape is None else tuple(shape)
        self.classes, self.tokens = _told(name, settings, text_length)
        self.names = (*(("label",) if self.classes is not None else ()), *self.tokens)
        # An embedding with a row for each training step takes no fractions of one.
        self.whole_steps = settings.get("time_embedding_type") == "learned"
        self.text_time = settings.get("addition_embed_type") == "text_time"
        if self.text_time and time_ids is None:
            raise ValueError("a Stable Diffusion XL network is told its image sizes: pass time_ids, six numbers")
        ids = None if time_ids is None else torch.tensor([list(time_ids)], dtype=torch.float32)
        self.register_buffer("time_ids", ids, persistent=False)
        from diffusers.models.embeddings import LabelEmbedding

        for module in self.modules():
            # In training DiT forgets a tenth of its labels; whoever wants guidance passes the null label.
            if isinstance(module, LabelEmbedding):
                module.dropout_prob = 0.0
        self.config: dict[str, Any] = {
            "name": "DiffusersNet", "model": name, "settings": json.loads(json.dumps(settings)), "unit": unit,
            "steps": steps, "sigma_min": sigma_min, "sigma_max": sigma_max, "negate": negate, "shape": list(self.shape),
            "text_length": text_length, "time_ids": None if time_ids is None else list(time_ids),
        }  # fmt: skip

    @property
    def blocks(self) -> tuple[type[nn.Module] | str, ...]:
        """The residual blocks, and what joins their features: a U-Net's stages, the modules around a transformer's blocks."""
        module, attribute = self.family.blocks.split(":")
        around = (f"model.{n}" for n, _ in self.model.named_modules() if re.fullmatch(self.family.around, n))
        return (getattr(import_module(f"diffusers.models.{module}"), attribute), *around)

    @property
    def embedding(self) -> tuple[str, ...]:
        """UNets embed the time once, SD3 together with the pooled text, and DiT in every block."""
        if isinstance(self.model, _model_class("SD3Transformer2DModel")):
            return ("model.time_text_embed",)
        if isinstance(self.model, _model_class("DiTTransformer2DModel")):
            return tuple(n for n, m in self.named_modules() if n.endswith("norm1.emb"))
        return ("model.time_embedding",)

    def time(self, t: Tensor) -> Tensor:
        """t in [0, 1] in the network's own units."""
        if self.unit == "flow":
            return self.steps * t
        if self.unit == "edm":
            return 0.25 * (self.sigma_max * t).clamp_min(self.sigma_min).log()
        k = (self.steps * t - 1).clamp_min(0)
        if self.whole_steps:
            return k.round().long()
        # (k + 1) / K in float32 is a little off the whole number that the network knows; the slope in t stays.
        off = (k.round() - k).detach()
        return k + torch.where(off.abs() < 1e-3, off, torch.zeros_like(off))

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        told = self._named(cond)
        arguments: dict[str, Any] = {self.family.state: x_t.to(dtype), "timestep": self.time(t), "return_dict": False}
        if "label" in told:
            arguments["class_labels"] = told["label"]
        if "text" in told:
            arguments["encoder_hidden_states"] = told["text"].to(dtype)
        if self.text_time:
            ids = told.get("time_ids", self.time_ids)
            assert ids is not None
            arguments["added_cond_kwargs"] = {
                "text_embeds": told["pooled"].to(dtype),
                "time_ids": ids.expand(len(x_t), -1),
            }
        elif "pooled" in told:
            key = "pooled_projections" if "text" in told else "class_labels"
            arguments[key] = told["pooled"].to(dtype)
        output = self.model(**arguments)[0][:, : self.shape[0]]
        return self.sign * output.to(x_t.dtype)

    def _named(self, cond: Cond | None) -> Mapping[str, Tensor]:
        if not self.names:
            if isinstance(cond, Tensor) or (cond and "label" in cond):
                raise ValueError(f"this {type(self.model).__name__} is unconditional: it is told no labels")
            return {}
        if isinstance(cond, Tensor) and len(self.names) == 1:
            return {self.names[0]: cond}
        missing = [n for n in self.names if cond is None or isinstance(cond, Tensor) or n not in cond]
        if missing or cond is None or isinstance(cond, Tensor):
            raise ValueError(
                f"this {type(self.model).__name__} needs a condition: pass {', '.join(self.names)} as cond"
            )
        return cond


def _model_class(name: str) -> Any:
    if name not in _FAMILIES:
        raise ValueError(f"unknown network class {name}: expected one of {', '.join(_FAMILIES)}")
    import diffusers

    return getattr(diffusers, name)


def _check_supported(name: str, settings: Mapping[str, Any]) -> None:
    plain: dict[str, tuple[object, ...]] = {}
    if name == "UNet2DConditionModel":
        plain = dict.fromkeys(
            ("class_embed_type", "num_class_embeds", "encoder_hid_dim", "time_cond_proj_dim"), (None,)
        )
        plain["addition_embed_type"] = (None, "text_time")
    elif name == "UNet2DModel":
        plain = {"class_embed_type": (None, "timestep", "identity")}
    for key, allowed in plain.items():
        if settings.get(key) not in allowed:
            raise ValueError(f"a {name} with {key}={settings[key]!r} is not supported: expected one of {allowed}")
    given, made = settings["in_channels"], settings.get("out_channels") or settings["in_channels"]
    if made not in (given, 2 * given):
        raise ValueError(
            f"this {name} takes {given} channels and gives {made}: a denoiser gives as many as it takes, or twice as many "
            "with a learned variance (is it an inpainting or a depth model?)"
        )


def _sample_shape(name: str, settings: Mapping[str, Any]) -> tuple[int, ...]:
    size = settings.get("sample_size")
    if size is None:
        raise ValueError(f"the configuration of this {name} has no sample_size: pass shape=(C, H, W)")
    spatial = (size, size) if isinstance(size, int) else tuple(size)
    return (settings["in_channels"], *spatial)


def _told(name: str, settings: Mapping[str, Any], length: int) -> tuple[int | None, dict[str, tuple[int, ...]]]:
    """The number of classes, and the shapes of what else the network is told."""
    if name == "DiTTransformer2DModel":
        return settings["num_embeds_ada_norm"], {}
    if name == "SD3Transformer2DModel":
        return None, {"text": (length, settings["joint_attention_dim"]), "pooled": (settings["pooled_projection_dim"],)}
    if name == "UNet2DModel":
        if settings.get("class_embed_type") == "timestep":
            return None, {"label": ()}
        if settings.get("class_embed_type") == "identity":
            return None, {"pooled": (4 * settings["block_out_channels"][0],)}
        return settings.get("num_class_embeds"), {}
    tokens: dict[str, tuple[int, ...]] = {"text": (length, settings["cross_attention_dim"])}
    if settings.get("addition_embed_type") == "text_time":
        ids = 6 * settings["addition_time_embed_dim"]
        tokens["pooled"] = (settings["projection_class_embeddings_input_dim"] - ids,)
    return None, tokens


# Teachers


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
    network = _network_folder(folder)
    config = read_json(network / "config.json")
    found = _model_class(_class_name(config))
    stem = "diffusion_pytorch_model" + (f".{variant}" if variant else "")
    if not Path(ref).exists():
        part = "" if network == folder else f"{network.name}/"
        folder = local_copy(ref, ["*.json", f"{part}{stem}.safetensors", f"{part}{stem}-*.safetensors"])
        network = _network_folder(folder)
    if not any(network.glob(f"{stem}*.safetensors")):
        raise FileNotFoundError(
            f"{network} has no weights {stem}.safetensors (it has {_listing(network)}): save the model with "
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
        H, W = (n * factor for n in (shape or _sample_shape(name, settings))[-2:])
        ids = (H, W, 0, 0, H, W)
    return wrap_diffusers(model, scheduler, shape, length, ids)


def _vae_factor(vae: Any) -> int:
    return 8 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)


def _class_name(config: Mapping[str, Any]) -> str:
    name = str(config.get("_class_name"))
    # The first DiT checkpoints were saved under the name of a class that was split since.
    legacy = name == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero"
    return "DiTTransformer2DModel" if legacy else name


def _network_folder(folder: Path) -> Path:
    for name in ("unet", "transformer", "."):
        if (folder / name / "config.json").is_file():
            return folder if name == "." else folder / name
    raise FileNotFoundError(
        f"{folder} has no unet/config.json, transformer/config.json or config.json (it has {_listing(folder)}): "
        "it is no diffusers model"
    )


def _scheduler_file(folder: Path) -> Path:
    name = "scheduler_config.json"
    for file in (folder / "scheduler" / name, folder / name, folder.absolute().parent / "scheduler" / name):
        if file.is_file():
            return file
    raise FileNotFoundError(
        f"{folder} has no scheduler/{name} (it has {_listing(folder)}), which says what the network was trained on: "
        f"save its scheduler there, scheduler.save_pretrained({str(folder / 'scheduler')!r})"
    )


def _text_length(folder: Path) -> int:
    file = folder / "tokenizer" / "tokenizer_config.json"
    return int(read_json(file).get("model_max_length", 77)) if file.is_file() else 77


def _listing(folder: Path) -> str:
    return ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"


# What stands before and behind a latent model


class Latents(nn.Module):
    r"""An autoencoder with the scale that a latent model was trained on: $z = (\mathrm{encode}(x) - \mu) \, c$, the inverse to decode.

    Arguments:
        vae: AutoencoderKL, or VQModel.
        rows: How many samples go through it at once.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, vae: Any, rows: int = 8) -> None:
        super().__init__()
        if not rows >= 1:
            raise ValueError(f"at least one sample goes through the decoder at once, got rows={rows}")
        self.vae, self.rows = vae.requires_grad_(False).eval(), rows
        config = vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        shift = config.get("shift_factor") or 0.0
        scale = float(config.get("scaling_factor") or 1.0)
        self.register_buffer("mean", _channels(shift if mean is None or std is None else mean), persistent=False)
        self.register_buffer("scale", _channels(1.0 if mean is None or std is None else std) / scale, persistent=False)

    def forward(self, latents: Tensor) -> Tensor:
        """`decode`."""
        return self.decode(latents)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to images (B, 3, H, W) in [-1, 1], of the dtype of `latents`."""
        z = (latents * self.scale.to(latents) + self.mean.to(latents)).to(self.vae.dtype)
        images = torch.cat([self.vae.decode(rows, return_dict=False)[0] for rows in z.split(self.rows)])
        return images.clamp(-1, 1).to(latents.dtype)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to the mean of their latents (B, C, h, w)."""
        encoded = [self._encode(rows) for rows in images.to(self.vae.dtype).split(self.rows)]
        z = torch.cat(encoded).to(images.dtype)
        return (z - self.mean.to(z)) / self.scale.to(z)

    def _encode(self, images: Tensor) -> Tensor:
        encoded = self.vae.encode(images)
        return encoded.latents if type(self.vae).__name__ == "VQModel" else encoded.latent_dist.mode()


def _channels(value: float | Sequence[float]) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float32).reshape(1, -1, 1, 1)


def load_decoder(ref: Any, dtype: torch.dtype | None = None, rows: int = 8) -> Latents | None:
    """What turns a pipeline's latents into images and back, or None where the samples are the images.

    Arguments:
        ref: See `load_diffusers`.
        dtype: The dtype of the autoencoder; float32 by default, and where its configuration says that half is too little.
        rows: How many samples go through it at once.

    Raises:
        FileNotFoundError: if a folder or a file is missing; says which.
        ValueError: for an autoencoder that we do not know.
    """
    if not isinstance(ref, Path | str):
        held = getattr(ref, "vae", None) or getattr(ref, "vqvae", None)
        return None if held is None else Latents(held, rows)
    folder = local_copy(ref)
    part = next((p for p in ("vae", "vqvae") if (folder / p / "config.json").is_file()), None)
    if part is None:
        return None
    if not Path(ref).exists():
        folder = local_copy(ref, ["*.json", f"{part}/diffusion_pytorch_model.safetensors"])
    config = read_json(folder / part / "config.json")
    name = str(config.get("_class_name"))
    if name not in ("AutoencoderKL", "VQModel"):
        raise ValueError(f"unknown autoencoder {name}: expected AutoencoderKL or VQModel")
    if dtype == torch.float16 and config.get("force_upcast", False):
        dtype = None
    import diffusers

    vae = getattr(diffusers, name).from_pretrained(folder / part, torch_dtype=dtype, use_safetensors=True)
    return Latents(vae, rows)


def encode_prompts(ref: Any, prompts: str | Sequence[str]) -> dict[str, Tensor]:
    """Prompts as the condition of a text-to-image teacher, by the pipeline's own text encoders.

    Returns:
        `text` (B, L, D), and `pooled` (B, P) where the network is told it.

    Raises:
        ImportError: without transformers.
        ValueError: if the pipeline has no text encoder that we know.
    """
    return _encoded(ref, [prompts] if isinstance(prompts, str) else list(prompts), empty=False)


def null_cond(ref: Any) -> Cond:
    """What stands for no condition in `Guided`, without a batch dimension: the empty prompt, or DiT's extra label.

    Raises:
        ValueError: if the model was not trained to do without its condition, as far as its files say.
    """
    if isinstance(ref, Path | str):
        folder = local_copy(ref)
        config = read_json(_network_folder(folder) / "config.json")
    else:
        held = getattr(ref, "unet", None) or ref.transformer
        config = {**held.config, "_class_name": type(held).__name__}
    name = _class_name(config)
    if name == "DiTTransformer2DModel":
        return torch.tensor(int(config["num_embeds_ada_norm"]))
    if name == "UNet2DModel":
        raise ValueError(
            "the files of a UNet2DModel name no null label: if it was trained with one, pass it to Guided yourself"
        )
    told = {key: value[0] for key, value in _encoded(ref, [""], empty=True).items()}
    return told if len(told) > 1 else told["text"]


_ENCODE: dict[str, Callable[..., tuple[Any, ...]]] = {
    "StableDiffusionPipeline": lambda pipe, p, **kw: pipe.encode_prompt(p, "cpu", **kw),
    "StableDiffusionXLPipeline": lambda pipe, p, **kw: pipe.encode_prompt(p, device="cpu", **kw),
    "StableDiffusion3Pipeline": lambda pipe, p, **kw: pipe.encode_prompt(p, None, None, device="cpu", **kw),
}


@torch.no_grad()
def _encoded(ref: Any, prompts: list[str], empty: bool) -> dict[str, Tensor]:
    pipe = _text_pipeline(ref) if isinstance(ref, Path | str) else ref
    encode = _ENCODE.get(type(pipe).__name__)
    if encode is None:
        raise ValueError(f"unknown text pipeline {type(pipe).__name__}: expected one of {', '.join(_ENCODE)}")
    out = encode(pipe, prompts, num_images_per_prompt=1, do_classifier_free_guidance=empty)
    # (text, null text) or (text, null text, pooled, null pooled); some models take zeros for the empty prompt.
    which = 1 if empty else 0
    return {"text": out[which]} if len(out) == 2 else {"text": out[which], "pooled": out[2 + which]}


def _text_pipeline(ref: Path | str) -> Any:
    import diffusers

    folder = local_copy(ref)
    index_file = folder / "model_index.json"
    index = read_json(index_file)
    name = str(index.get("_class_name"))
    if name not in _ENCODE:
        raise ValueError(f"unknown text pipeline {name}: expected one of {', '.join(_ENCODE)}")
    texts = [p for p in index if p.startswith(("text_encoder", "tokenizer")) and index[p][0] is not None]
    if not Path(ref).exists():
        files = [f"{p}/{f}" for p in texts for f in ("model.safetensors", "model-*.safetensors", "*.txt", "*.model")]
        folder = local_copy(ref, ["*.json", *files])
    # A component that was saved as none has to be named as such.
    absent: dict[str, Any] = {p: None for p, made in index.items() if isinstance(made, list) and p not in texts}
    if name == "StableDiffusion3Pipeline":
        # It asks its network for a width; a network without memory answers.
        with torch.device("meta"):
            network = _model_class("SD3Transformer2DModel")
            absent["transformer"] = network.from_config(read_json(folder / "transformer" / "config.json"))
    return getattr(diffusers, name).from_pretrained(folder, use_safetensors=True, **absent)
