r"""A sampler in, numbers out, with the protocol that produced them.

`evaluate` runs any `Sampler` on per-sample seeds and returns one `Result`: quality of the set (distances between
features, `dsno.measure.metrics`, to a reference set and to data that was held out of it, `dsno.measure.copying`), the
error of each sample against the teacher's own solution from the same noise, what it cost, and the protocol. `measure`
is the same for images that are there already, and `halves` for a part of the reference set against the rest of it: what
equal laws get at that number of samples, which of a distance that is biased is not 0.

The path error needs no reference set and no network of ours: with $x^*$ the fine solution of the teacher's
probability-flow ODE from the noise $z_i$ of seed $i$,

$$ e = \sqrt{\operatorname{mean}_{i, \text{pixels}} (x_i - x^*_i)^2}. $$
"""

from __future__ import annotations

import math
import operator
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dsno.checkpoint import tensor_sha, version_of
from dsno.condition import Cond, flat, map_cond
from dsno.cost import flops, latency, timed
from dsno.data.samples import check_images
from dsno.measure.copying import Unseen, nearest_median
from dsno.measure.features import Extractor, as_extractor, class_accuracy, classifier_of, extract
from dsno.measure.fidelity import psnr
from dsno.measure.metrics import (
    diversity,
    frechet_distance,
    kernel_distance,
    mean_distance,
    neighbour_radii,
    precision_recall,
    sample_error,
)
from dsno.measure.results import Cost, Fidelity, HeldOut, Protocol, Quality, Result
from dsno.seeds import generator, noise
from dsno.trajectory import Sampler

__all__ = ["Reference", "evaluate", "halves", "measure"]

KERNEL_SUBSETS, KERNEL_SUBSET = 50, 1000
DRAWN = 8192


