"""Blind deconvolution: picture and kernel from a blurred picture, by fast and classic EM and without a teacher.

    python benchmarks/blind.py closed
    python benchmarks/blind.py fashion|sprites [--source runs/NAME] [--reference SOURCE] [--runs runs/blind]
    python benchmarks/blind.py own --teacher REF --data FOLDER --size 64 [--device cuda]

Claims: in closed form, the M-step finds the kernel of a clean picture to rounding; EM's likelihood on a Gaussian field
rises in every round with the posterior variance in it and falls without; on a dictionary of digits, and on a recipe's
teacher, fast EM is 2 dB above the blurred picture on the median image, within 2 dB of the same sampler told the kernel,
and asks a fifth of classic EM's calls or fewer. Numbers on the other side refute it. Kernels are paths of motion,
pictures and kernels are compared up to a shift. The kernel prior is trained first (a minute or two). What is measured
is kept in --runs. Writes benchmarks/results/blind[_NAME].json and docs/images/blind-NAME.png.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from _common import Claim, claim, kept, mean_and_spread, parse, parser, pyplot, runs_of, save, taught, write
from torch import Tensor
from torch.nn import functional as F

from dsno.checkpoint import read_json
from dsno.cost import Cost
from dsno.data.load import load_data
from dsno.denoise import Denoiser, Prediction
from dsno.grids import uniform
from dsno.inverse.backprop import PiGDM
from dsno.inverse.blind import ClassicEM, FastEM, PlainMAP
from dsno.inverse.blur import Blur
from dsno.inverse.kernel_prior import KernelDenoiser, load_kernel_denoiser, train_kernel_denoiser
from dsno.inverse.kernel_step import KernelStep, moments
from dsno.inverse.kernels import aligned, delta, kernel_error, motion
from dsno.inverse.restore import Restored, Restorer
from dsno.schedule import Cosine, Schedule
from dsno.seeds import generator, noise, seed_range
from dsno.teachers.closed import GaussianMixture
from dsno.teachers.load import load_teacher

TAU = 0.01
CHOOSE = 2**31 - 3
"""Seeds the lot that says which images are measured."""

METHODS = ("blurred", "map", "classic", "fast", "fast, 4 runs", "oracle")
SHOWN = {"map": "plain MAP", "oracle": "kernel known"}


@dataclass(frozen=True)
class Size:
    """What is measured of a teacher."""

    count: int = 10
    """Images of each kernel size and seed, each with a kernel of its own."""
    sizes: tuple[int, ...] = (5, 7, 9)
    seeds: int = 3
    steps: int = 100
    """Of every run."""
    rounds: int = 10
    """Of classic EM."""
    prior: int = 1500
    """Training steps of the kernel prior."""
    field: int = 8
    """Rounds of EM on the field."""


QUICK = Size(3, (5,), 1, 4, 2, 4, 3)


class Bench:
    """A teacher, pictures it is held to, and a kernel prior."""

    def __init__(
        self, denoiser: Denoiser, schedule: Schedule, images: Tensor, prior: KernelDenoiser, size: Size, reach: int = 4
    ) -> None:
        self.denoiser, self.schedule, self.images, self.prior = denoiser, schedule, images, prior
        self.size, self.reach = size, reach
        grid, coarse = uniform(size.steps), KernelStep(prior, level=0.01)
        fast = FastEM(grid, step=KernelStep(prior, level=0.001), coarse=0.02)
        self.methods: dict[str, Restorer] = {
            "map": PlainMAP(coarse),
            "classic": ClassicEM(grid, step=coarse, rounds=size.rounds),
            "fast": fast,
            "fast, 4 runs": replace(fast, samples=4),
        }

    def case(self, side: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pictures, kernels, seeds, and what was measured."""
        order = torch.randperm(len(self.images), generator=generator(CHOOSE, side, seed))
        x = self.images[order[: self.size.count]]
        seeds = seed_range(2**32 * (seed + 1) + 2**16 * side, len(x))
        k = motion((side, side), seeds).to(x)
        y = Blur(k).A(x) + TAU * noise(seeds, x.shape[1:], 2**30, x.dtype).to(x.device)
        return x, k, seeds, y

    def restored(self, name: str, side: int, seed: int) -> Restored:
        x, k, seeds, y = self.case(side, seed)
        start, z = Blur(delta((side, side)), noise=TAU), noise(seeds, x.shape[1:], 0, x.dtype).to(x.device)
        if name == "blurred":
            return Restored(y, Cost(), y.new_zeros(len(y)), kernel=start.rows.to(y).expand(len(y), 1, side, side))
        if name == "oracle":
            known = Blur(k, noise=TAU)
            run = PiGDM(uniform(self.size.steps))
            made = run(self.denoiser, self.schedule, start, y, z, None, seeds, lambda x0_hat, t: known)
            return replace(made, kernel=k)
        return self.methods[name](self.denoiser, self.schedule, start, y, z, None, seeds)

    def row(self, name: str, side: int, seed: int) -> dict[str, Any]:
        """One line of the table: medians over the images."""
        x, k, _, _ = self.case(side, seed)
        made = self.restored(name, side, seed)
        assert made.kernel is not None
        quality, count = psnr(made.x, x, self.reach), len(x)
        return {
            "method": name,
            "kernel": side,
            "seed": seed,
            "psnr": float(quality.median()),
            "psnr_mean": float(quality.mean()),
            "psnr_tenth": float(quality.quantile(0.1)),
            "kernel_error": float(kernel_error(made.kernel, k).median()),
            "reblur": float(made.residual.median()),
            "rounds": made.cost.rounds,
            "rows": made.cost.rows / count,
            "vjps": made.cost.vjps / count,
            "seconds": made.cost.seconds / count,
        }


