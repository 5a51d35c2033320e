"""The manifest: everything that determines the bytes of a set, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dsno.checkpoint import read_json

__all__ = [
    "CODES",
    "MANIFEST",
    "TARGETS",
    "Manifest",
    "differences",
    "dtype_names",
    "dtypes",
    "fingerprint",
    "join",
    "parse_manifest",
    "read_manifest",
]

Manifest = dict[str, Any]

MANIFEST, TARGETS = "manifest.json", ("x0", "state")

NAMED = 2  # The format of sets whose condition has names; all others are format 1.

CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in CODES}

dtype_names = {dtype: name for name, dtype in dtypes.items()}


def fingerprint(manifest: Manifest) -> str:
    """sha256 of everything that determines the trajectories."""
    determines = {k: v for k, v in manifest.items() if k not in ("fingerprint", "made")}
    text = json.dumps(determines, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, foreign, edited or of another format; says how to mend it.
    """
    path = folder / MANIFEST
    mend = f"Delete {path} and call generate(..., resume=True) as before: shards that match are kept"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: expected a folder that generate() wrote")
    try:
        manifest = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}. {mend}") from None
    return parse_manifest(manifest, str(path), mend)


def parse_manifest(manifest: Any, source: str, mend: str) -> Manifest:
    """Make sure that a JSON value is an unchanged manifest.

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise ValueError(f"{source} is not the manifest of a trajectory folder. {mend}")
    if manifest["format"] not in (1, NAMED):
        raise ValueError(
            f"{source}: format: expected 1 or {NAMED}, found {manifest['format']}. Read it with a matching dsno"
        )
    if manifest.get("fingerprint") != fingerprint(manifest):
        raise ValueError(f"{source} was changed after it was written: its fingerprint does not match. {mend}")
    return manifest


def differences(expected: Any, found: Any, field: str = "") -> list[str]:
    """Where two JSON values differ, as `field: expected ..., found ...`."""
    if expected == found:
        return []
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        expected, found = dict(enumerate(expected)), dict(enumerate(found))
    if isinstance(expected, dict) and isinstance(found, dict):
        # Lists last: a grid that differs all along must not hide the schedule that makes it differ.
        keys = sorted({*expected, *found}, key=lambda k: (isinstance(expected.get(k), list), k))
        paths = {k: f"{field}.{k}".lstrip(".") for k in keys}
        return [d for k, path in paths.items() for d in differences(expected.get(k), found.get(k), path)]
    shown = [f"{len(v)} values" if isinstance(v, list) and len(v) > 8 else json.dumps(v) for v in (expected, found)]
    return [f"{field}: expected {shown[0]:.80}, found {shown[1]:.80}"]


def join(items: Sequence[str], separator: str = "; ") -> str:
    """The first four items, and how many more there are."""
    return separator.join(items[:4]) + (f"{separator}and {len(items) - 4} more" if len(items) > 4 else "")
