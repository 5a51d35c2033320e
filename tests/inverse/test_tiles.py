"""A denoiser on overlapping tiles, blended at every step, is a denoiser of the canvas."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dsno.cost import Meter, evaluations
from dsno.grids import uniform
from dsno.inverse.tiles import Tiled, Tiling, tile_starts
from dsno.schedule import Cosine
from dsno.seeds import noise, seed_range
from dsno.solvers.run import SolverSampler
from dsno.teachers.closed import Gaussian, GaussianMixture

SCHEDULE = Cosine()


def flat(std: float = 0.5) -> Gaussian:
    """Of data whose points are independent and alike, so that it treats every point alike, in any shape."""
    return Gaussian(SCHEDULE, torch.tensor(0.2, dtype=torch.float64), std)


def strokes(shape: tuple[int, ...], seed: int = 0) -> GaussianMixture:
    """A denoiser that looks at a whole tile."""
    means = torch.randn(5, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return GaussianMixture(SCHEDULE, means, 0.3)


@pytest.mark.parametrize("n, w, overlap", [(8, 8, None), (24, 8, None), (13, 8, 5), (9, 8, 0), (24, 8, 0), (100, 7, 6)])
def test_tiles_cover_a_line_and_overlap_by_what_was_asked(n: int, w: int, overlap: int | None) -> None:
    starts = tile_starts(n, w, overlap)
    assert starts[0] == 0 and starts[-1] == n - w
    least = w // 2 if overlap is None else overlap
    assert all(0 < s - r <= w - least for r, s in pairwise(starts))
    # One tile fewer would not do.
    assert len(starts) == 1 or (len(starts) - 1) * (w - least) + least < n


@pytest.mark.parametrize(
    "n, w, overlap, message",
    [
        (7, 8, None, "7 points are fewer than the 8 of a tile"),
        (9, 8, 8, "overlap by 0 to 7, got overlap=8"),
        (9, 8, -1, "got overlap=-1"),
    ],
)
def test_what_does_not_cover_a_line_is_refused(n: int, w: int, overlap: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tile_starts(n, w, overlap)


@pytest.mark.parametrize("tile, canvas", [((1, 5), (1, 17)), ((3, 4, 6), (3, 13, 6)), ((1, 3, 4, 5), (1, 5, 4, 11))])
def test_the_weights_are_a_smooth_partition_of_unity(tile: tuple[int, ...], canvas: tuple[int, ...]) -> None:
    def ones(x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return torch.ones_like(x)

    tiled, t = Tiled(ones, tile, canvas), torch.tensor(0.5)
    x = torch.zeros(2, *canvas, dtype=torch.float64)
    assert (tiled(x, t) - 1).abs().max() < 1e-15


def test_a_tile_fades_in_from_its_first_point_to_its_middle() -> None:
    def first(x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        """1 in the last of the tiles, 0 in the others."""
        return torch.ones_like(x) * (torch.arange(len(x)) == len(x) - 1).reshape(-1, 1, 1)

    weight = Tiled(first, (1, 16), (1, 24))(torch.zeros(1, 1, 24, dtype=torch.float64), torch.tensor(0.5))[0, 0]
    assert bool((weight[:8] == 0).all()) and bool((weight[16:] == 1).all())
    assert float(weight[8]) < 0.01 and float(weight[15]) > 0.99 and bool((weight.diff() >= 0).all())
    assert float(weight.diff().max()) < 0.2


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 5), (2, 9)])
def test_a_single_tile_is_the_denoiser_itself(shape: tuple[int, ...]) -> None:
    denoiser, z = strokes(shape), noise(seed_range(0, 4), shape, dtype=torch.float64)
    t = torch.tensor([0.9, 0.5, 0.2, 0.0], dtype=torch.float64)
    assert torch.equal(Tiled(denoiser, shape, shape)(z, t), denoiser(z, t))


@pytest.mark.parametrize("overlap", [0, 2, 4, 7])
def test_of_points_that_are_alike_tiles_are_the_whole(overlap: int) -> None:
    tiled = Tiled(flat(), (3, 8, 8), (3, 21, 13), overlap)
    z = noise(seed_range(0, 2), (3, 21, 13), dtype=torch.float64)
    sampled = [SolverSampler(D, SCHEDULE, uniform(8))(z).sample for D in (tiled, flat())]
    assert (sampled[0] - sampled[1]).abs().max() < 1e-13


def test_it_is_nearest_to_what_the_tiles_want() -> None:
    tile, canvas = (1, 4), (1, 10)
    denoiser, x = strokes(tile), noise(seed_range(0, 1), canvas, dtype=torch.float64)
    tiled, t = Tiled(denoiser, tile, canvas, overlap=1), torch.tensor(0.6, dtype=torch.float64)
    bump = torch.sin(math.pi * (torch.arange(4, dtype=torch.float64) + 0.5) / 4) ** 2

    def unlikeness(y: Tensor) -> Tensor:
        """What each tile says of its part of the canvas, less what the canvas says, in weighted squares."""
        parts = ((y[..., s : s + 4] - denoiser(x[..., s : s + 4], t)) ** 2 * bump for s in tiled.starts[0])
        return torch.stack([part.sum() for part in parts]).sum()

    assert torch.func.grad(unlikeness)(tiled(x, t)).abs().max() < 1e-13


def test_derivatives_pass_through_it_in_both_directions() -> None:
    tiled = Tiled(strokes((1, 4, 4)), (1, 4, 4), (1, 7, 6), overlap=1)
    x, v, u = (noise([seed], (1, 7, 6), dtype=torch.float64) for seed in range(3))
    t = torch.tensor(0.4, dtype=torch.float64)
    _, Jv = torch.func.jvp(lambda x: tiled(x, t), (x,), (v,))
    _, vjp = torch.func.vjp(lambda x: tiled(x, t), x)
    assert float((u * Jv).sum()) == pytest.approx(float((vjp(u)[0] * v).sum()), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: tiled(x, t), (x.clone().requires_grad_(),))


def test_its_tiles_are_told_the_time_and_the_condition_of_their_row() -> None:
    heard: list[tuple[Tensor, Tensor]] = []

    def listens(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        heard.append((t, cond))
        return t.reshape(-1, 1, 1) + cond.reshape(-1, 1, 1) + 0 * x

    tiled = Tiled(listens, (1, 4), (1, 9), overlap=1)
    t, label = torch.tensor([0.25, 0.5]), torch.tensor([1, 7])
    answer = tiled(torch.zeros(2, 1, 9), t, label)
    assert torch.allclose(answer, (t + label).reshape(-1, 1, 1).expand(2, 1, 9))
    assert len(heard) == 1 and len(heard[0][0]) == 2 * tiled.tiles
    assert torch.equal(tiled(torch.zeros(2, 1, 9), torch.tensor(0.25), label)[:, 0, 0], 0.25 + label)


@pytest.mark.parametrize("limit, calls", [(None, 1), (12, 2), (5, 5), (1, 24)])
def test_a_limit_cuts_calls_and_changes_no_answer(limit: int | None, calls: int) -> None:
    inner, x = Meter(strokes((1, 4, 4))), noise(seed_range(0, 2), (1, 8, 10), dtype=torch.float64)
    tiled = Tiled(inner, (1, 4, 4), (1, 8, 10), limit=limit)
    assert tiled.tiles == 12
    whole = Tiled(inner.denoiser, (1, 4, 4), (1, 8, 10))(x, torch.tensor(0.5))
    assert (tiled(x, torch.tensor(0.5)) - whole).abs().max() < 1e-14
    assert inner.rounds == calls and inner.rows == 24


def test_whatever_is_said_of_tiles_is_blended_in_as_many_channels_as_it_has() -> None:
    tiling, x = Tiling((1, 4, 4), (1, 8, 10), limit=5), noise(seed_range(0, 2), (1, 8, 10), dtype=torch.float64)
    t, D = torch.tensor([0.5, 0.2], dtype=torch.float64), strokes((1, 4, 4))
    said = tiling.ask(lambda x, t, cond: torch.cat([D(x, t), 0 * x + t.reshape(-1, 1, 1, 1)], 1), x, t)
    assert said.shape == (2, 2, 8, 10) and torch.allclose(said[:, :1], Tiled(D, (1, 4, 4), (1, 8, 10))(x, t))
    assert torch.allclose(said[:, 1:], t.reshape(2, 1, 1, 1).expand(2, 1, 8, 10))
    whole = Tiling((1, 8, 10), (1, 8, 10))
    assert torch.equal(whole.ask(lambda x, t, cond: x, x, t), x) and torch.equal(whole.cut(x), x)


def test_its_cost_is_that_of_its_tiles() -> None:
    tiled = Tiled(strokes((1, 4, 4)), (1, 4, 4), (1, 8, 10))
    assert tiled.tiles == 3 * 4 and evaluations(tiled) == 12
    outer = Meter(tiled)
    outer(torch.zeros(2, 1, 8, 10), torch.tensor(0.5))
    assert (outer.rounds, outer.rows) == (1, 24) and (tiled.rounds, tiled.rows) == (1, 24)


def test_neighbours_that_blend_at_every_step_have_no_seams() -> None:
    tile, canvas = (1, 8), (1, 64)
    # Smooth pieces of any phase: a tile that knows nothing of its neighbour jumps against it.
    q = torch.arange(8, dtype=torch.float64)
    means = torch.stack([torch.sin(2 * math.pi * (q + p) / 16) for p in range(16)])[:, None]
    denoiser, z = GaussianMixture(SCHEDULE, means, 0.05), noise(seed_range(0, 8), canvas, dtype=torch.float64)

    def jumps(overlap: int) -> float:
        """How far neighbours differ where a tile begins or ends, against elsewhere."""
        tiled = Tiled(denoiser, tile, canvas, overlap)
        step = SolverSampler(tiled, SCHEDULE, uniform(40))(z).sample.diff(dim=-1).abs().mean((0, 1))
        borders = {b - 1 for s in tiled.starts[0] for b in (s, s + 8) if 0 < b < 64}
        at, off = zip(*[(k in borders, v) for k, v in enumerate(step.tolist())], strict=True)
        return (
            sum(v for a, v in zip(at, off, strict=True) if a)
            / sum(at)
            / (sum(v for a, v in zip(at, off, strict=True) if not a) / (len(at) - sum(at)))
        )

    assert jumps(0) > 1.5
    assert jumps(4) < 1.15


@pytest.mark.parametrize(
    "tile, canvas, options, message",
    [
        ((1, 8, 8), (3, 16, 16), {}, r"\(3, 16, 16\) are not cut into tiles \(1, 8, 8\)"),
        ((1, 8, 8), (1, 16), {}, "channels and directions must be the same"),
        ((1, 8, 8), (1, 16, 7), {}, "7 points are fewer than the 8 of a tile"),
        ((1, 8, 8), (1, 16, 16), {"limit": 0}, "limit must be at least 1 row, got 0"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    tile: tuple[int, ...], canvas: tuple[int, ...], options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Tiled(flat(), tile, canvas, **options)
