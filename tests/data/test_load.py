"""Samples of every source have one layout and one range, or an error says why not."""

import gzip
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsno.data.load import load_data
from dsno.data.samples import Affine, Samples, check_images, check_samples, resized, split, to_uint8, to_unit

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 6), dtype=np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)
NUMBERS = np.random.default_rng(2).normal(size=(7, 2, 8, 9, 10))


def idx(path: Path, array: np.ndarray, kind: int = 8) -> Path:
    header = struct.pack(">HBB", 0, kind, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + array.tobytes())
    return path


def saved(array: np.ndarray, folder: Path) -> Path:
    np.save(folder / "a.npy", array)
    return folder / "a.npy"


def test_digits() -> None:
    digits = load_data("digits")
    assert isinstance(digits, Samples) and digits.name == "digits"
    assert len(digits) == 1797 and digits.shape == (1, 8, 8) and digits.x.dtype == torch.float32
    assert float(digits.x.min()) == -1 and float(digits.x.max()) == 1
    assert digits.labels is not None and digits.labels.shape == (1797,)
    assert digits.labels.unique().tolist() == [*range(10)]
    assert digits.restore(digits.x[:100]).unique().tolist() == [*range(17)]


def test_pixels_survive_the_way_to_floats_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(every.float() / 127.5 - 1), every)
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]
    assert torch.allclose(to_unit(torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0])), torch.tensor([0.0, 0.0, 0.5, 0.75, 1.0]))


# Arrays


