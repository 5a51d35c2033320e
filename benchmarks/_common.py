"""What every benchmark records beside its numbers: machine, versions, protocol, and whether each claim holds."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

__all__ = ["claim", "machine", "named", "versions", "write"]

T = TypeVar("T")
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("dsno", "torch", "numpy", "safetensors", "accelerate", "diffusers")


def machine() -> dict[str, Any]:
    """Processor, threads and accelerator of this machine."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages whose speed or numbers enter a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return {**found, "torch": torch.__version__}  # with its build tag


def claim(name: str, value: float, bound: float, direction: Literal["<=", ">="]) -> dict[str, Any]:
    """One number against its bound; a value that is not a number does not hold.

    Raises:
        ValueError: if the direction is neither `<=` nor `>=`.
    """
    if direction not in ("<=", ">="):
        raise ValueError(f"direction must be '<=' or '>=', got {direction!r}")
    holds = value <= bound if direction == "<=" else value >= bound
    return {"name": name, "value": float(value), "bound": float(bound), "direction": direction, "holds": bool(holds)}


def write(name: str, protocol: str, claims: Sequence[dict[str, Any]], **extra: Any) -> Path:
    """Write `results/<name>.json` and return its path; `extra` is recorded beside the claims."""
    record = {
        "name": name, "versions": versions(), "machine": machine(), "protocol": protocol, "claims": list(claims), **extra
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def named(entries: Mapping[str, T], name: str) -> T:
    """An entry by its name, or with other settings: `kd@lr=1e-3@trajectories=4000`. A setting that is None becomes a number."""
    base, *changes = name.split("@")
    entry: Any = entries[base]
    for change in changes:
        key, value = change.split("=")
        held = getattr(entry, key)
        made = value == "True" if isinstance(held, bool) else float(value) if held is None else type(held)(value)
        entry = dataclasses.replace(entry, **{key: made})
    return entry
