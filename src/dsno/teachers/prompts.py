"""What a text-to-image model of diffusers is told: embedded prompts, and what stands for none.

Prompts go through the pipeline's own text encoders and by its own method, so that the condition is the one of its
images: `text` (B, L, D) from every token, and `pooled` (B, P) where the network is told it. What stands for no
condition follows from how the model was trained to do without one: the empty prompt (zeros for some), or a label behind
the last.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsno.borrow import borrowed, unwrapped
from dsno.checkpoint import read_json
from dsno.condition import Cond
from dsno.denoise import Guided, Prediction
from dsno.hub import local_copy
from dsno.nets.backbone import check_null, own_null
from dsno.nets.diffusers import DiffusersNet, network_class
from dsno.outside import check, reading
from dsno.teachers.parts import longest_text, network_folder, network_name, network_of, with_weights

__all__ = ["encode_prompts", "null_cond", "null_of", "under_guidance"]


def encode_prompts(ref: Any, prompts: str | Sequence[str], variant: str | None = None) -> dict[str, Tensor]:
    """Prompts as the condition of a text-to-image teacher, by the pipeline's own text encoders.

    Arguments:
        ref: See `load_diffusers`.
        prompts: One or several.
        variant: The variant of the encoders' weights, `fp16` say; where there is none of it, those that are no variant.

    Returns:
        `text` (B, L, D), and `pooled` (B, P) where the network is told it.

    Raises:
        FileNotFoundError: if a folder or a file is missing; says which, and which variants there are.
        ImportError: without transformers.
        ValueError: if the pipeline has no text encoder that we know.
    """
    return _encoded(ref, [prompts] if isinstance(prompts, str) else list(prompts), variant, empty=False)


def null_cond(ref: Any, variant: str | None = None) -> Cond:
    """What stands for no condition in `Guided`, without a batch dimension: the empty prompt, or DiT's extra label.

    Arguments are those of `encode_prompts`.

    Raises:
        FileNotFoundError: if a folder or a file is missing; says which, and which variants there are.
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
    null = {name: value[0] for name, value in _encoded(ref, [""], variant, empty=True).items()}
    return null if len(null) > 1 else null["text"]


def under_guidance(
    ref: str,
    teacher: Prediction,
    weights: Sequence[float],
    prompted: bool = False,
    null: int | None = None,
    variant: str | None = None,
) -> Prediction | Guided:
    """The teacher under one weight of guidance, or under one that each row is told (two); itself under none.

    Raises:
        ValueError: if it is told nothing that it could be guided by, or nothing stands for no condition.
    """
    if not weights:
        return teacher
    if not teacher.classes and not prompted:
        raise ValueError(f"guidance needs a condition, and {ref} is told none")
    absent = null_of(ref, teacher, null, variant)
    if isinstance(absent, Tensor) and (prompted or len(weights) == 2):
        # Beside a weight, or from an encoder, the condition has a name, and so has its absence.
        absent = {"text" if prompted else "label": absent}
    return Guided(teacher, absent, weights[0]) if len(weights) == 1 else Guided(teacher, absent)


def null_of(ref: str, teacher: Prediction, null: int | None, variant: str | None = None) -> Cond:
    """What stands for no condition: the given label, or what the network knows, or a diffusers model says of itself.

    Raises:
        ValueError: if neither says, or the label is outside those of the teacher.
    """
    if null is not None:
        return torch.tensor(check_null(teacher, null, ref))
    if isinstance(unwrapped(teacher.net), DiffusersNet):
        return null_cond(ref, variant)
    if (known := own_null(teacher)) is not None:
        return torch.tensor(known)
    raise ValueError(
        f"{ref} does not say which label stands for none: give it, null={teacher.classes or 0}, if the network was "
        "trained with one"
    )


