r"""Parallel decoding distillation (PDD): heads that follow the teacher's own solver, at the student's own states.

A `dsno.students.heads.ParallelDecoder` says from one state $x_n$ what the mean velocities $u_n(k)$ of the intervals of
a block are, $k = n, \dots, m - 1$; where it then is before interval k,

$$ \bar y_k = y_n + \sum_{j=n}^{k-1} (\tau_{j+1} - \tau_j) \, u_n(j), $$

the teacher takes one step, and head k learns its mean velocity,

$$ L = \mathbb E_{x_n, k} \big\| u_n(k) - \mathrm{sg}\, u^*_k(\bar y_k) \big\|^2, \qquad
   u^*(y, \tau) = \frac{y - D(x_t, t)}{\tau}, \quad \tau_{k + 1/2} = \tfrac12 (\tau_k + \tau_{k+1}), $$

| `step` | $u^*_k(y)$ | calls of the teacher |
|---|---|---|
| `euler` | $u^*(y, \tau_k)$ | 1 |
| `midpoint` | $u^*\big(y + (\tau_{k + 1/2} - \tau_k) \, u^*(y, \tau_k), \; \tau_{k + 1/2}\big)$ | 2 |

so that where the loss is 0 the student *is* that solver on its grid, from any of its blocks, to order 1 or 2 in the
length of an interval. No trajectories are solved, nothing is differentiated but the heads and the backbone, and no
second time is told.

Blocks begin at $x_n$ (`begin`):

| `rollout` | the student's own: a number of passes is drawn, then one of its blocks, and the ones before it are made |
|---|---|
| `samples` | clean samples, noised to $t_n$ |
| `trajectories` | stored states; $\bar y_k$ is then the stored one, too, and the velocity that of the stored interval |

The last is off-policy and asks no teacher. Every row of a batch learns a head of its own, evenly over the block.

Source: Shaul, Liu, Vahdat, Berner, 2026 (arXiv 2607.26004). There one k is drawn for the whole batch; here the last
layer runs for every head of the block, which costs little and averages over k.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from dsno.borrow import unwrapped
from dsno.condition import Cond, named
from dsno.denoise import Denoiser, Guided, Prediction, expand_like, innermost
from dsno.distillation.denoising import Denoising
from dsno.distillation.identity import Fresh
from dsno.distillation.regression import has_weight
from dsno.distillation.stages import Given, Stage
from dsno.engine import share_of
from dsno.nets.backbone import own_null, tokens_of
from dsno.seeds import generator, strata
from dsno.solvers.run import initial_state
from dsno.steer import as_label
from dsno.students.heads import ParallelDecoder, decoder_from_teacher
from dsno.trajectories.order import batches
from dsno.trajectories.sets import TrajectorySet

__all__ = ["Begin", "Decoding", "DecodingOptions", "Recorded", "Step", "decoding"]

Step = Literal["euler", "midpoint"]

Begin = Literal["rollout", "samples", "trajectories"]


class Rows(Protocol):
    """What blocks begin from: `noise` (B, *shape), or `x0` and `eps`, with their conditions."""

    @property
    def batch(self) -> int:
        """Rows per step, over all processes."""

    @property
    def seed(self) -> int:
        """With the step, determines the batch."""

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """Batches from step `start` on."""


class Decoding:
    """The objective of a `ParallelDecoder`, the loss above.

    Arguments:
        rows: Noises (`Fresh`), from which the student rolls out, or samples and noise (`Denoising`).
        decoder: Its grid, spans and schedule are read.
        teacher: $D$.
        step: Which step the teacher takes.

    Raises:
        ValueError: for an unknown step.
    """

    def __init__(self, rows: Rows, decoder: ParallelDecoder, teacher: Denoiser, step: Step = "midpoint") -> None:
        if step not in ("euler", "midpoint"):
            raise ValueError(f"unknown step {step!r}: expected euler or midpoint")
        self.rows, self.teacher, self.step = rows, teacher, step
        self.path, self.schedule, self.table = _Path(decoder), decoder.schedule, intervals(decoder)

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """The rows from step `start` on, with the `block` (n, m) of the step and the head of each row, `heads`."""
        for step, batch in enumerate(self.rows.batches(start, rank, world), start):
            yield {**batch, **self.path.drawn(self.rows, step, rank, world)}

    def start(self, student: nn.Module, batch: dict[str, Any]) -> Tensor:
        """$x_n$, (B, *shape): what the student's passes before the block make of the noise, or noised samples."""
        n, m = batch["block"]
        if "x0" in batch:
            alpha_n, sigma_n = self.schedule.at(self.path.grid[n])
            return cast(Tensor, alpha_n * batch["x0"] + sigma_n * batch["eps"])
        x = initial_state(self.schedule, batch["noise"], self.path.grid[0])
        with torch.no_grad():
            for i in range(0, n, m - n):
                x = student(x, i, i + m - n, batch.get("cond"))
        return x

    def __call__(self, student: nn.Module, batch: dict[str, Any]) -> Tensor:
        """The loss of one batch, a scalar."""
        (n, m), heads, cond = batch["block"], [*batch["heads"]], batch.get("cond")
        x = self.start(student, batch)
        y, u = self.path.velocities(student, x, n, m, cond)
        k = torch.tensor(heads, device=x.device) - n
        rows = torch.arange(len(x), device=x.device)
        with torch.no_grad():
            change = self.table[n:m, 3].to(u).reshape(1, -1, *[1] * (x.ndim - 1))
            moved = torch.cat([torch.zeros_like(u[:, :1]), (change * u).cumsum(1)], 1)
            taught = self.taught(y + moved[rows, k], self.table[heads], cond)
        return (u[rows, k] - taught).square().mean()

    def taught(self, y: Tensor, table: Tensor, cond: Cond | None = None) -> Tensor:
        """$u^*_k(y)$, (B, *shape) of states (B, *shape), each at its own interval: the rows of `intervals`, (B, 7)."""
        numbers = table.to(torch.promote_types(y.dtype, torch.float32)).to(y.device).unbind(1)
        t, scale, tau, change, *middle = numbers
        u = self._velocity(y, cond, t, scale, tau)
        if self.step == "euler":
            return u
        return self._velocity(y + expand_like(change / 2, y) * u, cond, *middle)

    def _velocity(self, y: Tensor, cond: Cond | None, t: Tensor, scale: Tensor, tau: Tensor) -> Tensor:
        return (y - self.teacher(expand_like(scale, y) * y, t, cond)) / expand_like(tau, y)


