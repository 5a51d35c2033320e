"""The parts of a diffusers model are found where they lie, and what lacks one says what it has."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from dsno.teachers.parts import contents, network_folder, network_name, network_of, scheduler_file


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
