"""diffusers' networks as backbones: U-Nets, DiT and flow transformers, told t in [0, 1].

Every class of diffusers names its arguments in its own way, counts time in its own units (training steps, a
thousandth of the way, a quarter of the logarithm of the noise) and takes texts, pooled texts, labels or image sizes.
One module knows these differences, so that a teacher, `lift` and a file see a network like any other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dsno.condition import Cond

__all__ = ["DiffusersNet", "TimeUnit", "diffusers_shape", "model_class"]

TimeUnit = Literal["steps", "flow", "edm"]
"""What a network calls time: training steps $K t - 1$, $K t$, or a quarter of the logarithm of the noise level."""


@dataclass(frozen=True)
class _Family:
    """How a class of networks is called, and the modules that `lift` hooks.

    Attributes:
        state: The name of the state's argument.
        blocks: The class of the blocks, `module:class` in diffusers.models.
        around: What the names of the modules around the blocks look like.
    """

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

    It is told t in [0, 1], (B,), and the condition by the names of `tokens` and `label`; what it says of the variance
    is dropped. The network may be of any floating-point dtype; t is never below float32, and the output has the
    state's.

    Arguments:
        model: UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel or SD3Transformer2DModel: the name of the class,
            or a network of it.
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
        known = model_class(name)
        made: Any = known.from_config(dict(settings or {})) if isinstance(model, str) else model
        settings = {k: v for k, v in made.config.items() if not k.startswith("_")}
        _check_supported(name, settings)
        self.model, self.family = made, _FAMILIES[name]
        self.unit, self.steps, self.sign = unit, steps, -1 if negate else 1
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.shape = diffusers_shape(name, settings) if shape is None else tuple(shape)
        self.classes, self.tokens = _conditions(name, settings, text_length)
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
            "name": "DiffusersNet",
            "model": name,
            "settings": json.loads(json.dumps(settings)),
            "unit": unit,
            "steps": steps,
            "sigma_min": sigma_min,
            "sigma_max": sigma_max,
            "negate": negate,
            "shape": list(self.shape),
            "text_length": text_length,
            "time_ids": None if time_ids is None else list(time_ids),
        }

    @property
    def blocks(self) -> tuple[type[nn.Module] | str, ...]:
        """The blocks, and what joins their features: a U-Net's stages, the modules around a transformer's blocks."""
        module, attribute = self.family.blocks.split(":")
        around = (f"model.{n}" for n, _ in self.model.named_modules() if re.fullmatch(self.family.around, n))
        return (getattr(import_module(f"diffusers.models.{module}"), attribute), *around)

    @property
    def embedding(self) -> tuple[str, ...]:
        """UNets embed the time once, SD3 together with the pooled text, and DiT in every block."""
        if isinstance(self.model, model_class("SD3Transformer2DModel")):
            return ("model.time_text_embed",)
        if isinstance(self.model, model_class("DiTTransformer2DModel")):
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
        given = self._named(cond)
        arguments: dict[str, Any] = {self.family.state: x_t.to(dtype), "timestep": self.time(t), "return_dict": False}
        if "label" in given:
            arguments["class_labels"] = given["label"]
        if "text" in given:
            arguments["encoder_hidden_states"] = given["text"].to(dtype)
        if self.text_time:
            ids = given.get("time_ids", self.time_ids)
            assert ids is not None
            arguments["added_cond_kwargs"] = {
                "text_embeds": given["pooled"].to(dtype),
                "time_ids": ids.expand(len(x_t), -1),
            }
        elif "pooled" in given:
            key = "pooled_projections" if "text" in given else "class_labels"
            arguments[key] = given["pooled"].to(dtype)
        output = self.model(**arguments)[0][:, : self.shape[0]]
        return self.sign * output.to(x_t.dtype)

    def _named(self, cond: Cond | None) -> Mapping[str, Tensor]:
        """The condition by the names of `self.names`.

        Raises:
            ValueError: for labels that the network does not know, or if one of the names is missing.
        """
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


def model_class(name: str) -> Any:
    """The class of diffusers' networks of this name.

    Raises:
        ValueError: if it is none of those that `DiffusersNet` can call.
    """
    if name not in _FAMILIES:
        raise ValueError(f"unknown network class {name}: expected one of {', '.join(_FAMILIES)}")
    import diffusers

    return getattr(diffusers, name)


def diffusers_shape(name: str, settings: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of a sample, (C, H, W), from the name and the settings of a network's class.

    Raises:
        ValueError: if the settings do not tell the size.
    """
    size = settings.get("sample_size")
    if size is None:
        raise ValueError(f"the configuration of this {name} has no sample_size: pass shape=(C, H, W)")
    spatial = (size, size) if isinstance(size, int) else tuple(size)
    return (settings["in_channels"], *spatial)


def _check_supported(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings under which the network would be told something that we do not tell it."""
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
            f"this {name} takes {given} channels and gives {made}: a denoiser gives as many as it takes, or twice as "
            "many with a learned variance (is it an inpainting or a depth model?)"
        )


def _conditions(name: str, settings: Mapping[str, Any], length: int) -> tuple[int | None, dict[str, tuple[int, ...]]]:
    """The number of classes or None, and by name the shape of one row of what else the network is told."""
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
