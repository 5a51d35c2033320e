r"""A sampler in, numbers out, with the protocol that produced them.

`evaluate` runs any `Sampler` on per-sample seeds and returns one `Result`: quality of the set (distances between
features), the error of each sample against the teacher's own solution from the same noise, what it cost, and the
protocol. A number without its protocol does not reproduce, so the two are one object: stored together, printed
together, and compared only where their protocols agree.

The path error needs no reference set and no network of ours: with $x^*$ the fine solution of the teacher's
probability-flow ODE from the noise $z_i$ of seed $i$,

$$ e = \sqrt{\operatorname{mean}_{i, \text{pixels}} (x_i - x^*_i)^2}. $$
"""

from __future__ import annotations

import importlib.metadata
import math
import operator
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsno.checkpoint import read_json, write_json
from dsno.data import check_images
from dsno.denoise import Cond, Denoiser, map_cond
from dsno.metrics import (
    Extractor,
    as_extractor,
    diversity,
    extract,
    flops,
    frechet_distance,
    kernel_distance,
    latency,
    mean_distance,
    neighbour_radii,
    precision_recall,
    sample_error,
    tensor_sha,
    timed,
)
from dsno.noise import noise
from dsno.schedule import Schedule, log_snr_uniform, through
from dsno.solve import DDIM, DPMSolverPP, Sampler, Step, initial_state, solve
from dsno.trajectory import Trajectory

__all__ = [
    "COLUMNS",
    "Column",
    "Cost",
    "Protocol",
    "Quality",
    "Reference",
    "Result",
    "best",
    "evaluate",
    "fine_solution",
    "load_results",
    "measure",
    "save_results",
    "solver_errors",
    "table",
]


KERNEL_SUBSETS, KERNEL_SUBSET = 50, 1000


@dataclass(frozen=True)
class Quality:
    """Set against set, in the features the protocol names; see `dsno.metrics`.

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
        extractor: The feature network's name.
        extractor_sha: SHA-256 of its weights.
        values: What was done to values outside the pixel range before features: always clamped.
        rounding: `none`, or the number of equally spaced levels in [-1, 1] both sets were rounded to before features.
        neighbours: k of precision and recall.
        kernel_subsets: Subsets and their size in the kernel distance.
        fine_sha: SHA-256 of the fine solution the path error is against.
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
    extractor: str = ""
    extractor_sha: str = ""
    values: str = "clamped to [-1, 1]"
    rounding: str = "none"
    neighbours: int = 0
    kernel_subsets: str = ""
    fine_sha: str = ""
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
        return (
            self.count, self.reference_sha, self.extractor_sha, self.rounding, self.neighbours, self.kernel_subsets,
            self.fine_sha,
        )  # fmt: skip


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
    """

    name: str
    family: str
    cost: Cost
    protocol: Protocol
    quality: Quality | None = None
    path_error: float | None = None
    path_error_median: float | None = None


@dataclass(frozen=True)
class Reference:
    """A reference set's features, computed once for many samplers."""

    features: Tensor
    sha: str
    extractor_sha: str
    rounding: str

    @classmethod
    def of(cls, images: Tensor, extractor: nn.Module | Extractor, levels: int | None = None) -> Reference:
        """From images (N, C, H, W) in [-1, 1]; `levels` as in `evaluate`.

        Raises:
            ValueError: if the images are not a usable set.
        """
        check_images(images, "the reference set")
        extractor = as_extractor(extractor)
        features = extract(extractor, _prepared(images, levels))
        return cls(features, tensor_sha(images), extractor.sha, _rounding(levels))

    @cached_property
    def mean_distance(self) -> float:
        """Between two images, of `diversity`."""
        return mean_distance(self.features)

    def radii(self, k: int) -> Tensor:
        """Of the set's manifold, of `precision_recall`; computed at the first call."""
        if k not in self._radii:
            self._radii[k] = neighbour_radii(self.features, k)
        return self._radii[k]

    @cached_property
    def _radii(self) -> dict[int, Tensor]:
        return {}