@dataclass(frozen=True)
class Reference:
    """A reference set's features, computed once for many samplers; with those of samples that were held out of it."""

    features: Tensor
    sha: str
    extractor_sha: str
    rounding: str
    held_out: Unseen | None = None

    @classmethod
    def of(
        cls,
        images: Tensor,
        extractor: nn.Module | Extractor,
        levels: int | None = None,
        held_out: Tensor | None = None,
    ) -> Reference:
        """From images (N, C, H, W) in [-1, 1]; `levels` as in `evaluate`.

        Of `held_out`, images (N', C, H, W) that nothing was trained on where `images` are what was, those that are
        among `images` all the same are counted and warned of.

        Raises:
            ValueError: if the images are not a usable set, or the others not held out (`Unseen.of`).
        """
        check_images(images, "the reference set")
        extractor, prepared, unseen = as_extractor(extractor), _prepared(images, levels), None
        if held_out is not None:
            check_images(held_out, "the held-out set")
            unseen = Unseen.of(_prepared(held_out, levels), prepared, extractor, tensor_sha(held_out))
        return cls(extract(extractor, prepared), tensor_sha(images), extractor.sha, _rounding(levels), unseen)

    @cached_property
    def mean_distance(self) -> float:
        """Between two images, of `diversity`."""
        return mean_distance(self.features)

    @cached_property
    def held_out_distance(self) -> float:
        """The median distance of the held-out samples to the nearest of the set, of `copying_ratio`."""
        assert self.held_out is not None
        return nearest_median(self.held_out.features, self.features)

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
    clean: Tensor | None = None,
    samples: int = 1,
    cond: Cond | None = None,
    labels: Tensor | None = None,
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
        reference: Images (N', C, H, W) in [-1, 1], or their `Reference` where several samplers share it or images were
            held out. Without one there is no `quality`.
        extractor: The feature network; needed with a reference.
        fine: The fine solution from the same noise, (N, *shape); see `dsno.solvers.fine.fine_solution`. Without one
            there is no path error.
        clean: What should come out of each, (N, *shape), where every sample is of an input. Without it there is no
            fidelity.
        samples: How many samples, one after another, are of one input. The quality is that of the first of each.
        cond: The condition, first dimension N.
        labels: The class that each sample should be of, (N,), as the extractor, a `FeatureNet`, numbers them. Without
            them there is no accuracy.
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
            solution of another length, labels without a classifier, or a sampler whose samples have a wrong shape, are
            not finite or all constant.
    """
    seed, shape = torch.as_tensor(seeds, dtype=torch.int64, device="cpu").reshape(-1), tuple(shape)
    _check(seed, batch, repeats, cond, fine=fine, clean=clean, labels=labels)
    if samples < 1 or len(seed) % samples:
        raise ValueError(f"{len(seed)} samples cannot be {samples} of each input")
    # What is wrong with the reference is said before the sampling, not after it.
    known = _reference(reference, extractor, levels)
    net = None if labels is None else classifier_of(extractor)

    given = _Given(seed, shape, cond, dtype, device)
    rank, world = _rank_and_world(accelerator)
    per_call = flops(sampler, *given[:1]) if flops_per_row is None else None
    alone = latency(sampler, *given[:1], repeats=repeats, warmup=1) if repeats and rank == 0 else None
    made = _sampled(sampler, given, batch, accelerator, progress)
    _check_samples(made.x, (len(seed), *shape), name)

    def compared() -> Result:
        quality, held_out, protocol = _compare(made.x[::samples], name, known, levels, k)
        error = None if fine is None else sample_error(made.x, fine)
        return Result(
            name=name,
            family=re.sub(r"-\d+$", "", name) if family is None else family,
            cost=Cost(
                nfe=made.nfe,
                rounds=made.rounds,
                flops=per_call if flops_per_row is None else made.nfe * flops_per_row,
                seconds=made.seconds,
                seconds_per_sample=made.seconds / len(seed),
                latency=alone,
            ),
            protocol=replace(
                protocol,
                seeds=_seeds(seed),
                fine_sha="" if fine is None else tensor_sha(fine),
                batch=min(batch, len(seed)),
                repeats=repeats,
                dtype=str(made.x.dtype).removeprefix("torch."),
                device=_device(made.x.device) if world == 1 else f"{world} x {_device(made.x.device)}",
            ),
            quality=quality,
            path_error=None if error is None else float(error.square().mean().sqrt()),
            path_error_median=None if error is None else float(error.median()),
            fidelity=None if clean is None else _fidelity(made.x, clean, samples, known, levels),
            held_out=held_out,
            accuracy=None if labels is None or net is None else class_accuracy(net, _prepared(made.x, levels), labels),
        )

    return _on_the_first(compared, accelerator)


def _check(seed: Tensor, batch: int, repeats: int, cond: Cond | None, **rowwise: Tensor | None) -> None:
    N, different = len(seed), len(seed.unique())
    if N == 0 or different < N:
        raise ValueError(f"evaluate needs one or more seeds, all different, got {N}, {different} of them different")
    if batch < 1 or repeats < 0:
        raise ValueError(f"batch must be positive and repeats not negative, got {batch} and {repeats}")
    for what, rows in {**flat(cond), **rowwise}.items():
        if rows is not None and len(rows) != N:
            raise ValueError(f"{what} has {len(rows)} rows but there are {N} seeds")


def _rank_and_world(accelerator: Any) -> tuple[int, int]:
    """The rank of this process, and how many there are."""
    return (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)


@dataclass(frozen=True)
class _Given:
    """What a sampler is given: noise, condition and seeds, of any rows of the set."""

    seeds: Tensor
    shape: tuple[int, ...]
    cond: Cond | None
    dtype: torch.dtype
    device: torch.device | str

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, rows: slice | Tensor) -> tuple[Tensor, Cond | None, Tensor]:
        z = noise(self.seeds[rows], self.shape, dtype=self.dtype, device=self.device)
        return z, map_cond(operator.itemgetter(rows), self.cond), self.seeds[rows]


class _Made(NamedTuple):
    """The samples of all processes (N, ...), what one of them cost, and the seconds of the slowest process."""

    x: Tensor
    nfe: int
    rounds: int
    seconds: float


def _sampled(
    sampler: Sampler, given: _Given, batch: int, accelerator: Any, progress: Callable[[int, int], object] | None
) -> _Made:
    """Sample this process's share of the set, in the timed run, and gather those of all."""
    (rank, world), N = _rank_and_world(accelerator), len(given)
    # The last share is filled up with rows of the first: all processes make as many, and what is too much is cut off.
    share = -(-N // world)
    mine = torch.arange(rank * share, (rank + 1) * share) % N
    if accelerator is not None:
        accelerator.wait_for_everyone()
    samples, seconds, done = [], 0.0, 0
    for rows in mine.split(batch):
        path, spent = timed(sampler, *given[rows])
        samples.append(path.sample.detach())
        seconds += spent
        done = min(done + world * len(rows), N)
        if progress is not None and rank == 0:
            progress(done, N)
    x = torch.cat(samples)
    if world > 1:
        x = accelerator.gather(x.contiguous().to(accelerator.device))[:N]
        seconds = float(accelerator.gather(torch.tensor([seconds], device=accelerator.device)).max())
    return _Made(x, path.nfe, path.rounds, seconds)


def _check_samples(x: Tensor, shape: tuple[int, ...], name: str) -> None:
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} made samples of shape {tuple(x.shape[1:])}, expected {shape[1:]}")
    broken = int((~torch.isfinite(x)).flatten(1).any(1).sum())
    if broken:
        raise ValueError(f"{name} made values that are not finite in {broken} of {len(x)} samples")


def _on_the_first(work: Callable[[], Result], accelerator: Any) -> Result:
    """What `work` returns, or raises, on the first process: on every process."""
    rank, world = _rank_and_world(accelerator)
    if world == 1:
        return work()
    from accelerate.utils import broadcast_object_list

    outcome: list[Any] = [None]
    if rank == 0:
        try:
            outcome = [work()]
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
    reference: Tensor | Reference | None = None,
    extractor: nn.Module | Extractor | None = None,
    clean: Tensor | None = None,
    levels: int | None = None,
    k: int = 3,
) -> Result:
    """The quality of images (N, C, H, W) that are there already, at no cost: held-out data, say, as the floor.

    With `clean`, what each should be, (N, C, H, W), their fidelity, too; the other arguments are those of `evaluate`.

    Raises:
        ValueError: if the images or the reference are not a usable set.
    """
    check_images(images, f"the set {name!r}")
    known = _reference(reference, extractor, levels)
    quality, held_out, protocol = _compare(images, name, known, levels, k)
    fidelity = None if clean is None else _fidelity(images, clean, 1, known, levels)
    return Result(name, name, Cost(), protocol, quality, fidelity=fidelity, held_out=held_out)


