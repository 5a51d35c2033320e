"""The M-step finds the kernel where it can be known, and with the variance of originals it is one of EM."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dsno.inverse.blur import Blur
from dsno.inverse.kernel_prior import Shrink
from dsno.inverse.kernel_step import KernelStep, Moments, moments
from dsno.inverse.kernels import delta, kernel_error, motion

REAL = torch.float64
SIDE, TAU = 32, 0.01


def step_from_a_delta(size: tuple[int, ...], x: Tensor, y: Tensor, tau: float, **options: object) -> Blur:
    return KernelStep(**options)(Blur(delta(size), noise=tau), x[None], y)


# One step


@pytest.mark.parametrize("size", [(5,), (4,), (7, 7), (4, 5)])
def test_the_kernel_of_a_clean_picture_is_found_to_rounding(size: tuple[int, ...]) -> None:
    k = motion(size, [1, 2, 3])
    x = torch.randn(3, 2, *[16] * len(size), dtype=REAL)
    y = Blur(k).A(x)
    found = step_from_a_delta(size, x, y, 0.0)
    torch.testing.assert_close(found.kernel, k, rtol=0, atol=1e-12)
    # What the first kernel weighs goes to zero with the noise.
    found = (step_from_a_delta(size, x, y, tau, level=0.0, rounds=1).kernel for tau in (1e-2, 1e-3, 1e-7))
    errors = [float((kernel - k).abs().max()) for kernel in found]
    assert errors[0] > 10 * errors[1] > 1e-4 and errors[2] < 1e-9


def test_the_normal_equations_are_those_of_the_sum_of_squares() -> None:
    size, x = (3, 4), torch.randn(2, 1, 3, 8, 7, dtype=REAL)
    y = torch.randn(1, 3, 8, 7, dtype=REAL)
    found = moments(x, y, 2, 0.3)
    r, b = found.system(size)
    # The columns of k * x are moved originals.
    m = torch.cartesian_prod(torch.arange(3) - 1, torch.arange(4) - 2).tolist()
    columns = torch.stack([x[:, 0].roll(d, (2, 3)).flatten(1) for d in m], 1)
    expected = (columns @ columns.mT).mean(0) + 0.3 * y.numel() * torch.eye(12, dtype=REAL)
    torch.testing.assert_close(r[0], expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(b[0], (columns @ y.reshape(-1)).mean(0), rtol=0, atol=1e-11)
    k = torch.rand(1, 1, *size, dtype=REAL)
    missed = torch.stack([(Blur(k).A(one) - y).square().sum() for one in x]).mean()
    torch.testing.assert_close(found.error(k)[0], missed + 0.3 * y.numel() * k.square().sum())


def test_the_expected_error_is_that_of_originals_drawn_around_their_mean() -> None:
    mean, y = torch.randn(1, 1, 8, 8, dtype=REAL), torch.randn(1, 1, 8, 8, dtype=REAL)
    k = motion((3, 3), [1])
    drawn = mean + 0.5 * torch.randn(20_000, 1, 8, 8, dtype=REAL)
    expected = moments(mean[None], y, 2, 0.25).error(k)
    # A thousandth is three standard errors of that many draws.
    torch.testing.assert_close(moments(drawn[:, None], y, 2).error(k), expected, rtol=3e-3, atol=0)


def test_without_a_prior_the_support_alone_is_exact_where_cutting_the_whole_quotient_is_not() -> None:
    k, x = motion((5, 5), [1]), torch.randn(1, 1, 12, 12, dtype=REAL)
    y = Blur(k).A(x) + 0.1 * torch.randn_like(x)
    found = moments(x[None], y, 2)
    r, b = found.system((5, 5))
    best = torch.linalg.solve(r, b[..., None]).reshape(1, 1, 5, 5)
    quotient = torch.fft.irfftn(found.cross / found.power, s=(12, 12))
    cut = quotient.roll((2, 2), (1, 2))[:, None, :5, :5]
    assert found.error(best) < found.error(cut) and (found.error(best) <= found.error(k)).all()


def test_the_prior_weighs_what_the_noise_says() -> None:
    k, x = motion((5, 5), [1]), torch.randn(1, 1, 16, 16, dtype=REAL)
    y = Blur(k).A(x)
    heavy = step_from_a_delta((5, 5), x, y, 1.0, prior=Shrink(), beta=1e9, level=0.0, rounds=1)
    torch.testing.assert_close(heavy.kernel, delta((5, 5))[None, None], rtol=0, atol=1e-4)
    emptied = step_from_a_delta((5, 5), x, y, 1e-3, level=0.2)
    assert (emptied.kernel > 0).sum() < (k > 0).sum() and float(emptied.kernel.sum()) == pytest.approx(1)


def test_more_samples_are_one_mean_of_their_moments() -> None:
    x, y = torch.randn(3, 1, 1, 8, 8, dtype=REAL), torch.randn(1, 1, 8, 8, dtype=REAL)
    each = [moments(one[None], y, 2) for one in x]
    all_of_them = moments(x, y, 2)
    torch.testing.assert_close(all_of_them.power, torch.stack([m.power for m in each]).mean(0))
    torch.testing.assert_close(all_of_them.cross, torch.stack([m.cross for m in each]).mean(0))


def test_the_noise_is_learned_with_the_kernel() -> None:
    k, x = motion((5, 5), [1, 2]), torch.randn(2, 1, 32, 32, dtype=REAL)
    y = Blur(k).A(x) + 0.05 * torch.randn_like(x)
    found = step_from_a_delta((5, 5), x, y, 0.5, beta=1.0, learn_noise=True)
    assert found.noise == pytest.approx(0.05, rel=0.05)
    assert step_from_a_delta((5, 5), x, y, 0.5).noise == 0.5
    # What is not known of the originals is no noise of the picture.
    hazy = x + 0.2 * torch.randn_like(x)
    told, untold = (KernelStep(beta=1.0, learn_noise=True)(Blur(k, noise=0.05), hazy[None], y, v) for v in (0.0, 0.1))
    assert told.noise < untold.noise


def test_a_picture_without_texture_leaves_a_kernel() -> None:
    flat = torch.full((1, 1, 8, 8), 0.3)
    found = step_from_a_delta((3, 3), flat, flat, 0.01)
    assert found.kernel.isfinite().all() and found.kernel.dtype == torch.float32


@pytest.mark.parametrize("options", [{"beta": -1.0}, {"level": -0.1}, {"rounds": 0}])
def test_numbers_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="beta and level of at least 0 and a round or more"):
        KernelStep(**options)


# Rounds of EM, on a field of which everything is known


class Field:
    """A stationary Gaussian field, blurred: its posterior and its likelihood in closed form."""

    def __init__(self) -> None:
        f = torch.fft.fftfreq(SIDE, dtype=REAL)[:, None] ** 2 + torch.fft.rfftfreq(SIDE, dtype=REAL) ** 2
        S = 1 / (f + 0.02**2)
        self.S = 0.25 * S / S.mean()
        self.k = motion((7, 7), [3])
        white = torch.randn(1, 1, SIDE, SIDE, dtype=REAL)
        x = torch.fft.irfftn(torch.fft.rfftn(white, dim=(-2, -1)) * self.S.sqrt(), s=(SIDE, SIDE), dim=(-2, -1))
        self.y = Blur(self.k).A(x) + TAU * torch.randn_like(x)
        self.Y = torch.fft.rfftn(self.y, dim=(-2, -1))

    def posterior(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (1, 1, H, W), and the variance of each frequency over the number of pixels."""
        K = Blur(k).otf((SIDE, SIDE), self.y)[0, 0]
        below = self.S * K.abs() ** 2 + TAU**2
        mean = torch.fft.irfftn(self.S * K.conj() * self.Y / below, s=(SIDE, SIDE), dim=(-2, -1))
        return mean, self.S * TAU**2 / below

    def log_likelihood(self, k: Tensor) -> float:
        """Of y given the kernel, but for a constant."""
        variance = self.S * Blur(k).otf((SIDE, SIDE), self.y)[0, 0].abs() ** 2 + TAU**2
        twice = torch.full_like(variance, 2.0)
        twice[:, [0, -1]] = 1
        return float(-(twice * (variance.log() + self.Y.abs() ** 2 / SIDE**2 / variance)).sum() / 2)

    def rounds(self, count: int, with_variance: bool) -> tuple[Tensor, list[float]]:
        k = delta((7, 7))[None, None]
        found = [self.log_likelihood(k)]
        for _ in range(count):
            mean, variance = self.posterior(k)
            r, b = moments(mean[None], self.y, 2, variance if with_variance else 0.0).system((7, 7))
            k = torch.linalg.solve(r, b[..., None]).reshape(1, 1, 7, 7)
            found.append(self.log_likelihood(k))
        return k, found


