"""Bridges on the command line: pairs to train on, and pictures to start from."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from dsno.bridge.coefficients import DDBMVE, DDBMVP, I2SB, Bridge, BrownianBridge
from dsno.bridge.files import load_bridge
from dsno.bridge.prediction import BridgeKind
from dsno.bridge.sampler import EXPONENT, BridgeSampler
from dsno.bridge.starts import compare_starts
from dsno.bridge.train import at_full_size, degraded
from dsno.checkpoint import CONFIG, read_json, type_of, write_atomically
from dsno.cli.console import progress
from dsno.cli.options import Reading
from dsno.cli.pieces import BATCH, Piece, check_size, write_pieces
from dsno.cli.problems import Stated, stated
from dsno.data.load import load_data
from dsno.data.pairs import Pairs, load_pairs
from dsno.data.samples import Samples
from dsno.inverse.problem import check_problem
from dsno.report.compare import HELD_OUT
from dsno.report.pictures import check_grid_size, image_grid
from dsno.seeds import seed_range
from dsno.students.origin import origin_of
from dsno.teachers.check.verdict import Finding, Verdict

__all__ = [
    "BRIDGES",
    "BridgeName",
    "SamplerName",
    "check_starts",
    "cross_pictures",
    "is_bridge",
    "kind_of_pairs",
    "made_pairs",
    "pairs_for",
    "pictures_of",
    "problem_of",
    "read_pairs",
    "starts_of",
]

BridgeName = Literal["brownian", "i2sb", "vp", "ve"]
"""The bridges by the name that `--bridge-type` takes."""

BRIDGES: dict[BridgeName, Callable[[], Bridge]] = {
    "brownian": BrownianBridge,
    "i2sb": I2SB,
    "vp": DDBMVP,
    "ve": DDBMVE,
}

SamplerName = Literal["ancestral", "euler", "hybrid", "dbim1", "dbim2", "dbim3", "odes3", "odes3-exponential"]
"""The samplers of a bridge by the name that `--sampler` takes, those of `dsno.bridge.sampler.BRIDGE_STEPS`."""


def kind_of_pairs(kind: str | None) -> BridgeKind:
    """What a network of pairs predicts, `ddbm` by default.

    Raises:
        ValueError: for a kind of teachers that start from noise.
    """
    for known in get_args(BridgeKind):
        if kind in (None, known):
            return "ddbm" if kind is None else known
    raise ValueError(
        f"--kind {kind} is of teachers that start from noise: of --pairs {', '.join(get_args(BridgeKind))}"
    )


def is_bridge(ref: object) -> bool:
    """Whether a folder holds a bridge."""
    return type_of(ref) == "bridge"


def read_pairs(sources: Sequence[str], columns: Sequence[str], reading: Reading) -> Pairs:
    """The pairs of --pairs and --columns.

    Raises:
        ValueError: for more than two sources, or an option of reading that pairs have not; as `load_pairs`.
    """
    if len(sources) > 2:
        raise ValueError(f"--pairs are two sources, degraded and clean, or one that holds both, got {len(sources)}")
    if unread := [name for name in reading.given() if name != "--size"]:
        raise ValueError(f"{unread[0]} does not go with --pairs: leave it out")
    return load_pairs(*sources, columns=columns or None, size=reading.size)


def pairs_for(folder: str, sources: Sequence[str], columns: Sequence[str], reading: Reading) -> Pairs:
    """Pairs to measure a bridge on: of a clean set alone what its problem makes, with other noise than in training.

    Raises:
        ValueError: as `read_pairs`, `problem_of` and `degraded`.
    """
    held = problem_of(folder)
    if held is None or len(sources) > 1 or columns:
        return read_pairs(sources, columns, reading)
    return made_pairs(reading.load(sources[0]), *held, HELD_OUT)


def made_pairs(clean: Samples, problem: Stated, noise: float, seed: int) -> Pairs:
    """Clean samples beside what a problem makes of them; errors as `degraded`."""
    told = {"name": problem.name, "noise": noise, **problem.options}
    options = (f"{option} {value}" for option, value in told.items() if option != "name")
    name = ", ".join([f"{clean.name} under {problem.name}", *options])
    return Pairs(degraded(problem.of(clean.shape), clean.x, seed), clean.x, name, clean.units, told)


def problem_of(folder: object) -> tuple[Stated, float] | None:
    """The problem whose measurements a bridge was trained on, and the noise in them; None of one of other pairs.

    Raises:
        FileNotFoundError: if a file of it is missing: a mask, a kernel.
    """
    held = read_json(Path(str(folder)) / CONFIG).get("notes", {}).get("problem")
    if held is None:
        return None
    name, noise, asked = held["name"], held["noise"], {k: v for k, v in held.items() if k not in ("name", "noise")}
    files = {option: Path(asked[option]) for option in ("mask", "kernel") if option in asked}
    return stated(name, noise, 0, False, {**asked, **files}), noise


def check_starts(
    folder: Path, start: Tensor, calls: int, name: SamplerName, seed: int, device: torch.device
) -> Verdict:
    """What is found of the ends of a bridge's start, as `dsno check-teacher` shows it.

    Raises:
        ValueError: for pictures of another shape than the bridge's, or calls that no grid of the sampler has.
    """
    made = load_bridge(folder).to(device)
    start = starts_of(start, made.shape, folder)
    with progress() as report:
        found = compare_starts(
            made,
            made.bridge,
            start.to(device),
            calls,
            name,
            seed=seed,
            progress=lambda n, of: report("starts", n, of, ""),
        )
    (t_1, exponent), usual = found.best, found.distances[found.usual]
    text = (
        f"{name} with {calls} calls is nearest with t_1 = {t_1:.3g} and exponent {exponent:g}: "
        f"{found.distances[found.best]:.3g} from 100 calls of the ancestral sampler, whose own draws are "
        f"{found.floor:.3g} apart; by default {usual:.3g}"
    )
    better = found.distances[found.best] < 0.9 * usual
    mend = f"--t-1 {t_1:.3g} --exponent {exponent:g}" if better else ""
    finding = Finding("start", "warning" if better else "ok", text, mend)
    return Verdict(f"{made.bridge!r}, network of kind {made.kind}", "data", (finding,))


def starts_of(x: Tensor, shape: tuple[int, ...] | None, folder: object) -> Tensor:
    """What the bridge in a folder starts from, (N, *shape), of pictures: they themselves, or of its problem's
    measurements the pictures at full size that it was trained on.

    Raises:
        ValueError: for pictures of another shape.
    """
    given = tuple(x.shape[1:])
    if shape is None or given == shape:
        return x
    takes = f"{shape}"
    if (held := problem_of(folder)) is not None:
        problem = held[0].of(shape)
        if given == (measured := check_problem(problem, shape)):
            return at_full_size(problem, x, shape)
        takes += f", or {measured} as it is measured" if measured != shape else ""
    raise ValueError(f"the pictures have the shape {given}, {folder} takes {takes}")


@functools.cache
def pictures_of(source: Path, student: Path, shape: tuple[int, ...]) -> Tensor:
    """The pictures (N, *shape) that the student of a bridge starts from, by `starts_of` of the bridge if it is there.

    Raises:
        ValueError: if they are of another shape.
    """
    bridge = next((place for place in origin_of(student).places if is_bridge(place)), student)
    return starts_of(load_data(source).x, shape, bridge)


def cross_pictures(
    folder: Path,
    pictures: Path,
    out: Path,
    calls: int,
    samples: int,
    name: SamplerName,
    t_1: float | None,
    exponent: float | None,
    eta: float,
    seed: int,
    device: torch.device,
    overwrite: bool,
) -> str:
    """Draw `samples` of each picture and write them: a .png has a row for each, itself first. Returns what is said.

    Raises:
        ValueError: for calls that no grid of the sampler has, a `t_1` outside (0, 1), an `eta` of another sampler than
            dbim1, pictures of another shape than the bridge's, or more than a picture holds.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    made = load_bridge(folder).to(device)
    exponent = EXPONENT if exponent is None else exponent
    sampler = BridgeSampler.of_calls(made, made.bridge, calls, name, t_1, exponent, eta)
    start = starts_of(load_data(pictures).x, made.shape, folder)
    rows, seeds = start.repeat_interleave(samples, 0), seed_range(seed, samples * len(start))
    check_size(out, len(rows), start.shape[1:])
    if out.suffix == ".png":
        check_grid_size((len(start) * (samples + 1), *start.shape[1:]), samples + 1)
    seconds = 0.0

    def pieces() -> Iterator[Piece]:
        nonlocal seconds
        for x, part in zip(rows.split(BATCH), seeds.split(BATCH), strict=True):
            began = time.perf_counter()
            found = sampler(x.to(device), seeds=part).sample.cpu().clamp(-1, 1)
            seconds += time.perf_counter() - began
            yield Piece(found, part)

    inputs = (folder, pictures)
    if out.suffix == ".png":
        found = torch.cat([piece.samples for piece in pieces()])
        write_atomically(out, partial(_sheet, start, found, seeds.tolist()))
    else:
        write_pieces(out, len(rows), pieces(), overwrite, inputs)
    said = "one call" if calls == 1 else f"{calls} calls"
    return f"{samples} samples of each of {len(start)} pictures in {said} of {name}, {seconds:.2f} s"


def _sheet(start: Tensor, found: Tensor, seeds: Sequence[int], path: Path) -> None:
    """A row for each picture: itself, then its samples."""
    samples = len(found) // len(start)
    images = torch.cat([start[:, None], found.unflatten(0, (len(start), samples))], 1).flatten(0, 1)
    captions = [caption for n in range(len(start)) for caption in ("input", *map(str, seeds[n * samples :][:samples]))]
    path.write_bytes(image_grid(images, samples + 1, captions))