def halves(
    reference: Tensor | Reference,
    extractor: nn.Module | Extractor,
    count: int,
    *,
    levels: int | None = None,
    k: int = 3,
) -> Result:
    r"""The quality of `count` images of a reference set against the others in it: that of a perfect sampler.

    Called `real, other half`. The Fréchet distance of n and n' samples of one law is about $c \, (1/n + 1/n')$ and not
    0 (`dsno.measure.metrics.frechet_distance`). Of a set of fewer than 2 `count` images half are measured, and the name
    says how many: their distance is more than a perfect sampler's at `count`. They are drawn by lot, always the same;
    of a set of a few thousand, where the lot matters and work is little, several times (at most 8), for the mean.

    Where samples were held out of the set, its copying ratio is about 1 if both are of one law.

    Raises:
        ValueError: unless a half has more than k images, or as `evaluate` does of a reference.
    """
    known = _reference(reference, extractor, levels)
    assert known is not None
    whole, extractor = known
    N = len(whole.features)
    if k + 1 > N // 2:
        raise ValueError(f"half of the reference set must be more than k = {k} images, the set has {N}")
    n = min(count, N // 2)
    found = []
    for draw in range(min(max(DRAWN // N, 1), 8)):
        fake, rest = whole.features[torch.randperm(N, generator=generator(draw))].split([n, N - n])
        found.append(_measured(fake, replace(whole, features=rest), extractor, k))
    qualities, beside, (protocol, *_) = zip(*found, strict=True)
    quality = Quality(*_means(qualities))
    held_out = None if whole.held_out is None else HeldOut(*_means(beside))
    name = "real, other half" if n == count else f"real, other half ({n:,} images)"
    return Result(name, name, Cost(), protocol, quality, held_out=held_out)


def _means(found: Sequence[Any]) -> list[float]:
    """The mean of each field of dataclasses of numbers."""
    return [fmean(values) for values in zip(*map(astuple, found), strict=True)]


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
            f"the reference features are not from {extractor.name} with rounding {_rounding(levels)}: compute them "
            "again (`Reference.of`)"
        )
    return reference, extractor


def _compare(
    x: Tensor, name: str, known: tuple[Reference, Extractor] | None, levels: int | None, k: int
) -> tuple[Quality | None, HeldOut | None, Protocol]:
    """The quality of a set, beside held-out data, too, and the part of the protocol that every result has."""
    if known is None:
        return None, None, _versions(len(x))
    reference, extractor = known
    x = _prepared(x, levels)
    check_images(x, f"the set {name!r}")
    return _measured(extract(extractor, x), reference, extractor, k)


def _measured(
    fake: Tensor, reference: Reference, extractor: Extractor, k: int
) -> tuple[Quality, HeldOut | None, Protocol]:
    """The same, of features."""
    real, held = reference.features, reference.held_out
    subset = min(KERNEL_SUBSET, len(fake), len(real))
    kernel, kernel_std = kernel_distance(fake, real, KERNEL_SUBSETS, subset)
    precision, recall = precision_recall(fake, real, k, reference.radii(k))
    spread = diversity(fake, real, reference.mean_distance)
    quality = Quality(frechet_distance(fake, real), kernel, kernel_std, precision, recall, spread)
    protocol = replace(
        _versions(len(fake)),
        reference_count=len(real),
        reference_sha=reference.sha,
        extractor=extractor.name,
        extractor_sha=reference.extractor_sha,
        rounding=reference.rounding,
        neighbours=k,
        kernel_subsets=f"{KERNEL_SUBSETS} x {subset}",
    )
    if held is None:
        return quality, None, protocol
    noted = replace(protocol, held_out_count=len(held.features), held_out_sha=held.sha, held_out_shared=held.shared)
    return quality, held.against(fake, real, reference.held_out_distance), noted


def _fidelity(
    x: Tensor, clean: Tensor, samples: int, known: tuple[Reference, Extractor] | None, levels: int | None
) -> Fidelity:
    """Of samples (N, *shape), so many of each input, and what they should be."""
    x, clean = (part.detach().float().cpu().clamp(-1, 1) for part in (x, clean))
    ratio = float(psnr(x, clean).mean())
    distance = None
    if known is not None:
        found, wanted = (extract(known[1], _prepared(part, levels)) for part in (x, clean))
        distance = float((found - wanted).norm(dim=1).mean())
    spread = float(x.unflatten(0, (-1, samples)).var(1).mean().sqrt()) if samples > 1 else None
    return Fidelity(ratio if math.isfinite(ratio) else None, distance, spread)


def _versions(count: int) -> Protocol:
    return Protocol(
        count=count,
        dsno=version_of("dsno"),
        torch=version_of("torch"),
        torchmetrics=version_of("torchmetrics"),
        python=platform.python_version(),
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
