"""Guides split off the solver, against multistep rules of the whole, in closed form and on images.

    python benchmarks/guidance.py mixtures|fashion|sprites [--source runs/fashion] [--runs runs/guidance/fashion]

Claims of `mixtures`: with a guide that is rougher than the score the splitting STSP4 is close to the exact solution in
30 steps where PLMS4 blows up; with a smooth guide PLMS4 is better; order 2 needs rules of second order for both halves.
The other outcome refutes each. A mixture of eight blobs of two classes is guided by its own posterior, which is told
all of the noise (smooth) or 0.3 of it (rough), at scale 5; the reference is Runge and Kutta's rule of order 4.

Claims of `fashion` and `sprites`: guided by a classifier, STSP4 reaches the agreement and the Frechet distance of DDIM
in 250 steps within 5 % in at least 32 % less time, and one pass of a student distilled from the guided teacher keeps
nine tenths of its agreement; less refutes them. The teacher is that of `dsno reproduce` and knows no class. One
classifier guides, another one, of other seed and width and of clean images, judges. Sprites have no labels: their
classes are clusters of features. Another teacher and other pictures, on a GPU:

    python benchmarks/guidance.py fashion --teacher REF --data FOLDER --size 64 --device cuda --out runs/faces

Everything is kept under --runs; the script continues where it was stopped. Writes benchmarks/results/guidance.json,
guidance_fashion.json and guidance_sprites.json, and pictures.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from _common import (
    HELD_OUT,
    Claim,
    alternating,
    claim,
    kept,
    mean_and_spread,
    parse,
    parser,
    printed,
    pyplot,
    runs_of,
    save,
    taught,
    tidy,
    write,
)
from torch import Tensor

from dsno.cost import Meter
from dsno.data.load import load_data
from dsno.data.samples import Samples
from dsno.distillation.run import distill
from dsno.grids import even
from dsno.guidance.guides import Counted, DensityGuide, NoisyClassifier
from dsno.measure.evaluate import Reference, measure
from dsno.measure.features import extract
from dsno.nets.backbone import sample_shape
from dsno.nets.classifier import Classifier, load_classifier
from dsno.nets.features import load_feature_net
from dsno.runs.classifier import accuracy_at, train_classifier
from dsno.runs.features import train_features
from dsno.runs.recipes import RECIPES
from dsno.runs.shipped import shipped
from dsno.schedule import VE, Schedule
from dsno.seeds import noise, seed_range
from dsno.solvers.adams import noise_ratio
from dsno.solvers.named import SOLVERS, SPLITTINGS, solver_named
from dsno.solvers.run import SolverSampler, solve
from dsno.steer import Halves, Steered
from dsno.students.files import load_student
from dsno.students.samplers import OnePass
from dsno.teachers.closed import GaussianMixture
from dsno.teachers.load import load_teacher
from dsno.train import TrainConfig
from dsno.trajectories.generate import generate

SMOOTH, ROUGH = 1.0, 0.3
"""The share of the noise that the closed-form guide is told."""
HIGH, LOW, SCALE = 40.0, 0.02, 5.0
METHODS = ("ddim", "plms2", "plms4", *SPLITTINGS)
IMAGES = ("ddim", "plms4", "ltsp4", "stsp4")
TITLES = {"ddim": "DDIM", "plms2": "PLMS2", "plms4": "PLMS4", "ltsp4": "LTSP4", "stsp4": "STSP4", "strang2": "Strang2"}


# Closed form


@dataclass(frozen=True)
class Mixtures:
    """How much is solved."""

    noises: int = 256
    fine: int = 1200
    steps: tuple[int, ...] = (10, 15, 20, 30, 40, 80)
    order: tuple[int, int] = (128, 256)


def ring(schedule: Schedule) -> GaussianMixture:
    """Eight blobs on a circle, of two classes in turn."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    return GaussianMixture(schedule, 2 * torch.stack([angle.cos(), angle.sin()], 1), 0.15, labels=torch.arange(8) % 2)


def posterior(mixture: GaussianMixture, share: float) -> DensityGuide:
    """The mixture's own classifier, told a `share` of the noise."""

    def log_density(x_t: Tensor, t: Tensor | float, label: Tensor | None) -> Tensor:
        assert label is not None
        return mixture.log_posterior(x_t, t, label, share)

    return DensityGuide(log_density, "posterior")


