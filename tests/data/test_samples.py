"""A data set in memory: ranges and their checks, resizing, parts."""

import numpy as np
import pytest
import torch

from dsno.data.samples import Affine, Samples, check_images, check_samples, resized, split, to_uint8, to_unit


def test_pixels_survive_the_way_to_floats_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(every.float() / 127.5 - 1), every)
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]
    assert torch.allclose(to_unit(torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0])), torch.tensor([0.0, 0.0, 0.5, 0.75, 1.0]))


def test_resized_images() -> None:
    x = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (3, 1, 28, 28))).float()
    images = Samples(x, torch.arange(3), "here")
    padded, halved = resized(images, 32), resized(images, 16)
    assert torch.equal(padded.x[..., 2:30, 2:30], x) and bool((padded.x[..., :2] == x.min()).all())
    assert torch.allclose(halved.x, padded.x.reshape(3, 1, 16, 2, 16, 2).mean((3, 5)), atol=1e-6)
    assert resized(images, 28) is images and torch.equal(halved.labels, images.labels)
    # Colours are not padded; a constant stays one under any interpolation.
    for size in (14, 16, 20, 32, 40):
        assert torch.allclose(
            resized(Samples(torch.full((2, 3, 28, 30), 0.3), None, "here"), size).x, torch.tensor(0.3)
        )
    # Antialiased: the finest pattern vanishes where every other pixel would keep it.
    stripes = torch.ones(1, 1, 30, 30)
    stripes[..., ::2] = -1
    assert float(resized(Samples(stripes, None, "here"), 12).x[..., 2:-2].abs().max()) < 0.2
    with pytest.raises(ValueError, match=r"here has samples of shape \(1, 64\): only images \(C, H, W\) are resized"):
        resized(Samples(torch.zeros(2, 1, 64), None, "here"), 32)


def test_what_looks_at_pixels_asks_for_more_than_training() -> None:
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    assert check_images(x) is x and check_samples(x) is x and check_samples(2 * x[:, 0]) is not None
    with pytest.raises(ValueError, match="the set must lie in"):
        check_images(2 * x, "the set")
    with pytest.raises(ValueError, match=r"must have shape \(N, C, H, W\) with 1 or 3 channels"):
        check_images(x.expand(1, 2, 8, 8))


def test_labels_of_samples_are_classes() -> None:
    x = torch.zeros(2, 1, 4)
    assert Samples(x, torch.tensor([0, 2]), "here").classes == 3 and Samples(x, None, "here").classes is None
    assert Samples(x, torch.tensor([0, 1]), "here", names=("a", "b", "c")).classes == 3
    for labels, message in (
        (torch.tensor([-1, -1]), "here has labels down to -1, which are no classes"),
        (torch.tensor([0.0, 1.0]), "here has labels of torch.float32, which are no classes"),
        (torch.tensor([0]), r"here has 2 samples but labels of shape \(1,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Samples(x, labels, "here")
    with pytest.raises(ValueError, match="here has labels up to 1, and names? of 1"):
        Samples(x, torch.tensor([0, 1]), "here", names=("a",))


def test_a_split_is_a_partition_and_a_function_of_the_seed() -> None:
    samples = Samples(torch.arange(50.0).reshape(50, 1, 1), torch.arange(50), "here", Affine((1.0,), (2.0,)))
    train, held = split(samples, 0.2, seed=3)
    assert (len(train), len(held)) == (40, 10) and train.units == held.units == samples.units
    assert sorted([*train.labels.tolist(), *held.labels.tolist()]) == [*range(50)]
    for part in (train, held):
        assert torch.equal(part.x.flatten().long(), part.labels) and part.labels.tolist() == sorted(
            part.labels.tolist()
        )
    assert torch.equal(split(samples, 0.2, seed=3)[1].labels, held.labels)
    assert not torch.equal(split(samples, 0.2, seed=4)[1].labels, held.labels)
    for fraction in (0.0, 0.001, 1.0, 2.0, -0.5):
        with pytest.raises(ValueError, match="leaves one side empty"):
            split(samples, fraction)
