"""Images of every source have one shape and one range, or an error says why not."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsno.data import Images, check_images, load_images, to_uint8, to_unit

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 6), dtype=np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)


def idx(path: Path, array: np.ndarray, kind: int = 8) -> Path:
    header = struct.pack(">HBB", 0, kind, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + array.tobytes())
    return path


def test_digits() -> None:
    digits = load_images("digits")
    assert isinstance(digits, Images) and digits.name == "digits"
    assert len(digits) == 1797 and digits.shape == (1, 8, 8) and digits.x.dtype == torch.float32
    assert float(digits.x.min()) == -1 and float(digits.x.max()) == 1
    assert (
        digits.labels is not None and digits.labels.shape == (1797,) and digits.labels.unique().tolist() == [*range(10)]
    )


def test_pixels_survive_the_way_to_floats_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(every.float() / 127.5 - 1), every)
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]
    assert torch.allclose(to_unit(torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0])), torch.tensor([0.0, 0.0, 0.5, 0.75, 1.0]))


@pytest.mark.parametrize(
    "array, shape", [(PIXELS, (1, 6, 6)), (COLOURS, (3, 6, 6)), (COLOURS.transpose(0, 3, 1, 2), (3, 6, 6))]
)
def test_arrays_of_bytes(array: np.ndarray, shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    images = load_images(str(tmp_path / "a.npy"))
    assert images.shape == shape and images.labels is None and images.name == "a.npy"
    expected = COLOURS.transpose(0, 3, 1, 2) if shape[0] == 3 else PIXELS[:, None]
    assert np.array_equal(to_uint8(images.x).numpy(), expected)


def test_arrays_of_floats_and_labels(tmp_path: Path) -> None:
    x = np.linspace(-1, 1, 5 * 36).reshape(5, 6, 6)
    np.savez(tmp_path / "a.npz", labels=np.arange(5), pictures=x)
    images = load_images(str(tmp_path / "a.npz"))
    assert images.labels is not None and images.labels.tolist() == [0, 1, 2, 3, 4]
    assert torch.allclose(images.x[:, 0], torch.as_tensor(x, dtype=torch.float32))


@pytest.mark.parametrize("mode, suffix", [("L", "png"), ("RGB", "png"), ("1", "png"), ("P", "png"), ("RGBA", "png")])
def test_a_folder_of_pictures(mode: str, suffix: str, tmp_path: Path) -> None:
    for i in range(5):
        Image.fromarray(COLOURS[i]).convert(mode).save(tmp_path / f"{i}.{suffix}")
    (tmp_path / "notes.txt").write_text("ignored")
    images = load_images(str(tmp_path))
    assert len(images) == 5 and images.shape == ((1, 6, 6) if mode in ("L", "1") else (3, 6, 6))
    if mode in ("RGB", "RGBA"):
        assert np.array_equal(to_uint8(images.x).numpy(), COLOURS.transpose(0, 3, 1, 2))


def test_idx_files_find_their_labels(tmp_path: Path) -> None:
    path = idx(tmp_path / "t-images-idx3-ubyte.gz", PIXELS)
    assert load_images(str(path)).labels is None
    idx(tmp_path / "t-labels-idx1-ubyte.gz", np.arange(5, dtype=np.uint8))
    images = load_images(str(path))
    assert images.labels is not None and images.labels.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(to_uint8(images.x)[:, 0].numpy(), PIXELS)


def test_damaged_idx_files_are_named(tmp_path: Path) -> None:
    whole = idx(tmp_path / "a-ubyte.gz", PIXELS).read_bytes()
    for content in (whole[:-20], b"no gzip", gzip.compress(b""), gzip.compress(gzip.decompress(whole)[:-1])):
        (tmp_path / "a-ubyte.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a-ubyte\.gz is damaged or not an idx file"):
            load_images(str(tmp_path / "a-ubyte.gz"))
    idx(tmp_path / "a-ubyte.gz", PIXELS.astype(">i4"), kind=12)
    with pytest.raises(ValueError, match="of type 12, expected 8"):
        load_images(str(tmp_path / "a-ubyte.gz"))


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((0, 6, 6), np.uint8), "is empty"),
        (np.zeros((5, 6, 6), np.uint8), r"is constant \(every pixel is -1\)"),
        (np.zeros((5, 6), np.uint8), r"must have shape \(N, C, H, W\)"),
        (np.zeros((5, 6, 6, 4), np.uint8), "1 or 3 channels"),
        (PIXELS.astype(np.float32), r"must lie in \[-1, 1\], got \[.*\]: rescale it"),
        (PIXELS.astype(np.int64), r"must lie in \[-1, 1\]"),
        (PIXELS.astype(np.float32) / 255, r"lie in \[0, 1\], expected \[-1, 1\]: store 2 \* x - 1, or uint8"),
        (np.full((5, 6, 6), np.nan), "not finite"),
    ],
)
def test_unusable_arrays_are_refused(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=message):
        load_images(str(tmp_path / "a.npy"))


def test_labels_must_match(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", labels=np.arange(4), pictures=PIXELS)
    with pytest.raises(ValueError, match=r"has 5 images but labels of shape \(4,\)"):
        load_images(str(tmp_path / "a.npz"))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"code": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_images(str(tmp_path / "a.npy"))


def test_damaged_arrays_and_pictures_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PIXELS)
    np.savez(tmp_path / "a.npz", PIXELS)
    Image.fromarray(np.tile(PIXELS[0], (20, 20))).save(tmp_path / "a.png")
    for name in ("a.npy", "a.npz", "a.png"):
        whole = (tmp_path / name).read_bytes()
        for content in (whole[: len(whole) // 2], b"neither", b""):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=rf"{name} is damaged or not"):
                load_images(str(tmp_path if name == "a.png" else tmp_path / name))


def test_unusable_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no PNG or JPEG files"):
        load_images(str(tmp_path))
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    Image.fromarray(PIXELS[0, :3]).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b\.png is \(3, 6\), a\.png is \(6, 6\): sizes must agree"):
        load_images(str(tmp_path))
    # Pillow would clip sixteen bits to eight: all white.
    Image.fromarray(PIXELS[0].astype(np.uint16) * 256).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png has more than 8 bits"):
        load_images(str(tmp_path))


@pytest.mark.parametrize("source", ["digit", "nowhere.npy", "nowhere-ubyte.gz"])
def test_an_unknown_source_says_what_is_known(source: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"no image set '{source}': expected 'digits', a folder"):
        load_images(source)


def test_an_npz_without_images_says_what_it_has(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", labels=np.arange(4))
    with pytest.raises(ValueError, match="has no image array; it has labels"):
        load_images(str(tmp_path / "a.npz"))


def test_generated_images_are_checked_by_the_same_rule() -> None:
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    assert check_images(x) is x
    with pytest.raises(ValueError, match="the set must lie in"):
        check_images(2 * x, "the set")
