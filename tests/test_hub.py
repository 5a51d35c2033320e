"""A remote store is a folder, or one of three errors that say what to do, within seconds."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dsno.hub import SECONDS, ask_hub, first_line, is_hub_id, local_copy, reaching, remote_error
from local_hub import LocalHub, serving


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A Hub with one repository."""
    (folder := tmp_path / "hub" / "model").mkdir(parents=True)
    (folder / "unet").mkdir()
    for name in ("config.json", "unet/weights.safetensors", "README.md", "weights.bin"):
        (folder / name).write_text(f'"{name}"')
    with serving(tmp_path / "hub", tmp_path / "cache", monkeypatch) as served:
        yield served


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An address that takes a connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        constants = pytest.importorskip("huggingface_hub").constants
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield


@pytest.mark.parametrize(
    "ref, wanted",
    [
        ("org/name", True),
        ("org/name@main", True),
        ("o-1/n.a_me@refs/pr/1", True),
        ("name", False),
        ("a/b/c", False),
        ("./name", False),
        ("/name", False),
        ("org/", False),
        ("org name/x", False),
        ("org/name@", False),
    ],
)
def test_names_of_repositories(ref: str, wanted: bool) -> None:
    assert is_hub_id(ref) == wanted


def test_an_error_in_one_line() -> None:
    assert first_line(ValueError("no such thing.\nTraceback ...")) == "no such thing"
    assert first_line(ValueError("\n  indented")) == "indented"
    assert first_line(TimeoutError()) == "TimeoutError"


class Answered(Exception):
    """What a client raises for a response."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}. Try this.\nAnd that.")
        self.response = SimpleNamespace(status_code=status)


def from_library(module: str) -> Exception:
    return type("Unheard", (Exception,), {"__module__": module})("nobody there")


ERRORS = [
    (FileNotFoundError("x"), FileNotFoundError),
    (Answered(404), FileNotFoundError),
    (PermissionError("x"), PermissionError),
    (Answered(401), PermissionError),
    (Answered(403), PermissionError),
    (ConnectionRefusedError("x"), ConnectionError),
    (TimeoutError("x"), ConnectionError),
    (Answered(429), ConnectionError),
    (Answered(503), ConnectionError),
    (from_library("httpx"), ConnectionError),
    (from_library("httpx2._exceptions"), ConnectionError),
    (from_library("botocore.exceptions"), ConnectionError),
    (FileExistsError("x"), None),
    (Answered(400), None),
    (OSError(28, "no space left on device"), None),
    (ValueError("x"), None),
]


@pytest.mark.parametrize("error, kind", ERRORS, ids=[repr(error) for error, _ in ERRORS])
def test_the_errors_of_every_client_are_three(error: Exception, kind: type[OSError] | None) -> None:
    assert remote_error(error) is kind
    messages = {"missing": "no set ({error})", "closed": "not for you ({error})", "unreachable": "{here} ({error})"}
    said = dict(zip((FileNotFoundError, PermissionError, ConnectionError), messages.values(), strict=True))
    with pytest.raises(type(error) if kind is None else kind) as caught, reaching(**messages):
        raise error
    if kind is None:
        assert caught.value is error
    else:
        assert type(caught.value) is kind and caught.value.__cause__ is error
        assert str(caught.value) == said[kind].replace("{error}", first_line(error))


def test_a_gate_is_a_closed_door_and_a_bad_name_is_no_repository() -> None:
    errors = pytest.importorskip("huggingface_hub.errors")
    assert remote_error(errors.HFValidationError("bad--name")) is FileNotFoundError
    assert remote_error(errors.OfflineModeIsEnabled("offline")) is ConnectionError
    # The Hub asks for a login where it has nothing, so as not to tell.
    for error, kind in ((errors.GatedRepoError, PermissionError), (errors.RepositoryNotFoundError, FileNotFoundError)):
        raised = error.__new__(error)
        raised.response = SimpleNamespace(status_code=401)
        assert remote_error(raised) is kind


@pytest.mark.parametrize("kind, what", [("model", "repository"), ("dataset", "dataset")])
def test_the_hub_is_asked_once(hub: LocalHub, kind: str, what: str) -> None:
    ask_hub("org/model", kind)
    ask_hub("org/model", kind, "main")
    with pytest.raises(FileNotFoundError, match=f"^the Hub has no {what} org/absent that you may see: check the name"):
        ask_hub("org/absent", kind)
    with pytest.raises(FileNotFoundError, match="^org/model on the Hub has no revision 'v9'$"):
        ask_hub("org/model", kind, "v9")
    with pytest.raises(PermissionError, match="^org/gated on the Hub is closed to you: accept its conditions"):
        ask_hub("org/gated", kind)
    with pytest.raises(ConnectionError, match="500"):
        ask_hub("org/broken", kind)
    with pytest.raises(FileNotFoundError, match="the Hub has no"):
        ask_hub("org/bad--name", kind)
    assert hub.fetched == []


def test_a_copy_has_the_files_that_are_needed_and_serves_when_nobody_answers(hub: LocalHub) -> None:
    copy = local_copy("org/model", ["*.json", "unet/*.safetensors"])
    found = {str(p.relative_to(copy)) for p in copy.rglob("*") if p.is_file()}
    assert found == {"config.json", "unet/weights.safetensors"}
    assert set(hub.fetched) == {"config.json", "weights.safetensors"}
    hub.close()
    assert local_copy("org/model", ["*.json"]) == copy
    with pytest.raises(
        ConnectionError,
        match=r"^there is no folder org/other here, and the Hub cannot be reached for org/other \(.*\), "
        "nor is it in the cache: connect, or give a local folder$",
    ):
        local_copy("org/other")


def test_a_folder_is_itself_and_other_words_are_neither(hub: LocalHub, tmp_path: Path) -> None:
    assert local_copy(tmp_path) == local_copy(str(tmp_path)) == tmp_path
    with pytest.raises(FileNotFoundError, match="^there is no runs/a/teacher$"):
        local_copy("runs/a/teacher")
    with pytest.raises(FileNotFoundError, match="^there is no folder org/absent here, and the Hub has no repository"):
        local_copy("org/absent")
    with pytest.raises(PermissionError, match="^there is no folder org/gated here, and org/gated on the Hub is closed"):
        local_copy("org/gated")
    with pytest.raises(ValueError, match=r"only .json, .safetensors, .txt, .model files are fetched, got .*'\*.bin'"):
        local_copy("org/model", ["*.json", "*.bin"])
    assert hub.fetched == []


def test_a_hub_that_does_not_answer_is_not_waited_for(nobody: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SECONDS <= 10
    monkeypatch.setattr("dsno.hub.SECONDS", 0.1)
    began = time.monotonic()
    for kind in ("model", "dataset"):
        with pytest.raises(ConnectionError):
            ask_hub("org/name", kind)
    assert time.monotonic() - began < 3
