"""The page of gradio: its endpoints make what Python makes, its limits hold, and a browser shows it."""

from __future__ import annotations

import http.client
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from PIL import Image

from dsno.app import page
from dsno.app.desk import Desk
from dsno.app.draw import draw
from dsno.app.models import Ask, Model
from dsno.app.places import Places
from dsno.app.uploads import BYTES, PIXELS
from dsno.data.load import load_data
from dsno.data.originals import as_png
from dsno.data.samples import to_uint8
from dsno.runs.shipped import shipped
from shell import dsno

gradio = pytest.importorskip("gradio", reason="needs gradio: pip install 'dsno[app]'")
gradio_client = pytest.importorskip("gradio_client")

ROOT = Path(tempfile.gettempdir()) / "gradio"
"""Where gradio keeps what was sent."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def desk() -> Desk:
    return Desk(Places((), {"digits student": str(shipped() / "student")}))


@pytest.fixture(scope="module")
def url(desk: Desk) -> Iterator[str]:
    """The page of the shipped student beside its teacher, on any free port."""
    with page.served_page(page.made_page(desk, "digits student", "digits", drawn=True), port=0) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    return gradio_client.Client(url, verbose=False)


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    (tmp_path / "digit.png").write_bytes(as_png(load_data("digits").x[0]))
    return tmp_path / "digit.png"


def pixels(picture: str | Path) -> np.ndarray:
    return np.asarray(Image.open(picture))


def within(x: np.ndarray, y: np.ndarray, levels: int = 1) -> bool:
    """Whether pictures agree but for the rounding of rounding errors."""
    return x.shape == y.shape and int(np.abs(x.astype(int) - y.astype(int)).max()) <= levels


def test_a_seed_is_the_picture_of_the_command_line_and_of_python(client: Any, desk: Desk, tmp_path: Path) -> None:
    picture, said, strip = client.predict(seed=7, api_name="/sample")
    assert dsno("sample", "--seed", 7, "--count", 1, "--out", "s.npy", "--device", "cpu", at=tmp_path).code == 0
    assert within(pixels(picture), to_uint8(torch.from_numpy(np.load(tmp_path / "s.npy"))[0, 0]).numpy())
    assert said.startswith("1 network call, ") and pixels(strip).shape[1] > 5 * 96
    picture, said, _ = client.predict("digits", seed=3, steps=5, solver="heun", path=False, api_name="/sample")
    own = draw(desk.opened("digits"), Ask(3, steps=5, solver="heun"))
    assert np.array_equal(pixels(picture), to_uint8(own.picture)[0].numpy())
    assert said.startswith("9 network calls, ")


def test_the_end_points_are_these_and_no_others(client: Any) -> None:
    known = client.view_api(return_format="dict", print_info=False)
    assert {*known["named_endpoints"]} == {"/sample", "/restore"} and known["unnamed_endpoints"] == {}


def test_a_long_run_tells_of_its_progress_and_ends_when_it_is_cancelled(client: Any, desk: Desk) -> None:
    calls: list[int] = []

    def slowly(*_: object) -> None:
        calls.append(1)
        time.sleep(0.01)

    handle = desk.opened("digits").of.net.register_forward_hook(slowly)  # type: ignore[union-attr]
    try:
        job = client.submit("digits", steps=1000, api_name="/sample")
        limit = time.monotonic() + 60
        while not any(" of 1000 network calls, " in output[1] for output in job.outputs()):
            assert time.monotonic() < limit and not job.done()
        assert job.cancel()
        # The next run waits until the one before it has ended.
        assert client.predict(seed=1, api_name="/sample")[1].startswith("1 network call, ")
        done = len(calls)
        assert client.predict("digits", steps=1, path=False, api_name="/sample")[1].startswith("1 network call, ")
        assert done < 1000 and len(calls) == done + 1
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "given, message",
    [
        ({"model": "/etc"}, "'/etc' is not opened here: models are opened from no folder"),
        ({"model": "../weights"}, "'../weights' is not opened here"),
        ({"model": "org/name"}, "'org/name' is not opened here"),
        ({"model": "os:system"}, "'os:system' is not opened here"),
        ({"label": "3"}, "label 3 is outside the classes of digits student: it has no classes"),
        ({"label": "x"}, "a whole number is expected, got 'x'"),
        ({"passes": 5}, r"digits student makes 1, 2, 3, 4 pass\(es\), got 5"),
        ({"prompt": "a cat"}, "digits student is told no text: leave the prompt out"),
        ({"model": "digits", "steps": 1001}, "1001 is greater than maximum value 1000"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(given: dict[str, Any], message: str, client: Any) -> None:
    with pytest.raises(Exception, match=message):
        client.predict(**given, api_name="/sample")


def test_a_picture_is_restored_with_a_mask(client: Any, digit: Path, tmp_path: Path) -> None:
    mask = np.full((8, 8), 255, np.uint8)
    mask[:, 4:] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    files = {name: gradio_client.handle_file(tmp_path / f"{name}.png") for name in ("digit", "mask")}
    pictures, said = client.predict(
        "digits", files["digit"], mask=files["mask"], whole=False, steps=3, samples=1, seed=5, api_name="/restore"
    )
    assert said.startswith("3 network calls, 0 vjps, ") and [made["caption"] for made in pictures] == ["seed 5"]
    options = ("--half", "right", "--steps", 3, "--seed", 5, "--device", "cpu", "--out", "out")
    assert dsno("restore", "digit.png", *options, at=tmp_path).code == 0
    assert within(pixels(pictures[0]["image"]), pixels(tmp_path / "out" / "digit.png"))
    with pytest.raises(Exception, match="nothing is missing: paint over what is to be filled"):
        client.predict("digits", files["digit"], api_name="/restore")


def test_pictures_that_are_too_large_or_were_not_sent_are_refused(client: Any, url: str, digit: Path) -> None:
    Image.new("L", (2048, PIXELS // 2048 + 1)).save(digit)
    with pytest.raises(Exception, match=r"has 2048 x 2049 pixels, and 4,194,304 are taken at most"):
        client.predict("digits", gradio_client.handle_file(digit), problem="super", api_name="/restore")
    # A file of this machine is none that was sent, whatever a request calls it.
    secret = digit.with_name("secret.png")
    secret.write_bytes(as_png(load_data("digits").x[0]))
    meta = {"meta": {"_type": "gradio.FileData"}}
    for sent in ({"path": str(secret)}, {"path": str(secret), **meta}, {"path": f"{ROOT}/../../{secret}"}):
        assert "error" in answered(url, "restore", ["digits", sent, None, None, "super"])
    said = answered(url, "restore", ["digits", {"path": str(secret)}, None, None, "super"])
    assert "a file that was not sent is not read" in said
    layers = {"background": None, "layers": [{"path": str(secret), **meta}], "composite": None}
    assert "error" in answered(url, "restore", ["digits", None, layers])
    assert status(url, "GET", f"/gradio_api/file={secret}") == 403


def test_no_widget_takes_a_file_that_was_not_sent(desk: Desk, digit: Path) -> None:
    made = page.made_page(desk, "digits")
    inputs = {id(block): block for function in made.fns.values() for block in function.inputs}.values()
    taking = [block for block in inputs if isinstance(block, gradio.Image | gradio.ImageEditor)]
    assert len(taking) == 4
    for block in taking:
        file: dict[str, Any] = {"path": str(digit), "orig_name": "digit.svg", "meta": {"_type": "gradio.FileData"}}
        given = {"layers": [file]} if isinstance(block, gradio.ImageEditor) else file
        with pytest.raises(gradio.Error, match="a file that was not sent is not read"):
            block.preprocess(block.data_model.model_validate(given))


def answered(url: str, name: str, data: list[Any]) -> str:
    """What an endpoint says to whoever writes the request himself; the rest of the data is left as it is."""
    usual = ["digits", None, None, None, "inpaint", True, 2, 1.0, 0.0, "", 2, 1, 0, None, "", 0.0]
    body = json.dumps({"data": [*data, *usual[len(data) :]]}).encode()
    with urlopen(Request(f"{url}gradio_api/call/{name}", body, {"Content-Type": "application/json"})) as begun:
        event = json.load(begun)["event_id"]
    with urlopen(f"{url}gradio_api/call/{name}/{event}") as answer:
        return str(answer.read(), "utf-8")


def status(url: str, method: str, path: str, body: bytes = b"", **headers: str) -> int:
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
    try:
        connection.request(method, path, body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_request_that_is_too_long_is_not_read(url: str) -> None:
    body = json.dumps({"data": ["digits"]}).encode()
    assert status(url, "POST", "/gradio_api/call/sample", body, **{"Content-Type": "application/json"}) != 413
    assert status(url, "POST", "/gradio_api/upload", b"", **{"Content-Length": str(4 * BYTES)}) == 413


def test_it_listens_where_it_was_told_and_says_where_it_cannot(url: str, desk: Desk) -> None:
    assert url.startswith("http://127.0.0.1:")
    port = urlsplit(url).port
    assert port is not None
    with socket.socket() as other, pytest.raises(OSError):
        # Another address of this very machine is not listened at.
        other.connect(("127.0.0.2", port))
    made = page.made_page(desk, "digits")
    for host, number, message in (
        ("127.0.0.1", port, f"port {port} of 127.0.0.1 is taken or not yours: choose another, port={port + 1}"),
        ("203.0.113.9", 0, "203.0.113.9 is no address of this machine"),
        ("no host", 0, "no host is no address of this machine"),
    ):
        with pytest.raises(OSError, match=message), page.served_page(made, host, number):
            pass
    with (
        pytest.raises(ValueError, match=r"port must be in \[0, 65535\], got 70000"),
        page.served_page(made, port=70000),
    ):
        pass


def test_without_gradio_it_says_what_to_install(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(ModuleNotFoundError, match=r"`dsno app` needs the package 'gradio': pip install 'dsno\[app\]'"):
        page.made_page(desk, "digits")


def test_a_fault_of_ours_is_not_told_to_whoever_asks(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(Model, "told", broken)
    with pytest.raises(Exception) as failed:
        client.predict(seed=1, api_name="/sample")
    assert "secret" not in str(failed.value)


@pytest.mark.browser
@pytest.mark.slow
def test_a_browser_draws_stops_and_restores_and_asks_nobody_else(browser: Any, url: str) -> None:
    seen, asked, said = browser.new_page(viewport={"width": 1280, "height": 900}), set[str](), list[str]()

    def heard(message: Any) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            said.append(message.text)

    def answered(response: Any) -> None:
        # The page of gradio ends runs whose number it has not heard yet, and is told that there is none.
        if response.status >= 400 and not response.url.endswith(("/cancel", "/reset")):
            said.append(f"{response.status} {response.url} {response.request.post_data}")

    seen.on("console", heard)
    seen.on("pageerror", lambda error: said.append(str(error)))
    seen.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
    seen.on("response", answered)

    def costs(label: str, *patterns: str) -> None:
        for n, pattern in enumerate(patterns):
            script = "([n, p, l]) => new RegExp(p).test([...document.querySelectorAll('label')]"
            script += ".filter(e => e.innerText.trim() == l).map(e => e.querySelector('input,textarea').value)[n])"
            seen.wait_for_function(script, arg=[n, pattern, label], timeout=60_000)

    seen.goto(url)
    costs("Cost", "^1 network call, .*s$", "^16 network calls, ")
    seen.get_by_label("Seed").first.fill("7")
    seen.get_by_role("button", name="Draw").click()
    costs("Cost", "^1 network call, ", "^16 network calls, ")
    keep(seen, "app.png")
    seen.get_by_label("Steps").first.fill("1000")
    seen.get_by_role("button", name="Draw").click()
    costs("Cost", "^1 network call, ", "^[1-9][0-9]* of 1000 network calls, ")
    # What is begun before the page has heard that the last run has ended, it would stop, too.
    with seen.expect_response("**/reset"):
        seen.get_by_role("button", name="Stop").first.click()
    seen.get_by_label("Steps").first.fill("8")
    seen.get_by_role("button", name="Next seed").click()
    costs("Cost", "^1 network call, ", "^8 network calls, ")
    assert seen.get_by_label("Seed").first.input_value() == "8"
    seen.get_by_role("tab", name="Restore").click()
    seen.get_by_text("Take the sample that was drawn").click()
    for _ in range(5):
        # Nothing says when the canvas is ready: what was painted before is lost.
        seen.wait_for_timeout(1500)
        box = seen.locator(".pixels canvas").first.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        seen.mouse.move(x - 60, y + 40)
        seen.mouse.down()
        seen.mouse.move(x + 60, y + 40, steps=8)
        seen.mouse.up()
        seen.wait_for_timeout(500)
        seen.get_by_role("button", name="Restore").last.click()
        refused = seen.get_by_text("nothing is missing")
        restored = seen.get_by_text("seed 3")
        refused.or_(restored).first.wait_for(timeout=60_000)
        if restored.count():
            break
        refused.first.click()
    costs("Cost and quality", "^50 network calls, .* PSNR ")
    keep(seen, "app-restore.png")
    # What a page makes itself is of no host.
    assert asked - {""} == {urlsplit(url).netloc} and said == []
    seen.close()


def keep(seen: Any, name: str) -> None:
    """Keep what it looks like, if that is asked for."""
    if folder := os.environ.get("DSNO_SCREENSHOTS"):
        seen.wait_for_timeout(500)
        seen.screenshot(path=str(Path(folder) / name), full_page=True)
