"""One student for every guidance weight, in one pass: guided distillation on a ring of two classes.

    python benchmarks/guided.py

Claim: one student is within 0.33 of the guided teacher at weights 0, 1 and 4, and listens to its weight: told another
row's, its error grows by a tenth or more. A weight beyond the bound, or an error that stays, refutes it. Eight modes on
a ring, the classes alternating; the conditional and the unconditional denoiser are closed forms, so the teacher's
guidance is exact and nothing is learned but the sampler. The reference is DDIM in 256 steps. The student is a small
multilayer perceptron that is told both times, the class and the weight; its first stage learns the guided teacher, the
others halve 32 steps down to 1. Writes benchmarks/results/guided.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from _common import HELD_OUT, Claim, claim, eight_modes, fit, parse, parser, write
from torch import Tensor, nn

from dsno import Cosine, GaussianMixture, SolverSampler
from dsno.condition import Cond
from dsno.denoise import Guided
from dsno.distillation.guided import GuidedOptions, guided, stochastic_sampler
from dsno.distillation.stages import Given
from dsno.grids import uniform
from dsno.nets.unet import time_embedding
from dsno.seeds import noise, seed_range
from dsno.students.flowmap import FlowMap, TwoTime
from dsno.students.samplers import FlowMapSampler

SCHEDULE, NULL = Cosine(), 2
LOW, HIGH, WEIGHTS = 0.0, 4.0, (0.0, 1.0, 4.0)
PASSES = (1, 2, 4, 8, 16)
RING = eight_modes(SCHEDULE, 2, 0.25, labels=torch.arange(8) % 2)


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    seeds: int = 3
    steps: int = 4000
    """Of all stages together."""
    batch: int = 256
    width: int = 96
    lr: float = 3e-3
    samples: int = 65_536
    count: int = 2048
    """Held-out noises."""
    solver_steps: int = 256
    """Of the reference."""


QUICK = Size(1, 14, 16, 16, samples=512, count=64, solver_steps=32)


class Branches:
    """The conditional denoiser, and the unconditional one in rows of the label NULL."""

    def __init__(self, source: GaussianMixture) -> None:
        self.source = source

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        assert isinstance(cond, Tensor)
        x0_hat, none, t = torch.empty_like(x_t), cond == NULL, t.expand(len(x_t))
        x0_hat[none] = self.source(x_t[none], t[none])
        x0_hat[~none] = self.source(x_t[~none], t[~none], cond[~none])
        return x0_hat


TEACHER = Guided(Branches(RING), torch.tensor(NULL))


class Perceptron(nn.Module):
    """Hidden layers on the point, each shifted by an embedding of the time and the class."""

    def __init__(self, width: int, depth: int = 3) -> None:
        super().__init__()
        self.time, self.label, self.stem = nn.Linear(32, width), nn.Embedding(2, width), nn.Linear(2, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.shift = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        emb = nn.functional.silu(self.time(time_embedding(t, 32).to(x.dtype)) + self.label(cond))
        h = self.stem(x)
        for hidden, shift in zip(self.hidden, self.shift, strict=True):
            h = h + nn.functional.silu(hidden(h) + shift(emb))
        return self.head(h)


def rmse(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().sum(1).mean().sqrt())


def sliced(a: Tensor, b: Tensor) -> float:
    """2-Wasserstein distance of two equally large sets of points, root mean square over 64 directions."""
    angle = torch.pi * torch.arange(64) / 64
    directions = torch.stack([angle.cos(), angle.sin()])
    return float(((a @ directions).sort(0).values - (b @ directions).sort(0).values).square().mean().sqrt())


class Held:
    """Held-out noises and labels, and where the guided teacher takes them at each weight."""

    def __init__(self, size: Size) -> None:
        self.seeds = seed_range(HELD_OUT, size.count)
        self.z, self.labels = noise(self.seeds, (2,)), torch.arange(size.count) % 2
        fine = SolverSampler(TEACHER, SCHEDULE, uniform(size.solver_steps))
        self.reference = {w: self.run(fine, w) for w in WEIGHTS}

    def cond(self, w: float) -> dict[str, Tensor]:
        return {"": self.labels, "weight": torch.full((len(self.z),), w)}

    def run(self, sampler: SolverSampler | FlowMapSampler, w: float) -> Tensor:
        return sampler(self.z, self.cond(w), self.seeds).sample

    def errors(self, sampler: SolverSampler | FlowMapSampler) -> dict[str, float]:
        return {f"{w:g}": rmse(self.run(sampler, w), self.reference[w]) for w in WEIGHTS}

    def shuffled(self, student: FlowMap) -> tuple[float, float]:
        """One-pass error over all weights together: each row with its own weight, and each with another row's."""
        rows = len(self.z)
        which = torch.arange(rows) % len(WEIGHTS)
        weight = torch.tensor(WEIGHTS)[which]
        reference = torch.stack([self.reference[w] for w in WEIGHTS])[which, torch.arange(rows)]
        made = [student.sample(self.z, {"": self.labels, "weight": w}) for w in (weight, weight.roll(1))]
        return rmse(made[0], reference), rmse(made[1], reference)

    def distances(self, sampler: SolverSampler | FlowMapSampler) -> dict[str, float]:
        """Distance of the samples' law to the reference's, the mean over the classes."""
        found = {}
        for w in WEIGHTS:
            made = self.run(sampler, w)
            pairs = [(made[self.labels == c], self.reference[w][self.labels == c]) for c in (0, 1)]
            found[f"{w:g}"] = sum(sliced(a, b) for a, b in pairs) / 2
        return found


