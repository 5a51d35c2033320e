"""Restoring without training: what was hidden, blurred or thrown away, by seven methods beside what they cost.

    python benchmarks/inverse.py gaussian
    python benchmarks/inverse.py fashion|sprites [--source runs/NAME] [--reference SOURCE] [--runs runs/inverse/NAME]
    python benchmarks/inverse.py own --teacher REF --data FOLDER --size 64 [--device cuda]

Claims: on a Gaussian, whose posterior is known, constrained sampling meets what was seen in three corrections a step
without a vjp, contracts as its identity says, and falls short of the true spread; on a recipe's teacher it is at or
ahead of DPS in PSNR on inpainting, with no vjp and in half of the time. A difference of the other sign, or a spread of
the posterior's, refutes it. Options of both are chosen on validation images that are not measured. Beside them stand
the pseudo-inverse and a network of the teacher's size that was trained for one task of each kind. `own` restores the
user's images with the user's teacher, latents through their decoder, and classes by lot. What is measured is kept in
--runs. Writes benchmarks/results/inverse[_NAME].json and docs/images/inverse-NAME.png.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from _common import Claim, alternating, claim, fit, kept, mean_and_spread, parse, parser, runs_of, taught, write
from _inverse import asymmetry, gaussian_rows
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from dsno.checkpoint import read_json
from dsno.cost import Cost, Live
from dsno.data.load import load_data
from dsno.grids import uniform
from dsno.inverse.backprop import DPS, PiGDM
from dsno.inverse.blur import Blur
from dsno.inverse.constrained import Constrained
from dsno.inverse.decoded import Decoded
from dsno.inverse.kernels import gaussian
from dsno.inverse.operators import Composition, Downsample, Function, Mask
from dsno.inverse.problem import Problem, check_problem, noise_of, posterior_mean
from dsno.inverse.projected import MPGD, DiffPIR, Replacement
from dsno.inverse.run import Guidance
from dsno.measure.features import extract
from dsno.measure.metrics import frechet_distance, mean_distance
from dsno.nets.backbone import net_from_config, sample_shape
from dsno.nets.features import load_feature_net
from dsno.report.pictures import image_grid
from dsno.seeds import generator, noise, seed_range
from dsno.teachers.latents import load_decoder
from dsno.teachers.load import load_teacher

NOISE = 0.05
CHOOSE = 2**31 - 1
"""Seeds the lot that says which images are measured and which validate."""

INPAINTING, KINDS = ("box", "half", "random"), {"inpainting": "box", "super-resolution": "x4", "deblurring": "blur"}
"""The task of each kind that a network is trained for."""

TASKS = {
    "box": "inpainting",
    "half": "inpainting",
    "random": "inpainting",
    "x2": "super-resolution",
    "x3": "super-resolution",
    "x4": "super-resolution",
    "blur": "deblurring",
}
NOISY = ("random", "x4", "blur")
"""Tasks that are measured with noise as well."""

Make = Callable[..., Guidance]

CANDIDATES: dict[str, list[tuple[Make, int, dict[str, Any]]]] = {
    "constrained": [
        (Constrained, steps, {"inner": inner, "lr": lr})
        for steps, inner, lr in (
            (10, 2, (0.5, 0.1)),
            (10, 2, (0.3, 0.1)),
            (10, 3, (0.3, 0.1)),
            (15, 2, (0.3, 0.1)),
        )
    ],
    "dps": [(DPS, 50, {"scale": scale}) for scale in (0.5, 1.0, 2.0, 4.0)],
}
"""What is chosen from: as many settings of either, of 50 to 75 calls, those of DPS with a vjp each."""

FIXED: dict[str, tuple[Make, int, dict[str, Any]]] = {
    "pigdm": (PiGDM, 20, {}),
    "diffpir": (DiffPIR, 50, {}),
    "replacement": (Replacement, 20, {}),
    "mpgd": (MPGD, 50, {}),
}
LEADERS = ("constrained", "dps")


@dataclass(frozen=True)
class Size:
    """What is measured of a recipe."""

    count: int = 256
    """Held-out images."""
    validation: int = 32
    """Others, which options are chosen on."""
    seeds: int = 3
    """Of the leaders on inpainting; one of the rest."""
    batch: int = 64
    train: int = 800
    """Steps of a network that restores at once."""
    steps: float = 1.0
    """Share of every method's steps."""


QUICK = Size(8, 2, 2, 8, 2, 0.1)


