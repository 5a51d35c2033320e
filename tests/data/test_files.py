"""Pictures, arrays and idx files: what is read of each, and what is refused by its name."""

import gzip
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from arrays import COLOURS, NUMBERS, PIXELS, gzipped_idx, saved
from dsno.data.load import load_data
from dsno.data.samples import to_uint8


def test_one_of_several_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", first=PIXELS, second=COLOURS)
    with pytest.raises(ValueError, match="has several arrays, first, second: say which with key="):
        load_data(tmp_path / "a.npz")
    assert load_data(tmp_path / "a.npz", key="second").shape == (3, 6, 6)
    with pytest.raises(ValueError, match="has no array 'third'; it has first, second"):
        load_data(tmp_path / "a.npz", key="third")


def test_transparent_pixels_show_the_background(tmp_path: Path) -> None:
    rgba = np.concatenate([COLOURS, np.full((5, 6, 6, 1), 255, np.uint8)], -1)
    rgba[:, 0, :, 3], rgba[:, 1, :, 3] = 0, 51
    np.savez(tmp_path / "a.npz", rgba=rgba)
    Image.fromarray(rgba[0]).save(tmp_path / "a.png")
    for background, grey in (({}, 255), ({"background": 7}, 7), ({"background": (7, 7, 7)}, 7)):
        for source in (tmp_path / "a.npz", saved(rgba, tmp_path), tmp_path):
            got = to_uint8(load_data(source, **background).x).permute(0, 2, 3, 1).numpy()
            assert (got[:, 0] == grey).all() and np.array_equal(got[:, 2:], COLOURS[: len(got), 2:])
            assert abs(got[:, 1] - (0.2 * COLOURS[: len(got), 1] + 0.8 * grey)).max() <= 0.5
    # Four channels that are told to be channels stay.
    assert load_data(saved(rgba, tmp_path), channels="last").shape == (4, 6, 6)