class Recorded:
    """The off-policy objective: stored states, and the mean velocities between them.

    Arguments:
        data: Trajectories that hold states.
        decoder: Its grid is the noise's time and the stored ones.
        batch: Rows per step, over all processes.
        seed: With the step, determines the batch.

    Raises:
        ValueError: if the trajectories hold no states, or their times are not the decoder's.
    """

    def __init__(self, data: TrajectorySet, decoder: ParallelDecoder, batch: int = 64, seed: int = 0) -> None:
        if "state" not in data.targets:
            raise ValueError(
                f"blocks begin at stored states, and these trajectories hold {data.targets}: generate them with "
                "targets=('state',)"
            )
        if not torch.equal(data.times, decoder.grid[1:]):
            raise ValueError(
                f"the trajectories have times {data.times.tolist()}, the decoder {decoder.grid[1:].tolist()}"
            )
        batches(data, batch, seed)  # Refuses sizes that do not fit now, before any work.
        self.data, self.batch, self.seed = data, batch, seed
        self.path, self.schedule, self.table = _Path(decoder), decoder.schedule, intervals(decoder)

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """Batches from step `start` on, with the `block` (n, m) of the step and the head of each row, `heads`."""
        for step, batch in enumerate(batches(self.data, self.batch, self.seed, start, rank, world), start):
            if "cond" in batch:
                batch["cond"] = as_label(batch["cond"])
            yield {**batch, **self.path.drawn(self, step, rank, world)}

    def __call__(self, student: nn.Module, batch: dict[str, Any]) -> Tensor:
        """The loss of one batch, a scalar; shapes as in `TrajectorySet`."""
        (n, m), heads = batch["block"], [*batch["heads"]]
        noise = initial_state(self.schedule, batch["noise"], self.path.grid[0])
        x = torch.cat([noise.unsqueeze(1), batch["state"].to(noise)], 1)
        k, rows = torch.tensor(heads, device=x.device), torch.arange(len(x), device=x.device)
        scale = torch.tensor(self.path.scales, dtype=torch.float64).to(x)
        before, behind = (x[rows, i] / expand_like(scale[i], noise) for i in (k, k + 1))
        taught = (behind - before) / expand_like(self.table[heads, 3].to(x), noise)
        _, u = self.path.velocities(student, x[:, n], n, m, batch.get("cond"))
        return (u[rows, k - n] - taught).square().mean()