def psnr(x: Tensor, truth: Tensor, reach: int) -> Tensor:
    """Of each image, in decibels, at the shift of up to `reach` pixels where it agrees best; images in [-1, 1]."""
    moved = aligned(x.clamp(-1, 1), truth, reach)
    return 10 * torch.log10(4 / (moved - truth).flatten(1).square().mean(1).clamp_min(1e-10))


# Closed form


def exact() -> dict[str, float]:
    """The largest error of the M-step on clean pictures of noise, by kernel size, in float64."""
    found = {}
    for side in (5, 9, 15):
        k, x = motion((side, side), [1, 2, 3]), noise([4, 5, 6], (2, 24, 24), 0, torch.float64)
        made = KernelStep()(Blur(delta((side, side))), x[None], Blur(k).A(x))
        found[f"{side}x{side}"] = float((made.kernel - k).abs().max())
    return found


def field(rounds: int, side: int = 32) -> dict[str, Any]:
    """The log-likelihood of the kernel in each round of EM on a stationary Gaussian field, whose posterior is known."""
    f = torch.fft.fftfreq(side, dtype=torch.float64)[:, None] ** 2 + torch.fft.rfftfreq(side, dtype=torch.float64) ** 2
    S = 1 / (f + 0.02**2)
    S, axes = 0.25 * S / S.mean(), (-2, -1)
    k, white = motion((7, 7), [3]), noise([1], (1, side, side), 0, torch.float64)
    x = torch.fft.irfftn(torch.fft.rfftn(white, dim=axes) * S.sqrt(), s=(side, side), dim=axes)
    y = Blur(k).A(x) + TAU * noise([2], (1, side, side), 0, torch.float64)
    Y = torch.fft.rfftn(y, dim=axes)
    twice = torch.full_like(S, 2.0)
    twice[:, [0, -1]] = 1

    def likelihood(kernel: Tensor) -> float:
        v = S * Blur(kernel).otf((side, side), y)[0, 0].abs() ** 2 + TAU**2
        return float(-(twice * (v.log() + Y.abs() ** 2 / side**2 / v)).sum() / 2)

    def em(variance: float) -> list[float]:
        kernel = delta((7, 7))[None, None]
        found = [likelihood(kernel)]
        for _ in range(rounds):
            K = Blur(kernel).otf((side, side), y)[0, 0]
            below = S * K.abs() ** 2 + TAU**2
            mean = torch.fft.irfftn(S * K.conj() * Y / below, s=(side, side), dim=axes)
            r, b = moments(mean[None], y, 2, variance * S * TAU**2 / below).system((7, 7))
            kernel = torch.linalg.solve(r, b[..., None]).reshape(kernel.shape)
            found.append(likelihood(kernel))
        return found

    mirrored = likelihood(k.flip(2, 3)) - likelihood(k)
    return {"with variance": em(1.0), "mean alone": em(0.0), "true kernel": likelihood(k), "mirrored": mirrored}


def dictionary(prior: KernelDenoiser, size: Size) -> Bench:
    """Digits of 16 pixels, each with a little noise, as a teacher in closed form."""
    x = F.interpolate(load_data("digits").x[::12], size=(16, 16), mode="bilinear")
    teacher = GaussianMixture(Cosine(), x, 0.1)
    drawn = teacher.sample(512, generator(CHOOSE))
    return Bench(teacher, Cosine(), drawn, prior, size)


