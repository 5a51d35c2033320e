r"""diffusers' networks as backbones: U-Nets, DiT and flow transformers, told t in [0, 1] and conditions by name.

What a network calls time follows from how it was trained,

| unit | time |
|---|---|
| `steps` | $k = K t - 1$, the training step; between two steps the fraction |
| `flow` | $K t$ |
| `edm` | $\tfrac14 \log(\sigma_{\max} t)$ |

and what it is told beside it from its class and settings:

| class | names in the condition |
|---|---|
| `UNet2DModel` | `label`, or `pooled` where it embeds the class by itself; most have none |
| `UNet2DConditionModel` | `text`; of Stable Diffusion XL `pooled`, too, and `time_ids` where they are unusual |
| `DiTTransformer2DModel` | `label`, of which the one behind the last stands for none |
| `SD3Transformer2DModel` | `text`, `pooled` |
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from dsno.borrow import borrowed, unwrapped
from dsno.condition import Cond, named
from dsno.outside import Length, Within, check

__all__ = ["DiffusersNet", "TimeUnit", "network_class", "stated_shape"]

TimeUnit = Literal["steps", "flow", "edm"]

Side = Annotated[int, Within(1, 2**16)]

Settings = Mapping[str, Any]

Told = tuple[int | None, dict[str, tuple[int, ...]]]
"""The number of classes, and the shapes of what else a network is told, by name."""


def _unet(settings: Settings, text_length: int) -> Told:
    if settings.get("class_embed_type") == "timestep":
        return None, {"label": ()}
    if settings.get("class_embed_type") == "identity":
        return None, {"pooled": (4 * settings["block_out_channels"][0],)}
    return settings.get("num_class_embeds"), {}


def _text_unet(settings: Settings, text_length: int) -> Told:
    tokens: dict[str, tuple[int, ...]] = {"text": (text_length, settings["cross_attention_dim"])}
    if settings.get("addition_embed_type") == "text_time":
        ids = 6 * settings["addition_time_embed_dim"]
        tokens["pooled"] = (settings["projection_class_embeddings_input_dim"] - ids,)
    return None, tokens


def _dit(settings: Settings, text_length: int) -> Told:
    return settings["num_embeds_ada_norm"], {}


def _sd3(settings: Settings, text_length: int) -> Told:
    text = (text_length, settings["joint_attention_dim"])
    return None, {"text": text, "pooled": (settings["pooled_projection_dim"],)}


@dataclass(frozen=True)
class _Family:
    """What is known of a class of networks.

    Attributes:
        state: What the argument of the state is called.
        told: What it is told, from its settings and the length of a text.
        blocks: The class of the blocks that may get a temporal layer, after their module in `diffusers.models`.
        around: What the names of the modules around the blocks look like, which join their features.
        embedding: What the names of the modules that embed the time look like.
        null: Whether it knows a label behind the last class, which stands for none.
        allowed: The settings that change what it is told, and which of their values we know.
    """

    state: str
    told: Callable[[Settings, int], Told]
    blocks: str
    around: str
    embedding: str
    null: bool = False
    allowed: Mapping[str, tuple[object, ...]] = field(default_factory=dict)


_STAGES = r"(down|up)_blocks\.\d+|mid_block\.attentions\.\d+|conv_(in|norm_out|out)"

_FAMILIES = {
    "UNet2DModel": _Family(
        state="sample",
        told=_unet,
        blocks="resnet:ResnetBlock2D",
        around=_STAGES,
        embedding="time_embedding",
        allowed={"class_embed_type": (None, "timestep", "identity")},
    ),
    "UNet2DConditionModel": _Family(
        state="sample",
        told=_text_unet,
        blocks="resnet:ResnetBlock2D",
        around=_STAGES,
        embedding="time_embedding",
        allowed={
            "class_embed_type": (None,),
            "num_class_embeds": (None,),
            "encoder_hid_dim": (None,),
            "time_cond_proj_dim": (None,),
            "addition_embed_type": (None, "text_time"),
        },
    ),
    "DiTTransformer2DModel": _Family(
        state="hidden_states",
        told=_dit,
        null=True,
        blocks="attention:BasicTransformerBlock",
        around="pos_embed|norm_out|proj_out_1",
        embedding=r"transformer_blocks\.\d+\.norm1\.emb",
    ),
    "SD3Transformer2DModel": _Family(
        state="hidden_states",
        told=_sd3,
        blocks="attention:JointTransformerBlock",
        around="pos_embed|norm_out",
        embedding="time_text_embed",
    ),
}


class DiffusersNet(nn.Module):
    r"""A network of diffusers as a `Backbone`; what it says of the variance is dropped.

    Called with $x_t$ (B, C, H, W), t (B,) in [0, 1] and a condition by the names of `tokens` and `label`, or one tensor
    where there is a single name. The network may be of any floating-point dtype; t is never below float32, and the
    output has the dtype of the state.

    Arguments:
        model: UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel or SD3Transformer2DModel: the name of the class,
            or a network of it, whose weights are shared and which stays as it is (`dsno.borrow.borrowed`).
        settings: The configuration of a network that is only named.
        unit: What the network calls time (table above).
        steps: $K$.
        sigma_min: Where EDM's time stops, so that it is finite at t = 0.
        sigma_max: $\sigma_{\max}$ of `edm`.
        negate: Change the sign of the output.
        shape: (C, H, W) of a sample, where the settings do not say it.
        text_length: The number of text tokens it is usually told.
        time_ids: Stable Diffusion XL's original size, crop corner and target size (6,).

    Raises:
        ValueError: for a class or a setting that we do not know, or a shape that the settings do not tell; when called
            with a condition that is not the network's.
    """

    model: Any
    time_ids: Tensor | None

    def __init__(
        self,
        model: str | nn.Module,
        settings: Settings | None = None,
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
        name = model if isinstance(model, str) else type(unwrapped(model)).__name__
        known = network_class(name)
        made: Any = known.from_config(dict(settings or {})) if isinstance(model, str) else borrowed(model)
        settings = {k: v for k, v in made.config.items() if not k.startswith("_")}
        self.model, self.family = made, _FAMILIES[name]
        _check_settings(name, settings, self.family.allowed)
        self.unit, self.steps, self.sign = unit, steps, -1 if negate else 1
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.shape = stated_shape(name, settings) if shape is None else tuple(shape)
        self.classes, self.tokens = self.family.told(settings, text_length)
        self.label_count = None if self.classes is None else self.classes + self.family.null
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
        """The residual blocks, and what joins their features: a U-Net's stages, what is around a transformer's
        blocks."""
        module, attribute = self.family.blocks.split(":")
        return getattr(import_module(f"diffusers.models.{module}"), attribute), *self._modules_like(self.family.around)

    @property
    def embedding(self) -> tuple[str, ...]:
        """U-Nets embed the time once, SD3 together with the pooled text, and DiT in every block."""
        return self._modules_like(self.family.embedding)

    def _modules_like(self, pattern: str) -> tuple[str, ...]:
        return tuple(f"model.{name}" for name, _ in self.model.named_modules() if re.fullmatch(pattern, name))

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
        given = self._by_name(cond)
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

    def _by_name(self, cond: Cond | None) -> dict[str, Tensor]:
        """The condition, all of its names; what else is in it stays."""
        given = named(cond)
        if not self.names:
            if given.keys() & {"", "label"}:
                raise ValueError(f"this {type(self.model).__name__} is unconditional: it is told no labels")
            return {}
        if given.keys() == {""} and len(self.names) == 1:
            return {self.names[0]: given[""]}
        if not given.keys() >= set(self.names):
            raise ValueError(
                f"this {type(self.model).__name__} needs a condition: pass {', '.join(self.names)} as cond"
            )
        return given


def network_class(name: str) -> Any:
    """The class of diffusers of this name.

    Raises:
        ValueError: if it is not one that we can tell the time; lists those.
    """
    if name not in _FAMILIES:
        raise ValueError(f"unknown network class {name}: expected one of {', '.join(_FAMILIES)}")
    import diffusers

    return getattr(diffusers, name)


def stated_shape(name: str, settings: Settings) -> tuple[int, ...]:
    """(C, H, W) of a sample, from the settings of a network of the class `name`.

    Raises:
        ValueError: if they do not say, or say no size.
    """
    size = settings.get("sample_size")
    if size is None:
        raise ValueError(f"the configuration of this {name} has no sample_size: pass shape=(C, H, W)")
    check(size, Side | Annotated[Sequence[Side], Length(2, 2)], f"the sample_size of this {name}")
    spatial = (size, size) if isinstance(size, int) else tuple(size)
    return (settings["in_channels"], *spatial)


def _check_settings(name: str, settings: Settings, allowed: Mapping[str, tuple[object, ...]]) -> None:
    for key, values in allowed.items():
        if settings.get(key) not in values:
            raise ValueError(f"a {name} with {key}={settings[key]!r} is not supported: expected one of {values}")
    given, made = settings["in_channels"], settings.get("out_channels") or settings["in_channels"]
    if made not in (given, 2 * given):
        raise ValueError(
            f"this {name} takes {given} channels and gives {made}: a denoiser gives as many as it takes, or twice as "
            "many with a learned variance (is it an inpainting or a depth model?)"
        )
