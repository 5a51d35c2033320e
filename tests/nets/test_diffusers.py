"""diffusers' networks are told time and condition in their own units and names."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsno.nets.backbone import Backbone, net_from_config
from dsno.nets.diffusers import DiffusersNet, network_class, stated_shape

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers and NumPy 2

UNET = dict(
    sample_size=4,
    in_channels=2,
    out_channels=2,
    layers_per_block=1,
    block_out_channels=(4, 8),
    norm_num_groups=2,
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
)
TEXT = dict(UNET, cross_attention_dim=6, attention_head_dim=2)
XL = dict(addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 * 4 + 5)


@pytest.mark.parametrize(
    "unit, expected", [("steps", [0, 99, 399, 999]), ("flow", [0, 100, 400, 1000]), ("edm", [0.002, 8, 32, 80])]
)
def test_time_is_told_in_the_networks_units(unit: Any, expected: list[float]) -> None:
    net = DiffusersNet("UNet2DModel", UNET, unit)
    found = net.time(torch.tensor([0.0, 0.1, 0.4, 1.0], dtype=torch.float64))
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, wanted.log() / 4 if unit == "edm" else wanted)


def test_times_between_training_steps_are_told_as_fractions() -> None:
    net = DiffusersNet("UNet2DModel", UNET, steps=1000)
    whole = net.time((torch.arange(1000) + 1).float() / 1000)
    assert torch.equal(whole, torch.arange(1000).float())
    torch.testing.assert_close(net.time(torch.tensor([0.0, 0.5005])), torch.tensor([0.0, 499.5]))
    slope = torch.func.grad(lambda t: net.time(t))(torch.tensor(0.5))
    assert float(slope) == 1000
    # An embedding with one row for each training step has no fractions.
    learned = DiffusersNet("UNet2DModel", dict(UNET, time_embedding_type="learned", num_train_timesteps=50), steps=50)
    assert learned.time(torch.tensor([0.0, 0.31, 1.0])).tolist() == [0, 14, 49]


@pytest.mark.parametrize(
    "name, settings, classes, tokens",
    [
        ("UNet2DModel", UNET, None, {}),
        ("UNet2DModel", dict(UNET, num_class_embeds=3), 3, {}),
        ("UNet2DModel", dict(UNET, class_embed_type="timestep"), None, {"label": ()}),
        ("UNet2DModel", dict(UNET, class_embed_type="identity"), None, {"pooled": (16,)}),
        ("UNet2DConditionModel", TEXT, None, {"text": (7, 6)}),
        ("UNet2DConditionModel", dict(TEXT, **XL), None, {"text": (7, 6), "pooled": (5,)}),
    ],
)
def test_what_it_is_told_follows_from_its_settings(
    name: str, settings: dict[str, Any], classes: int | None, tokens: dict[str, tuple[int, ...]]
) -> None:
    ids = [8.0] * 6 if "addition_embed_type" in settings else None
    net = DiffusersNet(name, settings, text_length=7, time_ids=ids)
    assert isinstance(net, Backbone) and (net.classes, net.tokens, net.shape) == (classes, tokens, (2, 4, 4))
    assert net.embedding == ("model.time_embedding",) and isinstance(net.blocks[0], type)
    twin = net_from_config(net.config)
    assert twin.config == net.config and twin.state_dict().keys() == net.state_dict().keys()


class Says(nn.Module):
    """In the place of a network: says what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.bfloat16))

    def forward(self, **arguments: Any) -> tuple[Tensor]:
        self.told = arguments
        return (torch.cat([arguments["sample"]] * 2, 1),)


def test_arguments_have_the_networks_names_and_dtype() -> None:
    net = DiffusersNet("UNet2DConditionModel", dict(TEXT, **XL), text_length=7, time_ids=range(6), negate=True)
    inner = net.model = Says()
    x, text, pooled = torch.randn(3, 2, 4, 4), torch.randn(3, 7, 6), torch.randn(3, 5)
    out = net(x, torch.full((3,), 0.4), {"text": text, "pooled": pooled})
    assert out.dtype == torch.float32 and torch.equal(out, -x.bfloat16().float())
    told = inner.told
    assert told["return_dict"] is False and told["timestep"].tolist() == [399] * 3
    assert torch.equal(told["encoder_hidden_states"], text.bfloat16())
    assert torch.equal(told["added_cond_kwargs"]["text_embeds"], pooled.bfloat16())
    assert told["added_cond_kwargs"]["time_ids"].tolist() == [[0, 1, 2, 3, 4, 5]] * 3
    own = {"text": text, "pooled": pooled, "time_ids": torch.ones(3, 6)}
    net(x, torch.full((3,), 0.4), own)
    assert torch.equal(inner.told["added_cond_kwargs"]["time_ids"], own["time_ids"])
    with pytest.raises(ValueError, match="needs a condition: pass text, pooled as cond"):
        net(x, torch.full((3,), 0.4), text)


def test_one_thing_needs_no_name() -> None:
    net = DiffusersNet("UNet2DModel", dict(UNET, num_class_embeds=3)).eval()
    x, t, label = torch.randn(2, 2, 4, 4), torch.rand(2), torch.tensor([0, 2])
    assert torch.equal(net(x, t, label), net(x, t, {"label": label}))
    with pytest.raises(ValueError, match="is unconditional: it is told no labels"):
        DiffusersNet("UNet2DModel", UNET)(x, t, label)


def test_the_shape_is_in_the_settings_or_has_to_be_given() -> None:
    assert stated_shape("UNet2DModel", {"in_channels": 2, "sample_size": 4}) == (2, 4, 4)
    assert stated_shape("UNet2DModel", {"in_channels": 2, "sample_size": [4, 6]}) == (2, 4, 6)
    assert DiffusersNet("UNet2DModel", dict(UNET, sample_size=None), shape=(2, 8, 6)).shape == (2, 8, 6)
    with pytest.raises(ValueError, match=r"this UNet2DModel has no sample_size: pass shape=\(C, H, W\)"):
        stated_shape("UNet2DModel", {"in_channels": 2})


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("VNet", {}, "unknown network class VNet: expected one of UNet2DModel"),
        (
            "UNet2DModel",
            dict(UNET, out_channels=3),
            "takes 2 channels and gives 3: a denoiser gives as many as it takes",
        ),
        ("UNet2DConditionModel", dict(TEXT, num_class_embeds=3), "with num_class_embeds=3 is not supported"),
        ("UNet2DConditionModel", dict(TEXT, **XL), "is told its image sizes: pass time_ids, six numbers"),
    ],
)
def test_networks_that_it_cannot_call_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusersNet(name, settings)


def test_the_classes_are_those_of_diffusers() -> None:
    import diffusers

    assert network_class("UNet2DModel") is diffusers.UNet2DModel