def test_the_likelihood_rises_in_every_round_with_the_posterior_variance_in_it() -> None:
    field = Field()
    k, found = field.rounds(8, with_variance=True)
    assert all(later > before + 1 for before, later in pairwise(found))
    assert found[-1] > found[0] + 300 and found[-1] < field.log_likelihood(field.k)
    assert kernel_error(k, field.k) < kernel_error(delta((7, 7))[None, None], field.k)


def test_the_likelihood_falls_with_the_posterior_mean_in_the_place_of_the_original() -> None:
    # The published failure, kept: the kernel stays at no blur.
    field = Field()
    k, found = field.rounds(8, with_variance=False)
    assert all(later < before for before, later in pairwise(found))
    assert kernel_error(k, delta((7, 7))[None, None]) < 0.1 < kernel_error(k, field.k)


def test_a_gaussian_prior_cannot_tell_a_kernel_from_its_mirror_image() -> None:
    field = Field()
    assert kernel_error(field.k.flip(2, 3), field.k) > 0.1
    assert field.log_likelihood(field.k.flip(2, 3)) == pytest.approx(field.log_likelihood(field.k), rel=1e-12)


def test_moments_know_their_shapes() -> None:
    found = moments(torch.randn(2, 3, 1, 8, 6), torch.randn(3, 1, 8, 6), 2)
    assert isinstance(found, Moments) and found.power.shape == found.cross.shape == (3, 8, 4)
    assert (found.spatial, found.values) == ((8, 6), 48)
