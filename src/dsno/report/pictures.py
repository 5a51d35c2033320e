r"""Pictures of samples, paths and numbers.

Every picture is PNG bytes at twice the size it is shown at, so that it is sharp on any screen. Pixels of samples are
enlarged by a whole factor without smoothing: an 8x8 image stays an 8x8 image. Gaps between tiles are transparent, and
plots come in a light and a dark version, so a page follows the reader's theme.

Colours mean one thing throughout: cool ones are the teacher's solvers, warm ones the students.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from dsno.data.samples import to_uint8
from dsno.measure.metrics import path_error
from dsno.measure.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "FIDELITY",
    "QUALITY",
    "Against",
    "Panel",
    "check_grid_size",
    "enlarged",
    "image_grid",
    "interpolation",
    "quality_against_cost",
    "slerp",
    "trajectory_strips",
]

COOL = ("#3e63dd", "#12a594", "#8e4ec6", "#7b8794")
WARM = ("#e5532d", "#f5a524", "#d6409f", "#a5673f")

TILE, GAP, CAPTION, DPI, WIDTH = 96, 8, 20, 200, 1900

PIXELS = 2**26
"""Of the largest picture: viewers take larger ones for a mistake, or an attack."""

Pixels = np.ndarray[Any, Any]
Number = Callable[[Result], float | None]
Against = Literal["rounds", "nfe", "flops", "latency"]

AXES: dict[Against, tuple[str, Number]] = {
    "rounds": ("serial network calls", lambda r: r.cost.rounds),
    "nfe": ("network evaluations per sample", lambda r: r.cost.nfe),
    "flops": ("MFLOP per sample", lambda r: None if r.cost.flops is None else r.cost.flops / 1e6),
    "latency": ("milliseconds for one sample", lambda r: None if r.cost.latency is None else 1e3 * r.cost.latency),
}


@dataclass(frozen=True)
class Panel:
    """A number of results in a plot.

    Attributes:
        title: What it is.
        value: The number, or None.
        log: Whether its axis is logarithmic; zeros are not shown then.
        featured: Whether it is measured in features, whose network the title then names.
    """

    title: str
    value: Number
    log: bool = True
    featured: bool = False


QUALITY = (
    Panel("Fréchet distance", lambda r: None if r.quality is None else r.quality.frechet, featured=True),
    Panel("Path error (RMSE to the fine solution)", lambda r: r.path_error),
)
"""What samplers of one teacher are compared by."""

FIDELITY = (
    Panel("PSNR, dB", lambda r: None if r.fidelity is None else r.fidelity.psnr, log=False),
    Panel("Spread of the samples of one input", lambda r: None if r.fidelity is None else r.fidelity.spread, log=False),
    QUALITY[0],
    Panel(
        "Distance from the reference",
        lambda r: None if r.fidelity is None else r.fidelity.feature_distance,
        log=False,
        featured=True,
    ),
)
"""What samples of given inputs are compared by; the last two are distances of features."""


@dataclass(frozen=True)
class Theme:
    """Paper, ink, secondary ink and rules."""

    paper: str
    ink: str
    soft: str
    rule: str


LIGHT = Theme("#ffffff", "#1c2024", "#60646c", "#e0e1e6")
DARK = Theme("#18191b", "#edeef0", "#a5aab2", "#34373c")


def image_grid(images: Tensor, columns: int | None = None, captions: Sequence[str] = ()) -> bytes:
    """A set of images (N, C, H, W) in [-1, 1] as one PNG, row by row; nearly square by default.

    Values outside the range are clamped for display. Of `captions` one stands below each image, a seed say.

    Raises:
        ValueError: unless there are images of 1 or 3 channels, finite, one column or more, and as many captions as
            images or none; for a picture of more than 2^26 pixels.
    """
    columns = check_grid_size(images.shape, columns)
    if captions and len(captions) != len(images):
        raise ValueError(f"{len(images)} images need as many captions, or none, got {len(captions)}")
    tiles = _tiles(images)
    rows = -(-len(tiles) // columns)
    lines = [tiles[r * columns : (r + 1) * columns] for r in range(rows)]
    if not captions:
        return _png(_sheet(lines, columns))
    sheet = _sheet(lines, columns, GAP + CAPTION)
    return _captioned(np.pad(sheet, ((0, GAP + CAPTION), (0, 0), (0, 0))), tiles.shape[1:3], captions, columns)


def enlarged(x: Tensor, side: int) -> Tensor:
    """Pictures (..., C, H, W), grey or not, as such in colour, by a whole factor to about `side` pixels."""
    factor = max(1, side // max(x.shape[-2:]))
    colours = x.expand(*x.shape[:-3], 3, -1, -1)
    return colours.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def check_grid_size(shape: Sequence[int], columns: int | None = None) -> int:
    """The columns of a grid of images of shape (N, C, H, W); nearly square by default.

    Raises:
        ValueError: for another shape, no column, or more pixels than a picture is opened with.
    """
    if len(shape) != 4 or shape[1] not in (1, 3) or math.prod(shape) == 0:
        raise ValueError(f"pictures are made of images (N, C, H, W) with 1 or 3 channels, got {tuple(shape)}")
    columns = math.ceil(math.sqrt(shape[0])) if columns is None else columns
    if columns < 1:
        raise ValueError(f"a grid needs at least one column, got {columns}")
    factor = _factor(shape)
    height = -(-shape[0] // columns) * (shape[2] * factor + GAP + CAPTION)
    width = columns * (shape[3] * factor + GAP)
    if height * width > PIXELS:
        raise ValueError(
            f"a picture of {shape[0]} images has {height} x {width} pixels, more than 2^26: make one of fewer"
        )
    return columns


def _captioned(sheet: Pixels, size: tuple[int, int], captions: Sequence[str], columns: int) -> bytes:
    """A sheet with a caption below each tile of `size`, in a grey that is read on light paper and on dark."""
    height, width = sheet.shape[:2]
    fig = _figure(width, height, replace(LIGHT, paper="none"))
    fig.figimage(sheet, 0, 0)
    # A caption is as wide as its tile, whatever its length.
    points = min(6.0, 1.5 * size[1] / max(map(len, captions)) * 72 / DPI)
    for n, caption in enumerate(captions):
        r, c = divmod(n, columns)
        x, y = c * (size[1] + GAP) + size[1] / 2, r * (size[0] + GAP + CAPTION) + size[0] + (GAP + CAPTION) / 2
        style: dict[str, Any] = {"fontsize": points, "ha": "center", "va": "center", "color": COOL[3]}
        fig.text(x / width, 1 - y / height, caption, **style)
    return _drawn(fig)


def interpolation(images: Tensor) -> bytes:
    """Strips of samples whose noises are interpolated (see `slerp`): (R, n, C, H, W) or (n, C, H, W), one row each.

    Raises:
        ValueError: for another shape, or images that `image_grid` refuses.
    """
    if images.ndim not in (4, 5):
        raise ValueError(f"interpolation strips have shape (R, n, C, H, W), got {tuple(images.shape)}")
    strips = images if images.ndim == 5 else images[None]
    return _png(_sheet([_tiles(strip) for strip in strips], strips.shape[1], between_rows=2 * GAP))


def slerp(z_0: Tensor, z_1: Tensor, n: int) -> Tensor:
    r"""Noises on the arc between two noises of one shape, ends included: (n, *shape).

    $$ z(u) = \frac{\sin((1 - u)\omega)}{\sin\omega} z_0 + \frac{\sin(u\,\omega)}{\sin\omega} z_1, \qquad
       \cos\omega = \frac{z_0 \cdot z_1}{\|z_0\| \|z_1\|} $$

    A straight line would leave the shell where Gaussian noise lives. Parallel noises are joined by a straight line.

    Source: Shoemake, 1985, "Animating rotation with quaternion curves".

    Raises:
        ValueError: if the shapes differ or n < 2.
    """
    if z_0.shape != z_1.shape or n < 2:
        raise ValueError(
            f"slerp joins two noises of one shape by 2 or more, got {tuple(z_0.shape)}, {tuple(z_1.shape)} and {n}"
        )
    a, b = z_0.double(), z_1.double()
    omega = math.acos(max(-1.0, min(1.0, float((a * b).sum() / (a.norm() * b.norm())))))
    u = torch.linspace(0, 1, n, dtype=torch.float64, device=z_0.device).reshape(-1, *[1] * z_0.ndim)
    if math.sin(omega) < 1e-6:
        return ((1 - u) * a + u * b).to(z_0.dtype)
    return ((torch.sin((1 - u) * omega) * a + torch.sin(u * omega) * b) / math.sin(omega)).to(z_0.dtype)


def trajectory_strips(
    student_frames: Tensor,
    teacher_frames: Tensor,
    times: Sequence[float] | Tensor,
    noises: Tensor | None = None,
    names: tuple[str, str] = ("operator", "teacher"),
    dark: bool = False,
) -> bytes:
    """The student's frames over the teacher's, a pair of rows for each noise, as a PNG.

    Arguments:
        student_frames: (B, T, C, H, W) in [-1, 1], clamped for display.
        teacher_frames: The same from the same noise.
        times: Their times, (T,).
        noises: The noises themselves, (B, C, H, W), shown before the pair.
        names: What to call the two rows.
        dark: For dark pages.

    Pairs fill as many columns as fit; under each frame is the RMSE of the pairs above it
    (`dsno.measure.metrics.path_error`).

    Raises:
        ValueError: if the shapes or times do not belong together, or an image is not finite.
    """
    B, T = student_frames.shape[:2]
    if student_frames.ndim != 5 or student_frames.shape != teacher_frames.shape or len(times) != T:
        raise ValueError(
            f"strips need two sets of frames (B, T, C, H, W) and T times, got {tuple(student_frames.shape)}, "
            f"{tuple(teacher_frames.shape)} and {len(times)} times"
        )
    if noises is not None and len(noises) != B:
        raise ValueError(f"{B} pairs need {B} noises, got {len(noises)}")
    theme = DARK if dark else LIGHT
    pairs = (_frames(student_frames), _frames(teacher_frames))
    H, W = pairs[0].shape[2:4]
    top, bottom, label, between, apart = 56, 60, 180, 40, 110
    inset = label + (W if noises is not None else 0)
    block, pair = inset + T * (W + GAP) - GAP, 2 * H + GAP
    tall = math.ceil(B / max(1, (WIDTH + apart) // (block + apart)))
    columns = math.ceil(B / tall)
    width, height = columns * (block + apart) - apart, top + tall * (pair + between) - between + bottom
    fig = _figure(width, height, theme)

    def paste(tile: Pixels, x: int, y: int) -> None:
        fig.figimage(tile, x, height - y - len(tile))

    def write(text: str, x: float, y: float, align: str, colour: str = theme.soft, **style: Any) -> None:
        fig.text(x / width, 1 - y / height, text, color=colour, fontsize=8, ha=align, va="center", **style)

    for column in range(columns):
        left, members = column * (block + apart), range(B)[column * tall : (column + 1) * tall]
        start, foot = left + inset, top + len(members) * (pair + between) - between + bottom / 2
        error = path_error(student_frames[members], teacher_frames[members])
        if noises is not None:
            write("noise", left + W / 2, top / 2, "center")
        write("RMSE", start - 3 * GAP, foot, "right")
        for m in range(T):
            x = start + m * (W + GAP)
            write(f"$t = {float(times[m]):.2g}$", x + W / 2, top / 2, "center")
            write(f"{float(error[m]):#.2g}", x + W / 2, foot, "center")
            for n, b in enumerate(members):
                for r in range(2):
                    paste(pairs[r][b, m], x, top + n * (pair + between) + r * (H + GAP))
        for n, b in enumerate(members):
            y = top + n * (pair + between)
            if noises is not None:
                # Two standard deviations span the range.
                paste(_tiles(noises[b : b + 1] / 2)[0], left, y + (H + GAP) // 2)
            for r, colour in enumerate((WARM[0], COOL[0])):
                write(names[r], start - 3 * GAP, y + r * (H + GAP) + H / 2, "right", colour, fontweight="bold")
    return _drawn(fig)


def _frames(frames: Tensor) -> Pixels:
    return np.stack([_tiles(sample) for sample in frames])


def quality_against_cost(
    results: Sequence[Result],
    against: Against = "rounds",
    dark: bool = False,
    students: Sequence[str] = (),
    panels: Sequence[Panel] = QUALITY,
) -> bytes:
    """Numbers of results against their cost, on a logarithmic axis, as a PNG: Fréchet distance and path error.

    A family of several results is a curve (a solver at several numbers of steps), a single result a star (a one-pass
    student), and a result nothing sampled (`dsno.measure.evaluate.measure`) a dashed floor. Panels nothing fills are
    left out. Families named in `students` are stars, too, one for each number of passes.

    Raises:
        ValueError: if no result has both a cost and a number to show.
    """
    theme = DARK if dark else LIGHT
    xlabel, cost = AXES[against]
    named = next((f" ({r.protocol.extractor})" for r in results if r.quality is not None), "")
    panels = [panel for panel in panels if any(_points([r], cost, panel) for r in results)]
    if not panels:
        raise ValueError("no result has both a cost and a quality or path error: nothing to plot")
    families: dict[str, list[Result]] = {}
    for result in results:
        families.setdefault(result.family, []).append(result)
    floors = [f for f, members in families.items() if len(members) == 1 and not members[0].cost.rounds]
    stars = [f for f, members in families.items() if f not in floors and (len(members) == 1 or f in students)]
    curves = [f for f in families if f not in (*stars, *floors)]

    fig = _figure(1800 if len(panels) == 2 else 1000, 800, theme)
    handles: dict[str, Any] = {}
    edge: dict[str, Any] = {"markeredgecolor": theme.paper, "markeredgewidth": 0.6}
    for n, panel in enumerate(panels):
        axis = fig.add_subplot(1, len(panels), n + 1)
        _style(axis, theme, panel.title + (named if panel.featured else ""), xlabel, panel.log)
        for family, colour, marker in zip(curves, cycle(COOL), cycle("osD^")):
            if points := sorted(_points(families[family], cost, panel)):
                xs, ys = zip(*points, strict=True)
                line = {"color": colour, "linewidth": 1.6, "marker": marker, "markersize": 4.5, **edge}
                (handles[family],) = axis.plot(xs, ys, **line)
        for family, colour in zip(stars, cycle(WARM)):
            for x, y in _points(families[family], cost, panel):
                handles[family] = axis.scatter(
                    x, y, s=170, marker="*", color=colour, edgecolors=theme.paper, linewidths=0.8, zorder=5
                )
        for family, dashes in zip(floors, cycle(((4, 3), (1, 2))), strict=False):
            if floor := panel.value(families[family][0]):
                handles[family] = axis.axhline(floor, color=theme.soft, linewidth=1, linestyle=(0, dashes))
        _ticks(axis, whole=against in ("rounds", "nfe"))
    _legend(fig, {family: handles[family] for family in (*stars, *curves, *floors) if family in handles}, theme)
    fig.tight_layout(rect=(0, 0, 1, 0.92), w_pad=2.5)
    return _drawn(fig)


def _points(members: Sequence[Result], cost: Number, panel: Panel) -> list[tuple[float, float]]:
    """What the plot can show."""
    pairs = [(cost(r), panel.value(r)) for r in members]
    return [(x, y) for x, y in pairs if x is not None and y is not None and x > 0 and (y > 0 or not panel.log)]


def _style(axis: Axes, theme: Theme, title: str, xlabel: str, log: bool) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log" if log else "linear")
    axis.set_title(title, loc="left", fontsize=9, fontweight="bold", color=theme.ink, pad=10)
    axis.set_xlabel(xlabel, fontsize=8, color=theme.soft, labelpad=6)
    axis.set_facecolor(theme.paper)
    axis.grid(axis="y", color=theme.rule, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(which="both", length=0, labelsize=8, labelcolor=theme.soft)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(theme.rule)


def _legend(fig: Figure, handles: dict[str, Any], theme: Theme) -> None:
    """One row above all panels."""
    look: dict[str, Any] = {"frameon": False, "fontsize": 8, "labelcolor": theme.ink, "ncols": len(handles)}
    spaces: dict[str, Any] = {"bbox_to_anchor": (0.005, 1.0), "handletextpad": 0.5, "columnspacing": 1.6}
    fig.legend([*handles.values()], [*handles], loc="upper left", **look, **spaces)


def _ticks(axis: Axes, whole: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if not whole:
        axis.set_xscale("log", base=10)
    for scale, (low, high) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
        if scale.get_scale() != "log":
            continue
        if scale is axis.yaxis or not whole:
            # Few decades have too few powers of ten to read off.
            scale.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 1000 else (1.0,)))
        scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        scale.set_minor_locator(NullLocator())


def _figure(width: int, height: int, theme: Theme) -> Figure:
    # The object, not pyplot: no global state, no display, nothing to close.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=theme.paper)
    FigureCanvasAgg(fig)
    return fig


def _drawn(fig: Figure) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _tiles(images: Tensor) -> Pixels:
    """(N, C, H, W) in [-1, 1] to opaque uint8 (N, h, w, 4), enlarged by a whole factor to about `TILE` pixels."""
    check_grid_size(images.shape)
    if not bool(torch.isfinite(images).all()):
        raise ValueError("an image has values that are not finite")
    factor = _factor(images.shape)
    pixels = to_uint8(images.detach().cpu().float()).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    opaque = torch.cat([pixels, torch.full_like(pixels[..., :1], 255)], -1)
    return opaque.repeat_interleave(factor, 1).repeat_interleave(factor, 2).numpy()


def _factor(shape: Sequence[int]) -> int:
    """How many times images (N, C, H, W) are enlarged."""
    return max(1, round(TILE / max(shape[2:])))


def _sheet(rows: Sequence[Pixels], columns: int, between_rows: int = GAP) -> Pixels:
    h, w = rows[0].shape[1:3]
    sheet = np.zeros((len(rows) * (h + between_rows) - between_rows, columns * (w + GAP) - GAP, 4), np.uint8)
    for r, tiles in enumerate(rows):
        for c, tile in enumerate(tiles):
            y, x = r * (h + between_rows), c * (w + GAP)
            sheet[y : y + h, x : x + w] = tile
    return sheet


def _png(pixels: Pixels) -> bytes:
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    return buffer.getvalue()
