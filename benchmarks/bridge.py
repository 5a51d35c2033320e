"""From one sample to another in few calls: the samplers of bridges, where everything is known.

    python benchmarks/bridge.py

Claims: behind the stochastic start Heun's steps are of second order, DBIM's of first, second and third; without its
noise all samples of one x_T are one; the bias of the start grows as it ends earlier; ODES3 is ahead of the ancestral
sampler at 13 and 21 calls, and behind it at 5; no other t_1 and exponent than the defaults is much better over all
bridges and budgets. A law at the end that is farther than these say refutes it. Pairs are mixtures seen through a
matrix with noise, so the denoiser and p(x_0 | x_T) are closed forms; distances of laws are sliced 2-Wasserstein, mean
over several x_T, and two draws of the law itself are as far apart as `floor`. A sampler that has no grid of so many
calls takes fewer, never more. Pieces are kept under --runs; the script continues where it was stopped. Writes
benchmarks/results/bridge.json and docs/images/bridge.png.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from _common import Claim, claim, kept, mean_and_spread, parse, parser, pyplot, runs_of, save, tidy, write
from torch import Tensor

from dsno.bridge.closed import PairedMixture
from dsno.bridge.coefficients import DDBMVE, DDBMVP, I2SB, Bridge, BrownianBridge, Pinned
from dsno.bridge.sampler import BRIDGE_STEPS, EXPONENT, BridgeSampler, bridge_grid, cross, most_calls
from dsno.grids import uniform
from dsno.seeds import noise, seed_range
from dsno.teachers.closed import Gaussian

BRIDGES: dict[str, Bridge] = {
    "Brownian": BrownianBridge(),
    "I2SB": I2SB(),
    "DDBM-VP": DDBMVP(),
    "DDBM-VE": DDBMVE(),
}
ORDERS = {"euler": 1, "dbim1": 1, "dbim2": 2, "dbim3": 3, "odes3": 2, "odes3-exponential": 2}
BIASES = (0.999, 0.99, 0.95, 0.9, 0.8, 0.5)
CALLS = (1, 2, 5, 9, 13, 21, 41, 101)
SWEPT = (5, 9, 13, 21)
"""Budgets over which the start and the grid are swept."""
SHARES, EXPONENTS = (0.7, 0.8, 0.9, 0.95, 0.98), (1.0, 1.5, 2.0, 3.0)
TUNED = ("dbim2", "odes3")


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    count: int = 4000
    """Samples of a law."""
    starts: int = 4
    """x_T whose laws are compared."""
    steps: tuple[int, int] = (192, 384)
    """Between which the order is taken."""
    calls: tuple[int, ...] = CALLS
    swept: tuple[int, ...] = SWEPT
    shares: tuple[float | None, ...] = (None, *SHARES)
    """Of the variance, where the start ends; None is the default."""
    exponents: tuple[float, ...] = EXPONENTS


QUICK = Size(200, 2, (16, 32), (1, 2, 5, 13, 21), (5, 13), (None, 0.95), (1.5, 3.0))


def pairs(bridge: Bridge) -> PairedMixture:
    """Eight narrow components of the plane, seen through a matrix of any kind."""
    g = torch.Generator().manual_seed(0)
    means, A = torch.randn(8, 2, dtype=torch.float64, generator=g), torch.randn(2, 2, dtype=torch.float64, generator=g)
    return PairedMixture(bridge, means, 0.05, 0.7 / math.sqrt(2) * A, 0.3)


def sliced(a: Tensor, b: Tensor) -> float:
    """2-Wasserstein distance of two equally large sets of points, root mean square over 64 directions."""
    angle = torch.pi * torch.arange(64, dtype=a.dtype) / 64
    directions = torch.stack([angle.cos(), angle.sin()])
    return float(((a @ directions).sort(0).values - (b @ directions).sort(0).values).square().mean().sqrt())


class Laws:
    """Some x_T of one bridge, and draws of p(x_0 | x_T) of each."""

    def __init__(self, bridge: Bridge, size: Size) -> None:
        self.bridge, self.teacher, self.size = bridge, pairs(bridge), size
        g = torch.Generator().manual_seed(1)
        self.starts = [x.expand(size.count, 2) for x in self.teacher.pairs(size.starts, g)[0]]
        self.exact = [self.teacher.sample(x, g) for x in self.starts]
        self.others = [self.teacher.sample(x, g) for x in self.starts]
        self.seeds = seed_range(0, size.count)

    def floor(self) -> float:
        """How far apart two draws of one law are."""
        return self._mean([sliced(a, b) for a, b in zip(self.exact, self.others, strict=True)])

    def distance(self, name: str, calls: int, share: float | None = None, exponent: float = EXPONENT) -> float:
        """Of a sampler with at most so many calls; where its start ends is given by the share of the variance."""
        t_1 = None if share is None else float(self.bridge.time(torch.tensor(share, dtype=torch.float64)))
        sampler = BridgeSampler.of_calls(self.teacher, self.bridge, most_calls(name, calls), name, t_1, exponent)
        found = [sampler(x, seeds=self.seeds).sample for x in self.starts]
        return self._mean([sliced(a, b) for a, b in zip(found, self.exact, strict=True)])

    @staticmethod
    def _mean(values: Sequence[float]) -> float:
        return mean_and_spread(values)["mean"]


# What is measured


def orders(size: Size) -> dict[str, dict[str, float]]:
    """The order of each step from a state at 0.9 to 0.1 on a Gaussian, whose flow is known."""
    found: dict[str, dict[str, float]] = {}
    scale = torch.tensor([[1.2, 0.0], [0.0, 0.3]], dtype=torch.float64)
    start = torch.tensor([[0.7, -0.4]], dtype=torch.float64).expand(8, 2)
    for label, bridge in BRIDGES.items():
        if label == "I2SB":  # its rate has a kink in the middle, where a step in t is of first order
            continue
        teacher = PairedMixture(bridge, torch.tensor([[1.0, 0.2]], dtype=torch.float64), 0.8, scale, 0.3)
        _, m, v = teacher.posterior(start[:1])
        flow = Gaussian(Pinned(bridge), m[0, 0] @ teacher.V.mT, v[0].sqrt() @ teacher.V.mT.abs()).flow
        (a_t, _, c_t), (a_s, _, _) = bridge.at(0.9), bridge.at(0.1)
        y = c_t * noise(seed_range(0, 8), (2,), dtype=torch.float64)
        exact = flow(y, 0.9, 0.1) + a_s * start
        for name in ORDERS:
            errors = []
            for N in size.steps:
                step, grid = BRIDGE_STEPS[name].make(), uniform(N, 0.9, 0.1)
                errors.append(cross(teacher, bridge, start, grid, step, x=y + a_t * start).sample - exact)
            coarse, fine = (float(e.abs().max()) for e in errors)
            found.setdefault(name, {})[label] = math.log2(coarse / fine)
    return found


def start_alone(size: Size) -> dict[str, Any]:
    """The spread over samples without the noise of the start and with it, and the bias of the law at t_1."""
    laws = Laws(BRIDGES["Brownian"], size)
    grid, z = bridge_grid(laws.bridge, 11), noise(laws.seeds, (2,), dtype=torch.float64)
    spread = {
        name: max(float(cross(laws.teacher, laws.bridge, x, grid, z=given).sample.std(0).max()) for x in laws.starts)
        for name, given in (("silent", torch.zeros_like(z)), ("started", z))
    }
    bias = {}
    for t_1 in BIASES:
        a, b, c = laws.bridge.at(t_1)
        found = []
        for x, x_0 in zip(laws.starts, laws.exact, strict=True):
            begun = cross(laws.teacher, laws.bridge, x, [1.0, t_1], z=z).sample
            found.append(sliced(begun, a * x + b * x_0 + c * z))
        bias[f"{t_1:g}"] = mean_and_spread(found)["mean"]
    return {"spread": spread, "bias": bias}


def ends(label: str, size: Size) -> dict[str, Any]:
    """The distance of every sampler's law by calls, on one bridge."""
    laws = Laws(BRIDGES[label], size)
    by_name = {
        name: {
            str(calls): {"calls": most_calls(name, calls), "distance": laws.distance(name, calls)}
            for calls in size.calls
        }
        for name in BRIDGE_STEPS
    }
    return {"floor": laws.floor(), "samplers": by_name}


