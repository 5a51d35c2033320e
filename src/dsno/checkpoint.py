"""A model on disk: a folder with `config.json` and `model.safetensors`, both written atomically.

The configuration is the constructor arguments of everything the model is made of, so loading is building and filling.
Nothing is pickled. Under `sha256` it has the checksum of itself and the weights, the `seal`: what was changed since is
refused. An error names what is missing, which key is unknown (and which was probably meant), or where the weights
disagree with the architecture.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import inspect
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from dsno.borrow import plain_names, state_of, without_wrappers
from dsno.listing import entries
from dsno.outside import UNCHECKED, check_arguments, must_be_file, read_json_file, rehearsed
from dsno.outside import unchecked as let_pass

__all__ = [
    "STUDENTS",
    "build",
    "check_keys",
    "check_seal",
    "check_type",
    "check_weights",
    "check_writable",
    "digest",
    "fill",
    "load_model",
    "load_net",
    "naming",
    "publish",
    "raw_bytes",
    "read_json",
    "read_tensors",
    "save_model",
    "seal",
    "sha256_of",
    "temporary_name",
    "tensor_sha",
    "type_of",
    "version_of",
    "write_atomically",
    "write_json",
    "write_tensors",
]

T = TypeVar("T")
Net = TypeVar("Net", bound=nn.Module)

CONFIG, WEIGHTS = "config.json", "model.safetensors"

STUDENTS = ("student", "adapter", "flow map", "decoder")
"""The types of students."""

TYPES = (
    ("teacher",),
    STUDENTS,
    ("features",),
    ("kernel denoiser",),
    ("classifier",),
    ("bridge",),
    ("start",),
)
"""The types of models; those in one pair of brackets may take each other's place."""

WRITES = {
    "teacher": "dsno teach",
    "student": "dsno distill",
    "features": "dsno features",
    "classifier": "dsno classifier",
    "bridge": "dsno teach --pairs",
    "start": "dsno teach --start",
}
"""The command that writes a type, where there is one."""

TEMPORARY = re.compile(r"\.(.+\.[0-9a-f]{32}|step-\d{8})\.tmp")
"""What a file or folder is called until it is whole: left without its writer, it is of no use to anybody."""

SEAL = "sha256"
"""The key of the checksum in a JSON object that is sealed."""


def temporary_name(name: str) -> str:
    """A name of this kind for what is going to be called `name`."""
    return f".{name}.{uuid.uuid4().hex}.tmp"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary path beside `path`, then rename: the file appears whole or not at all.

    Raises:
        OSError: if it cannot be written; names the file.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        with naming(path):
            # `mkstemp` and safetensors make files that nobody else may read.
            temporary.touch()
            mode = temporary.stat().st_mode
            write(temporary)
            temporary.chmod(mode)
            publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say which file it is that could not be written, whatever library said that it could not.

    Raises:
        OSError: instead of the one that came, and of what safetensors makes of one.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        found = re.search(r"os error (\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        if number is None:
            raise
        why = f"cannot write {path} ({os.strerror(number)}): make room, or choose another place"
        raise OSError(number, f"{why}; what is complete is kept") from error


def publish(temporary: Path, path: Path) -> None:
    """Give a complete file its name, once it is on the disk: what a power cut leaves is whole."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically."""
    text = json.dumps(value, indent=1) + "\n"
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically; tensors that share memory, as tied weights do, are written one by one.

    Raises:
        ValueError: as `check_writable` does.
    """
    check_writable(tensors, path.name)
    held: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        own = value.detach().cpu().contiguous()
        storage = own.untyped_storage().data_ptr()
        held[name] = own.clone() if storage in seen else own
        seen.add(storage)
    write_atomically(path, lambda p: save_file(held, p))


def check_writable(tensors: Mapping[str, Any], what: str) -> None:
    """Make sure that a state dict can be written to a safetensors file: before training, not behind it.

    Raises:
        ValueError: for the first value that is no dense tensor with memory for each of its numbers, or has a dtype that
            these files do not know.
    """
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            found = f"a {type(value).__name__}"
        elif value.layout != torch.strided or value.is_meta:
            found = "on the meta device, without data" if value.is_meta else f"a tensor of layout {value.layout}"
        elif any(n > 1 and step == 0 for n, step in zip(value.shape, value.stride(), strict=True)):
            found = "an expanded tensor, whose numbers are one in memory"
        elif not _known(value.dtype):
            found = f"a tensor of dtype {value.dtype}"
        else:
            continue
        raise ValueError(
            f"{what} cannot be written: {name!r} is {found}, and safetensors hold dense tensors of plain dtypes; keep "
            "it in a parameter or a buffer, or out of the state dict"
        )


@functools.cache
def _known(dtype: torch.dtype) -> bool:
    """Whether safetensors have such a dtype."""
    try:
        save({"": torch.empty(0, dtype=dtype)})
    except (KeyError, ValueError, TypeError, RuntimeError, SafetensorError):
        return False
    return True


def read_json(path: Path) -> Any:
    """Read a JSON file, in Unicode whatever the machine's encoding is; a byte order mark is dropped.

    Raises:
        FileNotFoundError: if it is missing, with the names that are there instead.
        ValueError: if it is not JSON, or larger or deeper than any of ours.
    """
    _must_exist(path)
    return read_json_file(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is truncated or damaged.
    """
    _must_exist(path)
    try:
        return load_file(path)
    except (SafetensorError, MemoryError, OSError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}): copy or create it again") from None


