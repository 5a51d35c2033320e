"""What somebody sends to a page: pictures, and masks that were painted over them, no larger than they may be.

A request is counted while it arrives and refused at its limit, a picture is refused by what its first bytes say of its
size, before its pixels are unpacked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dsno.data.originals import Original, read_original
from dsno.data.pictures import opened

__all__ = ["BYTES", "PIXELS", "Bounded", "painted", "read_upload"]

BYTES = 16 * 2**20
"""Of a picture."""

PIXELS = 2**22
"""Of a picture."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


def read_upload(path: Path | str) -> Original:
    """A picture that was sent, as `read_original` reads it.

    Raises:
        ValueError: if it has too many bytes or pixels, or is no picture that could be written again as it is.
    """
    path = Path(path)
    if (size := path.stat().st_size) > BYTES:
        raise ValueError(f"{path.name} has {size / 2**20:.0f} MB, and {BYTES / 2**20:.0f} MB are taken at most")
    return read_original(path, PIXELS)


def painted(layers: Sequence[Path | str | bytes], size: tuple[int, int]) -> Tensor:
    """What is hidden of a picture of `size` (H, W), bool: the pixels more than half of which were painted over.

    Arguments:
        layers: What was painted: pictures that are transparent elsewhere, of a canvas of any scale; files or bytes.
        size: The picture's.

    Raises:
        ValueError: if one is damaged, or has too many pixels.
    """
    hidden = torch.zeros(size, dtype=torch.bool)
    for layer in layers:
        read = partial(bytes, layer) if isinstance(layer, bytes) else Path(layer).read_bytes
        alpha = np.array(opened(read, "what was painted", PIXELS).convert("RGBA"))[..., 3] > 0
        hidden |= F.adaptive_avg_pool2d(torch.from_numpy(alpha)[None, None].float(), size)[0, 0] > 0.5
    return hidden


class Bounded:
    """An ASGI application behind which no request has more than so many bytes; 413 is the answer to one that has.

    Arguments:
        app: The application.
        most: Bytes.
    """

    def __init__(self, app: Application, most: int = 2 * BYTES) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not declared.isdigit() or int(declared) > self.most:
            return await _refuse(send)
        arrived, begun, refused = 0, False, False

        async def counted() -> Message:
            nonlocal arrived, refused
            message = await receive()
            arrived += len(message.get("body", b""))
            refused = arrived > self.most
            return {"type": "http.disconnect"} if refused else message

        async def unless_refused(message: Message) -> None:
            nonlocal begun
            if not refused:
                begun = True
                await send(message)

        try:
            await self.app(scope, counted, unless_refused)
        except Exception:
            # Who reads a request that ends early may take that for a fault.
            if not refused:
                raise
        if refused and not begun:
            await _refuse(send)


async def _refuse(send: Send) -> None:
    text = b"this request is larger than what is taken"
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": text})