def sweep(label: str, size: Size) -> dict[str, Any]:
    """The distance by where the start ends and by the exponent of the grid, of the deterministic samplers."""
    laws = Laws(BRIDGES[label], size)
    return {
        name: {
            f"{'default' if share is None else format(share, 'g')}, {exponent:g}": {
                str(c): laws.distance(name, c, share, exponent) for c in size.swept
            }
            for share in size.shares
            for exponent in size.exponents
        }
        for name in TUNED
    }


def regrets(swept: Mapping[str, Any], name: str) -> dict[str, float]:
    """By setting, the mean over bridges and budgets of how much farther it is than the best one there, as a ratio."""
    found: dict[str, list[float]] = {}
    for bridge in swept.values():
        settings = bridge[name]
        for calls in next(iter(settings.values())):
            best = min(by_calls[calls] for by_calls in settings.values())
            for setting, by_calls in settings.items():
                found.setdefault(setting, []).append(by_calls[calls] / best)
    return {setting: sum(ratios) / len(ratios) for setting, ratios in found.items()}


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    claims = [
        claim(f"{name}: largest difference from order {order}", max(abs(o - order) for o in found.values()), 0.2, "<=")
        for name, order in ORDERS.items()
        for found in (numbers["orders"][name],)
    ]
    spread, bias = numbers["start"]["spread"], [*numbers["start"]["bias"].values()]
    claims += [
        claim("spread over samples of one x_T without the noise of the start", spread["silent"], 0.0, "<="),
        claim("the same with it", spread["started"], 0.1, ">="),
        claim("least growth of the start's bias from one t_1 to the next", min(_ratios(bias)), 1.0, ">="),
    ]

    def ratios(name: str, calls: int) -> list[float]:
        """Over the ancestral sampler's distance, bridge by bridge."""
        ends = [found["samplers"] for found in numbers["ends"].values()]
        return [of[name][str(calls)]["distance"] / of["ancestral"][str(calls)]["distance"] for of in ends]

    for name, calls, direction in (("odes3", 13, "<="), ("odes3", 21, "<="), ("odes3", 5, ">="), ("dbim2", 13, "<=")):
        found, text = ratios(name, calls), f"{calls} calls: distance of {name} over that of the ancestral sampler"
        claims.append(claim(f"{text}, mean of the bridges", sum(found) / len(found), 1.0, direction))
        worst = max(found) if direction == "<=" else min(found)
        claims.append(claim(f"{text}, the bridge where it is least so", worst, 1.0, direction))
    for name in TUNED:
        found = regrets(numbers["sweep"], name)
        ours = found[f"default, {EXPONENT:g}"] / min(found.values())
        claims.append(claim(f"{name}: the defaults of t_1 and exponent over the best ones", ours, 1.2, "<="))
    return claims


