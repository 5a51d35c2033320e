"""What a page asks for and shows: models by name, and what is made of them as pictures and sentences.

It knows no page. What takes long is an iterator of its progress (`running`), that ends with what was made.
"""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dsno.app.draw import Drawn, Tell, draw
from dsno.app.mend import Mended, Wish, mend
from dsno.app.models import Ask, Model, open_model
from dsno.app.places import Places
from dsno.app.running import Made, Progress, running
from dsno.app.uploads import painted, read_upload
from dsno.data.samples import to_uint8
from dsno.report.pictures import enlarged, image_grid

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Desk", "image_of", "on_canvas", "said_of", "said_on_the_way"]

Pictures = list[tuple["Image", str]]
"""Pictures, each with what it is."""

Sampled = tuple["Image", str, "Image | None"]
"""A sample, what it cost, and a strip of the states on its way, if they were asked for."""

OPEN = 4
"""Models that stay open."""

SIDE = 384
"""Pixels of a side that a smaller picture is enlarged to, to be painted over."""


class Desk:
    """Models that are opened once, and asked.

    Arguments:
        places: Where models may be opened from.
        device: Where they are put.
        variant: The variant of their weights.
    """

    def __init__(self, places: Places, device: torch.device | str = "cpu", variant: str | None = None) -> None:
        self.places = places

        def opened(name: str) -> Model:
            model = open_model(name, places, device, variant)
            # The first call of a network takes longer than the others, and is none that should be measured.
            with contextlib.suppress(ValueError):
                draw(model, model.suited(Ask(steps=1)))
            return model

        self.opened: Callable[[str], Model] = functools.lru_cache(OPEN)(opened)

    def sample(self, model: str, ask: Ask, fit: bool = False) -> Iterator[Progress | Made[Sampled]]:
        """A sample of a student or a teacher, what it cost, and the states on the way.

        Arguments:
            model: Its name.
            ask: What it is asked.
            fit: Leave out what it cannot be told, instead of refusing it.

        Raises:
            ...: as `open_model` and `draw` do.
        """

        def run(tell: Tell) -> Sampled:
            found = self.opened(model)
            return _drawn(draw(found, found.suited(ask) if fit else ask, tell))

        return running(run)

    def restore(
        self,
        model: str,
        picture: str | None,
        wish: Wish,
        ask: Ask,
        layers: Sequence[str | bytes] = (),
        mask: str | None = None,
    ) -> Iterator[Progress | Made[tuple[Pictures, str]]]:
        """Restorations of a picture, and how good they are.

        Arguments:
            model: A teacher's name.
            picture: The file that was sent.
            wish: How it is to be restored.
            ask: What the teacher is told.
            layers: What was painted over it, as `painted` takes it.
            mask: A picture of its size, black where it is missing.

        Raises:
            ...: as `open_model`, `read_upload` and `mend` do.
        """

        def run(tell: Tell) -> tuple[Pictures, str]:
            if not picture:
                raise ValueError("there is no picture: send one, or take the sample that was drawn")
            original = read_upload(picture)
            hidden = painted(layers, (original.x.shape[1], original.x.shape[2]))
            if mask:
                hidden = hidden | _black(mask, hidden)
            return _restored(mend(self.opened(model), original, wish, ask, hidden, tell))

        return running(run)


def _black(mask: str, like: Tensor) -> Tensor:
    """Where a picture is black, (H, W) bool."""
    dark = read_upload(mask).x.mean(0) < 0
    if dark.shape != like.shape:
        sides = [" x ".join(map(str, x.shape)) for x in (dark, like)]
        raise ValueError(f"the mask is of {sides[0]} pixels, and the picture of {sides[1]}: bring it to that size")
    return dark


def image_of(x: Tensor) -> Image:
    """A picture (C, H, W) in [-1, 1] as Pillow's, grey of one channel."""
    from PIL import Image

    pixels = to_uint8(x).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def on_canvas(picture: str | None) -> Image | None:
    """A picture that was sent, large enough to be painted over.

    Raises:
        ValueError: as `read_upload` does.
    """
    return image_of(enlarged(read_upload(picture).x, SIDE)) if picture else None


def _drawn(drawn: Drawn) -> Sampled:
    from PIL import Image

    strip = None
    if drawn.path:
        times, states = zip(*drawn.path, strict=True)
        png = image_grid(torch.stack(states), len(times), [f"t = {t:.3g}" for t in times])
        strip = Image.open(BytesIO(png))
    return image_of(drawn.picture), f"{_calls(drawn.calls)}, {_spelled(drawn.seconds)}", strip


def _restored(made: Mended) -> tuple[Pictures, str]:
    said = [_calls(made.cost["rounds"]), f"{made.cost['vjps']} vjps", _spelled(made.cost["seconds"])]
    for name, unit in (("residual", ""), ("psnr", " dB"), ("psnr_of_input", " dB")):
        if name in made.measures:
            # Where nothing differs a ratio is infinite, and written as None.
            numbers = [math.inf if number is None else number for number in np.atleast_1d(made.measures[name]).tolist()]
            said.append(f"{name.replace('_', ' ').replace('psnr', 'PSNR')} {statistics.median(numbers):.3g}{unit}")
    return [(image_of(x), name) for name, x in made.pictures.items()], ", ".join(said)


def said_on_the_way(progress: Progress) -> str:
    """How far a run is."""
    done = f"{progress.done} of {_calls(progress.total)}" if progress.total else "waiting"
    return f"{done}, {progress.seconds:.1f} s"


def said_of(model: Model) -> str:
    """What a model is, in a line."""
    kind = "student" if model.teacher is None else "teacher"
    told = [f"{model.classes} classes"] * bool(model.classes) + ["a text"] * model.prompted
    shape = " x ".join(map(str, model.shape))
    return f"{model.name}: a {kind} of {shape}" + f", told {' and '.join(told)}" * bool(told)


def _calls(n: int) -> str:
    return "1 network call" if n == 1 else f"{n} network calls"


def _spelled(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
