"""Noise levels, grids and gaps are those of the papers."""

import math

import pytest
import torch

from dsno.distillation.levels import Gap, Grid, Levels
from maps import D64


def test_levels_and_grids_are_those_of_the_papers() -> None:
    u = (torch.arange(20000, dtype=D64) + 0.5) / 20000
    log = Levels(-1.1, 2.0, 1e-12, 1e12)(u).log()
    assert float(log.mean()) == pytest.approx(-1.1, abs=1e-6) and float(log.std()) == pytest.approx(2, abs=1e-3)
    assert Levels(low=0.1, high=2.0)(torch.tensor([0.0, 1.0])).tolist() == [0.1, 2.0]

    grid = Grid(lambda step: 18, None, 1e4)
    edges = grid.edges(0)
    assert len(edges) == 19 and edges[0] == 0 and edges[-1] == 1e4
    karras = [(0.002 ** (1 / 7) + i / 17 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7 for i in range(17)]
    assert edges[1:-1].tolist() == pytest.approx(karras, rel=1e-12)
    later, earlier = grid(u, 0)
    assert torch.equal(torch.bincount(torch.searchsorted(edges, earlier), minlength=18) // 10, torch.full((18,), 111))
    assert torch.equal(torch.searchsorted(edges, later), torch.searchsorted(edges, earlier) + 1)

    # An interval's share is the lognormal's between its ends (Song & Dhariwal, eq. 10, with the tails on the ends).
    _, earlier = Grid(lambda step: 18, Levels(low=1e-6, high=1e6), 1e4)(u, 0)
    share = torch.bincount(torch.searchsorted(edges, earlier), minlength=18) / len(u)
    below = torch.special.ndtr((edges[1:-1].log() + 1.1) / 2)
    expected = torch.diff(torch.cat([below.new_zeros(1), below, below.new_ones(1)]))
    assert torch.allclose(share.double(), expected, atol=1e-4)


def test_a_level_is_the_quantile_of_a_lognormal_within_its_ends() -> None:
    levels = Levels(0.5, 2.0, 0.1, 20.0)
    # Of the standard normal at -3, -1, 0, 1 and 3.
    u = torch.special.ndtr(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0], dtype=D64))
    assert levels(u).tolist() == pytest.approx([0.1, math.exp(-1.5), math.exp(0.5), math.exp(2.5), 20.0])
    assert levels(torch.full((2, 3), 0.5)).shape == (2, 3) and levels(torch.tensor([0.5])).dtype == D64


def test_a_grid_is_of_as_many_intervals_as_the_step_asks_for_and_ends_where_the_path_does() -> None:
    grid = Grid(lambda step: step, None, 10.0, low=1.0, high=5.0, rho=1.0)
    assert grid.edges(2).tolist() == pytest.approx([0, 1, 10])
    assert grid.edges(4).tolist() == pytest.approx([0, 1, 7 / 3, 11 / 3, 10])
    assert grid.edges(4).dtype == D64
    # A path that ends below Karras' highest level is spaced up to its own.
    assert Grid(lambda step: 4, None, 4.0, low=1.0, high=5.0, rho=1.0).edges(0).tolist() == pytest.approx(
        [0, 1, 2, 3, 4]
    )
    later, earlier = grid(torch.tensor([0.0, 0.2499, 0.25, 0.999]), 4)
    assert later.tolist() == pytest.approx([1, 1, 7 / 3, 10]) and earlier.tolist() == pytest.approx([0, 0, 1, 11 / 3])
    # With a distribution, the interval is the one that the level falls into.
    drawn = Grid(lambda step: 4, Levels(0.0, 1.0), 10.0, low=1.0, high=5.0, rho=1.0)
    later, earlier = drawn(torch.special.ndtr(torch.tensor([-1.0, 1.0, 1.5, 3.0], dtype=D64)), 0)
    assert later.tolist() == pytest.approx([1, 11 / 3, 10, 10])
    assert earlier.tolist() == pytest.approx([0, 7 / 3, 11 / 3, 11 / 3])


def test_a_gap_is_a_share_of_the_level_that_shrinks_by_stages() -> None:
    levels, u = Levels(0.0, 1.0), torch.special.ndtr(torch.tensor([-2.0, 0.0, 1.0], dtype=D64))
    for step, share in ((1, 1 / 3), (2, 1 / 9)):
        later, earlier = Gap(lambda step: step, levels, q=3.0, k=0.0)(u, step)
        assert torch.equal(later, levels(u)) and torch.allclose(earlier, later * (1 - share))
    later, earlier = Gap(lambda step: 1, levels, q=4.0, k=8.0, b=2.0)(u, 0)
    n = 1 + 8 / (1 + (2 * later).exp())
    # Where the share would be above one, r is 0.
    assert bool(n[0] > 4) and earlier[0] == 0 and torch.allclose(earlier[1:], later[1:] * (1 - n[1:] / 4))
