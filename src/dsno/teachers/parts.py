"""The parts of a diffusers model: where a folder, or a pipeline in memory, has its network and its scheduler.

A pipeline's folder has `model_index.json` and a folder for each part; that of a model alone has its `config.json`, and
the scheduler in it or beside it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from dsno.borrow import unwrapped
from dsno.checkpoint import read_json
from dsno.hub import file_names, local_copy
from dsno.listing import entries
from dsno.outside import check, must_be_file, one_line, reading, try_out

__all__ = [
    "STEM",
    "TEXT_LENGTH",
    "contents",
    "longest_text",
    "network_folder",
    "network_name",
    "network_of",
    "read_part",
    "scheduler_file",
    "shapes_of",
    "with_weights",
]

STEM = "diffusion_pytorch_model"
"""What diffusers calls a file of weights."""

TEXT_LENGTH = 77
"""Tokens of a text, where neither tokenizer nor text encoder says it: CLIP's."""


def contents(folder: Path) -> str:
    """What is in a folder, in words."""
    return ", ".join(p.name for p in entries(folder)) or "nothing"


def network_of(pipeline: Any) -> Any:
    """The denoising network of a pipeline in memory, without what is wrapped around it.

    Raises:
        ValueError: if it has none.
    """
    # The truth of a module may be its length, so it is not asked.
    named = (getattr(pipeline, name, None) for name in ("unet", "transformer"))
    model = unwrapped(next((part for part in named if part is not None), None))
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"a {type(pipeline).__name__} has neither a unet nor a transformer: it is no diffusers pipeline"
        )
    return model


def network_folder(folder: Path) -> Path:
    """Where the denoising network is, in a pipeline's folder or as the folder itself.

    Raises:
        FileNotFoundError: if there is none; says what there is.
    """
    for part in (folder / "unet", folder / "transformer", folder):
        if (part / "config.json").is_file():
            return part
    raise FileNotFoundError(
        f"{folder} has no unet/config.json, transformer/config.json or config.json (it has {contents(folder)}): "
        "it is no diffusers model"
    )


def network_name(config: Mapping[str, Any]) -> str:
    """The class of a network, from its configuration."""
    name = str(config.get("_class_name"))
    # The first DiT checkpoints were saved under the name of a class that was split since.
    legacy = name == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero"
    return "DiTTransformer2DModel" if legacy else name


def scheduler_file(folder: Path) -> Path:
    """The configuration of the scheduler, in a pipeline's folder, in a model's, or beside it.

    Raises:
        FileNotFoundError: if there is none; says what there is, and how to write one.
    """
    name = "scheduler_config.json"
    for file in (folder / "scheduler" / name, folder / name, folder.absolute().parent / "scheduler" / name):
        if file.is_file():
            return file
    raise FileNotFoundError(
        f"{folder} has no scheduler/{name} (it has {contents(folder)}), which says what the network was trained on: "
        f"save its scheduler there, scheduler.save_pretrained({str(folder / 'scheduler')!r})"
    )


def longest_text(tokenizer: Any, encoder: Any) -> int:
    """How many tokens a text has: what the tokenizer says, but no more than its encoder has places for.

    Arguments:
        tokenizer: Its `model_max_length`, which may be None, or transformers' placeholder for no limit, 1e30.
        encoder: The encoder's `max_position_embeddings`, or None.
    """
    said = [int(n) for n in (tokenizer, encoder) if isinstance(n, int | float) and 0 < n < _NO_LIMIT]
    return min(said, default=TEXT_LENGTH)


_NO_LIMIT = 1e20
"""From here on a tokenizer's length means that nobody said it."""