def problem_of(task: str, shape: Sequence[int], tau: float) -> Problem:
    """The problem of a task, of samples (C, H, W)."""
    side = min(shape[1:])
    if task in INPAINTING:
        return {"box": Mask.box, "half": Mask.half, "random": Mask.random}[task](shape, noise=tau)
    if task == "blur":
        return Blur(gaussian((5, 5), 1.2), noise=tau)
    factor = int(task[1:])
    if side % factor == 0:
        return Downsample(factor, noise=tau)
    # What a factor does not divide is cropped first, and the rim is left to the teacher.
    height, width = (n - n % factor for n in shape[1:])
    crop = Function(lambda x: x[..., :height, :width], tuple(shape))
    return Composition((crop, Downsample(factor)), noise=tau)


def measured(problem: Problem, x: Tensor, seeds: Tensor) -> Tensor:
    """What was measured of images (B, C, H, W), with its noise."""
    Ax = problem.A(x)
    tau = noise_of(problem)
    n = noise(seeds, Ax.shape[1:], 2**30, x.dtype, x.device)
    return Ax + tau * (problem.A(n) if isinstance(problem, Mask) else n)


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """Of each image, in decibels; images in [-1, 1]."""
    return 10 * torch.log10(4 / (x.clamp(-1, 1) - truth).flatten(1).square().mean(1).clamp_min(1e-10))


class Restoration:
    """From A^+ y and nothing else to the image: what a network of the teacher's size learns in minutes."""

    def __init__(self, images: Tensor, task: str, tau: float, batch: int) -> None:
        self.images, self.batch = images, batch
        self.problem = problem_of(task, images.shape[1:], tau)

    def batches(self, start: int, rank: int, world: int) -> Iterator[dict[str, Any]]:
        for step in range(start, 10**9):
            rows = torch.randint(len(self.images), (self.batch,), generator=generator(CHOOSE, step))
            yield {"x": self.images[rows[rank::world]], "step": step}

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        x = batch["x"]
        y = measured(self.problem, x, seed_range(batch["step"] * self.batch, len(x)))
        return (direct(model, self.problem, y, x.shape) - x).abs().mean()


def direct(net: nn.Module, problem: Problem, y: Tensor, shape: Sequence[int]) -> Tensor:
    """The network's restoration, beside the pseudo-inverse."""
    start = inverse(problem, y, shape)
    return start + net(start, torch.zeros(len(start), device=start.device))


def inverse(problem: Problem, y: Tensor, shape: Sequence[int]) -> Tensor:
    """$A^+ y$; of a noisy blur the mean given y where every pixel is of unit variance."""
    return posterior_mean(problem, y.new_zeros(len(y), *shape[1:]), y, 1.0)


