"""A picture is read as viewers show it, by whatever road it comes."""

from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from dsno.data.load import load_data
from dsno.data.pictures import read_pictures
from dsno.data.samples import to_uint8

STORED = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
SHOWN = {
    1: STORED,
    2: STORED[:, ::-1],
    3: STORED[::-1, ::-1],
    4: STORED[::-1],
    5: STORED.T,
    6: STORED[::-1].T,
    7: STORED[::-1, ::-1].T,
    8: STORED.T[::-1],
}
"""What the eight values of EXIF's orientation mean for the stored rows and columns (EXIF 2.32, tag 274)."""

FORMATS = {"jpg": {"quality": 100}, "png": {}, "tif": {}, "webp": {"lossless": True}}


def turned(path: Path, orientation: int, **options: object) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.kron(STORED, np.ones((8, 8), np.uint8))).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("orientation", SHOWN)
def test_a_picture_is_turned_as_its_orientation_says(suffix: str, orientation: int, tmp_path: Path) -> None:
    file = turned(tmp_path / f"a.{suffix}", orientation, **FORMATS[suffix])
    read = np.asarray(read_pictures([("a", file.read_bytes)], None, 255))[0]
    grey = read if read.ndim == 2 else read[..., 0]
    assert np.abs(grey[::8, ::8].astype(int) - SHOWN[orientation]).max() <= 2
    whole = to_uint8(load_data(tmp_path).x)[0, 0].numpy()
    assert np.array_equal(whole, grey)


def test_folders_archives_and_tables_agree_on_it(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    (folder := tmp_path / "photos").mkdir()
    files = [turned(folder / f"{k}.png", k) for k in (5, 6, 7, 8)]
    with ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in files:
            archive.write(file, file.name)
    paths = datasets.Dataset.from_dict({"image": [str(file) for file in files]})
    paths.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "table")
    # Parquet files of bytes, as other tools write them: without a word on what they are.
    raw = datasets.Dataset.from_dict({"image": [{"bytes": file.read_bytes(), "path": None} for file in files]})
    raw.to_parquet(tmp_path / "a.parquet")
    x = load_data(folder).x
    assert x.shape == (4, 1, 24, 16)
    for other in ("a.zip", "table", "a.parquet"):
        assert (load_data(tmp_path / other).x == x).all(), other


def test_a_stack_of_pages_is_no_picture(tmp_path: Path) -> None:
    pages = [Image.fromarray(STORED) for _ in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=r"a\.tif has 3 pages: save each"):
        load_data(tmp_path)
