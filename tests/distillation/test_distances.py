"""Distances are their formulas, and a perceptual one is of normalised features in full precision."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dsno.distillation.distances import distance, from_folder
from dsno.nets.features import FeatureNet, save_feature_net


def test_distances() -> None:
    a, b = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    assert torch.allclose(distance("l1")(a, b), (a - b).abs().mean((1, 2, 3)))
    assert torch.allclose(distance("l2")(a, b), ((a - b) ** 2).mean((1, 2, 3)))
    # Pseudo-Huber: quadratic near zero, linear far away.
    near, far = torch.full_like(a, 1e-3), torch.full_like(a, 10.0)
    assert torch.allclose(distance("huber")(near, 0 * a), torch.full((3,), 1e-6 / 0.06), rtol=1e-3)
    assert torch.allclose(distance("huber")(far, 0 * a), torch.full((3,), 9.97), rtol=1e-4)
    assert torch.allclose(distance("l1+l2")(a, b), distance("l1")(a, b) + distance("l2")(a, b))
    for name in ("l1", "l2", "huber", "l1+huber"):
        assert distance(name)(a, a).tolist() == pytest.approx([0, 0, 0], abs=1e-8)
    with pytest.raises(ValueError, match="unknown distance 'lpips': expected l1, l2, huber, perceptual"):
        distance("lpips")
    with pytest.raises(ValueError, match="needs a feature network"):
        distance("perceptual")


def test_the_perceptual_distance_of_close_images_survives_half_precision() -> None:
    torch.manual_seed(0)
    d, a = distance("perceptual", FeatureNet("tiny", 1, 2, 8).maps), torch.randn(4, 1, 8, 8)
    b, gradients = a + 1e-3 * torch.randn_like(a), []
    for half in (False, True):
        x = a.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            gradients.append(torch.autograd.grad(d(x, b).sum(), x)[0])
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-4 * float(gradients[0].abs().max()))


@pytest.mark.parametrize("layers", [1, 2])
def test_the_perceptual_distance_compares_normalised_features(layers: int) -> None:
    features = nn.ModuleList([nn.Conv2d(2, 5, 3), nn.Conv2d(2, 3, 1)])[:layers]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = features

        def forward(self, x: Tensor) -> Tensor | list[Tensor]:
            return self.maps[0](x) if layers == 1 else [m(x) for m in self.maps]

    d = distance("perceptual", Net())
    a, b = torch.randn(3, 2, 4, 4, requires_grad=True), torch.randn(3, 2, 4, 4)
    expected = torch.zeros(3)
    for m in features:
        u, v = (y / y.norm(dim=1, keepdim=True) for y in (m(a), m(b)))
        expected += ((u - v) ** 2).sum(1).mean((1, 2))
    assert torch.allclose(d(a, b), expected, atol=1e-6)
    d(a, b).sum().backward()
    assert a.grad is not None and bool(a.grad.abs().sum() > 0) and all(p.grad is None for p in features.parameters())
    assert d(b, b).tolist() == pytest.approx([0, 0, 0], abs=1e-9)


def test_a_perceptual_distance_of_a_folder_is_that_of_its_network(tmp_path: Path) -> None:
    net = FeatureNet("tiny", 1, 2, 4).eval()
    d, plain = from_folder("perceptual", save_feature_net(tmp_path, net)), distance("perceptual", net.maps)
    a, b = (torch.randn(4, 1, 8, 8, requires_grad=True) for _ in range(2))
    assert torch.allclose(d(a, b), plain(a, b)) and bool((d(a, b) > 0).all())
    assert d(a, a).tolist() == [0] * 4
    # The second is the target.
    first, second = torch.autograd.grad(d(a, b).sum(), (a, b), allow_unused=True)
    assert bool(first.abs().sum() > 0) and second is None
    both = from_folder("l1+perceptual", tmp_path)
    assert torch.allclose(both(a, b), (a - b).abs().mean((1, 2, 3)) + plain(a, b))


def test_features_are_given_to_a_perceptual_distance_and_no_other(tmp_path: Path) -> None:
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(from_folder("l1", None)(a, b), distance("l1")(a, b))
    with pytest.raises(ValueError, match="needs a feature network: .* or features=FOLDER"):
        from_folder("l1+perceptual", None)
    with pytest.raises(ValueError, match="features are of a perceptual distance, and this one is l2: name one"):
        from_folder("l2", tmp_path)
    with pytest.raises(ValueError, match="unknown distance 'l3'"):
        from_folder("l3", None)
    save_feature_net(tmp_path, FeatureNet("tiny", 1, 2, 4))
    with pytest.raises(ValueError, match="unknown distance 'l3'"):
        from_folder("l3+perceptual", tmp_path)
