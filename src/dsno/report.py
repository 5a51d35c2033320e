r"""Pictures, and one HTML file that holds them all.

Every picture is PNG bytes at twice the size it is shown at, so that it is sharp on any screen. Pixels of samples are
enlarged by a whole factor without smoothing: an 8x8 image stays an 8x8 image. Gaps between tiles are transparent, and
plots come in a light and a dark version, so a report follows the reader's theme. It loads nothing from anywhere: styles
and pictures are inside it.

Colours mean one thing throughout: cool ones are the teacher's solvers, warm ones the students.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from dsno.checkpoint import write_atomically
from dsno.data import Samples, load_data, to_uint8
from dsno.denoise import Prediction
from dsno.evaluate import COLUMNS, Reference, Result, best, evaluate, fine_solution, measure, save_results, table
from dsno.metrics import flops, load_feature_net, path_error
from dsno.noise import noise, seed_range
from dsno.schedule import uniform
from dsno.solve import DDIM, DPMSolverPP, Sampler, SolverSampler, UniPC
from dsno.students.flowmap import OnePass, TrajectoryStudent
from dsno.students.load import Student, load_any, sampler_of
from dsno.teachers.load import load_teacher

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dsno.recipes import Report

__all__ = [
    "Picture",
    "Section",
    "compare",
    "html_report",
    "image_grid",
    "interpolation",
    "quality_against_cost",
    "slerp",
    "trajectory_strips",
]

COOL = ("#3e63dd", "#12a594", "#8e4ec6", "#7b8794")
WARM = ("#e5532d", "#f5a524", "#d6409f", "#a5673f")
TILE, GAP, DPI, WIDTH = 96, 8, 200, 1900
HELD_OUT = 1 << 40


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
class Theme:
    """Paper, ink, secondary ink and rules."""

    paper: str
    ink: str
    soft: str
    rule: str


LIGHT = Theme("#ffffff", "#1c2024", "#60646c", "#e0e1e6")
DARK = Theme("#18191b", "#edeef0", "#a5aab2", "#34373c")


def image_grid(images: Tensor, columns: int | None = None) -> bytes:
    """A set of images (N, C, H, W) in [-1, 1] as one PNG, row by row; nearly square by default.

    Values outside the range are clamped for display.

    Raises:
        ValueError: unless there are images of 1 or 3 channels, finite, and one column or more.
    """
    tiles = _tiles(images)
    columns = math.ceil(math.sqrt(len(tiles))) if columns is None else columns
    if columns < 1:
        raise ValueError(f"a grid needs at least one column, got {columns}")
    rows = -(-len(tiles) // columns)
    return _png(_sheet([tiles[r * columns : (r + 1) * columns] for r in range(rows)], columns))


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

    Pairs fill as many columns as fit; under each frame is the RMSE of the pairs above it (`dsno.metrics.path_error`).

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

    def place(tile: Pixels, x: int, y: int) -> None:
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
                    place(pairs[r][b, m], x, top + n * (pair + between) + r * (H + GAP))
        for n, b in enumerate(members):
            y = top + n * (pair + between)
            if noises is not None:
                # Two standard deviations span the range.
                place(_tiles(noises[b : b + 1] / 2)[0], left, y + (H + GAP) // 2)
            for r, colour in enumerate((WARM[0], COOL[0])):
                write(names[r], start - 3 * GAP, y + r * (H + GAP) + H / 2, "right", colour, fontweight="bold")
    return _drawn(fig)


def _frames(frames: Tensor) -> Pixels:
    return np.stack([_tiles(sample) for sample in frames])


def quality_against_cost(
    results: Sequence[Result], against: Against = "rounds", dark: bool = False, students: Sequence[str] = ()
) -> bytes:
    """Fréchet distance and path error against cost, both axes logarithmic, as a PNG.

    A family of several results is a curve (a solver at several numbers of steps), a single result a star (a one-pass
    student), and a result nothing sampled (`dsno.evaluate.measure`) a dashed floor. Panels nothing fills are left out.
    Families named in `students` are stars, too, one for each number of passes.

    Raises:
        ValueError: if no result has both a cost and a number to show.
    """
    theme = DARK if dark else LIGHT
    xlabel, cost = AXES[against]
    named = next((f" ({r.protocol.extractor})" for r in results if r.quality is not None), "")
    panels: list[tuple[str, Number]] = [
        (f"Fréchet distance{named}", lambda r: None if r.quality is None else r.quality.frechet),
        ("Path error (RMSE to the fine solution)", lambda r: r.path_error),
    ]
    panels = [(title, value) for title, value in panels if any(_points([r], cost, value) for r in results)]
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
    for n, (title, value) in enumerate(panels):
        axis = fig.add_subplot(1, len(panels), n + 1)
        _style(axis, theme, title, xlabel)
        for family, colour, marker in zip(curves, cycle(COOL), cycle("osD^")):
            if points := sorted(_points(families[family], cost, value)):
                (handles[family],) = axis.plot(
                    *zip(*points, strict=True), color=colour, marker=marker, markersize=4.5, linewidth=1.6,
                    markeredgecolor=theme.paper, markeredgewidth=0.6,
                )  # fmt: skip
        for family, colour in zip(stars, cycle(WARM)):
            for x, y in _points(families[family], cost, value):
                handles[family] = axis.scatter(
                    x, y, s=170, marker="*", color=colour, edgecolors=theme.paper, linewidths=0.8, zorder=5
                )
        for family in floors:
            if floor := value(families[family][0]):
                handles[family] = axis.axhline(floor, color=theme.soft, linewidth=1, linestyle=(0, (4, 3)))
        _ticks(axis, whole=against in ("rounds", "nfe"))
    ordered = [family for family in (*stars, *curves, *floors) if family in handles]
    fig.legend(
        [handles[family] for family in ordered], ordered, loc="upper left", bbox_to_anchor=(0.005, 1.0), frameon=False,
        ncols=len(ordered), fontsize=8, labelcolor=theme.ink, handletextpad=0.5, columnspacing=1.6,
    )  # fmt: skip
    fig.tight_layout(rect=(0, 0, 1, 0.92), w_pad=2.5)
    return _drawn(fig)


def _points(members: Sequence[Result], cost: Number, value: Number) -> list[tuple[float, float]]:
    """What a logarithmic plot can show."""
    pairs = [(cost(r), value(r)) for r in members]
    return [(x, y) for x, y in pairs if x is not None and y is not None and x > 0 and y > 0]


def _style(axis: Axes, theme: Theme, title: str, xlabel: str) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_title(title, loc="left", fontsize=9, fontweight="bold", color=theme.ink, pad=10)
    axis.set_xlabel(xlabel, fontsize=8, color=theme.soft, labelpad=6)
    axis.set_facecolor(theme.paper)
    axis.grid(axis="y", color=theme.rule, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(which="both", length=0, labelsize=8, labelcolor=theme.soft)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(theme.rule)


def _ticks(axis: Axes, whole: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if not whole:
        axis.set_xscale("log", base=10)
    for scale, (low, high) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
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
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise ValueError(f"pictures are made of images (N, C, H, W) with 1 or 3 channels, got {tuple(images.shape)}")
    if not bool(torch.isfinite(images).all()):
        raise ValueError("an image has values that are not finite")
    factor = max(1, round(TILE / max(images.shape[2:])))
    pixels = to_uint8(images.detach().cpu().float()).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    opaque = torch.cat([pixels, torch.full_like(pixels[..., :1], 255)], -1)
    return opaque.repeat_interleave(factor, 1).repeat_interleave(factor, 2).numpy()


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


@dataclass(frozen=True)
class Picture:
    """A PNG for a report.

    Attributes:
        png: Its bytes, shown at half their size in pixels.
        caption: What is seen, in a sentence or two.
        dark: The version for dark pages, where there is one.
    """

    png: bytes
    caption: str = ""
    dark: bytes | None = None


@dataclass(frozen=True)
class Section:
    """A part of a report: title, text (paragraphs separated by a blank line), pictures, and results as a table."""

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    results: Sequence[Result] = ()


def html_report(path: Path | str, title: str, sections: Sequence[Section], summary: str = "") -> Path:
    """Write one HTML file that needs nothing else, atomically; its folder is made where missing.

    Under a table of results the best of each column are set in bold where all were measured on one scale
    (`dsno.evaluate.best`), and the protocol folds out.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "\n".join(_section(section) for section in sections)
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{html.escape(title)}</title>\n'
        f"<style>{_CSS}</style>\n</head>\n<body>\n<main>\n<header>\n<h1>{html.escape(title)}</h1>\n"
        f"{_paragraphs(summary)}\n</header>\n{body}\n</main>\n</body>\n</html>\n"
    )
    write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>", _paragraphs(section.text)]
    if section.pictures:
        parts.append(f"<div class=row>{''.join(_img(picture) for picture in section.pictures)}</div>")
    if section.results:
        parts += [_table(section.results), _protocols(section.results)]
    return "<section>\n" + "\n".join(part for part in parts if part) + "\n</section>"


