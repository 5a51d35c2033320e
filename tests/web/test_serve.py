"""Files of one folder, on localhost alone, with the headers of an isolated page."""

from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from dsno.web.serve import HEADERS, HOST, served


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_text("outside")
    (made := tmp_path / "site").mkdir()
    for name in ("index.html", "main.js", "ort.mjs", "ort.wasm", "weights.bin"):
        (made / name).write_text(name)
    return made


def test_files_are_served_with_their_types_and_the_page_is_isolated(folder: Path) -> None:
    types = {
        "": "text/html; charset=utf-8",
        "main.js": "text/javascript; charset=utf-8",
        "ort.mjs": "text/javascript; charset=utf-8",
        "ort.wasm": "application/wasm",
        "weights.bin": "application/octet-stream",
    }
    with served(folder) as url:
        assert url.startswith(f"http://{HOST}:")
        for name, kind in types.items():
            with urlopen(url + name) as answer:
                assert answer.headers["Content-Type"] == kind and answer.read().decode() == (name or "index.html")
                assert {key: answer.headers[key] for key in HEADERS} == HEADERS


@pytest.mark.parametrize("path", ["../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt", "missing.js", "below/"])
def test_nothing_else_is_served(path: str, folder: Path) -> None:
    (folder / "below").mkdir()
    with served(folder) as url, pytest.raises(HTTPError, match="404"):
        urlopen(url + path)


def test_a_folder_that_is_missing_and_a_port_that_is_taken_are_said(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder nowhere to serve: write one, `dsno web"):
        served("nowhere").__enter__()
    with served(folder) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        with pytest.raises(OSError, match=rf"port {port} of .* is taken .*: choose another, port={port + 1}"):
            served(folder, port).__enter__()
