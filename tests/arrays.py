"""Arrays that tests of data sets write to files."""

import gzip
import struct
from pathlib import Path

import numpy as np

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 6), dtype=np.uint8)

COLOURS = np.random.default_rng(1).integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)

NUMBERS = np.random.default_rng(2).normal(size=(7, 2, 8, 9, 10))


def gzipped_idx(path: Path, array: np.ndarray, kind: int = 8) -> Path:
    header = struct.pack(">HBB", 0, kind, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + array.tobytes())
    return path


def saved(array: np.ndarray, folder: Path) -> Path:
    np.save(folder / "a.npy", array)
    return folder / "a.npy"