def _must_exist(path: Path) -> None:
    if path.exists():
        must_be_file(path)
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent}: expected a model folder with {path.name} in it")
    present = [p.name for p in entries(path.parent)] or ["nothing"]
    raise FileNotFoundError(f"{path.parent} has no {path.name} (it has {', '.join(present)}): not a complete folder")


def check_keys(given: Mapping[str, object], known: list[str], what: str) -> None:
    """Refuse keys that are not known, suggesting the nearest one.

    Raises:
        ValueError: for the first unknown key.
    """
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"unknown key {key!r} in {what}: {hint}")


def build(make: Callable[..., T], config: Mapping[str, object], what: str | None = None) -> T:
    """Call `make(**config)` after checking the keys against its parameters.

    Raises:
        ValueError: for an unknown key, with the nearest known one, a missing one, or a value of another type than the
            parameter is annotated with.
    """
    parameters = inspect.signature(make).parameters
    what = what or f"the configuration of {getattr(make, '__name__', make)}"
    check_keys(config, list(parameters), what)
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in config]
    if missing:
        raise ValueError(f"{what} lacks {', '.join(missing)}")
    check_arguments(make, config, what)
    return make(**config)


def check_weights(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: object) -> None:
    """Check that `tensors` are the weights of a model whose state is `own`.

    Raises:
        ValueError: if names or shapes differ, with the first differences.
    """
    differences = [f"{k} is missing" for k in own if k not in tensors]
    differences += [f"{k} is not part of the model" for k in tensors if k not in own]
    differences += [
        f"{k} has shape {tuple(tensors[k].shape)}, the model has {tuple(own[k].shape)}"
        for k in own
        if k in tensors and own[k].shape != tensors[k].shape
    ]
    differences += [
        f"{k} is {tensors[k].dtype}, the model has {own[k].dtype}"
        for k in own
        if k in tensors and own[k].is_floating_point() != tensors[k].is_floating_point()
    ]
    if differences:
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise ValueError(
            f"{source} holds another architecture than its configuration says: {'; '.join(differences[:3])}{more}"
        )


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: object = "the checkpoint") -> None:
    """Load weights, all of them and nothing else, whatever is wrapped around the module or was when they were stored.

    Raises:
        ValueError: if names or shapes differ, with the first differences.
    """
    state = module.state_dict()
    names = plain_names(module, state)
    own = {short: state[name] for name, short in names.items()}
    given = without_wrappers(tensors, own)
    check_weights(own, given, source)
    # Strict is what was checked; the rest is a wrapper's own.
    module.load_state_dict({name: given[short] for name, short in names.items()}, strict=False)


def check_type(folder: Path, types: Sequence[str]) -> None:
    """Refuse a folder of a model that is none of these `types`, if it holds one; where there are none, any will do.

    Raises:
        FileExistsError: if it is another, another library's, or damaged.
    """
    if not types or not (folder / CONFIG).is_file():
        return
    try:
        config = read_json(folder / CONFIG)
    except ValueError as error:
        raise FileExistsError(f"{error}; remove it, or choose another folder") from None
    found = config.get("type") if isinstance(config, dict) else None
    if found not in types:
        raise FileExistsError(f"{folder} holds a {found or 'foreign model'}, not a {types[0]}: choose another folder")


def type_of(folder: object) -> str | None:
    """The type of the model in a folder, as its configuration says it; None of anything else."""
    file = Path(str(folder)) / CONFIG
    config = read_json(file) if file.is_file() else None
    found = config.get("type") if isinstance(config, dict) else None
    return found if isinstance(found, str) else None


