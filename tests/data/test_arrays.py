"""What an array file declares is what it holds, or it is refused before it is read."""

import gzip
import json
import os
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arrays import PIXELS, saved
from dsno.data.load import load_data


def header(shape: str, descr: str = "'<f4'", version: int = 1) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("(1000000000000, 4)") + bytes(99), r"declares shape \(1000000000000, 4\) of float32, .* and holds 99"),
        (header("(-4, 4)") + bytes(64), "declares shape"),
        (header("(2, 2)", "'|O'") + bytes(99), "holds Python objects, which could run code"),
        (header("(2, 2)", "[('a', '|O')]") + bytes(99), "holds Python objects"),
        (header("(2, 2)", version=3) + bytes(99), r"of format \(3, 0\)"),
        (header("(" * 9000), "multi-line"),
        (header("(2," + " " * 20_000 + "2)") + bytes(16), "Header info length"),
        (b"\x93NUMPY", "EOF"),
        (b"", "EOF"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_npy(content: bytes, message: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / ("a.npz" if packed else "a.npy")
    if packed:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", content)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.name} is damaged or not an array file.*{message}"):
        load_data(path)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    began = time.perf_counter()
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("x.npy", b"")
    data = bytearray((tmp_path / "a.npz").read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 2**32 - 2)
    (tmp_path / "a.npz").write_bytes(data)
    (tmp_path / "a-ubyte.gz").write_bytes(gzip.compress(struct.pack(">HBBIII", 0, 8, 3, 2**20, 64, 64) + bytes(99)))
    for name in ("a.npz", "a-ubyte.gz"):
        with pytest.raises(ValueError, match=r"declares \d+ bytes in a file of \d+: more than data shrinks"):
            load_data(tmp_path / name)
    assert time.perf_counter() - began < 5


def test_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    with pytest.raises(ValueError, match=r"a\.png is damaged or not a picture .*exceeds limit of 30 pixels"):
        load_data(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"a\.png is damaged or not a picture .*exceeds limit of 20 pixels"):
        load_data(tmp_path)
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is a pipe or a device: expected a file"):
        load_data(tmp_path)


def described(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / ("zarr.json" if (folder / "zarr.json").exists() else ".zarray")
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))


@pytest.mark.parametrize("version", [2, 3])
def test_zarr(version: int, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    array = np.random.default_rng(0).normal(size=(7, 1, 4, 4))

    def made(name: str) -> Path:
        zarr.save_array(str(tmp_path / name), array, zarr_format=version)
        return tmp_path / name

    assert load_data(made("whole.zarr"), channels="first").shape == (1, 4, 4)
    codec = {"id": "pickle", "protocol": 5} if version == 2 else {"name": "numcodecs.pickle", "configuration": {}}
    key = "filters" if version == 2 else "codecs"
    described(made("pickle.zarr"), lambda held: held.update({key: [codec]}))
    with pytest.raises(ValueError, match=r"pickle\.zarr is damaged .*has the codec '(numcodecs\.)?pickle'"):
        load_data(tmp_path / "pickle.zarr", channels="first")

    def grow(shape: list[int], chunks: list[int]) -> Callable[[dict], object]:
        grid = {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}}}
        return lambda held: held.update({"shape": shape, **({"chunks": chunks} if version == 2 else grid)})

    began = time.perf_counter()
    for shape, chunks, message in (
        ([10**6, 1, 1, 1], [1, 1, 1, 1], "its 1000000 chunks are not there: the store has"),
        ([10**9, 1, 9, 9], [10**9, 1, 9, 9], "declares 648000000000 bytes in a file of"),
        ([7, 1, 4, 4], [0, 1, 4, 4], "damaged or not a zarr array"),
        ([-7, 1, 4, 4], [7, 1, 4, 4], "damaged or not a zarr array"),
    ):
        path = made(f"large{shape}{chunks}.zarr")
        described(path, grow(shape, chunks))
        with pytest.raises(ValueError, match=message):
            load_data(path, channels="first")
    assert time.perf_counter() - began < 5
    os.mkfifo(made("pipe.zarr") / "c1")
    with pytest.raises(ValueError, match=r"c1 is a pipe or a device"):
        load_data(tmp_path / "pipe.zarr", channels="first")


def test_a_group_and_a_zip_hide_nothing(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", attributes={"codecs": ["pickle"]})
    root.create_array("x", data=np.random.default_rng(0).normal(size=(7, 1, 4, 4)))
    assert load_data(tmp_path / "a.zarr", channels="first").shape == (1, 4, 4)
    described(tmp_path / "a.zarr" / "x", lambda held: held.update(codecs=[{"name": "numcodecs.pickle"}]))
    with pytest.raises(ValueError, match="has the codec 'numcodecs.pickle'"):
        load_data(tmp_path / "a.zarr", channels="first")
    with zipfile.ZipFile(tmp_path / "a.zarr.zip", "w") as archive:
        for file in (tmp_path / "a.zarr").rglob("*"):
            archive.write(file, file.relative_to(tmp_path / "a.zarr"))
    with pytest.raises(ValueError, match="has the codec 'numcodecs.pickle'"):
        load_data(tmp_path / "a.zarr.zip", channels="first")


def test_what_is_whole_is_read(tmp_path: Path) -> None:
    assert len(load_data(saved(PIXELS, tmp_path))) == len(PIXELS)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros_like(PIXELS), labels=np.arange(len(PIXELS)))
    with pytest.raises(ValueError, match="constant"):
        load_data(tmp_path / "a.npz")
