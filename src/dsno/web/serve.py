"""A folder of static files on localhost, with the headers that let a page use threads.

A page may share memory between threads only where it is isolated from every other origin, which it asks for by two
headers (`Cross-Origin-Opener-Policy`, `Cross-Origin-Embedder-Policy`). Hosts that do not send them serve the same page,
and it runs on one thread.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

__all__ = ["HEADERS", "HOST", "served", "server_of"]

HOST = "127.0.0.1"

HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".png": "image/png",
    "": "application/octet-stream",
}
"""What files are, by the end of their name; the registry of the system may know other types for them."""


class _Files(SimpleHTTPRequestHandler):
    extensions_map = TYPES

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None: ...


def server_of(folder: Path | str, port: int = 0) -> ThreadingHTTPServer:
    """A server of the files in `folder` on localhost; `serve_forever` starts it, a `port` of 0 is any free one.

    Raises:
        FileNotFoundError: if there is no such folder.
        OSError: if the port is taken.
    """
    if not (folder := Path(folder)).is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to serve: write one, `dsno web --out {folder}`")
    try:
        return ThreadingHTTPServer((HOST, port), partial(_Files, directory=str(folder)))
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise OSError(f"port {port} of {HOST} is taken or not yours: choose another, port={port + 1}") from None


@contextmanager
def served(folder: Path | str, port: int = 0) -> Iterator[str]:
    """The address at which the files in `folder` are served while inside.

    Raises:
        FileNotFoundError, OSError: as `server_of` does.
    """
    with server_of(folder, port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