def trained(
    held: Held, size: Size, seed: int, passes: int = 1, stochastic: bool = False
) -> tuple[FlowMap, dict[str, dict[str, float]], float]:
    """A student, its errors after each stage on the grid of that stage, and the CPU seconds its training took."""
    torch.manual_seed(seed)
    student = FlowMap(TwoTime(Perceptron(size.width), {"time": size.width}, guidance=True), SCHEDULE, "v")
    x = RING.sample(size.samples, torch.Generator().manual_seed(seed))
    # Which class a sample is of: that of the nearest mode, ten standard deviations from the next of its own class.
    labels = torch.cdist(x, RING.means).argmin(1) % 2
    given = Given(TEACHER, SCHEDULE, size.steps, size.batch, seed, x, labels)
    chosen = GuidedOptions(passes, stochastic=stochastic, guidance=(LOW, HIGH))
    errors, seconds = {}, 0.0
    for stage in guided(student, given, chosen):
        model, objective = stage.make(student)
        began = time.process_time()
        fit(model, objective, steps=stage.steps, lr=size.lr, warmup=max(stage.steps // 10, 1), ema=0.99, seed=seed)
        seconds += time.process_time() - began
        student = stage.became(student)
        errors[stage.name] = held.errors(FlowMapSampler(student, uniform(student.steps)))
        print(seed, stage.name, stage.steps, {w: round(e, 3) for w, e in errors[stage.name].items()}, flush=True)
    return student, errors, seconds


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """Errors of one pass and of the first stage, what the weight is worth, the time, and the stochastic sampler."""
    mean, seeds = numbers["student"], numbers["seeds"]
    average = {name: sum(law.values()) / len(law) for name, law in numbers["laws_of_four_passes"].items()}
    ratio = sum(seed["shuffled"] / seed["own"] for seed in seeds) / len(seeds)
    return [
        *(claim(f"one pass, weight {w}: RMSE", e, 0.33, "<=") for w, e in mean["steps-1"].items()),
        *(claim(f"stage guidance, 32 steps, weight {w}: RMSE", e, 0.33, "<=") for w, e in mean["guidance"].items()),
        claim("RMSE told another row's weight over RMSE told its own", ratio, 1.1, ">="),
        claim("training, CPU seconds, most of the seeds", max(seed["seconds"] for seed in seeds), 60, "<="),
        claim("stochastic sampler in 4 passes: distance of the law", average["stochastic"], average["teacher"], "<="),
    ]


def options() -> argparse.ArgumentParser:
    return parser(__file__, __doc__)


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    torch.set_num_threads(1)
    size = QUICK if arguments.quick else Size()
    held = Held(size)
    of_teacher = {str(n): held.errors(SolverSampler(TEACHER, SCHEDULE, uniform(n))) for n in PASSES}
    print("teacher", of_teacher, flush=True)
    runs = []
    for seed in range(size.seeds):
        student, errors, seconds = trained(held, size, seed)
        own, shuffled = held.shuffled(student)
        runs.append({"errors": errors, "own": own, "shuffled": shuffled, "seconds": seconds})
        print(f"seed {seed}: {seconds:.0f} s, told its weight {own:.3f}, another row's {shuffled:.3f}", flush=True)
    student, _, _ = trained(held, size, 0, passes=4, stochastic=True)
    samplers = {
        "stochastic": stochastic_sampler(student),
        "deterministic": FlowMapSampler(student, uniform(4)),
        "teacher": SolverSampler(TEACHER, SCHEDULE, uniform(4)),
    }
    laws = {name: held.distances(sampler) for name, sampler in samplers.items()}
    print("four passes, distance of the laws", laws, flush=True)
    stages = list(runs[0]["errors"])
    mean = {k: {f"{w:g}": sum(r["errors"][k][f"{w:g}"] for r in runs) / len(runs) for w in WEIGHTS} for k in stages}
    numbers = {"teacher": of_teacher, "student": mean, "seeds": runs, "laws_of_four_passes": laws}
    write(
        arguments,
        "guided",
        "two classes on alternating modes of a ring (radius 2, std 0.25), cosine schedule, weights uniform in "
        f"[{LOW:g}, {HIGH:g}]; width {size.width}, {size.steps} steps of {size.batch} in all, Adam at {size.lr:g} "
        f"with a cosine decay in each stage, mean of {size.seeds} seeds; RMSE over {size.count} held-out noises to "
        f"DDIM in {size.solver_steps} steps of the exactly guided teacher, which costs two evaluations a step; "
        "distances of laws are sliced 2-Wasserstein, mean over classes and weights",
        judged(numbers),
        **numbers,
    )


if __name__ == "__main__":
    main()
