"""What is measured: values against torch and deepinv, and refusals of what does not fit."""

import re

import pytest
import torch
import torch.nn.functional as F

from dsno.inverse.operators import Composition, Downsample, Function, Grey, Mask
from dsno.inverse.problem import Problem, check_problem, noise_of

D64 = torch.float64


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_downsampling_is_as_torch_does_it(factor: int) -> None:
    x = torch.randn(2, 3, 12, 24, dtype=D64)
    assert torch.allclose(Downsample(factor).A(x), F.avg_pool2d(x, factor))
    resized = F.interpolate(x, scale_factor=1 / factor, mode="bicubic", antialias=True)
    assert torch.allclose(Downsample(factor, "bicubic").A(x), resized)
    volume = torch.randn(1, 1, 12, 12, 12, dtype=D64)
    assert torch.allclose(Downsample(factor).A(volume), F.avg_pool3d(volume, factor))


@pytest.mark.parametrize("kind", ["average", "bicubic"])
def test_a_constant_stays_one(kind: str) -> None:
    problem = Downsample(4, kind)  # type: ignore[arg-type]
    assert torch.allclose(problem.A(torch.full((1, 1, 16), 0.7)), torch.full((1, 1, 4), 0.7))


def test_masks_hide_what_they_say() -> None:
    box, half, few = Mask.box((3, 8, 8)), Mask.half((3, 8, 9)), Mask.random((1, 10, 10), 0.7)
    assert not box.keep[2:6, 2:6].any() and int(box.keep.sum()) == 64 - 16
    assert half.keep.shape == (8, 9) and half.keep[:, :5].all() and not half.keep[:, 5:].any()
    assert torch.equal(Mask.half((3, 8, 9), axis=1).keep, (torch.arange(8) < 4)[:, None].expand(8, 9))
    assert int(few.keep.sum()) == 30 and not torch.equal(few.keep, Mask.random((1, 10, 10), 0.7, seed=1).keep)
    assert torch.equal(few.keep, Mask.random((3, 10, 10), 0.7).keep)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(box.A(x), x * box.keep)


def test_grey_is_one_channel_of_the_same_brightness() -> None:
    assert torch.allclose(Grey().A(torch.ones(1, 3, 2, 2)), torch.ones(1, 1, 2, 2))
    assert torch.allclose(Grey((1.0, 0.0)).A(torch.tensor([[[3.0], [5.0]]])), torch.tensor([[[3.0]]]))


def test_a_composition_is_one_after_another() -> None:
    x, both = torch.randn(2, 3, 8, 8, dtype=D64), Composition((Grey(), Downsample(2)), noise=0.1)
    assert torch.allclose(both.A(x), F.avg_pool2d(Grey().A(x), 2))
    assert check_problem(both, (3, 8, 8), D64) == (1, 4, 4)


def test_the_adjoint_of_a_function_is_its_transpose_without_a_graph_of_the_caller() -> None:
    M = torch.randn(7, 5, dtype=D64)
    with torch.no_grad():
        made = Function(lambda x: x @ M, (7,)).A_adjoint(torch.eye(5, dtype=D64))
    assert torch.allclose(made, M.T) and not made.requires_grad


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask(torch.tensor([0.0, 0.5])), "a mask must be of 0 (hidden) and 1 (seen)"),
        (lambda: Mask(torch.zeros(3)), "a mask that hides everything"),
        (lambda: Mask.box((1, 4, 4), 1.0), "the share of a side that a box hides must be in (0, 1), got 1"),
        (lambda: Mask.random((1, 4), 0.0), "the share of pixels that is hidden must be in (0, 1), got 0"),
        (lambda: Mask.box((1, 4, 4)).A(torch.ones(1, 1, 6, 6)), "the mask is (4, 4), and samples are (1, 6, 6)"),
        (lambda: Mask.box((1, 4, 4)).A(torch.ones(1, 1, 1, 1)), "the mask is (4, 4), and samples are (1, 1, 1)"),
        (lambda: Downsample(1), "a factor of downsampling is a whole number of 2 or more, got 1"),
        (lambda: Downsample(2.0), "a factor of downsampling is a whole number of 2 or more, got 2.0"),  # type: ignore[arg-type]
        (lambda: Downsample(2, "lanczos"), "unknown downsampling 'lanczos'"),  # type: ignore[arg-type]
        (lambda: Downsample(3).A(torch.ones(1, 1, 9, 16)), "a factor of 3 does not divide samples of 9 x 16"),
        (lambda: Downsample(3).A(torch.ones(1, 4)), "a factor of 3 does not divide samples of no axes"),
        (lambda: Grey().A(torch.ones(1, 1, 4, 4)), "a grey of 3 channels takes no samples of shape (1, 4, 4)"),
        (lambda: Grey((0.0, 0.0)), "the weights of a grey are all 0"),
        (lambda: Composition(()), "a composition needs at least one problem"),
    ],
)
def test_what_does_not_fit_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()  # type: ignore[operator]


def test_values_are_those_of_deepinv() -> None:
    deepinv = pytest.importorskip("deepinv")
    physics, shape = deepinv.physics, (3, 8, 8)
    mask = Mask.random(shape, 0.5)
    pairs: list[tuple[Problem, object]] = [
        (mask, physics.Inpainting(shape, mask=mask.keep.float())),
        (Grey((0.4, 0.3, 0.3)), physics.Decolorize(channels=3, srf=[0.4, 0.3, 0.3])),
        (Downsample(2), physics.Downsampling(shape, torch.full((1, 1, 2, 2), 0.25), 2, padding="valid")),
    ]
    for ours, theirs in pairs:
        measured = check_problem(ours, shape)
        x, y, z = torch.randn(2, *shape), torch.randn(2, *measured), torch.randn(2, *shape)
        calls = {"A": (x,), "A_adjoint": (y,), "A_dagger": (y,), "prox_l2": (z, y, 0.7)}
        if isinstance(ours, Grey):
            # deepinv 0.5 loses what a grey does not see: its basis has one channel of three.
            del calls["prox_l2"]
            with pytest.raises(ValueError, match="prox_l2 of Decolorize is not the minimum it says"):
                check_problem(theirs, shape)  # type: ignore[arg-type]
        else:
            assert check_problem(theirs, shape) == measured  # type: ignore[arg-type]
        for name, given in calls.items():
            one, other = getattr(ours, name)(*given), getattr(theirs, name)(*given)
            assert torch.allclose(one, other, atol=1e-4), (type(ours).__name__, name)
    assert noise_of(physics.Inpainting(shape, mask=0.5, noise_model=physics.GaussianNoise(0.1))) == pytest.approx(0.1)  # type: ignore[arg-type]
