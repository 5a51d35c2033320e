"""Samples from Hugging Face datasets, on the Hub or in a folder.

One column is the samples: pictures, or arrays of one shape. Labels are a column called so, or the first of classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsno.data.files import LABEL_NAMES, Background, Read, holds_any, optional_package, read_pictures
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
        ValueError: if it cannot be read, has several splits or columns, or rows that differ in shape.
    """
    datasets = optional_package("datasets", "data")
    table = _table(datasets, reference)
    column = _column(datasets, table, key, reference)
    labels = [n for n in LABEL_NAMES if n in table.features]
    labels += [n for n, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    held = None
    if labels and labels[0] != column:
        held = torch.as_tensor(table.select_columns(labels[:1]).with_format("numpy")[:][labels[0]], dtype=torch.int64)
    rows = table.select_columns([column])
    if isinstance(table.features[column], datasets.Image):
        pictures = ((f"{reference}, row {i}", row[column]) for i, row in enumerate(rows))
        return read_pictures(pictures, size, background), held
    array = rows.with_format("numpy")[:][column]
    if array.dtype == object:
        raise ValueError(f"the rows of column {column!r} of {reference} differ in shape: they must agree")
    # The format widens integers; what the column says they are decides whether they are pixels.
    return array.astype(_dtype(table.features[column])), held


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
    pictures = [n for n, feature in features.items() if isinstance(feature, datasets.Image)]
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
