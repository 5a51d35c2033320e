"""The U-Net of the published models: its size, its time, its place in the library."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from dsno.nets.backbone import Backbone, example, net_from_config
from dsno.nets.iddpm import CIFAR10, IMAGENET64, Attention, IDDPMUNet, published_blocks
from dsno.nets.unet import time_embedding
from dsno.schedule import Cosine
from dsno.students.lift import lift

TINY = {"image_size": 8, "channels": 8, "ch_mult": (1, 2), "blocks": 1, "attention": (4,), "head_dim": 4}
TIMES = torch.tensor([0.5625, 0.25, 0.0625, 0.0])


def randomise(net: nn.Module) -> nn.Module:
    """Give every parameter weight in the result: the network starts with zeros in many places."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=max(parameter[0].numel(), 2) ** -0.5)
    return net.eval()


def tiny(**options: object) -> IDDPMUNet:
    return randomise(IDDPMUNet(**{**TINY, **options}))  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("config, size, layers", [(CIFAR10, 60_004_099, 22), (IMAGENET64, 295_900_035, 29)])
def test_the_published_networks_have_their_size(config: dict, size: int, layers: int) -> None:
    with torch.device("meta"):
        net = IDDPMUNet(**config)
    assert sum(p.numel() for p in net.parameters()) == size
    assert len(published_blocks(net)) == layers


def test_temporal_layers_go_behind_all_blocks_that_keep_the_resolution_and_once_in_the_middle() -> None:
    names = published_blocks(tiny())
    # down: block, halve, block; up: two blocks, double, two blocks
    assert names == ["down.0", "down.2", "mid.0", "up.0", "up.1", "up.3", "up.4"]


def test_a_new_network_answers_zero_and_each_parameter_learns() -> None:
    net = IDDPMUNet(**TINY, classes=3)  # type: ignore[arg-type]
    x, t, label = torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 2])
    assert not net(x, t, label).any()
    randomise(net)(x, t, label).square().sum().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def test_the_first_weights_have_the_variance_of_the_published_initialisation() -> None:
    net = IDDPMUNet(channels=64, ch_mult=(1,), blocks=1, attention=(32,), emb_dim=256)
    # scale / mean of fan-in and fan-out
    for layer, scale in ((net.down[0].conv1, 1.0), (net.down[0].emb, 1.0), (net.down[0].attention.qkv, 0.1)):
        fan_out, fan_in, *kernel = layer.weight.shape
        expected = scale / ((fan_in + fan_out) / 2 * math.prod(kernel))
        assert float(layer.weight.detach().var()) == pytest.approx(expected, rel=0.05)


def test_the_time_is_the_angle_of_the_log_snr() -> None:
    net = tiny()
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    u = torch.atan(torch.exp(-Cosine().log_snr(t) / 2)) / (math.pi / 2)
    told: list[Tensor] = []
    net.emb.register_forward_pre_hook(lambda module, args: told.append(args[0]))
    net(torch.zeros(11, 3, 8, 8), t.float())
    # Angles of up to 1000 in single precision.
    torch.testing.assert_close(told[0], time_embedding(u, 8), rtol=0, atol=1e-4)
    assert float((u - t).abs().max()) < 3e-5


def test_attention_is_the_softmax_of_the_products_of_each_head() -> None:
    attention = randomise(Attention(12, heads=3))
    h = torch.randn(2, 12, 3, 2)
    q, k, v = attention.qkv(attention.norm(h)).flatten(2).unflatten(1, (3, 3, 4)).unbind(1)
    weights = torch.einsum("bhcp,bhcq->bhpq", q, k).div(4**0.5).softmax(-1)
    attended = torch.einsum("bhpq,bhcq->bhcp", weights, v).reshape(2, 12, 3, 2)
    torch.testing.assert_close(attention(h), h + attention.proj(attended))


def test_head_dim_counts_the_heads_of_every_level() -> None:
    heads = [m.heads for m in tiny(attention=(8, 4)).modules() if isinstance(m, Attention)]
    assert heads == [2, 4, 4, 4, 4, 2, 2]
    assert {m.heads for m in tiny(head_dim=None, heads=2).modules() if isinstance(m, Attention)} == {2}


def test_labels_are_bare_or_under_their_name() -> None:
    net = tiny(classes=5)
    x, t = torch.randn(2, 3, 8, 8), torch.rand(2)
    bare = net(x, t, torch.tensor([4, 1]))
    assert torch.equal(net(x, t, {"label": torch.tensor([4, 1])}), bare)
    assert (net(x, t, torch.tensor([1, 4])) - bare).abs().max() > 1e-2
    with pytest.raises(ValueError, match="class conditional: pass labels"):
        net(x, t)


def test_the_order_in_memory_changes_nothing() -> None:
    net = tiny()
    x, t = torch.randn(2, 3, 8, 8), torch.rand(2)
    expected = net(x, t)
    out = net.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last), t)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"classes": 3, "head_dim": None, "heads": 2, "log_snr_max": 15.0}])
def test_it_is_rebuilt_from_its_configuration(options: dict) -> None:
    net = tiny(**options)
    assert isinstance(net, Backbone)
    twin = net_from_config(net.config)
    twin.load_state_dict(net.state_dict())
    x, t, *cond = example(net, torch.zeros(()), rows=2)
    assert torch.equal(twin.eval()(x + 1, t + 0.3, *cond), net(x + 1, t + 0.3, *cond))
    assert twin.config == net.config


@pytest.mark.parametrize("once", [False, True])
def test_lifted_it_is_itself_at_each_output_time(once: bool) -> None:
    net = tiny()
    names = published_blocks(net)
    made = lift(
        copy.deepcopy(net),
        example(net, torch.zeros(())),
        net.blocks,
        where=lambda name, shape: name in names,
        once=once,
    ).eval()
    assert list(made.config["temporal"]) == names
    x = torch.randn(2, 3, 8, 8)
    frames = made.to(memory_format=torch.channels_last)(x, TIMES)
    for m, t in enumerate(TIMES):
        # The stem, which alone runs once, is not told the time.
        torch.testing.assert_close(frames[:, m], net(x, t.expand(2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_size": 6, "ch_mult": (1, 1, 1)}, "6 pixels cannot be halved 2 times"),
        ({"channels": 10}, "a level of 10 channels .* a multiple of 4 and of 4"),
        ({"channels": 144, "ch_mult": (1,)}, "a level of 144 channels .* a multiple of 32 and of 4"),
        ({"head_dim": 16}, "a level of 8 channels .* and of 16"),
    ],
)
def test_bad_sizes_say_what_is_wrong(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IDDPMUNet(**{**TINY, **options})  # type: ignore[arg-type]
