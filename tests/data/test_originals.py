"""A picture of the user's goes back as it came, or is refused with what to do."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsno.data.originals import as_png, read_original, read_originals

DRAW = np.random.default_rng(0)
GREY = DRAW.integers(0, 256, (5, 7), dtype=np.uint8)
RGB = DRAW.integers(0, 256, (5, 7, 3), dtype=np.uint8)
OPAQUE = np.full((5, 7, 1), 255, np.uint8)


def palette(pixels: np.ndarray) -> Image.Image:
    """Sixteen colours of a picture, so that each keeps its place."""
    colours = pixels.reshape(-1, 3)[:16]
    image = Image.fromarray(DRAW.integers(0, 16, (5, 7), dtype=np.uint8), "P")
    image.putpalette(colours.tobytes())
    return image


@pytest.mark.parametrize(
    "image, mode",
    [
        (Image.fromarray(GREY), "L"),
        (Image.fromarray(RGB), "RGB"),
        (Image.fromarray(GREY > 127), "L"),
        (Image.fromarray(np.concatenate([RGB, OPAQUE], -1), "RGBA"), "RGB"),
        (Image.fromarray(np.concatenate([GREY[..., None], OPAQUE], -1), "LA"), "L"),
        (palette(RGB), "RGB"),
        (palette(np.repeat(GREY[..., None], 3, -1)), "L"),
    ],
    ids=["grey", "rgb", "bits", "opaque rgba", "opaque grey", "palette", "grey palette"],
)
def test_no_byte_changes_on_the_way_there_and_back(image: Image.Image, mode: str, tmp_path: Path) -> None:
    image.save(tmp_path / "a.png")
    original = read_original(tmp_path / "a.png")
    assert (original.name, original.mode) == ("a", mode) and original.x.abs().max() <= 1
    written = Image.open(BytesIO(as_png(original.x)))
    assert written.mode == mode and written.size == (7, 5)
    assert np.array_equal(np.asarray(written), np.asarray(image.convert(mode)))


def test_every_byte_is_its_own_number() -> None:
    x = torch.arange(256).float().reshape(1, 16, 16) / 127.5 - 1
    assert np.array_equal(np.asarray(Image.open(BytesIO(as_png(x)))).ravel(), np.arange(256))


def half_transparent() -> Image.Image:
    return Image.fromarray(np.concatenate([RGB, OPAQUE // 2], -1), "RGBA")


def keyed() -> Image.Image:
    """A palette of which one colour is transparent."""
    image = palette(RGB)
    image.info["transparency"] = int(np.asarray(image)[0, 0])
    return image


@pytest.mark.parametrize(
    "image, suffix, message",
    [
        (half_transparent(), "png", "a.png has transparent pixels, .*: put it on a background first"),
        (keyed(), "png", "a.png has transparent pixels"),
        (Image.fromarray(GREY.astype(np.uint16) * 200), "png", "more than 8 bits per channel, .*: convert it"),
        (Image.fromarray(GREY.astype(np.float32)), "tif", "more than 8 bits per channel"),
        (Image.fromarray(RGB).convert("CMYK"), "jpg", "a.jpg is in CMYK, .*: save it in grey or RGB"),
    ],
    ids=["alpha", "transparent colour", "16 bits", "floats", "cmyk"],
)
def test_what_would_lose_something_is_refused(image: Image.Image, suffix: str, message: str, tmp_path: Path) -> None:
    image.save(tmp_path / f"a.{suffix}")
    with pytest.raises(ValueError, match=message):
        read_original(tmp_path / f"a.{suffix}")


def test_a_picture_of_more_pixels_than_are_taken_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    Image.new("L", (10_000, 8_000)).save(tmp_path / "large.png")
    head = (tmp_path / "large.png").read_bytes()[:64]
    (tmp_path / "head.png").write_bytes(head)
    with pytest.raises(ValueError, match=r"head.png has 10000 x 8000 pixels, and 4,096 are taken at most: make it"):
        read_original(tmp_path / "head.png", 4096)
    Image.new("L", (64, 64)).save(tmp_path / "fits.png")
    assert read_original(tmp_path / "fits.png", 4096).x.shape == (1, 64, 64)


def test_a_folder_gives_its_pictures_each_of_its_own_size(tmp_path: Path) -> None:
    for name, size in (("b.png", (4, 6)), ("a.JPG", (8, 8)), (".hidden.png", (3, 3))):
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / name, "PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    found = read_originals(tmp_path)
    assert [(o.name, tuple(o.x.shape)) for o in found] == [("a", (1, 8, 8)), ("b", (1, 4, 6))]
    assert [o.name for o in read_originals(tmp_path / "b.png")] == ["b"]


def test_an_array_gives_its_pictures_by_number(tmp_path: Path) -> None:
    np.save(tmp_path / "set.npy", DRAW.integers(0, 256, (3, 6, 5, 3), dtype=np.uint8))
    found = read_originals(tmp_path / "set.npy")
    assert [o.name for o in found] == ["set-00000", "set-00001", "set-00002"]
    assert all(o.x.shape == (3, 6, 5) and o.mode == "RGB" for o in found)


def test_what_holds_no_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no picture: expected files .bmp"):
        read_originals(tmp_path)
    with pytest.raises(FileNotFoundError, match="there are no pictures .*nowhere: expected a folder"):
        read_originals(tmp_path / "nowhere")
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="a.png is damaged or not a picture"):
        read_originals(tmp_path)
    np.save(tmp_path / "flow.npy", DRAW.random((3, 2, 6, 6)))
    with pytest.raises(ValueError, match="flow.npy"):
        read_originals(tmp_path / "flow.npy")
    for name in ("a.jpg", "A.webp"):
        Image.fromarray(RGB).save(tmp_path / name)
    with pytest.raises(ValueError, match="A.webp and a.jpg would be written under one name: rename one"):
        read_originals(tmp_path)
