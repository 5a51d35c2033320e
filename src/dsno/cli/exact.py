"""What `dsno sample --exact` draws: the teacher's own samples in few serial rounds, their cost, and how exact they are.

An exact sampler's samples are those of its chain up to a tolerance, so running the chain step by step from the same
noise gives each sample's error. Speculative sampling draws from the chain's law instead: there is no error to show.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from dsno.condition import map_cond
from dsno.parallel import EXACT, Exact, Speculative
from dsno.seeds import noise
from dsno.solvers.run import initial_state
from dsno.train import Report
from dsno.trajectories.labels import Label
from dsno.trajectory import Trace

__all__ = ["OPTIONS", "Solved", "own_options", "solve"]

OPTIONS = ("tolerance", "window", "order", "memory", "blocks")
"""The options of `sample` that are one or another exact sampler's."""

BATCH = 64


def own_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, of those of an exact sampler.

    Raises:
        ValueError: for one that the sampler does not have.
    """
    known = {field.name for field in fields(EXACT[name])}
    asked = {option: value for option, value in given.items() if value is not None}
    for option in asked:
        if option not in known:
            takes = ", ".join(f"--{n}" for n in OPTIONS if n in known)
            raise ValueError(f"--{option} is no option of {name}, which takes {takes}")
    return asked


@dataclass(frozen=True)
class Solved:
    """What an exact sampler made.

    Attributes:
        sampler: The sampler.
        samples: What it made, (B, *shape), on the host.
        traces: What each sample cost, a trace a batch.
        seconds: How long it took.
        reference: The same samples of its chain run step by step, (B, *shape), if they were asked for.
    """

    sampler: Exact
    samples: Tensor
    traces: tuple[Trace, ...]
    seconds: float
    reference: Tensor | None

    def __str__(self) -> str:
        """Rounds, rows and the error, a line each."""
        N = len(self.sampler.chain)
        rounds, rows, drafts = (
            torch.cat([getattr(trace, name) for trace in self.traces]).double()
            for name in ("rounds", "rows", "draft_rounds")
        )
        drafted = f"; and {drafts.mean():.1f} passes of the draft" if drafts.any() else ""
        lines = [
            f"{type(self.sampler).__name__}, chain of {N} steps, eta {self.sampler.chain.eta:g}",
            f"rounds      mean {rounds.mean():.1f}, worst {rounds.max():.0f} of {N}{drafted}",
            f"rows        mean {rows.mean():.0f}, worst {rows.max():.0f} network evaluations a sample "
            f"({N} sequentially)",
        ]
        if isinstance(self.sampler, Speculative):
            held = torch.cat([trace.history.flatten() for trace in self.traces]).nanmean()
            lines.append(
                f"accepted    {100 * held:.0f} % of a window on average; the law is the chain's, so there is no "
                "error to show"
            )
        elif self.reference is not None:
            each = (self.samples - self.reference).flatten(1).square().mean(1).sqrt()
            lines.append(
                f"error       median {each.median():.2g}, worst {each.max():.2g}, RMS over pixels to the sequential "
                "chain"
            )
        return "\n".join(lines)


def solve(
    sampler: Exact,
    seeds: Tensor,
    shape: tuple[int, ...],
    condition: Label | None,
    device: torch.device,
    verify: bool,
    report: Report,
) -> Solved:
    """Draw the samples of `seeds` (B,), of the given `shape`, a batch after another.

    Arguments:
        sampler: The sampler, on `device`.
        seeds: A sample's noise and condition follow from its seed.
        shape: The shape of one sample.
        condition: What the seeds are told, or None.
        device: Where to run.
        verify: Run the sampler's chain step by step, too; not of speculative sampling.
        report: Told of the progress.
    """
    chain, traces, samples, references, seconds = sampler.chain, list[Trace](), list[Tensor](), list[Tensor](), 0.0
    for rows in seeds.split(BATCH):
        z = noise(rows, shape, device=device)
        cond = map_cond(lambda c: c.to(device), None if condition is None else condition(rows))
        began = time.perf_counter()
        made = sampler(z, cond, rows)
        seconds += time.perf_counter() - began
        samples.append(made.sample)
        if made.trace is not None:
            traces.append(made.trace)
        if verify and not isinstance(sampler, Speculative):
            tape = chain.tape(rows, shape).to(device) if chain.eta else None
            with torch.no_grad():
                references.append(chain.run(sampler.denoiser, initial_state(chain.schedule, z), tape, cond).sample)
        report("sample", min(len(samples) * BATCH, len(seeds)), len(seeds), "")
    reference = torch.cat(references).cpu() if references else None
    return Solved(sampler, torch.cat(samples).cpu(), tuple(traces), seconds, reference)
