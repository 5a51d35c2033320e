"""The Hugging Face Hub as tests reach it: served by this machine, for the folders of one organisation."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

SHA = "0123456789" * 4


class LocalHub:
    """The part of the Hub's protocol that a question and a download need.

    `org/NAME` is the folder `root/NAME`, of one revision, `main`; `org/gated` is closed, and `org/broken` an error of
    the server. `fetched` collects the names of the files that were asked for.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fetched: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, body = hub.answer(unquote(self.path.split("?")[0]))
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        parts = path.strip("/").split("/")
        if parts[:2] in (["api", "models"], ["api", "datasets"]):
            name, revision = parts[3], parts[5] if len(parts) > 5 else "main"
            folder = self.root / name
            if name == "gated":
                return 403, {"X-Error-Code": "GatedRepo"}, b""
            if name == "broken":
                return 500, {}, b""
            if not folder.is_dir():
                return 404, {"X-Error-Code": "RepoNotFound"}, b""
            if revision not in ("main", SHA):
                return 404, {"X-Error-Code": "RevisionNotFound"}, b""
            files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
            if "tree" in parts:
                tree = [{"type": "file", "path": f, "size": (folder / f).stat().st_size, "oid": f} for f in files]
                return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()
            info = {"id": f"org/{name}", "sha": SHA, "siblings": [{"rfilename": f} for f in files]}
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        if len(parts) > 4 and parts[2] == "resolve":
            file = self.root / parts[1] / "/".join(parts[4:])
            body = file.read_bytes()
            self.fetched.append(file.name)
            return 200, {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": SHA}, body
        return 404, {}, b""


@contextmanager
def serving(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """The client of this process asks a `LocalHub` of the folders in `root`, and keeps what it fetches in `cache`."""
    constants = pytest.importorskip("huggingface_hub").constants
    hub = LocalHub(root)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    try:
        yield hub
    finally:
        hub.close()