class _Path:
    """What objectives read of a decoder, which they do not hold: its coordinates and blocks."""

    def __init__(self, decoder: ParallelDecoder) -> None:
        self.spans, self.count, self.tau, self.grid = decoder.spans, decoder.count, decoder.tau, decoder.grid.tolist()
        self.scales = [sum(decoder.schedule.at(t)) for t in self.grid]

    def drawn(self, rows: Any, step: int, rank: int, world: int) -> dict[str, Any]:
        """The block of a step and the heads of this share of its rows, a function of (seed, step).

        A number of passes is drawn, then one of its blocks; the heads cover the block evenly.
        """
        g = generator(rows.seed, step, 2)
        L = self.spans[int(torch.randint(len(self.spans), (), generator=g))]
        n = L * int(torch.randint(self.count // L, (), generator=g))
        B = rows.batch
        level = strata(B, g, torch.float64)
        heads = n + (L * level).long().clamp(max=L - 1)
        return {"block": (n, n + L), "heads": tuple(heads[share_of(B, rank, world)].tolist())}

    def velocities(self, student: nn.Module, x: Tensor, n: int, m: int, cond: Cond | None) -> tuple[Tensor, Tensor]:
        """$y_n$ (B, *shape), and $u_n(k)$ of the block, (B, m - n, *shape)."""
        y = x / self.scales[n]
        return y, (y.unsqueeze(1) - student(x, n, m, cond, each=True)) / self.tau[n]


def intervals(decoder: ParallelDecoder) -> Tensor:
    r"""What the teacher's step over each interval needs, (N, 7) float64 on the host.

    $t_k$, $\alpha_k + \sigma_k$, $\tau_k$, $\tau_{k+1} - \tau_k$; and at the middle in $\tau$ its time,
    $\alpha + \sigma$ and $\tau$.
    """
    schedule, grid, tau = decoder.schedule, decoder.grid, torch.tensor(decoder.tau, dtype=torch.float64)
    middle = (tau[1:] + tau[:-1]) / 2
    between = schedule.time(2 * ((1 - middle) / middle).log())
    scale, scale_between = (sum(schedule(t)) for t in (grid[:-1], between))
    return torch.stack([grid[:-1], scale, tau[:-1], tau.diff(), between, scale_between, middle], 1)  # type: ignore[list-item]


@dataclass(frozen=True)
class DecodingOptions:
    """Options of `decoding`."""

    heads: int = 16
    """Intervals of the path, each with a head of its own; of trajectories as many as they store."""
    least: int | None = None
    """The least span of a block, in heads: a pass for each is the most that it makes; a quarter of the heads by
    default."""
    most: int | None = None
    """The greatest span of a block; all heads by default, which is one pass."""
    step: Step = "midpoint"
    """The teacher's step over an interval: euler, or midpoint, of second order at twice the calls."""
    begin: Begin = "rollout"
    """What blocks begin from: the student's own states, without data; noised samples; or the states of trajectories,
    whose velocities it then learns."""

    @property
    def needs(self) -> tuple[Literal["samples", "trajectories"], ...]:
        """What it cannot do without beside the teacher."""
        return () if self.begin == "rollout" else (self.begin,)

    def student(self, teacher: Prediction, given: Given) -> ParallelDecoder:
        """A parallel decoder around a copy of the teacher.

        Raises:
            ValueError: as `decoder_from_teacher` does.
        """
        grid = None
        if self.begin == "trajectories":
            grid = torch.cat([torch.ones(1, dtype=torch.float64), given.solved.times])
        N = self.heads if grid is None else len(grid) - 1
        return decoder_from_teacher(teacher, N, _quarter(N) if self.least is None else self.least, self.most, grid)


def _quarter(N: int) -> int:
    """The span of the most passes up to four that divide N."""
    return N // max(passes for passes in (1, 2, 4) if N % passes == 0)


def decoding(student: ParallelDecoder, given: Given, options: DecodingOptions = DecodingOptions()) -> list[Stage]:
    """A parallel decoder on the teacher, in one stage.

    Raises:
        ValueError: for options that cannot be, or a student that is told a text, which cannot be drawn.
    """
    if options.begin not in ("rollout", "samples", "trajectories"):
        raise ValueError(f"unknown begin {options.begin!r}: expected rollout, samples or trajectories")
    objective: Decoding | Recorded
    if options.begin == "trajectories":
        if has_weight(given.solved):
            raise ValueError(
                "decoding is told no guidance weight, and these trajectories were solved for a range of them: make "
                "them with one weight"
            )
        objective = Recorded(given.solved, student, given.batch, given.seed)
    else:
        objective = Decoding(_rows(student, given, options), student, given.denoiser, options.step)
    return [Stage("decoding", given.steps, lambda student: (student, objective))]


def _rows(student: ParallelDecoder, given: Given, options: DecodingOptions) -> Rows:
    if options.begin == "samples":
        rows: Rows = Denoising(given.samples, given.schedule, "x0", given.labels, given.batch, given.seed)
    else:
        if tokens_of(getattr(unwrapped(student.net), "backbone", None)):
            raise ValueError(
                "decoding draws labels, and this student is told a text: give trajectories, begin='trajectories'"
            )
        teacher = innermost(given.denoiser)
        null = own_null(teacher) if isinstance(teacher, Prediction) else None
        rows = Fresh(given.schedule, student.shape, student.classes, null, given.batch, given.seed)
    names = list(named(given.denoiser.null)) if isinstance(given.denoiser, Guided) else [""]
    return rows if names == [""] else _Named(rows, names[0])


class _Named:
    """Rows whose label is told by name, as the null condition of their guided teacher is."""

    def __init__(self, rows: Rows, name: str) -> None:
        self.rows, self.name, self.batch, self.seed = rows, name, rows.batch, rows.seed

    def batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        for batch in self.rows.batches(start, rank, world):
            yield {**batch, "cond": {self.name: batch["cond"]}}
