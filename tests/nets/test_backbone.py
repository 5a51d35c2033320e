"""A backbone is rebuilt from what it says of itself, and can be called with what it says it is told."""

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dsno.denoise import Prediction
from dsno.nets.backbone import NETS, Backbone, check_null, example, net_from_config, own_null
from dsno.nets.diffusers import DiffusersNet
from dsno.nets.iddpm import IDDPMUNet
from dsno.nets.unet import UNet
from dsno.schedule import Cosine


@pytest.mark.parametrize("name", NETS)
def test_every_name_is_that_of_a_module_with_what_a_backbone_says(name: str) -> None:
    module, attribute = NETS[name].split(":")
    made = getattr(import_module(module), attribute)
    assert attribute == name and issubclass(made, nn.Module)


def test_a_configuration_without_a_name_is_a_unets() -> None:
    net = net_from_config({"image_size": 4, "channels": [4], "attention": []})
    assert type(net) is UNet and isinstance(net, Backbone) and net.shape == (1, 4, 4)
    assert net_from_config({"name": "UNet", **net.config}).config == net.config


@pytest.mark.parametrize(
    "config, message",
    [
        ({"name": "VNet"}, "unknown network 'VNet': expected one of DiffusersNet, GuidedUNet, IDDPMUNet, "),
        ({"chanels": [4]}, r"unknown key 'chanels' in the configuration of a UNet: did you mean 'channels'\?"),
        ({"name": "PreconditionedUNet"}, "the configuration of a PreconditionedUNet lacks net"),
    ],
)
def test_what_is_no_configuration_is_explained(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        net_from_config(config)


@pytest.mark.parametrize(
    "classes, tokens, names",
    [(None, {}, None), (5, {}, ""), (None, {"text": (7, 3)}, ""), (5, {"text": (7, 3), "pooled": (2,)}, "by name")],
)
def test_an_example_is_what_the_network_is_told(classes: int | None, tokens: dict, names: str | None) -> None:
    net: Any = SimpleNamespace(shape=(2, 4), classes=classes, tokens=tokens)
    x, t, *cond = example(net, torch.ones(1, dtype=torch.float64), rows=3)
    assert x.shape == (3, 2, 4) and t.shape == (3,) and x.dtype == t.dtype == torch.float64
    if names is None:
        assert not cond
    elif names == "":
        assert cond[0].shape == (3, *next(iter(tokens.values()), ()))
        assert cond[0].dtype == (torch.float64 if tokens else torch.int64)
    else:
        assert {name: tuple(c.shape) for name, c in cond[0].items()} == {
            "text": (3, 7, 3),
            "pooled": (3, 2),
            "label": (3,),
        }


DIT = {
    "num_attention_heads": 1,
    "attention_head_dim": 4,
    "in_channels": 1,
    "num_layers": 1,
    "sample_size": 4,
    "norm_num_groups": 1,
}
UNET_2D = {
    "sample_size": 4,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [4],
    "norm_num_groups": 1,
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "attention_head_dim": 4,
}


@pytest.mark.parametrize(
    "make, labels",
    [
        (lambda: UNet(1, 4, (4,), attention=(), classes=3), 3),
        (lambda: UNet(1, 4, (4,), attention=(), classes=3, null=True), 4),
        # Guidance of diffusers' U-Net takes one of its classes, DiT's has a label behind them.
        (lambda: DiffusersNet("UNet2DModel", {**UNET_2D, "num_class_embeds": 3}), 3),
        (lambda: DiffusersNet("DiTTransformer2DModel", {**DIT, "num_embeds_ada_norm": 3}), 4),
        (lambda: IDDPMUNet(1, 8, 4, (1, 1), blocks=1, attention=(), classes=3), 3),
    ],
)
def test_a_null_label_is_one_that_the_network_knows(make: Any, labels: int) -> None:
    net = make()
    assert net.label_count == labels
    teacher = Prediction(net, Cosine(), "v")
    assert check_null(teacher, labels - 1) == labels - 1
    arguments = example(net, torch.zeros(1))
    label = torch.tensor([labels - 1])
    assert net(arguments[0], arguments[1], label).isfinite().all()
    with pytest.raises(IndexError):
        net(arguments[0], arguments[1], label + 1)
    for null in (labels, -1):
        with pytest.raises(ValueError, match=f"the null label {null} is outside the labels of it: expected 0 to"):
            check_null(teacher, null, "it")
    # Of a network that does not say how far its labels go only the sign is known.
    assert check_null(Prediction(nn.Identity(), Cosine(), "v"), 1000) == 1000


def test_a_network_knows_its_null_label_where_it_is_behind_the_last_class() -> None:
    def told(**options: int | bool) -> Prediction:
        net = UNet(1, 8, (4, 8), attention=(), **options)  # type: ignore[arg-type]
        return Prediction(net, Cosine(), "v", classes=net.classes)

    assert own_null(told(classes=7, null=True)) == 7
    assert own_null(told(classes=7)) is None and own_null(told()) is None
