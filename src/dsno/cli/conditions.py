"""What a model is told beside the state, as the command line asks for it: by seed.

Labels, embedded prompts and guidance weights of a row are functions of its seed, so that row i is told the same in any
batch, in any process, and by `generate` and `sample` alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dsno.data.arrays import load_numpy
from dsno.denoise import Prediction
from dsno.listing import read_text
from dsno.nets.backbone import check_null
from dsno.teachers.prompts import encode_prompts
from dsno.trajectories.labels import Label, uniform_labels, weighted

__all__ = ["condition_by_seed", "labels_by_seed", "prompts_by_seed", "read_prompts"]


def condition_by_seed(
    ref: str,
    teacher: Prediction,
    labels: str | None,
    prompts: Path | None,
    weights: Sequence[float] = (),
    null: int | None = None,
    variant: str | None = None,
) -> Label | None:
    """The condition of each row of a teacher, a function of the seeds; None if it is told nothing.

    Arguments:
        ref: The teacher's name, for messages, and for the text encoder of a diffusers model.
        teacher: The teacher; of one with classes the labels are uniform by default.
        labels: As `labels_by_seed` takes them.
        prompts: As `prompts_by_seed` takes them; instead of labels.
        weights: Two are the range of a guidance weight that each row is told, too.
        null: The label that stands for no class: it is not drawn.
        variant: That of the text encoder's weights.

    Raises:
        FileNotFoundError: if a named file is missing.
        ValueError: as `labels_by_seed` and `prompts_by_seed` do, or for a null label that the teacher does not know.
    """
    if null is not None:
        check_null(teacher, null, ref)
    if prompts is not None:
        known: Label = prompts_by_seed(ref, prompts, variant)
    elif labels is not None or teacher.classes:
        known = labels_by_seed(ref, teacher.classes, labels or "uniform", null)
    else:
        return None
    return known if len(weights) < 2 else weighted(known, *weights)


def labels_by_seed(ref: str, classes: int | None, labels: str, null: int | None = None) -> Callable[[Tensor], Tensor]:
    """Labels (B,) as a function of the seeds (B,): `uniform`, one label for all, or those of a file, taken by turns.

    Uniform ones are never `null`, the label that stands for no class.

    Raises:
        FileNotFoundError: if `labels` is none of these.
        ValueError: if the teacher `ref` has no classes, a label is outside them, or the file holds something else.
    """
    if classes is None:
        raise ValueError(f"--labels {labels}: {ref} has no classes")
    if labels == "uniform":
        return uniform_labels(classes, null)
    known = torch.tensor([int(labels)]) if labels.lstrip("-").isdigit() else _read_labels(Path(labels))
    low, high = int(known.min()), int(known.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"label {low if low < 0 else high} is outside the classes of {ref}: expected 0 to {classes - 1}"
        )
    return lambda seeds: known[seeds % len(known)]


def _read_labels(path: Path) -> Tensor:
    if not path.is_file():
        raise FileNotFoundError(f"--labels {path}: expected `uniform`, a label, or a file of labels")
    try:
        read = (
            load_numpy(path) if path.suffix == ".npy" else np.loadtxt(read_text(path).split(), dtype=np.int64, ndmin=1)
        )
    except ValueError as error:
        raise ValueError(f"{path} is no file of labels, integers separated by white space ({error})") from None
    if read.ndim != 1 or not len(read) or read.dtype.kind not in "iu":
        raise ValueError(f"{path} must hold one integer for each seed, got {read.dtype} of shape {read.shape}")
    return torch.from_numpy(read.astype(np.int64))


def read_prompts(path: Path) -> list[str]:
    """The prompts in a file, one a line.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no prompt.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} of prompts, one a line")
    prompts = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    if not prompts:
        raise ValueError(f"{path} holds no prompt: write one a line")
    return prompts


def prompts_by_seed(ref: str, path: Path, variant: str | None = None) -> Callable[[Tensor], dict[str, Tensor]]:
    """The embeddings of the prompts in a file as a function of the seeds, taken by turns.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no prompt, or the teacher `ref` has no text encoder that we know.
    """
    prompts = read_prompts(path)
    encoded = encode_prompts(ref, prompts, variant)
    return lambda seeds: {name: rows[seeds % len(prompts)] for name, rows in encoded.items()}
