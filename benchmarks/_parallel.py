"""What exact samplers cost and how near they come to their chain; and all of that on mixtures, in closed form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from _common import Claim, claim, eight_modes
from torch import Tensor

from dsno.denoise import Denoiser
from dsno.grids import uniform
from dsno.parallel.picard import Picard
from dsno.parallel.rounds import Exact
from dsno.parallel.speculative import Speculative
from dsno.parallel.srds import SRDS
from dsno.parallel.taa import ParaTAA
from dsno.report.compare import HELD_OUT
from dsno.schedule import Cosine
from dsno.seeds import noise, seed_range
from dsno.solvers.chain import Chain
from dsno.teachers.closed import GaussianMixture
from dsno.trajectory import Trajectory

__all__ = ["Mixtures", "costs", "errors", "judged", "mixtures", "sequential", "show"]


def sequential(chain: Chain, teacher: Denoiser, z: Tensor, seeds: Tensor) -> Trajectory:
    """The chain's own run, step by step."""
    with torch.no_grad():
        tape = chain.tape(seeds, z.shape[1:], z.dtype) if chain.eta else None
        return chain.run(teacher, chain.schedule.at(float(chain.grid[0]))[1] * z, tape)


def costs(made: Trajectory) -> dict[str, float]:
    """Rounds and rows, mean and worst of the batch; the student's apart."""
    if (t := made.trace) is None:
        return {"rounds": made.rounds, "rounds_max": made.rounds, "rows": made.nfe, "rows_max": made.nfe}
    rounds = (t.rounds + t.draft_rounds).double()
    return {
        "rounds": float(rounds.mean()),
        "rounds_max": float(rounds.max()),
        "rows": float(t.rows.double().mean()),
        "rows_max": float(t.rows.max()),
        "draft_rounds": float(t.draft_rounds.double().mean()),
    }


def errors(made: Trajectory, reference: Trajectory, prefix: str = "") -> dict[str, float]:
    """RMS of all samples, and the median and worst of their own."""
    each = (made.sample - reference.sample).flatten(1).square().mean(1)
    own = each.sqrt()
    found = {"rmse": each.mean().sqrt(), "median": own.median(), "max": own.max()}
    return {f"{prefix}{name}": float(value) for name, value in found.items()}


