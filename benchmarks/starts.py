"""Learned starts: one step of a teacher from a noise that was chosen for what was measured, beside what it costs.

    python benchmarks/starts.py mixture
    python benchmarks/starts.py fashion|sprites [--source runs/NAME] [--runs runs/starts/NAME]

Claims: on a mixture whose blocks were averaged, one step is within 1.4 times the squared error of the exact mean given
what was measured, one network serves one to five steps, and what SDEdit makes of random noise is far from both; on a
recipe's teacher one step is ahead of SDEdit from the same time in PSNR and Frechet distance, and ahead of a direct
regression of the same size and training cost in Frechet distance. A difference of the other sign refutes it. On
images DPS and constrained sampling stand beside them, and `squares` is a start without the perceptual and the
adversarial part of its loss. Perceptual features are of another seed than those that are measured in. What is trained
and measured is kept in --runs; the script continues where it was stopped. Writes
benchmarks/results/starts[_NAME].json and docs/images/starts-NAME.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from _common import Claim, claim, fit, kept, parse, parser, runs_of, taught, write
from torch import Tensor, nn

from dsno.data.samples import Samples
from dsno.grids import uniform
from dsno.inverse.backprop import DPS
from dsno.inverse.operators import Downsample
from dsno.inverse.run import Guidance
from dsno.inverse.start import LearnedStart, pseudo_inverse
from dsno.inverse.start_loss import Inversion, Learner, Shares
from dsno.inverse.start_net import STARTS, NoisePredictor, load_start, start_grid
from dsno.nets.unet import UNet
from dsno.report.pictures import image_grid
from dsno.runs.features import train_features
from dsno.runs.start import train_start
from dsno.schedule import Cosine
from dsno.seeds import generator, noise, seed_range
from dsno.teachers.closed import GaussianMixture
from dsno.train import TrainConfig
from inverse import TASKS as KIND_OF
from inverse import Bench, inverse, measured, problem_of
from inverse import Size as OfImages

TASKS = ("x2", "x4", "blur")
STEPS = (1, 2, 3, 5)
SQUARES = Shares(perceptual=0, adversarial=0)
D, STD, TAU = 16, 0.15, 0.05


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    count: int = 4000
    """Draws of the mixture."""
    steps: int = 1500
    """Training steps on the mixture, of 256."""
    train: int = 800
    """Training steps of a start on images, of 64."""
    images: OfImages = dataclasses.field(default_factory=OfImages)
    """What is measured of a recipe."""


QUICK = Size(200, 10, 4, OfImages(8, 2, 1, 8, 2, 0.1))


# The mixture


def mixture(size: Size) -> dict[str, Any]:
    """Squared errors over that of the exact mean, by method; with what was measured again of each restoration."""
    means = 0.6 * torch.randn(8, 1, D, generator=generator(0))
    teacher, problem = GaussianMixture(Cosine(), means, STD), Downsample(4, noise=TAU)
    net = {"in_channels": 1, "image_size": [D], "channels": [64], "patch": D, "attention": []}
    x = teacher.sample(size.count, generator(1))
    y = problem.A(x) + TAU * torch.randn(size.count, 1, D // 4, generator=generator(2))
    data, settings = teacher.sample(16384, generator(3)), {"steps": size.steps, "lr": 3e-3, "warmup": 5, "ema": 0.99}
    torch.manual_seed(0)
    learned, fresh = NoisePredictor(net), NoisePredictor(net)
    objective = Inversion(data, problem, teacher, Cosine(), shares=SQUARES, batch=256)
    fit(Learner.of(learned, SQUARES), objective, **settings)
    direct = fit(UNet(**net), Regression(objective), **settings)
    z, seeds = noise(seed_range(0, size.count), (1, D)), seed_range(0, size.count)

    def started(of: NoisePredictor, steps: int, z: Tensor) -> tuple[Tensor, int, int]:
        made = LearnedStart(start_grid(Cosine(), steps), of)(teacher, Cosine(), problem, y, z)
        return made.x, made.cost.rounds, 0

    with torch.no_grad():
        y0 = pseudo_inverse(problem, y)
        regressed = y0 + direct(y0, torch.zeros(len(y0)))
    dps = DPS(uniform(50))(teacher, Cosine(), problem, y, z, seeds=seeds)
    found = {
        "exact mean": (exact_mean(y, means, problem), 0, 0),
        "pseudo-inverse": (y0, 0, 0),
        "direct": (regressed, 0, 0),
        "DPS": (dps.x, dps.cost.rounds, dps.cost.vjps // size.count),
        **{f"learned, {k} steps": started(learned, k, z) for k in STARTS},
        **{f"SDEdit, {k} steps": started(fresh, k, z) for k in STARTS},
        "no noise, 1 steps": started(fresh, 1, torch.zeros_like(z)),
    }
    best = float((found["exact mean"][0] - x).square().mean())
    rows = [
        {
            "method": name.replace(" 1 steps", " 1 step"),
            "over_exact": float((made - x).square().mean()) / best,
            "residual": float((problem.A(made) - y).square().mean().sqrt()),
            "rounds": rounds,
            "vjps": vjps,
        }
        for name, (made, rounds, vjps) in found.items()
    ]
    return {"rows": rows, "exact": best}


class Regression:
    """From A^+ y to x at once, on the batches of a start."""

    def __init__(self, inversion: Inversion) -> None:
        self.inversion, self.batches = inversion, inversion.batches

    def __call__(self, net: nn.Module, batch: dict[str, Any]) -> Tensor:
        x0, y0 = self.inversion.pairs(batch)
        return (y0 + net(y0, torch.zeros(len(y0))) - x0).square().mean()


def exact_mean(y: Tensor, means: Tensor, problem: Downsample) -> Tensor:
    """E[x | y] of the mixture (B, 1, D): of each component a Kalman gain, weighed by its evidence."""
    A = problem.A(torch.eye(D)[:, None])[:, 0].T
    S = STD**2 * A @ A.T + TAU**2 * torch.eye(len(A))
    rest = y - means[:, 0] @ A.T
    solved = torch.linalg.solve(S, rest.mT).mT
    weight = (-0.5 * (rest * solved).sum(-1)).softmax(1)
    return (weight[..., None] * (means[:, 0] + STD**2 * solved @ A)).sum(1, keepdim=True)


# Images


class Starts(Bench):
    """A recipe's teacher, its starts, and the methods beside them."""

    def __init__(self, arguments: argparse.Namespace, size: Size) -> None:
        # A step of a start is one of its network and one of the teacher: a direct regression gets twice the steps.
        super().__init__(arguments, dataclasses.replace(size.images, train=2 * size.train))
        self.train = size.train

    @cached_property
    def apart(self) -> Samples:
        """What is trained on: no image that is measured; where the teacher is told classes, by lot as in `run`."""
        held = {row.numpy().tobytes() for row in self.truth.cpu()}
        x = self.images.cpu()
        x = x[torch.tensor([row.numpy().tobytes() not in held for row in x])]
        classes = self.teacher.classes
        return Samples(x, None if classes is None else torch.arange(len(x)) % classes, str(self.trained_on))

    def net(self, task: str, shares: Shares, name: str) -> NoisePredictor:
        """The start of a task, trained once."""
        folder = self.runs / f"start-{task}-{name}"
        if (folder / "config.json").is_file():
            return load_start(folder)
        own = self.runs / "features"
        if not (own / "config.json").is_file():
            labelled = Samples(self.apart.x, None, self.apart.name)
            train_features(labelled, own, min(800, 2 * self.train), seed=1, labelled=False)
        net = {**self.teacher.net.config, "classes": None, "null": False}
        options = {k: v for k, v in net.items() if k not in ("in_channels", "image_size", "channels")}
        return train_start(
            self.teacher,
            problem_of(task, self.truth.shape[1:], 0.0),
            self.apart,
            folder,
            tuple(net["channels"]),
            TrainConfig(steps=self.train, lr=1e-3, warmup=min(50, self.train - 1), checkpoint_every=200),
            shares=shares,
            features=own,
            labelled=self.teacher.classes is not None,
            resume=True,
            **options,
        )

    def methods(self, task: str) -> dict[str, Guidance | None]:
        """By name; those of `Bench` are None."""
        grid = partial(start_grid, self.teacher.schedule)
        full = self.net(task, Shares(after=self.train // 2), "full")
        squares = self.net(task, SQUARES, "squares")
        fresh = NoisePredictor(full.unet.config)
        return {
            **{f"learned, {k}": LearnedStart(grid(k), full) for k in STEPS},
            "squares, 1": LearnedStart(grid(1), squares),
            **{f"SDEdit, {k}": LearnedStart(grid(k), fresh) for k in STEPS},
            **dict.fromkeys(("pseudo-inverse", "direct", "constrained", "dps")),
        }

    def line(self, task: str, name: str, method: Guidance | None) -> dict[str, Any]:
        """One line of the table."""
        if method is None:
            with torch.enable_grad():
                row = self.row(name, task, 0.0, 0)
            return {
                k: v for k, v in row.items() if k not in ("noise", "seed", "gradients", "seconds", "peak_megabytes")
            }
        x, residual, cost = self.run(method, task, 0.0, 0, self.truth)
        count, calls = len(self.truth), -(-len(self.truth) // self.size.batch)
        return {
            "task": task,
            "method": name,
            **self._quality(x),
            "residual": float(residual.mean()),
            "rounds": cost.rounds / calls,
            "rows": cost.rows / count,
            "vjps": cost.vjps / count,
        }

    def _quality(self, x: Tensor) -> dict[str, float | None]:
        return {**super()._quality(x), "agreement": self.agreement(x)}

    @torch.no_grad()
    def agreement(self, x: Tensor) -> float | None:
        """How often the recipe's classifier says the same of restorations as of what they are of."""
        if self.features is None:
            return None
        said, true = (self.features(images.clamp(-1, 1)).argmax(1) for images in (x, self.truth))
        return float((said == true).float().mean())


SHOWN = ("pseudo-inverse", "SDEdit, 1", "learned, 1", "learned, 5", "direct", "constrained", "dps")


def picture(bench: Starts, arguments: argparse.Namespace) -> None:
    """Two rows for each task: what some methods make of what was measured, and the truth."""
    shown, x = [], bench.truth[:2]
    for task in TASKS:
        problem, methods = problem_of(task, x.shape[1:], 0.0), bench.methods(task)
        y = measured(problem, x, seed_range(0, len(x)))
        with torch.no_grad():
            made = {"pseudo-inverse": inverse(problem, y, x.shape), "direct": bench.direct(task, 0.0, y)}
        for name in SHOWN:
            if name not in made:
                made[name] = bench.run(methods[name] or bench.method(name, KIND_OF[task]), task, 0.0, 0, x)[0]
        shown += [torch.stack(columns) for columns in zip(*(made[name] for name in SHOWN), x, strict=True)]
    arguments.images.mkdir(parents=True, exist_ok=True)
    drawn = image_grid(torch.cat(shown).cpu().clamp(-1, 1), len(SHOWN) + 1)
    (arguments.images / f"starts-{arguments.problem}.png").write_bytes(drawn)


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    if numbers["name"] == "starts":
        rows = {r["method"]: r for r in numbers["rows"]}
        learned = [r["over_exact"] for name, r in rows.items() if name.startswith("learned")]
        return [
            claim(
                "one step: squared error over that of the exact mean", rows["learned, 1 step"]["over_exact"], 1.4, "<="
            ),
            claim("one to five steps, the most of it", max(learned), 2.2, "<="),
            claim("SDEdit in one step over learned", rows["SDEdit, 1 step"]["over_exact"] / learned[0], 4, ">="),
            claim("no noise in one step over learned", rows["no noise, 1 step"]["over_exact"] / learned[0], 2, ">="),
            claim("DPS over one learned step", rows["DPS"]["over_exact"] / learned[0], 1, ">="),
            claim("vjps of learned starts", max(r["vjps"] for n, r in rows.items() if "learned" in n), 0, "<="),
        ]
    rows = {(r["task"], r["method"]): r for r in numbers["rows"]}

    def mean(name: str, what: str) -> float:
        return statistics.mean(rows[task, name][what] for task in TASKS)

    return [
        claim(
            "one step: PSNR less that of SDEdit, mean of the tasks",
            mean("learned, 1", "psnr") - mean("SDEdit, 1", "psnr"),
            0,
            ">=",
        ),
        claim(
            "one step: Frechet distance less that of SDEdit, mean of the tasks",
            mean("learned, 1", "frechet") - mean("SDEdit, 1", "frechet"),
            0,
            "<=",
        ),
        claim(
            "one step: Frechet distance less that of a direct regression, mean of the tasks",
            mean("learned, 1", "frechet") - mean("direct", "frechet"),
            0,
            "<=",
        ),
    ]


def options() -> argparse.ArgumentParser:
    made = parser(__file__, __doc__)
    made.add_argument("problem", choices=["mixture", "fashion", "sprites"], nargs="?", default="mixture")
    made.add_argument("--source", type=Path, help="the recipe's folder; runs/NAME by default")
    made.add_argument("--reference", help="held-out images; the recipe's data by default, which its teacher saw")
    made.add_argument("--runs", type=Path, help="what is trained and measured; runs/starts/NAME by default")
    made.add_argument("--device", default="cpu", help="where the networks are")
    return made


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    size = QUICK if arguments.quick else Size()
    arguments.runs = runs_of(arguments, f"runs/starts/{arguments.problem}")
    if arguments.problem == "mixture":
        numbers = kept(arguments.runs / "mixture.json", partial(mixture, size))
        write(
            arguments,
            "starts",
            f"eight components of standard deviation {STD:g} in {D} dimensions, averages of four measured with noise "
            f"{TAU:g}; {size.count} draws; start and direct regression are one network each of the same size, "
            f"{size.steps} steps of 256, squares alone; DPS in 50 steps, starts at phases of at most 0.25",
            judged({"name": "starts", **numbers}),
            **numbers,
        )
        return
    bench = Starts(arguments, size)
    rows = []
    for task in TASKS:
        for name, method in bench.methods(task).items():
            path = bench.runs / f"{task}-{name.replace(', ', '-')}.json"
            rows.append(kept(path, partial(bench.line, task, name, method)))
            print(f"{task:5} {name:15} {rows[-1]['psnr']:.2f} dB", flush=True)
    title = f"starts_{arguments.problem}"
    write(
        arguments,
        title,
        f"{len(bench.truth)} images of {'x'.join(map(str, bench.truth.shape[1:]))}, drawn by lot, "
        f"{'seen by the teacher' if bench.seen else 'held out'}; a start of the teacher's size for each task, "
        f"{size.train} steps of 64, and a direct regression of twice as many, which cost as much; Frechet distance to "
        "the first 10,000 images of the reference; DPS and constrained sampling with options chosen on other images; "
        f"{taught(bench.source)}",
        judged({"name": title, "rows": rows}),
        rows=rows,
        seen=bench.seen,
    )
    picture(bench, arguments)


if __name__ == "__main__":
    main()
