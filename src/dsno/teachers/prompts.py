"""What a text-to-image model of diffusers is told: embedded prompts, and what stands for none.

Prompts go through the pipeline's own text encoders and by its own method, so that the condition is the one of its
images: `text` (B, L, D) from every token, and `pooled` (B, P) where the network is told it. What stands for no
condition follows from how the model was trained to do without one: the empty prompt (zeros for some), or a label behind
the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsno.checkpoint import read_json
from dsno.condition import Cond
from dsno.hub import local_copy
from dsno.nets.diffusers import network_class
from dsno.teachers.parts import network_folder, network_name, network_of

__all__ = ["encode_prompts", "null_cond"]


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
        config = read_json(network_folder(local_copy(ref)) / "config.json")
    else:
        model = network_of(ref)
        config = {**model.config, "_class_name": type(model).__name__}
    name = network_name(config)
    if name == "DiTTransformer2DModel":
        return torch.tensor(int(config["num_embeds_ada_norm"]))
    if name == "UNet2DModel":
        raise ValueError(
            "the files of a UNet2DModel name no null label: if it was trained with one, pass it to Guided yourself"
        )
    null = {name: value[0] for name, value in _encoded(ref, [""], empty=True).items()}
    return null if len(null) > 1 else null["text"]


_ENCODE: dict[str, Callable[..., tuple[Any, ...]]] = {
    "StableDiffusionPipeline": lambda pipe, prompts, **options: pipe.encode_prompt(prompts, "cpu", **options),
    "StableDiffusionXLPipeline": lambda pipe, prompts, **options: pipe.encode_prompt(prompts, device="cpu", **options),
    "StableDiffusion3Pipeline": lambda pipe, prompts, **options: pipe.encode_prompt(
        prompts, None, None, device="cpu", **options
    ),
}
"""How each kind of pipeline is asked."""


@torch.no_grad()
def _encoded(ref: Any, prompts: list[str], empty: bool) -> dict[str, Tensor]:
    """The condition of each prompt, or if `empty` what the pipeline takes for an empty one in guidance."""
    pipe = _text_pipeline(ref) if isinstance(ref, Path | str) else ref
    encode = _ENCODE.get(type(pipe).__name__)
    if encode is None:
        raise ValueError(f"unknown text pipeline {type(pipe).__name__}: expected one of {', '.join(_ENCODE)}")
    out = encode(pipe, prompts, num_images_per_prompt=1, do_classifier_free_guidance=empty)
    # (text, null text) or (text, null text, pooled, null pooled); some models take zeros for the empty prompt.
    which = 1 if empty else 0
    return {"text": out[which]} if len(out) == 2 else {"text": out[which], "pooled": out[2 + which]}


def _text_pipeline(ref: Path | str) -> Any:
    """A pipeline of nothing but tokenizers and text encoders."""
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
            network = network_class("SD3Transformer2DModel")
            absent["transformer"] = network.from_config(read_json(folder / "transformer" / "config.json"))
    return getattr(diffusers, name).from_pretrained(folder, use_safetensors=True, **absent)