@pytest.mark.parametrize(
    "array, shape", [(PIXELS, (1, 6, 6)), (COLOURS, (3, 6, 6)), (COLOURS.transpose(0, 3, 1, 2), (3, 6, 6))]
)
def test_arrays_of_bytes(array: np.ndarray, shape: tuple[int, ...], tmp_path: Path) -> None:
    images = load_data(str(saved(array, tmp_path)))
    assert images.shape == shape and images.labels is None and images.name == "a.npy"
    expected = COLOURS.transpose(0, 3, 1, 2) if shape[0] == 3 else PIXELS[:, None]
    assert np.array_equal(to_uint8(images.x).numpy(), expected)
    assert torch.allclose(images.restore(images.x), torch.from_numpy(expected).float(), atol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("channels", ["first", "last", "none"])
def test_arrays_of_every_rank(rank: int, channels: str, tmp_path: Path) -> None:
    expected = NUMBERS[(..., *[0] * (3 - rank))]
    if channels == "none":
        expected = expected[:, :1]
    given = {"first": expected, "last": np.moveaxis(expected, 1, -1), "none": expected[:, 0]}[channels]
    samples = load_data(saved(given, tmp_path), channels=channels)
    assert samples.shape == expected.shape[1:] and samples.x.dtype == torch.float32
    assert torch.equal(samples.x, torch.from_numpy(expected).float()) and samples.units == Affine()
    if channels == "none" and rank < 3:
        assert load_data(saved(given, tmp_path)).shape == samples.shape


@pytest.mark.parametrize("shape", [(5, 64, 2), (5, 2, 64), (5, 8, 9, 10), (5, 2, 8, 9), (5, 8, 9, 10, 2)], ids=str)
def test_where_the_channels_are_is_not_guessed(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = saved(np.random.default_rng(0).normal(size=shape), tmp_path)
    with pytest.raises(
        ValueError, match=r"does not tell where the channels are: load it with channels='first', 'last'"
    ):
        load_data(path)


def test_arrays_of_floats_and_labels(tmp_path: Path) -> None:
    x = np.linspace(-1, 1, 5 * 36).reshape(5, 6, 6)
    np.savez(tmp_path / "a.npz", labels=np.arange(5), pictures=x, names=np.array([*"abcde"]))
    images = load_data(str(tmp_path / "a.npz"))
    assert images.labels is not None and images.labels.tolist() == [0, 1, 2, 3, 4]
    assert torch.allclose(images.x[:, 0], torch.as_tensor(x, dtype=torch.float32))


def test_one_of_several_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", first=PIXELS, second=COLOURS)
    with pytest.raises(ValueError, match="has several arrays, first, second: say which with key="):
        load_data(tmp_path / "a.npz")
    assert load_data(tmp_path / "a.npz", key="second").shape == (3, 6, 6)
    with pytest.raises(ValueError, match="has no array 'third'; it has first, second"):
        load_data(tmp_path / "a.npz", key="third")


def test_physical_units_come_back(tmp_path: Path) -> None:
    # Millikelvins on room temperature, beside a pressure in pascals: neither is representable in float32 as it is.
    x = np.stack([293.15 + 1e-3 * NUMBERS[:, 0], 101_325 + 50 * NUMBERS[:, 1]], 1)
    path = saved(x, tmp_path)
    with pytest.raises(ValueError, match=r"standard deviation .*, expected about 1: load it with scale='std'"):
        load_data(path, channels="first")
    for scale in ("std", "range"):
        samples = load_data(path, channels="first", scale=scale)
        for c in range(2):
            part = samples.x[:, c]
            if scale == "std":
                assert abs(float(part.mean())) < 1e-5 and abs(float(part.std()) - 1) < 1e-5
            else:
                assert float(part.min()) == pytest.approx(-1) and float(part.max()) == pytest.approx(1)
        back = samples.restore(samples.x.double()).numpy() - x
        assert abs(back[:, 0]).max() < 1e-8 and abs(back[:, 1]).max() < 1e-3
    (shift, _), (spread, _) = samples.units.shift, samples.units.scale
    assert shift == pytest.approx(293.15, abs=0.1) and 1e-3 < spread < 1e-2


def test_pixels_can_be_standardised_too(tmp_path: Path) -> None:
    samples = load_data(saved(PIXELS, tmp_path), scale="std")
    assert abs(float(samples.x.mean())) < 1e-6
    assert np.array_equal(samples.restore(samples.x)[:, 0].round().numpy(), PIXELS)


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


# Pictures


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


def test_resized_images() -> None:
    x = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (3, 1, 28, 28))).float()
    images = Samples(x, torch.arange(3), "here")
    padded, halved = resized(images, 32), resized(images, 16)
    assert torch.equal(padded.x[..., 2:30, 2:30], x) and bool((padded.x[..., :2] == x.min()).all())
    assert torch.allclose(halved.x, padded.x.reshape(3, 1, 16, 2, 16, 2).mean((3, 5)), atol=1e-6)
    assert resized(images, 28) is images and torch.equal(halved.labels, images.labels)
    # Colours are not padded; a constant stays one under any interpolation.
    for size in (14, 16, 20, 32, 40):
        assert torch.allclose(
            resized(Samples(torch.full((2, 3, 28, 30), 0.3), None, "here"), size).x, torch.tensor(0.3)
        )
    # Antialiased: the finest pattern vanishes where every other pixel would keep it.
    stripes = torch.ones(1, 1, 30, 30)
    stripes[..., ::2] = -1
    assert float(resized(Samples(stripes, None, "here"), 12).x[..., 2:-2].abs().max()) < 0.2
    with pytest.raises(ValueError, match=r"here has samples of shape \(1, 64\): only images \(C, H, W\) are resized"):
        resized(Samples(torch.zeros(2, 1, 64), None, "here"), 32)


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


# Idx files


def test_idx_files_find_their_labels(tmp_path: Path) -> None:
    path = idx(tmp_path / "t-images-idx3-ubyte.gz", PIXELS)
    assert load_data(str(path)).labels is None
    idx(tmp_path / "t-labels-idx1-ubyte.gz", np.arange(5, dtype=np.uint8))
    images = load_data(str(path))
    assert images.labels is not None and images.labels.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(to_uint8(images.x)[:, 0].numpy(), PIXELS)


def test_damaged_idx_files_are_named(tmp_path: Path) -> None:
    whole = idx(tmp_path / "a-ubyte.gz", PIXELS).read_bytes()
    for content in (whole[:-20], b"no gzip", gzip.compress(b""), gzip.compress(gzip.decompress(whole)[:-1])):
        (tmp_path / "a-ubyte.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a-ubyte\.gz is damaged or not an idx file"):
            load_data(str(tmp_path / "a-ubyte.gz"))
    idx(tmp_path / "a-ubyte.gz", PIXELS.astype(">i4"), kind=12)
    with pytest.raises(ValueError, match="of type 12, expected 8"):
        load_data(str(tmp_path / "a-ubyte.gz"))


