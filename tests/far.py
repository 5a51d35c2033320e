"""Places that are far away, as tests pretend to have them: a Hub of one dataset, and whatever fsspec reaches."""

import base64
import http.server
import json
import os
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

import fsspec
import huggingface_hub
import torch

from processes import forked

DATASET = "hf://datasets/org/name"


class Hub(http.server.ThreadingHTTPServer):
    """Speaks as much of the Hub's language as one dataset, `org/name`, needs; can hang, hang up and refuse."""

    daemon_threads = True

    def __init__(self) -> None:
        self.files: dict[str, bytes] | None = None  # until the repository is made
        self.commits: list[tuple[str, list[str]]] = []
        self.asked: list[str] = []
        self.private: Any = None
        self.hangs, self.refuses = "", 0
        self.hanging, self.released = threading.Event(), threading.Event()
        super().__init__(("127.0.0.1", 0), Language)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Language(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, files = urllib.parse.unquote(self.path.split("?")[0]), self.server.files
        if self.server.refuses:
            self.answer(b"{}", self.server.refuses)
        elif files is None:
            self.answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/datasets/org/name/tree/"):
            self.answer(self.tree(files, path.removeprefix("/api/datasets/org/name/tree/main").strip("/")))
        elif path.startswith("/api/datasets/org/name"):
            self.answer({"id": "org/name", "sha": "0" * 40, "private": False, "tags": [], "downloads": 0, "likes": 0})
        elif (name := path.removeprefix("/datasets/org/name/resolve/main/")) in files:
            self.send(name, files[name])
        else:
            self.answer(b"{}", 404, {"X-Error-Code": "EntryNotFound"})

    def tree(self, files: dict[str, bytes], folder: str) -> list[dict[str, Any]]:
        inside = {k: v for k, v in files.items() if k.rpartition("/")[0] == folder}
        return [{"type": "file", "path": k, "size": len(v), "oid": "0"} for k, v in inside.items()]

    def send(self, name: str, data: bytes) -> None:
        self.server.asked.append(name)
        span = self.headers.get("Range")
        first, _, last = (span or "bytes=0-").removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else None]
        where = {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"} if span else {}
        if name != self.server.hangs:
            self.answer(part, 206 if span else 200, where)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        self.server.hanging.set()
        self.server.released.wait(30)
        self.server.hangs, self.close_connection = "", True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.refuses:
            self.answer(b"{}", self.server.refuses)
        elif self.path == "/api/repos/create":
            if self.server.files is None:
                asked = json.loads(body)
                self.server.files = {".gitattributes": b""}
                self.server.private = "private" in asked.values() or asked.get("private")
            self.answer({"url": f"{self.server.url}/datasets/org/name"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            wanted = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in wanted]})
        else:
            self.commit([json.loads(line) for line in body.splitlines()])

    def commit(self, lines: list[dict[str, Any]]) -> None:
        assert self.server.files is not None
        for line in lines[1:]:
            if line["key"] == "file":
                self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            else:
                del self.server.files[line["value"]["path"]]
        self.server.commits.append((lines[0]["value"]["summary"], [line["value"]["path"] for line in lines[1:]]))
        self.answer({"commitUrl": f"{self.server.url}/datasets/org/name/commit/{'0' * 40}", "commitOid": "0" * 40})

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in ((headers or {}) | {"Content-Length": str(len(data)), "X-Repo-Commit": "0" * 40}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None: ...


def elsewhere(endpoint: str, cache: str, work: Callable[..., object], *arguments: Any) -> None:
    """What another process does: it has its own idea of where the Hub is."""
    os.environ["DSNO_CACHE"] = cache
    huggingface_hub.constants.ENDPOINT = endpoint
    huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    torch.set_num_threads(1)
    work(*arguments)


def start(hub: Hub, work: Callable[..., object], *arguments: Any) -> Any:
    """A process that does some work with this Hub."""
    context = forked(["dsno.train", "dsno.trajectories.shelf", "huggingface_hub.hf_file_system", "pytest"])
    process = context.Process(target=elsewhere, args=(hub.url, os.environ["DSNO_CACHE"], work, *arguments))
    process.start()
    return process


def far(url: str) -> dict[str, bytes]:
    """The files at a place, but for what is unfinished."""
    fs, root = fsspec.url_to_fs(url, skip_instance_cache=True)
    found = {p.rsplit("/", 1)[-1]: fs.cat_file(p) for p in sorted(fs.find(root))}
    return {name: data for name, data in found.items() if not name.startswith(".")}


def spoil(url: str, name: str, change: Callable[[bytearray], object]) -> None:
    """Change the bytes of a file at a place."""
    fs, root = fsspec.url_to_fs(url, skip_instance_cache=True)
    data = bytearray(fs.cat_file(f"{root}/{name}"))
    change(data)
    fs.pipe_file(f"{root}/{name}", bytes(data))


def flip(data: bytearray) -> None:
    data[-7] ^= 1


def cut(data: bytearray) -> None:
    del data[-9:]
