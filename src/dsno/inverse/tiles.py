r"""Pictures larger than a teacher's: its denoiser on overlapping tiles, blended at every step, is a denoiser of them.

A canvas is cut into tiles of the teacher's size, which overlap, and all of them are denoised in one call. With $C_i$
the cut of tile $i$ and $C_i^\top$ its return to where it came from, zero elsewhere,

$$ D_\square(x_t, t) = \sum_i C_i^\top \big( w_i \odot D(C_i x_t, t) \big), \qquad \sum_i C_i^\top w_i = 1. $$

The weights are a smooth partition of unity: each is a product over the directions of

$$ w_i(p) = \frac{b(p - s_i)}{\sum_j b(p - s_j)}, \qquad b(q) = \sin^2 \Big( \pi \, \frac{q + 1/2}{w} \Big),
   \quad 0 \le q < w, $$

where $s_i$ is the first point of tile $i$ and $w$ the width of a tile, so a tile fades out before it ends.

Tiles that were sampled one by one and blended at the end disagree where they overlap, and what is blended there is
neither. Here they share one state, hence one noise, and agree at every step: of all directions $D_\square$ is the one
that is nearest to what the tiles want, in squares weighted by $w_i$ (Bar-Tal, Yariv, Lipman, Dekel, 2023, arXiv
2302.08113). And it is a denoiser: every sampler, guide and problem takes it, derivatives included. Whatever else a
network says of a sample, point by point, is blended by the same weights (`Tiling`).

What a tile does not see it does not know: nothing holds a large picture together over more than a tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dsno.condition import Cond, map_cond
from dsno.cost import Metered, evaluations
from dsno.denoise import Denoiser, each_row

__all__ = ["Tiled", "Tiling", "tile_starts"]


class Direction(NamedTuple):
    """How n points of one direction are cut into m tiles of w, and put together again.

    Attributes:
        cut: The points of the tiles, tile by tile, (m * w,).
        over: Of each point the places in `cut` that lie over it, (K, n).
        weight: What each of them counts, (K, n); 0 where fewer than K lie over a point.
    """

    cut: Tensor
    over: Tensor
    weight: Tensor


class Tiling:
    r"""How samples (C, *canvas) are cut into tiles (C, *tile), and what is said of these is blended.

    Arguments:
        tile: The shape of a tile, (C, *tile).
        canvas: The shape of what is cut, (C, *canvas).
        overlap: By how many points neighbouring tiles overlap at least; by half a tile by default.
        limit: The most tiles in one call; None is no limit.

    Attributes:
        starts: The first points of the tiles in each direction.
        tiles: How many there are.

    Raises:
        ValueError: for a canvas of other channels or directions, or smaller than a tile; an overlap that is negative or
            as wide as a tile; a limit below 1.
    """

    def __init__(
        self, tile: Sequence[int], canvas: Sequence[int], overlap: int | None = None, limit: int | None = None
    ) -> None:
        self.tile, self.canvas, self.limit = tuple(tile), tuple(canvas), limit
        if len(tile) != len(canvas) or tile[0] != canvas[0]:
            raise ValueError(
                f"samples {self.canvas} are not cut into tiles {self.tile}: channels and directions must be the same"
            )
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1 row, got {limit}")
        self.starts = tuple(tile_starts(n, w, overlap) for n, w in zip(self.canvas[1:], self.tile[1:], strict=True))
        self.tiles = math.prod(map(len, self.starts))
        sides = zip(self.canvas[1:], self.tile[1:], self.starts, strict=True)
        self._directions = [_direction(n, w, s) for n, w, s in sides]
        self._copies: dict[tuple[torch.device, torch.dtype], list[Direction]] = {}

    def ask(
        self, f: Callable[[Tensor, Tensor, Cond | None], Tensor], x: Tensor, t: Tensor, cond: Cond | None = None
    ) -> Tensor:
        r"""$\sum_i C_i^\top (w_i \odot f(C_i x, t))$, (B, K, *canvas).

        Arguments:
            f: Called as a denoiser is, with tiles (B, C, *tile); what it says of each of their points, (B, K, *tile).
            x: (B, C, *canvas).
            t: (B,).
            cond: What each tile of a row is told.
        """
        cut, t = self.cut(x), t.repeat(self.tiles)
        cond = map_cond(lambda c: torch.cat([c] * self.tiles), cond)
        rows = len(cut) if self.limit is None else self.limit
        answers = [
            f(cut[n : n + rows], t[n : n + rows], map_cond(lambda c, n=n: c[n : n + rows], cond))
            for n in range(0, len(cut), rows)
        ]
        return self.blend(torch.cat(answers))

    def cut(self, x: Tensor) -> Tensor:
        """The tiles (m * B, C, *tile) of (B, C, *canvas), m = m_1 m_2 ..., those of a place side by side."""
        for axis, direction in enumerate(self._at(x), 2):
            x = x.index_select(axis, direction.cut)
        split = [n for s, w in zip(self.starts, self.tile[1:], strict=True) for n in (len(s), w)]
        x = x.reshape(*x.shape[:2], *split)
        places, points = range(2, x.ndim, 2), range(3, x.ndim, 2)
        return x.permute(*places, 0, 1, *points).reshape(-1, *self.tile)

    def blend(self, tiles: Tensor) -> Tensor:
        """The canvas (B, K, *canvas) from its tiles (m * B, K, *tile): the transpose of `cut`, weighted."""
        D = len(self.starts)
        x = tiles.reshape(*map(len, self.starts), -1, *tiles.shape[1:])
        x = x.permute(D, D + 1, *(axis for d in range(D) for axis in (d, D + 2 + d)))
        x = x.reshape(*x.shape[:2], *(len(s) * w for s, w in zip(self.starts, self.tile[1:], strict=True)))
        for axis, (_, over, weight) in enumerate(self._at(x), 2):
            # Sums of what lies over a point, not of what is scattered to it: in one order on any device.
            width = (-1, *[1] * (x.ndim - 1 - axis))
            parts = [w.reshape(width) * x.index_select(axis, k) for k, w in zip(over, weight, strict=True)]
            x = torch.stack(parts).sum(0)
        return x

    def _at(self, x: Tensor) -> list[Direction]:
        # Copied at every call they would make the host wait for the device each time.
        key = x.device, x.dtype
        if key not in self._copies:
            self._copies[key] = [
                Direction(cut.to(x.device), over.to(x.device), weight.to(x)) for cut, over, weight in self._directions
            ]
        return self._copies[key]


class Tiled(Metered):
    r"""A denoiser of samples (C, *canvas) from one of samples (C, *tile), $D_\square$ above.

    With a single tile it is the denoiser itself, bit for bit; with one that treats every point alike it is that
    denoiser of the canvas. A row of the canvas is as many rows of the network as there are tiles, and counts as those
    (`evaluations`); a call is one call.

    Arguments:
        denoiser: $D$, of samples (C, *tile); it is told the condition of the canvas in each tile.
        tile: The shape of its samples, (C, *tile).
        canvas: The shape of the samples of this one, (C, *canvas).
        overlap: By how many points neighbouring tiles overlap at least; by half a tile by default.
        limit: The most rows of one network call; None is no limit.

    Attributes:
        tiling: How the canvas is cut and blended.
        starts: The first points of the tiles in each direction.
        tiles: How many there are.

    Raises:
        ValueError: as `Tiling` does.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        tile: Sequence[int],
        canvas: Sequence[int],
        overlap: int | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(denoiser)
        self.tiling = Tiling(tile, canvas, overlap, limit)
        self.starts, self.tiles = self.tiling.starts, self.tiling.tiles
        self.evaluations = self.tiles * evaluations(denoiser)

    def answer(self, x_t: Tensor, t: Tensor | float, cond: Cond | None) -> Tensor:
        return self.tiling.ask(self.denoiser, x_t, each_row(t, x_t), cond)