def times(schedule: Schedule, steps: int) -> Tensor:
    """Even steps of the log-SNR."""
    return schedule.time(-2 * torch.linspace(math.log(HIGH), math.log(LOW), steps + 1, dtype=torch.float64))


def fine(model: Steered, x: Tensor, cond: dict[str, Tensor], steps: int) -> Tensor:
    """The exact end: Runge and Kutta's rule of order 4 for x / alpha over the logarithm of sigma / alpha."""
    schedule, D = model.schedule, Halves(model, cond)
    grid = times(schedule, 2 * steps).tolist()

    def slope(x_bar: Tensor, t: float) -> Tensor:
        alpha_t, sigma_t = schedule.at(t)
        x_t = alpha_t * x_bar
        return noise_ratio(schedule, t) * (x_t - alpha_t * D(x_t, t)) / sigma_t

    h, x_bar = (math.log(LOW) - math.log(HIGH)) / steps, x / schedule.at(grid[0])[0]
    for n in range(0, 2 * steps, 2):
        t, middle, s = grid[n : n + 3]
        k1 = slope(x_bar, t)
        k2 = slope(x_bar + h / 2 * k1, middle)
        k3 = slope(x_bar + h / 2 * k2, middle)
        x_bar = x_bar + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x_bar + h * k3, s))
    return schedule.at(grid[-1])[0] * x_bar


def solved(
    name: str, share: float, scale: float, N: int, x: Tensor, cond: dict[str, Tensor]
) -> tuple[Tensor, int, int]:
    """The end of a solver, its calls of the denoiser and its gradients of the guide."""
    schedule = VE()
    mixture = ring(schedule)
    meter, guide = Meter(mixture), Counted(posterior(mixture, share))
    model = Steered(meter, guide, scale, schedule)
    try:
        end = solve(model, schedule, x, times(schedule, N), solver_named(name, model), cond).sample
    except FloatingPointError:
        end = torch.full_like(x, math.inf)
    return end, meter.rounds, guide.gradients


def mixtures(size: Mixtures) -> dict[str, Any]:
    """Errors of every method with both guides, what they cost, and the orders."""
    schedule = VE()
    z = noise(seed_range(HELD_OUT, size.noises), (2,), dtype=torch.float64)
    x, cond = schedule.at(float(times(schedule, 1)[0]))[1] * z, {"guide": torch.arange(size.noises) % 2}
    rows: list[dict[str, Any]] = []
    for title, share in (("smooth", SMOOTH), ("rough", ROUGH)):
        mixture = ring(schedule)
        exact = fine(Steered(mixture, posterior(mixture, share), SCALE, schedule), x, cond, size.fine)
        for name, N in product(METHODS, size.steps):
            end, calls, gradients = solved(name, share, SCALE, N, x, cond)
            away = (end - exact).norm(dim=1)
            # JSON knows no infinity: what has left every bound is at 1e9.
            found = {"median": float(away.median().clamp(max=1e9)), "mean": float(away.mean().clamp(max=1e9))}
            rows.append({"guide": title, "method": name, "steps": N, "calls": calls, "gradients": gradients, **found})
        print(title, {r["method"]: round(r["median"], 4) for r in rows if r["guide"] == title and r["steps"] == 30})
    mixture = ring(schedule)
    exact = fine(Steered(mixture, posterior(mixture, SMOOTH), 1.0, schedule), x, cond, size.fine)
    orders = {}
    for name in METHODS:
        coarse, dense = (
            float((solved(name, SMOOTH, 1.0, N, x, cond)[0] - exact).norm(dim=1).median()) for N in size.order
        )
        orders[name] = math.log(coarse / dense) / math.log(size.order[1] / size.order[0])
    alone = {k: solve(mixture, schedule, x, times(schedule, 30), SOLVERS[k]()).sample for k in ("plms2", "plms4")}
    same = max(
        float((solved(f"{form}{k[-1]}", SMOOTH, 0.0, 30, x, cond)[0] - alone[k]).abs().max())
        for k, form in product(alone, ("ltsp", "stsp"))
    )
    return {"rows": rows, "orders": orders, "scale_0_difference": same}