def _ratios(values: Sequence[float]) -> list[float]:
    return [later / earlier for earlier, later in pairwise(values)]


def options() -> argparse.ArgumentParser:
    made = parser(__file__, __doc__)
    made.add_argument("--runs", type=Path, help="where pieces are kept; runs/bridge by default")
    return made


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(options(), given)
    torch.set_num_threads(1)
    size, runs = QUICK if arguments.quick else Size(), runs_of(arguments, "runs/bridge")
    numbers: dict[str, Any] = {
        "orders": kept(runs / "orders.json", partial(orders, size)),
        "start": kept(runs / "start.json", partial(start_alone, size)),
    }
    for part, measure in (("ends", ends), ("sweep", sweep)):
        numbers[part] = {label: kept(runs / f"{part}-{label}.json", partial(measure, label, size)) for label in BRIDGES}
        print(part, flush=True)
    picture(numbers, arguments)
    write(
        arguments,
        "bridge",
        "eight components of standard deviation 0.05 in the plane, seen through a matrix with noise 0.3; "
        f"{size.starts} x_T, {size.count} samples of each; start and exponent are the library's defaults "
        "where nothing else is said",
        judged(numbers),
        **numbers,
    )


def picture(numbers: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    figure, axes = pyplot().subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    axes[0].loglog([1 - float(t) for t in numbers["start"]["bias"]], [*numbers["start"]["bias"].values()], marker="o")
    axes[0].set(xlabel=r"$1 - t_1$", ylabel="distance of the law at $t_1$", title="Brownian: the start alone")
    for axis, label in zip(axes[1:], ("I2SB", "DDBM-VP"), strict=True):
        found = numbers["ends"][label]
        for name, by_calls in found["samplers"].items():
            x = [entry["calls"] for entry in by_calls.values()]
            axis.loglog(x, [entry["distance"] for entry in by_calls.values()], marker=".", label=name)
        axis.axhline(found["floor"], color="grey", linestyle=":")
        axis.set(xlabel="network calls", ylabel="distance of the law of the samples", title=label)
    axes[-1].legend(frameon=False, fontsize=7)
    for axis in axes:
        tidy(axis, "both")
    save(figure, arguments, "bridge.png", 150)


if __name__ == "__main__":
    main()