@pytest.mark.parametrize("group", [False, True])
def test_zarr(group: bool, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    path = str(tmp_path / "a.zarr")
    if group:
        root = zarr.open_group(path, mode="w")
        root.create_array("x", data=NUMBERS[..., 0])
        root.create_array("labels", data=np.arange(7))
    else:
        zarr.save_array(path, NUMBERS[..., 0])
    samples = load_data(path, channels="first")
    assert torch.equal(samples.x, torch.from_numpy(NUMBERS[..., 0]).float())
    assert (samples.labels is not None) == group
    for file in (tmp_path / "a.zarr").glob("zarr.json"):
        file.write_text("{")
    with pytest.raises(ValueError, match=r"a\.zarr is damaged or not a zarr array"):
        load_data(path, channels="first")


@pytest.mark.parametrize("mode, suffix", [("L", "png"), ("RGB", "png"), ("1", "png"), ("P", "png"), ("RGBA", "png")])
def test_a_folder_of_pictures(mode: str, suffix: str, tmp_path: Path) -> None:
    for i in range(5):
        Image.fromarray(COLOURS[i]).convert(mode).save(tmp_path / f"{i}.{suffix}")
    (tmp_path / "notes.txt").write_text("ignored")
    images = load_data(str(tmp_path))
    assert len(images) == 5 and images.shape == ((1, 6, 6) if mode in ("L", "1") else (3, 6, 6))
    if mode in ("RGB", "RGBA"):
        assert np.array_equal(to_uint8(images.x).numpy(), COLOURS.transpose(0, 3, 1, 2))


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    for i, name in enumerate(["dog", "cat", "dog", "ape"]):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(PIXELS[i]).save(tmp_path / name / f"{i}.png")
    (tmp_path / "empty").mkdir()
    images = load_data(tmp_path)
    assert images.labels is not None and images.labels.tolist() == [0, 1, 2, 2]
    assert np.array_equal(to_uint8(images.x)[:, 0].numpy(), PIXELS[[3, 1, 0, 2]])


def test_grey_and_coloured_pictures_of_different_sizes(tmp_path: Path) -> None:
    Image.fromarray(COLOURS[0]).save(tmp_path / "a.png")
    Image.fromarray(np.tile(PIXELS[0], (2, 4))).save(tmp_path / "b.png")
    images = load_data(tmp_path, size=6)
    assert images.shape == (3, 6, 6) and torch.equal(images.x[1, 0], images.x[1, 2])
    assert np.array_equal(to_uint8(images.x[0]).numpy(), COLOURS[0].transpose(2, 0, 1))
    # The square in the middle of 12 x 24, averaged over 2 x 2.
    middle = torch.from_numpy(np.tile(PIXELS[0], (2, 4))[:, 6:18] / 127.5 - 1).reshape(6, 2, 6, 2).mean((1, 3))
    assert torch.allclose(images.x[1, 0], middle.float(), atol=1e-5)


def test_unusable_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no PNG or JPEG files"):
        load_data(str(tmp_path))
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    Image.fromarray(PIXELS[0, :3]).save(tmp_path / "b.png")
    with pytest.raises(
        ValueError, match=r"b\.png is \(3, 6\), .*a\.png is \(6, 6\): sizes must agree, or load them with"
    ):
        load_data(str(tmp_path))
    # Pillow would clip sixteen bits to eight: all white.
    Image.fromarray(PIXELS[0].astype(np.uint16) * 256).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png has more than 8 bits"):
        load_data(str(tmp_path))


def test_idx_files_find_their_labels(tmp_path: Path) -> None:
    path = gzipped_idx(tmp_path / "t-images-idx3-ubyte.gz", PIXELS)
    assert load_data(str(path)).labels is None
    gzipped_idx(tmp_path / "t-labels-idx1-ubyte.gz", np.arange(5, dtype=np.uint8))
    images = load_data(str(path))
    assert images.labels is not None and images.labels.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(to_uint8(images.x)[:, 0].numpy(), PIXELS)


def test_damaged_idx_files_are_named(tmp_path: Path) -> None:
    whole = gzipped_idx(tmp_path / "a-ubyte.gz", PIXELS).read_bytes()
    for content in (whole[:-20], b"no gzip", gzip.compress(b""), gzip.compress(gzip.decompress(whole)[:-1])):
        (tmp_path / "a-ubyte.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a-ubyte\.gz is damaged or not an idx file"):
            load_data(str(tmp_path / "a-ubyte.gz"))
    gzipped_idx(tmp_path / "a-ubyte.gz", PIXELS.astype(">i4"), kind=12)
    with pytest.raises(ValueError, match="of type 12, expected 8"):
        load_data(str(tmp_path / "a-ubyte.gz"))


def test_a_set_of_the_size_of_mnist_loads_at_once(tmp_path: Path) -> None:
    path = gzipped_idx(tmp_path / "t-images-idx3-ubyte.gz", np.tile(np.arange(28, dtype=np.uint8), (60_000, 28, 1)))
    began = time.process_time()
    assert load_data(path).x.shape == (60_000, 1, 28, 28)
    assert time.process_time() - began < 3


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    for module, source, extra in (("datasets", "hf:org/name", "data"), ("zarr", str(tmp_path / "a.zarr"), "data")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ModuleNotFoundError, match=rf"needs the package '{module}': pip install 'dsno\[{extra}\]'"):
            load_data(source)


def test_labels_of_arrays_are_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=PIXELS, labels=np.array(["dog", "cat", "dog", "cat", "ape"]))
    samples = load_data(tmp_path / "a.npz")
    assert samples.labels.tolist() == [2, 1, 2, 1, 0] and samples.names == ("ape", "cat", "dog")
    np.savez(tmp_path / "a.npz", x=PIXELS, name=np.array(["b/1", "a/1", "b/2", "a/2", "b/3"]))
    samples = load_data(tmp_path / "a.npz")
    assert samples.labels.tolist() == [1, 0, 1, 0, 1] and samples.names == ("a", "b")
    for labels in ([0, np.nan, 1, 2, 0], [0, 0.5, 1, 2, 0], [0, -1, 1, 2, 0]):
        np.savez(tmp_path / "a.npz", x=PIXELS, labels=np.array(labels))
        with pytest.raises(ValueError, match=r"a\.npz, row 1 has (no|the) label"):
            load_data(tmp_path / "a.npz")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"code": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="holds Python objects, which could run code"):
        load_data(str(tmp_path / "a.npy"))


def test_damaged_arrays_and_pictures_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PIXELS)
    np.savez(tmp_path / "a.npz", PIXELS)
    Image.fromarray(np.tile(PIXELS[0], (20, 20))).save(tmp_path / "a.png")
    for name in ("a.npy", "a.npz", "a.png"):
        whole = (tmp_path / name).read_bytes()
        for content in (whole[: len(whole) // 2], b"neither", b""):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=rf"{name} is damaged or not"):
                load_data(str(tmp_path if name == "a.png" else tmp_path / name))


def test_an_npz_without_samples_says_what_it_has(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", labels=np.arange(4))
    with pytest.raises(ValueError, match="has no array of samples; it has labels"):
        load_data(str(tmp_path / "a.npz"))
