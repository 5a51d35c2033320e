"""Samples from Hugging Face datasets, on the Hub or in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsno.data.files import LABELS, has, need, read_pictures

__all__ = ["read_dataset"]

_NETWORK_SECONDS = 3.0


def read_dataset(
    reference: str, size: int | None, key: str | None, background: int | tuple[int, int, int]
) -> tuple[np.ndarray | Tensor, Tensor | None]:
    datasets = need("datasets", "data")
    table = _table(datasets, reference)
    column = _column(datasets, table, key, reference)
    labels = [n for n in LABELS if n in table.features]
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
    where, colon, named = reference.rpartition(":")
    if not colon or Path(reference).exists():
        where, named = reference, ""
    path = Path(where)
    try:
        if path.is_file():
            found = datasets.load_dataset("parquet", data_files=where)
        elif has(path, "dataset_info.json", "dataset_dict.json"):
            found = datasets.load_from_disk(where)
        elif path.is_dir():
            found = datasets.load_dataset(where)
        else:
            _reach(where)
            found = datasets.load_dataset(where)
    except ConnectionError as error:
        raise ConnectionError(
            f"the Hub cannot be reached for the dataset {where!r} ({_line(error)}): check the network, or set "
            "HF_HUB_OFFLINE=1 if it is in your cache"
        ) from None
    except (datasets.exceptions.DatasetsError, FileNotFoundError) as error:
        raise FileNotFoundError(f"no dataset {where!r}: {_line(error)}") from None
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{where} cannot be read as a dataset: {_line(error)}") from None
    if isinstance(found, datasets.Dataset):
        if named:
            raise ValueError(f"{where} is a single split: leave ':{named}' out")
        return found
    chosen = named or ("train" if "train" in found else next(iter(found)) if len(found) == 1 else "")
    if chosen not in found:
        asked = f"no split {chosen!r}" if chosen else "several splits"
        raise ValueError(f"{where} has {asked}: name one of {', '.join(found)} as hf:{where}:split")
    return found[chosen]


def _reach(name: str) -> None:
    """Ask the Hub for a dataset once: without a network `load_dataset` tries for half a minute."""
    import huggingface_hub
    from huggingface_hub import errors

    if name.count("/") > 1 or name.startswith((".", "/")):
        raise FileNotFoundError("there is no such folder, and on the Hub names are 'org/name'")
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        # Then only the cache is looked at, which takes no time.
        return
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=_NETWORK_SECONDS)
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            "there is no such folder, and the Hub has none of that name that you may read"
        ) from None
    except errors.HFValidationError as error:
        raise FileNotFoundError(_line(error)) from None
    except Exception as error:  # The client's transport, and so the type of its errors, changed between versions.
        raise ConnectionError(_line(error)) from None


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _column(datasets: Any, table: Any, key: str | None, reference: str) -> str:
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
