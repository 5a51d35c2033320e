"""Copies are told from samples, on laws in closed form."""

import logging
import math

import pytest
import torch
from torch import Tensor, nn

from dsno.measure.copying import COPIED, FEWEST, Unseen, copying_ratio, nearest_median, shared_images
from dsno.measure.features import as_extractor
from dsno.measure.metrics import frechet_distance, kernel_distance
from dsno.measure.results import HeldOut
from dsno.schedule import Cosine
from dsno.teachers.closed import GaussianMixture

D = 8
N_TRAIN = 400


@pytest.fixture(scope="module")
def mixture() -> GaussianMixture:
    g = torch.Generator().manual_seed(0)
    return GaussianMixture(Cosine(), 3 * torch.randn(5, D, generator=g), torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0]))


def drawn(law: GaussianMixture, n: int, seed: int) -> Tensor:
    return law.sample(n, torch.Generator().manual_seed(seed))


def copies(train: Tensor, n: int, sigma: float, seed: int = 9) -> Tensor:
    """A sampler that returns training samples with a little noise."""
    g = torch.Generator().manual_seed(seed)
    rows = train[torch.randint(len(train), (n,), generator=g)]
    return rows + sigma * torch.randn(rows.shape, generator=g)


# The ratio


def test_a_sampler_of_the_law_is_at_one_and_one_of_copies_at_zero(mixture: GaussianMixture) -> None:
    train, held_out = drawn(mixture, N_TRAIN, 1), drawn(mixture, 500, 2)
    assert copying_ratio(drawn(mixture, 2000, 3), train, held_out) == pytest.approx(1, abs=0.1)
    assert copying_ratio(train[:300], train, held_out) == 0
    # Of small noise in D dimensions a copy is at sigma times the median of chi: sqrt(D - 2/3), about.
    for sigma in (0.01, 0.05):
        expected = sigma * math.sqrt(D - 2 / 3) / nearest_median(held_out, train)
        found = copying_ratio(copies(train, 500, sigma), train, held_out)
        assert found == pytest.approx(expected, rel=0.05) and found < COPIED


def test_numbers_of_samples_do_not_matter(mixture: GaussianMixture) -> None:
    train = drawn(mixture, N_TRAIN, 1)
    few, many = (copying_ratio(drawn(mixture, n, 3), train, drawn(mixture, 2000, 4)) for n in (300, 3000))
    assert few == pytest.approx(many, abs=0.15)


def test_the_distance_to_held_out_data_tells_a_copier_of_few_from_the_law(mixture: GaussianMixture) -> None:
    train, held_out = drawn(mixture, 40, 1), drawn(mixture, 500, 2)
    copier, fresh = copies(train, 500, 0.01), drawn(mixture, 500, 3)
    assert frechet_distance(copier, train) < 0.1 * frechet_distance(copier, held_out)
    # To what was trained on the copier is the nearer one, to the law the other.
    assert frechet_distance(copier, train) < frechet_distance(fresh, train)
    assert frechet_distance(copier, held_out) > 2 * frechet_distance(fresh, held_out)


def test_at_a_half_samples_are_as_near_as_new_ones_to_so_much_more_training_data() -> None:
    g = torch.Generator().manual_seed(0)
    points = torch.randn(2000, 2, generator=g)
    train = torch.randn(4 * 500, 2, generator=g)
    assert nearest_median(points, train) / nearest_median(points, train[:500]) == pytest.approx(COPIED, abs=0.05)


@pytest.mark.parametrize(("dims", "n"), [(1, 256), (3, FEWEST), (64, FEWEST)])
def test_chance_alone_does_not_copy(dims: int, n: int) -> None:
    g = torch.Generator().manual_seed(dims)
    train = torch.randn(300, dims, generator=g)
    pairs = torch.randn(100, 2, n, dims, generator=g)
    assert min(copying_ratio(made, train, held_out) for made, held_out in pairs) > COPIED


def test_noise_beside_the_data_is_no_copy(mixture: GaussianMixture) -> None:
    train, held_out = drawn(mixture, N_TRAIN, 1), drawn(mixture, 300, 2)
    assert copying_ratio(20 * torch.randn(300, D), train, held_out) > 5


def test_held_out_samples_that_are_training_samples_have_no_scale() -> None:
    train = torch.arange(12.0).reshape(6, 2)
    with pytest.raises(ValueError, match="half of the held-out features, or more, are those of training samples"):
        copying_ratio(train + 1, train, train[:3])
    with pytest.raises(ValueError, match="the given features have 3 dimensions, the training ones 2"):
        copying_ratio(train + 1, train, torch.zeros(4, 3))


# Images


def images(n: int, seed: int) -> Tensor:
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_images_in_both_sets_are_counted() -> None:
    train, held_out = images(50, 0), images(40, 1)
    assert shared_images(held_out, train) == 0
    held_out[[3, 4, 30]] = train[[7, 7, 2]]
    held_out[5] = train[5] + 1e-3
    assert shared_images(held_out, train) == 3 == shared_images(held_out.double(), train)


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (images(40, 0), "40 of the 40 held-out images are in the reference set, too"),
        (torch.cat([images(20, 0), images(20, 1)]), "20 of the 40 held-out images are in the reference set, too"),
        (images(FEWEST - 1, 1), "the held-out set has 31 images, expected 32 or more"),
        (
            torch.zeros(40, 1, 4, 5),
            r"has images of shape \(1, 4, 5\), the reference set of \(1, 4, 4\): load both alike",
        ),
    ],
)
def test_what_was_not_held_out_is_refused(held_out: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shared_images(held_out, images(50, 0))


def test_unseen_images_are_measured_and_seen_ones_said(caplog: pytest.LogCaptureFixture) -> None:
    net, train, held_out = as_extractor(nn.Flatten()), images(50, 0), images(40, 1)
    unseen = Unseen.of(held_out, train, net, "sha")
    x, y, made = (v.flatten(1).double() for v in (train, held_out, images(60, 2)))
    assert torch.equal(unseen.features, y) and (unseen.sha, unseen.shared, caplog.text) == ("sha", 0, "")
    scale = nearest_median(y, x)
    ratio = nearest_median(made, x) / scale
    assert unseen.against(made, x, scale) == HeldOut(frechet_distance(made, y), kernel_distance(made, y)[0], ratio)
    with caplog.at_level(logging.WARNING):
        assert Unseen.of(torch.cat([held_out, train[:2]]), train, net, "sha").shared == 2
    assert "2 of the 42 held-out images are in the reference set, too" in caplog.text
