"""Results: numbers with what they cost and the protocol that produced them, and their file.

A number without its protocol does not reproduce, so the two are one object: stored together, printed together, and
compared only where their protocols agree (`Protocol.scale`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsno.checkpoint import read_json, write_json

__all__ = ["RESULTS", "Cost", "Fidelity", "HeldOut", "Protocol", "Quality", "Result", "load_results", "save_results"]

RESULTS = "results.json"
"""What the file of an evaluation is called."""


@dataclass(frozen=True)
class Quality:
    """Set against set, in the features the protocol names; see `dsno.measure.metrics`.

    Attributes:
        frechet: Fréchet distance, 0 is best.
        kernel: Kernel distance (mean over subsets), around 0 is best.
        kernel_std: Its standard deviation over subsets.
        precision: Share of samples inside the reference's manifold, 1 is best.
        recall: Share of references inside the samples' manifold, 1 is best.
        diversity: Mean pairwise distance relative to the reference's, 1 is best.
    """

    frechet: float
    kernel: float
    kernel_std: float
    precision: float
    recall: float
    diversity: float


@dataclass(frozen=True)
class HeldOut:
    """The same set against data that was held out of the reference.

    Attributes:
        frechet: Fréchet distance, 0 is best.
        kernel: Kernel distance (mean over subsets), around 0 is best.
        copying: Median distance of samples to the nearest reference over that of what was held out: about 1 for new
            samples, 0 for copies; see `dsno.measure.copying`.
    """

    frechet: float
    kernel: float
    copying: float


@dataclass(frozen=True)
class Fidelity:
    """Samples beside what should have come out of the input that each is of.

    Attributes:
        psnr: Mean peak signal-to-noise ratio in decibels, or None where a sample is its reference.
        feature_distance: Mean distance of a sample's features from its reference's, or None without features.
        spread: Standard deviation over the samples of one input, root mean square over inputs and pixels; None of
            single samples.
    """

    psnr: float | None
    feature_distance: float | None = None
    spread: float | None = None


@dataclass(frozen=True)
class Cost:
    """What one sample cost.

    Attributes:
        nfe: Network evaluations per sample.
        rounds: Serial network calls; 0 for a set nothing sampled.
        flops: Floating-point operations per sample, two per multiply-add, or None.
        seconds: Seconds of the whole set, in the protocol's batches.
        seconds_per_sample: The same per sample.
        latency: Median seconds of one sample alone, or None where it was not timed.
    """

    nfe: int = 0
    rounds: int = 0
    flops: int | None = None
    seconds: float = 0.0
    seconds_per_sample: float = 0.0
    latency: float | None = None


@dataclass(frozen=True)
class Protocol:
    """How the numbers came about.

    Attributes:
        count: Samples in the set.
        seeds: Their seeds: `first..last` where consecutive, else their checksum; empty where nothing was sampled.
        reference_count: Images in the reference set.
        reference_sha: SHA-256 of the reference images as given.
        held_out_count: Images that were held out of it; 0 without any.
        held_out_sha: SHA-256 of these as given.
        held_out_shared: How many of them are in the reference set all the same.
        extractor: The feature network's name.
        extractor_sha: SHA-256 of its weights.
        values: What was done to values outside the pixel range before features: always clamped.
        rounding: `none`, or the number of equally spaced levels in [-1, 1] both sets were rounded to before features.
        neighbours: k of precision and recall.
        kernel_subsets: Subsets and their size in the kernel distance.
        fine_sha: SHA-256 of the fine solution the path error is against.
        told: What all samplers were told beside the noise, in words; empty for nothing.
        batch: Batch of the timed run.
        repeats: Calls behind the latency.
        dtype: Dtype of the noise and the states.
        device: Where it ran: accelerator, or processor and threads.
        dsno, torch, torchmetrics, python: Versions.
    """

    count: int
    seeds: str = ""
    reference_count: int = 0
    reference_sha: str = ""
    held_out_count: int = 0
    held_out_sha: str = ""
    held_out_shared: int = 0
    extractor: str = ""
    extractor_sha: str = ""
    values: str = "clamped to [-1, 1]"
    rounding: str = "none"
    neighbours: int = 0
    kernel_subsets: str = ""
    fine_sha: str = ""
    told: str = ""
    batch: int = 0
    repeats: int = 0
    dtype: str = ""
    device: str = ""
    dsno: str = ""
    torch: str = ""
    torchmetrics: str = ""
    python: str = ""

    @property
    def scale(self) -> tuple[object, ...]:
        """What two results must share for their quality and path error to be compared."""
        features = (self.reference_sha, self.held_out_sha, self.extractor_sha, self.rounding)
        return (self.count, *features, self.neighbours, self.kernel_subsets, self.fine_sha, self.told)


@dataclass(frozen=True)
class Result:
    """One sampler's numbers.

    Attributes:
        name: The sampler's, unique in a table.
        family: The curve it is a point of, such as `DDIM` for `DDIM-8`.
        cost: What a sample cost.
        protocol: How all this was measured.
        quality: Set against reference set, or None where there was no reference.
        path_error: RMSE over samples and pixels against the fine solution, or None.
        path_error_median: Median over samples of their own RMSE: small where few samples land elsewhere.
        fidelity: Samples against their references, where there are any.
        held_out: Set against held-out data, where there are any.
        accuracy: Share of samples that the extractor, a classifier, takes for the class that was asked for; of real
            images for their own; or None.
    """

    name: str
    family: str
    cost: Cost
    protocol: Protocol
    quality: Quality | None = None
    path_error: float | None = None
    path_error_median: float | None = None
    fidelity: Fidelity | None = None
    held_out: HeldOut | None = None
    accuracy: float | None = None


def save_results(results: Sequence[Result], path: Path | str) -> Path:
    """Write results, protocols included, as one JSON file, atomically; its folder is made where missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"results": [asdict(result) for result in results]})
    return path


def load_results(path: Path | str) -> list[Result]:
    """Read what `save_results` wrote.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is not a file of results.
    """
    stored = read_json(Path(path))
    try:
        return [_result(dict(entry)) for entry in stored["results"]]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a file of dsno results ({error})") from None


def _result(entry: dict[str, Any]) -> Result:
    quality, fidelity, held_out = entry.pop("quality"), entry.pop("fidelity", None), entry.pop("held_out", None)
    return Result(
        **{
            **entry,
            "cost": Cost(**entry["cost"]),
            "protocol": Protocol(**entry["protocol"]),
            "quality": None if quality is None else Quality(**quality),
            "fidelity": None if fidelity is None else Fidelity(**fidelity),
            "held_out": None if held_out is None else HeldOut(**held_out),
        }
    )
