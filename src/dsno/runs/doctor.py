"""What this installation has and lacks: packages, devices, caches. What a report of a fault begins with.

What is wanted is read from the package's own metadata, so an extra is known here when `pyproject.toml` has it. A need
is met by an installed version that its requirement admits; those of the core are imported, too, as a package may be
there and not work. Nothing is downloaded and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

from dsno.outside import one_line
from dsno.precision import best_precision
from dsno.trajectories.shelf import CACHE, cache_folder

__all__ = ["Cache", "Checkup", "Device", "Need", "checkup", "mend"]

GB = 1e9


@dataclass(frozen=True)
class Need:
    """A package that is wanted.

    Attributes:
        name: The package's.
        wanted: The versions that will do, `>=2.6`; empty for any.
        found: The installed version, or None.
        problem: Why it will not do, or empty.
        works: Whether it can be imported; only asked of the core.
    """

    name: str
    wanted: str
    found: str | None
    problem: str = ""
    works: bool = True


@dataclass(frozen=True)
class Device:
    """Something that computes.

    Attributes:
        name: As `--device` takes it.
        model: What it is.
        memory: Bytes.
        says: What it can do: instructions and threads, or the compute capability.
        bf16: Whether training in bfloat16 is quicker than in float32, and how that is known.
    """

    name: str
    model: str
    memory: int
    says: str
    bf16: str


@dataclass(frozen=True)
class Cache:
    """A folder that is written to.

    Attributes:
        holds: What.
        path: Where it is.
        variable: The variable of the environment that moves it.
        free: Bytes that are free there.
        problem: Why it cannot be written to, or empty.
    """

    holds: str
    path: str
    variable: str
    free: int
    problem: str = ""


@dataclass(frozen=True)
class Checkup:
    """What was found.

    Attributes:
        system: The operating system and the processor's kind.
        python: Version and path of the interpreter.
        dsno: The library's own version.
        core: What it cannot do without.
        extras: What each extra of the package wants, by its name.
        devices: The processor, then accelerators.
        caches: The folders that are written to.
    """

    system: str
    python: str
    dsno: str
    core: tuple[Need, ...]
    extras: dict[str, tuple[Need, ...]]
    devices: tuple[Device, ...]
    caches: tuple[Cache, ...]

    @property
    def ok(self) -> bool:
        """Whether the core is as it should be."""
        return not any(need.problem for need in self.core)

    def lacking(self) -> dict[str, str]:
        """The extras that are not complete, each with the command that mends it; `core`, where that is broken."""
        groups = {"core": self.core, **self.extras}
        return {name: mend(needs) for name, needs in groups.items() if any(need.problem for need in needs)}

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {"ok": self.ok, **asdict(self), "mend": self.lacking()}


def checkup() -> Checkup:
    """Look at the packages, devices and caches of this process.

    Raises:
        ImportError: if the library runs without being installed, so that nobody knows what it wants.
    """
    try:
        own = metadata.distribution("dsno")
    except metadata.PackageNotFoundError:
        raise ImportError("dsno is not installed here, and what it needs is not known: pip install it first") from None
    wanted = [Requirement(text) for text in own.requires or ()]
    core = [r for r in wanted if _applies(r, "")]
    names = own.metadata.get_all("Provides-Extra") or []
    extras = {n: tuple(_need(r) for r in wanted if _applies(r, n) and not _applies(r, "")) for n in names}
    return Checkup(
        system=f"{platform.platform()} {platform.machine()}",
        python=f"{platform.python_version()} ({sys.executable})",
        dsno=own.version,
        core=tuple(_imported([_need(r) for r in core])),
        extras=extras,
        devices=tuple(_devices()),
        caches=tuple(_caches()),
    )


def mend(needs: Iterable[Need]) -> str:
    """The command that installs what does not do."""
    lacking = [need for need in needs if need.problem]
    again = [] if all(need.works for need in lacking) else ["--force-reinstall"]
    names = [f"{need.name}{need.wanted}" for need in lacking]
    return shlex.join([sys.executable, "-m", "pip", "install", *again, *names])


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _need(requirement: Requirement) -> Need:
    wanted = str(requirement.specifier)
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Need(requirement.name, wanted, None, "is not installed")
    fits = requirement.specifier.contains(found, prereleases=True)
    return Need(requirement.name, wanted, found, "" if fits else f"is {found}, {wanted} is needed")


def _imported(needs: Sequence[Need]) -> Iterator[Need]:
    """The needs, with what is raised where their modules are imported."""
    provided = metadata.packages_distributions()
    for need in needs:
        try:
            for module in [name for name, of in provided.items() if need.name in of and not need.problem]:
                import_module(module)
        except Exception as error:
            yield replace(need, problem=f"does not work: {one_line(error)}", works=False)
        else:
            yield need


def _devices() -> Iterator[Device]:
    import psutil

    cpu = torch.device("cpu")
    threads = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    yield Device("cpu", _processor(), psutil.virtual_memory().total, threads, best_precision(cpu)[1])
    for index in range(torch.cuda.device_count()):
        device, held = torch.device("cuda", index), torch.cuda.get_device_properties(index)
        says = f"compute capability {held.major}.{held.minor}, CUDA {torch.version.cuda or torch.version.hip}"
        yield Device(str(device), held.name, held.total_memory, says, best_precision(device)[1])
    if torch.backends.mps.is_available():
        mps, memory = torch.device("mps"), torch.mps.recommended_max_memory()
        yield Device("mps", _processor(), memory, "Metal", best_precision(mps)[1])


def _processor() -> str:
    """What the processor calls itself, where the system says it."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _caches() -> Iterator[Cache]:
    yield _cache("trajectories that are streamed", cache_folder(), CACHE)
    # A core that is broken has been told of already.
    with contextlib.suppress(ImportError):
        from huggingface_hub import constants

        sets = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets"
        yield _cache("models of the Hub", Path(constants.HF_HUB_CACHE), "HF_HUB_CACHE")
        yield _cache("datasets of the Hub", Path(sets), "HF_DATASETS_CACHE")
    yield _cache("temporary files", Path(tempfile.gettempdir()), "TMPDIR")


def _cache(holds: str, path: Path, variable: str) -> Cache:
    # A folder that is missing is made where it is needed: whether that can be is asked of the nearest that is there.
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    problem = ""
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        problem = f"{there} cannot be written to ({error.strerror})"
    return Cache(holds, str(path), variable, shutil.disk_usage(there).free, problem)