def judged_mixtures(numbers: Mapping[str, Any]) -> list[Claim]:
    def error(guide: str, method: str, N: int = 30) -> float:
        return next(r["median"] for r in numbers["rows"] if (r["guide"], r["method"], r["steps"]) == (guide, method, N))

    few = min(r["steps"] for r in numbers["rows"])
    return [
        claim("rough guide, 30 steps: median error of STSP4", error("rough", "stsp4"), 0.05, "<="),
        claim("rough guide, 30 steps: median error of PLMS4", error("rough", "plms4"), 1, ">="),
        claim(
            "smooth guide, 30 steps: error of PLMS4 over that of STSP4",
            error("smooth", "plms4") / error("smooth", "stsp4"),
            1,
            "<=",
        ),
        claim(f"rough guide, {few} steps: median error of PLMS4", error("rough", "plms4", few), 1, ">="),
        claim("order of STSP4", numbers["orders"]["stsp4"], 1.25, "<="),
        claim("order of Strang2", numbers["orders"]["strang2"], 1.8, ">="),
        claim("scale 0: largest difference to PLMS", numbers["scale_0_difference"], 0, "<="),
    ]


# Images


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    count: int = 256
    """Held-out noises of a seed, of all classes in turn."""
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: tuple[int, ...] = (10, 20, 50)
    many: int = 250
    """The steps of the reference; of other methods than DDIM for the first seed alone."""
    scales: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    scale: float = 10.0
    """That of the sweep over steps, and of the student."""
    classifier: tuple[int, tuple[int, ...]] = (2000, (32, 64, 64))
    """Steps and widths of the classifier that guides; the one that judges has half as much again."""
    trajectories: int = 4096
    student: int = 1500
    """Training steps of the student."""
    batch: int = 64
    timed: int = 5
    clusters: int = 5


QUICK = Size(20, (0, 1), (2, 4), 6, (1.0, 3.0), 3.0, (4, (4, 8)), 16, 2, 8, 1)