def _paragraphs(text: str) -> str:
    return "\n".join(f"<p>{html.escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def _img(picture: Picture) -> str:
    # A PNG's width stands in bytes 16 to 19 of its header.
    width = int.from_bytes(picture.png[16:20], "big") // 2
    img = f'<img src="{_data(picture.png)}" width="{width}" alt="{html.escape(picture.caption or "picture")}">'
    if picture.dark is not None:
        source = f'<source media="(prefers-color-scheme: dark)" srcset="{_data(picture.dark)}">'
        img = f"<picture>{source}{img}</picture>"
    caption = f"<figcaption>{html.escape(picture.caption)}</figcaption>" if picture.caption else ""
    return f"<figure>{img}{caption}</figure>"


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _table(results: Sequence[Result]) -> str:
    rows, winners = table(results), best(results)
    arrows = {column.title: {"high": " ↑", "low": " ↓"}.get(column.ideal, "") for column in COLUMNS}
    head = "".join(f"<th>{html.escape(key)}{arrows.get(key, '')}</th>" for key in rows[0])
    lines = []
    for row in rows:
        cells = (
            f"<td{' class=best' if row['name'] in winners.get(key, ()) else ''}>{html.escape(value)}</td>"
            for key, value in row.items()
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<div class=wide><table>\n<tr>{head}</tr>\n" + "\n".join(lines) + "\n</table></div>"


def _protocols(results: Sequence[Result]) -> str:
    """What all results share as a list, what differs as a table; a field that does not apply does not differ."""
    protocols = {r.name: {k: str(v) for k, v in asdict(r.protocol).items() if v not in ("", 0)} for r in results}
    values: dict[str, list[str]] = {}
    for protocol in protocols.values():
        for key, value in protocol.items():
            values.setdefault(key, []).append(value)
    differing = [key for key, found in values.items() if len(set(found)) > 1]
    terms = (f"<dt>{_words(k)}</dt><dd>{_value(found[0])}</dd>" for k, found in values.items() if k not in differing)
    parts = [f"<dl>{''.join(terms)}</dl>"]
    if differing:
        head = "<th>name</th>" + "".join(f"<th>{_words(key)}</th>" for key in differing)
        rows = (
            f"<tr><td>{html.escape(name)}</td>"
            + "".join(f"<td>{_value(protocol.get(key, '-'))}</td>" for key in differing)
            + "</tr>"
            for name, protocol in protocols.items()
        )
        parts.append(f"<div class=wide><table><tr>{head}</tr>{''.join(rows)}</table></div>")
    return f"<details><summary>Protocol</summary>{''.join(parts)}</details>"


def _words(key: str) -> str:
    return html.escape(key.replace("_", " "))


def _value(value: str) -> str:
    short = f"{value[:12]}…" if len(value) == 64 else value
    return f'<span title="{html.escape(value)}">{html.escape(short)}</span>'


def compare(
    teacher: Path | str,
    student: Path | str,
    features: Path | str,
    data: str | Samples = "digits",
    count: int = 2048,
    out: Path | str | None = None,
    report: Report | None = None,
    page: Path | str | None = None,
    *,
    first_seed: int = HELD_OUT,
    ddim: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    multistep: Sequence[int] = (4, 8, 16),
    fine_steps: int = 64,
    repeats: int = 3,
    passes: Sequence[int] = (),
    fresh: bool = False,
    accelerator: Any = None,
) -> list[Result]:
    """An unconditional student beside its teacher's solvers on the same held-out noises: numbers, and a report.

    Arguments:
        teacher: Folder of the teacher.
        student: Folder of the student or flow map.
        features: Folder of the feature network.
        data: The reference set, or what `dsno.data.load_data` takes.
        count: How many noises.
        out: Folder for `results.json` and `report.html`; nothing is written without it.
        report: Called with stage, done, total and text.
        page: Where the report goes instead.
        first_seed: Seed of the first noise; far from those of trajectories by default.
        ddim: Steps of DDIM, on the uniform grid.
        multistep: Steps of DPM-Solver++ and UniPC, on the uniform grid. About `count` times
            (sum(ddim) + 2 sum(multistep) + fine_steps) network evaluations are most of the work.
        fine_steps: Steps of the fine solution.
        repeats: Calls behind each latency, 0 to leave latencies out.
        passes: Numbers of passes to measure the student at, a row each; by default the fewest it was trained for.
        fresh: Noise the sample again between passes.
        accelerator: An `accelerate.Accelerator`: its processes share the noises and the first one writes; or None.

    Returns:
        The results: the student, the solvers at several numbers of steps, and the fine solution's own quality.

    Raises:
        FileNotFoundError: if a folder is not complete.
        ValueError: if the student makes other shapes than the data has or other passes than are asked for, or `count` is
            too small for precision and recall.
    """
    images, net = data if isinstance(data, Samples) else load_data(data), load_feature_net(features)
    solved, learned = load_teacher(teacher), load_any(student).eval()
    shape = images.shape
    if learned.shape != shape:
        raise ValueError(f"the student makes {learned.shape}, {images.name} has {shape}: choose its own data")
    device = torch.device("cpu") if accelerator is None else accelerator.device
    for model in (solved, learned, net):
        model.to(device)
    seeds = seed_range(first_seed, count)
    family = "DSNO" if isinstance(learned, TrajectoryStudent) else "flow map"
    samplers: dict[str, Sampler] = {f"{family}-{n}": sampler_of(learned, n, fresh=fresh) for n in passes}
    samplers = samplers or {family: sampler_of(learned)}
    own = tuple(samplers)
    solvers = (("DDIM", DDIM(), ddim), ("DPM-Solver++", DPMSolverPP(), multistep), ("UniPC", UniPC(), multistep))
    for name, step, steps in solvers:
        for n in steps:
            samplers[f"{name}-{n}"] = SolverSampler(solved, solved.schedule, uniform(n), step)

    def say(done: int, text: str) -> None:
        if report is not None:
            report("evaluate", done, len(samplers) + 1, text)

    say(0, f"fine solution of {count} noises in {fine_steps} steps")
    z = noise(seeds, shape, device=device)
    fine = fine_solution(solved, solved.schedule, z, fine_steps).sample
    reference = Reference.of(images.x, net)
    per_row = flops(solved, z[:1], torch.ones(1, device=device))
    results = []
    for n, (name, sampler) in enumerate(samplers.items()):
        say(n + 1, name)
        results.append(
            evaluate(
                sampler, name=name, shape=shape, seeds=seeds, reference=reference, extractor=net, fine=fine,
                flops_per_row=None if name in own else per_row, repeats=repeats, device=device,
                accelerator=accelerator,
            )
        )  # fmt: skip
    results.append(measure(fine.clamp(-1, 1), name="teacher, fine", reference=reference, extractor=net))
    say(len(samplers) + 1, "done")
    if accelerator is not None and not accelerator.is_main_process:
        return results
    if out is not None:
        save_results(results, Path(out) / "results.json")
    if out is not None or page is not None:
        sections = _comparison(results, solved, learned, z, fine, fine_steps, family)
        html_report(
            page or Path(out or ".") / "report.html",
            f"{'One pass' if not passes else 'Few passes'} beside its teacher: {images.name}",
            sections,
            f"{count} noises the student was not trained on, the same for every sampler; quality against {len(images)} "
            f"images in the features of {net.name}.",
        )
    return results


def _comparison(
    results: Sequence[Result],
    teacher: Prediction,
    student: Student,
    z: Tensor,
    fine: Tensor,
    fine_steps: int,
    family: str,
) -> list[Section]:
    n = min(64, len(z))
    sampler = sampler_of(student)
    made = sampler(z[:n])
    ends = [slerp(z[i], z[i + 1], 12) for i in range(0, min(8, len(z) - 1), 2)]
    strips = torch.stack([sampler(arc).sample for arc in ends]) if ends else None
    calls = "one network call" if made.rounds == 1 else f"{made.rounds} network calls"

    return [
        Section(
            "Samples",
            pictures=[
                Picture(image_grid(made.sample), f"The student, {calls}."),
                Picture(image_grid(fine[:n]), f"The teacher from the same noises, {fine_steps} calls."),
            ],
        ),
        *([_paths(student, teacher, z, fine_steps)] if isinstance(student, TrajectoryStudent) else []),
        Section(
            "Quality against cost",
            pictures=[
                _both(
                    lambda dark: quality_against_cost(results, dark=dark, students=(family,)),
                    "Against the serial cost.",
                ),
                _both(
                    lambda dark: quality_against_cost(results, "flops", dark=dark, students=(family,)),
                    "Against the arithmetic: the frames of one pass are not free.",
                ),
            ],
            results=results,
        ),
        *(
            [Section("Interpolation", pictures=[Picture(interpolation(strips), "The student along arcs of noise.")])]
            if strips is not None
            else []
        ),
    ]


def _paths(student: TrajectoryStudent, teacher: Prediction, z: Tensor, fine_steps: int) -> Section:
    pairs = min(6, len(z))
    path = OnePass(student)(z[:pairs])
    exact = fine_solution(
        teacher, teacher.schedule, z[:pairs], fine_steps, keep=[1.0, *path.t[1:].tolist()], keep_x0=True
    )
    frames = (
        (path.x, exact.x) if student.target == "state" or path.x0 is None or exact.x0 is None else (path.x0, exact.x0)
    )
    what = "states" if student.target == "state" else "denoised estimates"
    return Section(
        "Trajectories",
        pictures=[
            _both(
                lambda dark: trajectory_strips(frames[0][:, 1:], frames[1][:, 1:], path.t[1:], z[:pairs], dark=dark),
                f"All times of the student come from one network call. Shown are its {what} over the teacher's.",
            )
        ],
    )


def _both(draw: Callable[[bool], bytes], caption: str) -> Picture:
    return Picture(draw(False), caption, draw(True))


_CSS = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2024; --soft: #60646c; --rule: #e0e1e6; --mark: #fdeee7;
  --accent: #c2410c }
@media (prefers-color-scheme: dark) { :root { --paper: #18191b; --ink: #edeef0; --soft: #a5aab2; --rule: #34373c;
  --mark: #3a2318; --accent: #ff9466 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
main { max-width: 66rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem }
header { margin-bottom: 3rem }
h1 { font-size: 2.1rem; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 .75rem; text-wrap: balance }
h2 { font-size: 1.25rem; letter-spacing: -0.01em; margin: 0 0 .5rem }
p { max-width: 44rem; margin: .5rem 0 1rem; color: var(--soft) }
header p { font-size: 1.1rem }
section { padding: 2rem 0; border-top: 1px solid var(--rule) }
figure { margin: 1.25rem 0 0; min-width: 0 }
.row { display: flex; flex-wrap: wrap; column-gap: 3rem }
img { display: block; max-width: 100%; height: auto }
figcaption { margin-top: .75rem; font-size: .875rem; color: var(--soft); max-width: 44rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .8125rem; font-variant-numeric: tabular-nums; margin: .75rem 0; width: 100% }
th, td { padding: .4rem .5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule) }
th { font-weight: 500; color: var(--soft) }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
td:first-child { font-weight: 500 }
.best { font-weight: 650; color: var(--accent); background: var(--mark) }
details { margin-top: 1rem; font-size: .875rem }
summary { cursor: pointer; color: var(--soft) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.5rem; margin: 1rem 0 }
dt { color: var(--soft) }
dd { margin: 0; font-variant-numeric: tabular-nums }
"""