def save_model(folder: Path | str, config: Mapping[str, object], module: nn.Module) -> Path:
    """Write `config`, sealed, and the module's weights; the configuration, written last, marks the folder complete.

    Raises:
        FileExistsError: if the folder holds a model of another `type`, or of another library.
        OSError: if it cannot be written.
        ValueError: if the weights cannot be written to a safetensors file.
    """
    folder = Path(folder)
    check_type(folder, next((types for types in TYPES if config.get("type") in types), ()))
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, state_of(module))
    write_json(folder / CONFIG, {**config, SEAL: seal(config, folder / WEIGHTS)})
    return folder


def load_model(
    folder: Path | str, kind: str, make: Callable[[dict[str, Any]], tuple[T, nn.Module]], unchecked: bool = False
) -> T:
    """Read a folder of the given `kind`: `make(config)` returns the object and the module to fill.

    `config` is what describes the model, without `type`, `notes` and `sha256`. `make` is called on the meta device
    first (`dsno.outside.rehearsed`).

    Raises:
        FileNotFoundError: if a file is missing; says which.
        ValueError: if the folder holds another kind of model, damaged or foreign weights, or was changed since it was
            written; the last is let pass if `unchecked`.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    found = config.get("type") if isinstance(config, dict) else None
    if found != kind:
        how = f", as `{WRITES[kind]}` writes it" if kind in WRITES else ""
        raise ValueError(f"{folder} holds a {found or 'foreign model'}, expected a {kind}{how}")
    tensors = read_tensors(folder / WEIGHTS)
    described = json.dumps({k: v for k, v in config.items() if k not in ("type", "notes", SEAL)})

    def look(made: tuple[T, nn.Module]) -> None:
        check_weights(made[1].state_dict(), tensors, folder)

    made, module = rehearsed(lambda: make(json.loads(described)), len(tensors), folder / CONFIG, look)
    # What does not even fit says more than that it was changed.
    check_seal(config, folder / CONFIG, folder / WEIGHTS, unchecked=unchecked)
    fill(module, tensors, folder)
    return made


def load_net(folder: Path | str, kind: str, network: type[Net], what: str) -> Net:
    """Read a folder of the given `kind` whose configuration is a network's arguments under `net`; in evaluation mode.

    `what` names the network in errors.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: as `load_model` does.
    """

    def make(net: dict[str, Any]) -> tuple[Net, Net]:
        return (made := build(network, net)), made

    return load_model(folder, kind, lambda config: build(make, config, f"the configuration of {what}")).eval()


def seal(described: Mapping[str, object], *files: Path) -> str:
    """SHA-256 over a JSON object, but for its own `sha256`, and the bytes of the files that it goes with."""
    plain = json.loads(json.dumps({k: v for k, v in described.items() if k != SEAL}))
    total = hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode())
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def check_seal(described: Mapping[str, object], source: Path, *files: Path, unchecked: bool = False) -> None:
    """Refuse what was changed since it was sealed; version 0.1 sealed nothing, and what has no seal passes.

    Arguments:
        described: What the file `source` holds.
        source: A JSON file.
        files: Those that it goes with, as `seal` was given them.
        unchecked: Let it pass; so does the environment, `DSNO_UNCHECKED=1`.

    Raises:
        ValueError: if something differs.
    """
    if SEAL in described and not let_pass(unchecked) and described[SEAL] != (found := seal(described, *files)):
        names = " or ".join(path.name for path in (source, *files))
        raise ValueError(
            f"{source.parent}: {names} was changed after it was written (sha256: expected {described[SEAL]!s:.64}, "
            f"found {found}). Copy or make it again; to open it all the same pass unchecked=True, or set {UNCHECKED}=1"
        )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    return sha256_of((f"{name} {x.dtype} {tuple(x.shape)}\n", x) for name, x in sorted(tensors.items()))


def tensor_sha(x: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes."""
    return sha256_of([(f"{x.dtype}{tuple(x.shape)}", x)])


def sha256_of(described: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over tensors in the order they come in, each behind what is said of it."""
    total = hashlib.sha256()
    for text, x in described:
        total.update(text.encode())
        total.update(raw_bytes(x))
    return total.hexdigest()


def raw_bytes(x: Tensor) -> memoryview:
    """The bytes of a tensor in C order, as a safetensors file holds them; of any dtype, from any device."""
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def version_of(package: str) -> str:
    """The installed version of a package, or `not installed`."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