def test_a_set_of_the_size_of_mnist_loads_at_once(tmp_path: Path) -> None:
    path = idx(tmp_path / "t-images-idx3-ubyte.gz", np.tile(np.arange(28, dtype=np.uint8), (60_000, 28, 1)))
    began = time.process_time()
    assert load_data(path).x.shape == (60_000, 1, 28, 28)
    assert time.process_time() - began < 3


# Hugging Face datasets


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = pytest.importorskip("datasets")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    module.disable_progress_bars()
    return module


def test_a_saved_dataset_of_pictures(datasets, tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict(
        {"picture": [Image.fromarray(p) for p in COLOURS], "kind": [0, 1, 1, 0, 1]},
        features=datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"])}),
    )
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(test=made.select([0]), other=made).save_to_disk(tmp_path / "two")
    images = load_data(tmp_path / "one")
    assert np.array_equal(to_uint8(images.x).numpy(), COLOURS.transpose(0, 3, 1, 2))
    assert images.labels is not None and images.labels.tolist() == [0, 1, 1, 0, 1] and images.name == "one"
    assert load_data(f"hf:{tmp_path / 'one'}", size=3).shape == (3, 3, 3)
    assert len(load_data(f"hf:{tmp_path / 'two'}:other")) == 5
    with pytest.raises(ValueError, match=r"two has several splits: name one of test, other as hf:.*two:split"):
        load_data(tmp_path / "two")
    with pytest.raises(ValueError, match=r"has no split 'more': name one of test, other"):
        load_data(f"hf:{tmp_path / 'two'}:more")
    with pytest.raises(ValueError, match=r"no column 'sound'; it has picture, kind"):
        load_data(tmp_path / "one", key="sound")


def test_parquet_files_of_arrays(datasets, tmp_path: Path) -> None:
    signals = NUMBERS[:, 0, :, 0, 0].astype(np.float32)
    features = datasets.Features(
        {
            "signal": datasets.List(datasets.Value("float32")),
            "pixels": datasets.Array2D((6, 6), "uint8"),
            "label": datasets.Value("int64"),
        }
    )
    made = datasets.Dataset.from_dict(
        {"signal": list(signals[:5]), "pixels": list(PIXELS), "label": [*range(5)]}, features=features
    )
    (folder := tmp_path / "set").mkdir()
    made.to_parquet(folder / "train.parquet")
    for source in (folder / "train.parquet", folder):
        samples = load_data(source, key="signal", channels="none")
        assert torch.equal(samples.x[:, 0], torch.from_numpy(signals[:5])) and samples.shape == (1, 8)
        assert samples.labels is not None and samples.labels.tolist() == [*range(5)]
    # Bytes are pixels although the format widens them.
    assert np.array_equal(to_uint8(load_data(folder, key="pixels").x)[:, 0].numpy(), PIXELS)
    with pytest.raises(ValueError, match="several columns, signal, pixels: say which with key="):
        load_data(folder)
    (folder / "train.parquet").write_bytes(b"neither")
    with pytest.raises(ValueError, match="cannot be read as a dataset"):
        load_data(folder / "train.parquet")


@pytest.mark.parametrize("offline", [False, True])
def test_the_hub_out_of_reach(offline: bool, datasets, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    # An address on which nothing listens, so that no test asks the network.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    began = time.monotonic()
    with pytest.raises(
        ConnectionError, match="the Hub cannot be reached for the dataset 'someone/nothing' .*: check the"
    ):
        load_data("hf:someone/nothing:train")
    for name in ("a/b/c", "./here", "/nowhere/at/all"):
        with pytest.raises(
            FileNotFoundError, match=f"no dataset '{name}': there is no such folder, and on the Hub names"
        ):
            load_data(f"hf:{name}")
    assert time.monotonic() - began < 5


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    for module, source, extra in (("datasets", "hf:org/name", "data"), ("zarr", str(tmp_path / "a.zarr"), "data")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ModuleNotFoundError, match=rf"needs the package '{module}': pip install 'dsno\[{extra}\]'"):
            load_data(source)


# What is refused


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((0, 6, 6), np.uint8), "is empty"),
        (np.zeros((5, 6, 6), np.uint8), r"is constant \(every value is -1\)"),
        (np.zeros((5, 6, 6), np.float32) - 0.5, r"is constant \(every value is -0\.5\)"),
        (np.zeros(5, np.uint8), r"has shape \(5,\), expected \(N, \*spatial\)"),
        (np.zeros((5, 1, 6, 6, 6, 6), np.uint8), r"expected \(N, \*spatial\), .* one to three spatial directions"),
        (PIXELS.astype(np.float32), r"values in \[.*\] with standard deviation 7.*, expected about 1: load it with"),
        (PIXELS.astype(np.int64), r"expected about 1: load it with scale='std'"),
        (PIXELS.astype(np.float32) / 255, r"numbers in \[0, 1\], expected \[-1, 1\] .*: store 2 \* x - 1, or uint8"),
        (np.full((5, 6, 6), np.nan), "not finite"),
        (PIXELS.astype(np.complex64), "holds complex64, expected real numbers"),
        (np.array([["a"] * 3] * 4), "expected real numbers"),
    ],
)
def test_unusable_arrays_are_refused(array: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(saved(array, tmp_path))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"channels": "second"}, "unknown channels 'second': expected one of first, last, none"),
        ({"scale": "log"}, "unknown scale 'log': expected one of range, std"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"channels": "first"}, r"has shape \(5, 6\), expected N samples .* with channels='first'"),
        ({"scale": "std"}, r"channel 0 of a\.npy is constant"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(saved(np.ones((5, 6)), tmp_path), **options)


def test_labels_must_match(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", labels=np.arange(4), pictures=PIXELS)
    with pytest.raises(ValueError, match=r"has 5 samples but labels of shape \(4,\)"):
        load_data(str(tmp_path / "a.npz"))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"code": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
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


@pytest.mark.parametrize("source", ["digit", "nowhere.npy", "nowhere-ubyte.gz", "nowhere.zarr", "nowhere.parquet"])
def test_an_unknown_source_says_what_is_known(source: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"no data '{source}': expected 'digits', a folder"):
        load_data(source)


def test_an_npz_without_samples_says_what_it_has(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", labels=np.arange(4))
    with pytest.raises(ValueError, match="has no array of samples; it has labels"):
        load_data(str(tmp_path / "a.npz"))


def test_what_looks_at_pixels_asks_for_more_than_training() -> None:
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    assert check_images(x) is x and check_samples(x) is x and check_samples(2 * x[:, 0]) is not None
    with pytest.raises(ValueError, match="the set must lie in"):
        check_images(2 * x, "the set")
    with pytest.raises(ValueError, match=r"must have shape \(N, C, H, W\) with 1 or 3 channels"):
        check_images(x.expand(1, 2, 8, 8))


# Parts of a set


def test_a_split_is_a_partition_and_a_function_of_the_seed() -> None:
    samples = Samples(torch.arange(50.0).reshape(50, 1, 1), torch.arange(50), "here", Affine((1.0,), (2.0,)))
    train, held = split(samples, 0.2, seed=3)
    assert (len(train), len(held)) == (40, 10) and train.units == held.units == samples.units
    assert sorted([*train.labels.tolist(), *held.labels.tolist()]) == [*range(50)]
    for part in (train, held):
        assert torch.equal(part.x.flatten().long(), part.labels) and part.labels.tolist() == sorted(
            part.labels.tolist()
        )
    assert torch.equal(split(samples, 0.2, seed=3)[1].labels, held.labels)
    assert not torch.equal(split(samples, 0.2, seed=4)[1].labels, held.labels)
    for fraction in (0.0, 0.001, 1.0, 2.0, -0.5):
        with pytest.raises(ValueError, match="leaves one side empty"):
            split(samples, fraction)
