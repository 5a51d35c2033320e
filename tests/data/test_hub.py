"""Hugging Face datasets, in a folder and from the Hub."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from arrays import COLOURS, NUMBERS, PIXELS
from dsno.data.load import load_data
from dsno.data.samples import Samples, to_uint8
from local_hub import serving


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


def test_pictures_of_a_table_are_decoded_here_whatever_it_was_saved_as(datasets, tmp_path: Path) -> None:
    pictures = [Image.fromarray(p) for p in COLOURS]
    plain = datasets.Features({"image": datasets.Image()})
    made = {
        "undecoded": datasets.Dataset.from_dict({"image": pictures}, features=plain).cast_column(
            "image", datasets.Image(decode=False)
        ),
        "formatted": datasets.Dataset.from_dict({"image": pictures}, features=plain).with_format("torch"),
    }
    for name, table in made.items():
        table.save_to_disk(tmp_path / name)
        assert np.array_equal(to_uint8(load_data(tmp_path / name).x).numpy(), COLOURS.transpose(0, 3, 1, 2))
    for name, row, message in (
        ("missing", None, "missing, row 5 has no picture in the column 'image': leave the row out"),
        ("damaged", {"bytes": b"abc", "path": None}, "damaged, row 5 is damaged or not a picture .of no known format"),
    ):
        datasets.Dataset.from_dict({"image": [*pictures, row]}, features=plain).save_to_disk(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            load_data(tmp_path / name)
    numbers = datasets.Dataset.from_dict({"signal": [[0.0, 1.0], None]})
    numbers.save_to_disk(tmp_path / "signals")
    with pytest.raises(ValueError, match="signals, row 1 has no sample in the column 'signal'"):
        load_data(tmp_path / "signals")


def test_labels_of_a_table_are_classes_with_their_names(datasets, tmp_path: Path) -> None:
    def labels(values: list[object], feature: object) -> Samples:
        features = datasets.Features({"image": datasets.Image(), "label": feature})
        table = datasets.Dataset.from_dict({"image": [Image.fromarray(p) for p in COLOURS], "label": values}, features)
        table.with_format("numpy").save_to_disk(tmp_path / "a")
        return load_data(tmp_path / "a")

    words = labels(["dog", "cat", "dog", "ape", "cat"], datasets.Value("string"))
    assert words.labels.tolist() == [2, 1, 2, 0, 1] and words.names == ("ape", "cat", "dog")
    # The classes of the table, not only those that it has rows of.
    named = labels([0, 1, 1, 0, 1], datasets.ClassLabel(names=["x", "y", "z"]))
    assert named.names == ("x", "y", "z") and named.classes == 3
    for values, feature, message in (
        ([0, None, 1, 1, 0], datasets.ClassLabel(names=["x", "y"]), "a, row 1 has no label"),
        ([-1] * 5, datasets.ClassLabel(names=["x", "y"]), "a, row 0 has the label -1, which is no class"),
        ([0, 0.5, 1, 1, 0], datasets.Value("float32"), r"a, row 1 has the label 0\.5, which is no class"),
        ([[0, 1]] * 5, datasets.List(datasets.Value("int64")), r"a, row 0 has the label \[0, 1\], which is no class"),
    ):
        with pytest.raises(ValueError, match=message):
            labels(values, feature)


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


def test_the_hub_has_it_not_or_not_for_everybody(datasets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hub").mkdir()
    with serving(tmp_path / "hub", tmp_path / "cache", monkeypatch):
        with pytest.raises(FileNotFoundError, match="no dataset 'org/absent': the Hub has no dataset org/absent that"):
            load_data("hf:org/absent:train")
        with pytest.raises(PermissionError, match="org/gated on the Hub is closed to you: accept its conditions"):
            load_data("hf:org/gated")