# Teachers


def of_recipe(arguments: argparse.Namespace, prior: KernelDenoiser, size: Size) -> tuple[Bench, bool]:
    """A recipe's or the user's teacher, and whether it has seen the pictures; it is told the range of pictures."""
    own = arguments.problem == "own"
    source = arguments.source or Path("runs") / arguments.problem
    teacher: Prediction = load_teacher(arguments.teacher if own else source / "teacher").to(arguments.device)
    # A wrong kernel sends a teacher out of the range of pictures, where it was never trained.
    teacher.clip = 1.0 if teacher.clip is None else teacher.clip
    settings = {} if own else read_json(source / "recipe.json")
    reference = arguments.data if own else arguments.reference or settings["data"]
    images = load_data(reference, size=arguments.size if own else settings["size"]).x.to(arguments.device)
    bench = Bench(teacher.eval().requires_grad_(False), teacher.schedule, images, prior, size)
    return bench, reference == settings.get("data")


def measured(bench: Bench, runs: Path) -> list[dict[str, Any]]:
    rows = []
    for side, seed, name in product(bench.size.sizes, range(bench.size.seeds), METHODS):
        path = runs / f"{name.replace(', ', '-').replace(' ', '-')}-{side}-{seed}.json"
        rows.append(kept(path, partial(bench.row, name, side, seed)))
        said = rows[-1]
        print(
            f"{side}x{side} {seed} {name:13} {said['psnr']:.2f} dB kernel {said['kernel_error']:.3f} "
            f"reblur {said['reblur']:.4f} rows {said['rows']:.0f} {said['seconds']:.2f} s",
            flush=True,
        )
    return rows


