"""Samples from Hugging Face datasets, on the Hub or in a folder.

One column is the samples: pictures, or arrays of one shape. Labels are a column called so, or the first of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dsno.data.classes import class_numbers
from dsno.data.files import LABEL_NAMES, Read, holds_any, optional_package
from dsno.data.pictures import Background, read_pictures
from dsno.hub import ask_hub, first_line, reaching

__all__ = ["SAVED", "read_dataset"]

SAVED = ("dataset_info.json", "dataset_dict.json")
"""What a folder has in it that `save_to_disk` wrote."""


def read_dataset(reference: str, size: int | None, key: str | None, background: Background) -> Read:
    """The samples and labels of a folder, a parquet file or `org/name`, each with an optional `:split`.

    Raises:
        FileNotFoundError: if there is no such dataset.
        PermissionError: if it is closed to this user.
        ConnectionError: if the Hub cannot be reached.
        ModuleNotFoundError: without datasets.
        ValueError: if it cannot be read, has several splits or columns, rows that differ in shape
            or lack their sample, or labels that are no classes (`class_numbers`).
    """
    datasets = optional_package("datasets", "data")
    table = _table(datasets, reference)
    column = _column(datasets, table, key, reference)
    labels = [n for n in LABEL_NAMES if n in table.features]
    labels += [n for n, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    held = None
    if labels and labels[0] != column:
        # A table may have been saved with a format, which makes missing numbers of some sort.
        values = table.select_columns(labels[:1]).with_format(None)[:][labels[0]]
        held = class_numbers(values, reference, getattr(table.features[labels[0]], "names", None))
    rows = table.select_columns([column])
    if _holds_pictures(datasets, table.features[column]):
        undecoded = rows.with_format(None).cast_column(column, datasets.Image(decode=False))
        return read_pictures(_pictures(datasets, undecoded, column, reference), size, background), held
    held_rows = rows.with_format("arrow")[:].column(column)
    if held_rows.null_count:
        at = held_rows.is_null().to_pylist().index(True)
        raise ValueError(f"{reference}, row {at} has no sample in the column {column!r}: leave the row out")
    array = rows.with_format("numpy")[:][column]
    if array.dtype == object:
        raise ValueError(f"the rows of column {column!r} of {reference} differ in shape: they must agree")
    # The format widens integers; what the column says they are decides whether they are pixels.
    return array.astype(_dtype(table.features[column])), held


def _holds_pictures(datasets: Any, feature: Any) -> bool:
    """Whether a column is of pictures, decoded or not, or of their files' bytes."""
    if isinstance(feature, Mapping):
        return {"bytes", "path"} >= {*feature} and "bytes" in feature
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", "") in ("binary", "large_binary")


def _pictures(datasets: Any, undecoded: Any, column: str, reference: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The rows of a column of pictures as `read_pictures` takes them."""
    for i, row in enumerate(undecoded):
        name, held = f"{reference}, row {i}", row[column]
        if held is None or (held.get("bytes") is None and not held.get("path")):
            raise ValueError(f"{name} has no picture in the column {column!r}: leave the row out")
        yield name, partial(_bytes, datasets, held)


def _bytes(datasets: Any, held: Mapping[str, Any]) -> bytes:
    """The file of a picture, which a row holds or says where it lies: here, or where datasets can reach."""
    if (data := held.get("bytes")) is not None:
        return bytes(data)
    with datasets.utils.file_utils.xopen(held["path"], "rb") as file:
        return bytes(file.read())


def _table(datasets: Any, reference: str) -> Any:
    """The split of a dataset that `folder`, `file.parquet` or `org/name`, each with an optional `:split`, names."""
    where, colon, split = reference.rpartition(":")
    if not colon or Path(reference).exists():
        where, split = reference, ""
    try:
        with reaching(
            missing=f"no dataset {where!r}: {{error}}",
            closed="{error}",
            unreachable=f"the Hub cannot be reached for the dataset {where!r} ({{error}}): check the network, or set "
            "HF_HUB_OFFLINE=1 if it is in your cache",
        ):
            found = _opened(datasets, where)
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError) as error:
        raise ValueError(f"{where} cannot be read as a dataset: {first_line(error)}") from None
    if isinstance(found, datasets.Dataset):
        if split:
            raise ValueError(f"{where} is a single split: leave ':{split}' out")
        return found
    chosen = split or ("train" if "train" in found else next(iter(found)) if len(found) == 1 else "")
    if chosen not in found:
        asked = f"no split {chosen!r}" if chosen else "several splits"
        raise ValueError(f"{where} has {asked}: name one of {', '.join(found)} as hf:{where}:split")
    return found[chosen]


def _opened(datasets: Any, where: str) -> Any:
    """All splits of a dataset, or the only one."""
    path = Path(where)
    if path.is_file():
        return datasets.load_dataset("parquet", data_files=where)
    if holds_any(path, *SAVED):
        return datasets.load_from_disk(where)
    if path.is_dir():
        return datasets.load_dataset(where)
    if where.count("/") > 1 or where.startswith((".", "/")):
        raise FileNotFoundError("there is no such folder, and on the Hub names are 'org/name'")
    from huggingface_hub import constants

    # Offline only the cache is looked at, which takes no time; else without an answer `load_dataset` tries for half a
    # minute.
    if not constants.HF_HUB_OFFLINE:
        ask_hub(where, "dataset")
    return datasets.load_dataset(where)


def _column(datasets: Any, table: Any, key: str | None, reference: str) -> str:
    """The column of the samples: `key`, else the only one of pictures, else the only one of arrays."""
    features = table.features
    if key is not None:
        if key not in features:
            raise ValueError(f"{reference} has no column {key!r}; it has {', '.join(features)}")
        return key
    pictures = [n for n, feature in features.items() if _holds_pictures(datasets, feature)]
    arrays = [n for n, feature in features.items() if not hasattr(feature, "names") and _dtype(feature) is not None]
    arrays = [n for n in arrays if not isinstance(features[n], datasets.Value)]
    names = pictures or arrays
    if len(names) != 1:
        what = f"several columns, {', '.join(names)}" if names else f"no column of samples among {', '.join(features)}"
        raise ValueError(f"{reference} has {what}: say which with key=")
    return names[0]


def _dtype(feature: Any) -> np.dtype[Any] | None:
    """The numbers of a column, or None if it holds something else."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    try:
        dtype = np.dtype(feature.dtype)
    except (AttributeError, TypeError):
        return None
    return dtype if dtype.kind in "buif" else None
