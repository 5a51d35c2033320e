"""Bridges between pictures: every sampler by calls, beside direct regression and a student of one pass.

    python benchmarks/bridge_pictures.py fashion|sprites [--data FILE] [--runs runs/bridge_fashion] [--gpu]

Claims, for super-resolution by four, JPEG-like quantisation, deblurring and edges to pictures: the Frechet distance of
ODES3 or DBIM in at most 13 calls is not above that of the SDE sampler in 101, and that of the one-pass student is
within 1.3 times that of ODES3 in 21 calls. A distance above that refutes them. A bridge, a regression of the same
network and training, and a student of the bridge's own trajectories are trained for each problem, then measured on
held-out pictures: Frechet and feature distance, PSNR, diversity over samples of one input. The exponent of the grid is
the default, and beside it the one that is best on pictures that were trained on. A sampler that has no grid of so many
calls takes fewer. Everything is kept under --runs; the script continues where it was stopped. --gpu trains
larger networks for longer. Writes benchmarks/results/bridge_NAME.json and docs/images/bridge-NAME.png.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _common import HELD_OUT, Claim, claim, kept, parse, parser, pyplot, runs_of, save, tidy, write
from torch import Tensor, nn

from dsno.bridge.files import load_bridge
from dsno.bridge.prediction import BridgePrediction
from dsno.bridge.sampler import BRIDGE_STEPS, EXPONENT, BridgeSampler, most_calls
from dsno.bridge.student import generate_crossings, student_from_bridge
from dsno.bridge.train import degraded
from dsno.checkpoint import read_tensors, write_tensors
from dsno.data.load import load_data
from dsno.data.pairs import Pairs
from dsno.data.samples import Samples
from dsno.distillation.run import distill
from dsno.inverse.blur import Blur
from dsno.inverse.kernels import gaussian
from dsno.inverse.operators import Downsample
from dsno.measure.features import extract
from dsno.measure.metrics import frechet_distance
from dsno.nets.features import FeatureNet, load_feature_net
from dsno.nets.paired import PairedUNet
from dsno.report.pictures import image_grid
from dsno.runs.bridge import teach_bridge
from dsno.runs.features import train_features
from dsno.runs.recipes import RECIPES
from dsno.seeds import generator, noise, seed_range
from dsno.students.files import load_student
from dsno.students.operator import TrajectoryStudent
from dsno.train import TrainConfig, train

CALLS, FEW = (1, 2, 5, 9, 13, 21, 41, 101), 21
LONG = ("ancestral", "dbim2", "odes3")
"""What is also sampled in more than `FEW` calls."""
TUNED = {"ancestral": (13, 101), "dbim2": (5, 13), "dbim3": (5, 13), "odes3": (5, 13, 21)}
"""Which samplers take another grid in how many calls."""
EXPONENTS = (1.0, 1.5, 2.5, 3.5)
NOISE = 0.05
TRAIN = TrainConfig(steps=1500, lr=1e-3, warmup=200, precision="bf16", checkpoint_every=250)
DISTILL = replace(TRAIN, steps=3000)


def edges(x: Tensor) -> Tensor:
    """Where the brightness of pictures (N, C, H, W) changes, in [-1, 1], as a pencil would draw it."""
    grey = nn.functional.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
    down = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    drawn = 1 - 2 * ((across**2 + down**2).sqrt() > 0.5).to(x)
    return drawn.expand_as(x).contiguous()


def quantised(x: Tensor, side: int = 8, step: float = 0.5) -> Tensor:
    """Pictures (N, C, H, W) whose cosine coefficients in blocks are rounded, the fast ones coarser, as JPEG's are."""
    n = torch.arange(side, dtype=torch.float64)
    basis = torch.cos(math.pi / side * (n[None] + 0.5) * n[:, None]) * math.sqrt(2 / side)
    basis[0] /= math.sqrt(2)
    basis, q = basis.to(x), (step * (1 + n[:, None] + n[None]) / 2).to(x)
    N, C, H, W = x.shape
    blocks = x.reshape(N, C, H // side, side, W // side, side).transpose(3, 4)
    made = basis.mT @ ((basis @ blocks @ basis.mT / q).round() * q) @ basis
    return made.transpose(3, 4).reshape(x.shape)


PROBLEMS: dict[str, Callable[[Tensor], Tensor]] = {
    "super": partial(degraded, Downsample(4)),
    "jpeg": quantised,
    "blur": partial(degraded, Blur(gaussian((7, 7), 1.5), noise=NOISE)),
    "edges": edges,
}
"""What the degraded picture of a clean one is."""


@dataclass(frozen=True)
class Size:
    """What is trained and measured."""

    net: Mapping[str, Any]
    """Options of the `UNet`."""
    train: TrainConfig = TRAIN
    """Of bridge and regression alike."""
    batch: int = 128
    count: int = 512
    """Held-out pictures that are restored."""
    reference: int = 2048
    """Others that the features of real ones are of."""
    varied: int = 64
    """Pictures of which there are several samples."""
    trajectories: int = 8192
    """Of the student, in 20 calls each."""
    distill: TrainConfig = DISTILL
    features_steps: int = 1500


def size_of(name: str, gpu: bool, quick: bool) -> Size:
    recipe = RECIPES[f"{name}-gpu" if gpu else name]
    size = Size(recipe.net, features_steps=recipe.features_steps)
    if gpu:
        longer = replace(size.train, steps=20_000, lr=5e-4, checkpoint_every=2000)
        size = replace(size, train=longer, distill=longer, batch=256, count=2048, trajectories=102_400)
    if quick:
        soon = TrainConfig(steps=2, lr=1e-3, warmup=0, checkpoint_every=2)
        net = {**size.net, "channels": [8, 8], "attention": []}
        size = Size(net, soon, 8, 12, 16, 2, 16, soon, 2)
    return size


# What is trained


class Regression:
    """The objective of the network of a bridge that answers at once, `net(x_T, 1, x_T) = x_0`."""

    def __init__(self, pairs: Pairs, batch: int, seed: int) -> None:
        self.pairs, self.batch, self.seed = pairs, batch, seed

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Tensor]]:
        while True:
            i = torch.randint(len(self.pairs), (self.batch,), generator=generator(self.seed, start)).chunk(world)[rank]
            yield {"x0": self.pairs.x[i], "start": self.pairs.start[i]}
            start += 1

    def __call__(self, net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return (answer(net, batch["start"]) - batch["x0"]).square().mean()


def answer(net: nn.Module, start: Tensor) -> Tensor:
    """What a regression says: what is to be added to $x_T$."""
    return start + net(start, torch.ones(len(start), device=start.device), {"start": start})


class Bench:
    """One problem: its pairs, what was trained on them, and the held-out pictures."""

    def __init__(self, problem: str, runs: Path, size: Size, data: Samples, features: FeatureNet, device: str) -> None:
        self.runs, self.size, self.features, self.device = runs / problem, size, features, device
        held, x = size.count + size.reference, data.x
        make = PROBLEMS[problem]
        self.pairs = Pairs(make(x[:-held]), x[:-held], problem)
        self.clean = x[-held : len(x) - size.reference]
        self.start, self.others = make(self.clean), x[-size.reference :]
        self.real = extract(features, self.others)

    def bridge(self) -> BridgePrediction:
        folder = self.runs / "bridge"
        if not (folder / "config.json").is_file():
            net, size = dict(self.size.net), self.size
            teach_bridge(
                self.pairs, folder, tuple(net.pop("channels")), size.train, size.batch, "ddbm", resume=True, **net
            )
        return load_bridge(folder).to(self.device)

    def regression(self) -> nn.Module:
        weights = self.runs / "regression.safetensors"
        torch.manual_seed(0)
        C, side, _ = self.pairs.shape
        net = PairedUNet({"in_channels": C, "image_size": side, **self.size.net})
        if not weights.is_file():
            objective = Regression(self.pairs, self.size.batch, 0)
            train(net, objective, self.size.train, self.runs / "regression", resume=True)
            write_tensors(weights, net.state_dict())
        net.load_state_dict(read_tensors(weights))
        return net.eval().to(self.device)

    def student(self) -> TrajectoryStudent:
        folder = self.runs / "student"
        if not (folder / "config.json").is_file():
            bridge = self.bridge()
            data = generate_crossings(
                bridge, self.pairs.start, self.runs / "trajectories", self.size.trajectories, resume=True
            )
            distill(
                None,
                data,
                folder,
                "knowledge",
                self.size.distill,
                batch=self.size.batch,
                student=student_from_bridge(bridge),
                resume=True,
                sources={"teacher": str(self.runs / "bridge")},
            )
        return load_student(folder).to(self.device)

    # What is measured

    def exponent(self, name: str) -> dict[str, Any]:
        """Which exponent of the grid brings a sampler's samples of pictures that were trained on nearest to others."""
        start = self.pairs.start[-self.size.count :].to(self.device)
        bridge, seeds, found = self.bridge(), seed_range(2 * HELD_OUT, len(start)), {}
        for p in EXPONENTS:
            sampler = BridgeSampler.of_calls(bridge, bridge.bridge, most_calls(name, 13), name, exponent=p)
            made = extract(self.features, sampler(start, seeds=seeds).sample.float().cpu().clamp(-1, 1))
            found[f"{p:g}"] = frechet_distance(made, self.real)
        return {"exponent": float(min(found, key=found.__getitem__)), "frechet": found}

    def measure(self, restore: Callable[[Tensor, Tensor], Tensor]) -> dict[str, float]:
        """Quality of what `restore(start, seeds)` makes."""
        seeds = seed_range(HELD_OUT, self.size.count)
        made = restore(self.start.to(self.device), seeds).float().cpu().clamp(-1, 1)
        found, wanted = extract(self.features, made), extract(self.features, self.clean)
        some = self.start[: self.size.varied].to(self.device)
        several = [restore(some, seed_range(HELD_OUT * (n + 2), len(some))).float().cpu() for n in range(4)]
        return {
            "frechet": frechet_distance(found, self.real),
            "feature_distance": float((found - wanted).norm(dim=1).mean()),
            "psnr": float(10 * torch.log10(4 / (made - self.clean).square().mean())),
            "diversity": float(torch.stack(several).std(0).mean()),
        }

    def sampled(self, name: str, calls: int, exponent: float = EXPONENT) -> dict[str, float]:
        bridge = self.bridge()
        sampler = BridgeSampler.of_calls(bridge, bridge.bridge, calls, name, exponent=exponent)
        return {"calls": float(calls), **self.measure(lambda start, seeds: sampler(start, seeds=seeds).sample)}

    def regressed(self) -> dict[str, float]:
        net = self.regression()
        with torch.no_grad():
            return self.measure(lambda start, seeds: answer(net, start))

    def in_one_pass(self) -> dict[str, float]:
        student = self.student()
        return self.measure(
            lambda start, seeds: student.sample(noise(seeds, start.shape[1:], device=start.device), {"start": start})
        )

    def numbers(self) -> dict[str, Any]:
        """All of it, each piece kept."""
        samplers: dict[str, dict[str, Any]] = {}
        for name in BRIDGE_STEPS:
            for calls in (c for c in CALLS if c <= FEW or name in LONG):
                taken = most_calls(name, calls)
                piece = self.runs / "measured" / f"{name}-{taken}.json"
                samplers.setdefault(name, {})[str(calls)] = kept(piece, partial(self.sampled, name, taken))
            print(self.runs.name, name, {c: round(m["frechet"], 2) for c, m in samplers[name].items()}, flush=True)
        tuned: dict[str, dict[str, Any]] = {}
        for name, budgets in TUNED.items():
            chosen = kept(self.runs / "measured" / f"exponent-{name}.json", partial(self.exponent, name))
            tuned[name] = {**chosen, "calls": {}}
            for calls in budgets:
                taken, p = most_calls(name, calls), chosen["exponent"]
                piece = self.runs / "measured" / f"{name}-{taken}{'' if p == EXPONENT else f'-{p:g}'}.json"
                tuned[name]["calls"][str(calls)] = kept(piece, partial(self.sampled, name, taken, p))
        return {
            "samplers": samplers,
            "tuned": tuned,
            "regression": kept(self.runs / "measured" / "regression.json", self.regressed),
            "student": kept(self.runs / "measured" / "student.json", self.in_one_pass),
            "degraded": kept(
                self.runs / "measured" / "degraded.json", lambda: self.measure(lambda start, seeds: start)
            ),
        }

    def shown(self) -> bytes:
        """Rows of what it starts from, four samples of ODES3, the one pass, the regression, and the clean picture."""
        start = self.start[:8].to(self.device)
        bridge, student, net = self.bridge(), self.student(), self.regression()
        sampler = BridgeSampler.of_calls(bridge, bridge.bridge, most_calls("odes3", 13), "odes3")
        with torch.no_grad():
            columns = [start, *(sampler(start, seeds=seed_range(100 * n, len(start))).sample for n in range(4))]
            z = noise(seed_range(0, len(start)), start.shape[1:], device=start.device)
            columns += [student.sample(z, {"start": start}), answer(net, start), self.clean[:8].to(start)]
        return image_grid(torch.stack(columns, 1).flatten(0, 1).float().cpu().clamp(-1, 1), len(columns))


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    claims = []
    for problem, found in numbers["problems"].items():
        samplers = found["samplers"]
        tuned = {name: of["calls"] for name, of in found["tuned"].items()}
        few = [
            entry["frechet"]
            for name, by_calls in (*samplers.items(), *tuned.items())
            for calls, entry in by_calls.items()
            if name.startswith(("odes3", "dbim")) and int(calls) <= 13
        ]
        # On the default grid, and on the one that was chosen.
        long, odes3 = (
            [of[name][calls]["frechet"] for of in (samplers, tuned)]
            for name, calls in (("ancestral", "101"), ("odes3", "21"))
        )
        student = found["student"]["frechet"]
        claims += [
            claim(
                f"{problem}: best of ODES3 and DBIM in 13 calls over the SDE in 101",
                min(few) / min(long),
                1.0,
                "<=",
            ),
            claim(
                f"{problem}: one pass over ODES3 in 21 calls on the grid it learned from", student / odes3[0], 1.3, "<="
            ),
            claim(
                f"{problem}: one pass over ODES3 in 21 calls on the better of its grids",
                student / min(odes3),
                1.3,
                "<=",
            ),
        ]
    return claims


def options() -> argparse.ArgumentParser:
    made = parser(__file__, __doc__)
    made.add_argument("name", choices=("fashion", "sprites"))
    made.add_argument("--data", help="what load_data takes; the recipe's by default")
    made.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    made.add_argument("--runs", type=Path, help="where everything is kept; runs/bridge_NAME by default")
    made.add_argument("--device", default="cpu")
    made.add_argument("--gpu", action="store_true", help="the larger networks and longer trainings of a GPU")
    return made


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    torch.set_num_threads(1)
    name, runs = arguments.name, runs_of(arguments, f"runs/bridge_{arguments.name}")
    size, recipe = size_of(name, arguments.gpu, arguments.quick), RECIPES[f"{name}-gpu" if arguments.gpu else name]
    data = load_data(arguments.data or recipe.data, size=recipe.size, range=recipe.range)
    if arguments.quick:
        data = Samples(data.x[:128], None if data.labels is None else data.labels[:128], data.name)
    if not (runs / "features" / "config.json").is_file():
        train_features(data, runs / "features", size.features_steps, labelled=data.labels is not None)
    features = load_feature_net(runs / "features")
    benches = {problem: Bench(problem, runs, size, data, features, arguments.device) for problem in arguments.problems}
    numbers: dict[str, Any] = {"problems": {problem: bench.numbers() for problem, bench in benches.items()}}
    arguments.images.mkdir(parents=True, exist_ok=True)
    for problem, bench in benches.items():
        (arguments.images / f"bridge-{name}-{problem}.png").write_bytes(bench.shown())
    picture(numbers, arguments)
    write(
        arguments,
        f"bridge_{name}",
        f"Brownian bridge, ddbm preconditioning, {size.train.steps} steps of {size.batch} of bridge and regression "
        f"alike, {size.trajectories} trajectories of ODES3 in 20 calls and {size.distill.steps} steps of the student; "
        f"{size.count} held-out pictures, Frechet distance to {size.reference} others; the exponent of a grid that was "
        f"chosen was so on {size.count} pictures that were trained on, in 13 calls",
        judged(numbers),
        **numbers,
    )


def picture(numbers: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    problems = numbers["problems"]
    figure, axes = pyplot().subplots(1, len(problems), figsize=(3.2 * len(problems), 3.2), layout="constrained")
    for axis, (problem, found) in zip([axes] if len(problems) == 1 else axes, problems.items(), strict=True):
        for name, by_calls in found["samplers"].items():
            x, y = zip(*((entry["calls"], entry["frechet"]) for entry in by_calls.values()), strict=True)
            axis.loglog(x, y, marker=".", label=name)
        axis.plot(1, found["student"]["frechet"], marker="*", markersize=12, color="black", label="one pass")
        axis.plot(1, found["regression"]["frechet"], marker="x", color="black", label="regression")
        axis.set(title=problem, xlabel="network calls", ylabel="Fréchet distance")
        tidy(axis, "both")
    axis.legend(frameon=False, fontsize=6)
    save(figure, arguments, f"bridge-{arguments.name}.png", 150)


if __name__ == "__main__":
    main()