def over_seeds(rows: Sequence[Mapping[str, Any]], name: str, what: str) -> list[float]:
    """Of each seed the mean over the kernel sizes."""
    seeds = sorted({r["seed"] for r in rows})
    return [statistics.mean(r[what] for r in rows if (r["method"], r["seed"]) == (name, seed)) for seed in seeds]


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread over seeds, by method."""
    told = ("psnr", "psnr_tenth", "kernel_error", "reblur", "rounds", "rows", "vjps", "seconds")
    return {name: {what: mean_and_spread(over_seeds(rows, name, what)) for what in told} for name in METHODS}


def of_images(numbers: Mapping[str, Any]) -> list[Claim]:
    by = numbers["summary"]

    def mean(name: str, what: str) -> float:
        return by[name][what]["mean"]

    fast = "fast, 4 runs"
    return [
        claim(
            "PSNR of the median image, fast less blurred, dB", mean("fast", "psnr") - mean("blurred", "psnr"), 2, ">="
        ),
        claim(
            "PSNR of the median image, kernel known less fast, dB",
            mean("oracle", "psnr") - mean("fast", "psnr"),
            2,
            "<=",
        ),
        claim(
            "PSNR of the median image, kernel known less fast of 4 runs, dB",
            mean("oracle", "psnr") - mean(fast, "psnr"),
            2,
            "<=",
        ),
        claim(
            "PSNR of the median image, fast less classic, dB", mean("fast", "psnr") - mean("classic", "psnr"), 0, ">="
        ),
        claim("PSNR of the median image, fast less plain MAP, dB", mean("fast", "psnr") - mean("map", "psnr"), 0, ">="),
        claim("network rows, classic over fast", mean("classic", "rows") / mean("fast", "rows"), 5, ">="),
        claim("seconds, classic over fast", mean("classic", "seconds") / mean("fast", "seconds"), 5, ">="),
    ]


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """What is to hold in closed form, and on pictures."""
    if numbers["name"] != "blind":
        return of_images(numbers)
    found = numbers["field"]
    rises, falls = ([b - a for a, b in pairwise(found[kind])] for kind in ("with variance", "mean alone"))
    return [
        claim("M-step on clean pictures, largest error of a kernel", max(numbers["exact"].values()), 1e-12, "<="),
        claim("log-likelihood of EM with the posterior variance, least rise of a round", min(rises), 0, ">="),
        claim("log-likelihood of EM with the posterior mean alone, largest rise of a round", max(falls), 0, "<="),
        claim("log-likelihood of the mirrored kernel less the true one's", abs(found["mirrored"]), 1e-6, "<="),
        *of_images(numbers),
    ]


def picture(bench: Bench, arguments: argparse.Namespace) -> None:
    """A row for each example: blurred, every method, the truth; each with its kernel."""
    plt = pyplot()
    side = bench.size.sizes[-1]
    few = Bench(
        bench.denoiser, bench.schedule, bench.images, bench.methods["map"].step.prior, replace(bench.size, count=4)
    )
    x, k, _, _ = few.case(side, 0)
    made = {name: few.restored(name, side, 0) for name in METHODS}
    columns = {name: (aligned(r.x, x, few.reach), r.kernel) for name, r in made.items()} | {"truth": (x, k)}
    figure, axes = plt.subplots(len(x), len(columns), figsize=(1.5 * len(columns), 1.6 * len(x)), squeeze=False)
    for column, (name, (pictures, kernels)) in enumerate(columns.items()):
        axes[0, column].set_title(SHOWN.get(name, name), fontsize=9)
        for row, axis in enumerate(axes[:, column]):
            shown = (pictures[row].clamp(-1, 1).cpu() + 1) / 2
            axis.imshow(shown.movedim(0, -1).squeeze(-1), cmap="gray", vmin=0, vmax=1)
            inset = axis.inset_axes((0.66, 0.66, 0.34, 0.34))
            inset.imshow(kernels[row, 0].cpu(), cmap="magma")
            for a in (axis, inset):
                a.set_xticks([])
                a.set_yticks([])
    figure.tight_layout(pad=0.4)
    save(figure, arguments, f"blind-{arguments.problem}.png", 130)


def options() -> argparse.ArgumentParser:
    made = parser(__file__, __doc__)
    made.add_argument("problem", choices=["closed", "fashion", "sprites", "own"], nargs="?", default="closed")
    made.add_argument("--source", type=Path, help="the recipe's folder; runs/NAME by default")
    made.add_argument("--reference", help="held-out images; the recipe's data by default, which its teacher saw")
    made.add_argument("--runs", type=Path, help="what is trained and measured; runs/blind by default")
    made.add_argument("--device", default="cpu", help="where the networks are")
    made.add_argument("--count", type=int, help="images of each kernel size and seed, 10 by default")
    made.add_argument("--teacher", help="of `own`: as `load_teacher` takes it")
    made.add_argument("--data", help="of `own`: as `load_data` takes it")
    made.add_argument("--size", type=int, help="of `own`: resize images to this many pixels a side")
    return made


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    size = QUICK if arguments.quick else Size()
    size = size if arguments.count is None else replace(size, count=arguments.count)
    runs = runs_of(arguments, "runs/blind")
    if not (runs / "kernels" / "config.json").is_file():
        train_kernel_denoiser(runs / "kernels", size.prior)
    prior = load_kernel_denoiser(runs / "kernels").to(arguments.device)
    closed, seen = arguments.problem == "closed", False
    if closed:
        bench = dictionary(prior, size)
    else:
        bench, seen = of_recipe(arguments, prior, size)
    rows = measured(bench, runs / arguments.problem)
    numbers: dict[str, Any] = {"summary": summary(rows), "rows": rows, "seen": seen}
    if closed:
        numbers = {"exact": exact(), "field": field(size.field), **numbers}
    title, source = (
        "blind" if closed else f"blind_{arguments.problem}",
        arguments.source or Path("runs", arguments.problem),
    )
    where = (
        "drawn from a mixture of 150 digits of 16 pixels, of standard deviation 0.1, the teacher in closed form"
        if closed
        else f"{'the teacher was trained on them' if seen else 'held out'}, its answers clipped to [-1, 1]"
    )
    write(
        arguments,
        title,
        f"{size.count} pictures {'x'.join(map(str, bench.images.shape[1:]))} for each kernel size, "
        f"{', '.join(map(str, size.sizes))} pixels a side, and each of {size.seeds} seeds, {where}; "
        f"a kernel of motion for each, circular, noise {TAU:g}; "
        f"kernels begin as no blur; PiGDM of {size.steps} steps, classic EM of {size.rounds} rounds of one run; "
        "kernel prior trained on made kernels; medians over pictures, at the shift of up to 4 pixels that agrees best, "
        "mean over sizes; rows, vjps and seconds a picture; kernel error relative, at its best shift"
        + ("" if arguments.problem in ("closed", "own") else f"; {taught(source)}"),
        judged({"name": title, **numbers}),
        **numbers,
    )
    picture(bench, arguments)


if __name__ == "__main__":
    main()
