"""The parts of a diffusers model: where a folder, or a pipeline in memory, has its network and its scheduler.

A pipeline's folder has `model_index.json` and a folder for each part; that of a model alone has its `config.json`, and
the scheduler in it or beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dsno.listing import entries

__all__ = ["contents", "network_folder", "network_name", "network_of", "scheduler_file"]


def contents(folder: Path) -> str:
    """What is in a folder, in words."""
    return ", ".join(p.name for p in entries(folder)) or "nothing"


def network_of(pipeline: Any) -> Any:
    """The denoising network of a pipeline in memory.

    Raises:
        ValueError: if it has none.
    """
    model = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
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