def with_weights(
    ref: Path | str, part: str, stem: str, variant: str | None = None, plain: bool = False
) -> tuple[Path, str | None]:
    """A model's folder with the weights of a part in it, fetched where it is on the Hub, and which variant they are.

    Arguments:
        ref: A folder, or the name of a repository.
        part: The part's folder in it; empty for the model itself.
        stem: What the file is called: `STEM`, or `model` of a text encoder.
        variant: The one that is wanted, `fp16` say, or None for the weights that are no variant.
        plain: Whether those do where the variant is missing, as in diffusers' pipelines.

    Raises:
        FileNotFoundError: if they are not there; lists the variants that are.
        ConnectionError: if it is on the Hub and the Hub cannot be reached.
    """
    prefix = f"{part}/" if part else ""
    for wanted in (variant, None) if plain and variant else (variant,):
        patterns = [prefix + name for name in _weight_files(stem, wanted)]
        folder = local_copy(ref, ["*.json", *patterns])
        if any(file for pattern in patterns for file in folder.glob(pattern)):
            return folder, wanted
    names = [file.removeprefix(prefix) for file in file_names(ref) if file.rpartition("/")[0] == part]
    raise FileNotFoundError(_without_weights(f"{ref}/{part}".rstrip("/"), names, stem, variant))


def read_part(made: Any, folder: Path, dtype: torch.dtype | None = None, variant: str | None = None) -> Any:
    """A model of diffusers from its folder, after it was built without memory and compared with its weights' headers.

    Arguments:
        made: Its class.
        folder: Where its configuration and its weights are (`with_weights`).
        dtype: What it computes in.
        variant: Of its weights.

    Raises:
        ValueError: if configuration or weights are damaged, or not of each other.
    """
    source, shapes = folder / "config.json", shapes_of(folder, STEM, variant)
    check(config := read_json(source), dict[str, Any], f"{source}")
    known = inspect.signature(made).parameters

    def look(model: nn.Module) -> None:
        own = {name: tuple(x.shape) for name, x in model.state_dict().items()}
        if wrong := [name for name in own if name in shapes and own[name] != shapes[name]]:
            raise ValueError(
                f"{folder} holds another architecture than its configuration says: {wrong[0]} has shape "
                f"{shapes[wrong[0]]}, the model has {own[wrong[0]]}"
            )

    try_out(lambda: made(**{k: v for k, v in config.items() if k in known}), len(shapes), source, look)
    with reading(folder, "cannot be read by diffusers"):
        model, said = made.from_pretrained(
            folder, torch_dtype=dtype, variant=variant, use_safetensors=True, output_loading_info=True
        )
    if missing := sorted(said["missing_keys"]):
        raise ValueError(
            f"the weights in {folder} lack {missing[0]} and {len(missing) - 1} more that a {made.__name__} has: they "
            "are of another network, or were saved from a wrapped one (save the module inside)"
        )
    return model


def shapes_of(folder: Path, stem: str, variant: str | None) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights in a part's folder, by name, from the headers of their files.

    Raises:
        ValueError: if a file is truncated or damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted({path for pattern in _weight_files(stem, variant) for path in folder.glob(pattern)}):
        try:
            with safe_open(must_be_file(path), framework="pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is truncated or damaged ({one_line(error)}): copy it again") from None
    return shapes


def _weight_files(stem: str, variant: str | None) -> tuple[str, ...]:
    """What the files of weights may be called, as patterns: one file or shards, of a variant or of none."""
    if variant is None:
        return f"{stem}.safetensors", f"{stem}-?????-of-?????.safetensors"
    # The last is how shards of a variant were called at first.
    names = f"{stem}.{variant}", f"{stem}.{variant}-?????-of-?????", f"{stem}-?????-of-?????.{variant}"
    return tuple(f"{name}.safetensors" for name in names)


def _without_weights(where: str, names: Collection[str], stem: str, variant: str | None) -> str:
    """What is missing among the names of files, and what is there in its place."""
    pattern = rf"{re.escape(stem)}(?:\.([\w-]+?))?(?:-\d{{5}}-of-\d{{5}}(?:\.([\w-]+))?)?\.safetensors"
    found = {m[1] or m[2] for name in names if (m := re.fullmatch(pattern, name))}
    others = sorted(v for v in found if v)
    ways = [f"take the variant {' or '.join(others)} (variant={others[0]!r})"] if others else []
    ways += ["leave the variant out"] if None in found else []
    ways = ways or ["save the model with save_pretrained(..., safe_serialization=True); pickled weights are not read"]
    name = f"{stem}.{variant}" if variant else stem
    held = ", ".join([*sorted(names)[:6], *["..."] * (len(names) > 6)]) or "nothing"
    return f"{where} has no weights {name}.safetensors (it has {held}): {', or '.join(ways)}"