class Bench:
    """A teacher, images it is held to, and what was measured of them so far."""

    def __init__(self, arguments: argparse.Namespace, size: Size) -> None:
        self.size, self.device = size, torch.device(arguments.device)
        self.source = arguments.source or Path("runs") / arguments.problem
        own = arguments.problem == "own"
        self.runs = runs_of(arguments, f"runs/inverse/{arguments.problem}")
        ref = arguments.teacher if own else self.source / "teacher"
        self.teacher = load_teacher(ref).to(self.device)
        self.decoder = load_decoder(ref) if own else None
        settings = {} if own else read_json(self.source / "recipe.json")
        self.trained_on = None if own else settings["data"]
        reference = arguments.data if own else arguments.reference or self.trained_on
        self.seen = reference == self.trained_on
        self.images = load_data(reference, size=arguments.size if own else settings["size"]).x.to(self.device)
        order = torch.randperm(len(self.images), generator=generator(CHOOSE))
        self.truth = self.images[order[: size.count]]
        self.validation = self.images[order[size.count : size.count + size.validation]]
        self.settings = settings

    @property
    def names(self) -> list[str]:
        """The methods: those that solve a linear problem are not of latents."""
        every = {name: made for name, (made, *_) in {**FIXED, **{n: c[0] for n, c in CANDIDATES.items()}}.items()}
        return [n for n in (*LEADERS, *FIXED) if self.decoder is None or not every[n].solves]  # type: ignore[attr-defined]

    @cached_property
    def features(self) -> nn.Module | None:
        folder = self.source / "features"
        return load_feature_net(folder) if (folder / "config.json").is_file() else None

    def method(self, name: str, kind: str) -> Guidance:
        """A method with its own options, or those that were chosen for a kind of task."""
        if name in FIXED:
            return self._made(FIXED[name])
        return self._made(CANDIDATES[name][self.choice(name, kind)["chosen"]])

    def choice(self, name: str, kind: str) -> dict[str, Any]:
        """Which of the candidates was chosen, with what all of them reached."""
        return kept(self.runs / f"choice-{name}-{kind}.json", lambda: self._choose(name, kind))

    def _made(self, entry: tuple[Make, int, dict[str, Any]]) -> Guidance:
        make, steps, options = entry
        return make(uniform(max(1, round(self.size.steps * steps))), **options)

    def _choose(self, name: str, kind: str) -> dict[str, Any]:
        """Of the candidates the one of the highest PSNR on the validation images, the kind's tasks without noise."""
        tasks = [task for task, of in TASKS.items() if of == kind]
        scores = []
        for entry in CANDIDATES[name]:
            found = [self.run(self._made(entry), task, 0.0, 7, self.validation) for task in tasks]
            scores.append(statistics.mean(float(psnr(x, self.validation).mean()) for x, *_ in found))
        best = max(range(len(scores)), key=scores.__getitem__)
        _, steps, options = CANDIDATES[name][best]
        return {"chosen": best, "steps": steps, "options": options, "psnr": scores}

    def run(self, method: Guidance, task: str, tau: float, seed: int, truth: Tensor) -> tuple[Tensor, Tensor, Cost]:
        """Restorations and residuals of images, batch by batch, and what all of it cost."""
        problem = problem_of(task, truth.shape[1:], tau)
        stated = Decoded(problem, self.decoder) if self.decoder is not None else problem
        made, residuals, cost = [], [], Cost()
        for start in range(0, len(truth), self.size.batch):
            x = truth[start : start + self.size.batch]
            seeds = seed_range(2**32 * (seed + 1) + start, len(x))
            z = noise(seeds, sample_shape(self.teacher), device=self.device)
            classes = self.teacher.classes
            cond = None if classes is None else (seeds % classes).to(self.device)
            y = measured(problem, x, seeds)
            restored = method(self.teacher, self.teacher.schedule, stated, y, z, cond, seeds)
            with torch.no_grad():
                made.append(restored.x if self.decoder is None else self.decoder(restored.x))
            residuals.append(restored.residual)
            cost += restored.cost
        return torch.cat(made), torch.cat(residuals), cost

    def row(self, name: str, task: str, tau: float, seed: int) -> dict[str, Any]:
        """One line of the table."""
        problem, peak, cost = problem_of(task, self.truth.shape[1:], tau), None, Cost()
        if name in ("pseudo-inverse", "direct"):
            y = measured(problem, self.truth, seed_range(2**32 * (seed + 1), len(self.truth)))
            with torch.no_grad():
                x = inverse(problem, y, self.truth.shape) if name != "direct" else self.direct(task, tau, y)
            residual = (problem.A(x) - y).flatten(1).square().mean(1).sqrt()
            cost = replace(cost, rows=len(x)) if name == "direct" else cost
        else:
            method = self.method(name, TASKS[task])
            x, residual, cost = self.run(method, task, tau, seed, self.truth)
            short = replace(method, grid=method.grid[[0, -1]])
            with Live() as live:
                self.run(short, task, tau, seed, self.truth[: min(8, len(self.truth))])
            peak = live.peak / min(8, len(self.truth))
        count = len(self.truth)
        return {
            "task": task,
            "noise": tau,
            "method": name,
            "seed": seed,
            **self._quality(x),
            "residual": float(residual.mean()),
            "rounds": cost.rounds * min(self.size.batch, count) / count,
            "rows": cost.rows / count,
            "vjps": cost.vjps / count,
            "gradients": cost.gradients / count,
            "seconds": cost.seconds / count,
            "peak_megabytes": None if peak is None else peak / 2**20,
        }

    def _quality(self, x: Tensor) -> dict[str, float | None]:
        clamped = x.clamp(-1, 1)
        quality: dict[str, float | None] = {
            "psnr": float(psnr(x, self.truth).mean()),
            "ssim": float(ssim(clamped, self.truth, False, kernel_size=7, data_range=2.0)),
            "feature_distance": None,
            "frechet": None,
        }
        if self.features is not None:
            made, real = extract(self.features, clamped), extract(self.features, self.truth)
            quality["feature_distance"] = float((made - real).norm(dim=1).mean()) / mean_distance(real)
            quality["frechet"] = frechet_distance(made, self._reference)
        return quality

    @cached_property
    def _reference(self) -> Tensor:
        return extract(self.features, self.images[:10_000])

    def direct(self, task: str, tau: float, y: Tensor) -> Tensor:
        """What a network of the teacher's size makes that was trained for this task alone."""
        torch.manual_seed(0)
        net = net_from_config(self.teacher.net.config).to(self.device)
        folder = self.runs / "direct"
        folder.mkdir(exist_ok=True)
        weights = folder / f"{task}-{tau:g}.pt"
        if not weights.is_file():
            images = load_data(self.trained_on, size=self.settings["size"]).x
            held = {row.numpy().tobytes() for row in self.truth.cpu()}
            apart = images[torch.tensor([row.numpy().tobytes() not in held for row in images])]
            objective = Restoration(apart, task, tau, 64)
            with torch.enable_grad():
                fit(net, objective, steps=self.size.train, lr=1e-3, warmup=min(50, self.size.train - 1))
            torch.save(net.state_dict(), weights)
        net.load_state_dict(torch.load(weights, weights_only=True))
        return direct(net.eval(), problem_of(task, self.truth.shape[1:], tau), y, self.truth.shape)

    def seconds(self) -> dict[str, float]:
        """Of constrained sampling over DPS, in turn on the same images, with the options that were chosen."""
        x = self.truth[: min(16, len(self.truth))]
        sides = [self.method(name, "inpainting") for name in LEADERS]
        times = alternating(*(lambda m=m: self.run(m, "box", 0.0, 0, x) for m in sides), repeats=3)
        return {"constrained over dps": statistics.median(one / other for one, other in times)}


