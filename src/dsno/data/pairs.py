"""Pairs of pictures: a degraded one and the clean one that belongs to it, row for row.

| source | pairs |
|---|---|
| two folders | pictures of the same name, whatever their suffix; in sub-folders alike |
| one folder | pictures of twice the width, degraded on the left and clean on the right (pix2pix) |
| `hf:org/name[:split]`, a dataset's folder or `*.parquet` | two columns of a Hugging Face dataset |
| two of anything else that `load_data` takes | row for row |

Bytes are mapped from 0..255 to [-1, 1], as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dsno.data.files import holds_any
from dsno.data.hub import SAVED
from dsno.data.load import load_data
from dsno.data.pictures import PICTURES
from dsno.data.samples import PIXELS, Affine, Samples, resized
from dsno.listing import entries

__all__ = ["Pairs", "load_pairs"]


@dataclass(frozen=True)
class Pairs:
    r"""Degraded samples and the clean ones that belong to them.

    Attributes:
        start: $x_T$, (N, C, *spatial) float32.
        x: $x_0$, of the same shape.
        name: Where they came from.
        units: The map from both to the numbers that were given.
        problem: What made $x_T$ of $x_0$, in words, where they were made so.

    Raises:
        ValueError: if the two differ in number or shape.
    """

    start: Tensor
    x: Tensor
    name: str
    units: Affine = PIXELS
    problem: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if len(self.start) != len(self.x):
            raise ValueError(f"{self.name}: {len(self.start)} and {len(self.x)} samples do not pair: expected as many")
        if self.start.shape != self.x.shape:
            raise ValueError(
                f"{self.name} are pairs of different sizes or modes, {tuple(self.start.shape[1:])} and "
                f"{tuple(self.x.shape[1:])}: resize them to one (`size`), and save both in colour or both in grey"
            )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *spatial)."""
        return tuple(self.x.shape[1:])


def load_pairs(
    degraded: str | Path,
    clean: str | Path | None = None,
    *,
    columns: Sequence[str] | None = None,
    size: int | None = None,
) -> Pairs:
    """Load pairs of any form of the table above.

    Arguments:
        degraded: Where the degraded samples are, or both.
        clean: Where the clean ones are; None where `degraded` holds both.
        columns: The columns (degraded, clean) of a Hugging Face dataset.
        size: Make pictures `size` x `size`; those of one folder side by side are cut first.

    Raises:
        FileNotFoundError: if a source is missing.
        ValueError: if names do not pair, with the first five that miss; for pairs of different sizes or modes; where
            one source is given and holds no pairs; or as `load_data`.
    """
    if clean is not None:
        if columns is not None:
            raise ValueError("columns are of one dataset that holds both: give it alone")
        if _is_pictures(degraded) and _is_pictures(clean):
            _check_names(Path(degraded), Path(clean))
        made = [load_data(source, size=size) for source in (degraded, clean)]
        return _paired(made[0], made[1], f"{degraded} and {clean}")
    if columns is not None:
        if len(columns) != 2:
            raise ValueError(f"pairs have two columns, (degraded, clean), got {len(columns)}")
        made = [load_data(degraded, size=size, key=column) for column in columns]
        return _paired(made[0], made[1], str(degraded))
    if not _is_pictures(degraded):
        raise ValueError(
            f"{degraded} alone is no pairs: give a second source, a folder of pictures side by side, or the two "
            "columns of a dataset"
        )
    return _side_by_side(load_data(degraded), size)


def _is_pictures(source: str | Path) -> bool:
    """Whether a source is a folder of pictures."""
    return Path(source).is_dir() and not holds_any(Path(source), *SAVED)


def _paired(start: Samples, clean: Samples, name: str) -> Pairs:
    x_T, x_0 = start.x, clean.x
    if {x_T.shape[1], x_0.shape[1]} == {1, 3} and x_0.shape[1] == 3:
        # Edges are often saved in grey beside a picture in colour, and are the same picture in colour.
        x_T = x_T.expand(-1, 3, *x_T.shape[2:]).contiguous()
    return Pairs(x_T, x_0, name, clean.units)


def _side_by_side(both: Samples, size: int | None) -> Pairs:
    width = both.shape[-1]
    if width % 2:
        raise ValueError(f"{both.name} has pictures {width} wide: two side by side have an even width")
    left, right = both.x.chunk(2, -1)
    made = [Samples(half.contiguous(), None, both.name, both.units) for half in (left, right)]
    if size is not None:
        made = [resized(half, size) for half in made]
    return _paired(made[0], made[1], both.name)


def _check_names(degraded: Path, clean: Path) -> None:
    """Refuse folders whose pictures do not pair by name.

    Raises:
        ValueError: with the first five names that miss, and where.
    """
    names = {folder: _names(folder) for folder in (degraded, clean)}
    for folder, held in names.items():
        if twice := next((name for n, name in enumerate(held) if name in held[:n]), None):
            raise ValueError(f"{folder} has two pictures called {twice}: names must tell pairs apart")
    missing = [
        f"{name} (not in {there})"
        for here, there in ((degraded, clean), (clean, degraded))
        for name in names[here]
        if name not in {*names[there]}
    ]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ValueError(f"{degraded} and {clean} do not pair by name: {', '.join(missing[:5])}{more}")
    if names[degraded] != names[clean]:
        raise ValueError(f"{degraded} and {clean} are in another order: save their pictures with one suffix")


def _names(folder: Path) -> list[str]:
    """The names of the pictures that `load_data` reads of a folder, without their suffix, in its order."""
    found = [p for p in (*entries(folder), *entries(folder, "*/*")) if p.suffix.lower() in PICTURES]
    names = [p.relative_to(folder).with_suffix("").as_posix() for p in found]
    return [name for name in names if "/" not in name] or names
