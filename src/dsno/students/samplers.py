"""Students as samplers: one pass or a few, and the sampler of as many as a student was trained for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

from dsno.borrow import unwrapped
from dsno.condition import Cond
from dsno.grids import check_grid, even
from dsno.nets.backbone import tokens_of
from dsno.seeds import noise_tape
from dsno.solvers.run import initial_state
from dsno.students.flowmap import FlowMap
from dsno.students.heads import ParallelDecoder
from dsno.students.inputs import computing
from dsno.students.operator import TrajectoryStudent
from dsno.trajectory import Sampler, Trajectory, sampled

__all__ = [
    "DecoderSampler",
    "FlowMapSampler",
    "MultiPass",
    "OnePass",
    "Student",
    "passes_known",
    "passes_of",
    "sampler_of",
    "told_more",
]


@dataclass(frozen=True)
class OnePass:
    r"""A student as a `Sampler`: noise to trajectory in one network call.

    The trajectory's states are noise and the sample, for which alone the blocks behind the last temporal layer run;
    with `whole` they are noise and all the student's frames. A `x0` student's states are the formula's with its
    $\hat x_0$ in place of $h$, exact at the last frame.
    """

    student: TrajectoryStudent
    whole: bool = False

    def __call__(self, z: Tensor, cond: Cond | None = None, seeds: Tensor | None = None) -> Trajectory:
        return MultiPass(self.student, 1, self.whole)(z, cond, seeds)


@dataclass(frozen=True)
class MultiPass:
    r"""Draft, move to an inner frame, draft again: a student as a `Sampler` of one to M passes.

    Pass $i$ starts from the state $x_{t_j}$ that the pass before it made, with noise ($t = 1$) the first, and makes the
    frames up to the next inner one,

    $$ x_{t_m} = \alpha_m h_m + \sigma_m (x_{t_j} - \alpha_j h_m) / \sigma_j, \qquad
       h_m = h_m(x_{t_j}, t_j), \quad m > j; $$

    the last pass makes the rest. With the exact $h$ of `target="state"` this is the ODE's solution, whatever is passed
    through; with `target="x0"` an inner state is DDIM's, one step from the last start with the $\hat x_0$ of its own
    time, and the sample is exact for the state that the last pass starts from. One pass is `OnePass`.

    With `fresh` noise a pass makes its sample $x$, too, and the next one starts from that sample noised again, as a
    student of `identity` was trained to,

    $$ x_{t_j} = \alpha_j x + \sigma_j \epsilon, $$

    as consistency models do (Song et al., 2023, arXiv 2303.01469, algorithm 1): no ODE's solution, but what a pass gets
    wrong is drowned in noise instead of handed on.

    Arguments:
        student: A student that was trained from inner starts, if it is to make more than one pass.
        through: The number of passes, 1 to M, whose inner frames are spread evenly; or the inner frames themselves,
            indices increasing in [0, M - 2].
        whole: Whether all frames are made; else only those passed through and the last, for which alone the blocks
            behind the last temporal layer run.
        fresh: Whether inner passes start from the sample of the pass before, noised again; as the student was trained
            to by default.

    Raises:
        ValueError: for more passes than the student has frames, frames that do not increase or are not inner ones, or
            more than one pass of a student that starts from noise alone; when called without seeds where fresh noise is
            needed.
    """

    student: TrajectoryStudent
    through: Sequence[int] | int
    whole: bool = False
    fresh: bool | None = None

    def __post_init__(self) -> None:
        M = self.student.frames
        if isinstance(self.through, int) and not 1 <= self.through <= M:
            if M == 1:
                raise ValueError(
                    f"a student of one frame makes one pass alone, got {self.through}: for more, distil one of several "
                    "frames with inner starts, `distill(..., inner_starts=0.5)`, or by a method that makes more "
                    "(`dsno methods`)"
                )
            raise ValueError(f"a student of {M} frames makes 1 to {M} passes, got {self.through}")
        if any(not i < j < M - 1 for i, j in pairwise((-1, *self.inner))):
            raise ValueError(
                f"inner frames must increase within [0, {M - 2}], the last of {M} being the sample: got "
                f"{list(self.inner)}"
            )
        if self.passes > 1:
            self.student.check_restarts()
        if self.fresh is None:
            object.__setattr__(self, "fresh", self.student.fresh)

    @property
    def inner(self) -> tuple[int, ...]:
        """The inner frames that passes start from."""
        if not isinstance(self.through, int):
            return tuple(self.through)
        # Noise and the M frames are M + 1 places: i M / k, to the nearest, is the place of the i-th restart of k
        # passes.
        k, M = self.through, self.student.frames
        return tuple((2 * i * M + k) // (2 * k) - 1 for i in range(1, k))

    @property
    def passes(self) -> int:
        """Network calls: one more than inner frames."""
        return len(self.inner) + 1

    @property
    def noises_again(self) -> bool:
        """Whether a sample is noised again on the way."""
        return bool(self.fresh and self.inner)

    @property
    def predicts(self) -> bool:
        """Whether h is a prediction at the states: not of a state student, whose h leads there from the start of its
        pass, nor where states were noised again."""
        return self.student.target == "x0" and not self.noises_again

    @property
    def calls(self) -> list[tuple[float, Sequence[int]]]:
        """Of each pass the time that it starts from, and the frames that it makes."""
        ends = [-1, *self.inner, self.student.frames - 1]
        starts = [1.0, *self.student.times[list(self.inner)].tolist()]
        frames = [range(i + 1, j + 1) if self.whole else (j,) for i, j in pairwise(ends)]
        return [*zip(starts, frames, strict=True)]

    def call(self, x_t: Tensor, cond: Cond | None, start: float, frames: Sequence[int]) -> tuple[Tensor, Tensor, float]:
        """One of `calls`, from the state x_t (B, *shape): h and the states at the frames, (B, len(frames), *shape), and
        the standard deviation of the noise that the last of them lacks."""
        student, last, end = self.student, frames[-1], self.student.frames - 1
        # Where the next pass starts from the sample, that frame is asked for in place of its own.
        again = self.fresh and last < end
        asked = (*frames[:-1], end) if again else frames
        h = student(x_t, cond, start, asked)
        states = student.states(x_t, h, start, asked)
        if student.target == "x0" and asked[-1] == end:
            # The sample is h itself; the formula would add sigma_M times the noise where a schedule is truncated.
            states[:, -1] = h[:, -1]
        if not again:
            return h, states, 0.0
        alpha_j, sigma_j = student.schedule.at(float(student.times[last]))
        states[:, -1] *= alpha_j
        return h, states, sigma_j

    @torch.no_grad()
    def __call__(self, z: Tensor, cond: Cond | None = None, seeds: Tensor | None = None) -> Trajectory:
        self.student.check(z, cond)
        with computing(z, self.student):
            return sampled(self._run, z, cond, seeds)

    def _run(self, z: Tensor, cond: Cond | None, seeds: Tensor | None) -> Trajectory:
        student, noises = self.student, iter(self._noises(z, seeds))
        x_t = initial_state(student.schedule, z)
        x, hs, kept = [x_t.unsqueeze(1)], list[Tensor](), list[int]()
        for start, frames in self.calls:
            h, states, sigma_j = self.call(x_t, cond, start, frames)
            if sigma_j:
                states[:, -1] += sigma_j * next(noises)
            x, hs, kept, x_t = [*x, states], [*hs, h], [*kept, *frames], states[:, -1]
        h, states = torch.cat(hs, 1), torch.cat(x, 1)
        t = torch.cat([torch.ones(1, dtype=torch.float64), student.times[kept]])
        x0 = torch.cat([h[:, :1], h], 1) if self.predicts else None
        return Trajectory(states, t, x0, cond, seeds, nfe=self.passes, rounds=self.passes)

    def _noises(self, z: Tensor, seeds: Tensor | None) -> Sequence[Tensor] | Tensor:
        """The noise of each restart, (B, *shape); streams 1, 2, ... of the seeds."""
        if not self.noises_again:
            return ()
        if seeds is None:
            raise ValueError("this sampler draws fresh noise at every restart: pass the seeds of the samples")
        return noise_tape(seeds, z.shape[1:], len(self.inner), z.dtype).to(z.device)


@dataclass(frozen=True)
class FlowMapSampler:
    r"""A flow map on a grid as a `Sampler`: one network call for each of its steps.

    A step from $t_n$ jumps to $l_n \le t_{n+1}$ and, where that is short of $t_{n+1}$, noises the sample back up to it,

    $$ x_{t_{n+1}} = \frac{\alpha_{n+1}}{\alpha_l} X_{t_n \to l_n}(x_{t_n})
       + \sqrt{\sigma_{n+1}^2 - (\alpha_{n+1} / \alpha_l)^2
       \sigma_l^2} \; \epsilon. $$

    Without `landings`, $l_n = t_{n+1}$: deterministic. Landing at 0 is the multistep sampler of consistency models
    (Song et al., 2023, arXiv 2303.01469, algorithm 1); $l_n = t_{n+2}$, one step further, the stochastic one of guided
    distillation (Meng et al., 2023, arXiv 2210.03142).

    Arguments:
        map: The flow map.
        grid: N + 1 decreasing times; `even(schedule, 1)` is one pass.
        landings: N times, each at most the grid's next one; the last is the grid's last.

    Raises:
        ValueError: for a grid that does not decrease, or landings that do not fit it; when called without seeds where
            fresh noise is needed.
    """

    map: FlowMap
    grid: Tensor
    landings: Tensor | None = None

    def __post_init__(self) -> None:
        grid = check_grid(self.grid)
        object.__setattr__(self, "grid", grid)
        ends = grid[1:]
        landings = ends if self.landings is None else torch.as_tensor(self.landings, dtype=torch.float64, device="cpu")
        fits = landings.shape == ends.shape and bool(((landings >= 0) & (landings <= ends)).all())
        if not fits or landings[-1] != ends[-1]:
            raise ValueError(
                f"a step lands between 0 and the grid's next time, the last on its end: grid {grid.tolist()}, landings "
                f"{landings.tolist()}"
            )
        object.__setattr__(self, "landings", landings)

    @torch.no_grad()
    def __call__(self, z: Tensor, cond: Cond | None = None, seeds: Tensor | None = None) -> Trajectory:
        self.map.check(z, cond)
        with computing(z, self.map):
            return sampled(self._run, z, cond, seeds)

    def _run(self, z: Tensor, cond: Cond | None, seeds: Tensor | None) -> Trajectory:
        times, landings, schedule = self.grid.tolist(), cast(Tensor, self.landings).tolist(), self.map.schedule
        tape = None
        if landings != times[1:]:
            if seeds is None:
                raise ValueError("this sampler draws fresh noise at every step: pass the seeds of the samples")
            tape = noise_tape(seeds, z.shape[1:], len(landings), z.dtype, z.device)
        x = [initial_state(schedule, z, times[0])]
        for n, (t, s) in enumerate(pairwise(times)):
            x_s = self.map(x[-1], t, landings[n], cond)
            if tape is not None and landings[n] < s:
                ratio, nu = self.noised(landings[n], s)
                x_s = ratio * x_s + nu * tape[n]
            x.append(x_s)
        N = len(times) - 1
        return Trajectory(torch.stack(x, 1), self.grid, None, cond, seeds, nfe=N, rounds=N)

    def noised(self, landing: float, s: float) -> tuple[float, float]:
        """What noises a sample at `landing` back up to s, the formula above: its factor, and that of fresh noise."""
        (alpha_s, sigma_s), (alpha_l, sigma_l) = map(self.map.schedule.at, (s, landing))
        ratio = alpha_s / alpha_l
        return ratio, (sigma_s**2 - (ratio * sigma_l) ** 2) ** 0.5


def passes_of(map: FlowMap, passes: int = 1) -> FlowMapSampler:
    """The sampler of so many passes that a map was trained for, on the even grid.

    Raises:
        ValueError: for no passes, or passes it was not trained for.
    """
    if passes < 1:
        raise ValueError(f"a sampler makes at least one pass, got {passes}")
    if map.way == "grid" and passes != map.steps:
        raise ValueError(
            f"this flow map was trained for the grid of {map.steps} step(s) alone and makes {map.steps} pass(es), got "
            f"{passes}: distil one for {passes}, or by a method that allows any number (`dsno methods`)"
        )
    grid = even(map.schedule, passes)
    return FlowMapSampler(map, grid, torch.zeros(passes) if map.way == "end" else None)


@dataclass(frozen=True)
class DecoderSampler:
    """A parallel decoder as a `Sampler`: its grid in blocks of N / passes intervals, a network call for each.

    Arguments:
        decoder: The student.
        passes: N over a span that it is trained for.

    Raises:
        ValueError: for other passes; says which there are.
    """

    decoder: ParallelDecoder
    passes: int = 1

    def __post_init__(self) -> None:
        if self.passes not in (known := passes_known(self.decoder)):
            raise ValueError(
                f"this decoder makes {', '.join(map(str, known))} pass(es), got {self.passes}: distil one with other "
                "blocks (`heads`, `least`, `most` of decoding), or by a method that makes any number (`dsno methods`)"
            )

    @torch.no_grad()
    def __call__(self, z: Tensor, cond: Cond | None = None, seeds: Tensor | None = None) -> Trajectory:
        self.decoder.check(z, cond)
        with computing(z, self.decoder):
            return sampled(self._run, z, cond, seeds)

    def _run(self, z: Tensor, cond: Cond | None, seeds: Tensor | None) -> Trajectory:
        decoder, N, L = self.decoder, self.decoder.count, self.decoder.count // self.passes
        x = [initial_state(decoder.schedule, z, float(decoder.grid[0]))]
        for n in range(0, N, L):
            x.append(decoder(x[-1], n, n + L, cond))
        return Trajectory(torch.stack(x, 1), decoder.grid[::L], None, cond, seeds, nfe=self.passes, rounds=self.passes)


ANY = (1, 2, 4, 8)
"""The passes that are offered of a flow map that makes any number."""

Student = TrajectoryStudent | FlowMap | ParallelDecoder
"""What `dsno distill` makes."""


def passes_known(student: Student) -> tuple[int, ...]:
    """The numbers of passes to offer of a student, the fewest first."""
    if isinstance(student, TrajectoryStudent):
        return tuple(range(1, student.frames + 1)) if student.restarts else (1,)
    if isinstance(student, ParallelDecoder):
        return tuple(student.count // span for span in reversed(student.spans))
    return ANY if student.steps is None else (student.steps,)


def told_more(student: Student) -> bool:
    """Whether a student is told more than a class, which alone can be drawn for it: a guidance weight, or a text."""
    student = unwrapped(student)
    return student.guided or (isinstance(student, TrajectoryStudent) and bool(tokens_of(student.lifted.backbone)))


def sampler_of(student: Student, passes: int | None = None, whole: bool = False, fresh: bool | None = None) -> Sampler:
    """The sampler of so many passes; by default of the fewest it was trained for, which is one of all but a grid's map.

    `whole` keeps all frames of a `TrajectoryStudent`; `fresh` noises the sample again between passes, by default where
    the student was trained to, as consistency functions are in any case.

    Raises:
        ValueError: for passes it was not trained for, or fresh noise in a decoder or a map of one grid.
    """
    student = unwrapped(student)
    if isinstance(student, ParallelDecoder):
        if fresh:
            raise ValueError("a parallel decoder follows its grid and never jumps to t = 0 and back: leave `fresh` out")
        return DecoderSampler(student, student.count // student.spans[-1] if passes is None else passes)
    if not isinstance(student, FlowMap):
        return MultiPass(student, 1 if passes is None else passes, whole, fresh)
    sampler = passes_of(student, passes if passes is not None else student.steps or 1)
    if not fresh:
        return sampler
    if student.way == "grid":
        raise ValueError("a flow map of one grid's steps never jumps to t = 0 and back: leave `fresh` out")
    return FlowMapSampler(student, sampler.grid, torch.zeros(len(sampler.grid) - 1))
