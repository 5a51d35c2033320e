"""A trajectory is noise first, sample last, whoever made it."""

import dataclasses

import pytest
import torch

from dsno.trajectory import Trajectory, sampled


def test_the_ends_are_the_noise_and_the_sample() -> None:
    x, t = torch.randn(2, 3, 1, 4), torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    trajectory = Trajectory(x, t)
    assert torch.equal(trajectory.noise, x[:, 0]) and torch.equal(trajectory.sample, x[:, 2])
    assert trajectory.noise.shape == (2, 1, 4) and (trajectory.nfe, trajectory.rounds) == (0, 0)
    one = dataclasses.replace(trajectory, x=x[:, :1], t=t[:1])
    assert torch.equal(one.noise, one.sample)


def test_it_is_not_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Trajectory(torch.zeros(1, 1, 2), torch.zeros(1)).nfe = 3  # type: ignore[misc]


def twice(z: torch.Tensor, cond: object, seeds: torch.Tensor | None) -> Trajectory:
    assert len(z) > 0
    return Trajectory(torch.stack([z, 2 * z], 1), torch.tensor([1.0, 0.0]), cond=cond, seeds=seeds)


def test_of_no_rows_there_are_no_samples() -> None:
    made = sampled(twice, torch.zeros(0, 1, 4), {"label": torch.zeros(0, dtype=torch.int64)}, [])
    assert made.sample.shape == (0, 1, 4) and made.seeds.shape == (0,) and made.cond["label"].shape == (0,)
    assert torch.equal(sampled(twice, torch.ones(2, 1, 4), None, [3, 4]).seeds, torch.tensor([3, 4]))


@pytest.mark.parametrize(
    "seeds, message", [([1.5, 2], "seeds must be integers"), ([1], "there are 1 seeds for 2 rows of noise")]
)
def test_seeds_are_integers_and_one_for_each_row(seeds: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampled(twice, torch.ones(2, 1, 4), None, seeds)
