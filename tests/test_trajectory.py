"""A trajectory is noise first, sample last, whoever made it."""

import dataclasses

import pytest
import torch

from dsno.trajectory import Trajectory


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