def evaluate(
    sampler: Sampler,
    *,
    name: str,
    shape: Sequence[int],
    seeds: Sequence[int] | Tensor,
    reference: Tensor | Reference | None = None,
    extractor: nn.Module | Extractor | None = None,
    fine: Tensor | None = None,
    cond: Cond | None = None,
    family: str | None = None,
    batch: int = 512,
    flops_per_row: int | None = None,
    repeats: int = 5,
    levels: int | None = None,
    k: int = 3,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    accelerator: Any = None,
    progress: Callable[[int, int], object] | None = None,
) -> Result:
    r"""Run a sampler on seeds and measure what it made and what that cost.

    Features are computed from samples clamped to $[-1, 1]$; the path error from samples as they are.

    With an `accelerator` every process calls this with the same arguments; each samples its share of the seeds, the
    first compares them with the reference, and all return the same numbers. A sample depends on its seed alone, so they
    are those of one process; `seconds` are the slowest process's.

    Arguments:
        sampler: Noise in, trajectory out.
        name: What to call it; unique among results that are shown together.
        shape: The shape of one sample.
        seeds: (N,) different seeds, one per sample.
        reference: Images (N', C, H, W) in [-1, 1], or their `Reference` where several samplers share it. Without one
            there is no `quality`.
        extractor: The feature network; needed with a reference.
        fine: The fine solution from the same noise, (N, *shape); see `fine_solution`. Without one there is no path error.
        cond: The condition, first dimension N.
        family: The curve this is a point of; by default the name without a trailing `-<number>`.
        batch: Samples per call in the timed run.
        flops_per_row: FLOPs of one network evaluation of one sample; by default one sampler call is counted.
        repeats: Calls at batch 1 behind the latency, after one warm-up; 0 to leave it out.
        levels: Round samples and reference to this many levels before features (256 is what an 8-bit file holds).
        k: Neighbours of precision and recall.
        dtype: Dtype of the noise.
        device: Where the noise is drawn.
        accelerator: An `accelerate.Accelerator`, or None for one process.
        progress: Called with samples done and N after every batch, on the first process.

    Returns:
        The numbers and their protocol.

    Raises:
        ValueError: for no or repeated seeds, a reference without extractor or from another one, a condition or fine
            solution of another length, or a sampler whose samples have a wrong shape, are not finite or all constant.
    """
    seed = torch.as_tensor(seeds, dtype=torch.int64, device="cpu").reshape(-1)
    N, shape = len(seed), tuple(shape)
    if N == 0 or len(seed.unique()) < N:
        raise ValueError(
            f"evaluate needs one or more seeds, all different, got {N}, {len(seed.unique())} of them different"
        )
    if batch < 1 or repeats < 0:
        raise ValueError(f"batch must be positive and repeats not negative, got {batch} and {repeats}")
    conds = {"cond": cond} if cond is None or isinstance(cond, Tensor) else {f"cond {k}": c for k, c in cond.items()}
    for what, given in {**conds, "fine": fine}.items():
        if given is not None and len(given) != N:
            raise ValueError(f"{what} has {len(given)} rows but there are {N} seeds")
    # What is wrong with the reference is said before the sampling, not after it.
    known = _reference(reference, extractor, levels)

    rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    # The last share is filled up with rows of the first: all processes make as many, and what is too much is cut off.
    share = -(-N // world)
    mine = torch.arange(rank * share, (rank + 1) * share) % N

    def arguments(rows: slice | Tensor) -> tuple[Tensor, Cond | None, Tensor]:
        z = noise(seed[rows], shape, dtype=dtype, device=device)
        return z, map_cond(operator.itemgetter(rows), cond), seed[rows]

    first = arguments(slice(0, 1))
    per_call = flops(sampler, *first) if flops_per_row is None else None
    alone = latency(sampler, *first, repeats=repeats, warmup=1) if repeats and rank == 0 else None
    if accelerator is not None:
        accelerator.wait_for_everyone()
    samples, seconds, done = [], 0.0, 0
    for rows in mine.split(batch):
        path, spent = timed(sampler, *arguments(rows))
        samples.append(path.sample.detach())
        seconds += spent
        done = min(done + world * len(rows), N)
        if progress is not None and rank == 0:
            progress(done, N)
    x = torch.cat(samples)
    if world > 1:
        x = accelerator.gather(x.contiguous().to(accelerator.device))[:N]
        seconds = float(accelerator.gather(torch.tensor([seconds], device=accelerator.device)).max())
    if tuple(x.shape) != (N, *shape):
        raise ValueError(f"{name} made samples of shape {tuple(x.shape[1:])}, expected {shape}")
    broken = int((~torch.isfinite(x)).flatten(1).any(1).sum())
    if broken:
        raise ValueError(f"{name} made values that are not finite in {broken} of {N} samples")

    def compared() -> Result:
        quality, protocol = _compare(x, name, known, levels, k)
        error = None if fine is None else sample_error(x, fine)
        return Result(
            name=name,
            family=re.sub(r"-\d+$", "", name) if family is None else family,
            cost=Cost(
                nfe=path.nfe,
                rounds=path.rounds,
                flops=path.nfe * flops_per_row if flops_per_row is not None else per_call,
                seconds=seconds,
                seconds_per_sample=seconds / N,
                latency=alone,
            ),
            protocol=replace(
                protocol,
                seeds=_seeds(seed),
                fine_sha="" if fine is None else tensor_sha(fine),
                batch=min(batch, N),
                repeats=repeats,
                dtype=str(x.dtype).removeprefix("torch."),
                device=_device(x.device) if world == 1 else f"{world} x {_device(x.device)}",
            ),
            quality=quality,
            path_error=None if error is None else float(error.square().mean().sqrt()),
            path_error_median=None if error is None else float(error.median()),
        )

    if world == 1:
        return compared()
    from accelerate.utils import broadcast_object_list

    outcome: list[Any] = [None]
    if rank == 0:
        try:
            outcome = [compared()]
        except ValueError as error:
            # All say what is wrong; none waits for a process that has gone.
            outcome = [error]
    broadcast_object_list(outcome)
    if isinstance(outcome[0], ValueError):
        raise outcome[0]
    return outcome[0]


def measure(
    images: Tensor,
    *,
    name: str,
    reference: Tensor | Reference,
    extractor: nn.Module | Extractor,
    levels: int | None = None,
    k: int = 3,
) -> Result:
    """The quality of images (N, C, H, W) that are there already, at no cost: held-out data, say, as the floor.

    Raises:
        ValueError: if the images or the reference are not a usable set.
    """
    check_images(images, f"the set {name!r}")
    quality, protocol = _compare(images, name, _reference(reference, extractor, levels), levels, k)
    return Result(name, name, Cost(), protocol, quality)


def _reference(
    reference: Tensor | Reference | None, extractor: nn.Module | Extractor | None, levels: int | None
) -> tuple[Reference, Extractor] | None:
    if reference is None:
        return None
    if extractor is None:
        raise ValueError("a reference set needs an extractor: distances are between features")
    extractor = as_extractor(extractor)
    if isinstance(reference, Tensor):
        return Reference.of(reference, extractor, levels), extractor
    if (reference.extractor_sha, reference.rounding) != (extractor.sha, _rounding(levels)):
        raise ValueError(
            f"the reference features are not from {extractor.name} with rounding {_rounding(levels)}: compute them again"
        )
    return reference, extractor


def _compare(
    x: Tensor, name: str, known: tuple[Reference, Extractor] | None, levels: int | None, k: int
) -> tuple[Quality | None, Protocol]:
    """The quality of a set, and the part of the protocol that every result has."""
    protocol = Protocol(
        count=len(x),
        dsno=_version("dsno"),
        torch=_version("torch"),
        torchmetrics=_version("torchmetrics"),
        python=platform.python_version(),
    )
    if known is None:
        return None, protocol
    reference, extractor = known
    x = _prepared(x, levels)
    check_images(x, f"the set {name!r}")
    fake, real = extract(extractor, x), reference.features
    subset = min(KERNEL_SUBSET, len(fake), len(real))
    kernel, kernel_std = kernel_distance(fake, real, KERNEL_SUBSETS, subset)
    precision, recall = precision_recall(fake, real, k, reference.radii(k))
    spread = diversity(fake, real, reference.mean_distance)
    quality = Quality(frechet_distance(fake, real), kernel, kernel_std, precision, recall, spread)
    return quality, replace(
        protocol,
        reference_count=len(real),
        reference_sha=reference.sha,
        extractor=extractor.name,
        extractor_sha=reference.extractor_sha,
        rounding=reference.rounding,
        neighbours=k,
        kernel_subsets=f"{KERNEL_SUBSETS} x {subset}",
    )


def _prepared(x: Tensor, levels: int | None) -> Tensor:
    x = x.clamp(-1, 1)
    if levels is None:
        return x
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    return ((x + 1) / 2 * (levels - 1)).round() / (levels - 1) * 2 - 1


def _rounding(levels: int | None) -> str:
    return "none" if levels is None else f"{levels} levels"


def _seeds(seeds: Tensor) -> str:
    first, last = int(seeds[0]), int(seeds[-1])
    if torch.equal(seeds, torch.arange(first, first + len(seeds))):
        return f"{first}..{last}"
    return f"sha256 {tensor_sha(seeds)}"


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    return f"{platform.machine()} CPU, threads: {torch.get_num_threads()}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def fine_solution(
    denoiser: Denoiser,
    schedule: Schedule,
    z: Tensor,
    steps: int = 256,
    *,
    cond: Cond | None = None,
    keep: Sequence[float] | Tensor | None = None,
    step: Step | None = None,
    keep_x0: bool = False,
    batch: int = 512,
    progress: Callable[[int, int], object] | None = None,
) -> Trajectory:
    r"""The teacher's probability-flow ODE from noise `z`, solved finely: what a path error is measured against.

    Third-order DPM-Solver++ with equal steps of the log-SNR $\ell \in [-14, 14]$, moved through the kept times, and one
    step to t = 0. On mixtures with 300 components of standard deviation 0.15 in 64
    dimensions its RMSE is about 1e-4 on VP, VE and rectified-flow paths.

    Arguments:
        denoiser: The teacher.
        schedule: Its path.
        z: Standard normal noise, (B, *shape), in the dtype to solve in.
        steps: How many steps.
        cond: The condition, first dimension B.
        keep: The times to return, in [0, 1]; 1 and 0 by default.
        step: Another solver.
        keep_x0: Also return $\hat x_0$ at the kept times.
        batch: Samples per network call.
        progress: Called with samples done and B after every batch.

    Returns:
        The trajectory: `.sample` is the fine sample (B, *shape), `.x` the states at the kept times.

    Raises:
        ValueError: for an empty batch, or a grid too coarse for the kept times.
    """
    if len(z) == 0:
        raise ValueError("the noise is empty: nothing to solve")
    # A truncated schedule may end before log-SNR 14; the last step then starts just inside it.
    top = min(14.0, float(schedule.log_snr(torch.zeros((), dtype=torch.float64))) - 1)
    times = [1.0, 0.0] if keep is None else torch.as_tensor(keep, dtype=torch.float64).tolist()
    grid = through(log_snr_uniform(schedule, steps, top, -14.0), times)
    step = DPMSolverPP(3) if step is None else step
    return _solved(denoiser, schedule, z, grid, step, cond, batch, keep=times, keep_x0=keep_x0, progress=progress)


