"""Distances between sets of features, and errors of samples and paths, against their formulas."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from dsno.measure import metrics
from dsno.measure.metrics import (
    diversity,
    frechet_distance,
    kernel_distance,
    mean_distance,
    nearest_distances,
    neighbour_radii,
    path_error,
    precision_recall,
    sample_error,
)


def gaussian(N: int, D: int = 6, shift: float = 0.0, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(D, D, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return torch.randn(N, D, generator=g, dtype=torch.float64) @ mixing + shift


# Fréchet distance


def test_frechet_distance_is_zero_for_one_set() -> None:
    x = gaussian(300)
    assert frechet_distance(x, x) < 1e-9


def test_frechet_distance_is_the_closed_form() -> None:
    fake, real = gaussian(400, shift=0.3, seed=1) * 1.2, gaussian(500, seed=2)
    (mu_f, cov_f), (mu_r, cov_r) = ((x.numpy().mean(0), np.cov(x.numpy(), rowvar=False)) for x in (fake, real))
    expected = ((mu_f - mu_r) ** 2).sum() + np.trace(cov_f + cov_r - 2 * sqrtm(cov_f @ cov_r).real)
    assert frechet_distance(fake, real) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_a_shift_is_its_square() -> None:
    x = gaussian(200)
    assert frechet_distance(x + 0.5, x) == pytest.approx(6 * 0.25, rel=1e-9)


def test_frechet_distance_survives_fewer_samples_than_dimensions() -> None:
    fake, real = gaussian(5, D=20, seed=1), gaussian(7, D=20, seed=2)
    assert math.isfinite(frechet_distance(fake, real))


@pytest.mark.parametrize(("N", "expected"), [(2048, 1.08), (8192, 0.27)])
def test_frechet_distance_of_one_law_is_not_zero_but_its_bias(N: int, expected: float) -> None:
    fake, real = torch.randn(2, N, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # To first order in 1 / N.
    formula = 2 / N * (64 + 64 * 65 / 4)
    assert frechet_distance(fake, real) == pytest.approx(formula, rel=0.08)
    assert formula == pytest.approx(expected, abs=0.005)


# Kernel distance


def unbiased_mmd(x: Tensor, y: Tensor) -> float:
    N, D = x.shape
    k_xx, k_yy, k_xy = ((a @ b.T / D + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    inner = (k_xx.sum() - k_xx.trace() + k_yy.sum() - k_yy.trace()) / (N * (N - 1))
    return float(inner - 2 * k_xy.mean())


def test_kernel_distance_is_the_unbiased_estimator() -> None:
    x, y = gaussian(150, seed=1), gaussian(150, shift=0.5, seed=2)
    mean, std = kernel_distance(x, y, subsets=3, subset_size=150)
    assert mean == pytest.approx(unbiased_mmd(x, y), rel=1e-9)
    assert std == pytest.approx(0, abs=1e-8)


def test_kernel_distance_is_near_zero_for_one_law_and_of_either_sign() -> None:
    found = [kernel_distance(torch.randn(200, 4), torch.randn(200, 4), subsets=5)[0] for _ in range(20)]
    assert min(found) < 0 < max(found)
    assert abs(sum(found) / 20) < 0.02
    assert kernel_distance(torch.randn(200, 4) + 1, torch.randn(200, 4))[0] > 1


def test_kernel_distance_leaves_no_trace() -> None:
    x = gaussian(50)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = kernel_distance(x, x + 1, subset_size=20)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(4)
    assert first == kernel_distance(x, x + 1, subset_size=20)
    assert first != kernel_distance(x, x + 1, subset_size=20, seed=1)


# Precision and recall


def test_precision_and_recall_of_one_set_and_of_disjoint_sets() -> None:
    x = gaussian(100)
    assert precision_recall(x, x) == (1.0, 1.0)
    assert precision_recall(x + 1e3, x) == (0.0, 0.0)


def test_a_collapsed_set_has_precision_without_recall() -> None:
    real = gaussian(200)
    precision, recall = precision_recall(real.mean(0).expand(50, -1), real)
    assert precision == 1.0
    assert recall == 0.0


def test_precision_and_recall_by_hand() -> None:
    real = torch.tensor([[0.0], [1.0], [3.0]])  # radii for k = 1: 1, 1, 2
    fake = torch.tensor([[-0.5], [1.5], [5.5], [4.9]])  # radii: 2, 2, 0.6, 0.6
    precision, recall = precision_recall(fake, real, k=1)
    assert precision == 3 / 4
    assert recall == 3 / 3


def test_a_tie_is_inside() -> None:
    real = torch.tensor([[0.0], [0.0], [1.0], [1.0]])  # radii for k = 1: all 0
    fake = torch.tensor([[0.0], [0.0], [0.5], [1.0]])  # radii: 0, 0, 0.5, 0.5
    # All fakes but 0.5 are reals; with "less than" instead it were none of them, and of the reals the ones alone.
    assert precision_recall(fake, real, k=1) == (3 / 4, 1.0)
    # Copies in any order, of a size at which equal rows get distances of 1e-6 by round-off.
    x, g = 10 * gaussian(50, D=64), torch.Generator().manual_seed(0)
    copies = [x.repeat(n, 1)[torch.randperm(50 * n, generator=g)] for n in (4, 5)]
    assert precision_recall(*copies) == (1.0, 1.0)
    assert precision_recall(copies[0] + 1e-3, copies[1]) == (0.0, 0.0)


def test_distances_in_blocks_are_those_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, real = gaussian(150, D=2, seed=1), gaussian(110, D=2, shift=0.5, seed=2)
    apart, between = torch.cdist(real, real), torch.cdist(fake, real)
    for held in (1, 7 * 110, metrics.BLOCK):  # rows of 1, 7 and 150 fakes at a time
        monkeypatch.setattr(metrics, "BLOCK", held)
        expected = (between <= apart.sort(1).values[:, 3]).any(1).double().mean()
        assert precision_recall(fake, real).precision == pytest.approx(float(expected))
        assert mean_distance(real) == pytest.approx(float(apart.sum()) / (110 * 109))
        torch.testing.assert_close(nearest_distances(fake, real), between.amin(1))


# Nearest neighbours


def test_a_row_that_is_in_both_sets_is_at_no_distance_of_itself() -> None:
    train = 1e3 * gaussian(200)
    given = torch.cat([train[[5, 3]], train[7:8] + 1e-3])
    found = nearest_distances(given.float(), train.float())
    assert found.dtype == torch.float64 and found[:2].tolist() == [0, 0]
    assert float(found[2]) == pytest.approx(1e-3 * math.sqrt(6), rel=0.1)


@pytest.mark.parametrize("n", [1024, 4096])
def test_the_nearest_of_points_in_a_square_is_as_far_as_their_density_says(n: int) -> None:
    g = torch.Generator().manual_seed(n)
    points, train = torch.rand(4000, 2, generator=g), torch.rand(n, 2, generator=g)
    # No point within d with probability exp(-n pi d^2), away from the border.
    inner = points[(points - 0.5).abs().amax(1) < 0.45]
    assert float(nearest_distances(inner, train).median()) == pytest.approx(
        math.sqrt(math.log(2) / math.pi / n), rel=0.05
    )


def test_bad_sets_have_no_nearest_rows() -> None:
    x = gaussian(10)
    for given, train, message in (
        (x[:0], x, r"the given features must be \(N, D\) with N of 1 or more, got \(0, 6\)"),
        (x, x[:0], "the training features must be"),
        (x, x[:, :5], "the given features have 6 dimensions, the training ones 5"),
        (x, x.masked_fill(x > 1, math.nan), "the training features are not all finite"),
    ):
        with pytest.raises(ValueError, match=message):
            nearest_distances(given, train)


# Diversity, and what is refused


def test_diversity_is_relative() -> None:
    x = gaussian(80)
    assert diversity(x, x) == pytest.approx(1)
    assert diversity(0.5 * x + 3, x) == pytest.approx(0.5)
    assert diversity(x[:1].expand(10, -1), x) == 0
    with pytest.raises(ValueError, match="no scale"):
        diversity(x, x[:1].expand(10, -1))


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance, precision_recall, diversity])
def test_bad_features_are_one_clear_error(distance) -> None:
    x = gaussian(10)
    with pytest.raises(ValueError, match=r"fake features must be \(N, D\)"):
        distance(x[:1], x)
    with pytest.raises(ValueError, match=r"real features must be \(N, D\)"):
        distance(x, x[None])
    with pytest.raises(ValueError, match="6 dimensions, real ones 5"):
        distance(x, x[:, :5])
    with pytest.raises(ValueError, match="not all finite"):
        distance(x.masked_fill(x > 1, math.nan), x)


def test_k_must_be_positive_and_small() -> None:
    x = gaussian(3)
    with pytest.raises(ValueError, match="k must be at least 1"):
        precision_recall(x, x, k=0)
    with pytest.raises(ValueError, match="N of 4 or more"):
        precision_recall(x, x, k=3)


def test_what_a_reference_knows_of_itself_changes_nothing() -> None:
    real, fake = gaussian(200), gaussian(100) + 0.5
    assert precision_recall(fake, real, 3, neighbour_radii(real, 3)) == precision_recall(fake, real, 3)
    assert diversity(fake, real, mean_distance(real)) == diversity(fake, real)
    apart = [float((a - b).norm()) for i, a in enumerate(real.double()) for b in real[:i].double()]
    assert mean_distance(real) == pytest.approx(sum(apart) / len(apart))
    for radius, row in zip(neighbour_radii(real, 3)[:5], real[:5].double(), strict=True):
        assert radius == pytest.approx(float((real.double() - row).norm(dim=1).sort().values[3]))
    for radii in (torch.zeros(7), torch.full((200,), math.nan)):
        with pytest.raises(ValueError, match="radii are one finite number for each of 200 rows, got"):
            precision_recall(fake, real, 3, radii)
    with pytest.raises(ValueError, match="no scale"):
        diversity(fake, real, 0.0)
    with pytest.raises(ValueError, match="N of 4 or more"):
        neighbour_radii(real[:3], 3)
    with pytest.raises(ValueError, match="N of 2 or more"):
        mean_distance(real[:1])


# Path error


def test_path_error_is_zero_or_known() -> None:
    x = torch.randn(4, 3, 1, 8, 8)
    assert torch.equal(path_error(x, x), torch.zeros(3, dtype=torch.float64))
    offset = torch.tensor([0.1, 0.0, 2.0]).reshape(1, 3, 1, 1, 1)
    torch.testing.assert_close(path_error(x + offset, x), offset.flatten().double(), rtol=1e-5, atol=1e-6)
    assert path_error(x.double()[:, :, 0, 0], x.double()[:, :, 0, 0] + 1).shape == (3,)


def test_sample_error_is_per_sample() -> None:
    x = torch.zeros(3, 2)
    torch.testing.assert_close(
        sample_error(x + torch.tensor([[0.0], [1.0], [3.0]]), x), torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    )


def test_path_error_needs_one_shape() -> None:
    x = torch.randn(4, 3, 8)
    with pytest.raises(ValueError, match="one shape"):
        path_error(x, x[:, :1])
    with pytest.raises(ValueError, match="one shape"):
        sample_error(x[:0], x[:0])
    with pytest.raises(ValueError, match=r"\(B, T, \*shape\)"):
        path_error(x[:, 0], x[:, 0])