def rows_of(bench: Bench) -> list[dict[str, Any]]:
    """Every task without noise, some with, by every method; the leaders with more seeds on inpainting."""
    plan = []
    for task, kind in TASKS.items():
        for tau in (0.0, NOISE) if task in NOISY else (0.0,):
            plan += [(name, task, tau, 0) for name in ("pseudo-inverse", *bench.names)]
            if KINDS[kind] == task and tau == 0 and bench.trained_on is not None:
                plan.append(("direct", task, tau, 0))
            if kind == "inpainting" and tau == 0:
                plan += [(name, task, tau, seed) for name in LEADERS for seed in range(1, bench.size.seeds)]
    rows = []
    for name, task, tau, seed in plan:
        path = bench.runs / f"{task}-{tau:g}-{name}-{seed}.json"
        rows.append(kept(path, lambda: bench.row(name, task, tau, seed)))  # noqa: B023
        print(f"{task:8} noise {tau:4g} {name:15} {rows[-1]['psnr']:.2f} dB", flush=True)
    return rows


def leaders(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """PSNR of the leaders on inpainting without noise: mean and spread over seeds, by task."""
    return {
        task: {
            name: mean_and_spread(
                [r["psnr"] for r in rows if (r["task"], r["noise"], r["method"]) == (task, 0.0, name)]
            )
            for name in LEADERS
        }
        for task in INPAINTING
    }


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """What is to hold on the Gaussian, and on images."""
    if numbers["name"] == "inverse":
        rows = {(r["method"], r["noise"]): r for r in numbers["rows"]}
        constrained = [rows[f"constrained K={K}", 0.0] for K in (0, 1, 3)]
        return [
            claim(
                "misfit after three corrections over that of none",
                constrained[2]["misfit"] / constrained[0]["misfit"],
                0.1,
                "<=",
            ),
            claim(
                "misfit after one correction over that of none",
                constrained[1]["misfit"] / constrained[0]["misfit"],
                0.4,
                "<=",
            ),
            claim("vjps of constrained sampling", max(r["vjps"] for r in constrained), 0, "<="),
            claim("its contraction against the identity, largest difference", numbers["contraction"], 1e-12, "<="),
            claim(
                "spread of the hidden half over the posterior's, three corrections",
                constrained[2]["spread"],
                0.95,
                "<=",
            ),
        ]
    gaps = {task: of["constrained"]["mean"] - of["dps"]["mean"] for task, of in leaders(numbers["rows"]).items()}
    vjps = max(r["vjps"] for r in numbers["rows"] if r["method"] == "constrained")
    return [
        claim(
            "PSNR of constrained sampling less that of DPS, mean of the inpainting tasks",
            statistics.mean(gaps.values()),
            0,
            ">=",
        ),
        *(claim(f"PSNR of constrained sampling less that of DPS, {task}", gap, 0, ">=") for task, gap in gaps.items()),
        claim("vjps of constrained sampling", vjps, 0, "<="),
        claim(
            "seconds of constrained sampling over those of DPS", numbers["seconds"]["constrained over dps"], 0.5, "<="
        ),
    ]


def picture(bench: Bench, arguments: argparse.Namespace) -> None:
    """A row for each example: what was measured, every method, the truth."""
    shown, lines = [], []
    for task in ("box", "random", "x4", "blur"):
        x = bench.truth[:2]
        problem = problem_of(task, x.shape[1:], 0.0)
        y = measured(problem, x, seed_range(0, len(x)))
        made = [bench.run(bench.method(name, TASKS[task]), task, 0.0, 0, x)[0] for name in bench.names]
        shown += [torch.stack(columns) for columns in zip(inverse(problem, y, x.shape), *made, x, strict=True)]
        lines.append(task)
    columns = len(bench.names) + 2
    arguments.images.mkdir(parents=True, exist_ok=True)
    drawn = image_grid(torch.cat(shown).cpu(), columns)
    (arguments.images / f"inverse-{arguments.problem}.png").write_bytes(drawn)


def options() -> argparse.ArgumentParser:
    made = parser(__file__, __doc__)
    made.add_argument("problem", choices=["gaussian", "fashion", "sprites", "own"], nargs="?", default="gaussian")
    made.add_argument("--source", type=Path, help="the recipe's folder; runs/NAME by default")
    made.add_argument("--reference", help="held-out images; the recipe's data by default, which its teacher saw")
    made.add_argument("--runs", type=Path, help="folder of what is measured; runs/inverse/NAME by default")
    made.add_argument("--device", default="cpu", help="where the networks are")
    made.add_argument("--teacher", help="of `own`: as `load_teacher` takes it")
    made.add_argument("--data", help="of `own`: as `load_data` takes it")
    made.add_argument("--size", type=int, help="of `own`: resize images to this many pixels a side")
    made.add_argument("--count", type=int, help="held-out images, 256 by default")
    return made


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    if arguments.problem == "gaussian":
        numbers = gaussian_rows(50 if arguments.quick else 4000)
        write(
            arguments,
            "inverse",
            "a Gaussian of 16 correlated coordinates, the first 8 seen; one measurement, restored from "
            f"{numbers['draws']} noises; cosine schedule, float64; misfit: RMS over what was seen; spread and "
            "bias of the hidden half against the exact posterior, in its standard deviations; constrained sampling as "
            "published (20 steps, eta 0), the others with their defaults",
            judged({"name": "inverse", **numbers}),
            **numbers,
        )
        return
    size = QUICK if arguments.quick else Size()
    size = size if arguments.count is None else replace(size, count=arguments.count)
    bench = Bench(arguments, size)
    for task in TASKS:
        check_problem(problem_of(task, bench.truth.shape[1:], 0.0), bench.truth.shape[1:], device=bench.device)
    rows = rows_of(bench)
    numbers = {
        "rows": rows,
        "seconds": kept(bench.runs / "seconds.json", bench.seconds),
        "asymmetry": asymmetry(bench.teacher, bench.truth[:8])
        if bench.decoder is None and not bench.teacher.classes
        else [],
        "chosen": {f"{name}, {kind}": bench.choice(name, kind) for name in LEADERS for kind in KINDS},
        "seen": bench.seen,
    }
    title = f"inverse_{arguments.problem}"
    write(
        arguments,
        title,
        f"{len(bench.truth)} images of {'x'.join(map(str, bench.truth.shape[1:]))}, drawn by lot; "
        f"{'the teacher was trained on them' if bench.seen else 'held out'}; options of {' and '.join(LEADERS)} "
        f"chosen on {size.validation} others by PSNR, for each kind of task; {size.seeds} seeds of both on inpainting; "
        "rounds of a batch, rows, vjps and seconds a sample; peak of the activations a sample; Frechet distance to the "
        "first 10,000 images of the reference; feature distance over that of two images; x3 is of the picture cropped "
        "to a multiple of 3, blur of a Gaussian of 1.2 pixels, 5x5, circular"
        + (f"; {taught(bench.source)}" if bench.settings else ""),
        judged({"name": title, **numbers}),
        **numbers,
    )
    picture(bench, arguments)


if __name__ == "__main__":
    main()
