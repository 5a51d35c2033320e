r"""A bridge, call by call: its samplers on held-out pairs, measured, drawn, and written as a page.

What a bridge makes of an input is judged by three things that pull apart. The PSNR to the clean picture is highest for
a mean over all answers, which one call gives and which is blurred; the spread of several samples of one input is 0
there; and the Fréchet distance to clean pictures of *other* inputs says whether the samples look like any. So all three
are shown against the number of calls, beside the input itself and, as a floor, the clean pictures of the inputs.

Samplers are taken at the same budgets, each with the most calls that one of its grids has.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsno.bridge.files import load_bridge
from dsno.bridge.prediction import BridgePrediction
from dsno.bridge.sampler import BridgeSampler, most_calls
from dsno.bridge.student import Crossing, starts_from_pictures
from dsno.checkpoint import CONFIG, read_json
from dsno.cost import flops
from dsno.data.pairs import Pairs
from dsno.data.samples import check_images
from dsno.measure.evaluate import Reference, evaluate, measure
from dsno.measure.results import RESULTS, Result, save_results
from dsno.nets.features import FeatureNet, load_feature_net
from dsno.outputs import check_apart
from dsno.report.compare import FEWEST, HELD_OUT, REPORT, check_written
from dsno.report.page import Picture, Section, html_report
from dsno.report.pictures import FIDELITY, GAP, enlarged, image_grid, quality_against_cost
from dsno.seeds import noise, seed_range
from dsno.students.origin import open_student, origin_of
from dsno.students.samplers import sampler_of
from dsno.train import Report, quiet
from dsno.trajectory import Sampler

__all__ = ["CALLS", "SAMPLERS", "compare_calls"]

log = logging.getLogger(__name__)

CALLS, SAMPLERS = (1, 5, 13, 21), ("dbim2", "odes3", "ancestral")

ONE_PASS = "one pass"

ROWS, FEW = 5, 4
"""Inputs on the page, and samples of each."""

WIDTH = 1848
"""Pixels of a row of pictures, at twice the size it is shown at, that small ones are enlarged to."""


def compare_calls(
    bridge: Path | str,
    pairs: Pairs,
    out: Path | str | None = None,
    calls: Sequence[int] = CALLS,
    samplers: Sequence[str] = SAMPLERS,
    samples: int = 4,
    count: int = 256,
    student: Path | str | None = None,
    features: Path | str | None = None,
    report: Report = quiet,
    *,
    first_seed: int = HELD_OUT,
    repeats: int = 3,
    accelerator: Any = None,
) -> list[Result]:
    """The samplers of a bridge on pairs: numbers, and a report.

    Arguments:
        bridge: Its folder.
        pairs: Pictures, best such as it was not trained on.
        out: Folder for `results.json` and `report.html`, which replace those of an evaluation before; nothing is
            written without it.
        calls: Network calls of a sample.
        samplers: Their names, of `BRIDGE_STEPS`.
        samples: Samples of each input.
        count: How many inputs, the first of the pairs; with features at most half of them, the clean pictures of the
            others being the reference.
        student: Folder of a one-pass student of the bridge, which is measured beside it.
        features: Folder of a feature network, for distances.
        report: Called with stage, done, total and text (`dsno.train.Report`).
        first_seed: Sample j of input i starts from the noise of the seed `first_seed` + i `samples` + j.
        repeats: Calls behind each latency, 0 to leave latencies out.
        accelerator: An `accelerate.Accelerator`: its processes share the samples and the first one writes; or None.

    Returns:
        The results: each sampler at each number of calls, the student, the inputs as they are, and with
        features the clean pictures of these, as the floor.

    Raises:
        FileExistsError: if `out` holds one of the folders, or files of these names that are of no evaluation.
        FileNotFoundError: if a folder is not complete.
        ValueError: if pairs, bridge, student and feature network are of different shapes, the pairs no pictures or too
            few, or the student starts from noise alone or was trained on one of the noises; for no samplers or samples,
            an unknown name, or less than one call.
    """
    for name, given in (("samples", samples), ("count", count)):
        if given < 1:
            raise ValueError(f"{name} must be at least 1, got {given}")
    if not calls or not samplers:
        raise ValueError(f"nothing is measured of {list(samplers)} at {list(calls)} calls: name one or more of each")
    if out is not None:
        check_apart(out, bridge, student, features)
        check_written(Path(out) / RESULTS, Path(out) / REPORT)
    made, net = load_bridge(bridge), None if features is None else load_feature_net(features)
    if made.shape != pairs.shape:
        raise ValueError(f"{pairs.name} are pairs of shape {pairs.shape}, {bridge} takes {made.shape}")
    check_images(pairs.x, pairs.name)
    count = min(count, len(pairs) if net is None else len(pairs) // 2)
    if net is not None and count < FEWEST:
        raise ValueError(f"distances need {2 * FEWEST} pairs or more, got {len(pairs)}: give more, or no features")
    device = torch.device("cpu") if accelerator is None else accelerator.device
    drawn = _samplers(made.to(device), samplers, calls)
    if student is not None:
        origin_of(student).check_unseen(first_seed, count * samples)
        drawn[ONE_PASS] = _student(student, pairs, device)
    if net is not None:
        net.to(device).check(pairs.x)
    if seen := read_json(Path(bridge) / CONFIG).get("notes", {}).get("pairs") == pairs.name:
        log.warning("%s was trained on %s: other pairs say what it has learned", bridge, pairs.name)
    reference = None if net is None else Reference.of(pairs.x[count:], net)
    inputs = _Inputs(pairs.start[:count], pairs.x[:count], samples, first_seed, device)
    one = inputs.first(1).start.to(device)
    per_row = flops(made, one, torch.ones(1, device=device), {"start": one})
    results = []
    for n, (name, sampler) in enumerate(drawn.items()):
        report("evaluate", n, len(drawn), name)
        result = evaluate(
            sampler,
            name=name,
            shape=pairs.shape,
            seeds=inputs.seeds,
            reference=reference,
            extractor=net,
            clean=inputs.clean.repeat_interleave(samples, 0),
            samples=samples,
            cond=inputs.cond,
            flops_per_row=None if name == ONE_PASS else per_row,
            repeats=repeats,
            device=device,
            accelerator=accelerator,
        )
        results.append(result)
    results.append(
        measure(inputs.start.clamp(-1, 1), name="input", reference=reference, extractor=net, clean=inputs.clean)
    )
    if net is not None:
        results.append(measure(inputs.clean, name="real, other half", reference=reference, extractor=net))
    report("evaluate", len(drawn), len(drawn), "done")
    if out is not None and (accelerator is None or accelerator.is_main_process):
        save_results(results, Path(out) / RESULTS)
        own = [result.name for result in results if result.family == samplers[0]]
        html_report(
            Path(out) / REPORT,
            "A bridge, call by call" + ("" if student is None else ", and in one pass"),
            [_pictures(drawn, own, inputs.first(ROWS)), _numbers(results, net)],
            _said(bridge, made, pairs, inputs, seen),
        )
    return results


@dataclass(frozen=True)
class _Inputs:
    """What samples start from and should end in, (N, *shape), and how many there are of each."""

    start: Tensor
    clean: Tensor
    samples: int
    first_seed: int
    device: torch.device

    @property
    def seeds(self) -> Tensor:
        return seed_range(self.first_seed, len(self.start) * self.samples)

    @property
    def cond(self) -> dict[str, Tensor]:
        return {"start": self.start.repeat_interleave(self.samples, 0).to(self.device)}

    def first(self, count: int) -> _Inputs:
        return replace(self, start=self.start[:count], clean=self.clean[:count])

    def drawn(self, sampler: Sampler) -> Tensor:
        """The samples, (N, S, *shape)."""
        z = noise(self.seeds, self.start.shape[1:], device=self.device)
        made = sampler(z, self.cond, self.seeds).sample.float().cpu().clamp(-1, 1)
        return made.unflatten(0, (-1, self.samples))


def _samplers(bridge: BridgePrediction, names: Sequence[str], calls: Sequence[int]) -> dict[str, Sampler]:
    """Those of a bridge by name and number of calls."""
    return {
        f"{name}-{n}": Crossing.of(BridgeSampler.of_calls(bridge, bridge.bridge, n, name))
        for name in names
        for n in sorted({most_calls(name, budget) for budget in calls})
    }


def _student(folder: Path | str, pairs: Pairs, device: torch.device) -> Sampler:
    """The sampler of a student of a bridge.

    Raises:
        ValueError: if it is none, or of pictures of another shape.
    """
    made = open_student(folder).eval().to(device)
    if not starts_from_pictures(made):
        raise ValueError(f"{folder} starts from noise alone: give the student of a bridge, or leave it out")
    if made.shape != pairs.shape:
        raise ValueError(f"{pairs.name} are pairs of shape {pairs.shape}, {folder} makes {made.shape}")
    return sampler_of(made)


def _pictures(drawn: Mapping[str, Sampler], own: Sequence[str], inputs: _Inputs) -> Section:
    """Some inputs, each with its samples, and with what more calls make of one of them."""
    made = {name: inputs.drawn(drawn[name]) for name in (*own, ONE_PASS) if name in drawn}
    last = {ONE_PASS: made[ONE_PASS][:, 0]} if ONE_PASS in made else {}
    few = min(FEW, inputs.samples)
    several = {f"sample {j}": made[own[-1]][:, j] for j in range(few)}
    more = {name: made[name][:, 0] for name in own[-FEW:]}
    ends = ({"input": inputs.start}, last | {"reference": inputs.clean})
    return Section(
        "Pictures",
        "Each row is one input; what is called sample 0 and one pass has the noise of the same seed in both pictures.",
        [
            _rows(ends[0] | several | ends[1], f"Samples of one input, by {own[-1]}."),
            _rows(ends[0] | more | ends[1], "Sample 0 by number of calls: with one there is no noise in it."),
        ],
    )


def _rows(columns: Mapping[str, Tensor], caption: str) -> Picture:
    """Columns of pictures (N, C, H, W), each with its name below."""
    tiles = torch.stack([*columns.values()], 1)
    side = WIDTH // len(columns) - GAP
    captions = [*columns] * len(tiles)
    return Picture(image_grid(enlarged(tiles.flatten(0, 1), side), len(columns), captions), caption)


def _numbers(results: Sequence[Result], net: FeatureNet | None) -> Section:
    """Plots and table."""
    students, pictures = (ONE_PASS,), []
    parts = {"Against the references, and against each other.": FIDELITY[:2]}
    if net is not None:
        parts["In features: the set of samples, and each against its reference."] = FIDELITY[2:]
    for caption, panels in parts.items():
        light, dark = (quality_against_cost(results, "rounds", dark, students, panels) for dark in (False, True))
        pictures.append(Picture(light, caption, dark))
    text = (
        "One answer for all, the mean, has the highest PSNR and no spread; what looks like a picture has less of the "
        "first and some of the second. The dashed line is the input as it is."
    )
    if net is not None:
        text += " The other one is the clean pictures of the inputs, against those of others: a sampler's floor."
    return Section("Quality against calls", text, pictures, results)


def _said(folder: Path | str, bridge: BridgePrediction, pairs: Pairs, inputs: _Inputs, seen: bool) -> str:
    """What was measured."""
    text = (
        f"{bridge.bridge!r}, a network of kind {bridge.kind} in {folder}: {len(inputs.start)} inputs of {pairs.name}, "
        f"{inputs.samples} samples of each, of the same noise by every sampler."
    )
    return f"{text}\n\nThe bridge was trained on these pairs: others say what it has learned." if seen else text
