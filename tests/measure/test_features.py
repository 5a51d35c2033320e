"""From images to features: the network is named, and left as it was."""

import math

import pytest
import torch
from torch import Tensor, nn

from dsno.measure.features import Extractor, as_extractor, class_accuracy, classifier_of, extract
from dsno.nets.features import FeatureNet


def images(N: int = 12, C: int = 1, size: int = 8) -> Tensor:
    return torch.rand(N, C, size, size) * 2 - 1


def test_extractors_are_named_and_fingerprinted() -> None:
    a, b = FeatureNet("tiny_cnn"), FeatureNet("tiny_cnn")
    assert as_extractor(a).name == "tiny_cnn"
    assert as_extractor(nn.Flatten()).name == "Flatten"
    assert as_extractor(nn.Flatten(), "pixels").name == "pixels"
    assert as_extractor(a).sha != as_extractor(b).sha
    b.load_state_dict(a.state_dict())
    assert as_extractor(a).sha == as_extractor(b).sha


def test_extract_is_batch_invariant_and_leaves_the_mode_alone() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(), nn.AdaptiveAvgPool2d(2)).train()
    x = images(11)
    features = extract(Extractor(net, "bn"), x, batch=4)
    assert features.shape == (11, 12) and features.dtype == torch.float64
    torch.testing.assert_close(features, extract(net, x, batch=11), rtol=1e-5, atol=1e-6)
    assert net.training


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(4, 8, 8), r"shape \(N, C, H, W\)"),
        (torch.zeros(0, 1, 8, 8), "empty"),
        (torch.full((4, 1, 8, 8), 0.5), "constant"),
        (images() * 127 + 128, r"lie in \[-1, 1\]"),
        (images().masked_fill(images() > 0.9, math.nan), "not finite"),
    ],
)
def test_bad_images_are_one_clear_error(bad: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extract(nn.Flatten(), bad)


def test_features_that_are_not_finite_are_an_error() -> None:
    net = FeatureNet("tiny_cnn")
    nn.init.constant_(net.penultimate.bias, math.inf)
    with pytest.raises(ValueError, match="tiny_cnn gave features that are not finite"):
        extract(net, images())


def test_every_module_of_the_network_comes_back_in_its_mode() -> None:
    net, seen = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.BatchNorm1d(64)).train(), []
    net[2].eval()
    net.register_forward_hook(lambda module, args, output: seen.append({m.training for m in module.modules()}))
    extract(net, images())
    assert seen == [{False}]
    assert net.training and [m.training for m in net] == [True, True, False]


def test_a_class_is_what_the_network_says_it_is() -> None:
    torch.manual_seed(0)
    net, x = FeatureNet("tiny_cnn", classes=3, width=4), images(20)
    said = net(x).argmax(1)
    assert class_accuracy(net, x, said) == 1
    assert class_accuracy(net, x, torch.cat([said[:5], (said[5:] + 1) % 3])) == 0.25
    assert classifier_of(net) is net and classifier_of(Extractor(net, "other")) is net
    for none, name in ((nn.Flatten(), "Flatten"), (Extractor(nn.Flatten(), "x"), "Flatten"), (None, "NoneType")):
        with pytest.raises(ValueError, match=f"labels are told by a FeatureNet, and the extractor is a {name}"):
            classifier_of(none)
