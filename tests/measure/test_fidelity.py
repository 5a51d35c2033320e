"""How near pairs of pictures are."""

import math

import pytest
import torch

from dsno.measure.fidelity import psnr, ssim

x = torch.rand(3, 2, 20, 17, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
y = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()).clamp(-1, 1)


def test_psnr_is_the_range_over_the_error() -> None:
    # An error of a tenth of the range is 20 dB, in every picture by itself.
    assert psnr(x, x + torch.tensor([0.2, 0.02, 2.0]).reshape(3, 1, 1, 1)).tolist() == pytest.approx([20, 40, 0])
    assert psnr(x, x).tolist() == [math.inf] * 3


def test_psnr_and_ssim_are_those_of_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    for n in range(3):
        pair = x[n : n + 1], y[n : n + 1]
        light = [(v + 1) / 2 for v in pair]
        theirs = functional.peak_signal_noise_ratio(*light, data_range=1.0)
        assert float(psnr(*pair)) == pytest.approx(float(theirs), rel=1e-6)
        theirs = functional.structural_similarity_index_measure(*light, data_range=1.0)
        assert float(ssim(*pair)) == pytest.approx(float(theirs), abs=1e-6)


def test_ssim_is_1_of_equal_pictures_and_falls_with_what_differs() -> None:
    assert ssim(x, x) == pytest.approx([1.0] * 3, abs=1e-12)
    assert bool((ssim(x, y) < 1).all()) and bool((ssim(x, -x) < 0).all())
    # Light alone, as the formula has it of two constants.
    one, other = torch.full((1, 1, 12, 12), 0.5), torch.full((1, 1, 12, 12), -0.25)
    c_1 = 0.01**2
    assert float(ssim(one, other)) == pytest.approx((2 * 0.75 * 0.375 + c_1) / (0.75**2 + 0.375**2 + c_1))


@pytest.mark.parametrize("size", [(8, 8), (1, 5), (2, 2), (10, 30)])
def test_small_pictures_have_smaller_windows(size: tuple[int, int]) -> None:
    small = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(2))
    assert bool(ssim(small, 1 - small).isfinite().all()) and ssim(small, small) == pytest.approx([1, 1], abs=1e-9)


def test_pairs_of_two_shapes_are_refused() -> None:
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match="pairs have one shape"):
            measure(x, x[:, :1])
    with pytest.raises(ValueError, match="pictures"):
        ssim(x[:, 0], x[:, 0])