def show(entry: Mapping[str, Any]) -> None:
    print(" ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in entry.items()), flush=True)


# Mixtures


@dataclass(frozen=True)
class Mixtures:
    """What is measured on mixtures."""

    noises: int = 64
    draws: int = 500
    """Noises of the speculative samplers, which are exact in law alone."""
    chains: tuple[tuple[int, float], ...] = ((100, 0.0), (500, 0.0), (100, 1.0))
    """Steps and eta of the chains of the fixed-point iterations."""
    srds: tuple[int, ...] = (25, 100, 256, 1024)
    """Steps of the chains of SRDS."""
    speculative: tuple[tuple[int, int], ...] = ((50, 10), (200, 20), (1000, 20), (1000, 60))
    """Steps and windows of the speculative samplers."""


SPECULATIVE: dict[str, dict[str, bool]] = {
    "speculative": {},
    "speculative, adaptive window": {"adaptive": True},
    "speculative, x0 frozen": {"reuse": False},
    "speculative, x0 frozen, two calls": {"reuse": False, "refresh": True},
}
LINEAR: dict[str, dict[str, Any]] = {
    "D held": {"data_std": 1e-3},
    "data_std 0.5": {"data_std": 0.5},
    "eps held": {"data_std": 1e3},
    "eps held, noise repeated": {"data_std": 1e3, "repeat_noise": True},
}
"""ParaTAA's linear part: data of almost no spread hold D between rounds, wide data the noise; the last is published."""


def mixture(d: int) -> GaussianMixture:
    """Eight modes of standard deviation 0.2, on the unit circle or standard normal."""
    if d == 2:
        return eight_modes(Cosine(), 1, 0.2, torch.float64)
    means = torch.randn(8, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return GaussianMixture(Cosine(), means, 0.2)


def mixtures(size: Mixtures) -> dict[str, Any]:
    """Rows of every sampler on every chain, and the iterations of SRDS to a small mean error on the longest."""
    rows, numbers = [], {}
    for d in (2, 64):
        teacher, seeds = mixture(d), seed_range(HELD_OUT, size.noises)
        z, draws = noise(seeds, (d,), dtype=torch.float64), seed_range(HELD_OUT, size.draws)
        several = noise(draws, (d,), dtype=torch.float64)
        for made in (
            fixed_points(size, teacher, z, seeds),
            shooting(size, teacher, z, seeds),
            speculation(size, teacher, several, draws),
        ):
            for row in made:
                rows.append({"d": d, **row})
                show(rows[-1])
        if d == 64:
            chain = Chain(Cosine(), uniform(max(size.srds)))
            numbers["srds_iterations"] = iterations_to(1e-3, teacher, chain, z, seeds)
    return {"rows": rows, **numbers}


def fixed_points(size: Mixtures, teacher: GaussianMixture, z: Tensor, seeds: Tensor) -> Iterator[dict[str, Any]]:
    """Picard and ParaTAA of several memories."""
    for steps, eta in size.chains:
        chain = Chain(Cosine(), uniform(steps), eta)
        reference = sequential(chain, teacher, z, seeds)
        methods: dict[str, Exact] = {"Picard": Picard(teacher, chain, tolerance=1e-4)}
        if eta:
            methods["Picard, noise repeated"] = Picard(teacher, chain, tolerance=1e-4, repeat_noise=True)
        for name, linear in LINEAR.items():
            for m in (1, 2, 3):
                sampler = ParaTAA(teacher, chain, memory=m, tolerance=1e-4, **linear)
                methods[f"order N, m = {m}, {name}"] = sampler
        methods["order 8, m = 2, data_std 0.5"] = ParaTAA(teacher, chain, order=8, tolerance=1e-4)
        for name, sampler in methods.items():
            made = sampler(z, seeds=seeds)
            assert made.trace is not None
            below = (made.trace.history >= 1e-3).nan_to_num(0).flip(0).cummax(0).values.sum(0) + 1.0
            residual = {"residual_rounds": float(below.mean()), "residual_rounds_max": float(below.max())}
            yield {"N": steps, "eta": eta, "method": name, **costs(made), **errors(made, reference), **residual}


def shooting(size: Mixtures, teacher: GaussianMixture, z: Tensor, seeds: Tensor) -> Iterator[dict[str, Any]]:
    """SRDS."""
    for steps in size.srds:
        chain = Chain(Cosine(), uniform(steps))
        reference = sequential(chain, teacher, z, seeds)
        for pipelined in (False, True):
            made = SRDS(teacher, chain, tolerance=1e-3, pipelined=pipelined)(z, seeds=seeds)
            assert made.trace is not None
            iterations = int((~made.trace.history.isnan()).sum(0).max())
            name = f"SRDS {'pipelined' if pipelined else 'plain'}"
            found = costs(made) | errors(made, reference) | {"iterations": iterations}
            yield {"N": steps, "eta": 0.0, "method": name, **found}


def speculation(size: Mixtures, teacher: GaussianMixture, z: Tensor, seeds: Tensor) -> Iterator[dict[str, Any]]:
    """Speculative samplers."""
    for steps, window in size.speculative:
        chain = Chain(Cosine(), uniform(steps), 1.0)
        for name, options in SPECULATIVE.items():
            made = Speculative(teacher, chain, window=window, **options)(z, seeds=seeds)
            yield {"N": steps, "eta": 1.0, "method": name, "L": window, **costs(made)}


def iterations_to(error: float, teacher: Denoiser, chain: Chain, z: Tensor, seeds: Tensor) -> int:
    """Parareal iterations until the worst sample's mean absolute error is below `error`."""
    reference = sequential(chain, teacher, z, seeds)
    for iterations in range(1, len(chain)):
        made = SRDS(teacher, chain, tolerance=None, iterations=iterations)(z)
        if float((made.sample - reference.sample).abs().mean(1).max()) < error:
            return iterations
    return len(chain)


BOUNDS = {2: {1: 9.2, 3: 8.2}, 64: {1: 9.8, 3: 9.2}}
"""Published rounds to a residual of 1e-3 of DDIM in 100 steps, by dimension and memory."""
PUBLISHED = {2: (17.8, 9.3, 9.0), 64: (21.0, 15.4, 14.4)}
"""Rounds of the published ParaTAA on these chains by independent code, by dimension, for m = 1, 2, 3."""
ROUNDS = {2: (1000, 20, 58), 64: (200, 20, 27)}
"""Steps, window and published mean rounds of a speculative sampler, by dimension."""


def judged(numbers: Mapping[str, Any]) -> list[Claim]:
    """Each published figure that was measured again."""
    rows, claims = numbers["rows"], []

    def the(d: int, steps: int, method: str, **said: Any) -> dict[str, Any] | None:
        sought = {"d": d, "N": steps, "method": method, **said}
        return next((r for r in rows if sought.items() <= r.items()), None)

    for d in BOUNDS:
        for m, bound in BOUNDS[d].items():
            if row := the(d, 100, f"order N, m = {m}, data_std 0.5", eta=0.0):
                title = f"DDIM N = 100, d = {d}, order N, m = {m}: rounds to a residual of 1e-3"
                claims.append(claim(title, row["residual_rounds"], bound, "<="))
        for m, expected in enumerate(PUBLISHED[d], start=1):
            found = the(d, 100, f"order N, m = {m}, eps held, noise repeated", eta=0.0)
            ours = the(d, 100, f"order N, m = {m}, data_std 0.5", eta=0.0)
            if found and ours:
                title = f"ParaTAA as published, d = {d}, m = {m}"
                off = abs(found["rounds"] - expected)
                claims.append(claim(f"{title}: rounds, off {expected:g} by", off, 0.1, "<="))
                claims.append(claim(f"{title}: ours over its rounds", ours["rounds"] / found["rounds"], 1, "<="))
        if d == 64 and the(d, 1024, "SRDS plain"):
            title = "SRDS N = 1024, d = 64: iterations to a mean L1 error of 1e-3, worst of 64"
            claims.append(claim(title, numbers["srds_iterations"], 2, "<="))
        steps, window, bound = ROUNDS[d]
        if row := the(d, steps, "speculative", L=window):
            title = f"speculative, one call a window, d = {d}, N = {steps}, L = {window}: mean rounds"
            claims.append(claim(title, row["rounds"], bound, "<="))
    return claims