def _solved(
    denoiser: Denoiser,
    schedule: Schedule,
    z: Tensor,
    grid: Tensor,
    step: Step,
    cond: Cond | None,
    batch: int,
    *,
    keep: Sequence[float] | None = None,
    keep_x0: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Trajectory:
    """Trajectories on a grid from noise, a batch at a time."""
    parts = []
    for start in range(0, len(z), batch):
        rows = slice(start, start + batch)
        told = map_cond(operator.itemgetter(rows), cond)
        x = initial_state(schedule, z[rows], float(grid[0]))
        with torch.no_grad():
            parts.append(solve(denoiser, schedule, x, grid, step, told, keep=keep, keep_x0=keep_x0))
        if progress is not None:
            progress(min(start + batch, len(z)), len(z))
    x0s = [part.x0 for part in parts if part.x0 is not None]
    return replace(parts[-1], x=torch.cat([part.x for part in parts]), x0=torch.cat(x0s) if x0s else None, cond=cond)


def solver_errors(
    denoiser: Denoiser,
    schedule: Schedule,
    z: Tensor,
    grids: Mapping[str, Tensor],
    step: Step | None = None,
    *,
    cond: Cond | None = None,
    fine_steps: int = 64,
    batch: int = 256,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, float]:
    """How far a solver's ends are from the fine solution, on each of some grids: which one suits a teacher.

    Arguments:
        denoiser: The teacher.
        schedule: Its path.
        z: Standard normal noise, (B, *shape).
        grids: Decreasing times by name.
        step: The solver; DDIM by default.
        cond: The condition, first dimension B.
        fine_steps: Steps of `fine_solution`.
        batch: Samples per network call.
        progress: Called with the solutions done, of the fine one and all grids, and their number.

    Returns:
        RMSE over all values of all samples, in units of the data, by name, least first; infinite where a sample is.

    Raises:
        ValueError: for an empty batch, or a grid that does not decrease inside [0, 1].
    """
    fine = fine_solution(denoiser, schedule, z, fine_steps, cond=cond, batch=batch).sample
    found = {}
    for n, (name, grid) in enumerate(grids.items(), 1):
        if progress is not None:
            progress(n, len(grids) + 1)
        ends = _solved(denoiser, schedule, z, grid, DDIM() if step is None else step, cond, batch).sample
        error = float((ends - fine).square().mean().sqrt())
        found[name] = error if math.isfinite(error) else math.inf
    if progress is not None:
        progress(len(grids) + 1, len(grids) + 1)
    return dict(sorted(found.items(), key=operator.itemgetter(1)))


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
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a file of dsno results ({error})") from None


def _result(entry: dict[str, Any]) -> Result:
    quality = entry.pop("quality")
    return Result(
        **{
            **entry,
            "cost": Cost(**entry["cost"]),
            "protocol": Protocol(**entry["protocol"]),
            "quality": None if quality is None else Quality(**quality),
        }
    )


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        title: With its unit.
        get: The number in a result, or None.
        show: The number as text.
        ideal: `high` or `low` where one is better, else empty.
    """

    title: str
    get: Callable[[Result], float | None]
    show: Callable[[float], str]
    ideal: str = ""


def _quality(field: str) -> Callable[[Result], float | None]:
    return lambda result: None if result.quality is None else float(getattr(result.quality, field))


def _cost(field: str) -> Callable[[Result], float | None]:
    # A set that nothing sampled has no cost to show.
    return lambda result: getattr(result.cost, field) if result.cost.rounds else None


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _digits(value: float) -> str:
    """Three significant digits."""
    return (
        _whole(value) if abs(value) >= 100 else f"{value:#.3g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}"
    )


def _milli(value: float) -> str:
    return _digits(1e3 * value)


COLUMNS: tuple[Column, ...] = (
    Column("rounds", _cost("rounds"), _whole),
    Column("NFE", _cost("nfe"), _whole),
    Column("MFLOP", _cost("flops"), lambda value: _digits(value / 1e6)),
    Column("Fréchet", _quality("frechet"), _digits, "low"),
    Column("kernel ×1000", _quality("kernel"), _milli, "low"),
    Column("precision", _quality("precision"), lambda value: f"{value:.3f}", "high"),
    Column("recall", _quality("recall"), lambda value: f"{value:.3f}", "high"),
    Column("diversity", _quality("diversity"), lambda value: f"{value:.3f}"),
    Column("path error", lambda result: result.path_error, _digits, "low"),
    Column("latency ms", _cost("latency"), _milli),
    Column("ms/sample", _cost("seconds_per_sample"), _milli),
)


def table(results: Sequence[Result]) -> list[dict[str, str]]:
    """One row per result, from column title to text, `name` first; columns that nothing fills are left out."""
    shown = [c for c in COLUMNS if any(c.get(result) is not None for result in results)]
    return [
        {"name": result.name} | {c.title: "-" if (value := c.get(result)) is None else c.show(value) for c in shown}
        for result in results
    ]


def best(results: Sequence[Result]) -> dict[str, set[str]]:
    """The names of the best results under each column title, those that print alike included.

    Only samplers count, and only where there are two or more, all measured on one scale (`Protocol.scale`); otherwise
    nothing is best.
    """
    rivals = [result for result in results if result.cost.rounds]
    if len(rivals) < 2 or len({result.protocol.scale for result in rivals}) > 1:
        return {}
    winners: dict[str, set[str]] = {}
    for column in COLUMNS:
        # An unbiased distance below 0 is as good as 0.
        values = {r.name: max(value, 0.0) for r in rivals if (value := column.get(r)) is not None}
        if column.ideal and values:
            top = (min if column.ideal == "low" else max)(values.values())
            winners[column.title] = {name for name, value in values.items() if column.show(value) == column.show(top)}
    return winners
