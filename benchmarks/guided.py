"""One student for every guidance weight, in one pass: guided distillation on a ring of two classes.

    python benchmarks/guided.py [--quick]

Eight modes on a ring, the classes alternating; the conditional and the unconditional denoiser are closed forms, so the teacher's
guidance is exact and nothing is learned but the sampler. The reference is DDIM in 256 steps. The student is a small multilayer
perceptron that is told both times, the class and the weight; its first stage learns the guided teacher, the others halve 32
steps down to 1. Writes benchmarks/results/guided.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from _common import claim, write
from torch import Tensor, nn

from dsno import Cosine, GaussianMixture, SolverSampler
from dsno.condition import Cond
from dsno.denoise import Guided
from dsno.distillation.guided import guided, stochastic_sampler
from dsno.distillation.stages import Given
from dsno.grids import uniform
from dsno.nets.unet import time_embedding
from dsno.seeds import noise, seed_range
from dsno.students.flowmap import FlowMap, TwoTime
from dsno.students.samplers import FlowMapSampler
from dsno.train import TrainConfig, train

SCHEDULE, MODES, NULL = Cosine(), 8, 2
WEIGHTS = (0.0, 1.0, 4.0)
PASSES = (1, 2, 4, 8, 16)


def mixture() -> GaussianMixture:
    angle = 2 * torch.pi * torch.arange(MODES) / MODES
    means = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixture(SCHEDULE, means, 0.25, labels=torch.arange(MODES) % 2)


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


class Perceptron(nn.Module):
    """Hidden layers on the point, each told the time and the class."""

    def __init__(self, width: int, depth: int = 3) -> None:
        super().__init__()
        self.time, self.label, self.stem = nn.Linear(32, width), nn.Embedding(2, width), nn.Linear(2, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.told = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        emb = nn.functional.silu(self.time(time_embedding(t, 32).to(x.dtype)) + self.label(cond))
        h = self.stem(x)
        for hidden, told in zip(self.hidden, self.told, strict=True):
            h = h + nn.functional.silu(hidden(h) + told(emb))
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

    def __init__(self, teacher: Guided, count: int) -> None:
        self.seeds = seed_range(10_000_000, count)
        self.z, self.labels = noise(self.seeds, (2,)), torch.arange(count) % 2
        self.reference = {w: self.run(SolverSampler(teacher, SCHEDULE, uniform(256)), w) for w in WEIGHTS}

    def cond(self, w: float) -> dict[str, Tensor]:
        return {"": self.labels, "weight": torch.full((len(self.z),), w)}

    def run(self, sampler: SolverSampler | FlowMapSampler, w: float) -> Tensor:
        return sampler(self.z, self.cond(w), self.seeds).sample

    def errors(self, sampler: SolverSampler | FlowMapSampler) -> dict[str, float]:
        return {f"{w:g}": rmse(self.run(sampler, w), self.reference[w]) for w in WEIGHTS}

    def shuffled(self, student: FlowMap) -> tuple[float, float]:
        """One-pass error over all weights together when each row is told its weight, and when it is told another row's."""
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


