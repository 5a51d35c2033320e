"""Where `dsno sample` puts what it draws: one picture, the numbers, or a folder with a picture of each sample.

A picture holds all samples at once, so there is a number of them that it takes. The other two are written while samples
are drawn, a batch after another, and are as long as the disk is large. Whatever it is appears whole, or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dsno.checkpoint import write_atomically
from dsno.cli.options import new_file
from dsno.outputs import Kind, check_apart, claimed
from dsno.report.pictures import check_grid_size, image_grid

__all__ = ["BATCH", "Piece", "check_place", "check_size", "write_pieces"]

BATCH = 1024
"""The most samples that are drawn at once."""

SAMPLES = Kind("a folder of samples", lambda folder: sorted(folder.glob("seed-*.png")), resumes=False)


@dataclass(frozen=True)
class Piece:
    """Some of the samples: (B, *shape) in [-1, 1] on the host, their seeds (B,), and their labels (B,) if they have."""

    samples: Tensor
    seeds: Tensor
    labels: Tensor | None = None

    def captions(self) -> list[str]:
        """Seeds, and labels where there are any."""
        labels = [None] * len(self.seeds) if self.labels is None else self.labels.tolist()
        return [
            f"{seed}" if label is None else f"{seed} · {label}"
            for seed, label in zip(self.seeds.tolist(), labels, strict=True)
        ]

    def names(self) -> list[str]:
        """Of files, in the order of the seeds."""
        labels = [None] * len(self.seeds) if self.labels is None else self.labels.tolist()
        return [
            f"seed-{seed:08d}.png" if label is None else f"seed-{seed:08d}-label-{label}.png"
            for seed, label in zip(self.seeds.tolist(), labels, strict=True)
        ]


def check_place(out: Path, overwrite: bool, inputs: Sequence[object]) -> None:
    """Make sure that samples may be written to `out`, before any work.

    Raises:
        FileExistsError, PermissionError: as `new_file` does.
        ValueError: for a name that does not say what is to be written.
    """
    check_apart(out, *inputs)
    if out.suffix not in ("", ".png", ".npy"):
        raise ValueError(
            f"{out} is neither .png, a picture, nor .npy, the numbers, nor a folder, for a picture of each sample: "
            "the name says what is written"
        )
    if out.suffix:
        new_file(out, overwrite, *inputs)


def check_size(out: Path, count: int, shape: Sequence[int]) -> None:
    """Make sure that so many samples of a shape fit into `out`.

    Raises:
        ValueError: if they do not.
    """
    if out.suffix != ".npy" and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise ValueError(f"samples of shape {tuple(shape)} are no pictures: write the numbers, --out samples.npy")
    if out.suffix == ".png":
        try:
            check_grid_size((count, *shape))
        except ValueError as error:
            raise ValueError(f"{error}, or write --out samples.npy or a folder of pictures, --out samples") from None
    if out.suffix == ".npy":
        needed, free = 4 * count * int(np.prod(shape)), shutil.disk_usage(out.resolve().parent).free
        if needed > free:
            raise ValueError(
                f"{count} samples need {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free: draw fewer"
            )


def write_pieces(out: Path, count: int, pieces: Iterable[Piece], overwrite: bool, inputs: Sequence[object]) -> None:
    """Write `count` samples, drawn while they are written.

    Raises:
        FileExistsError, PermissionError: as `claimed` does.
        ValueError: as `check_size` does, by the shape of the first ones.
    """
    if not out.suffix:
        with claimed(out, SAMPLES, overwrite=overwrite, inputs=inputs):
            for piece in _checked(out, count, pieces):
                for sample, name in zip(piece.samples, piece.names(), strict=True):
                    write_atomically(out / name, partial(_picture, sample[None], ()))
    elif out.suffix == ".npy":
        write_atomically(out, lambda path: _numbers(path, out, count, pieces))
    else:
        held = [*_checked(out, count, pieces)]
        captions = [caption for piece in held for caption in piece.captions()]
        write_atomically(out, partial(_picture, torch.cat([piece.samples for piece in held]), captions))


def _checked(out: Path, count: int, pieces: Iterable[Piece]) -> Iterable[Piece]:
    for n, piece in enumerate(pieces):
        if n == 0:
            check_size(out, count, piece.samples.shape[1:])
        yield piece


def _picture(images: Tensor, captions: Sequence[str], path: Path) -> None:
    path.write_bytes(image_grid(images, captions=captions))


def _numbers(path: Path, out: Path, count: int, pieces: Iterable[Piece]) -> None:
    """An array (count, *shape) of float32, written row by row."""
    done = 0
    with path.open("wb") as file:
        for piece in _checked(out, count, pieces):
            if done == 0:
                form = {"descr": "<f4", "fortran_order": False, "shape": (count, *piece.samples.shape[1:])}
                np.lib.format.write_array_header_1_0(file, form)
            file.write(piece.samples.float().numpy().astype("<f4").tobytes())
            done += len(piece.samples)
