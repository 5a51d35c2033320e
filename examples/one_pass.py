"""The picture at the top of the README: a trajectory in one network call, beside its teacher's, call after call.

From the same noises the shipped student makes all its states at once, and its teacher, by DDIM on a grid through the
same times, one after another. Nothing is chosen: the noises are the first of those that the student has not seen.

    python examples/one_pass.py --out docs/images/one-pass.gif    # seconds
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import tyro
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dsno import DDIM, OnePass, SolverSampler, load_student, load_teacher, noise, seed_range, shipped
from dsno.data.samples import to_uint8
from dsno.grids import quadratic
from dsno.report.compare import HELD_OUT
from dsno.report.pictures import COOL, DARK, WARM

CALLS = 16
"""Steps of the teacher, a multiple of the student's frames: the quadratic grid then passes through their times."""

ROWS, TILE, GAP, EDGE, TOP, HEAD, BETWEEN = 3, 96, 8, 36, 58, 128, 64
"""Noises at once; pixels of a tile, between tiles, at the edge, to the titles and the tiles, and between the halves."""

BEGIN, TICK, HOLD = 900, 150, 2200
"""Milliseconds of the noises, of a call, and of what is made in the end."""

EMPTY = "#232528"


@dataclass(frozen=True)
class Paths:
    """What is made of a few noises.

    Attributes:
        times: Of the columns, (M + 1,), noise first.
        student: Its states there, of one call, (B, M + 1, C, H, W) in [-1, 1] for display.
        teacher: Its states behind each call, (B, CALLS + 1, C, H, W), noise first.
    """

    times: Sequence[float]
    student: Tensor
    teacher: Tensor


def paths(first: int, count: int) -> Paths:
    """The paths from the noises of seeds `first` to `first + count - 1`."""
    student, teacher = load_student(shipped() / "student"), load_teacher(shipped() / "teacher")
    z, grid = noise(seed_range(first, count), student.shape), quadratic(CALLS)
    made = OnePass(student, whole=True)(z)
    solved = SolverSampler(teacher, teacher.schedule, grid, DDIM(), keep=grid)(z)

    def shown(x: Tensor, t: Tensor) -> Tensor:
        # One unit of data and one standard deviation of noise are in range.
        _, sigma_t = teacher.schedule(t.float())
        return x / (1 + sigma_t).reshape(1, -1, 1, 1, 1)

    return Paths(made.t.tolist(), shown(made.x, made.t), shown(solved.x, solved.t))


def frame(made: Paths, calls: int) -> Image.Image:
    """The picture behind so many calls of each."""
    width = len(made.times) * (TILE + GAP) - GAP
    size = 2 * (EDGE + width) + BETWEEN, HEAD + ROWS * (TILE + GAP) - GAP + EDGE
    sheet = Image.new("RGB", size, DARK.paper)
    each = CALLS // (len(made.times) - 1)
    now = -(-calls // each)
    own = {m: made.student[:, m] for m in range(len(made.times)) if m == 0 or calls}
    theirs = {m: made.teacher[:, min(m * each, calls)] for m in range(now + 1)}
    _panel(sheet, EDGE, "student", WARM[0], min(calls, 1), 1, made.times, own, None)
    at = now if calls % each else None
    _panel(sheet, EDGE + width + BETWEEN, "teacher", COOL[1], calls, CALLS, made.times, theirs, at)
    return sheet


def _panel(
    sheet: Image.Image,
    left: int,
    name: str,
    colour: str,
    calls: int,
    most: int,
    times: Sequence[float],
    states: dict[int, Tensor],
    under_way: int | None,
) -> None:
    """A half of the picture: title, a meter of the calls, and a column of tiles for each time."""
    draw, width = ImageDraw.Draw(sheet), len(times) * (TILE + GAP) - GAP
    draw.text((left, TOP), name, colour, _font(30, "bold"), "ls")
    said = f"{calls} of {most} network calls" if most > 1 else f"{calls} network call" + "s" * (calls != 1)
    draw.text((left + width, TOP), said, DARK.ink, _font(23), "rs")
    for n in range(most):
        x, y, part = left + n * (width + 4) // most, TOP + 16, (width + 4) // most - 4
        draw.rectangle((x, y, left + width if n == most - 1 else x + part, y + 7), colour if n < calls else EMPTY)
    for m, t in enumerate(times):
        x = left + m * (TILE + GAP)
        title = "noise" if m == 0 else "sample" if m == len(times) - 1 else f"t = {t:.2f}"
        draw.text((x + TILE / 2, HEAD - 14), title, DARK.soft, _font(18), "ms")
        for row in range(ROWS):
            y = HEAD + row * (TILE + GAP)
            if m in states:
                pixels = Image.fromarray(to_uint8(states[m][row, 0]).numpy())
                sheet.paste(pixels.resize((TILE, TILE), Image.Resampling.NEAREST), (x, y))
            else:
                draw.rectangle((x, y, x + TILE - 1, y + TILE - 1), EMPTY)
            if m == under_way:
                draw.rectangle((x, y, x + TILE - 1, y + TILE - 1), outline=colour, width=3)


@cache
def _font(size: int, weight: str = "normal") -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans", weight=weight)), size)


def main(out: Path = Path("runs/examples/one-pass.gif"), sets: int = 3) -> Path:
    """Draw one pass beside its teacher.

    Args:
        out: The picture.
        sets: How many noises are shown one after another, by threes.
    """
    made = paths(HELD_OUT, ROWS * sets)
    parts = [
        Paths(made.times, *(x[n : n + ROWS] for x in (made.student, made.teacher))) for n in range(0, ROWS * sets, ROWS)
    ]
    frames = [frame(part, calls) for part in parts for calls in range(CALLS + 1)]
    # One palette for all, so that what stands still does not flicker.
    palette = frames[CALLS].quantize(96)
    drawn = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in frames]
    lasting = [BEGIN, *[TICK] * (CALLS - 1), HOLD] * sets
    out.parent.mkdir(parents=True, exist_ok=True)
    drawn[0].save(out, save_all=True, append_images=drawn[1:], duration=lasting, loop=0, optimize=False)
    print(f"picture: {out}")
    return out


if __name__ == "__main__":
    tyro.cli(main)
