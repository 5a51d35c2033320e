"""A blur is a convolution, its adjoint exact on either border, and its inverses solve what they say."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dsno.inverse.blur import Blur
from dsno.inverse.kernels import delta, gaussian, motion
from dsno.inverse.problem import check_problem, posterior_mean

SIZES = [(3,), (4,), (5, 3), (4, 6)]
either = pytest.mark.parametrize("circular", [True, False])
of_any_size = pytest.mark.parametrize("size", SIZES)


def kernel(*size: int) -> Tensor:
    k = torch.rand(size, dtype=torch.float64)
    return k / k.sum()


def picture(size: tuple[int, ...], *more: int) -> Tensor:
    return torch.randn(*more, *(9 + 2 * i for i in range(len(size))), dtype=torch.float64)


@of_any_size
@either
def test_a_blur_is_the_sum_that_its_formula_says(size: tuple[int, ...], circular: bool) -> None:
    k, x = kernel(*size), picture(size, 1, 1)
    expected = torch.zeros_like(x)
    for m in torch.cartesian_prod(*map(torch.arange, size)).reshape(-1, len(size)).tolist():
        offset = [i - n // 2 for i, n in zip(m, size, strict=True)]
        moved = x.roll(offset, tuple(range(2, x.ndim)))
        if not circular:
            for axis, d in enumerate(offset, start=2):
                came_round = (
                    torch.arange(x.shape[axis]) < d if d > 0 else torch.arange(x.shape[axis]) >= x.shape[axis] + d
                )
                moved = moved.masked_fill(came_round.reshape([-1 if a == axis else 1 for a in range(x.ndim)]), 0)
        expected += k[tuple(m)] * moved
    torch.testing.assert_close(Blur(k, circular).A(x), expected, rtol=0, atol=1e-14)


def test_zeros_around_are_those_of_a_padded_convolution() -> None:
    k, x = kernel(5, 3), picture((5, 3), 2, 3)
    padded = F.conv2d(x.flatten(0, 1)[:, None], k.flip(0, 1)[None, None], padding=(2, 1)).reshape(x.shape)
    torch.testing.assert_close(Blur(k, circular=False).A(x), padded, rtol=0, atol=1e-14)


@of_any_size
@either
def test_the_adjoint_is_exact(size: tuple[int, ...], circular: bool) -> None:
    blur, x, y = Blur(kernel(*size), circular), picture(size, 2, 3), picture(size, 2, 3)
    torch.testing.assert_close((blur.A(x) * y).sum(), (x * blur.A_adjoint(y)).sum(), rtol=1e-12, atol=1e-12)
    assert check_problem(blur, x.shape[1:]) == tuple(x.shape[1:])


@of_any_size
@either
@pytest.mark.parametrize("gamma", [0.0, 1.0, 1e3])
def test_the_proximal_map_is_where_the_gradient_vanishes(size: tuple[int, ...], circular: bool, gamma: float) -> None:
    blur, z, y = Blur(kernel(*size), circular), picture(size, 2, 1), picture(size, 2, 1)
    x = blur.prox_l2(z, y, gamma)
    gradient = gamma * blur.A_adjoint(blur.A(x) - y) + x - z
    assert gradient.abs().max() < 1e-8 * max(gamma, 1)


@either
def test_the_proximal_map_of_a_real_kernel_is_accurate_for_little_noise(circular: bool) -> None:
    blur, y = Blur(gaussian((9, 9), 1.5), circular), torch.randn(1, 1, 32, 32, dtype=torch.float64)
    b = 1e4 * blur.A_adjoint(y)
    x = blur.prox_l2(torch.zeros_like(y), y, 1e4)
    assert (x + 1e4 * blur.A_adjoint(blur.A(x)) - b).norm() < 1e-4 * b.norm()


def test_the_inverse_undoes_a_blur_and_drops_what_that_took_away() -> None:
    x = picture((3, 3), 2, 2)
    # A kernel whose centre outweighs the rest has no zero; the mean of two pixels takes the fastest change away.
    steady = Blur(0.6 * delta((3, 3)) + 0.4 * kernel(3, 3))
    torch.testing.assert_close(steady.A_dagger(steady.A(x)), x, rtol=0, atol=1e-12)
    pair = Blur(torch.tensor([0.5, 0.5], dtype=torch.float64))
    fastest = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)[None, None]
    assert pair.A(fastest).abs().max() < 1e-15 and pair.A_dagger(fastest).abs().max() == 0
    line = torch.randn(1, 1, 8, dtype=torch.float64)
    torch.testing.assert_close(pair.A(pair.A_dagger(pair.A(line))), pair.A(line), rtol=0, atol=1e-12)
    around = Blur(steady.kernel, circular=False)
    torch.testing.assert_close(around.A_dagger(around.A(x)), x, rtol=0, atol=0.01)


def test_each_row_has_its_own_kernel_and_all_channels_of_a_row_have_one() -> None:
    k, x = motion((5, 5), [1, 2]), torch.randn(2, 3, 8, 9, dtype=torch.float64)
    both = Blur(k).A(x)
    for row in range(2):
        torch.testing.assert_close(both[row], Blur(k[row, 0]).A(x[row : row + 1])[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(both[:, 1:2], Blur(k).A(x[:, 1:2]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_samples_keep_their_dtype(dtype: torch.dtype) -> None:
    x = torch.randn(2, 1, 8, 8, dtype=dtype)
    blur = Blur(gaussian((3, 3), 1.0), noise=0.1)
    exact = Blur(blur.kernel).A(x.double())
    assert blur.A(x).dtype == blur.prox_l2(x, x, 3.0).dtype == dtype
    torch.testing.assert_close(blur.A(x).double(), exact, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_a_blur_of_a_batch_is_the_problem_that_methods_solve() -> None:
    blur, z, y = Blur(kernel(3, 3), noise=0.1), picture((3, 3), 2, 1), picture((3, 3), 2, 1)
    mean = posterior_mean(blur, z, y, 0.5)
    gap = blur.A_adjoint(blur.A(mean) - y) / 0.1**2 + (mean - z) / 0.5
    torch.testing.assert_close(gap, torch.zeros_like(gap), rtol=0, atol=1e-10)


def test_a_revised_blur_leaves_the_first_as_it_was() -> None:
    first, x = Blur(delta((3, 3)), noise=0.1), picture((3, 3), 1, 1)
    torch.testing.assert_close(first.A(x), x, rtol=0, atol=1e-14)
    other = first.revised(kernel(3, 3), 0.2)
    assert (other.A(x) - x).abs().max() > 0.1 and (first.noise, other.noise) == (0.1, 0.2)
    torch.testing.assert_close(first.A(x), x, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Blur(torch.ones(2, 3, 3)), "one for each row"),
        (lambda: Blur(torch.ones(3, 0)), r"got the shape \(3, 0\)"),
        (lambda: Blur(torch.ones(3, dtype=torch.int64)), "finite real numbers"),
        (lambda: Blur(torch.tensor([1.0, torch.nan])), "finite real numbers"),
        (lambda: Blur(-torch.ones(3, 3)), "a positive sum .* got -9"),
        (lambda: Blur(torch.tensor([1.0, -1.0])), "a positive sum .* got 0"),
        (lambda: Blur(torch.ones(3, 3), noise=-0.1), "noise is a standard deviation of at least 0, got -0.1"),
        (lambda: Blur(torch.ones(5, 9)).A(torch.zeros(1, 1, 8, 8)), r"at least as large, got \(1, 1, 8, 8\)"),
        (lambda: Blur(torch.ones(5, 9), False).A(torch.zeros(1, 1, 8, 8)), "crop the kernel"),
        (lambda: Blur(torch.ones(3, 1, 3, 3)).A(torch.zeros(2, 1, 8, 8)), "3 kernels for 2 samples"),
    ],
)
def test_what_is_no_blur_is_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
