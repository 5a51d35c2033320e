"""The classifier of noised samples: what it says where nothing is known, of which schedule, and its files."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from dsno.checkpoint import read_json
from dsno.nets.classifier import Classifier, load_classifier, save_classifier
from dsno.nets.features import FeatureNet, save_feature_net
from dsno.schedule import VE, Cosine, RectifiedFlow
from solving import states


def awake(*sizes: object, **options: object) -> Classifier:
    """One whose blocks are not zero."""
    torch.manual_seed(0)
    net = Classifier(*sizes, **options)
    for module in net.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.normal_(module.weight, std=0.2)
    return net


def test_on_pure_noise_it_says_the_prior_and_its_gradient_vanishes_as_the_share_of_data() -> None:
    net, x = awake(), states(3, (1, 8, 8)).float().requires_grad_()
    net.prior.data.normal_()
    assert torch.equal(net(x, 0.0, 1.0), net.prior.expand(3, 10))
    sizes = []
    for alpha in (1e-2, 1e-3):
        loss = net(x, alpha, math.sqrt(1 - alpha**2)).log_softmax(-1)[:, 0].sum()
        sizes.append(float(torch.autograd.grad(loss, x)[0].norm()))
    assert sizes[0] / sizes[1] == pytest.approx(10, rel=0.05)


def test_it_knows_the_noise_and_no_schedule() -> None:
    """The same state in three schedules' scales, at one log-SNR, has one answer."""
    net, x, told = awake(), states(3, (1, 8, 8)).float(), []
    for schedule in (Cosine(), VE(), RectifiedFlow()):
        t = float(schedule.time(torch.tensor(-1.0, dtype=torch.float64)))
        alpha, sigma = schedule.at(t)
        told.append(net(math.hypot(alpha, sigma) * x, alpha, sigma))
        rows = torch.full((3,), alpha), torch.full((3, 1, 1, 1), sigma)
        torch.testing.assert_close(net(math.hypot(alpha, sigma) * x, *rows), told[-1])
    torch.testing.assert_close(told[1], told[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(told[2], told[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(net(x), told[0])


@pytest.mark.parametrize("shape", [(2, 16), (1, 8, 12), (1, 4, 4, 8)])
def test_signals_images_and_volumes(shape: tuple[int, ...]) -> None:
    net = awake(shape[0], shape[1:], 3, (4, 8), 2)
    x = states(2, shape).float()
    assert net(x, 0.6, 0.8).shape == (2, 3) and net.shape == shape
    assert torch.allclose(net(x[:1], 0.6, 0.8), net(x, 0.6, 0.8)[:1], atol=1e-6)


def test_it_is_what_its_folder_holds(tmp_path: Path) -> None:
    net, x = awake(1, 8, 3, (4, 8), noisy=False), states(2, (1, 8, 8)).float()
    save_classifier(tmp_path / "c", net, data="here")
    again = load_classifier(tmp_path / "c")
    assert torch.equal(again(x), net(x)) and again.config == net.config and not again.noisy and not again.training
    assert read_json(tmp_path / "c" / "config.json")["notes"] == {"data": "here"}
    save_feature_net(tmp_path / "f", FeatureNet("x"))
    with pytest.raises(ValueError, match="f holds a features, expected a classifier"):
        load_classifier(tmp_path / "f")
    with pytest.raises(FileExistsError, match="f holds a features, not a classifier"):
        save_classifier(tmp_path / "f", net)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"classes": 1}, "a classifier needs 2 or more classes"),
        ({"image_size": 6}, r"samples of \(6, 6\) cannot be cut into patches of 1 and halved 2 times"),
        ({"channels": ()}, "levels of 2 or more channels"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classifier(**options)
