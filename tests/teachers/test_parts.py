"""The parts of a diffusers model are found where they lie, and what lacks one says what it has."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dsno.teachers.parts import (
    STEM,
    contents,
    longest_text,
    network_folder,
    network_name,
    network_of,
    scheduler_file,
    shapes_of,
    with_weights,
)


def written(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}")
    return file


def test_the_contents_of_a_folder_are_said_in_order(tmp_path: Path) -> None:
    assert contents(tmp_path) == "nothing"
    for name in ("vae", "README.md", "unet"):
        written(tmp_path / name)
    assert contents(tmp_path) == "README.md, unet, vae"


@pytest.mark.parametrize("part", ["unet", "transformer"])
def test_the_network_of_a_pipeline_in_memory(part: str) -> None:
    net = nn.Linear(1, 1)
    assert network_of(SimpleNamespace(**{part: net})) is net
    for held in ({}, {part: None}, {part: "a name"}):
        with pytest.raises(ValueError, match="a SimpleNamespace has neither a unet nor a transformer"):
            network_of(SimpleNamespace(**held))


def test_the_network_is_in_a_folder_of_its_own_before_the_one_above(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no unet/config.json, transformer/config.json or config.json \(it has nothing\)"
    ):
        network_folder(tmp_path)
    for part in (tmp_path, tmp_path / "transformer", tmp_path / "unet"):
        written(part / "config.json")
        assert network_folder(tmp_path) == part


@pytest.mark.parametrize(
    "config, name",
    [
        ({"_class_name": "UNet2DModel"}, "UNet2DModel"),
        ({"_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero"}, "DiTTransformer2DModel"),
        ({"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single"}, "Transformer2DModel"),
        ({}, "None"),
    ],
)
def test_the_first_dit_goes_by_an_older_name(config: dict[str, str], name: str) -> None:
    assert network_name(config) == name


def test_the_scheduler_is_inside_before_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, model = "scheduler_config.json", tmp_path / "unet"
    written(model / "config.json")
    with pytest.raises(
        FileNotFoundError, match=rf"unet has no scheduler/{name} \(it has config.json\), .*save_pretrained\('.*unet/sch"
    ):
        scheduler_file(model)
    for file in (tmp_path / "scheduler" / name, model / name, model / "scheduler" / name):
        written(file)
        assert scheduler_file(model) == file
    # Of a folder that is named relatively, too, there is one beside it.
    monkeypatch.chdir(written(tmp_path / "transformer" / "config.json").parent)
    assert scheduler_file(Path()) == tmp_path / "scheduler" / name


# How long a text is


@pytest.mark.parametrize(
    ("tokenizer", "encoder", "length"),
    [(8, 77, 8), (int(1e30), 16, 16), (None, 16, 16), (512, 77, 77), (int(1e30), None, 77), (None, None, 77)],
)
def test_a_text_is_as_long_as_tokenizer_and_encoder_allow(
    tokenizer: int | None, encoder: int | None, length: int
) -> None:
    assert longest_text(tokenizer, encoder) == length


# Weights and their variants

SHARDED = "diffusion_pytorch_model{}-00001-of-00002{}.safetensors"


@pytest.mark.parametrize(
    "name", ["diffusion_pytorch_model.fp16.safetensors", SHARDED.format(".fp16", ""), SHARDED.format("", ".fp16")]
)
def test_a_variant_is_found_whole_or_in_shards(tmp_path: Path, name: str) -> None:
    written(tmp_path / "unet" / name)
    assert with_weights(tmp_path, "unet", STEM, "fp16") == (tmp_path, "fp16")
    mend = r"take the variant fp16 \(variant='fp16'\)"
    with pytest.raises(FileNotFoundError, match=rf"unet has no weights {STEM}.safetensors \(it has .*fp16.*\): {mend}"):
        with_weights(tmp_path, "unet", STEM)


def test_what_variants_there_are_is_said(tmp_path: Path) -> None:
    for name in ("non_ema", "fp16"):
        written(tmp_path / f"{STEM}.{name}.safetensors")
    with pytest.raises(FileNotFoundError, match=rf"no weights {STEM}.bf16.safe.*: take the variant fp16 or non_ema"):
        with_weights(tmp_path, "", STEM, "bf16")
    written(tmp_path / f"{STEM}.safetensors")
    assert with_weights(tmp_path, "", STEM, None) == (tmp_path, None)
    with pytest.raises(FileNotFoundError, match=r"variant='fp16'\), or leave the variant out$"):
        with_weights(tmp_path, "", STEM, "bf16")
    # Beside a network of a variant an autoencoder of none does.
    assert with_weights(tmp_path, "", STEM, "bf16", plain=True) == (tmp_path, None)


def test_shapes_are_read_from_headers_whole_or_in_shards(tmp_path: Path) -> None:
    for n in (1, 2):
        file = tmp_path / f"{STEM}-0000{n}-of-00002.safetensors"
        save_file({f"w{n}": torch.zeros(n, 3)}, file)
    assert shapes_of(tmp_path, STEM, None) == {"w1": (1, 3), "w2": (2, 3)}
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{file.name} is truncated or damaged"):
        shapes_of(tmp_path, STEM, None)
