"""What runs networks in a browser: the plain WebAssembly build of onnxruntime-web, of one version.

Two files of its npm package: a module, and the program that it loads. (The package's larger builds add WebGPU and twice
the bytes, which some hosts refuse.) They are taken from a folder, or from the npm registry once and then from a cache,
and are the ones that were tried here, by their checksums, or are refused.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path
from urllib.request import urlopen

from dsno.checkpoint import write_atomically
from dsno.hub import first_line
from dsno.outputs import writable
from dsno.trajectories.shelf import cache_folder

__all__ = ["LICENCE", "SHA256", "VERSION", "find_runtime"]

VERSION = "1.30.0"

MODULE, PROGRAM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"

SHA256 = {
    MODULE: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    PROGRAM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""The files, each with its checksum."""

LICENCE = f"onnxruntime-web {VERSION}, Copyright (c) Microsoft Corporation, MIT License"

REGISTRY = "https://registry.npmjs.org"
"""Where it comes from, unless npm's own variable `NPM_CONFIG_REGISTRY` names a mirror."""

SECONDS, LIMIT = 30.0, 2**26
"""How long the registry is waited for, and how many bytes are read of it."""


def find_runtime(folder: Path | str | None = None) -> dict[str, Path]:
    """The files of the runtime by name.

    Arguments:
        folder: Where they lie, `node_modules/onnxruntime-web` for example; by default they are fetched once, into the
            folder that `DSNO_CACHE` names, else `~/.cache/dsno`.

    Raises:
        ConnectionError: if they are not in the cache and the registry cannot be reached.
        FileNotFoundError: if one is not in `folder`.
        ValueError: if one is another than that of this version.
    """
    if folder is not None:
        return {name: _checked(_found(Path(folder), name)) for name in SHA256}
    held = cache_folder() / f"onnxruntime-web-{VERSION}"
    files = {name: held / name for name in SHA256}
    if all(path.is_file() and _is_right(path) for path in files.values()):
        return files
    writable(held)
    for name, content in _fetched().items():
        write_atomically(held / name, lambda path, content=content: path.write_bytes(content))  # type: ignore[misc]
    return {name: _checked(path) for name, path in files.items()}


def _found(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / "dist" / name):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{folder} holds no {name}: `npm pack onnxruntime-web@{VERSION}` brings it, in package/dist of the archive"
    )


def _is_right(path: Path) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == SHA256[path.name]


def _checked(path: Path) -> Path:
    if not _is_right(path):
        raise ValueError(f"{path} is not that of onnxruntime-web {VERSION} (its SHA-256 differs): give that version")
    return path


def _fetched() -> dict[str, bytes]:
    registry = (os.environ.get("NPM_CONFIG_REGISTRY") or REGISTRY).rstrip("/")
    url = f"{registry}/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
    try:
        with urlopen(url, timeout=SECONDS) as answer:
            packed = io.BytesIO(answer.read(LIMIT))
        with tarfile.open(fileobj=packed) as archive:
            members = {name: archive.extractfile(f"package/dist/{name}") for name in SHA256}
            return {name: file.read() for name, file in members.items() if file is not None}
    except (OSError, KeyError, EOFError, tarfile.TarError) as error:
        raise ConnectionError(
            f"onnxruntime-web cannot be fetched from {url} ({first_line(error)}): give its files, runtime=DIR"
        ) from None
