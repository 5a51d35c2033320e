"""What is sent is no larger than it may be, and what is painted is what is hidden."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dsno.app import uploads
from dsno.app.uploads import Bounded, painted, read_upload


def test_a_picture_is_read_as_it_is_or_refused_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a.png")
    assert read_upload(tmp_path / "a.png").x.shape == (1, 8, 8)
    Image.new("L", (4096, 2048)).save(tmp_path / "wide.png")
    with pytest.raises(ValueError, match=r"wide.png has 4096 x 2048 pixels, and 4,194,304 are taken at most"):
        read_upload(tmp_path / "wide.png")
    (tmp_path / "text.png").write_text("<svg/>")
    with pytest.raises(ValueError, match=r"text.png is damaged or not a picture"):
        read_upload(tmp_path / "text.png")
    with (tmp_path / "long.png").open("wb") as file:
        file.truncate(uploads.BYTES + 1)
    monkeypatch.setattr(uploads, "read_original", None)
    with pytest.raises(ValueError, match="long.png has 16 MB, and 16 MB are taken at most"):
        read_upload(tmp_path / "long.png")


def layer(alpha: np.ndarray) -> bytes:
    """A picture that is transparent where `alpha` (H, W) is 0."""
    pixels, buffer = np.zeros((*alpha.shape, 4), np.uint8), BytesIO()
    pixels[..., 3] = alpha
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("scale", [1, 5])
def test_what_is_painted_over_is_hidden_at_any_scale(scale: int, tmp_path: Path) -> None:
    hidden = torch.zeros(6, 4, dtype=torch.bool)
    hidden[1:3, 2] = hidden[5, 0] = True
    alpha = hidden.repeat_interleave(scale, 0).repeat_interleave(scale, 1).byte().numpy() * 200
    other = np.zeros_like(alpha)
    other[:scale, :scale] = 255
    (tmp_path / "other.png").write_bytes(layer(other))
    assert torch.equal(painted([layer(alpha)], (6, 4)), hidden)
    hidden[0, 0] = True
    assert torch.equal(painted([layer(alpha), tmp_path / "other.png"], (6, 4)), hidden)
    assert not painted([], (6, 4)).any()
    with pytest.raises(ValueError, match="what was painted has 4096 x 2048 pixels, and 4,194,304 are taken at most"):
        painted([layer(np.zeros((2048, 4096), np.uint8))], (6, 4))
    with pytest.raises(ValueError, match="what was painted is damaged"):
        painted([b"<svg/>"], (6, 4))


def test_a_pixel_that_the_brush_only_grazes_is_seen() -> None:
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:4, :3] = 255
    assert painted([layer(alpha)], (2, 2)).tolist() == [[True, False], [False, False]]


def served(answer: Coroutine[Any, Any, None]) -> None:
    """Run what is asynchronous in a thread of its own: in this one a browser may be driven."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, answer).result()


def asked(most: int, headers: list[tuple[bytes, bytes]], *chunks: bytes) -> tuple[list[dict[str, Any]], bytes]:
    """What is answered to a request behind `Bounded`, and what arrived of it."""
    arrived, sent = [], []
    waiting = [*chunks]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RuntimeError("the client has gone")
            arrived.append(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message: Any) -> None:
        sent.append(message)

    served(Bounded(app, most)({"type": "http", "headers": headers}, receive, send))
    return sent, b"".join(arrived)


def test_a_request_of_too_many_bytes_is_refused_by_what_it_declares_or_while_it_arrives() -> None:
    sent, arrived = asked(10, [(b"content-length", b"10")], b"12345", b"67890")
    assert sent[0]["status"] == 200 and arrived == b"1234567890"
    for length in (b"11", b"-1", b"x"):
        sent, arrived = asked(10, [(b"content-length", length)], b"")
        assert sent[0]["status"] == 413 and arrived == b""
    sent, arrived = asked(10, [], b"12345", b"678901", b"2")
    assert [message.get("status") for message in sent] == [413, None] and arrived == b"12345"


def test_a_fault_of_the_application_is_its_own() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        served(Bounded(app)({"type": "http", "headers": []}, None, None))  # type: ignore[arg-type]
