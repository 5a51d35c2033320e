"""A classifier for tiny images, whose features depend on nothing but the image."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dsno.nets.features import FeatureNet, load_feature_net, made_of, save_feature_net, tells_classes


def images(N: int = 12, C: int = 1, size: int = 8) -> Tensor:
    return torch.rand(N, C, size, size) * 2 - 1


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 8), (1, 28), (3, 32)])
def test_feature_net_takes_tiny_images(channels: int, size: int) -> None:
    net = FeatureNet("tiny_cnn", channels, classes=7, width=4)
    x = images(5, channels, size)
    assert net.features(x).shape == (5, 64)
    assert net(x).shape == (5, 7)
    torch.testing.assert_close(net.features(x)[2:3], net.features(x[2:3]))


def test_feature_net_refuses_other_images_and_sizes() -> None:
    net = FeatureNet("tiny_cnn")
    with pytest.raises(ValueError, match=r"\(B, 1, H, W\)"):
        net(images(2, 3))
    with pytest.raises(ValueError, match="8x8 or more"):
        net(images(2, 1, 4))
    with pytest.raises(ValueError, match="1 or 3 channels"):
        FeatureNet("tiny_cnn", channels=2)


def test_feature_net_learns() -> None:
    torch.manual_seed(0)
    y = torch.arange(64) % 2
    x = images(64) * 0.5
    x[y == 1, :, :4] += 0.4
    net = FeatureNet("tiny_cnn", classes=2, width=4)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert (net(x).argmax(1) == y).float().mean() > 0.95


def test_maps_are_those_of_every_convolution_and_shrink_by_half() -> None:
    net, x = FeatureNet("tiny_cnn", width=4), images(3, 1, 12)
    assert [tuple(m.shape) for m in net.maps(x)] == [(3, 4, 12, 12), (3, 8, 6, 6), (3, 16, 3, 3)]
    assert [tuple(m.shape[2:]) for m in net.maps(images(3, 1, 4))] == [(4, 4), (2, 2), (1, 1)]
    with pytest.raises(ValueError, match="4x4 or more"):
        net.maps(images(3, 1, 3))
    pooled = nn.functional.adaptive_avg_pool2d(net.maps(x)[-1], 2).flatten(1)
    assert torch.equal(net.features(x), nn.functional.silu(net.penultimate(pooled)))


def test_feature_net_round_trip(tmp_path: Path) -> None:
    net, x = FeatureNet("tiny_cnn", channels=3, classes=4, width=8, dim=16).train(), images(2, 3)
    loaded = load_feature_net(save_feature_net(tmp_path / "features", net, data="none"))
    assert loaded.config == net.config and loaded.name == "tiny_cnn"
    assert torch.equal(loaded(x), net(x))
    assert not loaded.training


def test_a_network_tells_the_classes_of_the_data_that_it_learned_them_from(tmp_path: Path) -> None:
    net = FeatureNet("tiny_cnn", width=4)
    for name, notes in (("labels", {"labelled": True}), ("turns", {"labelled": False}), ("older", {})):
        save_feature_net(tmp_path / name, net, data="digits", **notes)
        assert made_of(tmp_path / name) == "digits"
        assert tells_classes(tmp_path / name, "digits") == (name != "turns")
        assert not tells_classes(tmp_path / name, "letters")
    assert not tells_classes(tmp_path, "digits") and made_of(tmp_path) is None
