"""A model on disk: a folder with `config.json` and `model.safetensors`, both written atomically.

The configuration is the constructor arguments of everything the model is made of, so loading is building and filling.
Nothing is pickled. An error names what is missing, which key is unknown (and which was probably meant), or where the
weights disagree with the architecture.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dsno.listing import entries

__all__ = [
    "build",
    "check_keys",
    "check_weights",
    "digest",
    "fill",
    "load_model",
    "prepare_folder",
    "publish",
    "raw_bytes",
    "read_json",
    "read_tensors",
    "save_model",
    "sha256_of",
    "tensor_sha",
    "version_of",
    "write_atomically",
    "write_json",
    "write_tensors",
]

T = TypeVar("T")

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary path beside `path`, then rename: the file appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        # `mkstemp` and safetensors make files that nobody else may read.
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    """Write a safetensors file atomically."""
    held = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomically(path, lambda p: save_file(held, p))


def read_json(path: Path) -> Any:
    """Read a JSON file, in Unicode whatever the machine's encoding is; a byte order mark is dropped.

    Raises:
        FileNotFoundError: if it is missing, with the names that are there instead.
        ValueError: if it is not JSON.
    """
    _must_exist(path)
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): it is damaged or not a dsno file") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is truncated or damaged.
    """
    _must_exist(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or damaged ({error}): copy or create it again") from None


def _must_exist(path: Path) -> None:
    if path.is_file():
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent}: expected a model folder with {path.name} in it")
    present = [p.name for p in entries(path.parent)] or ["nothing"]
    raise FileNotFoundError(f"{path.parent} has no {path.name} (it has {', '.join(present)}): not a complete folder")


def prepare_folder(path: Path | str, resume: bool = False, overwrite: bool = False) -> Path:
    """Make an output folder ready, before any work.

    Raises:
        FileExistsError: if it exists with something in it and neither `resume` nor `overwrite` is set, or if it would
            be overwritten with the working directory inside.
        PermissionError: if it cannot be written to.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file: expected a folder to write to")
    if path.is_dir() and entries(path):
        if overwrite:
            if Path.cwd().is_relative_to(path.resolve()):
                raise FileExistsError(f"{path} holds the working directory: choose another output folder")
            shutil.rmtree(path)
        elif not resume:
            raise FileExistsError(f"{path} exists already: pass --resume to continue it or --overwrite to start again")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except OSError as error:
        raise PermissionError(f"cannot write to {path} ({error.strerror}): choose another output folder") from None
    return path


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
        ValueError: for an unknown key, with the nearest known one, or a missing one.
    """
    parameters = inspect.signature(make).parameters
    what = what or f"the configuration of {getattr(make, '__name__', make)}"
    check_keys(config, list(parameters), what)
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in config]
    if missing:
        raise ValueError(f"{what} lacks {', '.join(missing)}")
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
    if differences:
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise ValueError(
            f"{source} holds another architecture than its configuration says: {'; '.join(differences[:3])}{more}"
        )


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: object = "the checkpoint") -> None:
    """Load weights, all of them and nothing else.

    Raises:
        ValueError: if names or shapes differ, with the first differences.
    """
    check_weights(module.state_dict(), tensors, source)
    module.load_state_dict(dict(tensors))


def save_model(folder: Path | str, config: Mapping[str, object], module: nn.Module) -> Path:
    """Write `config` and the module's weights into a folder; the configuration, written last, marks it complete."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, module.state_dict())
    write_json(folder / CONFIG, config)
    return folder


def load_model(folder: Path | str, kind: str, make: Callable[[dict[str, Any]], tuple[T, nn.Module]]) -> T:
    """Read a folder of the given `kind`: `make(config)` returns the object and the module to fill.

    `config` is what describes the model, without `type` and `notes`.

    Raises:
        FileNotFoundError: if a file is missing; says which.
        ValueError: if the folder holds another kind of model, or damaged or foreign weights.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    found = config.get("type") if isinstance(config, dict) else None
    if found != kind:
        raise ValueError(f"{folder} holds a {found or 'foreign model'}, expected a {kind}")
    made, module = make({k: v for k, v in config.items() if k not in ("type", "notes")})
    fill(module, read_tensors(folder / WEIGHTS), folder)
    return made


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