_ENCODE: dict[str, Callable[..., tuple[Any, ...]]] = {
    "StableDiffusionPipeline": lambda pipe, prompts, **options: pipe.encode_prompt(prompts, "cpu", **options),
    "StableDiffusionXLPipeline": lambda pipe, prompts, **options: pipe.encode_prompt(prompts, device="cpu", **options),
    "StableDiffusion3Pipeline": lambda pipe, prompts, **options: pipe.encode_prompt(
        prompts, None, None, device="cpu", **options
    ),
}
"""How each kind of pipeline is asked."""


@torch.no_grad()
def _encoded(ref: Any, prompts: list[str], variant: str | None, empty: bool) -> dict[str, Tensor]:
    """The condition of each prompt, or if `empty` what the pipeline takes for an empty one in guidance."""
    pipe = _text_pipeline(ref, variant) if isinstance(ref, Path | str) else _borrowed(ref)
    encode = _ENCODE.get(type(pipe).__name__)
    if encode is None:
        raise ValueError(f"unknown text pipeline {type(pipe).__name__}: expected one of {', '.join(_ENCODE)}")
    out = encode(pipe, prompts, num_images_per_prompt=1, do_classifier_free_guidance=empty)
    # (text, null text) or (text, null text, pooled, null pooled); some models take zeros for the empty prompt.
    which = 1 if empty else 0
    return {"text": out[which]} if len(out) == 2 else {"text": out[which], "pooled": out[2 + which]}


def _borrowed(pipeline: Any) -> Any:
    """A pipeline in memory with its text encoders as they are without wrappers, and lengths that they have."""
    made = copy.copy(pipeline)
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        if isinstance(encoder := getattr(pipeline, name, None), nn.Module):
            setattr(made, name, borrowed(encoder).eval())
    return _limited(made)


def _limited(pipeline: Any) -> Any:
    """The pipeline, where a tokenizer does not say how long a text is, with tokenizers that say it."""
    for n in ("", "_2"):
        tokenizer, encoder = (getattr(pipeline, f"{name}{n}", None) for name in ("tokenizer", "text_encoder"))
        if tokenizer is None or encoder is None:
            continue
        length = longest_text(tokenizer.model_max_length, getattr(encoder.config, "max_position_embeddings", None))
        if tokenizer.model_max_length != length:
            made = copy.copy(tokenizer)
            made.model_max_length = length
            setattr(pipeline, f"tokenizer{n}", made)
    return pipeline


def _text_pipeline(ref: Path | str, variant: str | None) -> Any:
    """A pipeline of nothing but tokenizers and text encoders."""
    import diffusers

    folder = local_copy(ref)
    index_file = folder / "model_index.json"
    check(index := read_json(index_file), dict[str, Any], f"{index_file}")
    name = str(index.get("_class_name"))
    if name not in _ENCODE:
        raise ValueError(f"unknown text pipeline {name}: expected one of {', '.join(_ENCODE)}")
    texts = [p for p in index if p.startswith(("text_encoder", "tokenizer")) and index[p] != [None, None]]
    encoders = [p for p in texts if p.startswith("text_encoder")]
    found = {with_weights(ref, part, "model", variant, plain=True)[1] for part in encoders}
    # diffusers asks for a file of a variant that it is told of; which part has it, it finds itself.
    variant = variant if variant in found else None
    folder = local_copy(ref, ["*.json", *(f"{p}/{f}" for p in texts for f in ("*.txt", "*.model"))])
    # A component that was saved as none has to be named as such.
    absent: dict[str, Any] = {p: None for p, made in index.items() if isinstance(made, list) and p not in texts}
    if name == "StableDiffusion3Pipeline":
        # It asks its network for a width; a network without memory answers.
        with torch.device("meta"):
            network = network_class("SD3Transformer2DModel")
            absent["transformer"] = network.from_config(read_json(folder / "transformer" / "config.json"))
    # transformers would take the dtype of the file, and layers of half precision are slow on a CPU, and rounded.
    options = {"torch_dtype": torch.float32, "use_safetensors": True, "variant": variant}
    with reading(folder, "holds no text pipeline that diffusers can read"):
        return _limited(getattr(diffusers, name).from_pretrained(folder, **options, **absent))