def tile_starts(n: int, w: int, overlap: int | None = None) -> tuple[int, ...]:
    r"""The first points of the fewest tiles of width $w$ that cover $n$ points and overlap by at least $o$ = `overlap`,

    $$ m = \Big\lceil \frac{n - o}{w - o} \Big\rceil, \qquad s_i = \mathrm{round} \, \frac{i \, (n - w)}{m - 1}, $$

    spread evenly; the first begins where the points do, and the last ends where they do.

    Raises:
        ValueError: unless $n \ge w$ and $0 \le o < w$.
    """
    overlap = w // 2 if overlap is None else overlap
    if not 0 <= overlap < w:
        raise ValueError(f"tiles of {w} points overlap by 0 to {w - 1}, got overlap={overlap}")
    if n < w:
        raise ValueError(
            f"{n} points are fewer than the {w} of a tile: enlarge or pad the sample to {w} or more first, or take "
            "a teacher of smaller ones"
        )
    m = max(1, -(-(n - overlap) // (w - overlap)))
    return tuple(round(i * (n - w) / max(1, m - 1)) for i in range(m))


def _direction(n: int, w: int, starts: Sequence[int]) -> Direction:
    cut = torch.tensor([s + q for s in starts for q in range(w)])
    bump = torch.sin(math.pi * (torch.arange(w, dtype=torch.float64) + 0.5) / w) ** 2
    lying = [(cut == p).nonzero().flatten() for p in range(n)]
    K = max(map(len, lying))
    over, weight = torch.zeros(K, n, dtype=torch.int64), torch.zeros(K, n, dtype=torch.float64)
    for p, places in enumerate(lying):
        b = bump[places % w]
        over[: len(places), p], weight[: len(places), p] = places, b / b.sum()
    return Direction(cut, over, weight)
