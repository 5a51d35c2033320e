"""Kernels keep the brightness, lie at their centre, and are compared up to a shift."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dsno.inverse.kernels import aligned, box, centred, delta, disc, gaussian, kernel_error, motion, normalised
from dsno.seeds import seed_range

MADE = {
    "delta": lambda: delta((5, 7)),
    "line": lambda: delta((4,)),
    "gaussian": lambda: gaussian((7, 7), (1.0, 2.0), 0.3),
    "signal": lambda: gaussian((9,), 1.5),
    "box": lambda: box((7, 5), 2.5),
    "disc": lambda: disc((9, 9), 3.2),
}


def centre_of_mass(k: Tensor) -> list[float]:
    """Of (*size), along each side, from the centre."""
    sides = (torch.arange(n, dtype=k.dtype) - n // 2 for n in k.shape)
    return [float((k.movedim(i, -1) * m).sum()) for i, m in enumerate(sides)]


@pytest.mark.parametrize("name", MADE)
def test_a_kernel_keeps_the_brightness_and_lies_at_its_centre(name: str) -> None:
    k = MADE[name]()
    assert k.dtype == torch.float64 and k.min() >= 0
    assert float(k.sum()) == pytest.approx(1, abs=1e-14)
    assert centre_of_mass(k) == pytest.approx([0] * k.ndim, abs=1e-14)


def test_a_gaussian_has_its_widths_along_its_axes() -> None:
    k = gaussian((41, 41), (1.5, 3.0), math.pi / 6)
    v, u = torch.meshgrid(*[torch.arange(41, dtype=torch.float64) - 20] * 2, indexing="ij")
    cov = torch.stack([torch.stack([(k * a * b).sum() for b in (v, u)]) for a in (v, u)])
    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    expected = turn @ torch.diag(torch.tensor([1.5**2, 3.0**2], dtype=torch.float64)) @ turn.T
    torch.testing.assert_close(cov, expected, rtol=0, atol=1e-6)


def test_a_box_and_a_disc_cover_what_they_say() -> None:
    torch.testing.assert_close(box((5,), 2.5), torch.tensor([0, 0.3, 0.4, 0.3, 0], dtype=torch.float64))
    torch.testing.assert_close(box((3, 3), 3), torch.full((3, 3), 1 / 9, dtype=torch.float64))
    k = disc((9, 9), 3.0)
    # The middle is covered whole: its value is one over the area.
    assert float(1 / k[4, 4]) == pytest.approx(math.pi * 9, rel=0.02)
    assert k[0].sum() == 0 and k[4, 1] > 0


def test_motion_is_by_seed_inside_its_support_and_centred() -> None:
    k = motion((9, 7), seed_range(0, 32))
    assert k.shape == (32, 1, 9, 7) and k.min() >= 0
    torch.testing.assert_close(k.sum((1, 2, 3)), torch.ones(32, dtype=torch.float64))
    assert all(centre_of_mass(one[0]) == pytest.approx([0, 0], abs=1e-12) for one in k)
    torch.testing.assert_close(motion((9, 7), [5]), k[5:6], rtol=0, atol=0)
    assert (k[0] - k[1]).abs().max() > 0.05
    # Something is blurred, and no two sides of a path are alike.
    assert float(kernel_error(delta((9, 7))[None, None].expand(32, -1, -1, -1), k).min()) > 0.5
    assert float((k - k.flip(2, 3)).flatten(1).norm(dim=1).median()) > 0.1


def test_motion_of_a_signal_a_short_side_and_a_small_share() -> None:
    assert motion((9,), [1, 2]).shape == (2, 1, 9)
    torch.testing.assert_close(motion((5, 1), [3]).sum(), torch.ones((), dtype=torch.float64))
    assert motion((9, 9), [4], share=(0.2, 0.25))[0, 0, 4 - 2 : 4 + 3, 4 - 2 : 4 + 3].sum() == pytest.approx(1)


def test_what_is_not_positive_is_dropped_and_nothing_is_a_delta() -> None:
    k = torch.tensor([[[-1.0, 1.0, 3.0]], [[-1.0, 0.0, -2.0]]])
    assert normalised(k).tolist() == [[[0, 0.25, 0.75]], [[0, 1, 0]]]


@pytest.mark.parametrize("move", [(0, 0), (1, -2), (-2, 2)])
def test_a_moved_kernel_is_moved_back(move: tuple[int, int]) -> None:
    k = F.pad(motion((5, 5), [1, 2, 3]), (2, 2, 2, 2))
    torch.testing.assert_close(centred(k.roll(move, (2, 3))), k, rtol=0, atol=1e-14)


def test_centring_loses_what_leaves_the_support_and_nothing_comes_round() -> None:
    k = torch.tensor([0.1, 0.0, 0.0, 0.0, 0.9])[None, None]
    assert centred(k)[0, 0].tolist() == pytest.approx([0, 0, 1, 0, 0])


@pytest.mark.parametrize("move", [(3, -1), (0, 0), (-5, 4)])
def test_pictures_are_compared_where_they_agree_best(move: tuple[int, int]) -> None:
    r = torch.randn(2, 3, 11, 8, dtype=torch.float64)
    torch.testing.assert_close(aligned(r.roll(move, (2, 3)), r), r, rtol=0, atol=0)
    near = aligned(r.roll(move, (2, 3)), r, reach=3)
    assert torch.equal(near, r) == (max(map(abs, move)) <= 3)


def test_the_error_of_a_kernel_is_up_to_a_shift_and_of_nothing_else() -> None:
    k = motion((5, 5), [1, 2])
    wide = F.pad(k, (3, 3, 3, 3))
    torch.testing.assert_close(kernel_error(wide.roll((3, -1), (2, 3)), k), torch.zeros(2, dtype=torch.float64))
    noisy = k + 0.01 * torch.randn_like(k)
    expected = (noisy - k).flatten(1).norm(dim=1) / k.flatten(1).norm(dim=1)
    torch.testing.assert_close(kernel_error(noisy, k), expected)
    assert (kernel_error(k.flip(2, 3), k) > 0.1).all()
    torch.testing.assert_close(kernel_error(k, k[:1])[0], torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: delta((3, 3, 3)), r"\(l,\) or \(h, w\) in pixels, got \(3, 3, 3\)"),
        (lambda: gaussian((0,), 1.0), "in pixels"),
        (lambda: gaussian((3, 3), (1.0, 0.0)), "must be positive, got"),
        (lambda: box((5, 5), 6.0), "the width must be positive and fit"),
        (lambda: disc((5, 5), 0.0), "the radius must be positive and fit"),
        (lambda: disc((5,), 1.0), "a kernel of pictures"),
        (lambda: motion((5, 5), [1], share=(0.5, 1.5)), r"inside \(0, 1\]"),
    ],
)
def test_what_is_no_kernel_is_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