class Bench:
    """A teacher, the classifier that guides it, the one that judges, and what is measured."""

    def __init__(self, arguments: argparse.Namespace, runs: Path, size: Size) -> None:
        name, quick = arguments.problem, arguments.quick
        source = arguments.source or (shipped() if quick else Path("runs") / name)
        self.recipe = RECIPES["digits" if quick and arguments.source is None else name]
        self.runs, self.size, self.device = runs, size, torch.device(arguments.device)
        images = load_data(arguments.data or self.recipe.data, size=arguments.size or self.recipe.size)
        if not (features := source / "features").is_dir() or arguments.teacher is not None:
            features = runs / "features"
            if not (features / "config.json").is_file():
                train_features(images, features, labelled=images.labels is not None)
        self.features = load_feature_net(features).to(self.device)
        self.images = self._labelled(images)
        self.teacher = load_teacher(arguments.teacher or source / "teacher", None, self.device).eval()
        self.teacher.requires_grad_(False)
        self.schedule, self.shape = self.teacher.schedule, sample_shape(self.teacher)
        steps, widths = size.classifier
        self.guide = self._classifier("classifier", True, widths, steps, 0)
        self.judge = self._classifier("judge", False, tuple(w * 3 // 2 // 2 * 2 for w in widths), steps, 1)
        self.reference = Reference.of(self.images.x, self.features)
        self.classes: int = self.images.classes or 0

    def _labelled(self, images: Samples) -> Samples:
        """Images with classes: their own, or clusters of their features."""
        if images.labels is not None:
            return images
        from sklearn.cluster import KMeans

        found = KMeans(self.size.clusters, n_init=4, random_state=0).fit(extract(self.features, images.x).numpy())
        return replace(images, labels=torch.from_numpy(found.labels_).long(), classes=self.size.clusters)

    def _classifier(self, name: str, noisy: bool, widths: tuple[int, ...], steps: int, seed: int) -> Classifier:
        patch = 2 if min(self.images.shape[1:]) >= 16 else 1
        if not (self.runs / name / "config.json").is_file():
            train_classifier(self.images, self.runs / name, noisy, widths, patch, steps, seed=seed, report=printed(200))
        return load_classifier(self.runs / name).to(self.device).requires_grad_(False)

    def steered(self, scale: float) -> Steered:
        return Steered(self.teacher, NoisyClassifier(self.guide, self.schedule), scale).eval()

    def sampler(self, method: str, steps: int, scale: float) -> SolverSampler:
        model = self.steered(scale)
        return SolverSampler(model, self.schedule, even(self.schedule, steps), solver_named(method, model))

    def noises(self, seed: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Noise, classes in turn, and seeds."""
        seeds = seed_range(HELD_OUT + seed * self.size.count, rows)
        return (
            noise(seeds, self.shape, device=self.device),
            torch.arange(rows, device=self.device) % self.classes,
            seeds,
        )

    def measured(self, x: Tensor, label: Tensor, name: str) -> dict[str, float]:
        """Agreement of the judge, Frechet distance to the data and diversity."""
        x = x.clamp(-1, 1)
        quality = measure(x.cpu(), name=name, reference=self.reference, extractor=self.features).quality
        assert quality is not None
        with torch.no_grad():
            agreement = float((self.judge(x).argmax(1) == label).float().mean())
        return {"agreement": agreement, "frechet": quality.frechet, "diversity": quality.diversity}

    def row(self, method: str, steps: int, scale: float, seed: int) -> dict[str, Any]:
        z, label, seeds = self.noises(seed, self.size.count)
        try:
            made = self.sampler(method, steps, scale)(z, {"guide": label}, seeds)
        except FloatingPointError as error:
            print(method, steps, scale, error, flush=True)
            found: dict[str, float] = {"agreement": 0.0, "frechet": 1e9, "diversity": 0.0}
            rounds = steps
        else:
            found, rounds = self.measured(made.sample, label, f"{method}-{steps}"), made.rounds
        gradients = steps * (2 if method.startswith("stsp") else 1)
        print(method, steps, scale, seed, {k: round(v, 3) for k, v in found.items()}, flush=True)
        return {
            "method": method,
            "steps": steps,
            "scale": scale,
            "seed": seed,
            "calls": rounds,
            "gradients": gradients,
            **found,
        }

    def seconds(self) -> dict[str, float]:
        """Of a step of each method and 64 samples, taken in turn."""
        z, label, seeds = self.noises(0, 64)
        sides = [partial(self.sampler(m, self.size.timed, self.size.scale), z, {"guide": label}, seeds) for m in IMAGES]
        taken = alternating(*sides, repeats=5)
        return {m: statistics.median(t[i] for t in taken) / self.size.timed for i, m in enumerate(IMAGES)}

    def student(self) -> dict[str, Any]:
        """One pass of a student of the guided teacher, and the teacher in as many steps as its trajectories took."""
        size, steps = self.size, self.size.steps[-1]
        data = generate(
            self.steered(size.scale),
            self.runs / "trajectories",
            size.trajectories,
            times=(0.0,),
            solver="stsp4",
            steps=steps,
            grid="even",
            label=lambda seeds: {"guide": seeds % self.classes},
            resume=True,
            report=printed(1),
        )
        config = TrainConfig(steps=size.student, lr=1e-3, warmup=min(100, size.student // 2), checkpoint_every=250)
        if not (self.runs / "student" / "config.json").is_file():
            distill(
                self.teacher, data, self.runs / "student", "knowledge", config, batch=size.batch, resume=True,
                report=printed(100),
            )  # fmt: skip
        one_pass = OnePass(load_student(self.runs / "student").to(self.device))
        rows = []
        for seed in size.seeds:
            z, label, seeds = self.noises(seed, size.count)
            found = self.measured(one_pass(z, label, seeds).sample, label, "student")
            rows.append(
                {
                    "method": "student",
                    "steps": 1,
                    "scale": size.scale,
                    "seed": seed,
                    "calls": 1,
                    "gradients": 0,
                    **found,
                }
            )
        return {"rows": rows}


def plan(size: Size) -> list[tuple[str, int, float, int]]:
    """Method, steps, scale and seed of every row."""
    found = [(m, N, size.scale, s) for s, N, m in product(size.seeds, size.steps, IMAGES)]
    found += [
        (m, sorted(size.steps)[1], w, s) for s, w, m in product(size.seeds, size.scales, IMAGES) if w != size.scale
    ]
    found += [("ddim", size.many, size.scale, s) for s in size.seeds]
    return found + [(m, size.many, size.scale, size.seeds[0]) for m in IMAGES[1:]]


def of(rows: Sequence[Mapping[str, Any]], what: str, method: str, steps: int, scale: float) -> float:
    """A mean over seeds."""
    return statistics.mean(r[what] for r in rows if (r["method"], r["steps"], r["scale"]) == (method, steps, scale))


def judged_images(numbers: Mapping[str, Any]) -> list[Claim]:
    rows, seconds, scale = numbers["rows"], numbers["seconds_a_step"], numbers["scale"]
    many = max(r["steps"] for r in rows)
    few = sorted({r["steps"] for r in rows} - {many})
    agreement, frechet = (of(rows, what, "ddim", many, scale) for what in ("agreement", "frechet"))
    saved = [
        1 - N * seconds["stsp4"] / (many * seconds["ddim"])
        for N in few
        if of(rows, "agreement", "stsp4", N, scale) >= 0.95 * agreement
        and of(rows, "frechet", "stsp4", N, scale) <= 1.05 * frechet
    ]
    kept_share = of(numbers["student"]["rows"], "agreement", "student", 1, scale) / of(
        rows, "agreement", "stsp4", few[-1], scale
    )
    return [
        claim(
            f"share of DDIM-{many}'s time that STSP4 saves at its agreement and distance",
            max([0.0, *saved]),
            0.32,
            ">=",
        ),
        claim(f"one pass of the student: share of the agreement of STSP4 in {few[-1]} steps", kept_share, 0.9, ">="),
    ]


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """The claims that the numbers of either kind make."""
    return judged_mixtures(numbers) if "orders" in numbers else judged_images(numbers)


# Pictures


def picture_mixtures(numbers: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, guide in zip(axes, ("smooth", "rough"), strict=True):
        for method in TITLES:
            found = [r for r in numbers["rows"] if (r["guide"], r["method"]) == (guide, method)]
            axis.plot([r["steps"] for r in found], [r["median"] for r in found], "o-", ms=3, label=TITLES[method])
        axis.set(xscale="log", yscale="log", xlabel="steps", title=f"{guide} guide")
        tidy(axis, "both")
        axis.set_xticks([r["steps"] for r in found], [str(r["steps"]) for r in found])
        axis.minorticks_off()
    axes[0].set_ylabel("median error to the exact solution")
    axes[1].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    save(figure, arguments, "guidance-mixtures.png", 110)


def picture_images(numbers: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    plt = pyplot()
    rows, scale = numbers["rows"], numbers["scale"]
    figure, axes = plt.subplots(2, 3, figsize=(11, 6))
    for column, what in enumerate(("agreement", "frechet", "diversity")):
        for method in IMAGES:
            by_steps = sorted({r["steps"] for r in rows if (r["method"], r["scale"]) == (method, scale)})
            points = [(N, of(rows, what, method, N, scale)) for N in by_steps]
            axes[0][column].plot(*zip(*points, strict=True), "o-", ms=3, label=TITLES[method])
            N = sorted({r["steps"] for r in rows})[1]
            by_scale = sorted({r["scale"] for r in rows if (r["method"], r["steps"]) == (method, N)})
            points = [(w, of(rows, what, method, N, w)) for w in by_scale]
            axes[1][column].plot(*zip(*points, strict=True), "o-", ms=3, label=TITLES[method])
        axes[0][column].set(xscale="log", xlabel=f"steps (scale {scale:g})", title=what)
        axes[1][column].set(xscale="log", xlabel=f"scale ({N} steps)")
        for axis in axes[:, column]:
            if what == "frechet":
                axis.set_yscale("log")
            tidy(axis, "both")
    axes[0][0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    save(figure, arguments, f"guidance-{arguments.problem}.png", 110)


def samples_picture(bench: Bench, arguments: argparse.Namespace) -> None:
    """The same noises in every class, unguided and guided."""
    plt, rows = pyplot(), min(bench.classes, 10)
    z = noise(seed_range(HELD_OUT, 8), bench.shape, device=bench.device)
    figure, axes = plt.subplots(rows, 8, figsize=(8, rows), squeeze=False)
    for k in range(rows):
        label = torch.full((8,), k, device=bench.device)
        steps = sorted(bench.size.steps)[1]
        made = bench.sampler("stsp4", steps, bench.size.scale)(z, {"guide": label}).sample.cpu().clamp(-1, 1)
        for axis, x in zip(axes[k], made, strict=True):
            axis.imshow((x.permute(1, 2, 0).squeeze(-1) + 1) / 2, cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
    figure.tight_layout(pad=0.1)
    save(figure, arguments, f"guidance-{arguments.problem}-samples.png", 90)


def options() -> argparse.ArgumentParser:
    made = parser(__file__, __doc__)
    made.add_argument("problem", choices=["mixtures", "fashion", "sprites"])
    made.add_argument("--source", type=Path, help="folder with teacher and features; runs/PROBLEM by default")
    made.add_argument("--runs", type=Path, help="what is trained and measured; runs/guidance/PROBLEM by default")
    made.add_argument("--teacher", help="another teacher, as `load_teacher` takes it; needs --data of its pictures")
    made.add_argument("--data", help="where the recipe's data is on this machine, or other labelled pictures")
    made.add_argument("--size", type=int, help="their size in pixels")
    made.add_argument("--device", default="cpu")
    return made


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    name = arguments.problem
    if name == "mixtures":
        size = Mixtures(16, 60, (10, 30), (32, 64)) if arguments.quick else Mixtures()
        numbers = mixtures(size)
        write(
            arguments,
            "guidance",
            f"eight blobs of std 0.15 on a circle of radius 2, two classes in turn, VE, float64; {size.noises} noises; "
            f"even steps of the log-SNR from a noise ratio of {HIGH:g} to {LOW:g}; errors are norms per sample to "
            f"{size.fine} steps of RK4, 1e9 where a run was not finite; orders between {size.order[0]} and "
            f"{size.order[1]} steps at scale 1",
            judged(numbers),
            **numbers,
        )
        picture_mixtures(numbers, arguments)
        return
    images = QUICK if arguments.quick else Size()
    runs = runs_of(arguments, f"runs/guidance/{name}")
    bench = Bench(arguments, runs, images)
    rows = [kept(runs / f"{m}-{N}-{w:g}-{s}.json", partial(bench.row, m, N, w, s)) for m, N, w, s in plan(images)]
    student = kept(runs / "student.json", bench.student)
    seconds = kept(runs / "seconds.json", bench.seconds)
    assert bench.images.labels is not None
    on_data = accuracy_at(bench.judge.cpu(), bench.images.x[:2000], bench.images.labels[:2000], 0.0)
    bench.judge.to(bench.device)
    numbers = {
        "rows": rows,
        "student": student,
        "seconds_a_step": seconds,
        "scale": images.scale,
        "judge_on_data": on_data,
        "agreement": {
            f"{m}-{N}": mean_and_spread(
                [r["agreement"] for r in rows if (r["method"], r["steps"], r["scale"]) == (m, N, images.scale)]
            )
            for m, N in product(IMAGES, images.steps)
        },
        "classes": "clusters of features, as the pictures have no labels" if name == "sprites" else "labels",
    }
    write(
        arguments,
        f"guidance_{name}",
        f"unconditional teacher and features of `dsno reproduce {name}`, guided by a classifier of noised pictures "
        f"({images.classifier[0]} steps of training); {images.count} held-out noises of all classes in turn, seeds "
        f"{images.seeds} ({images.many} steps but of DDIM: the first alone); agreement with another classifier, of "
        "clean pictures; Frechet distance in features to the data (biased upwards at that count, alike for all); equal "
        "steps of the phase; seconds of a step of 64 samples, taken in turn, the median of 5; the student: knowledge "
        f"of {images.trajectories} ends of STSP4 in {images.steps[-1]} steps, {images.student} steps of {images.batch}"
        + ("" if arguments.teacher else f"; {taught(arguments.source or Path('runs') / name)}"),
        judged(numbers),
        **numbers,
    )
    picture_images(numbers, arguments)
    samples_picture(bench, arguments)


if __name__ == "__main__":
    main()