def student_of(
    teacher: Guided,
    source: GaussianMixture,
    held: Held,
    arguments: argparse.Namespace,
    seed: int,
    passes: int,
    stochastic: bool,
) -> tuple[FlowMap, dict[str, dict[str, float]], float]:
    """A student, its errors after each stage on the grid of that stage, and the CPU seconds its training took."""
    torch.manual_seed(seed)
    net = TwoTime(Perceptron(arguments.width), {"time": arguments.width}, guidance=True)
    student = FlowMap(net, SCHEDULE, "v")
    x = source.sample(65536, torch.Generator().manual_seed(seed))
    # Which class a sample is of: that of the nearest mode, ten standard deviations from the next of its own class.
    labels = torch.cdist(x, source.means).argmin(1) % 2
    given = Given(
        teacher, SCHEDULE, arguments.steps, arguments.batch, seed, x, labels, passes=passes, guidance=(0.0, 4.0)
    )
    errors, seconds = {}, 0.0
    for stage in guided(student, given, stochastic=stochastic):
        model, objective = stage.make(student)
        config = TrainConfig(
            stage.steps,
            arguments.lr,
            max(stage.steps // 10, 1),
            ema=0.99,
            checkpoint_every=10**9,
            log_every=10**9,
            seed=seed,
        )
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            train(model, objective, config, Path(folder) / "run")
        seconds += time.process_time() - began
        steps = 32 if stage.name == "guidance" else int(stage.name.removeprefix("steps-"))
        errors[stage.name] = held.errors(FlowMapSampler(student, uniform(steps)))
        print(seed, stage.name, stage.steps, {w: round(e, 3) for w, e in errors[stage.name].items()}, flush=True)
    return student, errors, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and a tenth of the steps, nothing written")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.seeds = arguments.steps // 10, 1
    torch.set_num_threads(1)
    source = mixture()
    teacher = Guided(Branches(source), torch.tensor(NULL))
    held = Held(teacher, 2048)
    of_teacher = {str(n): held.errors(SolverSampler(teacher, SCHEDULE, uniform(n))) for n in PASSES}
    print("teacher", of_teacher, flush=True)
    runs = []
    for seed in range(arguments.seeds):
        student, errors, seconds = student_of(teacher, source, held, arguments, seed, 1, False)
        told, shuffled = held.shuffled(student)
        runs.append({"errors": errors, "told": told, "shuffled": shuffled, "seconds": seconds})
        print(f"seed {seed}: {seconds:.0f} s, told its weight {told:.3f}, another row's {shuffled:.3f}", flush=True)
    student, _, _ = student_of(teacher, source, held, arguments, 0, 4, True)
    samplers = {
        "stochastic": stochastic_sampler(student),
        "deterministic": FlowMapSampler(student, uniform(4)),
        "teacher": SolverSampler(teacher, SCHEDULE, uniform(4)),
    }
    laws = {name: held.distances(sampler) for name, sampler in samplers.items()}
    print("four passes, distance of the laws", laws, flush=True)
    if arguments.quick:
        return
    stages = list(runs[0]["errors"])
    mean = {k: {f"{w:g}": sum(r["errors"][k][f"{w:g}"] for r in runs) / len(runs) for w in WEIGHTS} for k in stages}
    ratio = sum(r["shuffled"] / r["told"] for r in runs) / len(runs)
    average = {name: sum(law.values()) / len(law) for name, law in laws.items()}
    write(
        "guided",
        f"two classes on alternating modes of a ring (radius 2, std 0.25), cosine schedule, weights uniform in [0, 4]; width "
        f"{arguments.width}, {arguments.steps} steps of {arguments.batch} in all, Adam at {arguments.lr:g} with a cosine decay in "
        f"each stage, mean of {arguments.seeds} seeds; RMSE over 2048 held-out noises to DDIM in 256 steps of the exactly guided "
        "teacher, which costs two evaluations a step; distances of laws are sliced 2-Wasserstein, mean over classes and weights",
        [
            *(claim(f"one pass, weight {w}: RMSE", e, 0.33, "<=") for w, e in mean["steps-1"].items()),
            *(claim(f"stage guidance, 32 steps, weight {w}: RMSE", e, 0.33, "<=") for w, e in mean["guidance"].items()),
            claim("RMSE told another row's weight over RMSE told its own", ratio, 1.1, ">="),
            claim("training, CPU seconds, most of the seeds", max(r["seconds"] for r in runs), 60, "<="),
            claim(
                "stochastic sampler in 4 passes: distance of the law", average["stochastic"], average["teacher"], "<="
            ),
        ],
        teacher=of_teacher,
        student=mean,
        seeds=runs,
        laws_of_four_passes=laws,
    )


if __name__ == "__main__":
    main()
