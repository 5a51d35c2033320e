"""Pairs are read row for row from every form, and what does not pair is named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsno.data.load import load_data
from dsno.data.pairs import Pairs, load_pairs

RNG = np.random.default_rng(0)
CLEAN = RNG.integers(0, 255, (3, 6, 6, 3), dtype=np.uint8)
EDGES = RNG.integers(0, 255, (3, 6, 6), dtype=np.uint8)
NAMES = ("a", "b-1", "b")


def save(folder: Path, pictures: np.ndarray, names: tuple[str, ...] = NAMES, suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in zip(names, pictures, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"{name}{suffix}")
    return folder


def same(x: torch.Tensor, pictures: np.ndarray, order: tuple[int, ...]) -> bool:
    return np.array_equal((x * 127.5 + 127.5).round().byte().numpy()[:, 0], pictures[list(order)])


def test_two_folders_pair_by_name_and_grey_edges_stand_beside_colours(tmp_path: Path) -> None:
    edges, clean = save(tmp_path / "edges", EDGES, suffix=".bmp"), save(tmp_path / "clean", CLEAN)
    pairs = load_pairs(edges, clean)
    assert len(pairs) == 3 and pairs.shape == (3, 6, 6) and pairs.start.shape == pairs.x.shape
    order = (0, 1, 2)  # a, b-1, b: as files are sorted
    assert same(pairs.start, EDGES, order) and same(pairs.start[:, 1:], EDGES, order)
    assert same(pairs.x, CLEAN[..., 0], order)
    assert load_pairs(edges, clean, size=3).shape == (3, 3, 3)


def test_sub_folders_pair_alike(tmp_path: Path) -> None:
    names = ("x/1", "y/1", "y/2")
    pairs = load_pairs(save(tmp_path / "A", EDGES, names), save(tmp_path / "B", EDGES, names))
    assert torch.equal(pairs.start, pairs.x) and len(pairs) == 3


def test_pictures_side_by_side_are_cut_in_the_middle(tmp_path: Path) -> None:
    both = np.concatenate([EDGES, 255 - EDGES], 2)
    pairs = load_pairs(save(tmp_path / "both", both))
    assert pairs.shape == (1, 6, 6) and same(pairs.start, EDGES, (0, 1, 2)) and same(pairs.x, 255 - EDGES, (0, 1, 2))
    assert load_pairs(tmp_path / "both", size=3).shape == (1, 3, 3)
    with pytest.raises(ValueError, match="pictures 5 wide: two side by side have an even width"):
        load_pairs(save(tmp_path / "odd", EDGES[:, :, :5]))


def test_two_columns_of_a_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = {"rough": [Image.fromarray(p) for p in EDGES], "fine": [Image.fromarray(p) for p in 255 - EDGES]}
    kinds = datasets.Features({"rough": datasets.Image(), "fine": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=kinds).save_to_disk(tmp_path / "set")
    pairs = load_pairs(tmp_path / "set", columns=("rough", "fine"))
    assert same(pairs.start, EDGES, (0, 1, 2)) and same(pairs.x, 255 - EDGES, (0, 1, 2))
    with pytest.raises(ValueError, match="alone is no pairs: give a second source, .* or the two columns"):
        load_pairs(tmp_path / "set")
    with pytest.raises(ValueError, match="has no column 'coarse'; it has rough, fine"):
        load_pairs(tmp_path / "set", columns=("coarse", "fine"))
    with pytest.raises(ValueError, match=r"pairs have two columns, \(degraded, clean\), got 1"):
        load_pairs(tmp_path / "set", columns=("fine",))


def test_arrays_pair_row_for_row(tmp_path: Path) -> None:
    for name, array in (("rough", EDGES), ("fine", 255 - EDGES)):
        np.save(tmp_path / f"{name}.npy", array)
    pairs = load_pairs(tmp_path / "rough.npy", tmp_path / "fine.npy")
    assert same(pairs.start, EDGES, (0, 1, 2)) and pairs.name.endswith("fine.npy")
    np.save(tmp_path / "fine.npy", EDGES[:2])
    with pytest.raises(ValueError, match="3 and 2 samples do not pair: expected as many"):
        load_pairs(tmp_path / "rough.npy", tmp_path / "fine.npy")
    with pytest.raises(ValueError, match="columns are of one dataset that holds both"):
        load_pairs(tmp_path / "rough.npy", tmp_path / "fine.npy", columns=("a", "b"))
    with pytest.raises(FileNotFoundError, match="no data"):
        load_pairs(tmp_path / "nowhere.npy", tmp_path / "fine.npy")


# What does not pair


def test_names_that_do_not_pair_are_listed_five_of_them(tmp_path: Path) -> None:
    many = np.repeat(EDGES[:1], 8, 0)
    degraded = save(tmp_path / "A", many, tuple("abcdefgh"))
    clean = save(tmp_path / "B", many, tuple("bijklmno"))
    with pytest.raises(ValueError) as refused:
        load_pairs(degraded, clean)
    assert str(refused.value) == (
        f"{degraded} and {clean} do not pair by name: a (not in {clean}), c (not in {clean}), d (not in {clean}), "
        f"e (not in {clean}), f (not in {clean}) and 9 more"
    )


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    degraded, clean = save(tmp_path / "A", EDGES), save(tmp_path / "B", EDGES)
    save(degraded, EDGES[:1], ("a",), ".bmp")
    with pytest.raises(ValueError, match="has two pictures called a: names must tell pairs apart"):
        load_pairs(degraded, clean)


def test_an_order_that_the_suffix_turns_round_is_refused(tmp_path: Path) -> None:
    names = ("a", "a.k")
    degraded, clean = save(tmp_path / "A", EDGES[:2], names, ".bmp"), save(tmp_path / "B", EDGES[:2], names, ".png")
    with pytest.raises(ValueError, match="in another order: save their pictures with one suffix"):
        load_pairs(degraded, clean)


def test_pairs_of_different_sizes_or_modes_are_refused(tmp_path: Path) -> None:
    small, clean = save(tmp_path / "A", EDGES[:, :5, :5]), save(tmp_path / "B", EDGES)
    with pytest.raises(ValueError, match=r"are pairs of different sizes or modes, \(1, 5, 5\) and \(1, 6, 6\)"):
        load_pairs(small, clean)
    colours = load_data(save(tmp_path / "C", CLEAN)).x
    with pytest.raises(ValueError, match=r"modes, \(3, 6, 6\) and \(1, 6, 6\)"):
        Pairs(colours, colours[:, :1], "colour and grey")
