"""Colours are set to what they should be and nothing else is; where nobody knows them that is said."""

import pytest
import torch
from torch import Tensor

from dsno.inverse.blur import Blur
from dsno.inverse.colours import FIXES, LEVELS, coarse_and_details, colours_of, moments, wavelet
from dsno.inverse.operators import Composition, Downsample, Function, Grey, Mask
from dsno.inverse.problem import Problem

D64 = torch.float64
SHAPE = (3, 12, 20)


def pictures(seed: int, size: tuple[int, ...] = (2, *SHAPE)) -> Tensor:
    return torch.randn(*size, dtype=D64, generator=torch.Generator().manual_seed(seed))


X, Y0 = pictures(0), 0.3 * pictures(1) - torch.tensor([0.5, 0.0, 0.2], dtype=D64).reshape(3, 1, 1)


def test_moments_are_those_of_the_colours_and_the_picture_is_the_same_but_for_them() -> None:
    made = moments(X, Y0)
    assert torch.allclose(made.mean((2, 3)), Y0.mean((2, 3)), atol=1e-14)
    assert torch.allclose(made.std((2, 3)), Y0.std((2, 3)), atol=1e-14)
    assert torch.allclose(moments(made, Y0), made, atol=1e-14)
    # What the picture was before it was stretched and shifted does not matter.
    assert torch.allclose(moments(3 * X - 0.7, Y0), made, atol=1e-14)
    assert torch.equal(moments(torch.ones_like(X), Y0), Y0.mean((2, 3), keepdim=True).expand_as(X))


@pytest.mark.parametrize("levels", [None, 1, 2, 3])
def test_a_picture_is_the_sum_of_its_coarse_part_and_its_details(levels: int | None) -> None:
    parts = coarse_and_details(X, levels)
    assert len(parts) == 1 + (levels or 3)  # 2^3 <= 12
    assert torch.allclose(torch.stack(parts).sum(0), X, atol=1e-14)
    # A picture of one colour is coarse, the finest stripes are details.
    coarse, *details = coarse_and_details(torch.full_like(X, 0.4), levels)
    assert torch.equal(coarse, torch.full_like(X, 0.4)) and all(float(w.abs().max()) == 0 for w in details)
    stripes = (-1.0) ** torch.arange(64, dtype=D64).expand(1, 1, 64, 64)
    assert float(coarse_and_details(stripes, 1)[0][..., 1:-1].abs().max()) == 0


def test_levels_are_the_binomial_kernel_with_holes() -> None:
    dot = torch.zeros(1, 1, 33, 33, dtype=D64)
    dot[..., 16, 16] = 1
    line = torch.tensor([1.0], dtype=D64)
    for level in range(3):
        holes = torch.zeros(2 ** (level + 1) + 1, dtype=D64)
        holes[0] = holes[-1] = 0.25
        holes[len(holes) // 2] = 0.5
        line = torch.nn.functional.conv1d(
            line[None, None], holes[None, None].flip(-1), padding=len(holes) - 1
        ).flatten()
        coarse = coarse_and_details(dot, level + 1)[0][0, 0]
        reach = len(line) // 2
        window = coarse[16 - reach : 17 + reach, 16 - reach : 17 + reach]
        assert torch.allclose(window, torch.outer(line, line), atol=1e-15) and float(coarse.sum()) == pytest.approx(1)


def test_by_wavelets_the_coarse_part_is_of_the_colours_and_the_details_are_of_the_picture() -> None:
    made = wavelet(X, Y0)
    coarse, *details = coarse_and_details(X)
    assert torch.allclose(made - coarse_and_details(Y0)[0], torch.stack(details).sum(0), atol=1e-14)
    assert torch.allclose(made - X, coarse_and_details(Y0)[0] - coarse, atol=1e-14)
    assert torch.allclose(wavelet(X, X), X, atol=1e-14)
    # What is wrong with the colour of the whole is put right, and stays so.
    shifted = X + torch.tensor([0.5, -0.3, 0.1], dtype=D64).reshape(3, 1, 1)
    assert torch.allclose(wavelet(shifted, X), X, atol=1e-14)
    assert torch.allclose(wavelet(wavelet(shifted, X), X), X, atol=1e-14)
    large = pictures(3, (1, 1, 80, 80))
    assert len(coarse_and_details(large)) == 1 + LEVELS


@pytest.mark.parametrize("fix", FIXES.values(), ids=[*FIXES])
def test_pictures_and_channels_do_not_see_one_another(fix: object) -> None:
    assert callable(fix)
    whole = fix(X, Y0)
    for row in range(2):
        for channel in range(3):
            place = (slice(row, row + 1), slice(channel, channel + 1))
            assert torch.allclose(fix(X[place], Y0[place]), whole[place], atol=1e-14)
    with pytest.raises(ValueError, match=r"the colours of \(2, 3, 12, 19\) are none of restorations \(2, 3, 12, 20\)"):
        fix(X, Y0[..., 1:])


BLUR = torch.outer(*[torch.tensor([1.0, 2, 1], dtype=D64)] * 2) / 16


@pytest.mark.parametrize(
    "problem",
    [
        Downsample(4),
        Downsample(2, "bicubic"),
        Blur(BLUR),
        Blur(2 * BLUR, circular=False),
        Composition((Blur(BLUR), Downsample(2)), noise=0.3),
        Mask(torch.ones(12, 20)),
    ],
    ids=["blocks", "bicubic", "blur", "zeros around", "composition", "all seen"],
)
def test_a_picture_of_one_colour_has_that_colour(problem: Problem) -> None:
    plain = torch.tensor([0.5, -0.9, 0.1], dtype=D64).reshape(1, 3, 1, 1).expand(2, *SHAPE)
    assert torch.allclose(colours_of(problem, problem.A(plain)), plain, atol=1e-12)


def test_the_colours_are_what_was_measured_or_of_blocks_the_smallest_picture_that_fits() -> None:
    y = pictures(4, (2, 3, 3, 5))
    assert torch.allclose(colours_of(Downsample(4), y), Downsample(4).A_dagger(y), atol=1e-14)
    # Noise is nobody's colour, but it is no reason for another mean either.
    assert torch.allclose(colours_of(Downsample(4, noise=0.5), y), colours_of(Downsample(4), y))
    assert colours_of(Blur(BLUR), X) is X


@pytest.mark.parametrize(
    "problem",
    [Mask.half(SHAPE), Mask.random(SHAPE, 0.1), Grey(), Function(lambda x: x[..., ::2], SHAPE)],
    ids=["half", "random", "grey", "every second"],
)
def test_what_does_not_say_the_colours_is_refused(problem: Problem) -> None:
    with pytest.raises(ValueError, match=f"{type(problem).__name__} leaves pixels or colours out"):
        colours_of(problem, problem.A(X))


def test_pictures_too_small_for_wavelets_are_refused() -> None:
    for x, levels, most in ((X[..., :1], None, 0), (X, 4, 3), (X, 0, 3)):
        with pytest.raises(ValueError, match=f"pixels hold {most} levels of wavelets"):
            wavelet(x, x, levels)
