"""The receding draft: the chain's own samples from any student, fewer verified states from a good one."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dsno.denoise import Prediction
from dsno.grids import quadratic, uniform
from dsno.nets.unet import UNet
from dsno.parallel.draft import x0_of_student
from dsno.parallel.receding import Receding
from dsno.parallel.rounds import System
from dsno.parallel.taa import ParaTAA
from dsno.schedule import Cosine
from dsno.solvers.chain import Chain
from dsno.solvers.run import SolverSampler
from dsno.students.operator import TrajectoryStudent, student_from_teacher
from dsno.teachers.closed import GaussianMixture

SHAPE, TIMES = (1, 4, 4), quadratic(4)[1:]
MIXTURE = GaussianMixture(
    Cosine(), torch.randn(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), 0.3
)


class Solves(nn.Module):
    """In place of a lifted network: solves the teacher's ODE from where each row is told to start."""

    frames, once = 4, True
    backbone, guidance = None, None

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target

    def forward(
        self, x: Tensor, times: Tensor, cond: Tensor | None, start: Tensor | float, select: Sequence[int] | None
    ) -> Tensor:
        rows = [self._one(x[i : i + 1], float(t)) for i, t in enumerate(torch.as_tensor(start).expand(len(x)))]
        return torch.cat(rows)[:, list(range(4) if select is None else select)]

    def _one(self, x: Tensor, start: float) -> Tensor:
        keep = [float(t) for t in TIMES if t < start - 1e-9]
        grid = sorted({start, *keep, *(t for t in uniform(24).tolist() if t < start - 1e-9)}, reverse=True)
        solver = SolverSampler(MIXTURE, Cosine(), torch.tensor(grid, dtype=torch.float64), keep=keep, keep_x0=True)
        made = solver(x / Cosine().at(start)[1])
        assert made.x0 is not None
        h = made.x0
        if self.target == "state":
            (alpha_t, sigma_t), parts = Cosine().at(start), []
            for m, t in enumerate(keep):
                alpha, sigma = Cosine().at(t)
                parts.append((made.x[:, m] - sigma / sigma_t * x) / (alpha - sigma / sigma_t * alpha_t))
            h = torch.stack(parts, 1)
        # Frames before the start are nobody's business: nonsense that must not be looked at.
        return torch.cat([h.new_full((1, 4 - len(keep), *SHAPE), 1e6), h], 1)


def solving(target: str = "state") -> TrajectoryStudent:
    return TrajectoryStudent(Solves(target), Cosine(), TIMES, target, "x0", shape=SHAPE, restarts=True)


def wild() -> TrajectoryStudent:
    torch.manual_seed(0)
    teacher = Prediction(UNet(1, 4, (8,)), Cosine(), "v", shape=SHAPE)
    student = student_from_teacher(teacher, TIMES, "state").double().eval()
    student.restarts = True
    for p in student.parameters():
        nn.init.normal_(p, std=0.3)
    return student


def problem(chain: Chain, count: int = 4) -> tuple[Tensor, Tensor | None]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(count, *SHAPE, dtype=torch.float64, generator=g)
    return x, torch.randn(len(chain), *x.shape, dtype=torch.float64, generator=g) if chain.eta else None


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("window", [None, 5])
def test_no_student_changes_the_result(eta: float, corrected: bool, window: int | None) -> None:
    chain = Chain(Cosine(), uniform(16), eta)
    x, tape = problem(chain)
    reference = chain.run(MIXTURE, x, tape)
    made = Receding(MIXTURE, chain, wild(), corrected, window, tolerance=None).solve(x, tape)
    assert float((made.x - reference.x).abs().max()) <= 1e-12
    assert made.trace is not None and int(made.trace.rounds.max()) <= len(chain)


def test_a_good_student_leaves_little_to_verify() -> None:
    chain = Chain(Cosine(), uniform(16))
    x, _ = problem(chain)
    reference = chain.run(MIXTURE, x)
    drafted = Receding(MIXTURE, chain, solving(), tolerance=0.05).solve(x)
    alone = ParaTAA(MIXTURE, chain, tolerance=0.05).solve(x)
    assert float((drafted.sample - reference.sample).square().mean((1, 2, 3)).sqrt().max()) <= 0.05
    assert drafted.trace is not None and alone.trace is not None
    assert int(drafted.trace.rows.sum()) < int(alone.trace.rows.sum())
    # A pass for the first draft and one behind each round but the last.
    assert torch.equal(drafted.trace.draft_rounds, drafted.trace.rounds)


@pytest.mark.parametrize("target", ["x0", "state"])
def test_rows_may_start_anywhere(target: str) -> None:
    chain, student = Chain(Cosine(), uniform(16)), solving(target)
    x, _ = problem(chain)
    path, system = chain.run(MIXTURE, x), System(chain, x, None)
    n = torch.tensor([0, 5, 9, 15])
    starts = path.x[torch.arange(4), n]
    together = x0_of_student(student, system, starts, n, None, torch.arange(4))
    assert together.shape == (4, 16, *SHAPE) and float(together.abs().max()) < 1e3
    for i in range(4):
        alone = x0_of_student(student, system, starts[i : i + 1], n[i : i + 1], None, torch.tensor([i]))
        assert torch.allclose(together[i, n[i] :], alone[0, n[i] :], atol=1e-9)
    # From noise it is the draft of a student that was asked once.
    if target == "state":
        y, every = starts[1:2], torch.tensor([1])
        for k in range(5, 16):
            y = system.step(y, together[1:2, k], k, every)
        assert torch.allclose(y[0], student(starts[1:2], None, chain.grid[5:6])[0, -1], atol=1e-3)


def test_bad_input() -> None:
    chain = Chain(Cosine(), uniform(4))
    once = wild()
    once.restarts = False
    with pytest.raises(ValueError, match="starts from noise alone.*inner_starts=0.5"):
        Receding(MIXTURE, chain, once)
    with pytest.raises(ValueError, match="tolerance must be positive"):
        Receding(MIXTURE, chain, wild(), tolerance=0.0)
    with pytest.raises(ValueError, match="window must be at least 1"):
        replace(Receding(MIXTURE, chain, wild()), window=0)
