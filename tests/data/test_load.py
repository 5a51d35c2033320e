"""Samples of every source have one layout and one range, or an error says why not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from arrays import COLOURS, NUMBERS, PIXELS, saved
from dsno.data.load import load_data
from dsno.data.samples import Affine, Samples, to_uint8


def test_digits() -> None:
    digits = load_data("digits")
    assert isinstance(digits, Samples) and digits.name == "digits"
    assert len(digits) == 1797 and digits.shape == (1, 8, 8) and digits.x.dtype == torch.float32
    assert float(digits.x.min()) == -1 and float(digits.x.max()) == 1
    assert digits.labels is not None and digits.labels.shape == (1797,)
    assert digits.labels.unique().tolist() == [*range(10)]
    assert digits.restore(digits.x[:100]).unique().tolist() == [*range(17)]


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


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((0, 6, 6), np.uint8), "is empty"),
        (np.zeros((5, 6, 6), np.uint8), r"is constant \(every value is -1\)"),
        (np.zeros((5, 6, 6), np.float32) - 0.5, r"is constant \(every value is -0\.5\)"),
        (np.zeros(5, np.uint8), r"has shape \(5,\), expected \(N, \*spatial\)"),
        (np.zeros((5, 1, 6, 6, 6, 6), np.uint8), r"expected \(N, \*spatial\), .* one to three spatial directions"),
        (PIXELS.astype(np.float32), r"numbers in \[\d, 2\d+\], .* range=\(0, 255\), or .* scale='std'"),
        (PIXELS.astype(np.int64) * 2, r"standard deviation 1\d+, expected about 1: load it with scale='std'"),
        (
            PIXELS.astype(np.float32) / 255,
            r"numbers in \[0, 1\], expected \[-1, 1\] .* range=\(0, 1\), or.*uint8",
        ),
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


UNIT = PIXELS / 255


@pytest.mark.parametrize(
    "array, found",
    [
        (np.where(UNIT.max() == UNIT, 1.0000001, UNIT), r"\[.*, 1\], 0\.\d+ of them outside \[0, 1\]"),
        (UNIT * 1.2 - 0.1 * (UNIT < 0.1), r".* of them outside \[0, 1\], .*range=\(0, 1\)"),
        (
            np.where(np.arange(180).reshape(5, 6, 6) == 7, 255, np.arange(180).reshape(5, 6, 6) % 3),
            r"\[0, 255\].*range=\(0, 255\)",
        ),
        (UNIT * 270 - 7, r"\[-7, 256.6\d*\].*range=\(0, 255\)"),
    ],
    ids=["rounding", "a filter", "mostly dark bytes", "bytes and a filter"],
)
def test_numbers_near_the_border_are_not_guessed(array: np.ndarray, found: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"has numbers in {found}"):
        load_data(saved(array, tmp_path))
    as_they_are = load_data(tmp_path / "a.npy", range=(-1, 1)) if abs(array).max() < 1.5 else None
    assert as_they_are is None or np.allclose(as_they_are.x[:, 0].numpy(), array.clip(-1, 1), atol=1e-6)


def test_a_range_that_is_stated_becomes_that_of_images(tmp_path: Path) -> None:
    overshooting = np.concatenate([UNIT, np.full((1, 6, 6), -0.04), np.full((1, 6, 6), 1.07)])
    samples = load_data(saved(overshooting, tmp_path), range=(0, 1))
    assert np.allclose(samples.x[:5, 0].numpy(), 2 * UNIT - 1, atol=1e-6)
    assert bool((samples.x[5] == -1).all()) and bool((samples.x[6] == 1).all())
    assert np.allclose(samples.restore(samples.x)[:5, 0].numpy(), UNIT, atol=1e-6)
    pixels = load_data(saved(PIXELS.astype(np.float32), tmp_path), range=(0, 255))
    assert torch.allclose(pixels.x, load_data(saved(PIXELS, tmp_path)).x, atol=1e-6)
    for options, message in (
        ({"range": (0, 1)}, r"numbers in \[.*\], and not in the range that was stated, \(0, 1\)"),
        ({"range": (1, 0)}, r"range=\(1, 0\) is no range: expected \(least, largest\)"),
        ({"range": (0, 1), "scale": "std"}, "range=.* and scale='std' exclude each other"),
    ):
        with pytest.raises(ValueError, match=message):
            load_data(tmp_path / "a.npy", **options)
    with pytest.raises(ValueError, match="says what the numbers of an array mean, and digits has pictures"):
        load_data("digits", range=(0, 1))


def test_signals_that_swing_around_zero_need_no_range(tmp_path: Path) -> None:
    for numbers in (NUMBERS[:, :, 0, 0], NUMBERS[:, :, 0, 0].clip(-1, 1), abs(NUMBERS[:, :, 0, 0]) * 2):
        assert load_data(saved(numbers, tmp_path), channels="first").x.shape == (7, 2, 10)


def test_labels_must_match(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", labels=np.arange(4), pictures=PIXELS)
    with pytest.raises(ValueError, match=r"has 5 samples but labels of shape \(4,\)"):
        load_data(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("source", ["digit", "nowhere.npy", "nowhere-ubyte.gz", "nowhere.zarr", "nowhere.parquet"])
def test_an_unknown_source_says_what_is_known(source: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"no data '{source}': expected 'digits', a folder"):
        load_data(source)
