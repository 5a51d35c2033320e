"""Folders and archives of pictures: what is a class, and what lies beside them and says so."""

import json
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from arrays import PIXELS
from dsno.data.load import load_data
from dsno.data.samples import to_uint8

NAMES = ("00000/img0.png", "00000/img1.png", "00001/img2.png", "00001/img3.png", "00002/img4.png")
LABELS = [6, 0, 2, 6, 1]


def pictures(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    for name, pixels in zip(names, PIXELS, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    return folder


def zipped(folder: Path) -> Path:
    with ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in sorted(folder.rglob("*"), reverse=True):
            archive.write(path, path.relative_to(folder))
    return folder.with_suffix(".zip")


def noted(folder: Path, form: str) -> None:
    rows = [*zip(NAMES, LABELS, strict=True)]
    if form == "dataset.json":
        text = json.dumps({"labels": [[name.replace("/", "\\"), label] for name, label in rows[::-1]]})
    elif form == "metadata.csv":
        text = "\n".join(["file_name,text,label", *(f'{name},"a, b",{label}' for name, label in rows)])
    else:
        text = "\n".join(json.dumps({"label": label, "file_name": name}) for name, label in rows)
    (folder / form).write_bytes(b"\xef\xbb\xbf" + text.encode())


@pytest.mark.parametrize("form", ["dataset.json", "metadata.csv", "metadata.jsonl"])
def test_classes_are_those_of_the_file_beside_the_pictures(form: str, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set")
    assert load_data(folder).labels.tolist() == [0, 0, 1, 1, 2] and load_data(folder).names == (
        "00000",
        "00001",
        "00002",
    )
    noted(folder, form)
    for source in (folder, zipped(folder)):
        samples = load_data(source)
        assert samples.labels.tolist() == LABELS and samples.names is None and samples.classes == 7
        assert np.array_equal(to_uint8(samples.x)[:, 0].numpy(), PIXELS)
    Image.fromarray(PIXELS[0]).save(folder / "more.png")
    with pytest.raises(ValueError, match=rf"set/more\.png is not listed in .*{form}: list it, or move it away"):
        load_data(folder)
    (folder / "more.png").unlink(), (folder / NAMES[3]).unlink()
    with pytest.raises(ValueError, match=rf"{form} lists 00001/img3\.png, which is not there: add it"):
        load_data(folder)


def test_a_file_that_says_no_classes_leaves_none(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set")
    (folder / "dataset.json").write_text('{"labels": null}')
    assert load_data(folder).labels is None and load_data(zipped(folder)).labels is None
    (folder / "dataset.json").unlink()
    (folder / "metadata.csv").write_text("file_name,text\n" + "".join(f"{name},words\n" for name in NAMES))
    assert load_data(folder).labels is None and len(load_data(folder)) == 5


def test_words_beside_pictures_are_classes(tmp_path: Path) -> None:
    folder = pictures(tmp_path)
    rows = zip(NAMES, ("cat", "ape", "cat", "dog", "ape"), strict=True)
    (folder / "metadata.csv").write_text("file_name,labels\n" + "".join(f"{name},{label}\n" for name, label in rows))
    samples = load_data(folder)
    assert samples.labels.tolist() == [1, 0, 1, 2, 0] and samples.names == ("ape", "cat", "dog")


@pytest.mark.parametrize(
    "form, text, message",
    [
        ("dataset.json", "{", r"does not list the pictures as EDM's dataset tool does.*mend it, or move it away"),
        ("dataset.json", '{"samples": []}', r"EDM's dataset tool does.*\(no 'labels'\)"),
        ("dataset.json", '{"labels": [["00000/img0.png"]]}', "EDM's dataset tool does"),
        ("metadata.csv", "name,label\na.png,1\n", r"in a column file_name \(no 'file_name'\)"),
        ("metadata.jsonl", "[1]", '{"file_name": "1.png", "label": 6} a line'),
        ("metadata.csv", "file_name,label\n" + "00000/img0.png,1\n" * 2, "lists 00000/img0.png twice"),
        ("metadata.csv", "file_name,label\n" + "".join(f"{n},\n" for n in NAMES), r"csv, 00000/img0\.png has no label"),
    ],
)
def test_a_file_that_does_not_list_them_is_named(form: str, text: str, message: str, tmp_path: Path) -> None:
    (pictures(tmp_path) / form).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_data(tmp_path)


def test_one_file_says_the_classes(tmp_path: Path) -> None:
    noted(pictures(tmp_path), "dataset.json"), noted(tmp_path, "metadata.csv")
    with pytest.raises(ValueError, match=r"has dataset\.json and metadata\.csv: which says the classes\?"):
        load_data(tmp_path)


def test_splits_and_sets_of_their_own_are_no_classes(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a", ("train/0.png", "test/1.png"))
    with pytest.raises(ValueError, match="the folders of .*a, test, train, are splits and no classes: load one"):
        load_data(folder)
    (folder / "train/metadata.csv").write_text("file_name,label\n0.png,3\n")
    with pytest.raises(
        ValueError, match=r"train/metadata\.csv says the classes of its own folder: load that one, .*train"
    ):
        load_data(folder)
    assert load_data(folder / "train").labels.tolist() == [3]


def test_litter_is_neither_a_picture_nor_a_class(tmp_path: Path) -> None:
    names = ("cats/0.png", "cats/1.png", "dogs/0.png", ".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/0.png")
    folder = pictures(tmp_path / "a", names)
    for name in ("cats/._0.png", "dogs/Thumbs.db", ".DS_Store", "._dataset.json"):
        (folder / name).write_bytes(b"\x00\x05\x16\x07")
    for source in (folder, zipped(folder)):
        samples = load_data(source)
        assert samples.labels.tolist() == [0, 0, 1] and samples.names == ("cats", "dogs")


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    whole = zipped(pictures(tmp_path / "a")).read_bytes()
    (tmp_path / "a.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.zip is damaged or not a zip file"):
        load_data(tmp_path / "a.zip")
    (tmp_path / "a.zip").write_bytes(whole.replace(b"IDAT", b"IDAX"))
    with pytest.raises(ValueError, match=r"a\.zip/00000/img0\.png is damaged or not a picture"):
        load_data(tmp_path / "a.zip")
