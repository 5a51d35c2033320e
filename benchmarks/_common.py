"""What benchmarks share: options, seeds, short work, and results with their protocol and claims.

A result is `results/NAME.json`, and every result is of this form:

    name
    protocol   command (that writes it), setting (what was held fixed), versions, machine
    claims     a list of name, value, bound, direction (`<=` or `>=`), holds
    ...        the numbers, of which `judged` in the script makes the claims again

`tables.py` writes the pages from these files.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from dsno.checkpoint import read_json, version_of, write_json
from dsno.schedule import Schedule
from dsno.teachers.closed import GaussianMixture
from dsno.train import Objective, Report, TrainConfig, train

__all__ = [
    "HELD_OUT",
    "IMAGES",
    "RESULTS",
    "ROOT",
    "Claim",
    "alternating",
    "claim",
    "eight_modes",
    "fit",
    "kept",
    "machine",
    "mean_and_spread",
    "named",
    "parse",
    "parser",
    "printed",
    "protocol",
    "pyplot",
    "runs_of",
    "save",
    "taught",
    "tidy",
    "versions",
    "write",
]

T = TypeVar("T")
Claim = dict[str, Any]

ROOT = Path(__file__).parents[1]
RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
QUICK = Path("runs/quick")
PACKAGES = ("dsno", "torch", "numpy", "safetensors", "accelerate", "diffusers")
HELD_OUT = 10_000_000
"""The first seed of noises that nothing was trained on."""


# Options


def parser(file: str, doc: str | None) -> argparse.ArgumentParser:
    """The options of a script; `--quick` and `--out` are every script's."""
    made = argparse.ArgumentParser(
        prog=f"benchmarks/{Path(file).name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--quick", action="store_true", help="seconds: shows that it runs, not what it measures; goes to runs/quick"
    )
    made.add_argument(
        "--out", type=Path, help="folder of result and pictures; benchmarks/results and docs/images by default"
    )
    return made


def parse(options: argparse.ArgumentParser, given: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, with `command`, which repeats the run, and the folders `out` and `images`."""
    given = sys.argv[1:] if given is None else list(given)
    arguments = options.parse_args(given)
    arguments.command = shlex.join(["python", options.prog, *given])
    chosen = QUICK if arguments.quick and arguments.out is None else arguments.out
    arguments.out, arguments.images = chosen or RESULTS, chosen or IMAGES
    return arguments


def runs_of(arguments: argparse.Namespace, usual: str) -> Path:
    """The folder of what is trained and kept: `--runs`, or `usual`; of quick runs a folder beside the result."""
    folder: Path = arguments.runs or (arguments.out / Path(usual).name if arguments.quick else Path(usual))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def taught(source: Path) -> str:
    """How long the teacher in a recipe's folder was trained, for the setting of a result."""
    return f"teacher of {read_json(source / 'recipe.json')['teach']['steps']:,} training steps"


def printed(every: int = 1) -> Report:
    """Progress as lines, one in `every` steps."""

    def report(stage: str, done: int, total: int, text: str) -> None:
        if done % every == 0:
            print(f"{stage} {done}/{total} {text}", flush=True)

    return report


# Results


def machine() -> dict[str, Any]:
    """Processor, threads and accelerator of this machine."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line.split(":", 1) for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0][1].strip() if lines else cpu
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages whose speed or numbers enter a result; torch's with its build tag."""
    found = {"python": platform.python_version(), **{package: version_of(package) for package in PACKAGES}}
    return {**found, "torch": torch.__version__}


def protocol(command: str, setting: str) -> dict[str, Any]:
    """How a result came about."""
    return {"command": command, "setting": setting, "versions": versions(), "machine": machine()}


def claim(name: str, value: float, bound: float, direction: Literal["<=", ">="]) -> Claim:
    """One number against its bound; a value that is not a number does not hold.

    Raises:
        ValueError: if the direction is neither `<=` nor `>=`.
    """
    if direction not in ("<=", ">="):
        raise ValueError(f"direction must be '<=' or '>=', got {direction!r}")
    holds = value <= bound if direction == "<=" else value >= bound
    return {"name": name, "value": float(value), "bound": float(bound), "direction": direction, "holds": bool(holds)}


def write(
    arguments: argparse.Namespace, name: str, setting: str, claims: Sequence[Claim], **numbers: Any
) -> dict[str, Any]:
    """Print the claims, write `NAME.json` into the folder of results, and return what it holds."""
    for c in claims:
        print(f"{'ok  ' if c['holds'] else 'FAIL'} {c['name']}: {c['value']:.4g} ({c['direction']} {c['bound']:g})")
    record = {"name": name, "protocol": protocol(arguments.command, setting), "claims": list(claims), **numbers}
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{name}.json"
    write_json(path, record)
    print(path)
    return record


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` returns, made once and kept as JSON."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, make())
    return read_json(path)


def named(entries: Mapping[str, T], name: str) -> T:
    """An entry by its name, or with other settings: `kd@lr=1e-3@trajectories=4000`.

    A setting takes the type it has; one that is None becomes a number.
    """
    base, *changes = name.split("@")
    entry: Any = entries[base]
    for change in changes:
        key, value = change.split("=")
        held = getattr(entry, key)
        made = value == "True" if isinstance(held, bool) else float(value) if held is None else type(held)(value)
        entry = dataclasses.replace(entry, **{key: made})
    return entry


def mean_and_spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation over seeds, 0 for one seed."""
    return {"mean": statistics.mean(values), "spread": statistics.stdev(values) if len(values) > 1 else 0.0}


# Work


def alternating(
    *sides: Callable[[], object], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[tuple[float, ...]]:
    """Seconds of the sides, taken in turn: a tuple for each repeat, after one call of each that does not count.

    What disturbs the machine for a while disturbs all sides of a repeat, so their ratios are steadier than their times.
    """
    for side in sides:
        side()

    def once(side: Callable[[], object]) -> float:
        began = clock()
        side()
        return clock() - began

    return [tuple(once(side) for side in sides) for _ in range(repeats)]


def fit(model: nn.Module, objective: Objective, **settings: Any) -> nn.Module:
    """`dsno.train.train` with the `settings` of a `TrainConfig`; nothing is left on the disk."""
    config = TrainConfig(checkpoint_every=10**9, log_every=10**9, **settings)
    with tempfile.TemporaryDirectory() as folder:
        return train(model, objective, config, Path(folder) / "run")


def eight_modes(
    schedule: Schedule, radius: float, std: float, dtype: torch.dtype = torch.float32, labels: Tensor | None = None
) -> GaussianMixture:
    """Eight Gaussians on a circle: a teacher whose flow is known."""
    angle = torch.arange(8, dtype=dtype) * math.pi / 4
    return GaussianMixture(schedule, radius * torch.stack([angle.cos(), angle.sin()], 1), std, labels=labels)


# Pictures


def pyplot() -> Any:
    """`matplotlib.pyplot`, drawing into files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def tidy(axis: Any, which: str = "major") -> None:
    """A light grid and no frame on top and on the right."""
    axis.grid(True, which=which, alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def save(figure: Any, arguments: argparse.Namespace, name: str, dpi: int) -> None:
    """Write a picture into the folder of pictures."""
    arguments.images.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.images / name, dpi=dpi)
    pyplot().close(figure)
